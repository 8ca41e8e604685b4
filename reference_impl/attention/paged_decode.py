"""One new token for each sequence, over its keys and values in blocks: memory-bound, so all of it is about bytes.

Owns: the Triton kernel of decode and the call around it. Knows nothing of models, of prefill or of who holds a block.

A program is one share of the work list (work_list.py) for one KV head: it walks the pieces of its share, one sequence
after the other, and reads each key and value once for all the query heads of the group. Programs of the same tokens
and different heads stand side by side, since their rows lie side by side in memory. A sequence within the share is
finished at once. Of one that lies across shares each program leaves its piece in scratch and counts itself; who counts
last merges them all (merge.py) and sets the count back to 0. Nobody waits for anybody.

What a warp has to issue for a tile decides how early it asks for the next one, so there is as little as possible in the
loop (decode_tile.py).

Cost: KV bytes read once; arithmetic 4 * head_dim operations a token and head, on the tensor cores for 16-bit types.
Source: Kwon et al., SOSP 2023, section 4.1; Dao et al., Flash-Decoding, 2023; Osama et al., PPoPP 2023. See NOTES.md.
"""

# Kernels take pointers and constants that Python's types do not describe, and Triton ships no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from reference_impl.attention.arguments import check_indices, check_paged
from reference_impl.attention.casts import INTERPRETED, beside_8_bits, widened
from reference_impl.attention.decode_tile import (
    as_state,
    blocks_of,
    by_grain,
    normalised,
    nothing_yet,
    places_of,
    rows_turned,
    with_tile,
)
from reference_impl.attention.merge import Begun, go_on_from, merge_pieces
from reference_impl.attention.sizes import next_power_of_2
from reference_impl.attention.work_list import CUT_FIELDS, GRAIN_TOKENS, WorkList

_PIECE_ELEMENTS = 8192
_PIECES = 16
"""What a merge holds in registers: so many numbers, of so many pieces at most."""
_BEGUN_PIECES = 8
"""Of those with which a sequence begins, as the present one's keys and values have registers too."""


def paged_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    out: Tensor,
    *,
    window: int | None = None,
    work: WorkList | None = None,
    begun: Begun | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Attention of query [batch, heads, head_dim] over the cached tokens of each sequence, into `out`, every element.

    caches: [num_blocks, block_size, kv_heads, head_dim]; block_tables: [batch, max_blocks] int32, of which only the
    entries that hold the context are looked at; context_lens: [batch] int32, 0 gives zeros. All of one type, float32,
    float16 or bfloat16, or the caches of `fp8.FP8`, which then need k_scale and v_scale as in `fp8.KVScales`. The last
    dimension is contiguous, the others have any stride. head_dim 1 to 256, any block size.

    work: refreshed with these context_lens, so that the layers of a step share one; made for this call if not given,
    which costs memory and a launch. window: only the last `window` tokens; a work list brings its own.
    begun: what the first tokens of every sequence gave, whatever the window, before it is multiplied by v_scale; decode
    goes on behind them, and a work list was refreshed with them as its `first_token`.
    Raises: ValueError, with nothing written, on shapes, types or a work list that do not go together.
    """
    check_paged(query, key_cache, value_cache, out, first="batch", k_scale=k_scale, v_scale=v_scale)
    batch, heads, head_dim = query.shape
    check_indices(batch, f"{batch} sequences", block_tables=(block_tables, 2), context_lens=(context_lens, 1))
    block_size, kv_heads = key_cache.shape[1:3]
    first_token = 0
    if begun is not None:
        begun.check(query)
        first_token = begun.tokens
    if work is None:
        device, kv_dtype = query.device, key_cache.dtype
        work = WorkList(batch, heads, kv_heads, head_dim, query.dtype, device, window=window, kv_dtype=kv_dtype)
        work.refresh(context_lens, first_token=first_token)
    else:
        _check_work(work, query, kv_heads, window, first_token)
    if not batch:
        return
    dims = max(16, next_power_of_2(head_dim))
    rows, turned = rows_turned(work.rows, key_cache.dtype)
    _paged_decode[(work.lanes, work.shares)](
        query,
        key_cache,
        value_cache,
        block_tables,
        context_lens,
        out,
        work.cuts,
        work.ends,
        work.spans,
        work.partial_out,
        work.partial_lse,
        work.arrived,
        begun.out if begun else None,
        begun.lse if begun else None,
        k_scale,
        v_scale,
        scale * math.log2(math.e),
        work.window,
        first_token,
        len(begun.out) if begun else 0,
        batch,
        kv_heads,
        *query.stride()[:2],
        *out.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        *block_tables.stride(),
        context_lens.stride(0),
        0 if k_scale is None else k_scale.stride(0),
        0 if v_scale is None else v_scale.stride(0),
        GROUP=heads // kv_heads,
        HEAD_DIM=head_dim,
        DIMS=dims,
        ROWS=rows,
        TILE=work.tuning.tile_tokens,
        FIELDS=CUT_FIELDS,
        GRAIN=GRAIN_TOKENS,
        BLOCK_SIZE=block_size,
        BY_GRAIN=by_grain(block_size, key_cache.dtype),
        ALIKE=key_cache.stride() == value_cache.stride(),
        ALIGNED=math.gcd(16, *key_cache.stride()[:2], *value_cache.stride()[:2]),
        TURNED=turned,
        MERGED=work.rows,
        PIECES=max(1, min(_PIECES, _PIECE_ELEMENTS // (work.rows * dims))),
        BEGUN=min(_BEGUN_PIECES, _PIECE_ELEMENTS // (rows * dims)) if begun else 0,
        INTERPRETED=INTERPRETED,
        num_warps=work.tuning.num_warps,
        num_stages=work.tuning.num_stages,
        maxnreg=work.tuning.registers,
    )


# Whatever changes from step to step is no constant to compile for: a batch of 1 or 16 is like any other.
# Lengths and tables: as in paged_prefill.py.
@triton.jit(
    do_not_specialize=["batch", "window", "first_token", "begun_pieces", "table_sequence", "lens_stride"],
    do_not_specialize_on_alignment=["block_tables", "context_lens"],
)
def _paged_decode(
    query,
    key_cache,
    value_cache,
    block_tables,
    context_lens,
    out,
    cuts,
    ends,
    spans,
    partial_out,
    partial_lse,
    arrived,
    begun_out,
    begun_lse,
    k_scale,
    v_scale,
    scale,
    window,
    first_token,
    begun_pieces,
    batch,
    kv_heads,
    query_sequence,
    query_head,
    out_sequence,
    out_head,
    key_block,
    key_token,
    key_head,
    value_block,
    value_token,
    value_head,
    table_sequence,
    table_entry,
    lens_stride,
    k_scale_head,
    v_scale_head,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    FIELDS: tl.constexpr,
    GRAIN: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BY_GRAIN: tl.constexpr,
    ALIKE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TURNED: tl.constexpr,
    MERGED: tl.constexpr,
    PIECES: tl.constexpr,
    BEGUN: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One share of the work for one KV head, or for ROWS of its query heads where the group is larger than that."""
    lane = tl.program_id(0)
    share = tl.program_id(1)
    row_blocks: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    kv_head = (lane // row_blocks).to(tl.int64)
    head = kv_head * GROUP + lane % row_blocks * ROWS
    head_stop = (kv_head + 1) * GROUP
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    at_head = head + row
    in_rows = (at_head < head_stop)[:, None] & (dim < HEAD_DIM)[None, :]
    heads = kv_heads * GROUP

    cut = cuts + share * FIELDS
    grain, stop, begin, end = tl.load(cut), tl.load(cut + 1), tl.load(cut + 2), tl.load(cut + 3)
    sequence, length, tiles = tl.load(cut + 4), tl.load(cut + 5), tl.load(cut + 6)
    first_sequence, first_begin = sequence, begin
    keys, values = key_cache + kv_head * key_head, value_cache + kv_head * value_head
    if k_scale is not None:
        # Scores are linear in keys, and answers in values: nothing is multiplied for each token.
        scale *= tl.load(k_scale + kv_head * k_scale_head)
    # Grains of a sequence are counted from its window's first.
    low = tl.maximum(length - window, first_token)
    at = (low // GRAIN + grain - begin) * GRAIN
    until = tl.minimum(at + (tl.minimum(end, stop) - grain) * GRAIN, length)

    top, weights, found = nothing_yet(TILE, ROWS, DIMS, TURNED)
    if BEGUN > 0:
        # Only who begins with a sequence takes them in, and a share of nothing has none.
        pieces = tl.where((begin == grain) & (tiles > 0), begun_pieces, 0)
        whose = sequence.to(tl.int64)
        top, weight_sum, begun = go_on_from(
            begun_out, begun_lse, pieces, whose, batch, at_head, heads, head_stop, HEAD_DIM, DIMS, ROWS, BEGUN
        )
        weights, found = as_state(weight_sum, begun, TILE, TURNED)
    # Table entries are loaded a tile ahead: a key's address then waits for no load of its own iteration, and the
    # compiler can keep several tiles of keys and values under way, those of the next sequence too.
    table = block_tables + sequence.to(tl.int64) * table_sequence
    block = blocks_of(table, table_entry, at, low, until, TILE, GRAIN, BLOCK_SIZE, BY_GRAIN)
    for tile in range(tiles):
        token = at + tl.arange(0, TILE)
        # What is not there is not read: neither a table entry, which may be -1, nor a slot, which may hold NaN.
        if TURNED:
            # One comparison for both ends, as a token below `low` is a large number without its sign. A context that
            # ends below `low`, within a prefix that is read elsewhere, has none. With 8 bits two are faster (NOTES.md).
            there = (token - low).to(tl.uint32) < tl.maximum(until - low, 0).to(tl.uint32)
        else:
            there = (token >= low) & (token < until)
        in_cache = there[:, None] & (dim < HEAD_DIM)[None, :]
        from_query = query + sequence.to(tl.int64) * query_sequence + (at_head * query_head)[:, None] + dim[None, :]
        place = places_of(block, at, key_block, key_token, TILE, GRAIN, BLOCK_SIZE, BY_GRAIN, ALIGNED)
        from_key = keys + place[:, None] + dim[None, :]
        if not ALIKE:
            place = places_of(block, at, value_block, value_token, TILE, GRAIN, BLOCK_SIZE, BY_GRAIN, ALIGNED)
        if TURNED:
            from_value = values + place[None, :] + dim[:, None]
            in_values = there[None, :] & (dim < HEAD_DIM)[:, None]
        else:
            from_value = values + place[:, None] + dim[None, :]
            in_values = in_cache

        # Where the next tile is: behind this one, or at the beginning of the next sequence.
        done = at + TILE >= until
        behind = sequence + 1
        more = done & (behind < batch)
        next_end = tl.load(ends + behind + 1, mask=more, other=0)
        next_length = tl.load(context_lens + behind * lens_stride, mask=more, other=0)
        next_low = tl.maximum(next_length - window, first_token)
        next_at = next_low // GRAIN * GRAIN
        next_until = tl.minimum(next_at + (tl.minimum(next_end, stop) - end) * GRAIN, next_length)
        of = sequence
        sequence = tl.where(done, behind, sequence)
        end = tl.where(done, next_end, end)
        low = tl.where(done, next_low, low)
        at = tl.where(done, next_at, at + TILE)
        until = tl.where(done, next_until, until)
        table = block_tables + sequence.to(tl.int64) * table_sequence
        block = blocks_of(table, table_entry, at, low, until, TILE, GRAIN, BLOCK_SIZE, BY_GRAIN)

        rows = tl.load(from_query, mask=in_rows, other=0.0)
        key = tl.load(from_key, mask=in_cache, other=0.0)
        value = tl.load(from_value, mask=in_values, other=0.0)
        by = scale
        if k_scale is not None:
            rows, power = beside_8_bits(rows, INTERPRETED)
            by = scale * power
        key, value = widened(key, rows, INTERPRETED), widened(value, rows, INTERPRETED)
        rows = widened(rows, rows, INTERPRETED)
        top, weights, found = with_tile(top, weights, found, rows, key, value, there, by, TURNED)
        if done & (tile + 1 < tiles):
            # The last piece of a share is finished behind the loop, and only the first can have begun before it.
            weight_sum, piece = normalised(weights, found, TURNED)
            if v_scale is not None:
                piece *= tl.load(v_scale + kv_head * v_scale_head)
            if (of > first_sequence) | (first_begin == grain):
                answer = out + of.to(tl.int64) * out_sequence + (at_head * out_head)[:, None] + dim[None, :]
                tl.store(answer, piece.to(out.dtype.element_ty), mask=in_rows)
            else:
                to = share * 2 * heads + at_head
                tl.store(partial_out + to[:, None] * HEAD_DIM + dim[None, :], piece, mask=in_rows)
                tl.store(partial_lse + to, top + tl.log2(weight_sum), mask=at_head < head_stop)
            top, weights, found = nothing_yet(TILE, ROWS, DIMS, TURNED)
            if BEGUN > 0:
                top, weight_sum, begun = go_on_from(
                    begun_out,
                    begun_lse,
                    begun_pieces,
                    sequence.to(tl.int64),
                    batch,
                    at_head,
                    heads,
                    head_stop,
                    HEAD_DIM,
                    DIMS,
                    ROWS,
                    BEGUN,
                )
                weights, found = as_state(weight_sum, begun, TILE, TURNED)

    if tiles > 0:
        last = sequence.to(tl.int64) - 1
        last_begin, last_end = tl.load(ends + last), tl.load(ends + last + 1)
        weight_sum, piece = normalised(weights, found, TURNED)
        if v_scale is not None:
            piece *= tl.load(v_scale + kv_head * v_scale_head)
        whole = (last_begin >= grain) & (last_end <= stop)
        if whole:
            answer = out + last * out_sequence + (at_head * out_head)[:, None] + dim[None, :]
            tl.store(answer, piece.to(out.dtype.element_ty), mask=in_rows)
        else:
            to = (share * 2 + (last_begin >= grain).to(tl.int64)) * heads + at_head
            tl.store(partial_out + to[:, None] * HEAD_DIM + dim[None, :], piece, mask=in_rows)
            tl.store(partial_lse + to, top + tl.log2(weight_sum), mask=at_head < head_stop)
        # All threads have written before one of them counts; what it counts with makes that seen.
        tl.debug_barrier()
        # At most two pieces of a share are parts: its first, if it began before, and its last, if that goes on or did.
        of_head = head + tl.arange(0, MERGED)
        for side in range(2):
            mine = tl.where(side == 0, last, first_sequence)
            if ((side == 0) & (whole == 0)) | ((side == 1) & (first_sequence < last) & (first_begin < grain)):
                _arrive(
                    tl.load(spans + 2 * mine).to(tl.int64),
                    tl.load(spans + 2 * mine + 1).to(tl.int64),
                    out + mine * out_sequence + (of_head * out_head)[:, None] + dim[None, :],
                    partial_out,
                    partial_lse,
                    arrived + mine * tl.num_programs(0) + lane,
                    of_head,
                    heads,
                    head_stop,
                    HEAD_DIM,
                    DIMS,
                    MERGED,
                    PIECES,
                )


@triton.jit
def _arrive(
    share_first,
    share_last,
    answer,
    partial_out,
    partial_lse,
    counter,
    at_head,
    heads,
    head_stop,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """One more piece of a sequence is in scratch; if it is the last of those that shares `share_first` to `share_last`
    leave, all are merged into `answer`."""
    before = tl.atomic_add(counter, 1, sem="acq_rel")
    if before == share_last - share_first:
        merged = merge_pieces(
            partial_out,
            partial_lse,
            share_first,
            share_last,
            at_head,
            heads,
            head_stop,
            HEAD_DIM,
            DIMS,
            ROWS,
            PIECES,
        )
        in_rows = (at_head < head_stop)[:, None] & (tl.arange(0, DIMS) < HEAD_DIM)[None, :]
        tl.store(answer, merged.to(answer.dtype.element_ty), mask=in_rows)
        tl.store(counter, 0)


def _check_work(work: WorkList, query: Tensor, kv_heads: int, window: int | None, first_token: int) -> None:
    work.check_serves(query, kv_heads)
    if window is not None and window != work.window:
        raise ValueError(f"window {window} was asked for, and the work list was cut for {work.window}")
    if first_token != work.first_token:
        raise ValueError(f"the work list begins at token {work.first_token}, and decode is to go on at {first_token}")
