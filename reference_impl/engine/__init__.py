"""A model, a scheduler and paged memory joined: requests in, text out.

Owns: the tensors that blocks stand for and the run of one step (`runner.py`), how many blocks fit
(`memory_profile.py`), the engine (`engine.py`), its life beside an event loop (`async_engine.py`), the OpenAI API over
it (`server.py`) and what it tells of itself (`metrics.py`, `watch.py`). Knows nothing of which block is whose
(`memory`), of who runs when (`sched`) or of arithmetic (`model`, `attention`). Start with `engine.py`.
"""
