"""Which step is run as which CUDA graph.

Owns: the order in which graphs are made. Knows nothing of how a graph is fed: steps that only decode are
`decode_graphs.py`'s, those with prompts `prompt_graphs.py`'s, and one that neither holds is launched by who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reference_impl.attention.backend import Attention, LayerCache
from reference_impl.engine.batch import Batch
from reference_impl.engine.capture import Capture
from reference_impl.engine.decode_graphs import DecodeGraphs
from reference_impl.engine.device import on_device
from reference_impl.engine.prompt_graphs import PromptGraphs
from reference_impl.model.transformer import Transformer


class StepGraphs:
    """Graphs of `model` over `caches` for steps of at most `max_rows` sequences and `max_tokens` tokens."""

    def __init__(
        self,
        model: Transformer,
        attention: Attention,
        caches: Sequence[LayerCache],
        *,
        max_rows: int,
        max_tokens: int,
        max_context_tokens: int,
        cascade_bytes: int | None = None,
        capture: Callable[[Transformer, int], Capture] = Capture,
    ) -> None:
        """Capture them all. The caches keep what they hold. cascade_bytes: see `DecodeGraphs`.

        Raises: ValueError where there is no NVIDIA GPU, or on a number below 1; what torch raises if `attention` waits
        for the device.
        """
        with on_device(model.device):
            shared = capture(model, max_rows)
            # They compute most on the way, and what they let go of is free for the others.
            self.prompts = PromptGraphs(
                model, attention, caches, shared, max_tokens=max_tokens, max_context_tokens=max_context_tokens
            )
            self.decodes = DecodeGraphs(
                model,
                attention,
                caches,
                shared,
                max_context_tokens=max_context_tokens,
                cascade_bytes=cascade_bytes,
            )

    def of(self, batch: Batch) -> DecodeGraphs | PromptGraphs | None:
        """Those that hold it; None if it is larger than all of them."""
        return next((graphs for graphs in (self.decodes, self.prompts) if graphs.fits(batch)), None)
