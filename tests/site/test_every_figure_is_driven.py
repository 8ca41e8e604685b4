"""A figure that reacts belongs to a test that drives it by keyboard and holds it against the engine's own record.

Each module `test_*_in_the_book.py` says in `DRIVES` which figures of which page its tests drive; here the built pages
are counted. A page that gains one fails until somebody drives it.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

from bs4 import BeautifulSoup

from autograder.release.site_audit import pages

KINDS = ["p2p-quiz", "p2p-switch", "p2p-player", "p2p-budget", "p2p-builder"]
"""What reacts, by the class of its outermost element."""
_CONTROLS = "input, button, select, textarea, canvas, script, [onclick], [contenteditable]"


def reacting(html):
    """(kind, how many) of the figures in the outputs of a page; what has a control and no known kind is 'unknown'."""
    found = {}
    # Drawings hold no controls and are most of a page.
    html = re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)
    for control in BeautifulSoup(html, "html.parser").select(_CONTROLS):
        output = control.find_parent(class_="cell_output")
        if output is None:
            continue
        root = control.find_parent(class_=KINDS)
        if root is None and control.name == "script" and output.find(class_=KINDS):
            continue
        kind = next((kind for kind in KINDS if root is not None and kind in root["class"]), "unknown")
        found[id(root or output)] = kind
    return Counter(found.values())


def driven():
    """(page, kind) -> how many figures the tests beside this file drive."""
    total = Counter()
    for path in sorted(Path(__file__).parent.glob("test_*_in_the_book.py")):
        for page, kinds in getattr(importlib.import_module(f"tests.site.{path.stem}"), "DRIVES", {}).items():
            total += Counter({(page, kind): number for kind, number in kinds.items()})
    return total


def test_every_figure_that_reacts_belongs_to_a_test_that_drives_it(site):
    built = Counter()
    for page in pages(site):
        for kind, number in reacting(page.read_text(encoding="utf-8")).items():
            # Questions need no list: one test goes through all of them.
            if kind != "p2p-quiz":
                built[page.relative_to(site).as_posix(), kind] = number
    assert built
    assert built == driven()


def test_a_figure_of_a_new_kind_is_not_overlooked():
    known = '<div class="cell_output"><form class="p2p p2p-switch"><input></form></div>'
    new = '<div class="cell_output"><div class="p2p-slider"><input type="range"></div></div>'
    assert reacting(known + new) == {"p2p-switch": 1, "unknown": 1}
    assert reacting('<div class="cell_input"><button>Copy</button></div>') == {}
