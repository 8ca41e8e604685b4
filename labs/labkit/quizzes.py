"""Questions with feedback for every option, in plain HTML.

Owns: the markup. Knows nothing of the answer: the page computes it and passes it in. Radio buttons and CSS alone show
the feedback, so a quiz needs no script, works from the keyboard, and prints with its answers folded.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

from labkit.figures import STYLE


@dataclass(frozen=True)
class Quiz:
    """One question; exactly one of the options is the answer. Shown as HTML, or as text by `str`."""

    question: str
    options: Mapping[str, str]
    answer: str

    @property
    def name(self) -> str:
        """An id for the page, made from the question."""
        return "quiz-" + hashlib.sha256(self.question.encode()).hexdigest()[:8]

    def __str__(self) -> str:
        marked = (f"[{'x' if text == self.answer else ' '}] {text}\n    {why}" for text, why in self.options.items())
        return "\n".join([self.question, *marked])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(self._option(number, text) for number, text in enumerate(self.options))
        return (
            f'{STYLE}<form class="p2p p2p-quiz" id="{self.name}" onsubmit="return false"><fieldset>'
            f"<legend>{_inline(self.question)}</legend>{rows}</fieldset>"
            f"<details><summary>Show the answer</summary><p>{_inline(self.answer)}</p>"
            f"<p>{_inline(self.options[self.answer])}</p></details></form>"
        )

    def _option(self, number: int, text: str) -> str:
        own = f"{self.name}-{number}"
        verdict = "Yes." if text == self.answer else "No."
        return (
            f'<div class="p2p-option"><input type="radio" name="{self.name}" id="{own}">'
            f'<label for="{own}">{_inline(text)}</label>'
            f'<div class="p2p-feedback" aria-live="polite"><p><strong>{verdict}</strong> '
            f"{_inline(self.options[text])}</p></div></div>"
        )


def quiz(question: str, options: Mapping[str, str], answer: str) -> Quiz:
    """A question with `options` (text -> feedback); `answer` is the text of the right one, computed by the page.

    Text between backquotes is set as code, a line break stays one. Raises: ValueError with fewer than two options, an
    option without feedback, or an answer that is no option.
    """
    if len(options) < 2:
        raise ValueError(f"a quiz needs at least two options, got {len(options)}")
    for text, feedback in options.items():
        if not feedback.strip():
            raise ValueError(f"option {text!r} has no feedback")
    if answer not in options:
        raise ValueError(f"the answer {answer!r} is none of the options {list(options)}")
    return Quiz(question, dict(options), answer)


def _inline(text: str) -> str:
    escaped = html.escape(text).replace("\n", "<br>")
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
