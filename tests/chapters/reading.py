"""How the tests of chapters read what a page says."""

from __future__ import annotations


def number(text: str) -> float:
    """A number as pages print it, with commas between thousands."""
    return float(text.replace(",", ""))
