"""Out to the host and back: the blocks there, and the rule whether that is worth it.

Owns: which request holds which block of host memory, and the price of a move beside that of computing the tokens
again. Knows nothing of the device's blocks: the tables are `kv_manager.py`'s.
Source: Kwon et al., SOSP 2023, section 4.5 (both ways to recover) and 7.3 with figure 19 (their prices).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from labkit.contracts import OutOfBlocks


class HostPool:
    """`num_blocks` blocks of host memory, as large as those of the device; with none, nothing can be swapped out.

    Nothing is shared or found again here, so there are no reference counts: a stack of free blocks is enough.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 0:
            raise ValueError(f"num_host_blocks must be at least 0, got {num_blocks}")
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks))[::-1]
        self._held: dict[int, list[int]] = {}

    @property
    def num_free(self) -> int:
        """Host blocks that no request lies in."""
        return len(self._free)

    def put(self, request: int, num_blocks: int) -> list[int]:
        """Blocks for all of one request. OutOfBlocks, with nothing changed, if fewer are free. Cost: O(num_blocks).

        Raises: ValueError on a request that lies here already.
        """
        if request in self._held:
            raise ValueError(f"request {request} is on the host already")
        if num_blocks > len(self._free):
            raise OutOfBlocks(num_blocks, len(self._free))
        self._held[request] = [self._free.pop() for _ in range(num_blocks)]
        return self._held[request]

    def blocks(self, request: int) -> list[int]:
        """Where a request lies, in logical order. KeyError if it does not lie here."""
        return self._held[request]

    def drop(self, request: int) -> list[int]:
        """The blocks of a request are free: it came back, or it ended. Returns them. KeyError if it lies elsewhere."""
        blocks = self._held.pop(request)
        self._free += blocks[::-1]
        return blocks

    def check_invariants(self) -> None:
        """I1 and I3 on the host: every block is free or in one place. Cost: O(num_blocks)."""
        seen = sorted(self._free + [block for blocks in self._held.values() for block in blocks])
        assert seen == list(range(self.num_blocks)), f"I1: the host's blocks are {seen}, of {self.num_blocks}"


class Recovery(Enum):
    """What becomes of the KV of a preempted request."""

    RECOMPUTE = "recompute"
    SWAP = "swap"


@dataclass(frozen=True)
class SwapCost:
    """The price of both ways, for one device, one model and one block size.

    bytes_per_block: K and V of a block in all layers. link_bytes_per_s: between device and host, one way.
    per_copy_s: what a copy of one block costs whatever its size; with a copy for each layer, all of them.
    recompute_s: seconds to compute the KV of that many tokens as one prompt.

        swap      = 2 * num_blocks * (per_copy_s + bytes_per_block / link_bytes_per_s)     out, and back in
        recompute = recompute_s(num_tokens)

    The bytes of a request do not depend on the block size, the number of copies does: with small blocks `per_copy_s`
    is most of the price, and recomputing, which does not see blocks at all, wins. Neither price counts what else could
    have been done meanwhile: a copy can run beside the computation, and a recomputed prompt takes part of the budget.
    """

    bytes_per_block: int
    link_bytes_per_s: float
    per_copy_s: float
    recompute_s: Callable[[int], float]

    def __post_init__(self) -> None:
        """Raises: ValueError, naming the field, on a price that is none."""
        if self.bytes_per_block < 1:
            raise ValueError(f"bytes_per_block must be at least 1, got {self.bytes_per_block}")
        if not 0 < self.link_bytes_per_s < math.inf:
            raise ValueError(f"link_bytes_per_s must be above 0, got {self.link_bytes_per_s}")
        if not 0 <= self.per_copy_s < math.inf:
            raise ValueError(f"per_copy_s must be at least 0, got {self.per_copy_s}")

    def swap_s(self, num_blocks: int) -> float:
        """Seconds to move `num_blocks` blocks out and back in."""
        return 2 * num_blocks * (self.per_copy_s + self.bytes_per_block / self.link_bytes_per_s)

    def cheaper(self, num_tokens: int, num_blocks: int) -> Recovery:
        """The cheaper way for a request of `num_tokens` computed tokens in `num_blocks` blocks; recompute on a tie.

        Raises: ValueError if either is negative.
        """
        if num_tokens < 0 or num_blocks < 0:
            raise ValueError(f"num_tokens and num_blocks must be at least 0, got {num_tokens} and {num_blocks}")
        return Recovery.SWAP if self.swap_s(num_blocks) < self.recompute_s(num_tokens) else Recovery.RECOMPUTE
