"""One letter for each request that is to be seen, so that a picture can be read without colour.

Owns: who has which letter. Knows nothing of colours or blocks. Cost: O(requests to be seen).
"""

from __future__ import annotations

from collections.abc import Iterable
from string import ascii_letters

LETTERS = "".join(sorted(ascii_letters))
"""Capitals first. Digits are not among them: they count the holders of a shared block."""


class Letters:
    """A request keeps its letter as long as it is seen; two have the same one only where more than 52 are."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def of(self, requests: Iterable[str]) -> dict[str, str]:
        """Request -> letter; the letters of all others are free again.

        The first choice is the id's place in the alphabet, so that a log played twice, or backwards, looks the same.
        """
        requests = list(dict.fromkeys(requests))
        kept: dict[str, str] = {}
        taken: dict[str, str] = {}
        for request in requests:
            if request in self._of and taken.setdefault(self._of[request], request) == request:
                kept[request] = self._of[request]
        for request in requests:
            if request not in kept:
                first = _first_choice(request)
                turn = (LETTERS[(first + more) % len(LETTERS)] for more in range(len(LETTERS)))
                kept[request] = next((letter for letter in turn if letter not in taken), LETTERS[first])
                taken.setdefault(kept[request], request)
        self._of = kept
        return dict(kept)

    def check_invariants(self) -> None:
        """AssertionError names a letter that two have though another is free."""
        num_letters = len(set(self._of.values()))
        assert num_letters == min(len(self._of), len(LETTERS)), f"{len(self._of)} requests have {num_letters} letters"


def _first_choice(request: str) -> int:
    number = int(request) if request.isascii() and request.isdecimal() and len(request) < 20 else sum(map(ord, request))
    return number % len(LETTERS)
