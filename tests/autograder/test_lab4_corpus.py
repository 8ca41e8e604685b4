"""The corpus of lab 4 through the real sandbox and judge, on a CPU.

Honest designs get every point but those for speed, misconceptions are killed by the test that names them, attacks gain
nothing. A sample in every run, all of them in the long one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from autograder.course import Course
from autograder.judge.verdicts import SubmissionResult, Verdict
from autograder.runners.local import grade_files
from autograder.sandbox import tiers
from tests import corpus
from tests.triton_here import import_triton

ROOT = Path(__file__).parents[2]
LAB = "lab4_paged_attention"
CORRECT, WRONG, HOSTILE = corpus.files(LAB, "correct"), corpus.wrong(LAB), corpus.hostile(LAB)
SPEED = ("bandwidth_equal", "bandwidth_unequal")
TIERS = tuple(tier for tier in ("bubblewrap", "unshare") if tiers.works(tier))
# Of every run: two designs, and what crashes its process, keeps scratch between calls, or maps heads wrongly.
SAMPLE = {
    "one_program_a_head",
    "work_list",
    "garbage_entries_are_addresses",
    "scratch_of_the_last_call",
    "heads_by_modulo",
}
SLOW_ATTACKS = {"kernel_that_never_ends", "memory_hog"}
NOTHING = """
def store_kv(key, value, key_cache, value_cache, slot_mapping):
    pass


def paged_attention(query, key_cache, value_cache, block_tables, context_lens, scale, out):
    pass
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TIERS, reason="no sandbox tier works on this machine"),
    pytest.mark.skipif(not import_triton(), reason="Triton is not installed here"),
]


def in_every_run(path: Path, honest_groups: tuple[str, ...] = ()) -> bool:
    """Attacks with a large honest part take as long as an honest design: one of them stands for the others."""
    if path.parent.name != "hostile":
        return path.stem in SAMPLE
    return path.stem == "caches_by_pointer" or (len(honest_groups) <= 1 and path.stem not in SLOW_ATTACKS)


def each(found: list[tuple[Path, object]]) -> list[object]:
    """Parameters for a test of each submission, those that are not in every run marked long."""
    return [
        pytest.param(
            what, id=path.stem, marks=[] if in_every_run(path, getattr(what, "honest_groups", ())) else pytest.mark.long
        )
        for path, what in found
    ]


@dataclass
class Grader:
    """Grades what is asked for, many at once: the first question about a sample grades all of the sample."""

    results: dict[Path, SubmissionResult]
    everyday: list[Path]
    everything: list[Path]

    def of(self, path: Path) -> SubmissionResult:
        if path not in self.results:
            batch = self.everyday if path in self.everyday else self.everything
            todo = [each for each in batch if each not in self.results]
            for tier, part in zip(TIERS, (todo[:: len(TIERS)], todo[1 :: len(TIERS)]), strict=False):
                graded = grade_files(Course.open(ROOT), LAB, part, sandbox=tier, device="cpu")
                self.results.update(zip(part, graded, strict=True))
        return self.results[path]


@pytest.fixture(scope="module")
def grader(tmp_path_factory: pytest.TempPathFactory) -> Grader:
    nothing = tmp_path_factory.mktemp("control") / "nothing.py"
    nothing.write_text(NOTHING)
    paths = [*CORRECT, *(wrong.path for wrong in WRONG)]
    everyday = [nothing, *(path for path in paths if in_every_run(path))]
    everyday += [attack.path for attack in HOSTILE if in_every_run(attack.path, attack.honest_groups)]
    return Grader({}, everyday, [*paths, *(attack.path for attack in HOSTILE)])


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(CORRECT) >= 5
    assert len(WRONG) >= 25
    assert len(HOSTILE) >= 15


@pytest.mark.parametrize("path", each([(path, path) for path in CORRECT]))
def test_an_honest_design_gets_every_point_that_a_cpu_can_give(grader: Grader, path: Path) -> None:
    result = grader.of(path)
    failed = [t.name for g in result.groups for t in g.tests if t.verdict is not Verdict.PASS and t.counts]
    assert failed == []
    assert (result.status, result.device, result.score) == ("graded", "cpu", 90.0)


@pytest.mark.parametrize("wrong", each([(wrong.path, wrong) for wrong in WRONG]))
def test_a_misconception_is_killed_by_the_test_that_names_it(grader: Grader, wrong: corpus.Wrong) -> None:
    result = grader.of(wrong.path)
    assert result.status == "graded"
    assert result.score < 90.0
    verdicts = {test.name: test.verdict for group in result.groups for test in group.tests}
    assert [name for _, name in wrong.killed_by if verdicts[name] is Verdict.PASS] == []


@pytest.mark.parametrize("attack", each([(attack.path, attack) for attack in HOSTILE]))
def test_an_attack_earns_no_more_than_its_honest_part(grader: Grader, attack: corpus.Hostile) -> None:
    result = grader.of(attack.path)
    assert result.status == "graded", result.flags
    if not attack.honest_groups:
        assert result.score == 0.0
    for group in result.groups:
        if group.id not in attack.honest_groups:
            assert group.points < group.max_points, f"{group.id} is paid in full"


def test_functions_that_do_nothing_earn_nothing(grader: Grader) -> None:
    result = grader.of(grader.everyday[0])
    assert (result.status, result.score) == ("graded", 0.0)


def test_a_crash_ends_its_own_test_only(grader: Grader) -> None:
    path = next(wrong.path for wrong in WRONG if wrong.path.stem == "garbage_entries_are_addresses")
    verdicts = [test.verdict for group in grader.of(path).groups for test in group.tests]
    assert verdicts.count(Verdict.CRASHED) >= 1
    assert verdicts.count(Verdict.PASS) > 40


def test_what_needs_a_gpu_is_not_run_and_costs_nothing_elsewhere(grader: Grader) -> None:
    result = grader.of(next(path for path in CORRECT if path.stem == "work_list"))
    groups = {group.id: group for group in result.groups}
    for name in SPEED:
        assert groups[name].points == 0.0
        assert {test.verdict for test in groups[name].tests} == {Verdict.NOT_RUN}
        assert all("on a grader with a GPU only" in test.message for test in groups[name].tests)
    assert any("bfloat16" in test.name and not test.counts for test in groups["numerics"].tests)
    assert groups["numerics"].points == groups["numerics"].max_points


def test_work_that_torch_did_is_told_by_name_and_earns_nothing(grader: Grader) -> None:
    result = grader.of(next(a.path for a in HOSTILE if a.path.stem == "falls_back_to_torch"))
    assert any("aten::" in flag for flag in result.flags)
    assert not any("aten::" in test.message for group in result.groups for test in group.tests)
