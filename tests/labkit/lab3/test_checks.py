"""The public checks pass what is right, and each of their properties catches somebody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autograder.judge.subject import local
from autograder.judge.twins import Twins
from labkit import check
from labkit.checks import CheckFailed, groups, run
from reference_impl.memory import BlockAllocator as Reference
from tests.labkit.lab3.mistakes import MISTAKES, Mistake, fork_does_not_count_holders, never_copies

LABS = Path(__file__).parents[3] / "labs"
LAB = "lab3_block_allocator"
GROUPS = ["tables", "conservation", "refusals", "growth", "sharing", "copy_on_write", "programs", "cost"]


def failed(group: str, make: Any) -> dict[str, str]:
    return {result.name: result.counterexample for result in run(LAB, group, make) if not result.passed}


@pytest.mark.parametrize("group", GROUPS)
def test_the_model_solution_and_the_reference_pass_every_property(group: str, model_solution: Any) -> None:
    assert failed(group, model_solution) == {}
    assert failed(group, Reference) == {}


class LooksAtTheChildFirst(Reference):
    """An allocator whose fork names a child that is in use before an unknown parent: the contract allows both."""

    def fork(self, parent: int, child: int) -> None:
        try:
            self.num_tokens(child)
        except KeyError:
            super().fork(parent, child)
        else:
            raise ValueError(f"sequence {child} exists already")


class SaysNothingOfTwoWrongIds(Reference):
    """An allocator whose fork returns quietly if both ids are wrong."""

    def fork(self, parent: int, child: int) -> None:
        try:
            super().fork(parent, child)
        except KeyError:
            try:
                self.num_tokens(child)
            except KeyError:
                raise KeyError(parent) from None


def test_a_fork_with_two_wrong_ids_may_name_either_but_not_none() -> None:
    assert failed("programs", LooksAtTheChildFirst) == failed("refusals", LooksAtTheChildFirst) == {}
    told = failed("programs", SaysNothingOfTwoWrongIds)["programs_with_forks"]
    assert "expected KeyError or ValueError, nothing was raised" in told


def test_programs_beside_the_reference_let_a_fork_with_two_wrong_ids_name_either_but_not_none() -> None:
    for allocator in (Reference, LooksAtTheChildFirst):
        twins = Twins(local(allocator), 4, 2)
        twins.call("allocate", 0, 3)
        twins.call("fork", 7, 0)
    twins = Twins(local(SaysNothingOfTwoWrongIds), 4, 2)
    twins.call("allocate", 0, 3)
    with pytest.raises(AssertionError, match="did not refuse"):
        twins.call("fork", 7, 0)


@pytest.mark.parametrize("group", GROUPS)
def test_a_subject_of_the_judge_passes_like_the_object_itself(group: str) -> None:
    assert failed(group, local(Reference)) == {}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_each_mistake_is_caught_by_the_property_that_speaks_of_it(mistake: Mistake, model_solution: Any) -> None:
    group, prop = MISTAKES[mistake]
    assert prop in failed(group, mistake(model_solution))


def test_no_property_passes_whatever_it_is_given(model_solution: Any) -> None:
    caught: set[str] = set()
    for mistake in MISTAKES:
        for group in GROUPS[:-1]:
            caught |= failed(group, mistake(model_solution)).keys()
    everything = {prop.__name__ for group in GROUPS[:-1] for prop in groups(LAB)[group].properties}
    assert everything - caught == set()


def test_a_counterexample_tells_the_calls_and_what_was_expected(model_solution: Any) -> None:
    told = failed("copy_on_write", never_copies(model_solution))["first_writer_copies_the_tail"]
    assert told == (
        "With 4 blocks of 4 tokens: allocate(1, 6), fork(1, 2), append(2): "
        "expected one copy out of the shared tail, got none."
    )


def test_a_failing_random_program_is_told_in_a_few_calls(model_solution: Any) -> None:
    told = failed("programs", never_copies(model_solution))["programs_with_forks"]
    calls = told.partition(": ")[2].partition(": expected")[0]
    assert calls.count("(") == 3
    assert "earlier calls" not in calls


@pytest.mark.parametrize("group", GROUPS[:-1])
def test_the_same_object_gets_the_same_answer_twice(group: str, model_solution: Any) -> None:
    wrong = fork_does_not_count_holders(model_solution)
    assert run(LAB, group, wrong) == run(LAB, group, wrong)


@pytest.mark.parametrize("method", ["block_table", "append", "slot_mapping", "num_tokens"])
@pytest.mark.parametrize("value", [None, (0, 1), [], [None], ["0"], [0.0], "01", 7, [(0, 1)], [0] * 99, [[0, 1, 2]]])
def test_an_answer_of_the_wrong_shape_is_a_failed_property_and_not_a_crash(
    method: str, value: object, model_solution: Any
) -> None:
    odd = type("Odd", (model_solution,), {method: lambda self, *args: value})
    told = [text for group in GROUPS[:-1] for text in failed(group, odd).values()]
    assert told
    assert all("expected" in text for text in told)


def test_a_method_still_to_write_is_named_instead_of_a_traceback(
    model_solution: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Started(model_solution):
        def append(self, seq: int, num_tokens: int = 1) -> Any:
            raise NotImplementedError

        def free(self, seq: int) -> None:
            raise NotImplementedError

    with pytest.raises(CheckFailed, match=r"growth: 5 of 5 .*; not written yet: append"):
        check(LAB, "growth", Started)
    assert "to do   append takes a new block only when the last one is full." in capsys.readouterr().out
    passed = [result.name for result in run(LAB, "tables", Started) if result.passed]
    assert len(passed) == 4, "the notebook says that four of the six can pass before append and free are written"


def test_an_unwritten_helper_is_named_itself(model_solution: Any) -> None:
    class Started(model_solution):
        def _take(self) -> int:
            raise NotImplementedError

    assert failed("tables", Started)["table_has_just_enough_blocks"] == "not written yet: _take"


def test_check_prints_every_property_and_stays_silent_about_success(
    model_solution: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check(LAB, "sharing", model_solution)
    out = capsys.readouterr().out
    assert out.startswith("sharing: fork\n")
    assert out.count("  passed  ") == 5
    assert out.endswith("All 5 properties hold.\n")


def test_check_raises_after_printing_the_counterexamples(
    model_solution: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckFailed, match="copy_on_write: 3 of 6 properties do not hold yet"):
        check(LAB, "copy_on_write", never_copies(model_solution))
    assert "  FAILED  " in capsys.readouterr().out


def test_an_unknown_lab_or_group_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'lab9'.*lab3_block_allocator"):
        run("lab9", "tables", Reference)
    with pytest.raises(ValueError, match=r"'table'.*tables, conservation"):
        check(LAB, "table", Reference)


def test_an_object_instead_of_the_class_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="the class itself"):
        check(LAB, "tables", Reference(4, 4))  # type: ignore[arg-type]


def test_the_groups_are_those_of_the_notebook(cells: list[tuple[str, str]]) -> None:
    assert list(groups(LAB)) == GROUPS == [name for name, _ in cells if name in GROUPS]


def test_importing_labkit_loads_neither_numpy_nor_matplotlib() -> None:
    heavy = "{'numpy', 'matplotlib', 'reference_impl', 'autograder'}"
    code = f"import sys, labkit; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=LABS, capture_output=True, text=True, check=False)
    assert done.stderr == ""
