"""A serving engine without a GPU: the real scheduler and memory, and a clock from a cost model.

Owns: traces as arrivals (`arrivals.py`), the work of a step and its price (`work.py`, `cost.py`, `device.py`, fitted in
`fit.py`), the loop (`simulator.py`), what is measured (`metrics.py`) and shown (`report.py`, `plot.py`), and the
published effects it is held against (such as `watermark.py` and `chunked_prefill.py`). Knows nothing of kernels. What
it says of time is as good as the cost model; what it says of memory is what the engine's own classes answered.
Start with `simulator.py`.
"""
