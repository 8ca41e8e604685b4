"""The bands of lab 4's speed: what the notebook promises is what the hidden tests pay for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = (ROOT / "solutions" / "lab4_paged_attention" / "lab4_paged_attention.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("lengths", ["equal", "unequal"])
def test_the_notebook_names_every_band_and_no_other(lengths: str) -> None:
    _, said = NOTEBOOK.split(f"### Speed on {lengths} lengths (5 points)\n")
    bands = re.search(r"a\s+quarter of the points (?:is given )?for each of ([\d, and]+) %", said.split("```")[0])
    assert bands is not None
    tests = (ROOT / "tests" / "hidden" / "lab4_paged_attention" / f"test_bandwidth_{lengths}.py").read_text(
        encoding="utf-8"
    )
    asked = re.findall(rf'share\(make\(\), "{lengths}", seed\) >= (0\.\d+)', tests)
    assert [float(percent) / 100 for percent in re.findall(r"\d+", bands[1])] == [float(share) for share in asked]
    assert len(asked) == 4, "each a quarter of the points"
