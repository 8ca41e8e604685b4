"""The check of a block table that somebody's allocator or cache answered.

Owns: what every table of lab 3 and lab 5 must be. Knows nothing of who else holds its blocks. What is wrong is one line
that says what was asked, because a table that leads elsewhere is otherwise noticed by nothing but strange text.
"""

from __future__ import annotations

from operator import index

from reference_impl.memory.block_table import blocks_for
from reference_impl.plugin import ContractError


def checked_table(asked: str, answer: list[int], num_tokens: int, num_blocks: int, block_size: int) -> list[int]:
    """The answer to `asked` as a list of ints. Cost: O(blocks).

    Raises: ContractError unless it has ceil(num_tokens / block_size) blocks, all different, all of 0 .. num_blocks - 1.
    """
    try:
        table = [index(block) for block in answer]
    except TypeError:
        raise ContractError(f"{asked} returned {answer!r:.80}, which is no list of block ids") from None
    if len(table) != blocks_for(num_tokens, block_size):
        raise ContractError(
            f"{asked} has {len(table)} blocks: {num_tokens} tokens in blocks of {block_size} need "
            f"{blocks_for(num_tokens, block_size)}"
        )
    if strange := [block for block in table if not 0 <= block < num_blocks]:
        raise ContractError(f"{asked} has block {strange[0]}, there are 0 to {num_blocks - 1}")
    if len(set(table)) != len(table):
        raise ContractError(f"{asked} has a block twice: {table!r:.80}")
    return table
