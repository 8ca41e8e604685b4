"""Who reads which tokens of a batch that begins alike: the prefix in pieces, what follows it in equal shares.

Owns: the tiles in which the rows of all sequences meet the prefix, in how many pieces it is cut, and the scratch in
which the pieces wait for decode. Knows nothing of queries, keys or attention.
Cost: scratch of 4 bytes for each number of the query and piece; a refresh is the work list's launch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reference_impl.attention.merge import Begun
from reference_impl.attention.prefill_tuning import PrefillTuning, prefill_tuning_for
from reference_impl.attention.sizes import cdiv, next_power_of_2
from reference_impl.attention.work_list import Tuning, WorkList

_CPU_PROGRAMS = 8
"""Under Triton's interpreter programs run one after another: enough that a prefix is cut."""


class CascadeWork:
    """Made once for batches of one size, refreshed once a step, and used by every layer of that step.

    It belongs to one stream: two launches that use it at the same time would meet in the same scratch.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        programs: int | None = None,
        tuning: PrefillTuning | None = None,
        suffix_tuning: Tuning | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """For `batch` sequences. programs: how many run at once; as many as the device holds unless given.

        tuning: of the prefix; suffix_tuning: of what follows it. kv_dtype: as `WorkList`, which it is for.
        Raises: ValueError as `WorkList`.
        """
        self.suffixes = WorkList(
            batch, heads, kv_heads, head_dim, dtype, device, programs=programs, tuning=suffix_tuning, kv_dtype=kv_dtype
        )
        group = heads // kv_heads
        self.tuning = tuning or _tuning_for(batch * group, head_dim, dtype)
        self.tile_heads = min(group, self.tuning.rows)
        self.tile_sequences = self.tuning.rows // self.tile_heads
        heads_in_tiles = kv_heads * cdiv(group, self.tile_heads)
        self.tiles = heads_in_tiles * cdiv(batch, self.tile_sequences)
        """Programs that each piece of the prefix needs."""
        self.pieces = max(1, (programs or _programs(device)) // max(1, self.tiles))
        """The most that a prefix is cut into."""
        self._out = torch.empty(self.pieces, batch, heads, head_dim, dtype=torch.float32, device=device)
        self._lse = torch.empty(self.pieces, batch, heads, dtype=torch.float32, device=device)
        self.begun: Begun | None = None
        """Where the pieces of the prefix go, and how many tokens they cover; None if there is no prefix."""

    def refresh(self, context_lens: Tensor, prefix_tokens: int) -> CascadeWork:
        """Cut anew for whole contexts of context_lens [batch], int32 on the device, behind the prefix; gives itself.

        Raises: ValueError on another shape or type, or a prefix below 0.
        """
        self.suffixes.refresh(context_lens, first_token=prefix_tokens)
        pieces = min(self.pieces, cdiv(prefix_tokens, self.tuning.edge_tokens))
        self.begun = Begun(prefix_tokens, self._out[:pieces], self._lse[:pieces]) if pieces else None
        return self

    def check(self, query: Tensor, kv_heads: int, prefix_tokens: int) -> None:
        """Raises: ValueError unless it was made for such a query [batch, heads, head_dim], and cut for the prefix."""
        work = self.suffixes
        work.check_serves(query, kv_heads)
        if prefix_tokens != work.first_token:
            raise ValueError(
                f"a prefix of {prefix_tokens} tokens was asked for, and the work cut for {work.first_token}"
            )

    def check_invariants(self) -> None:
        """Raises: AssertionError unless prefix and suffixes meet and the work list is whole. Syncs."""
        self.suffixes.check_invariants()
        covered = self.begun.tokens if self.begun else 0
        assert covered == self.suffixes.first_token, (
            f"prefix of {covered} tokens, suffixes from {self.suffixes.first_token}"
        )
        assert self.tiles * self.tile_sequences * self.tile_heads >= self.suffixes.batch * self.suffixes.heads, (
            "rows lack"
        )


def _tuning_for(rows: int, head_dim: int, dtype: torch.dtype) -> PrefillTuning:
    """Prefill's tiles, unless there are fewer rows than they have: then half of the warps, and 64 rows or fewer."""
    tuning = prefill_tuning_for(head_dim, dtype)
    few = max(16, min(64, next_power_of_2(rows)))
    return tuning if rows > 64 or few >= tuning.rows else replace(tuning, rows=few, num_warps=4)


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_PROGRAMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
