"""One of several figures, chosen by radio buttons.

Owns: the markup and the few rules of style that show the chosen one. Knows nothing of what the figures show. Radio
buttons and CSS alone do the choosing, so it needs no script, works from the keyboard, and prints with every figure.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass

from labkit.figures import STYLE, Figure


@dataclass(frozen=True)
class Switch:
    """`figures` by the text of their option; the first one is shown until the reader chooses.

    Raises: ValueError with fewer than two figures, or two that are the same drawing: their ids would clash.
    """

    question: str
    figures: Mapping[str, Figure]

    def __post_init__(self) -> None:
        if len(self.figures) < 2:
            raise ValueError(f"a switch needs at least two figures, got {len(self.figures)}")
        if len({figure.name for figure in self.figures.values()}) < len(self.figures):
            raise ValueError(f"two of the figures {list(self.figures)} are one drawing: give each its own title")

    @property
    def name(self) -> str:
        """An id for the page, made from the question and the options."""
        return "switch-" + hashlib.sha256(repr((self.question, *self.figures)).encode()).hexdigest()[:8]

    def __str__(self) -> str:
        return "\n\n".join([self.question, *(f"{option}: {figure}" for option, figure in self.figures.items())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return (
            f'{STYLE}<style>{self._rules()}</style><form class="p2p p2p-switch" id="{self.name}" '
            f'onsubmit="return false"><fieldset><legend>{html.escape(self.question)}</legend>{self._options()}'
            f'<div class="p2p-shown">{"".join(figure._repr_html_() for figure in self.figures.values())}</div>'
            "</fieldset></form>"
        )

    def _options(self) -> str:
        return "".join(
            f'<input type="radio" name="{self.name}" id="{self.name}-{number}"{"" if number else " checked"}>'
            f'<label for="{self.name}-{number}">{html.escape(option)}</label>'
            for number, option in enumerate(self.figures)
        )

    def _rules(self) -> str:
        # The buttons are siblings before the figures, so "checked" can be asked of them without a script.
        own = f"#{self.name} > fieldset"
        chosen = ", ".join(
            f"#{self.name}-{number}:checked ~ .p2p-shown > #{figure.name}"
            for number, figure in enumerate(self.figures.values())
        )
        return (
            f"{own} {{ border: 0; margin: 1rem 0; padding: 0; min-width: 0; display: grid; "
            f"grid-template-columns: repeat(2, auto 1fr); align-items: center; }}"
            f"@media (max-width: 30rem) {{ {own} {{ grid-template-columns: auto 1fr; }} }}"
            f"{own} > .p2p-shown {{ grid-column: 1 / -1; min-width: 0; }}"
            f"{own} > legend {{ font-size: 1rem; font-weight: 600; float: none; margin: 0 0 .4rem; "
            f"color: var(--p2p-ink); }}"
            f"{own} > input {{ width: 1.1rem; height: 1.1rem; vertical-align: -2px; margin: .3rem .35rem .3rem 0; }}"
            f"{own} > label {{ margin: 0 1.1rem 0 0; padding: .2rem 0; cursor: pointer; }}"
            f"{own} > .p2p-shown > figure {{ display: none; }}"
            f"{chosen} {{ display: block; }}"
            f"@media print {{ {own} > .p2p-shown > figure {{ display: block; }} }}"
        ).replace(chosen, chosen.replace(f"#{self.name}-", f"{own} > #{self.name}-"))
