"""How fast the engine is, in numbers that are kept.

Owns: what is measured (`cases.py`: memory, scheduler and simulator, on a CPU alone), what was hoped for (`goals.py`),
how it is run (`memory.py`, with pytest-benchmark), and the record of it (`record.py`, `results/*.json`). Knows nothing
of how anything works inside. A goal that is missed is printed with a profile that shows where the time went.
Start with `cases.py`; run `engine bench memory`.
"""
