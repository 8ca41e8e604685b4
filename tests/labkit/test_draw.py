"""Drawings: data in, one accessible vector graphic out, with the same content as text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from labkit.draw import FIRST, INK, figure_style, padded_in_fragmented_memory, plot
from labkit.figures import Table

ROWS = [["<SOS>", "a", "b"], ["<pad>", "<SOS>", "c"]]
TABLES = [[4, 1], [0, 5]]
SVG = "{http://www.w3.org/2000/svg}"


def picture(**changes: Any) -> Any:
    given: dict[str, Any] = {
        "rows": ROWS,
        "block_tables": TABLES,
        "num_blocks": 8,
        "block_size": 2,
        "others": {2: "C"},
    }
    return padded_in_fragmented_memory(**{**given, **changes})


def test_the_picture_is_well_formed_and_names_itself() -> None:
    drawn = picture()
    root = ET.fromstring(drawn.svg)
    assert root.get("role") == "img"
    labels = [root.find(f".//*[@id='{name}']") for name in root.get("aria-labelledby", "").split()]
    assert [label.tag for label in labels if label is not None] == [f"{SVG}title", f"{SVG}desc"]
    assert all(label is not None and label.text for label in labels)


def test_every_block_and_every_token_is_drawn_where_the_tables_say() -> None:
    texts = [text.text for text in ET.fromstring(picture().svg).iter(f"{SVG}text")]
    # Once in the rectangle, once in memory.
    for token in ("a", "b", "c"):
        assert texts.count(token) == 2
    assert texts.count("<pad>") == 2
    assert [str(block) in texts for block in range(8)] == [True] * 8
    assert texts.count("free") == 3
    table = {row[0]: row[1:] for row in picture().table.rows}
    assert table["4"] == ("A0", "<SOS> a")
    assert table["1"] == ("A1", "b")
    assert table["0"] == ("B0", "<pad> <SOS>")
    assert table["2"] == ("request C", "-")
    assert table["7"] == ("nobody: free", "-")


def test_the_text_twin_says_what_the_drawing_shows() -> None:
    said = picture().text
    assert "1 of whose 6 places are padding" in said
    assert "A: 4 1, B: 0 5" in said
    assert "3 blocks are free, at most 2 in a row" in said
    assert str(picture()) == said


def test_two_figures_on_one_page_share_no_id() -> None:
    first, second = picture(), picture(others={3: "C"})
    ids = [re.findall(r'\bid="([^"]+)"', figure._repr_html_()) for figure in (first, second)]
    assert len(ids[0]) == len(set(ids[0]))
    assert not set(ids[0]) & set(ids[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_tables": [[4, 1]]}, "one table a row"),
        ({"rows": [["a", "b", "c"], ["a"]]}, "row B has 1 tokens"),
        ({"block_tables": [[4], [0, 5]]}, "row A: 3 tokens do not fill 1 blocks"),
        ({"block_tables": [[4, 1], [0, 8]]}, "row B: block 8"),
        ({"block_tables": [[4, 1], [0, 4]]}, "row B: block 4"),
        ({"others": {4: "C"}}, "block 4 of another request"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        picture(**changes)


def test_a_plot_follows_the_theme_and_keeps_its_ids_to_itself() -> None:
    import matplotlib.pyplot as plt

    drawn = []
    for top in (2, 3):
        with figure_style():
            fig, ax = plt.subplots()
            ax.plot([0, 1], [0, top])
        drawn.append(plot(fig, f"Up to {top}", "A line.", Table(("x", "y"), [("0", "0"), ("1", str(top))])))
    for figure in drawn:
        assert "var(--p2p-a-line" in figure.svg
        assert INK not in figure.svg
        assert FIRST not in figure.svg
        ET.fromstring(figure.svg.replace("xlink:href", "href"))
    ids = [set(re.findall(r'\bid="([^"]+)"', figure.svg)) for figure in drawn]
    assert not ids[0] & ids[1]
    assert not plt.get_fignums(), "plot() closes what it was given"


def test_importing_the_package_does_not_import_matplotlib_or_numpy() -> None:
    import subprocess
    import sys

    code = "import sys; sys.path[:0] = sys.argv[1:]; import labkit, labkit.draw; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *sys.path], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "labkit.draw" in loaded
    assert not loaded & {"matplotlib", "numpy", "reference_impl", "autograder"}
