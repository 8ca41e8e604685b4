"""The untrusted side: runs the student's cells and answers calls.

Owns: the program inside the sandbox (`shim.py`), how it gives up its own rights first (`harden.py`), the values
and tensors that may cross to the judge (`wire.py`, `tensors.py`), and what is seen of a call's work: without a GPU what
torch computed (`labkit.watch`), on a GPU the plan of its kernels (`record.py`; `prints.py` lets them print). Standard
library only, but torch, Triton and labkit where a lab's students have them; knows no test, no reference, no seed and no
result file, so that nothing is lost when student code takes it over, which it may at any moment. Start with `wire.py`.
"""
