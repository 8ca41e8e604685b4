"""The player as the output of a notebook's cell: run by a kernel, shown as Jupyter shows it, and stepped through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labkit.recorder import record
from reference_impl.memory import BlockAllocator
from tests.labkit.player_page import read_state, visible_part

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PROGRAM: list[tuple[Any, ...]] = [("allocate", 1, 5), ("fork", 1, 2), ("append", 2, 1), ("allocate", 3, 9), ("free", 1)]
CELL = f"""
from labkit import player
from labkit.recorder import record
from reference_impl.memory import BlockAllocator
player.show(record(BlockAllocator(5, 4), 5, 4, {PROGRAM!r}))
"""


@pytest.fixture
def notebook_page(tmp_path: Path) -> Path:
    """A notebook with one cell, run by a real kernel and written as the page that Jupyter makes of it."""
    nbformat = pytest.importorskip("nbformat")
    nbconvert = pytest.importorskip("nbconvert")
    preprocessors = pytest.importorskip("nbconvert.preprocessors")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    preprocessors.ExecutePreprocessor(timeout=60).preprocess(notebook)
    assert "text/html" in notebook.cells[0].outputs[-1].data
    html, _ = nbconvert.HTMLExporter(template_name="lab").from_notebook_node(notebook)
    page = tmp_path / "notebook.html"
    page.write_text(html, encoding="utf-8")
    return page


def test_the_output_of_a_cell_steps_through_the_log(notebook_page: Path, chromium_page: Any) -> None:
    # What Jupyter's own page asks of other hosts is none of ours: it gets nothing.
    chromium_page.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    chromium_page.goto(notebook_page.as_uri())
    events = record(BlockAllocator(5, 4), 5, 4, PROGRAM)
    states = [visible_part(event["state"]) for event in events if "state" in event]
    for call, state in enumerate(states):
        assert read_state(chromium_page) == state, call
        if call + 1 < len(states):
            chromium_page.click(".p2p-player button[data-do=next]")
    chromium_page.click(".p2p-player button[data-do=first]")
    chromium_page.click(".p2p-player button[data-do=failure]")
    refused = next(event["call"] for event in events if event["kind"] == "refused")
    assert chromium_page.get_attribute(".p2p-player", "data-step") == str(refused)
