"""Prompts and chunks of prompts over keys and values in blocks: compute-bound, so all of it is about the tensor cores.

Owns: the Triton kernel of prefill and the call around it. Knows nothing of models, of decode's work lists or of who
holds a block. A chunk behind cached tokens, a prefix hit and a whole prompt are one case: a sequence whose last query
tokens are the last of its context.

A program is one tile of query tokens of one sequence for one KV head. The query heads of that KV head stand beside one
another in the tile's rows, so that keys and values are read once for all of them:

    rows    t0 h0 | t0 h1 | t1 h0 | t1 h1 | ...      group 2: a tile of 128 rows holds 64 tokens

It walks the tiles of keys from the first that its window shows to the one on the diagonal. Tiles that no row sees are
not visited, and only those that cross an edge are masked. Late tiles of a sequence see most and come first, so that
what runs last is short. Which sequence a program serves it finds in `cu_seqlens` by itself: unequal lengths cost no
empty programs but one for each sequence, and the host need not know them.

Cost: 4 * head_dim operations for each query head, token and token seen; keys and values are read once for each tile
of query tokens, out of the second-level cache but for the first time.
Source: Dao, FlashAttention-2, 2023; Kwon et al., SOSP 2023, section 4.1; Agrawal et al., OSDI 2024 (chunks). NOTES.md.
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
from reference_impl.attention.prefill_tuning import PrefillTuning, prefill_tuning_for
from reference_impl.attention.sizes import cdiv, next_power_of_2
from reference_impl.attention.work_list import NO_WINDOW

_SEQUENCES = 128
"""Of so many sequences a program reads the beginnings at once, to find its own."""


def paged_prefill(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    out: Tensor,
    *,
    window: int | None = None,
    tuning: PrefillTuning | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Attention of query [tokens, heads, head_dim] over the cached tokens of each sequence, into `out`.

    Query token i of a sequence with q of them and c tokens of context stands at position c - q + i and sees what
    stands there and before, with `window` only the last `window` of it. Its own keys and values are in the cache. With
    c 0 it sees nothing and gives zeros.

    caches: [num_blocks, block_size, kv_heads, head_dim]; block_tables: [sequences, max_blocks] int32, of which only the
    entries that hold what is seen are looked at; context_lens: [sequences] int32; cu_seqlens: [sequences + 1] int32,
    rising: sequence s has the tokens of `query` from cu_seqlens[s] - cu_seqlens[0] to before cu_seqlens[s + 1] -
    cu_seqlens[0], so that a part of a larger batch's will do. Tokens behind the last sequence are not written.
    One type for query, caches and out, float32, float16 or bfloat16, or the caches of `fp8.FP8`, which then need
    k_scale and v_scale as in `fp8.KVScales`; the last dimension is contiguous, the others have any stride. head_dim 1
    to 256, any block size. float32 is computed in float32 throughout.

    tuning: other tile sizes than those that the head dimension's bytes ask for.
    Raises: ValueError, with nothing written, on shapes or types that do not go together, a window below 1 or a scale
    that is not above 0. Never waits for the device.
    """
    check_paged(query, key_cache, value_cache, out, first="tokens", k_scale=k_scale, v_scale=v_scale)
    sequences = context_lens.shape[0] if context_lens.dim() else 0
    what = f"{sequences} sequences"
    check_indices(sequences, what, block_tables=(block_tables, 2), context_lens=(context_lens, 1))
    check_indices(sequences + 1, f"{what} and the end of the last", cu_seqlens=(cu_seqlens, 1))
    if not 1 <= query.shape[2] <= 256:
        raise ValueError(f"head_dim must be 1 to 256, got {query.shape[2]}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0, got {scale}")
    tokens, heads, head_dim = query.shape
    if not tokens or not sequences:
        return
    block_size, kv_heads = key_cache.shape[1:3]
    tuning = tuning or prefill_tuning_for(head_dim, query.dtype)
    group = heads // kv_heads
    tile_heads = min(group, tuning.rows)
    tile_tokens = tuning.rows // tile_heads
    lanes = kv_heads * cdiv(group, tile_heads)
    # Every sequence fills whole tiles but its last, so there are no more than these, whatever the lengths.
    tiles = tokens // tile_tokens + sequences
    _paged_prefill[(lanes * tiles,)](
        query,
        key_cache,
        value_cache,
        block_tables,
        context_lens,
        cu_seqlens,
        out,
        k_scale,
        v_scale,
        scale * math.log2(math.e),
        min(window or NO_WINDOW, NO_WINDOW),
        sequences,
        *query.stride()[:2],
        *out.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        *block_tables.stride(),
        context_lens.stride(0),
        cu_seqlens.stride(0),
        0 if k_scale is None else k_scale.stride(0),
        0 if v_scale is None else v_scale.stride(0),
        LANES=lanes,
        GROUP=group,
        HEADS=tile_heads,
        TOKENS=tile_tokens,
        HEAD_DIM=head_dim,
        DIMS=max(16, next_power_of_2(head_dim)),
        ROWS=tuning.rows,
        TILE=tuning.tile_tokens,
        EDGE=tuning.edge_tokens,
        BLOCK_SIZE=block_size,
        SEQUENCES=_SEQUENCES,
        ALIKE=key_cache.stride() == value_cache.stride(),
        WINDOWED=window is not None,
        INTERPRETED=INTERPRETED,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )


@triton.jit
def _sequence_of(place, cu_seqlens, stride, sequences, TOKENS: tl.constexpr, SEQUENCES: tl.constexpr):
    """The sequence that a place in the row of all tiles belongs to: the last that begins at or before it.

    Sequence s begins at place start // TOKENS + s, which leaves it room for its tiles without a sum over those before.
    """
    origin = tl.load(cu_seqlens)
    begun = 0
    for first in range(0, sequences, SEQUENCES):
        at = first + tl.arange(0, SEQUENCES)
        start = tl.load(cu_seqlens + at * stride, mask=at < sequences, other=0) - origin
        begun += tl.sum(((at < sequences) & (start // TOKENS + at <= place)).to(tl.int32), 0)
    return begun - 1


@triton.jit
def _blocks(table, stride, token, there, BLOCK_SIZE: tl.constexpr):
    """The block of each token, 0 where there is none to be read."""
    # Unsigned, because division is then a shift where the block size is a power of two.
    return tl.load(table + (token.to(tl.uint32) // BLOCK_SIZE).to(tl.int32) * stride, mask=there, other=0)


@triton.jit
def first_blocks(table, stride, start, low, stop, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The blocks of the tile at `start`."""
    token = start + tl.arange(0, TILE)
    return _blocks(table, stride, token, (token >= low) & (token < stop), BLOCK_SIZE)


@triton.jit
def _places(block, offset, block_stride, token_stride):
    """Where tokens lie, in numbers from the head's first. Products of two 32-bit numbers, but 64 bits wide."""
    return block.to(tl.int64) * block_stride + offset.to(tl.int64) * token_stride


@triton.jit
def _rows_of(cache, at, there, MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr):
    """[TILE, DIMS] of a cache, 0 where there is nothing."""
    dim = tl.arange(0, DIMS)
    place = cache + at[:, None] + dim[None, :]
    if MASKED:
        found = tl.load(place, mask=there[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM == DIMS:
        found = tl.load(place)
    else:
        found = tl.load(place, mask=(dim < HEAD_DIM)[None, :], other=0.0)
    return found


@triton.jit
def walk(
    query,
    position,
    keys,
    values,
    table,
    block,
    scale,
    window,
    low,
    stop,
    begin,
    end,
    key_block,
    key_token,
    value_block,
    value_token,
    table_entry,
    out,
    top,
    weight_sum,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ALIKE: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Online softmax over the tiles from `begin` to before `end`, of whose tokens those from `low` to `stop` are read.

    block: those of the first tile's tokens.
    """
    for start in range(begin, end, TILE):
        token = start + tl.arange(0, TILE)
        there = (token >= low) & (token < stop)
        # Loaded a tile ahead, so that a key's address waits for no load of its own iteration.
        ahead = _blocks(table, table_entry, token + TILE, token + TILE < stop, BLOCK_SIZE)
        offset = (token.to(tl.uint32) % BLOCK_SIZE).to(tl.int32)
        at = _places(block, offset, key_block, key_token)
        key = _rows_of(keys, at, there, MASKED, HEAD_DIM, DIMS)
        if not ALIKE:
            at = _places(block, offset, value_block, value_token)
        value = _rows_of(values, at, there, MASKED, HEAD_DIM, DIMS)
        key, value = widened(key, query, INTERPRETED), widened(value, query, INTERPRETED)
        score = tl.dot(query, tl.trans(key), input_precision="ieee")
        if MASKED:
            seen = token[None, :] <= position[:, None]
            if WINDOWED:
                seen = seen & (token[None, :] > position[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1) * scale)
        shift = higher
        if MASKED:
            # A row may have seen nothing yet: the first tiles may lie before its window.
            shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score * scale - shift[:, None])
        fade = tl.exp2(top - shift)
        weight_sum = weight_sum * fade + tl.sum(weight, 1)
        out = tl.dot(weight.to(value.dtype), value, out * fade[:, None], input_precision="ieee")
        top = higher
        block = ahead
    return out, top, weight_sum


# Whatever changes from step to step is no constant to compile for, and nor is where a batch's numbers lie: a step that
# is launched has them elsewhere, and with other gaps, than a graph, and must not wait for a compiler.
@triton.jit(
    do_not_specialize=["sequences", "window", "table_sequence", "lens_stride", "starts_stride"],
    do_not_specialize_on_alignment=["block_tables", "context_lens", "cu_seqlens"],
)
def _paged_prefill(
    query,
    key_cache,
    value_cache,
    block_tables,
    context_lens,
    cu_seqlens,
    out,
    k_scale,
    v_scale,
    scale,
    window,
    sequences,
    query_token,
    query_head,
    out_token,
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
    starts_stride,
    k_scale_head,
    v_scale_head,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    EDGE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SEQUENCES: tl.constexpr,
    ALIKE: tl.constexpr,
    WINDOWED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """TOKENS query tokens of a sequence for one KV head, or for HEADS of its query heads if the group is larger."""
    lane, place = tl.program_id(0) % LANES, tl.program_id(0) // LANES
    sequence = _sequence_of(place, cu_seqlens, starts_stride, sequences, TOKENS, SEQUENCES)
    here = cu_seqlens + sequence * starts_stride
    start = tl.load(here) - tl.load(cu_seqlens)
    queries = tl.load(here + starts_stride) - tl.load(here)
    tile = tl.cdiv(queries, TOKENS) - 1 - (place - (start // TOKENS + sequence))
    if tile < 0:
        return
    length = tl.load(context_lens + sequence * lens_stride)

    head_blocks: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv_head = (lane // head_blocks).to(tl.int64)
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    token, head = tile * TOKENS + row // HEADS, lane % head_blocks * HEADS + row % HEADS
    kept = ((row // HEADS < TOKENS) & (token < queries) & (head < GROUP))[:, None] & (dim < HEAD_DIM)[None, :]
    at_token, at_head = (start + token).to(tl.int64), kv_head * GROUP + head
    rows = tl.load(
        query + (at_token * query_token + at_head * query_head)[:, None] + dim[None, :], mask=kept, other=0.0
    )
    if k_scale is not None:
        rows, power = beside_8_bits(rows, INTERPRETED)
        scale *= power * tl.load(k_scale + kv_head * k_scale_head)
    rows = widened(rows, rows, INTERPRETED)

    # What the first and the last token of the tile see, in tokens of the context.
    position = length - queries + token
    first = length - queries + tile * TOKENS
    stop = length - queries + tl.minimum((tile + 1) * TOKENS, queries)
    low = tl.maximum(first + 1 - window, 0)
    # Three walks: tiles before `free` are not in every row's window, from `inner` on not before every row's diagonal.
    begin = low // EDGE * EDGE
    free = begin
    if WINDOWED:
        free = tl.minimum(tl.cdiv(tl.maximum(stop - window, 0), EDGE), tl.maximum(first + 1, 0) // EDGE) * EDGE
    inner = free + tl.maximum(first + 1 - free, 0) // TILE * TILE

    keys, values = key_cache + kv_head * key_head, value_cache + kv_head * value_head
    table = block_tables + sequence.to(tl.int64) * table_sequence
    # All asked for now, so that no walk begins by waiting.
    before = first_blocks(table, table_entry, begin, low, stop, EDGE, BLOCK_SIZE)
    within = first_blocks(table, table_entry, free, low, stop, TILE, BLOCK_SIZE)
    behind = first_blocks(table, table_entry, inner, low, stop, EDGE, BLOCK_SIZE)
    found = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    weight_sum = tl.zeros((ROWS,), dtype=tl.float32)
    for part in tl.static_range(3):
        if WINDOWED or part > 0:
            found, top, weight_sum = walk(
                rows,
                position,
                keys,
                values,
                table,
                before if part == 0 else (within if part == 1 else behind),
                scale,
                window,
                low,
                stop,
                begin if part == 0 else (free if part == 1 else inner),
                free if part == 0 else (inner if part == 1 else stop),
                key_block,
                key_token,
                value_block,
                value_token,
                table_entry,
                found,
                top,
                weight_sum,
                HEAD_DIM,
                DIMS,
                TILE if part == 1 else EDGE,
                BLOCK_SIZE,
                ALIKE,
                part != 1,
                WINDOWED,
                INTERPRETED,
            )
    found = found / tl.where(weight_sum == 0.0, 1.0, weight_sum)[:, None]
    if v_scale is not None:
        found *= tl.load(v_scale + kv_head * v_scale_head)
    answer = out + (at_token * out_token + at_head * out_head)[:, None] + dim[None, :]
    tl.store(answer, found.to(out.dtype.element_ty), mask=kept)
