"""The bug classes that engines of this kind have had, by the numbers that the tests carry in their names.

Owns: the list, and where the tests are. The threads in which each was met stand in the comments of the tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from tests.bugs.mutants import BUG, Mutant, Test

ROOT = Path(__file__).parents[1]

SYMPTOMS: dict[int, str] = {
    1: "block freed twice on end",
    2: "one block twice in list",
    3: "free list quietly torn apart",
    4: "refused request leaks its hits",
    5: "own hit evicted for itself",
    6: "hit given to another request",
    7: "new blocks before all hits",
    8: "evicted content still found there",
    9: "duplicate block breaks the counts",
    10: "reverse map stale after erasure",
    11: "shared blocks counted as free",
    12: "failed admission leaves a trace",
    13: "two ways out free twice",
    14: "hash collision reads foreign KV",
    15: "equal block after other beginning",
    16: "salt or adapter not told",
    17: "full hit leaves no token",
    18: "hit on uncomputed block contents",
    19: "rejected draft token is published",
    20: "abort frees blocks under write",
    21: "impossible request waits for ever",
    22: "preemption loses progress without end",
    23: "first chunk admits too many",
    24: "newcomer overtakes a preempted one",
    25: "stale counters after coming back",
    26: "victim stays in the plan",
    27: "new tokens taken for prefill",
    28: "bad request stops all others",
}
"""Number -> what a user saw, in five words."""


def files() -> list[Path]:
    """The files that hold tests of bug classes."""
    return sorted(ROOT.rglob("test_*_bugs.py"))


def tests() -> Iterator[Test]:
    """Every test of a bug class, in the order of the files."""
    for path in files():
        module = _module(path)
        yield from (value for name, value in vars(module).items() if BUG.fullmatch(name))


def mutants() -> Iterator[Mutant]:
    """Every mutant, in the order of the files: what each calls MUTANTS."""
    for path in files():
        yield from getattr(_module(path), "MUTANTS", ())


def _module(path: Path):  # type: ignore[no-untyped-def]
    return importlib.import_module(".".join(("tests", *path.relative_to(ROOT).with_suffix("").parts)))
