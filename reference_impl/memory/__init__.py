"""Who holds which block of KV memory: pure Python, no torch.

Owns: the pool of physical blocks with its reference counts (`block_pool.py`), the block table of one sequence
(`block_table.py`) and the allocator that joins them behind the contract of lab 3 (`block_allocator.py`). Knows nothing
of models, kernels, schedules or the contents of a block.
Start with `block_pool.py`; the invariants I1 to I8 that these classes check are named where they are checked.
"""

from reference_impl.memory.block_allocator import BlockAllocator
from reference_impl.memory.block_pool import BlockPool
from reference_impl.memory.block_table import BlockTable

__all__ = ["BlockAllocator", "BlockPool", "BlockTable"]
