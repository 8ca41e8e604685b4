"""How `TorchAttention` takes a batch apart: worked out in the first layer of a step, the same for all others.

Owns: which decodes are computed together, which blocks are read for whom, and what of them nobody may look at. Knows
nothing of queries, keys or values.

    decodes    sorted by length, cut into groups of like length; in a group the shorter ones are filled up with blocks
               of their own, whose tokens are hidden. A group is a few large operations, a sequence many small ones.
    others     one by one: a whole prompt, or a chunk behind what is cached.

With a window, reading begins at the block that holds the first token it shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reference_impl.attention.metadata import AttentionMetadata
from reference_impl.memory.block_table import blocks_for

LIKE = 1.5
"""The longest of a group is at most so many times as long as the shortest, in blocks."""
GROUP_TOKENS = 4096
"""Tokens of a group, unless one sequence is longer: what is gathered is used before it falls out of the cache."""


@dataclass(frozen=True)
class Geometry:
    """The shape of a cache, as far as a layout depends on it, and the layer's window."""

    num_blocks: int
    block_size: int
    kv_heads: int
    window: int | None


@dataclass(frozen=True)
class Blocks:
    """Blocks to read, one after the other. by_head: the same for all KV heads, in a cache with the heads outermost.

    blocks [n] int64. by_head [kv_heads * n] int64, rows of a cache [kv_heads * num_blocks, block_size * head_dim].
    """

    blocks: Tensor
    by_head: Tensor


@dataclass(frozen=True)
class Group:
    """Decodes of like length. `rows`: their place in `Layout.order`, kv_heads rows for each.

    hidden: [members, 1, keys] bool, what a query must not see; None if it sees all. dead: [.] int64, which of these, as
    places among members * keys, may never have been written; None if there are none.
    """

    rows: slice
    members: int
    read: Blocks
    hidden: Tensor | None
    dead: Tensor | None


@dataclass(frozen=True)
class Chunk:
    """A sequence with more than one query token: `queries` of the batch over `keys` of what is read.

    mask: [queries, keys], 0 or -inf, added to the scores; None for a whole prompt that is causal and nothing more.
    """

    queries: slice
    keys: slice
    read: Blocks
    mask: Tensor | None


@dataclass(frozen=True)
class Layout:
    """A batch, taken apart. order: [num_decodes * kv_heads] int64, rows of queries [num_decodes * kv_heads, ...].

    buffers: memory for gathered keys and values, of one type. Fresh memory for every group of every layer would cost
    more than the copy into it.
    """

    order: Tensor
    groups: tuple[Group, ...]
    chunks: tuple[Chunk, ...]
    buffers: tuple[Tensor, Tensor]


def layout(metadata: AttentionMetadata, geometry: Geometry, head_dim: int, dtype: torch.dtype) -> Layout:
    """Take a batch apart. Cost: O(tokens read), and O(queries * keys) for a chunk behind what is cached."""
    device = metadata.block_tables.device
    groups: list[Group] = []
    rows: list[int] = []
    for members in _alike(metadata, geometry):
        groups.append(_group(metadata, geometry, members, len(rows)))
        rows += [geometry.kv_heads * member + head for head in range(geometry.kv_heads) for member in members]
    chunks = tuple(_chunks(metadata, geometry, dtype))
    reads = [group.read for group in groups] + [chunk.read for chunk in chunks]
    size = max((read.by_head.numel() for read in reads), default=0) * geometry.block_size * head_dim
    return Layout(
        order=torch.tensor(rows, dtype=torch.int64, device=device),
        groups=tuple(groups),
        chunks=chunks,
        buffers=(torch.empty(size, dtype=dtype, device=device), torch.empty(size, dtype=dtype, device=device)),
    )


def _first_seen(context: int, queries: int, window: int | None) -> int:
    """The first token that the first of these queries looks at."""
    return 0 if window is None else max(0, context - queries + 1 - window)


def _width(context: int, geometry: Geometry) -> int:
    """Blocks to read for a decode."""
    first = _first_seen(context, 1, geometry.window) // geometry.block_size
    return blocks_for(context, geometry.block_size) - first


def _alike(metadata: AttentionMetadata, geometry: Geometry) -> Iterator[list[int]]:
    """The decodes, longest first, cut where one more would be too unlike the first or the group too large."""
    widths = [_width(context, geometry) for context in metadata.context_tokens[: metadata.num_decodes]]
    most = max(1, GROUP_TOKENS // geometry.block_size)
    members: list[int] = []
    for row in sorted(range(len(widths)), key=lambda row: -widths[row]):
        longest = widths[members[0]] if members else 0
        if members and (widths[row] * LIKE < longest or (len(members) + 1) * longest > most):
            yield members
            members = []
        members.append(row)
    if members:
        yield members


def _group(metadata: AttentionMetadata, geometry: Geometry, members: list[int], at: int) -> Group:
    tables, size = metadata.block_tables, geometry.block_size
    contexts = [metadata.context_tokens[row] for row in members]
    width = _width(contexts[0], geometry)
    seen = [_first_seen(context, 1, geometry.window) for context in contexts]
    first = torch.tensor(seen, device=tables.device) // size
    context = torch.tensor(contexts, device=tables.device).unsqueeze(1)
    columns = first.unsqueeze(1) + torch.arange(width, device=tables.device)
    last = (context - 1) // size
    # Behind its end a sequence reads the first of its blocks again: an address that is always there, and every slot of
    # it is written, because only a sequence of several blocks is filled up.
    own = torch.where(columns <= last, columns, first.unsqueeze(1))
    blocks = tables[torch.tensor(members, device=tables.device)].gather(1, own)
    position = (first * size).unsqueeze(1) + torch.arange(width * size, device=tables.device)
    hidden = position >= context
    dead = (hidden & (position < (last + 1) * size)).flatten().nonzero().flatten()
    if geometry.window is not None:
        hidden |= position < context - geometry.window
    return Group(
        rows=slice(at, at + len(members) * geometry.kv_heads),
        members=len(members),
        read=_blocks(blocks.flatten(), geometry),
        hidden=hidden.unsqueeze(1) if bool(hidden.any()) else None,
        dead=dead if dead.numel() else None,
    )


def _chunks(metadata: AttentionMetadata, geometry: Geometry, dtype: torch.dtype) -> Iterator[Chunk]:
    start = metadata.num_decodes
    sizes = zip(metadata.query_tokens, metadata.context_tokens, strict=True)
    for row, (queries, context) in enumerate(sizes):
        if row < metadata.num_decodes:
            continue
        seen = _first_seen(context, queries, geometry.window)
        first, last = seen // geometry.block_size, blocks_for(context, geometry.block_size)
        before = first * geometry.block_size
        yield Chunk(
            queries=slice(start, start + queries),
            keys=slice(seen - before, context - before),
            read=_blocks(metadata.block_tables[row, first:last], geometry),
            mask=_mask(queries, context - seen, geometry.window, dtype, metadata.block_tables.device),
        )
        start += queries


def _mask(queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    if queries == keys and (window is None or window >= keys):
        return None
    query_at = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    key_at = torch.arange(keys, device=device)
    hidden = key_at > query_at
    if window is not None:
        hidden |= key_at <= query_at - window
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def _blocks(blocks: Tensor, geometry: Geometry) -> Blocks:
    heads = torch.arange(geometry.kv_heads, device=blocks.device) * geometry.num_blocks
    wide = blocks.long()
    return Blocks(wide, (heads.unsqueeze(1) + wide).flatten())
