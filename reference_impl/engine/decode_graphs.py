"""Steps that only decode, as CUDA graphs: the launches of a whole model in one.

Owns: the graphs, one for each of a few batch sizes, and the tensors that they read. Knows nothing of requests. A step
of a small model is some hundreds of kernels of a few microseconds each; one after the other, Python and the driver take
longer to start them than the GPU takes to run them. A graph is captured once and started as one.

    a batch of 13 runs as 16: rows behind it have context 0, read nothing, and write nowhere (slot -1)
    numbers   [5, rows] int64: token id, position, slot, context in tokens, source (see `batch.py`)
    tables    [rows, blocks of the longest context] int32: what stands behind a context is never looked at
    chosen    [rows] int64: the tokens that the device chose last, for rows whose id the host does not know

Where a cache lies is part of a graph, so graphs are made after the blocks. All graphs share one piece of memory for
what they compute on the way, since only one runs at a time; each has logits of its own, which are read afterwards.
Cost: a step is one upload, three small copies and one launch, whatever the model; making them takes two steps each.
Source: the fixed sets of batch sizes of vLLM and SGLang; Kwon et al., SOSP 2023, for what is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reference_impl.attention.backend import Attention
from reference_impl.attention.metadata import AttentionMetadata
from reference_impl.engine.batch import KNOWN, Batch
from reference_impl.engine.upload import Uploader
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.contiguous import at_least_one
from reference_impl.model.transformer import Transformer

_SMALL = (1, 2, 4)
_EVERY = 8
"""From 8 rows on, a graph for every 8th size: a batch computes 7 rows too many at most."""


def graph_sizes(max_rows: int) -> list[int]:
    """The batch sizes that have a graph, ascending; the last is `max_rows`."""
    at_least_one("max_rows", max_rows)
    return sorted({*(size for size in (*_SMALL, *range(_EVERY, max_rows, _EVERY)) if size < max_rows), max_rows})


class DecodeGraphs:
    """Graphs of `model` over `caches`, for at most `max_rows` sequences of at most `max_context_tokens`."""

    def __init__(
        self,
        model: Transformer,
        attention: Attention,
        caches: Sequence[tuple[Tensor, Tensor]],
        *,
        max_rows: int,
        max_context_tokens: int,
    ) -> None:
        """Capture them all. The caches keep what they hold.

        Raises: ValueError where there is no NVIDIA GPU; what torch raises if `attention` waits for the device.
        """
        if model.device.type != "cuda":
            raise ValueError(f"a CUDA graph needs an NVIDIA GPU, this model is on {model.device}")
        self.sizes = graph_sizes(max_rows)
        self.block_size = caches[0][0].shape[1]
        self._model, self._attention, self._caches = model, attention, caches
        device = model.device
        self._numbers = torch.zeros(5, max_rows, dtype=torch.int64, device=device)
        self._numbers[2], self._numbers[4] = -1, KNOWN
        self._longest = max_context_tokens
        self._tables = torch.zeros(
            max_rows, blocks_for(max_context_tokens, self.block_size), dtype=torch.int32, device=device
        )
        self._chosen = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        # The largest first: the others find its memory free.
        for size in reversed(self.sizes):
            self._graphs[size] = self._captured(size)

    def fits(self, batch: Batch) -> bool:
        """Whether every sequence of it decodes, and there are not too many or too long ones."""
        rows = len(batch.layout.query_tokens)
        return (
            rows == batch.layout.num_decodes
            and 0 < rows <= self.sizes[-1]
            and not batch.num_pads
            and batch.layout.block_tables.shape[1] <= self._tables.shape[1]
        )

    def run(self, batch: Batch, upload: Uploader, chosen: Tensor | None) -> Tensor:
        """Logits [rows, vocab_size] of a batch that fits, good until the next call. chosen: for its sources."""
        layout = batch.layout
        rows, columns = layout.block_tables.shape
        size = next(size for size in self.sizes if size >= rows)
        numbers = np.zeros((5, size), dtype=np.int64)
        numbers[2], numbers[4] = -1, KNOWN
        numbers[0, :rows], numbers[1, :rows] = batch.token_ids, batch.positions
        numbers[2, :rows], numbers[3, :rows] = layout.slot_mapping, layout.context_lens
        if batch.sources is not None:
            numbers[4, :rows] = batch.sources
        sent_numbers, sent_tables = upload.send((numbers, layout.block_tables))
        self._numbers[:, :size].copy_(sent_numbers)
        self._tables[:rows, :columns].copy_(sent_tables)
        if batch.sources is not None:
            assert chosen is not None, "a batch with sources needs the tokens that they are places of"
            self._chosen[: len(chosen)].copy_(chosen)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:rows]

    def _captured(self, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # Once before: kernels are compiled and chosen at their first call, which a graph cannot hold.
        stream = torch.cuda.Stream(self._model.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward(size)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(size)
        return graph, logits

    def _forward(self, size: int) -> Tensor:
        token_ids, positions, slots, contexts, sources = self._numbers[:, :size].unbind()
        token_ids = torch.where(sources == KNOWN, token_ids, self._chosen[sources.clamp_min(0)])
        metadata = AttentionMetadata(
            slot_mapping=slots,
            block_tables=self._tables[:size],
            context_lens=contexts.to(torch.int32),
            cu_seqlens=torch.arange(size + 1, dtype=torch.int32, device=slots.device),
            query_tokens=(1,) * size,
            context_tokens=(self._longest,) * size,
            num_decodes=size,
        )
        dtype = self._model.dtype
        return self._model.forward(
            token_ids, positions, self._caches, metadata, self._attention, None, logits_dtype=dtype
        )
