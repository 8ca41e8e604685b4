"""How fast the engine is, in numbers that are kept.

Owns: what is measured (`cases.py`: memory, scheduler and simulator, on a CPU alone), what was hoped for (`goals.py`),
how it is run (`memory.py`, with pytest-benchmark), and the record of it (`record.py`, `results/*.json`); the engine on
a CPU beside the padded batch of another library (`beside_transformers.py`) and beside itself with reserved memory
(`concurrency.py`), kept by `cpu.py`; the kernels on a GPU (`kernels.py`, `prefill.py`, `cascade.py`; `kernel_cases.py`,
`device_clock.py`, `textbook_decode.py`, and other projects' kernels in `peers.py`); the engine on any device with a
batch job (`offline.py`, `profiled_step.py`), with clients that come as they like (`serve.py`) and with one budget of
bytes kept in several ways (`budget.py`), on models of random numbers (`random_model.py`); the pictures of the records
(`plot.py`, `pictures.py`, `kernel_pictures.py`, `drawing.py`).
Knows nothing of how anything works inside. A goal of memory's that is missed is printed with a profile that shows where
the time went. Start with `cases.py`; run `engine bench SUITE`.
"""
