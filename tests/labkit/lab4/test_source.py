"""The text notebook of lab 4: what it promises in words is true of its own cells, and it runs as it stands."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from labkit.checks import groups
from labkit.checks.lab4_ladder import LADDER
from tests.labkit.lab4.notebook import MARKED, SOLUTIONS, stubbed

ROOT = Path(__file__).parents[3]
LAB = "lab4_paged_attention"
POINTS = {
    **{"store_kv": 10, "decode": 20, "head_groups": 15, "ragged_tails": 15, "numerics": 10, "layout": 10},
    **{"split_kv": 10, "bandwidth_equal": 5, "bandwidth_unequal": 5},
}
SECTIONS = [
    *["Why this exists", "The contract", "A worked example by hand", "Write it", "Public check"],
    *["See it move", "What the tests prove", "How the real engines do it", "Going further"],
]


def test_the_sections_follow_the_rhythm_of_every_lab(source_text: str) -> None:
    assert re.findall(r"^## (.+)$", source_text, flags=re.MULTILINE) == SECTIONS


def test_every_group_has_one_locked_cell_with_its_points(source_text: str, cells: list[tuple[str, str]]) -> None:
    graded = dict(re.findall(r"grade: true\n  grade_id: (\w+)\n  locked: true\n  points: (\d+)\n", source_text))
    assert {group: int(points) for group, points in graded.items()} == POINTS
    assert list(graded) == [name for name in groups(LAB) if name not in LADDER]
    assert sum(POINTS.values()) == 100
    for group in POINTS:
        needed = [*(["store_kv"] if group == "layout" else []), *groups(LAB)[group].needs]
        assert dict(cells)[group] == f'labkit.check("{LAB}", "{group}", {", ".join(needed)})\n'


def test_every_step_has_its_check_behind_it(cells: list[tuple[str, str]]) -> None:
    for group, properties in LADDER.items():
        call = f'labkit.check("{LAB}", "{group}", {", ".join(properties.needs)})\n'
        assert dict(cells)[f"check_{group}"] == call
    ids = [grade_id for grade_id, _ in cells if grade_id]
    assert [name for name in ids if name in SOLUTIONS] == list(SOLUTIONS)
    assert ids.index("setup") < ids.index(SOLUTIONS[0])


def test_headings_name_the_points_of_the_cell_below(source_text: str) -> None:
    headings = re.findall(r"^### (.+) \((\d+) points\)$", source_text, flags=re.MULTILINE)
    assert [int(points) for _, points in headings] == list(POINTS.values())
    assert [title for title, _ in headings] == [groups(LAB)[group].title for group in POINTS]


def test_the_text_is_no_longer_than_a_reader_bears(source_text: str) -> None:
    prose = re.sub(r"```\{code-cell\}.*?```", "", source_text, flags=re.DOTALL)
    assert len(prose.split()) <= 3000


def test_every_function_and_kernel_is_to_be_written(cells: list[tuple[str, str]]) -> None:
    for name in SOLUTIONS:
        source = dict(cells)[name]
        given = source.count("def tile_tokens(")
        assert (
            len(MARKED.findall(source))
            == source.count("### BEGIN SOLUTION")
            == len(re.findall("^def ", source, re.M)) - given
        )
        compile(stubbed(source), name, "exec")


def test_the_worked_example_is_what_the_merge_gives(model_solution: SimpleNamespace, source_text: str) -> None:
    scores = torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64) * torch.log(torch.tensor(2.0, dtype=torch.float64))
    values = torch.tensor([[8.0], [0.0], [4.0]], dtype=torch.float64)
    first = model_solution.partial(scores[:2], values[:2])
    both = model_solution.merge(first, model_solution.partial(scores[2:], values[2:]))

    def row(state: Any) -> str:
        top, total, found = state
        return f"| {float(top) / 0.6931471805599453:g} | {float(total):g} | {float(found):g} |"

    source_text = " ".join(source_text.split())
    assert f"| block 3: tokens 0, 1 {row(first)}" in source_text
    assert f"| block 1: token 2 {row(both)}" in source_text
    assert f"The answer is 5 / 1.625 = {float(both[2] / both[1]):.4f}" in source_text


def test_the_sizes_of_the_contract_are_those_of_the_course(source_text: str) -> None:
    from labkit.checks.paged import ERRORS

    assert "at most 1e-5 in float32, 2e-3 in float16 and 1e-2 in bfloat16" in " ".join(source_text.split())
    assert ERRORS == {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


def executed(notebook: Any) -> dict[str, list[Any]]:
    """grade_id or number -> outputs of each code cell, after a run in a kernel of its own that stops at no error."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed here")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed here")
    pytest.importorskip("triton", reason="Triton is not installed here")
    live = nbformat.reads(json.dumps(notebook), as_version=4)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT / "labs"), "OMP_NUM_THREADS": "1"}
    client = nbclient.NotebookClient(live, timeout=300, kernel_name="python3", allow_errors=True)
    with client.setup_kernel(env=environment):
        for number, cell in enumerate(live.cells):
            client.execute_cell(cell, number)
    return {
        cell.metadata.get("nbgrader", {}).get("grade_id", str(number)): cell.outputs
        for number, cell in enumerate(live.cells)
        if cell.cell_type == "code"
    }


def released() -> Any:
    return json.loads((ROOT / "labs" / LAB / f"{LAB}.ipynb").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_with_the_solution(cells: list[tuple[str, str]]) -> None:
    notebook = released()
    for cell in notebook["cells"]:
        grade_id = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if grade_id in SOLUTIONS:
            cell["source"] = dict(cells)[grade_id]
    outputs = executed(notebook)
    errors = {name: out.evalue for name, outs in outputs.items() for out in outs if out.output_type == "error"}
    assert errors == {}
    assert not [out.text for outs in outputs.values() for out in outs if out.get("name") == "stderr"]
    (table,) = outputs["count_by_running"]
    assert table.data["text/plain"].count("yes") == 6
    assert "NO" not in table.data["text/plain"]


@pytest.mark.slow
def test_with_the_stubs_every_check_says_what_to_write_next_and_nothing_else_fails() -> None:
    outputs = executed(released())
    errors = {name: out for name, outs in outputs.items() for out in outs if out.output_type == "error"}
    checks = {**{name: name for name in POINTS}, **{f"check_{name}": name for name in LADDER}}
    assert errors.keys() == checks.keys()
    for name, error in errors.items():
        assert error.ename == "CheckFailed"
        assert f"not written yet: {groups(LAB)[checks[name]].needs[0]}" in error.evalue
