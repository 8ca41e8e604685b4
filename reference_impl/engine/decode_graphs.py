"""Steps that only decode, as CUDA graphs: the launches of a whole model in one.

Owns: the graphs, one for each of a few batch sizes, and the tensors that they read. Knows nothing of requests. A step
of a small model is some hundreds of kernels of a few microseconds each; one after the other, Python and the driver take
longer to start them than the GPU takes to run them. A graph is captured once and started as one.

    a batch of 13 runs as 16: rows behind it have context 0, read nothing, and write nowhere (slot -1)
    numbers   [4, rows] int64: token id or `AWAITED`, position, slot, context in tokens
    tables    [rows, blocks of the longest context] int32: what stands behind a context is never looked at
    chosen    [rows] int64: the id of each awaited row, which the device chose in the step before
    logits    [rows, vocab_size]: what comes out

Where a cache lies is part of a graph, so graphs are made after the blocks. What they share with others is in
`capture.py`.

If asked for, a batch whose sequences all begin in the same blocks has a graph that reads these once. How many tokens
that are is part of the graph, so one is captured only when its size and prefix came some steps in a row, out of the
step at hand: it is computed once before the capture and once after, which writes the same numbers into the same slots.
Cost: a step is one upload, three small copies and one launch, whatever the model; making them takes two steps each, and
a third of every size if prefixes are asked for.
Source: the fixed sets of batch sizes of vLLM and SGLang; Kwon et al., SOSP 2023, for what is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference_impl.attention.backend import Attention, LayerCache
from reference_impl.attention.common_prefix import common_prefix_tokens, spared_bytes
from reference_impl.attention.metadata import AttentionMetadata
from reference_impl.engine.batch import AWAITED, KNOWN, Batch
from reference_impl.engine.capture import Capture
from reference_impl.engine.upload import Uploader
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.contiguous import at_least_one
from reference_impl.model.transformer import Transformer

PREFIX_STEPS = 8
"""Steps in a row with the same size and prefix after which these have a graph."""
PREFIX_GRAPHS = 32
"""Kept of these; the one that was used longest ago goes."""
_SMALL = (1, 2, 4)
_EVERY = 8
"""From 8 rows on, a graph for every 8th size: a batch computes 7 rows too many at most."""


def graph_sizes(max_rows: int) -> list[int]:
    """The batch sizes that have a graph, ascending; the last is `max_rows`."""
    at_least_one("max_rows", max_rows)
    return sorted({*(size for size in (*_SMALL, *range(_EVERY, max_rows, _EVERY)) if size < max_rows), max_rows})


class DecodeGraphs:
    """Graphs of `model` over `caches`, for as many sequences as `capture` has rows, of at most `max_context_tokens`."""

    def __init__(
        self,
        model: Transformer,
        attention: Attention,
        caches: Sequence[LayerCache],
        capture: Capture,
        *,
        max_context_tokens: int,
        cascade_bytes: int | None = None,
    ) -> None:
        """Capture them all. The caches keep what they hold.

        cascade_bytes: what a common prefix must spare a layer to be read once; None: each sequence reads its own.
        Raises: what torch raises if `attention` waits for the device.
        """
        max_rows = capture.max_rows
        self.sizes = graph_sizes(max_rows)
        self.block_size = caches[0][0].shape[1]
        self._model, self._attention, self._caches = model, attention, caches
        self._capture, self._logits = capture, capture.logits
        self._longest = max_context_tokens
        # A window may hide a prefix, so that attention could not read it once.
        self._cascade_bytes = cascade_bytes if any(layer.window is None for layer in model.layers) else None
        self._token_bytes = 2 * caches[0][0][0, 0].nbytes
        self._came: tuple[tuple[int, int], int] = ((0, 0), 0)
        """The last size and prefix, and how many steps in a row had these."""
        device, columns = model.device, blocks_for(max_context_tokens, self.block_size)
        self._numbers = torch.zeros(4, max_rows, dtype=torch.int64, device=device)
        self._numbers[2] = -1
        self._tables = torch.zeros(max_rows, columns, dtype=torch.int32, device=device)
        self._chosen = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._starts = torch.arange(max_rows + 1, dtype=torch.int32, device=device)
        # The largest first: the others find its memory free.
        self._graphs = {size: capture.step(self._forward, size, 0) for size in reversed(self.sizes)}
        self._prefixed: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        if self._cascade_bytes is not None:
            # A step that a prefix is captured in has somebody who waits for it, and is not to wait for a compiler.
            # Which kernels it needs depends on its size, and not on how long the prefix is.
            for size in self.sizes:
                self._forward(size, self.block_size)

    def fits(self, batch: Batch) -> bool:
        """Whether every sequence of it decodes, and they are not too many, pads included, or too long."""
        return (
            len(batch.layout.query_tokens) == batch.layout.num_decodes
            and 0 < len(batch.token_ids) <= self.sizes[-1]
            and batch.layout.block_tables.shape[1] <= self._tables.shape[1]
        )

    def run(self, batch: Batch, upload: Uploader, chosen: Tensor | None) -> Tensor:
        """Logits [makers, vocab_size] of a batch that fits, good until the next call. chosen: for its sources."""
        tables = batch.layout.block_tables
        rows, columns = tables.shape
        size = next(size for size in self.sizes if size >= len(batch.token_ids))
        # A chunk of one token that is not its prompt's last makes none.
        some = [batch.logit_rows] if len(batch.makers) < rows else []
        numbers, sent_tables, *logit_rows = upload.send((_numbers(batch, size), tables, *some))
        self._numbers[:, :size].copy_(numbers[:4])
        self._tables[:rows, :columns].copy_(sent_tables)
        if batch.sources is not None:
            assert chosen is not None, "a batch with sources needs the tokens that they are places of"
            torch.index_select(chosen, 0, numbers[4], out=self._chosen[:size])
        self._graph(size, self._prefix_tokens(batch)).replay()
        return self._logits[logit_rows[0]] if logit_rows else self._logits[:rows]

    def _prefix_tokens(self, batch: Batch) -> int:
        """Tokens that are read once for all of its sequences; 0 if that does not pay."""
        if self._cascade_bytes is None:
            return 0
        layout = batch.layout
        tokens = common_prefix_tokens(layout.block_tables, layout.context_tokens, self.block_size)
        spared = spared_bytes(len(layout.block_tables), tokens, self._token_bytes)
        return tokens if spared >= self._cascade_bytes else 0

    def _graph(self, size: int, prefix_tokens: int) -> torch.cuda.CUDAGraph:
        """That of this step, whose numbers are on the device."""
        key = size, prefix_tokens
        self._came = key, self._came[1] + 1 if self._came[0] == key else 1
        graph = self._prefixed.pop(key, None)
        if graph is None and prefix_tokens and self._came[1] >= PREFIX_STEPS:
            # If there is no memory for it this step fails, and no later one tries again.
            cascade_bytes, self._cascade_bytes = self._cascade_bytes, None
            graph = self._capture.step(self._forward, size, prefix_tokens)
            self._cascade_bytes = cascade_bytes
            if len(self._prefixed) == PREFIX_GRAPHS:
                del self._prefixed[next(iter(self._prefixed))]
        if graph is None:
            return self._graphs[size]
        self._prefixed[key] = graph
        return graph

    def _forward(self, size: int, prefix_tokens: int) -> None:
        token_ids, positions, slots, contexts = self._numbers[:, :size].unbind()
        metadata = AttentionMetadata(
            slot_mapping=slots,
            block_tables=self._tables[:size],
            # The lower half of each number, which lies first: no launch to make it.
            context_lens=contexts.view(torch.int32)[::2],
            cu_seqlens=self._starts[: size + 1],
            query_tokens=(1,) * size,
            context_tokens=(self._longest,) * size,
            num_decodes=size,
            prefix_tokens=prefix_tokens,
        )
        self._model.forward(
            torch.where(token_ids == AWAITED, self._chosen[:size], token_ids),
            positions,
            self._caches,
            metadata,
            self._attention,
            None,
            logits_dtype=self._model.dtype,
            logits_out=self._logits[:size],
        )


def _numbers(batch: Batch, size: int) -> NDArray[Any]:
    """[5, size] int64: those of the graph, and the place of each awaited row's id among the chosen tokens."""
    rows, layout = len(batch.token_ids), batch.layout
    numbers = np.zeros((5, size), dtype=np.int64)
    numbers[2] = -1
    numbers[0, :rows], numbers[1, :rows] = batch.token_ids, layout.positions
    numbers[2, :rows], numbers[3, : len(layout.context_lens)] = layout.slot_mapping, layout.context_lens
    if batch.sources is not None:
        is_awaited = batch.sources != KNOWN
        numbers[0, :rows][is_awaited] = AWAITED
        numbers[4, :rows][is_awaited] = batch.sources[is_awaited]
    return numbers
