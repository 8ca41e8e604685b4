"""What a hidden test may see of a block allocator, with every answer checked for its shape.

Owns: asking a subject of lab 3 for its tables, counts and copies, and the words when an answer is no such thing. Knows
nothing of which answer is right: that is the tests' part. A message here is a static sentence, for students read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any

from autograder.judge.subject import Subject

Copies = list[tuple[int, int]]
Snapshot = tuple[int, dict[int, tuple[int, list[int]]]]
"""Free blocks, and for each sequence its token count and block table: all that can be seen from outside."""


def blocks_for(num_tokens: int, block_size: int) -> int:
    """ceil(num_tokens / block_size)."""
    return -(-num_tokens // block_size)


def integer(value: Any, otherwise: str) -> int:
    """`value` as a plain integer; AssertionError(otherwise) if it is none. A bool is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise AssertionError(otherwise) from None


def num_free(subject: Subject) -> int:
    """Free blocks."""
    return integer(subject.num_free_blocks, "num_free_blocks is not an integer")


def num_tokens(subject: Subject, seq: int) -> int:
    """Tokens of `seq`."""
    return integer(subject.num_tokens(seq), "num_tokens does not return an integer")


def integers(value: Any, method: str) -> list[int]:
    """`value` as a list of plain integers; AssertionError names `method` if it is none."""
    otherwise = f"{method} does not return a list of integers"
    assert isinstance(value, list), otherwise
    return [integer(item, otherwise) for item in value]


def table(subject: Subject, seq: int) -> list[int]:
    """The block table of `seq`."""
    return integers(subject.block_table(seq), "block_table")


def slots(subject: Subject, seq: int, start: int, stop: int) -> list[int]:
    """The slots of tokens start..stop-1 of `seq`."""
    return integers(subject.slot_mapping(seq, start, stop), "slot_mapping")


def copies_of(value: Any) -> Copies:
    """What append returned, as a list of (src, dst); AssertionError if it is none."""
    otherwise = "append does not return a list of pairs (src, dst)"
    assert isinstance(value, list), otherwise
    pairs = []
    for pair in value:
        assert isinstance(pair, (tuple, list)), otherwise
        assert len(pair) == 2, otherwise
        pairs.append((integer(pair[0], otherwise), integer(pair[1], otherwise)))
    return pairs


def append(subject: Subject, seq: int, *tokens: int) -> Copies:
    """Append, and give the copies."""
    return copies_of(subject.append(seq, *tokens))


def snapshot(subject: Subject, seqs: Iterable[int]) -> Snapshot:
    """All that can be seen of `seqs`. Cost: two calls a sequence."""
    return num_free(subject), {seq: (num_tokens(subject, seq), table(subject, seq)) for seq in seqs}


def held(subject: Subject, seqs: Iterable[int]) -> set[int]:
    """Every block that one of `seqs` holds."""
    return {block for seq in seqs for block in table(subject, seq)}
