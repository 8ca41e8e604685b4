"""Attention over keys and values that lie in blocks.

Owns: attention as the definition says it, in torch, for contiguous and for paged keys and values (`reference.py`): the
oracle that kernels are held against, and what computes on a CPU. Knows nothing of who holds which block (`memory`), of
models or of speed. Start with `reference.py`.
"""
