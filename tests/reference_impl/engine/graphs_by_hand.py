"""Graphs that are computed when they are replayed, so that what they read and write can be tested on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from reference_impl.engine.decode_graphs import DecodeGraphs


class ByHand(DecodeGraphs):
    """Every size computes when it is replayed. ran: the sizes that were."""

    @staticmethod
    def _check_device(device: torch.device) -> None:
        pass

    def _new_stream(self) -> Any:
        self.ran: list[tuple[int, int]] = []

    def _captured(self, size: int, prefix_tokens: int) -> Any:
        return Replayed(self, size, prefix_tokens)


@dataclass(frozen=True)
class Replayed:
    graphs: ByHand
    size: int
    prefix_tokens: int

    def replay(self) -> None:
        self.graphs.ran.append((self.size, self.prefix_tokens))
        self.graphs._forward(self.size, self.prefix_tokens)
