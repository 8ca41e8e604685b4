"""Graphs that are computed when they are replayed, so that what they read and write can be tested on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reference_impl.attention.backend import Attention
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.engine.capture import Capture
from reference_impl.engine.engine import Engine
from reference_impl.engine.graphs import StepGraphs


class ByHand(Capture):
    """Every step computes when it is replayed. ran: what the steps were of, in order."""

    @staticmethod
    def _check_device(device: torch.device) -> None:
        pass

    def _new_stream(self, device: torch.device) -> Any:
        self.ran: list[tuple[int, ...]] = []

    def step(self, forward: Callable[..., None], *of: int) -> Any:
        return Replayed(self.ran, forward, of)


@dataclass(frozen=True)
class Replayed:
    ran: list[tuple[int, ...]]
    forward: Callable[..., None]
    of: tuple[int, ...]

    def replay(self) -> None:
        self.ran.append(self.of)
        self.forward(*self.of)


class OfItsTensors(TorchAttention):
    """Lengths as the tensors have them, since a graph's host does not know them; a padded row looks at one slot, and
    sequences of no tokens are left out."""

    def attend(self, query: Tensor, *caches: Any, **options: Any) -> Tensor:
        key_cache, value_cache, metadata, scale = caches
        counts = metadata.cu_seqlens.diff()
        there = counts > 0
        lengths = metadata.context_lens[there].clamp_min(1)
        exact = replace(
            metadata,
            block_tables=metadata.block_tables[there],
            context_lens=lengths,
            cu_seqlens=torch.cat([metadata.cu_seqlens[:1], counts[there].cumsum(0, dtype=torch.int32)]),
            query_tokens=tuple(counts[there].tolist()),
            context_tokens=tuple(lengths.tolist()),
            worked_out={},
        )
        return super().attend(query, key_cache, value_cache, exact, scale, **options)


def give_graphs(engine: Engine, attention: Attention, **sizes: Any) -> tuple[StepGraphs, list[tuple[int, ...]]]:
    """What `engine` runs its steps with from now on, and the list of what ran: a decode's size and prefix, or the place
    of a shape. sizes: see `StepGraphs`.
    """
    made: list[ByHand] = []

    def by_hand(*args: Any) -> ByHand:
        made.append(ByHand(*args))
        return made[0]

    runner = engine.runner
    runner.graphs = StepGraphs(runner.model, attention, runner.cache.layers, capture=by_hand, **sizes)
    return runner.graphs, made[0].ran
