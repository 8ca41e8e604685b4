"""One new token for each sequence of a batch that begins alike: the common prefix is read once, not once a sequence.

Owns: the Triton kernel that reads the prefix, and the call that lets decode go on behind it. Knows nothing of who found
out that the sequences begin alike, or of who holds a block.

The query rows of all sequences stand together in tiles as prefill's do, and meet each key of the prefix in one product
of the tensor cores. So that every multiprocessor reads, the prefix is cut along its length:

    rows      s0 h0 | s0 h1 | s1 h0 | s1 h1 | ...        group 2: a tile of 128 rows holds 64 sequences
    prefix    |aaaa|bbbb|cccc|dddd|                      a program for each piece, tile of rows and KV head

Each program leaves a piece, an output and a logarithm for each of its rows (merge.py). Then `paged_decode` reads what
stands behind the prefix, in equal shares, and whoever takes the first tokens of a sequence begins with its pieces
instead of nothing: there is no third kernel, and the pieces are added up by as many programs as decode has.

Cost: bytes of the prefix once and of what follows it, and the pieces: 4 bytes for each number of the query and piece,
written and read. 4 * head_dim operations for each query head and token.
Source: Juravsky et al., Hydragen, 2024; Ye et al., Cascade Inference, 2024; Dao, FlashAttention-2, 2023. See NOTES.md.
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
from reference_impl.attention.cascade_work import CascadeWork
from reference_impl.attention.casts import INTERPRETED, beside_8_bits, widened
from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.paged_prefill import first_blocks, walk
from reference_impl.attention.sizes import next_power_of_2


def cascade_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    prefix_table: Tensor,
    prefix_tokens: int,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    out: Tensor,
    *,
    work: CascadeWork | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Attention of query [batch, heads, head_dim] over the cached tokens of each sequence, into `out`, every element.

    As `paged_decode`, whose tables and lengths it takes: those of whole sequences, which the engine has anyway. The
    first `prefix_tokens` tokens of each are read through prefix_table [blocks] int32 instead, and so once for all;
    what block_tables has in their place is not looked at. Any number of tokens, whole blocks or not. A context that
    ends within the prefix sees its own tokens of it and no more, so that 0, as in a graph's padded rows, gives zeros.

    work: refreshed with these context_lens and prefix_tokens, so that the layers of a step share one; made for this
    call if not given. Nothing waits for the device: a graph can hold it, one for each number of prefix tokens.
    Raises: ValueError, with nothing written, on shapes, types or a work list that do not go together, a prefix that its
    table is too short for, or a scale that is not above 0.
    """
    check_paged(query, key_cache, value_cache, out, first="batch", k_scale=k_scale, v_scale=v_scale)
    batch, heads, head_dim = query.shape
    check_indices(batch, f"{batch} sequences", block_tables=(block_tables, 2), context_lens=(context_lens, 1))
    block_size, kv_heads = key_cache.shape[1:3]
    _check_prefix(prefix_table, prefix_tokens, block_size)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0, got {scale}")
    if work is None:
        work = CascadeWork(batch, heads, kv_heads, head_dim, query.dtype, query.device, kv_dtype=key_cache.dtype)
        work.refresh(context_lens, prefix_tokens)
    else:
        work.check(query, kv_heads, prefix_tokens)
    if not batch:
        return
    begun = work.begun
    if begun is not None:
        tuning = work.tuning
        _prefix_pieces[(work.tiles, len(begun.out))](
            query,
            key_cache,
            value_cache,
            prefix_table,
            context_lens,
            begun.out,
            begun.lse,
            k_scale,
            scale * math.log2(math.e),
            prefix_tokens,
            batch,
            *query.stride()[:2],
            *key_cache.stride()[:3],
            *value_cache.stride()[:3],
            prefix_table.stride(0),
            context_lens.stride(0),
            0 if k_scale is None else k_scale.stride(0),
            KV_HEADS=kv_heads,
            GROUP=heads // kv_heads,
            HEADS=work.tile_heads,
            SEQUENCES=work.tile_sequences,
            HEAD_DIM=head_dim,
            DIMS=max(16, next_power_of_2(head_dim)),
            ROWS=tuning.rows,
            TILE=tuning.tile_tokens,
            EDGE=tuning.edge_tokens,
            BLOCK_SIZE=block_size,
            ALIKE=key_cache.stride() == value_cache.stride(),
            INTERPRETED=INTERPRETED,
            num_warps=tuning.num_warps,
            num_stages=tuning.num_stages,
        )
    caches = (key_cache, value_cache, block_tables, context_lens)
    paged_decode(query, *caches, scale, out, work=work.suffixes, begun=begun, k_scale=k_scale, v_scale=v_scale)


def _check_prefix(table: Tensor, tokens: int, block_size: int) -> None:
    check_indices(table.shape[0] if table.dim() else 0, "the blocks of a prefix", prefix_table=(table, 1))
    if not 0 <= tokens <= table.shape[0] * block_size:
        blocks = f"{table.shape[0]} blocks of {block_size}"
        raise ValueError(f"prefix_tokens is {tokens}: need 0 to the {table.shape[0] * block_size} of {blocks}")


# As in paged_prefill.py.
@triton.jit(
    do_not_specialize=["tokens", "batch", "lens_stride"], do_not_specialize_on_alignment=["table", "context_lens"]
)
def _prefix_pieces(
    query,
    key_cache,
    value_cache,
    table,
    context_lens,
    pieces_out,
    pieces_lse,
    k_scale,
    scale,
    tokens,
    batch,
    query_sequence,
    query_head,
    key_block,
    key_token,
    key_head,
    value_block,
    value_token,
    value_head,
    table_entry,
    lens_stride,
    k_scale_head,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    EDGE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ALIKE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One piece of the prefix for SEQUENCES sequences and one KV head, or HEADS of its query heads if it has more."""
    # Programs that read the same tokens stand side by side: all heads of them, and all tiles of rows.
    head_blocks: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    lane, tile = tl.program_id(0) % (KV_HEADS * head_blocks), tl.program_id(0) // (KV_HEADS * head_blocks)
    piece, pieces = tl.program_id(1), tl.num_programs(1)
    kv_head = (lane // head_blocks).to(tl.int64)
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    head = lane % head_blocks * HEADS + row % HEADS
    sequence = (tile * SEQUENCES + row // HEADS).to(tl.int64)
    mine = (row // HEADS < SEQUENCES) & (sequence < batch) & (head < GROUP)
    kept = mine[:, None] & (dim < HEAD_DIM)[None, :]
    at_head = kv_head * GROUP + head
    from_query = query + (sequence * query_sequence + at_head * query_head)[:, None] + dim[None, :]
    rows = tl.load(from_query, mask=kept, other=0.0)
    if k_scale is not None:
        # Not the values' scale: decode multiplies what it adds these pieces to.
        rows, power = beside_8_bits(rows, INTERPRETED)
        scale *= power * tl.load(k_scale + kv_head * k_scale_head)
    rows = widened(rows, rows, INTERPRETED)

    # Pieces are equal to an edge's tile, and the tokens of a prefix that ends within one are masked.
    units = tl.cdiv(tokens, EDGE)
    low = (piece.to(tl.int64) * units // pieces).to(tl.int32) * EDGE
    stop = tl.minimum(((piece + 1).to(tl.int64) * units // pieces).to(tl.int32) * EDGE, tokens)
    length = tl.load(context_lens + sequence * lens_stride, mask=mine, other=0)
    position = tl.minimum(length, stop) - 1
    # A sequence without context masks nothing: what it finds is thrown away.
    shortest = tl.min(tl.where(mine & (length > 0), length, stop), 0)
    inner = low + tl.maximum(tl.minimum(shortest, stop) - low, 0) // TILE * TILE

    keys, values = key_cache + kv_head * key_head, value_cache + kv_head * value_head
    within = first_blocks(table, table_entry, low, low, stop, TILE, BLOCK_SIZE)
    behind = first_blocks(table, table_entry, inner, low, stop, EDGE, BLOCK_SIZE)
    found = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    weight_sum = tl.zeros((ROWS,), dtype=tl.float32)
    for part in tl.static_range(2):
        found, top, weight_sum = walk(
            rows,
            position,
            keys,
            values,
            table,
            within if part == 0 else behind,
            scale,
            0,
            low,
            stop,
            low if part == 0 else inner,
            inner if part == 0 else stop,
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
            TILE if part == 0 else EDGE,
            BLOCK_SIZE,
            ALIKE,
            part == 1,
            False,
            INTERPRETED,
        )
    # Who sees a token at all has a weight of at least 1.
    seen = length > low
    found = tl.where(seen[:, None], found / tl.where(seen, weight_sum, 1.0)[:, None], 0.0)
    lse = tl.where(seen, top + tl.log2(tl.where(seen, weight_sum, 1.0)), float("-inf"))
    to = (sequence + piece * batch) * (KV_HEADS * GROUP) + at_head
    tl.store(pieces_out + to[:, None] * HEAD_DIM + dim[None, :], found, mask=kept)
    tl.store(pieces_lse + to, lse, mask=mine)
