"""The public checks of lab 4 pass what is right, and each of their properties catches somebody."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autograder.course import load_module
from autograder.judge.functions import LocalFunctions
from labkit import check, gpu
from labkit.checks import CheckFailed, groups, run
from labkit.checks.lab4_ladder import LADDER
from tests import corpus
from tests.labkit.lab4.mistakes import MISTAKES, Mistake
from tests.labkit.lab4.notebook import SOLUTIONS, stubbed

LABS = Path(__file__).parents[3] / "labs"
LAB = "lab4_paged_attention"
GRADED = [name for name in groups(LAB) if name not in LADDER]
Solved = Callable[[dict[str, str]], SimpleNamespace]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def failed(group: str, functions: Any) -> dict[str, str]:
    return {result.name: result.counterexample for result in run(LAB, group, lambda: functions) if not result.passed}


@pytest.mark.parametrize("group", groups(LAB))
def test_the_model_solution_passes_every_property(group: str, model_solution: SimpleNamespace) -> None:
    assert failed(group, model_solution) == {}


@pytest.mark.parametrize("group", [name for name in GRADED if name != "store_kv"])
@pytest.mark.parametrize("version", ["page_walk", "one_head", "grouped"])
def test_every_version_may_be_handed_in_but_torch_earns_nothing(
    group: str, version: str, model_solution: SimpleNamespace
) -> None:
    told = failed(group, SimpleNamespace(paged_attention=getattr(model_solution, version)))
    by_torch = version == "page_walk" and group == "decode"
    assert set(told) == ({"the_kernels_compute_the_answer"} if by_torch else set())


def test_what_torch_computed_is_named_with_what_it_costs(cells: list[tuple[str, str]], solved: Solved) -> None:
    wrong = solved(MISTAKES["zeros_by_a_mask_of_torch"].cells(dict(cells)))
    told = failed("decode", wrong)["the_kernels_compute_the_answer"]
    assert "aten::index_put_. A call in which it does earns nothing." in told


def test_who_works_elsewhere_is_watched_by_whoever_made_it(model_solution: SimpleNamespace) -> None:
    there = SimpleNamespace(paged_attention=model_solution.page_walk, elsewhere=True)
    assert failed("decode", there) == {}


def test_a_judge_learns_of_no_torch_but_a_submissions(model_solution: SimpleNamespace) -> None:
    # What goes to a worker and back is packed by torch.
    here = LocalFunctions(model_solution, gpu.device())
    assert {group: failed(group, here) for group in ("store_kv", "decode")} == {"store_kv": {}, "decode": {}}


def _passes_everything(design: Path) -> None:
    written = load_module(design, f"public_{design.stem}")
    assert {group: failed(group, written) for group in GRADED} == {group: {} for group in GRADED}


@pytest.mark.parametrize("design", corpus.files(LAB, "correct")[:1], ids=lambda design: design.stem)
def test_an_honest_design_passes_every_property(design: Path, model_solution: SimpleNamespace) -> None:
    _passes_everything(design)


@pytest.mark.long
@pytest.mark.parametrize("design", corpus.files(LAB, "correct")[1:], ids=lambda design: design.stem)
def test_every_other_honest_design_passes_every_property(design: Path, model_solution: SimpleNamespace) -> None:
    _passes_everything(design)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=list(MISTAKES))
def test_each_mistake_is_caught_by_the_property_that_speaks_of_it(
    mistake: Mistake, cells: list[tuple[str, str]], solved: Solved
) -> None:
    told = failed(mistake.group, solved(mistake.cells(dict(cells))))
    assert mistake.prop in told
    assert "expected" in told[mistake.prop]


# What it reads lies outside of all memory: to try it would end the notebook's process, and explain nothing.
UNTRIED = {"garbage_entries_are_addresses"}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("wrong", corpus.wrong(LAB), ids=lambda wrong: wrong.path.stem)
def test_a_student_learns_of_every_misconception_but_one_that_would_end_their_notebook(
    wrong: corpus.Wrong, model_solution: SimpleNamespace
) -> None:
    written = load_module(wrong.path, f"public_{wrong.path.stem}")
    through = all(not failed(group, written) for group in GRADED)
    assert through == (wrong.path.stem in UNTRIED)


def test_every_property_has_a_mistake_that_it_catches() -> None:
    caught = {(mistake.group, mistake.prop) for mistake in MISTAKES.values()}
    everything = {(name, prop.__name__) for name in GRADED for prop in groups(LAB)[name].properties}
    assert everything - caught == set()
    assert {mistake.group for mistake in MISTAKES.values()} == set(groups(LAB))


def test_a_counterexample_names_the_batch_the_sequence_the_head_and_both_numbers(
    cells: list[tuple[str, str]], solved: Solved
) -> None:
    wrong = solved(MISTAKES["the_first_part_is_all"].cells(dict(cells)))
    told = failed("split_kv", wrong)["lengths_far_apart_are_right_together"]
    assert told.startswith(
        "With 4 sequences of 1, 530, 0, 40 tokens in blocks of 32, 2 query heads over 1 KV head of 32 "
    )
    assert "of sequence 1 (530 tokens), query head 0 to be " in told
    assert "2 of 8 rows are wrong" in told


def test_a_number_that_is_none_is_told_with_where_it_may_come_from(
    cells: list[tuple[str, str]], solved: Solved
) -> None:
    wrong = solved(MISTAKES["nothing_to_do_for_an_empty_context"].cells(dict(cells)))
    told = failed("decode", wrong)["an_empty_context_gives_zeros"]
    assert "of sequence 1 (0 tokens), query head 0 to be 0, got nan (out and all slots without a token" in told


def test_the_same_functions_get_the_same_answer_twice(cells: list[tuple[str, str]], solved: Solved) -> None:
    wrong = solved(MISTAKES["heads_by_modulo"].cells(dict(cells)))
    assert run(LAB, "head_groups", lambda: wrong) == run(LAB, "head_groups", lambda: wrong)


def test_a_kernel_that_is_not_written_is_named_itself(cells: list[tuple[str, str]], solved: Solved) -> None:
    source = dict(cells)["one_head"]
    kernel, _, launcher = source.partition("def one_head(")
    started = solved({"one_head": f"{stubbed(kernel)}def one_head({launcher}"})
    assert set(failed("version_one_head", started).values()) == {"not written yet: _one_head"}


def test_a_stub_that_a_gpus_compiler_meets_is_named_too() -> None:
    def refused(*given: Any) -> None:
        # As Triton's compiler says it.
        raise RuntimeError(
            "at 3:4:\ndef _walk(\n    rows,\n):\n    raise NotImplementedError()\n    ^\nunsupported: Raise"
        )

    def wrapped(*given: Any) -> None:
        try:
            refused()
        except RuntimeError as inner:
            raise RuntimeError("at 9:17") from inner

    for function in (refused, wrapped):
        told = failed("bandwidth_equal", SimpleNamespace(paged_attention=function))
        assert set(told.values()) == {"not written yet: _walk"}


def test_an_error_in_a_kernel_is_a_failed_property_with_its_first_cause(
    cells: list[tuple[str, str]], solved: Solved
) -> None:
    source = dict(cells)["one_head"].replace("higher = tl.maximum(", "higher = tl.maximal(")
    told = set(failed("version_one_head", solved({"one_head": source})).values())
    assert len(told) == 3 + 2
    assert all("expected paged_attention to return, got " in text and "maximal" in text for text in told)


def test_what_a_gpus_compiler_refuses_is_told_with_its_line() -> None:
    errors = pytest.importorskip("triton.compiler.errors", reason="Triton is not installed here")
    source = "def _walk(rows):\n    top = 0.0\n    higher = tl.maximal(top, rows)\n"

    def refused(*given: Any) -> None:
        line = ast.parse(source).body[0].body[1]  # type: ignore[attr-defined]
        raise errors.CompilationError(source, line, "AttributeError('no maximal')")

    told = failed("bandwidth_equal", SimpleNamespace(paged_attention=refused))
    [text] = told.values()
    assert """got CompilationError: "AttributeError('no maximal')" at 'higher = tl.maximal(top, rows)'.""" in text


def test_stubs_are_told_apart_from_failures(
    cells: list[tuple[str, str]], solved: Solved, capsys: pytest.CaptureFixture[str]
) -> None:
    stubs = solved({name: stubbed(dict(cells)[name]) for name in SOLUTIONS})
    for name, group in groups(LAB).items():
        needed = [getattr(stubs, function) for function in group.needs]
        with pytest.raises(CheckFailed, match=f"not written yet: {group.needs[0]}"):
            check(LAB, name, *needed)
    assert "FAILED" not in capsys.readouterr().out


def test_check_says_what_it_ran_on(model_solution: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    check(LAB, "bandwidth_equal", model_solution.paged_attention)
    out = capsys.readouterr().out
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU, in Triton's interpreter"
    assert out.startswith(f"bandwidth_equal: Speed on equal lengths (on {where})\n")
    assert out.endswith("The one property holds.\n")


def test_functions_are_known_by_their_own_names(model_solution: SimpleNamespace) -> None:
    check(LAB, "layout", model_solution.store_kv, model_solution.paged_attention)
    with pytest.raises(
        TypeError, match=r"layout checks paged_attention: give it the functions of these names, got split"
    ):
        check(LAB, "layout", model_solution.split)
    with pytest.raises(TypeError, match=r"warm_up_merge checks partial and merge: .*, got nothing"):
        check(LAB, "warm_up_merge")
    with pytest.raises(TypeError, match="got Tensor"):
        check(LAB, "decode", torch.zeros(1))  # type: ignore[arg-type]


def test_properties_change_no_state_of_torch(model_solution: SimpleNamespace) -> None:
    before = torch.get_rng_state()
    run(LAB, "decode", lambda: model_solution)
    assert torch.equal(before, torch.get_rng_state())


def test_the_groups_are_known_without_torch() -> None:
    code = (
        "import sys\n"
        "from labkit.checks import groups\n"
        f"print([group.title for group in groups({LAB!r}).values()])\n"
        "sys.exit(', '.join({'torch', 'triton', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=LABS, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "Long and unequal contexts" in done.stdout
