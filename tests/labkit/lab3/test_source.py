"""The text notebook of lab 3: what it promises in words is true of its own cells."""

from __future__ import annotations

import re
from typing import Any

import pytest

from labkit.checks import CheckFailed, check, run
from labkit.contracts import OutOfBlocks

LAB = "lab3_block_allocator"
POINTS = {
    **{"tables": 10, "conservation": 15, "refusals": 15, "growth": 10},
    **{"sharing": 15, "copy_on_write": 15, "programs": 10, "cost": 10},
}
SECTIONS = [
    *["Why this exists", "The contract", "A worked example by hand", "Write it", "Public check"],
    *["See it move", "What the tests prove", "How the real engines do it", "Going further"],
]
MARKED = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION\n", flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def stub(cells: list[tuple[str, str]]) -> Any:
    """The class as students get it: every marked region replaced as nbgrader does it."""
    source = dict(cells)["block_allocator"]
    namespace: dict[str, Any] = {}
    exec(dict(cells)["setup"], namespace)
    exec(MARKED.sub(r"\1# YOUR CODE HERE\n\1raise NotImplementedError()\n", source), namespace)
    return namespace["BlockAllocator"]


def test_the_sections_follow_the_rhythm_of_every_lab(source_text: str) -> None:
    assert re.findall(r"^## (.+)$", source_text, flags=re.MULTILINE) == SECTIONS


def test_every_group_has_one_locked_cell_with_its_points(source_text: str, cells: list[tuple[str, str]]) -> None:
    graded = dict(re.findall(r"grade: true\n  grade_id: (\w+)\n  locked: true\n  points: (\d+)\n", source_text))
    assert {group: int(points) for group, points in graded.items()} == POINTS
    assert sum(POINTS.values()) == 100
    for group in POINTS:
        assert dict(cells)[group] == f'labkit.check("{LAB}", "{group}", BlockAllocator)\n'


def test_headings_name_the_points_of_the_cell_below(source_text: str) -> None:
    headings = re.findall(r"^### .+ \((\d+) points\)$", source_text, flags=re.MULTILINE)
    assert [int(points) for points in headings] == list(POINTS.values())


def test_the_text_is_no_longer_than_a_reader_bears(source_text: str) -> None:
    prose = re.sub(r"```\{code-cell\}.*?```", "", source_text, flags=re.DOTALL)
    assert len(prose.split()) <= 2500


def test_the_class_of_the_stub_can_be_defined_and_nothing_of_it_is_written(stub: Any) -> None:
    for group in POINTS:
        assert {result.counterexample for result in run(LAB, group, stub)} == {"not written yet: __init__"}


@pytest.mark.parametrize("group", POINTS)
def test_the_check_of_a_stub_says_what_to_write_next(group: str, stub: Any) -> None:
    with pytest.raises(CheckFailed, match="not written yet: __init__"):
        check(LAB, group, stub)


def test_every_solution_stands_between_markers_of_its_own_depth(cells: list[tuple[str, str]]) -> None:
    source = dict(cells)["block_allocator"]
    assert len(MARKED.findall(source)) == source.count("### BEGIN SOLUTION") == source.count("    def ")


def test_the_worked_example_is_what_the_model_solution_does(model_solution: Any, source_text: str) -> None:
    allocator = model_solution(4, 4)
    allocator._free[:] = [1, 3, 0, 2]  # the order of the example: 2 first, then 0, 3, 1
    rows = []

    def row(call: str, returned: object) -> None:
        def told(seq: int) -> str:
            try:
                return ", ".join(map(str, allocator.block_table(seq)))
            except KeyError:
                return ""

        given = "nothing" if returned is None else f"`{returned}`"
        rows.append(
            f"| `{call}` | {given} | {told(7)} | {told(8)} | {allocator.num_free_blocks} |".replace("|  |", "| |")
        )

    row("allocate(7, 6)", allocator.allocate(7, 6))
    row("fork(7, 8)", allocator.fork(7, 8))
    row("append(8)", allocator.append(8))
    assert allocator.slot_mapping(8, 6, 7) == [3 * 4 + 2]
    row("append(7, 3)", allocator.append(7, 3))
    row("free(7)", allocator.free(7))
    for line in rows:
        assert line in source_text


def test_the_program_of_the_player_shows_a_copy_a_reuse_and_one_refusal(
    model_solution: Any, cells: list[tuple[str, str]]
) -> None:
    namespace: dict[str, Any] = {"BlockAllocator": model_solution}
    exec(next(source for _, source in cells if "player.show" in source), namespace)
    events = namespace["record"](model_solution(8, 4), 8, 4, namespace["program"])
    assert [event["told"] for event in events if event["kind"] == "refused"] == ["append(3, 9)"]
    assert sum(event["kind"] == "copy" for event in events) == 1
    assert not [event for event in events if event.get("fault")]
    freed = set(next(event["blocks"] for event in events if event["told"] == "free(2)"))
    last = next(e["blocks"] for e in events if e["told"].startswith("allocate(4") and e["kind"] == "allocate")
    assert freed < set(last)


def test_the_model_solution_counts_a_copy_and_a_new_block_together(model_solution: Any) -> None:
    allocator = model_solution(3, 4)
    allocator.allocate(1, 6)
    allocator.fork(1, 2)
    with pytest.raises(OutOfBlocks, match="2 blocks needed, 1 free"):
        allocator.append(2, 3)
