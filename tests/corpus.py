"""The corpus of submissions, and what each wrong or hostile one says about itself.

Owns: finding the files of `tests/submissions/<lab>` and reading their headers, in one place for the tests that run them
here and those that run them in the sandbox. Knows nothing of hidden tests but how one is named.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent / "submissions"
HEADER = re.compile(
    r"Misconception: (?P<said>.+\.)\n\nKilled by: (?P<tests>[^\n]+)\n"
    r"Source: (?P<source>[^\n]+)(?:\nOn a GPU: (?P<gpu>[^\n]+))?\n?"
)
HOSTILE_HEADER = re.compile(
    r"Attack: (?P<title>.+)\n\nCatalogue: (?P<ids>[^\n]+)\n"
    r"Strategy: (?P<strategy>.+)\nHonest part: (?P<honest>[^\n]+)\n?"
)
TEST = re.compile(r"test_(?P<group>\w+)\.(?P<name>test_\w+)")


class Wrong(NamedTuple):
    """One wrong submission: what its author believed, the (module, test) pairs that find it, where it was seen, and why
    a GPU may see more of it than Triton's interpreter does ("" if it must not)."""

    path: Path
    misconception: str
    killed_by: tuple[tuple[str, str], ...]
    source: str
    on_a_gpu: str = ""


class Hostile(NamedTuple):
    """One attack: what it is, its numbers in the catalogue, how it goes about it, and the groups that its honest part
    may be paid for in full (empty: it has none and earns nothing)."""

    path: Path
    attack: str
    catalogue: tuple[str, ...]
    strategy: str
    honest_groups: tuple[str, ...]


def files(lab: str, kind: str) -> list[Path]:
    """The submissions of one kind: correct, wrong or hostile. ValueError if there are none."""
    found = sorted((ROOT / lab / kind).glob("*.py"))
    if not found:
        raise ValueError(f"no {kind} submissions of {lab}")
    return found


def read_wrong(path: Path) -> Wrong:
    """The header of a wrong submission. ValueError names the file if it has none in the agreed form."""
    match = HEADER.fullmatch(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    if match is None:
        raise ValueError(f"{path.name} does not open with Misconception, Killed by and Source")
    killed_by = []
    for item in match["tests"].split(", "):
        test = TEST.fullmatch(item)
        if test is None:
            raise ValueError(f"{path.name}: {item!r} is not test_<module>.<test>")
        killed_by.append((f"test_{test['group']}", test["name"]))
    return Wrong(path, match["said"], tuple(killed_by), match["source"], match["gpu"] or "")


def wrong(lab: str) -> list[Wrong]:
    """Every wrong submission of `lab` with its header."""
    return [read_wrong(path) for path in files(lab, "wrong")]


def read_hostile(path: Path) -> Hostile:
    """The header of a hostile submission. ValueError names the file if it has none in the agreed form."""
    match = HOSTILE_HEADER.fullmatch(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    if match is None:
        raise ValueError(f"{path.name} does not open with Attack, Catalogue, Strategy and Honest part")
    honest = () if match["honest"] == "nothing" else tuple(match["honest"].split(", "))
    return Hostile(path, match["title"], tuple(match["ids"].split(", ")), match["strategy"], honest)


def hostile(lab: str) -> list[Hostile]:
    """Every hostile submission of `lab` with its header."""
    return [read_hostile(path) for path in files(lab, "hostile")]
