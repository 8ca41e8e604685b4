"""Steps with prompts in them, beside decodes or not, as CUDA graphs.

Owns: the graphs, one for each of a few shapes, and the tensors that they read. Knows nothing of requests. Launched
kernel by kernel, such a step takes the host several times as long as the GPU, unless its prompts are very long, and
whoever decodes beside it waits for both. Nothing that attention launches depends on lengths that the host has, so one
graph serves any batch that is no larger than its shape:

    tokens      decodes, pads | the prompts' tokens end to end, pads          D + P
    sequences   decodes, rows of context 0 | prompts, sequences of no tokens  D + S
    logits      a row for each token that is somebody's last                  R

    numbers     [.] int64: token ids or `AWAITED`, positions, slots and places among the chosen tokens, D + P of each;
                contexts, D + S; where each sequence begins, D + S + 1; the rows of tokens that have logits, R
    tables      [D + S, blocks of the longest context] int32: what stands behind a context is never looked at

A pad writes nowhere (slot -1), and no row looks at another but through the cache, so that what comes out for it is
nobody's affair. A batch that is larger than every shape is launched: its prompts keep the GPU busy for longer than the
host takes.
Cost: a step is one upload, some small copies and one launch, whatever the model; decodes are rounded up to 16, 64 or as
many as may run, and prompts' tokens, from 64 on, to less than twice as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference_impl.attention.backend import Attention, LayerCache
from reference_impl.attention.metadata import AttentionMetadata
from reference_impl.engine.batch import AWAITED, KNOWN, Batch
from reference_impl.engine.capture import Capture
from reference_impl.engine.upload import Uploader
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.contiguous import at_least_one
from reference_impl.model.transformer import Transformer

_DECODES = (16, 64)
_TOKENS = (64, 128, 256, 512, 768, 1_024, 1_536, 2_048)
_PROMPTS = 32
"""Sequences of a graph that have more than one token. One that has none costs a program that ends at once."""

Flat = TypeVar("Flat", NDArray[np.int64], Tensor)


@dataclass(frozen=True)
class Shape:
    """What a graph holds at most: sequences with one token, tokens of others, these others, and rows of logits."""

    decodes: int
    prompt_tokens: int
    prompts: int
    rows: int

    @property
    def tokens(self) -> int:
        return self.decodes + self.prompt_tokens

    @property
    def sequences(self) -> int:
        return self.decodes + self.prompts

    @property
    def counts(self) -> tuple[int, ...]:
        """Of its numbers, in the order of the module's table."""
        return (*[self.tokens] * 4, self.sequences, self.sequences + 1, self.rows)

    def parts(self, numbers: Flat) -> list[Flat]:
        """Views of the first ones of `numbers`, one for each of `counts`."""
        return [numbers[start:stop] for start, stop in pairwise(accumulate(self.counts, initial=0))]


def shapes_for(max_rows: int, max_tokens: int) -> list[Shape]:
    """The shapes that have a graph, ascending, for at most `max_rows` sequences and `max_tokens` tokens a step."""
    at_least_one("max_rows", max_rows)
    at_least_one("max_tokens", max_tokens)
    most = min(max_tokens, _TOKENS[-1])
    prompts = min(_PROMPTS, max_rows)
    return [
        Shape(decodes, tokens, prompts, min(decodes + prompts, max_rows))
        for decodes in (*(count for count in _DECODES if count < max_rows), max_rows)
        for tokens in (*(count for count in _TOKENS if count < most), most)
    ]


class PromptGraphs:
    """Graphs of `model` over `caches`, for steps with up to `max_tokens` tokens of prompts, or the largest shape's."""

    def __init__(
        self,
        model: Transformer,
        attention: Attention,
        caches: Sequence[LayerCache],
        capture: Capture,
        *,
        max_tokens: int,
        max_context_tokens: int,
    ) -> None:
        """Capture them all. The caches keep what they hold.

        Raises: what torch raises if `attention` waits for the device.
        """
        self.shapes = shapes_for(capture.max_rows, max_tokens)
        self._model, self._attention, self._caches = model, attention, caches
        self._longest, self._logits = max_context_tokens, capture.logits
        largest, device = self.shapes[-1], model.device
        columns = blocks_for(max_context_tokens, caches[0][0].shape[1])
        self._numbers = torch.zeros(sum(largest.counts), dtype=torch.int64, device=device)
        self._tables = torch.zeros(largest.sequences, columns, dtype=torch.int32, device=device)
        self._chosen = torch.zeros(largest.tokens, dtype=torch.int64, device=device)
        self._graphs = {}
        # The largest first: the others find its memory free.
        for place in reversed(range(len(self.shapes))):
            self._take(torch.from_numpy(_nobody(self.shapes[place])))
            self._graphs[place] = capture.step(self._forward, place)

    def fits(self, batch: Batch) -> bool:
        """Whether some sequence of it has several tokens, and they are not too many, pads included, or too long."""
        return self._place(batch) is not None

    def _place(self, batch: Batch) -> int | None:
        """Of the least shape that holds it."""
        layout = batch.layout
        decodes = layout.num_decodes
        prompts, tokens = len(layout.query_tokens) - decodes, len(batch.token_ids) - decodes
        if not prompts or layout.block_tables.shape[1] > self._tables.shape[1]:
            return None
        return next(
            (
                place
                for place, shape in enumerate(self.shapes)
                if decodes <= shape.decodes
                and tokens <= shape.prompt_tokens
                and prompts <= shape.prompts
                and batch.logit_rows.size <= shape.rows
            ),
            None,
        )

    def run(self, batch: Batch, upload: Uploader, chosen: Tensor | None) -> Tensor:
        """Logits [makers, vocab_size] of a batch that fits, good until the next step. chosen: for its sources."""
        place = self._place(batch)
        assert place is not None, "the caller has asked whether it fits"
        shape, tables, decodes = self.shapes[place], batch.layout.block_tables, batch.layout.num_decodes
        sequences, columns = tables.shape
        numbers, sent_tables = upload.send((_numbers(batch, shape), tables))
        self._take(numbers)
        self._tables[:decodes, :columns].copy_(sent_tables[:decodes])
        behind = slice(shape.decodes, shape.decodes + sequences - decodes)
        self._tables[behind, :columns].copy_(sent_tables[decodes:])
        if batch.sources is not None:
            assert chosen is not None, "a batch with sources needs the tokens that they are places of"
            torch.index_select(chosen, 0, shape.parts(numbers)[3], out=self._chosen[: shape.tokens])
        self._graphs[place].replay()
        return self._logits[: len(batch.makers)]

    def _take(self, numbers: Tensor) -> None:
        self._numbers[: len(numbers)].copy_(numbers)

    def _forward(self, place: int) -> None:
        shape = self.shapes[place]
        token_ids, positions, slots, _, contexts, starts, logit_rows = shape.parts(self._numbers)
        metadata = AttentionMetadata(
            slot_mapping=slots,
            block_tables=self._tables[: shape.sequences],
            # The lower half of each number, which lies first: no launch to make it.
            context_lens=contexts.view(torch.int32)[::2],
            cu_seqlens=starts.view(torch.int32)[::2],
            # Where prompts begin and end the device knows; the host, how many tokens they may have together.
            query_tokens=(1,) * shape.decodes + (shape.prompt_tokens,) + (0,) * (shape.prompts - 1),
            context_tokens=(self._longest,) * shape.sequences,
            num_decodes=shape.decodes,
        )
        self._model.forward(
            torch.where(token_ids == AWAITED, self._chosen[: shape.tokens], token_ids),
            positions,
            self._caches,
            metadata,
            self._attention,
            logit_rows,
            logits_dtype=self._model.dtype,
            logits_out=self._logits[: shape.rows],
        )


def _nobody(shape: Shape) -> NDArray[np.int64]:
    """The numbers of no sequence at all."""
    numbers = np.zeros(sum(shape.counts), dtype=np.int64)
    _, _, slots, _, _, starts, _ = shape.parts(numbers)
    slots[:] = -1
    starts[: shape.decodes] = np.arange(shape.decodes)
    starts[shape.decodes :] = shape.decodes
    return numbers


def _numbers(batch: Batch, shape: Shape) -> NDArray[np.int64]:
    """Those of the graph, and the place of each awaited token's id among the chosen ones."""
    layout, decodes = batch.layout, batch.layout.num_decodes
    numbers = _nobody(shape)
    ids, positions, slots, places, contexts, starts, logit_rows = shape.parts(numbers)
    # Prompts begin behind the pads of decodes.
    shift = shape.decodes - decodes
    token, sequence = np.arange(len(batch.token_ids)), np.arange(len(layout.query_tokens))
    token[decodes:] += shift
    sequence[decodes:] += shift
    ids[token], positions[token], slots[token] = batch.token_ids, layout.positions, layout.slot_mapping
    contexts[sequence] = layout.context_lens
    starts[sequence[decodes:]] = layout.cu_seqlens[decodes:-1] + shift
    starts[sequence[-1] + 1 :] = layout.cu_seqlens[-1] + shift
    logit_rows[: len(batch.logit_rows)] = token[batch.logit_rows]
    if batch.sources is not None:
        is_awaited = batch.sources != KNOWN
        ids[token[is_awaited]] = AWAITED
        places[token[is_awaited]] = batch.sources[is_awaited]
    return numbers
