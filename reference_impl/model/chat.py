"""A conversation as the one text that the model was trained on: its own template, run where it can do no harm.

Owns: the template's environment, and the marks that keep what people write apart from what the template writes. Knows
nothing of token ids. A template is code that came with the weights, so it runs in Jinja's sandbox; what people write is
text, so no part of it may become a special token, such as the one that ends a turn.
Cost: one rendering, and a second one if a content spells a special token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from reference_impl.model.errors import ModelError
from reference_impl.model.messages import ChatError

_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Unicode's noncharacters for a program's own use. One that nobody has written serves as the mark."""


class ChatTemplate:
    """A Jinja template that makes a prompt from messages, as `transformers` runs it.

    values: what the template may name beside the messages, such as bos_token.
    """

    def __init__(self, source: str, values: dict[str, str]) -> None:
        """Raises: ModelError if `source` is no template, or if the package jinja2 is not installed."""
        try:
            from jinja2 import TemplateError
        except ImportError:
            raise ModelError("a chat template needs the package jinja2: pip install jinja2") from None
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ModelError(f"the chat template cannot be read: {error}") from None
        self._source = source
        self._values = values

    def render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """The prompt. `messages` as `check_messages` gives them. Raises: ChatError with the template's own words."""
        try:
            text: str = self._template.render(
                **self._values,
                # Copies: what a template does to a message stays in it.
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # A template is a program of somebody else's; it may fail in any way.
            raise ChatError(f"the model's chat template does not take these messages: {error}") from None
        return text

    def render_marked(
        self, messages: Sequence[dict[str, str]], special: SpecialWords, *, add_generation_prompt: bool
    ) -> tuple[str, str]:
        """The prompt, and the mark that stands inside of every special token that a content spells.

        So whoever looks for special tokens finds the template's own only, and takes the marks out afterwards. The mark
        is "" if there is nothing to mark.
        Raises: ChatError as `render`, and if the template makes something else of marked contents: one that looks into
        its contents cannot be kept from being misled.
        """
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        places = [special.places(message["content"]) for message in messages]
        if not any(places):
            return text, ""
        mark = next((mark for mark in _MARKS if mark not in text and mark not in self._source), "")
        marked = [
            {**message, "content": _insert(mark, message["content"], where)}
            for message, where in zip(messages, places, strict=True)
        ]
        guarded = self.render(marked, add_generation_prompt=add_generation_prompt)
        if not mark or guarded.replace(mark, "") != text:
            raise ChatError("a content spells a special token, which this chat template cannot keep apart: reword it")
        return guarded, mark


class SpecialWords:
    """The texts of a vocabulary's special tokens, looked for in what people write."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = tuple(tokens)
        self._beginnings = {token[:length] for token in self.tokens for length in range(1, len(token))}
        self._endings = {token[length:] for token in self.tokens for length in range(1, len(token))}
        self._longest = max(map(len, self.tokens), default=0)

    def places(self, content: str) -> set[int]:
        """Where `content` has to be parted so that none of it becomes a special token.

        After the first character of each that it spells, overlapping ones too; and at an end that is a part of one,
        which what comes next could complete. A template may trim the content, so its ends are those without spaces.
        Cost: O(tokens * length of `content`), of which Python sees O(tokens).
        """
        places = set()
        for token in self.tokens:
            at = content.find(token)
            while at >= 0:
                places.add(at + 1)
                at = content.find(token, at + 1)
        start, stop = len(content) - len(content.lstrip()), len(content.rstrip())
        for length in range(1, self._longest):
            if content[max(0, stop - length) : stop] in self._beginnings:
                places.add(stop)
            if content[start : start + length] in self._endings:
                places.add(start)
        return places


def _insert(mark: str, content: str, places: Iterable[int]) -> str:
    ends = [0, *sorted(places), len(content)]
    return mark.join(content[start:stop] for start, stop in pairwise(ends))


def _environment() -> Any:
    """Jinja as chat templates expect it: trimmed blocks, break and continue, and four names of their own."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks an assistant's words for training; here it is only what stands in it."""

        tags = {"generation"}  # noqa: RUF012 - as the base class has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        # Jinja's own would escape characters for HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
