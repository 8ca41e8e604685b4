"""Where the KV memory goes: every slot is in exactly one of six columns.

Owns: the columns and their identity. Knows nothing of who fills them (that is `policies.py`).
Slots are counted in tokens, so a share of slots is a share of bytes. Accounts add up, so that the mean over time is the
sum of the accounts of the steps, divided by its capacity.
Source: Kwon et al., SOSP 2023, section 3.1 and figure 2, for reserved, internal and external; the paper counts the
tail of the last block as internal, here it has a column of its own because only paging has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class Account:
    """Slots of a KV memory at one moment, or summed over moments.

    held: tokens of live requests. reserved: kept for tokens that will come. internal: kept for a request and never
    used by a token of it. tail: in the last block of a table, past its last token. external: free, but in holes too
    short for the request asked about. free: free and long enough.
    """

    held: int = 0
    reserved: int = 0
    internal: int = 0
    tail: int = 0
    external: int = 0
    free: int = 0

    @property
    def capacity(self) -> int:
        """All slots: the six columns leave none out and count none twice."""
        return sum(astuple(self))

    def shares(self) -> dict[str, float]:
        """Each column as a share of the capacity. Raises: ValueError on an account of nothing."""
        if not self.capacity:
            raise ValueError("an account of no slots has no shares")
        return {column.name: getattr(self, column.name) / self.capacity for column in fields(self)}

    def __add__(self, other: Account) -> Account:
        return Account(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def split_free(holes: Iterable[tuple[int, int]], wanted: int) -> tuple[int, int]:
    """(external, free): the units in holes shorter than `wanted`, and those in the others. Cost: O(holes)."""
    external = free = 0
    for _, size in holes:
        if size < wanted:
            external += size
        else:
            free += size
    return external, free
