"""All pages: anchors, the table of the lab, and a chapter that runs where the engine is not installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autograder.release.bundle import packages_of
from labkit.evidence import write_bundle
from labkit.figures import Table
from reference_impl.memory.block_table import blocks_for
from reference_impl.padding import pad_rows

ROOT = Path(__file__).resolve().parents[2]
LABS = {"lab3": "lab3_block_allocator", "lab4": "lab4_paged_attention"}


def anchors(page: str) -> list[str]:
    return re.findall(r"^\((\S+)\)=$", (ROOT / "chapters" / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_item_of_the_starting_text_that_is_listed_has_its_anchor() -> None:
    listed = re.findall(r"\| (\w+)#([\w-]+) \|", (ROOT / "chapters" / "README.md").read_text(encoding="utf-8"))
    assert len(listed) >= 7
    for page, anchor in listed:
        assert anchors(page).count(anchor) == 1, f"{page}#{anchor}"


@pytest.mark.parametrize("name", LABS)
def test_the_lab_page_shows_every_graded_group_with_the_points_of_the_released_notebook(
    name: str, page: Callable[[str], Any]
) -> None:
    lab = page(name)
    notebook = ROOT / "labs" / LABS[name] / f"{LABS[name]}.ipynb"
    graded = {
        cell["metadata"]["nbgrader"]["grade_id"]: cell["metadata"]["nbgrader"]["points"]
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        if cell["metadata"].get("nbgrader", {}).get("grade")
    }
    (table,) = (shown for shown in lab.shown if isinstance(shown, Table))
    assert {group: float(points) for _, group, points, _ in table.rows} == graded
    assert f"<td>{list(graded)[1]}</td>" in table._repr_html_()
    assert float(lab.glued["points"]) == sum(graded.values()) == 100
    assert int(lab.glued["groups"]) == len(graded)


@pytest.mark.parametrize("name", LABS)
def test_the_lab_page_says_how_to_unpack_and_install_its_own_archive(name: str) -> None:
    lab = LABS[name]
    text = (ROOT / "chapters" / f"{name}.md").read_text(encoding="utf-8")
    assert f"_generated/{lab}.zip" in text
    assert f"unzip {lab}.zip && cd padding-to-paging-{lab}\n" in text
    installed = re.search(r"\.venv/bin/pip install (.+)\n", text)
    assert installed is not None
    notebook = ROOT / "labs" / lab / f"{lab}.ipynb"
    assert installed[1] == " ".join([".", "notebook", *packages_of(notebook.read_bytes())])


@pytest.mark.parametrize(
    ("chapter", "glued"),
    [
        ("start", "padding"),
        ("rectangles", "share16"),
        ("sides", "rounding"),
        ("packing", "over_time"),
        ("arithmetic", "fit_tokens"),
        ("contiguous", "one_copied"),
        ("paradox", "no_free"),
        ("paging", "tail16"),
        ("sharing", "fit_gain"),
        ("prefixes", "gpu_rate"),
        ("attention", "seen32"),
        ("kernel", "fixed"),
        ("scheduling", "peak_good"),
        ("preemption", "cured_rate"),
        ("engine", "paging_joined"),
        ("measured", "job_rate"),
    ],
)
def test_the_chapter_runs_from_the_bundle_where_the_engine_is_not_installed(
    chapter: str, glued: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("P2P_TRACES", "none")
    write_bundle(tmp_path / "evidence")
    source = (ROOT / "chapters" / f"{chapter}.md").read_text(encoding="utf-8")
    cells = re.findall(r"^```\{code-cell\}[^\n]*\n(?::[^\n]*\n)*(.*?)^```$", source, re.MULTILINE | re.DOTALL)
    # Only labkit and what is installed from elsewhere: neither the repository nor an editable install of it. labkit is
    # copied, because beside its original the course's own folder would be found.
    import shutil

    shutil.copytree(ROOT / "labs" / "labkit", tmp_path / "lib" / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    blocked = (
        "import sys, matplotlib; matplotlib.use('Agg')\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('reference_impl', 'autograder'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import labkit.evidence\n"
        "sys.modules['labkit.evidence'].importlib.util.find_spec = lambda name: None\n"
    )
    script = tmp_path / "page.py"
    script.write_text(blocked + "\n".join(cells) + "\nprint('ran to the end')\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "lib"), "P2P_TRACES": "none", "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ran to the end" in done.stdout
    assert f"{glued} = " in done.stdout


def test_the_model_answer_to_the_trace_exercise_is_what_the_reference_gives() -> None:
    answer = (ROOT / "solutions" / "chapters" / "rectangles.md").read_text(encoding="utf-8")
    exercise = (ROOT / "chapters" / "rectangles.md").read_text(encoding="utf-8")
    asked = re.search(r"\*\*Trace\.\*\* Pad (.*?) on the left", exercise, re.DOTALL)
    assert asked is not None
    sequences = [text.split() for text in re.findall(r"`([^`]+)`", asked[1])]
    rows = pad_rows(sequences, "<pad>", side="left")
    assert "\n".join("    " + " ".join(row) for row in rows) in answer
    slots, pads = sum(map(len, rows)), sum(row.count("<pad>") for row in rows)
    blocks = sum(blocks_for(len(row), 2) for row in rows)
    alone = [blocks_for(len(sequence), 2) for sequence in sequences]
    assert f"{slots} slots, {pads} of them pads" in answer
    assert f"{blocks} together" in answer
    assert f"{alone[0]}, {alone[1]} and {alone[2]} blocks, {sum(alone)} together" in answer
