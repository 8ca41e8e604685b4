"""Who reads which tokens: a step's work in equal shares, whatever the lengths.

Owns: the cut of a batch's tokens into shares, and the scratch in which the pieces of a sequence meet. Knows nothing of
queries, keys or attention.

The tokens of every sequence fill grains of 16, those of a window only the grains it touches, an empty sequence one
grain that reads nothing. All grains stand in one row, sequence after sequence; share c of n has grains c * total // n
to before (c + 1) * total // n, so that two shares differ by one grain at most. A sequence that lies within a share is
finished there; one that lies across shares leaves a piece in each:

    grains   |0 0 0 0 0 0 0 0 0|1|2 2|3 3 3 3 3 3|      n = 3, total = 18
    shares   |a a a a a a|b b b b b b|c c c c c c|      0: pieces in a and b    1, 2: whole, in b    3: whole, in c

At most two pieces of a share are parts of a sequence, its first (slot 0: it began in an earlier share) and its last
(slot 1: it begins here), so the scratch depends on the number of shares and not on the batch. Which shares hold a
sequence stands in `spans`: whoever counts a piece would have to divide 64-bit numbers for it, at the end of a launch.

All of it is computed on the device, from lengths on the device: the host does not wait, and a graph can hold it.
Cost: one small launch a step for all layers; time O(batch) for each share, a program for each.
Source: Osama et al., PPoPP 2023 (Stream-K: equal shares of tiles); Dao et al., Flash-Decoding, 2023 (split and merge).
"""

# Kernels take pointers and constants that Python's types do not describe, and Triton ships no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_impl.attention.sizes import cdiv, next_power_of_2

NO_WINDOW = 2**31 - 1
"""A window that no context is longer than."""
GRAIN_TOKENS = 16
"""Where shares may be cut. Finer than a tile, so that shares of few tiles are equal too."""
CUT_FIELDS = 16
"""Numbers of a share's cut: grain, stop, begin and end of its first sequence, which, how long, tiles.

The rest is room: a cut begins where 64 bytes do.
"""
_SEQUENCES = 128
"""What a program of the planner compares at once with its share."""
_REGISTERS = 65_536
"""Of a multiprocessor, of every NVIDIA GPU that Triton compiles for."""
_CPU_PROGRAMS = 8
"""Under Triton's interpreter programs run one after another: enough that sequences are split."""


@dataclass(frozen=True)
class Tuning:
    """Tokens in a tile, warps and pipeline stages of a program, and programs on a multiprocessor."""

    tile_tokens: int
    num_warps: int
    num_stages: int
    resident: int

    @property
    def registers(self) -> int:
        """Of a thread: all that `resident` programs leave to each. By itself the compiler takes fewer, at a price."""
        return min(255, _REGISTERS // (32 * self.num_warps * self.resident))


class WorkList:
    """The shares of one batch, made once and refreshed once a step, and used by every layer of that step.

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
        window: int | None = None,
        programs: int | None = None,
        tuning: Tuning | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """For `batch` sequences; those of context 0, such as the padded rows of a graph, cost next to nothing.

        window: only the last `window` tokens of a context are read. programs: how many run at once; as many as the
        device holds unless given. kv_dtype: of the cache, whose bytes choose the tuning unless that is given; the
        query's `dtype` if not given. Raises: ValueError, with the value, on sizes below 1 or heads that do not divide.
        """
        for name, size in (("kv_heads", kv_heads), ("head_dim", head_dim), ("heads", heads)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if batch < 0 or heads % kv_heads or not 1 <= head_dim <= 256:
            raise ValueError(f"batch {batch}, {heads} heads over {kv_heads} and head_dim {head_dim} are not supported")
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if programs is not None and programs < 1:
            raise ValueError(f"programs must be at least 1, got {programs}")
        self.batch, self.heads, self.kv_heads, self.head_dim, self.dtype = batch, heads, kv_heads, head_dim, dtype
        self.window = NO_WINDOW if window is None else min(window, NO_WINDOW)
        self.first_token = 0
        self.tuning = tuning or tuning_for(head_dim, dtype, kv_dtype)
        self.rows = rows_of(heads // kv_heads, head_dim)
        self.lanes = kv_heads * cdiv(heads // kv_heads, self.rows)
        self.shares = max(1, (programs or _programs(device, self.tuning.resident)) // self.lanes)
        # ends[i] is the first grain behind sequence i - 1, and spans[i] the first and the last share that have some of
        # sequence i; what a program needs to begin stands together in its cut.
        self.cuts, self.spans, self.ends, self.arrived = _zeros(
            device, (self.shares, CUT_FIELDS), (batch, 2), (batch + 1,), (batch, self.lanes)
        )
        self.partial_out = torch.empty(self.shares, 2, heads, head_dim, dtype=torch.float32, device=device)
        self.partial_lse = torch.empty(self.shares, 2, heads, dtype=torch.float32, device=device)

    def refresh(self, context_lens: Tensor, *, first_token: int = 0) -> WorkList:
        """Cut anew for `context_lens` [batch], int32 on the device, none below 0; gives itself.

        Before every step: attention over longer contexts than those that were cut misses tokens.
        first_token: those before it are not cut, since somebody else reads them. A context may end before it.
        Raises: ValueError on another shape or type, or a first token below 0.
        """
        if first_token < 0:
            raise ValueError(f"first_token must be at least 0, got {first_token}")
        if context_lens.shape != (self.batch,) or context_lens.dtype != torch.int32:
            found = f"{tuple(context_lens.shape)} of {context_lens.dtype}"
            raise ValueError(f"context_lens is {found}: need one int32 for each of {self.batch} sequences")
        self.first_token = first_token
        if self.batch:
            _cut[(self.shares,)](
                context_lens,
                self.ends,
                self.spans,
                self.cuts,
                context_lens.stride(0),
                self.batch,
                self.shares,
                self.window,
                first_token,
                FIELDS=CUT_FIELDS,
                GRAIN=GRAIN_TOKENS,
                GRAINS=self.tuning.tile_tokens // GRAIN_TOKENS,
                SEQUENCES=_SEQUENCES,
            )
        return self

    def check_serves(self, query: Tensor, kv_heads: int) -> None:
        """Raises: ValueError, with both, unless it was made for such a query [batch, heads, head_dim]."""
        need = (*query.shape[:2], kv_heads, query.shape[2], query.dtype)
        have = (self.batch, self.heads, self.kv_heads, self.head_dim, self.dtype)
        if need != have:
            raise ValueError(f"a work list for (batch, heads, KV heads, head_dim, type) {have} does not serve {need}")

    def check_invariants(self) -> None:
        """Raises: AssertionError unless the cuts cover every sequence and no piece waits for its merge. Syncs."""
        ends, cuts, total = self.ends.tolist(), self.cuts.tolist(), int(self.ends[-1])
        assert ends[0] == 0, f"the first sequence begins at grain {ends[0]}"
        for place in range(self.batch if total else 0):
            assert ends[place] < ends[place + 1], f"sequence {place} has no grain"
        reached = 0
        grains_of_tile = self.tuning.tile_tokens // GRAIN_TOKENS
        for share, (grain, stop, begin, end, sequence, _, tiles, *_) in enumerate(cuts):
            pieces = (min(high, stop) - max(low, grain) for low, high in pairwise(ends))
            counted = sum(-(-piece // grains_of_tile) for piece in pieces if piece > 0)
            assert tiles == counted, f"share {share} has {counted} tiles, its cut says {tiles}"
            if grain == stop:
                continue
            assert grain == reached, f"share {share} begins at grain {grain}, the one before stopped at {reached}"
            assert (begin, end) == (ends[sequence], ends[sequence + 1]), f"share {share} is wrong about {sequence}"
            assert begin <= grain < end, f"share {share} does not begin in sequence {sequence}"
            reached = stop
        assert reached == total, f"the shares stop at grain {reached} of {total}"
        for place, span in enumerate(self.spans.tolist() if total else ()):
            low, high = ends[place], ends[place + 1]
            held = [share for share, (grain, stop, *_) in enumerate(cuts) if grain < high and low < stop]
            assert span == [held[0], held[-1]], f"sequence {place} is in shares {held}, its span says {span}"
        assert not self.arrived.any(), "pieces of a sequence arrived and were not merged"


def rows_of(group: int, head_dim: int) -> int:
    """Query heads that a program takes: all that share a KV head, up to what its registers hold."""
    return int(min(next_power_of_2(group), 8192 // next_power_of_2(head_dim)))


def tuning_for(head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype | None = None) -> Tuning:
    """From the bytes of a token alone: shapes nobody measured are treated like those that were. See NOTES.md.

    kv_dtype: of the cache, unless it is that of the query. In float32 the registers decide and not the bytes read.
    """
    read = kv_dtype if kv_dtype is not None and dtype.itemsize == 2 else dtype
    token_bytes = next_power_of_2(head_dim) * read.itemsize
    tile_tokens = max(16, min(128, 16384 // token_bytes))
    return Tuning(tile_tokens=tile_tokens, num_warps=4, num_stages=3, resident=2)


def _zeros(device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Tensors of int32, filled in one launch; each begins where 64 bytes do."""
    sizes = [math.prod(shape) for shape in shapes]
    rooms = [-(-size // 16) * 16 for size in sizes]
    parts = torch.split(torch.zeros(sum(rooms), dtype=torch.int32, device=device), rooms)
    return [part[:size].view(shape) for part, size, shape in zip(parts, sizes, shapes, strict=True)]


def _programs(device: torch.device, resident: int) -> int:
    if device.type != "cuda":
        return _CPU_PROGRAMS
    return resident * int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit
def _grains(context_lens, stride, sequence, batch, window, first_token, GRAIN: tl.constexpr):
    """How many grains each sequence has: those of its window, and one where there is nothing to read."""
    length = tl.load(context_lens + sequence * stride, mask=sequence < batch, other=0)
    grains = tl.maximum(tl.cdiv(length, GRAIN) - tl.maximum(length - window, first_token) // GRAIN, 1)
    return tl.where(sequence < batch, grains, 0)


@triton.jit
def _share_of(grain, shares, total):
    """The share that holds a grain: the last that begins at or before it."""
    return ((grain + 1).to(tl.int64) * shares - 1) // total


@triton.jit
def _aligned(shares, batch):
    """For sequences of one length: the most shares, not many fewer, that leave each whole or cut all alike."""
    together = tl.cdiv(batch, shares)
    whole = tl.where(batch % together == 0, batch // together, 0)
    alike = tl.where(batch <= shares, shares // batch * batch, whole)
    return tl.where(alike * 16 >= shares * 15, alike, shares)


# Lengths: as in paged_prefill.py.
@triton.jit(
    do_not_specialize=["stride", "batch", "num_shares", "window", "first_token"],
    do_not_specialize_on_alignment=["context_lens"],
)
def _cut(
    context_lens,
    ends,
    spans,
    cuts,
    stride,
    batch,
    num_shares,
    window,
    first_token,
    FIELDS: tl.constexpr,
    GRAIN: tl.constexpr,
    GRAINS: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """One share: sums over the batch, then where it begins and in which sequence, the one behind those that end.

    Every program sums the whole batch for itself, which is cheaper than to wait for another. A share has at least
    the GRAINS of a tile: with little to read, fewer pieces are merged.
    """
    lane = tl.arange(0, SEQUENCES)
    total, most = 0, 0
    for start in range(0, batch, SEQUENCES):
        grains = _grains(context_lens, stride, start + lane, batch, window, first_token, GRAIN)
        total += tl.sum(grains, 0)
        most = tl.maximum(most, tl.max(grains, 0))

    share = tl.program_id(0)
    shares = tl.minimum(tl.cdiv(total, GRAINS), num_shares)
    shares = tl.where(tl.cast(most, tl.int64) * batch == total, _aligned(shares, batch), shares)
    # A share behind the last has nothing: it begins and stops at the end.
    grain = (tl.minimum(share, shares).to(tl.int64) * total // shares).to(tl.int32)
    stop = (tl.minimum(share + 1, shares).to(tl.int64) * total // shares).to(tl.int32)
    sequence, tiles, begin, end, reached = 0, 0, 0, 2**31 - 1, 0
    for start in range(0, batch, SEQUENCES):
        at = start + lane
        grains = _grains(context_lens, stride, at, batch, window, first_token, GRAIN)
        ending = reached + tl.cumsum(grains, 0)
        behind = (ending <= grain) & (at < batch)
        # A piece begins with a tile of its own, however few grains of a sequence it has.
        first = tl.maximum(ending - grains, grain)
        piece = tl.maximum(tl.minimum(ending, stop) - first, 0)
        tiles += tl.sum(tl.cdiv(piece, GRAINS), 0)
        sequence += tl.sum(behind.to(tl.int32), 0)
        begin = tl.maximum(begin, tl.max(tl.where(behind, ending, 0), 0))
        end = tl.minimum(end, tl.min(tl.where(behind | (at >= batch), 2**31 - 1, ending), 0))
        told = (at < batch) & (share == 0)
        tl.store(ends + 1 + at, ending, mask=told)
        tl.store(spans + 2 * at, _share_of(ending - grains, shares, total), mask=told)
        tl.store(spans + 2 * at + 1, _share_of(ending - 1, shares, total), mask=told)
        reached += tl.sum(grains, 0)
    length = tl.load(context_lens + sequence * stride, mask=sequence < batch, other=0)
    cut = cuts + share * FIELDS
    tl.store(cut, grain)
    tl.store(cut + 1, stop)
    tl.store(cut + 2, begin)
    tl.store(cut + 3, end)
    tl.store(cut + 4, sequence)
    tl.store(cut + 5, length)
    tl.store(cut + 6, tiles)
