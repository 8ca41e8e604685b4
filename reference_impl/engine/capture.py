"""What all captured steps share: a stream, the memory of what they compute on the way, and their logits.

Owns: the capture of one step. Knows nothing of what a step computes. Only one graph runs at a time, so each finds the
memory of the others free, and the logits are one piece of which a smaller graph writes the first rows.
Cost: a graph is two steps, launched kernel by kernel, and some megabytes of the driver's.
Source: CUDA C++ Programming Guide, CUDA graphs; Torch's notes on CUDA semantics, for what may share memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from reference_impl.memory.contiguous import at_least_one
from reference_impl.model.transformer import Transformer


class Capture:
    """Captures steps of `model` that give at most `max_rows` rows of logits [max_rows, vocab_size].

    Logits are good until the next step that is run.
    """

    def __init__(self, model: Transformer, max_rows: int) -> None:
        """Raises: ValueError where there is no NVIDIA GPU."""
        at_least_one("max_rows", max_rows)
        self._check_device(model.device)
        self.max_rows = max_rows
        self.logits = torch.empty(max_rows, model.config.vocab_size, dtype=model.dtype, device=model.device)
        self._pool: Any = None
        # One for all: what a graph has let go of is only there for another on the same.
        self._stream = self._new_stream(model.device)

    @staticmethod
    def _check_device(device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"a CUDA graph needs an NVIDIA GPU, this model is on {device}")

    def _new_stream(self, device: torch.device) -> torch.cuda.Stream:
        return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def step(self, forward: Callable[..., None], *of: int) -> torch.cuda.CUDAGraph:
        """The graph of forward(*of), which is run once. Raises: what torch raises if it waits for the device."""
        # Once before: kernels are compiled and chosen at their first call, which a graph cannot hold.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            forward(*of)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            forward(*of)
        self._pool = graph.pool()
        return graph
