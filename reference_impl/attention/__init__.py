"""Attention over keys and values that lie in blocks.

Owns: attention as the definition says it, the oracle that all others are held against (`reference.py`); what a batch is
(`metadata.py`) and what a model asks for (`backend.py`); attention in torch, which serves on a CPU
(`torch_attention.py`), by a student's lab 4 (`lab4.py`), and in Triton (`triton_attention.py`: `paged_decode.py`,
`paged_prefill.py`, `store_kv.py`; `cascade_decode.py` where `common_prefix.py` finds that sequences begin alike); keys
and values in 8 bits (`fp8.py`). Knows nothing of who holds which block (`memory`) or of models. Start with
`reference.py`.
"""
