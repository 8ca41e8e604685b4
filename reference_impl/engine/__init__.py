"""A model, a scheduler and paged memory joined: requests in, text out.

Owns: the tensors that blocks stand for (`kv_cache.py`; in 8 bits with scales, `kv_scales.py`), the run of one step
(`batch.py`, `table_rows.py`, `runner.py`; on a GPU also `device.py`, `upload.py` and `graphs.py` with all that is
captured), how many blocks fit (`memory_profile.py`), the loop (`engine.py`, `pipelined.py`) with what is refused at its
door (`door.py`), what is in a step (`flight.py`), its answers (`answer.py`, `outputs.py`) and their text
(`detokenizer.py`, `stop_strings.py`), its life beside an event loop (`async_engine.py`, `engine_thread.py`,
`stream.py`), and how one is put together (`options.py`, `build.py`, `contract_check.py`). Around it: a batch or a chat
at the terminal (`generate.py`, `asks.py`, `generate_command.py`), the OpenAI API (`server/`), a view of memory
(`watch/`), a process whose garbage collector leaves all of it alone (`heap.py`). Knows nothing of which block is whose
(`memory`), of who runs when (`sched`) or of arithmetic (`model`, `attention`). Start with `engine.py`.
"""
