"""One step, run: from a plan to logits.

Owns: the tensors behind the blocks (`kv_cache.py`), the order of a batch, and what is checked before anything is
computed. Knows nothing of why a request is in the plan or of what becomes of its logits. What a step computes depends
on the plan, the tokens, the block tables and what the cache holds, and on nothing else.

    plan       swapped_out, swapped_in, copies: blocks are moved first, in this order
    batch      requests with one token to compute, then the others, in the plan's order within each; then pads
    logits     a row for each request all of whose tokens are computed after this step: it makes a token

A scheduler or an allocator may be a student's: a slot that does not exist, or one that two requests would write, is
found here and named, before it becomes a wrong answer.
Cost: O(tokens + blocks in the tables) of Python, and the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reference_impl.attention.backend import Attention
from reference_impl.attention.metadata import AttentionMetadata, BatchRow, build_metadata
from reference_impl.engine.kv_cache import KVCache
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.kv_memory import PlacedMemory
from reference_impl.model.transformer import Transformer
from reference_impl.sched.plan import Plan

PAD_TOKEN = 0
"""What a pad computes; any token does, nobody looks at it."""

TokensOf = Mapping[int, Sequence[int]]
"""Request -> the ids of its tokens, those that it made included."""


@dataclass(frozen=True)
class StepLogits:
    """rows: the requests that make a token in this step. logits: [len(rows), vocab_size] float32, in that order."""

    rows: tuple[int, ...]
    logits: Tensor


@dataclass(frozen=True)
class Batch:
    """What the model is given. rows: requests that make a token; logit_rows: the places of their last tokens."""

    token_ids: Tensor
    positions: Tensor
    metadata: AttentionMetadata
    rows: tuple[int, ...]
    logit_rows: Tensor


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
    ) -> None:
        """poison: see `KVCache`. Raises: ValueError if the device has no memory for the blocks."""
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
        )

    def run(self, plan: Plan, tokens_of: TokensOf) -> StepLogits:
        """Move blocks, compute the scheduled tokens, and return logits of the requests that make a token.

        Raises: ValueError naming the request, with nothing computed, if the plan asks for tokens that do not exist, or
        memory gave a scheduled token no slot of its own; KeyError on a request that is unknown to either.
        """
        for pairs in plan.swapped_out.values():
            self.cache.swap_out(pairs)
        for pairs in plan.swapped_in.values():
            self.cache.swap_in(pairs)
        self.cache.copy(plan.copies)
        if not plan.scheduled:
            return StepLogits((), torch.empty(0, self.model.config.vocab_size, device=self.model.device))
        batch = self.batch(plan, tokens_of)
        logits = self.model.forward(
            batch.token_ids, batch.positions, self.cache.layers, batch.metadata, self.attention, batch.logit_rows
        )
        return StepLogits(batch.rows, logits)

    def batch(self, plan: Plan, tokens_of: TokensOf) -> Batch:
        """The flat batch of a plan. Errors as `run`. Cost: O(tokens + blocks in the tables)."""
        scheduled, computed = plan.scheduled, plan.computed
        # Stable: a kernel for decodes wants them in one piece, everything else stays in the plan's order.
        order = sorted(scheduled, key=lambda request: scheduled[request] != 1)
        ids: list[int] = []
        positions: list[int] = []
        rows: list[BatchRow] = []
        makers: list[int] = []
        last: list[int] = []
        for request in order:
            tokens = tokens_of[request]
            start, stop = computed[request], computed[request] + scheduled[request]
            if not 0 <= start < stop <= len(tokens):
                raise ValueError(f"request {request} has {len(tokens)} tokens; the plan computes {start} to {stop - 1}")
            ids += tokens[start:stop]
            positions += range(start, stop)
            rows.append(BatchRow(self._table(request, stop), stop - start, stop))
            if stop == len(tokens):
                makers.append(request)
                last.append(len(ids) - 1)
        num_pads = self._num_pads(plan, len(ids))
        device = self.model.device
        metadata = build_metadata(rows, self.memory.block_size, num_pads=num_pads, device=device)
        self._check_writers(metadata, order)
        return Batch(
            token_ids=_integers(ids, [PAD_TOKEN] * num_pads, device),
            positions=_integers(positions, [0] * num_pads, device),
            metadata=metadata,
            rows=tuple(makers),
            logit_rows=_integers(last, [], device),
        )

    def _table(self, request: int, num_tokens: int) -> Sequence[int]:
        """The blocks of the first `num_tokens` tokens, all of which must be there."""
        size, count = self.memory.block_size, self.memory.num_blocks
        table = self.memory.block_table(request)[: blocks_for(num_tokens, size)]
        if len(table) * size < num_tokens:
            said = f"{len(table)} blocks of {size} have no slot for token {num_tokens - 1}"
            raise ValueError(f"request {request}: {said}")
        if min(table) < 0 or max(table) >= count:
            wrong = next(block for block in table if not 0 <= block < count)
            raise ValueError(f"request {request} was given block {wrong}; there are 0 to {count - 1}")
        return table

    def _num_pads(self, plan: Plan, tokens: int) -> int:
        """A padded batch computes its whole rectangle."""
        if plan.rectangle is None:
            return 0
        area = plan.rectangle.rows * plan.rectangle.new_tokens
        if area < tokens:
            raise ValueError(f"{plan.rectangle} holds {area} tokens, {tokens} are scheduled")
        return area - tokens

    def _check_writers(self, metadata: AttentionMetadata, order: Sequence[int]) -> None:
        """No two tokens of a step are written into one slot."""
        writers = np.repeat(order, metadata.query_tokens)
        slots = metadata.slot_mapping[: len(writers)].cpu().numpy()
        by_slot = np.argsort(slots, kind="stable")
        twice = np.flatnonzero(np.diff(slots[by_slot]) == 0)
        if len(twice):
            first, second = by_slot[twice[0]], by_slot[twice[0] + 1]
            block = int(slots[first]) // self.memory.block_size
            raise ValueError(f"requests {writers[first]} and {writers[second]} both write into block {block}")


def _integers(values: list[int], pads: list[int], device: torch.device) -> Tensor:
    # NumPy takes a list of integers several times as fast as torch does.
    return torch.from_numpy(np.array(values + pads, dtype=np.int64)).to(device)
