"""Requests served with tokens of a teacher, and the logits of every token beside those of a dense model.

Owns: the loop plan -> logits -> tokens, without an engine, and the dense model. Knows nothing of how a plan is made.
The tokens do not depend on the logits, so one wrong logit does not hide behind other tokens.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reference_impl.attention import reference
from reference_impl.attention.metadata import AttentionMetadata, BatchRow, build_metadata
from reference_impl.engine.runner import Runner
from reference_impl.model.transformer import Transformer
from reference_impl.sched import EngineScheduler, Plan, Request

KINDS = 3
"""Different tokens that a teacher gives: few, so that prompts share beginnings."""


class Dense:
    """Attention of one whole sequence over itself, by definition: no cache, no blocks."""

    def store_kv(self, key: Tensor, value: Tensor, *unused: Tensor) -> None:
        self.key, self.value = key, value

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
        return reference.attention(query, self.key, self.value, scale, window=window).out.to(query.dtype)


def dense_logits(model: Transformer, ids: array[int]) -> Tensor:
    """[tokens, vocab_size] of one sequence, all of it at once."""
    tokens = len(ids)
    nothing = torch.empty(0)
    metadata = build_metadata([BatchRow(range(tokens), tokens, tokens)], 1)
    places = torch.arange(tokens)
    caches = [(nothing, nothing)] * model.config.num_layers
    return model.forward(torch.tensor(ids), places, caches, metadata, Dense(), places)


def teacher(request: int, position: int) -> int:
    return (request * 5 + position * position) % KINDS


@dataclass
class Served:
    """What came of it. logits: (request, tokens that it had then) -> the row."""

    model: Transformer
    token_ids: dict[int, array[int]] = field(default_factory=dict)
    logits: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)

    def worst_error(self) -> float:
        """Of any logit of any token that was made, against the dense model."""
        dense = {request: dense_logits(self.model, ids) for request, ids in self.token_ids.items()}
        errors = [(row - dense[request][length - 1]).abs() for (request, length), row in self.logits.items()]
        # Of tensors: Python's own `max` passes over a NaN.
        return float(torch.stack(errors).max())


def serve(scheduler: EngineScheduler, runner: Runner, requests: list[Request], forks: frozenset[int]) -> Served:
    """Serve all of them to their end; those in `forks` have a second answer that begins with another first token."""
    served = Served(runner.model)
    live: dict[int, Request] = {}
    for request in requests:
        assert scheduler.add(request) is None
        live[request.request] = request
    while live:
        plan = scheduler.schedule()
        assert plan.scheduled
        ids = {identity: request.token_ids for identity, request in live.items()}
        step = runner.run(plan, ids)  # type: ignore[arg-type]
        served.plans.append(plan)
        finished, sampled, children = set(), {}, {}
        for identity, row in zip(step.rows, step.logits, strict=True):
            request = live[identity]
            assert request.token_ids is not None
            served.token_ids[identity] = request.token_ids
            served.logits[identity, len(request.token_ids)] = row
            if request.num_new == 0 and request.max_new_tokens > 1 and identity in forks:
                children[identity] = [(child := _child(request), teacher(child.request, 0))]
            if request.num_new + 1 == request.max_new_tokens:
                finished.add(identity)
            else:
                sampled[identity] = teacher(identity, request.num_new)
        scheduler.finish_step(finished, sampled, children)
        for identity in finished:
            del live[identity]
        for family in children.values():
            live |= {child.request: child for child, _ in family}
        scheduler.check_invariants()
    return served


def _child(parent: Request) -> Request:
    assert parent.token_ids is not None
    ids = parent.token_ids[: parent.prompt_tokens]
    return Request(parent.request + 1000, len(ids), parent.max_new_tokens, token_ids=ids)
