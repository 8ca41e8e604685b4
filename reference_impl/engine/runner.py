"""One step, run: from a plan to logits.

Owns: the tensors behind the blocks (`kv_cache.py`), and on a GPU the graphs (`graphs.py`) and the way there
(`upload.py`). Knows nothing of how a batch is put together (`batch.py`), why a request is in the plan, or what becomes
of its logits. What a step computes depends on the plan, the tokens, the block tables and what the cache holds, and on
nothing else.

    plan       swapped_out, swapped_in, copies: blocks are moved first, in this order
    batch      is one graph, if there are graphs and one is large enough; every other is launched kernel by kernel
    logits     a row for each request all of whose tokens are computed after this step: it makes a token

On a GPU nothing here waits for the device, but for swaps: `run` comes back when the work is told.
Cost: the batch's, of Python, and the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reference_impl.attention.backend import Attention
from reference_impl.attention.fp8 import KVScales
from reference_impl.engine.batch import KNOWN, Batch, TokensOf, build_batch
from reference_impl.engine.device import on_device
from reference_impl.engine.graphs import StepGraphs
from reference_impl.engine.kv_cache import KVCache
from reference_impl.engine.table_rows import TableRows
from reference_impl.engine.upload import Uploader
from reference_impl.memory.kv_memory import PlacedMemory
from reference_impl.model.transformer import Transformer
from reference_impl.sched.plan import Plan


@dataclass(frozen=True)
class StepLogits:
    """rows: the requests that make a token in this step. logits: [len(rows), vocab_size], in that order.

    Of the model's type, and good until the next step.
    """

    rows: tuple[int, ...]
    logits: Tensor


@dataclass(frozen=True)
class Awaited:
    """Tokens that the device chose and the host has not seen. rows: request -> its place in tokens [.] int64."""

    rows: Mapping[int, int]
    tokens: Tensor


class Runner:
    """`model` over the blocks of `memory`, which says where tokens lie and is asked nothing else."""

    def __init__(
        self,
        model: Transformer,
        attention: Attention,
        memory: PlacedMemory,
        *,
        num_host_blocks: int = 0,
        poison: bool = False,
        graph_rows: int = 0,
        graph_tokens: int = 512,
        max_context_tokens: int | None = None,
        kv_scales: Sequence[KVScales] | None = None,
        cascade_bytes: int | None = None,
    ) -> None:
        """poison, and kv_scales for keys and values in 8 bits: see `KVCache`. graph_rows: steps of at most so many
        sequences run as CUDA graphs, with up to graph_tokens tokens of prompts; 0: none do. cascade_bytes: see
        `DecodeGraphs`.

        Raises: ValueError if the device has no memory for the blocks, or there are to be graphs and it is no GPU.
        """
        self.model = model
        self.attention = attention
        self.memory = memory
        self.cache = KVCache(
            model.config,
            memory.num_blocks,
            memory.block_size,
            num_host_blocks=num_host_blocks,
            dtype=model.dtype,
            device=model.device,
            poison=poison,
            scales=kv_scales,
        )
        self.graphs = (
            StepGraphs(
                model,
                attention,
                self.cache.layers,
                max_rows=graph_rows,
                max_tokens=graph_tokens,
                max_context_tokens=max_context_tokens or model.config.max_context_tokens,
                cascade_bytes=cascade_bytes,
            )
            if graph_rows
            else None
        )
        self._upload = Uploader(model.device)
        self._tables = TableRows(memory)

    def run(self, plan: Plan, tokens_of: TokensOf, awaited: Awaited | None = None) -> StepLogits:
        """Move blocks, compute the scheduled tokens, and give logits of the requests that make a token.

        awaited: last tokens of some requests, whose ids in `tokens_of` are only guesses.
        Raises: ValueError naming the request, with nothing computed, if the plan asks for tokens that do not exist, or
        memory gave a scheduled token no slot of its own; KeyError on a request that is unknown to either.
        """
        with on_device(self.model.device):
            return self._run(plan, tokens_of, awaited)

    def _run(self, plan: Plan, tokens_of: TokensOf, awaited: Awaited | None) -> StepLogits:
        for pairs in plan.swapped_out.values():
            self.cache.swap_out(pairs)
        for pairs in plan.swapped_in.values():
            self.cache.swap_in(pairs)
        self.cache.copy(plan.copies)
        if not plan.scheduled:
            return StepLogits((), torch.empty(0, self.model.config.vocab_size, device=self.model.device))
        batch = build_batch(plan, tokens_of, self._tables, awaited.rows if awaited else None)
        chosen = awaited.tokens if awaited else None
        graphs = self.graphs.of(batch) if self.graphs is not None else None
        logits = graphs.run(batch, self._upload, chosen) if graphs is not None else self._launch(batch, chosen)
        return StepLogits(batch.makers, logits)

    def _launch(self, batch: Batch, chosen: Tensor | None) -> Tensor:
        """Every kernel on its own."""
        unseen = np.empty(0, dtype=np.int64) if batch.sources is None else batch.sources
        arrays = (batch.token_ids, batch.layout.positions, batch.logit_rows, unseen, *batch.layout.arrays)
        token_ids, positions, logit_rows, sources, *layout = self._upload.send(arrays)
        if batch.sources is not None:
            assert chosen is not None, "a batch with sources needs the tokens that they are places of"
            token_ids = torch.where(sources == KNOWN, token_ids, chosen[sources.clamp_min(0)])
        metadata = batch.layout.metadata(layout)
        return self.model.forward(
            token_ids,
            positions,
            self.cache.layers,
            metadata,
            self.attention,
            logit_rows,
            logits_dtype=self.model.dtype,
        )

    def check_invariants(self) -> None:
        """The tables that were seen are those that are kept. AssertionError names the request."""
        self._tables.check_invariants()
