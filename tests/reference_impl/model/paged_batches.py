"""Batches over paged memory for a model alone: no engine, no scheduler, and attention by its definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference_impl.attention.metadata import AttentionMetadata, BatchRow, build_metadata
from reference_impl.attention.reference import paged_prefill, store_kv
from reference_impl.model.transformer import Transformer


class PlainAttention:
    """`Attention` by the reference, in float32."""

    def store_kv(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        store_kv(key, value, key_cache, value_cache, slot_mapping)

    def attend(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        scale: float,
        *,
        window: int | None = None,
    ) -> Tensor:
        real = sum(metadata.query_tokens)
        out = torch.zeros_like(query)
        out[:real] = paged_prefill(
            query[:real],
            key_cache,
            value_cache,
            metadata.block_tables,
            metadata.cu_seqlens,
            metadata.context_lens,
            scale,
            window=window,
            dtype=torch.float32,
        )
        return out


class PagedModel:
    """A model with caches, and sequences whose blocks are scattered: sequence s has every `stride`-th block."""

    def __init__(self, model: Transformer, *, num_sequences: int, longest: int, block_size: int = 4) -> None:
        self.model = model
        self.block_size = block_size
        self.stride = num_sequences
        self.blocks_each = -(-longest // block_size)
        config = model.config
        size = (num_sequences * self.blocks_each, block_size, config.num_kv_heads, config.head_dim)
        # NaN where nothing was written: whoever reads it shows it.
        self.caches = [
            (torch.full(size, torch.nan, dtype=model.dtype), torch.full(size, torch.nan, dtype=model.dtype))
            for _ in range(config.num_layers)
        ]
        self.computed = [0] * num_sequences

    def step(self, chunks: Sequence[tuple[int, Sequence[int]]], *, num_pads: int = 0) -> dict[int, Tensor]:
        """One batch of (sequence, its next tokens) -> each sequence's logits for all of these tokens."""
        ordered = sorted(chunks, key=lambda chunk: len(chunk[1]) > 1)
        rows, ids, positions = [], [], []
        for sequence, tokens in ordered:
            start = self.computed[sequence]
            table = [sequence + self.stride * place for place in range(self.blocks_each)]
            rows.append(BatchRow(table, len(tokens), start + len(tokens)))
            ids += list(tokens)
            positions += range(start, start + len(tokens))
            self.computed[sequence] += len(tokens)
        metadata = build_metadata(rows, self.block_size, num_pads=num_pads)
        logits = self.model.forward(
            torch.tensor(ids + [0] * num_pads),
            torch.tensor(positions + [0] * num_pads),
            self.caches,
            metadata,
            PlainAttention(),
            torch.arange(len(ids)),
        )
        pieces = torch.split(logits, [len(tokens) for _, tokens in ordered])
        return {sequence: piece for (sequence, _), piece in zip(ordered, pieces, strict=True)}


def random_prompts(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]


def in_chunks(model: Transformer, prompts: Sequence[Sequence[int]], chunk: int) -> list[Tensor]:
    """Every prompt's logits, computed in mixed batches: sequence s begins s steps later and takes chunk - s tokens."""
    paged = PagedModel(model, num_sequences=len(prompts), longest=max(map(len, prompts)))
    found: list[list[Tensor]] = [[] for _ in prompts]
    step = 0
    while any(paged.computed[place] < len(prompt) for place, prompt in enumerate(prompts)):
        batch = []
        for place, prompt in enumerate(prompts):
            start = paged.computed[place]
            tokens = prompt[start : start + max(chunk - place, 1)]
            if step >= place and tokens:
                batch.append((place, tokens))
        for place, logits in paged.step(batch, num_pads=step % 3).items():
            found[place].append(logits)
        step += 1
    return [torch.cat(logits) for logits in found]
