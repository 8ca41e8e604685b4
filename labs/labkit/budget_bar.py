"""The budget bar: the reader picks a model, a context and a number of requests, and watches the memory of a GPU fill.

Owns: the figure's markup, the state it opens with, and its sentence; `budget_bar.js` moves it and says the same. Knows
no model: bytes come in. Without a script the opening state and the table of what fits stand there.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from labkit.figures import STYLE, Table

CONTEXTS = tuple(2**power for power in range(9, 18))
"""Tokens that the slider offers, 512 to 131,072."""
MOST_REQUESTS = 512


@dataclass(frozen=True)
class Budgeted:
    """A model in bytes: cache of one token with 16-bit numbers, all weights, and those of them that a step reads."""

    name: str
    kv_bytes_16: int
    weight_bytes: int
    read_weight_bytes: int

    def kv_bytes(self, bits: int) -> int:
        """Cache of one token."""
        return self.kv_bytes_16 * bits // 16


@dataclass(frozen=True)
class BudgetBar:
    """Opens on the first model, 16 bits, `context` tokens and `requests` requests. read_gb_s: 10**9 bytes a second.

    Raises: ValueError naming what the sliders do not offer, or a budget or a rate below 1.
    """

    models: Sequence[Budgeted]
    budget_bytes: int
    read_gb_s: float
    context: int = 4_096
    requests: int = 16

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("a budget bar needs at least one model")
        if self.context not in CONTEXTS:
            raise ValueError(f"context must be one of {CONTEXTS}, got {self.context}")
        if not 1 <= self.requests <= MOST_REQUESTS:
            raise ValueError(f"requests must be 1 to {MOST_REQUESTS}, got {self.requests}")
        if self.budget_bytes < 1 or self.read_gb_s < 1:
            raise ValueError(f"budget and rate must be at least 1, got {self.budget_bytes} and {self.read_gb_s}")

    def most(self, model: Budgeted, bits: int, context: int) -> int:
        """Requests of `context` tokens that fit beside the weights."""
        return max(0, self.budget_bytes - model.weight_bytes) // (model.kv_bytes(bits) * context)

    def sentence(self, model: Budgeted, bits: int, context: int, requests: int) -> str:
        """What the figure says of a state, word for word as the script says it."""
        cache = model.kv_bytes(bits) * context * requests
        read = cache + model.read_weight_bytes
        said = (
            f"{model.kv_bytes(bits):,} bytes × {context:,} tokens × {requests:,} "
            f"{'request' if requests == 1 else 'requests'} = {cache / 1e9:.1f} GB of cache, and "
            f"{model.weight_bytes / 1e9:.1f} GB of weights. "
        )
        most = f"At most {self.most(model, bits, context):,} fit."
        if cache + model.weight_bytes > self.budget_bytes:
            return f"{said}Too much for {self.budget_bytes / 1e9:.1f} GB. {most}"
        return f"{said}It fits. {most} A step reads {read / 1e9:.1f} GB, at least {read / self.read_gb_s / 1e6:.1f} ms."

    def __repr__(self) -> str:
        return f"Budget bar, opening state: {self.sentence(self.models[0], 16, self.context, self.requests)}"

    @property
    def table(self) -> Table:
        """Requests that fit, for every model at three contexts: the figure without its sliders."""
        contexts = (2_048, 8_192, 32_768)
        head = [f"{context:,} tokens, {bits} bits" for context in contexts for bits in (16, 8)]
        rows = [
            (model.name, *(f"{self.most(model, bits, context):,}" for context in contexts for bits in (16, 8)))
            for model in self.models
        ]
        return Table(("Requests that fit", *head), rows)

    def _repr_html_(self) -> str:
        script = files("labkit").joinpath("budget_bar.js").read_text(encoding="utf-8")
        data = {
            "budget": self.budget_bytes,
            "read": self.read_gb_s,
            "contexts": CONTEXTS,
            "models": [(model.kv_bytes_16, model.weight_bytes, model.read_weight_bytes) for model in self.models],
        }
        names = "".join(f'<option value="{n}">{html.escape(m.name)}</option>' for n, m in enumerate(self.models))
        model = self.models[0]
        cache = model.kv_bytes_16 * self.context * self.requests
        whole = max(self.budget_bytes, model.weight_bytes + cache)
        bar = (("held", model.weight_bytes), ("pads", cache), ("free", whole - model.weight_bytes - cache))
        parts = "".join(f'<i class="{name}" style="width:{100 * part / whole:.3f}%"></i>' for name, part in bar)
        return (
            f'{STYLE}<figure class="p2p p2p-figure p2p-budget" data-sizes="{html.escape(json.dumps(data))}">'
            f'<div class="p2p-controls"><label>Model <select name="model" disabled>{names}</select></label>'
            '<label>Cache in <select name="bits" disabled><option value="16">16 bits</option>'
            '<option value="8">8 bits</option></select></label>'
            f'<label>Context <b>{self.context:,}</b><input type="range" name="context" disabled min="0" '
            f'max="{len(CONTEXTS) - 1}" value="{CONTEXTS.index(self.context)}" '
            f'aria-valuetext="{self.context:,} tokens"></label>'
            f'<label>Requests <b>{self.requests:,}</b><input type="range" name="requests" disabled min="1" '
            f'max="{MOST_REQUESTS}" value="{self.requests}"></label>'
            '<button type="button" disabled>One more request</button></div>'
            f'<output aria-live="polite">{self.sentence(model, 16, self.context, self.requests)}</output>'
            f'<div class="p2p-bar">{parts}</div>'
            f"<figcaption>The bar is {self.budget_bytes / 1e9:.1f} GB, or all that is asked for if that is more."
            '<span class="p2p-bar p2p-key"><i class="held" style="width:100%"></i></span>weights'
            '<span class="p2p-bar p2p-key"><i class="pads" style="width:100%"></i></span>cache'
            '<span class="p2p-bar p2p-key"><i class="free" style="width:100%"></i></span>free. '
            "The sliders move with the arrow keys.</figcaption>"
            f"<details><summary>The figure as a table</summary>{self.table.html('Requests that fit')}</details>"
            f"</figure><script>{script}</script>"
        )
