"""How fast the engine is, in numbers that are kept.

Owns: what is measured (`cases.py`: memory, scheduler and simulator, on a CPU alone), what was hoped for (`goals.py`),
how it is run (`memory.py`, with pytest-benchmark), and the record of it (`record.py`, `results/*.json`); the engine
beside the padded batch of another library (`beside_transformers.py`) and beside itself with reserved memory (`concurrency.py`),
kept by `cpu.py`; the kernels on a GPU (`kernels.py`; `kernel_cases.py`, `device_clock.py`, `textbook_decode.py`).
Knows nothing of how anything works inside. A goal of memory's that is missed is printed with a profile that shows where
the time went. Start with `cases.py`; run `engine bench memory`, `cpu` or `kernels`.
"""
