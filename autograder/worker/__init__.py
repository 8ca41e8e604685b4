"""The untrusted side: runs the student's cells and answers calls.

Owns: the program inside the sandbox (`shim.py`), how it gives up its own rights first (`harden.py`) and the values
that may cross to the judge (`wire.py`). Standard library only; knows no test, no reference, no seed and no result
file, so that nothing is lost when student code takes it over, which it may at any moment. Start with `wire.py`.
"""
