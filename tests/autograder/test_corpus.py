"""The corpus of lab 3 through the real sandbox and judge.

Honest designs get everything, misconceptions are killed by the test that names them, attacks gain nothing and touch
nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from autograder.course import Course
from autograder.judge.verdicts import SubmissionResult, Verdict
from autograder.runners.local import grade_files
from autograder.sandbox import tiers
from tests import corpus
from tests.autograder import processes

ROOT = Path(__file__).parents[2]
LAB = "lab3_block_allocator"
CORRECT, WRONG, HOSTILE = corpus.files(LAB, "correct"), corpus.wrong(LAB), corpus.hostile(LAB)
LONGEST_S = 180.0
"""What a worker of somebody who tests at the same time may take."""
# The control beside attacks that have no honest part: the same answers without any attack must earn nothing either.
CONTROL = """
class BlockAllocator:
    num_free_blocks = 1

    def __init__(self, num_blocks, block_size):
        pass

    def allocate(self, seq, num_tokens):
        return None

    def append(self, seq, num_tokens=1):
        return []

    def fork(self, parent, child):
        return None

    def free(self, seq):
        return None

    def block_table(self, seq):
        return [0]

    def num_tokens(self, seq):
        return 1

    def slot_mapping(self, seq, start, stop):
        return []
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(tiers.works(tier) for tier in ("bubblewrap", "unshare")), reason="no sandbox tier works on this machine"
    ),
]


@dataclass(frozen=True)
class Graded:
    results: dict[Path, SubmissionResult]
    control: SubmissionResult
    before: dict[str, str]
    after: dict[str, str]


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Graded:
    """Every submission, graded once with the course's own suite, and the course's files before and after."""
    control = tmp_path_factory.mktemp("control") / "constants.py"
    control.write_text(CONTROL)
    paths = [*CORRECT, *(w.path for w in WRONG), *(h.path for h in HOSTILE), control]
    before = files_of_the_course()
    results = grade_files(Course.open(ROOT), LAB, paths)
    found = dict(zip(paths, results, strict=True))
    return Graded(found, found.pop(control), before, files_of_the_course())


def files_of_the_course() -> dict[str, str]:
    """Every tracked or new file of the checkout with its hash; generated state aside."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / line for line in listed.stdout.splitlines()]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(CORRECT) >= 5
    assert len(WRONG) >= 25
    assert len(HOSTILE) >= 12


@pytest.mark.parametrize("path", CORRECT, ids=lambda p: p.stem)
def test_an_honest_design_gets_every_point(graded: Graded, path: Path) -> None:
    result = graded.results[path]
    failed = [(t.name, t.verdict.value) for g in result.groups for t in g.tests if t.verdict is not Verdict.PASS]
    assert failed == []
    assert (result.status, result.score) == ("graded", 100.0)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda w: w.path.stem)
def test_a_misconception_is_killed_by_the_test_that_names_it(graded: Graded, wrong: corpus.Wrong) -> None:
    result = graded.results[wrong.path]
    assert result.status == "graded"
    assert result.score < 100.0
    verdicts = {test.name: test.verdict for group in result.groups for test in group.tests}
    assert [name for _, name in wrong.killed_by if verdicts[name] is Verdict.PASS] == []


def test_a_class_of_constants_earns_nothing(graded: Graded) -> None:
    assert (graded.control.status, graded.control.score) == ("graded", 0.0)


@pytest.mark.parametrize("attack", HOSTILE, ids=lambda h: h.path.stem)
def test_an_attack_earns_no_more_than_its_honest_part(graded: Graded, attack: corpus.Hostile) -> None:
    result = graded.results[attack.path]
    assert result.status == "graded", result.flags
    if not attack.honest_groups:
        assert result.score == 0.0
    for group in result.groups:
        if group.id not in attack.honest_groups:
            assert group.points < group.max_points, f"{group.id} is paid in full"


def test_attacks_change_no_file_of_the_course(graded: Graded) -> None:
    assert graded.before == graded.after


def test_attacks_leave_no_process_behind(graded: Graded) -> None:
    assert graded.results
    workers = processes.with_command(b"/course/worker/shim.py")
    assert processes.left_after(LONGEST_S, workers) == set()


def test_what_attacks_smuggle_reaches_no_feedback(graded: Graded) -> None:
    result = next(r for p, r in graded.results.items() if p.stem == "smuggles_inputs_out")
    assert "SMUGGLED" not in str([group.tests for group in result.groups])


def test_no_attack_holds_up_the_queue(graded: Graded) -> None:
    from autograder.sandbox.limits import Limits

    slowest = max(graded.results.values(), key=lambda result: result.seconds)
    # The budget is looked at between calls, so the last call may run to its own deadline, and a public check after it.
    assert slowest.seconds <= Limits().total_s + 3 * Limits().call_s, slowest.submission
