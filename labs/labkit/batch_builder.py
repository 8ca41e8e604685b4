"""The batch builder: the reader picks requests and watches how much of the rectangle is padding.

Owns: the figure's markup and the state it opens with; `batch_builder.js` moves it. Knows nothing of workloads: prompt
lengths come in. Without a script the opening state stands there as a table, computed here by the same rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from labkit.figures import STYLE


@dataclass(frozen=True)
class BatchBuilder:
    """Requests by prompt length in tokens, and how many of them a preset picks. Opens on the first `batch_size`."""

    prompt_tokens: Sequence[int]
    batch_size: int

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.prompt_tokens):
            raise ValueError(f"batch_size must be 1 to {len(self.prompt_tokens)} (the requests), got {self.batch_size}")
        if min(self.prompt_tokens) < 1:
            raise ValueError("every request must have at least 1 prompt token")

    @property
    def first(self) -> list[int]:
        """The requests that came first."""
        return list(range(self.batch_size))

    @property
    def alike(self) -> list[int]:
        """The neighbours in order of length whose rectangle holds the least padding; ties go to the shorter."""
        order = sorted(range(len(self.prompt_tokens)), key=lambda number: self.prompt_tokens[number])
        runs = [order[start : start + self.batch_size] for start in range(len(order) - self.batch_size + 1)]
        return sorted(min(runs, key=self.share))

    def share(self, picked: Iterable[int]) -> float:
        """Share of the rectangle of the picked requests that holds no token."""
        lengths = [self.prompt_tokens[number] for number in picked]
        return 1 - sum(lengths) / (len(lengths) * max(lengths))

    def sentence(self, picked: Sequence[int]) -> str:
        """What the figure says of the picked requests, word for word as the script says it."""
        lengths = [self.prompt_tokens[number] for number in picked]
        slots = len(lengths) * max(lengths)
        return (
            f"{len(lengths)} {'row' if len(lengths) == 1 else 'rows'} of {max(lengths):,} slots = {slots:,} slots; "
            f"{sum(lengths):,} hold tokens. Padding: {100 * self.share(picked):.1f} %."
        )

    def __repr__(self) -> str:
        return f"Batch builder, opening state: {self.sentence(self.first)}"

    def _repr_html_(self) -> str:
        script = files("labkit").joinpath("batch_builder.js").read_text(encoding="utf-8")
        presets: tuple[tuple[str, list[int]], ...] = (
            (f"The first {self.batch_size}", self.first),
            (f"{self.batch_size} of like length", self.alike),
            ("None", []),
        )
        buttons = "".join(
            f"<button type=\"button\" disabled data-pick='{json.dumps(picked)}'>{label}</button>"
            for label, picked in presets
        )
        rows = "".join(self._row(number) for number in range(len(self.prompt_tokens)))
        return (
            f'{STYLE}<figure class="p2p p2p-figure p2p-builder"><div role="group" aria-label="Presets">{buttons}</div>'
            f'<output aria-live="polite">{self.sentence(self.first)}</output>'
            "<table><caption hidden>Requests, the pads each would get, and both as a bar</caption><thead><tr>"
            '<th scope="col">Request, tokens</th><th scope="col" style="width:4rem">Pads</th>'
            f'<th scope="col">In the rectangle</th></tr></thead><tbody>{rows}</tbody></table>'
            '<figcaption>Tick requests into the batch.<span class="p2p-bar p2p-key"><i class="held" '
            'style="width:100%"></i></span>tokens<span class="p2p-bar p2p-key"><i class="pads" '
            'style="width:100%"></i></span>padding; an outline is a request that waits outside.</figcaption>'
            f"</figure><script>{script}</script>"
        )

    def _row(self, number: int) -> str:
        own, inside = self.prompt_tokens[number], number < self.batch_size
        longest, width = max(self.prompt_tokens), max(self.prompt_tokens[: self.batch_size])
        pads = width - own if inside else 0
        return (
            f'<tr data-tokens="{own}"{" class=in" if inside else ""}>'
            f'<td><label><input type="checkbox"{" checked" if inside else ""}> #{number + 1}: {own:,}</label></td>'
            f'<td class="count">{f"{pads:,}" if inside else "-"}</td>'
            f'<td><div class="p2p-bar"><i class="held" style="width:{100 * own / longest:.3f}%"></i>'
            f'<i class="pads"{"" if pads else " hidden"} style="width:{100 * pads / longest:.3f}%"></i></div></td></tr>'
        )
