"""Each bug class has a test, each test a mutant of our code, and each mutant is noticed."""

from __future__ import annotations

import sys

import pytest

import reference_impl.memory.block_pool
from reference_impl.memory import BlockPool
from tests.bugs import __main__ as command
from tests.bugs import catalogue, mutants
from tests.bugs.mutants import Mutant

MUTANTS = list(catalogue.mutants())
TESTS = list(catalogue.tests())


def test_every_class_has_a_test_and_a_mutant() -> None:
    classes = set(catalogue.SYMPTOMS)
    assert {mutants.bug_of(test) for test in TESTS} == classes
    assert {mutant.bug for mutant in MUTANTS} == classes


def test_every_test_of_a_class_has_a_mutant() -> None:
    # A test without one has never been seen to fail.
    assert {test.__name__ for test in TESTS} - {mutant.test.__name__ for mutant in MUTANTS} == set()


def test_no_two_mutants_of_a_class_have_one_name() -> None:
    names = [(mutant.bug, mutant.name) for mutant in MUTANTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.bug:02}-{mutant.name}")
def test_the_test_of_the_bug_kills_the_mutant_that_has_it(mutant: Mutant) -> None:
    assert mutants.run(mutant.test, mutant) is not None


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.__name__)
def test_the_same_test_passes_on_our_code_loaded_the_same_way(test: mutants.Test) -> None:
    assert mutants.run(test, None) is None


# The machinery itself, on a bug that nobody had.


def test_bug_99_a_pool_counts_its_free_blocks() -> None:
    # Not a class of the catalogue: a test for the tests below to run.
    assert BlockPool(3).num_free == 3


def changed(old: str, new: str, module: str = "reference_impl.memory.block_pool") -> Mutant:
    return Mutant("changed", test_bug_99_a_pool_counts_its_free_blocks, module, ((old, new),))


def test_a_change_that_nothing_depends_on_survives() -> None:
    mutant = changed("        self.num_blocks = num_blocks\n", "        self.num_blocks = num_blocks + 0\n")
    assert mutants.run(mutant.test, mutant) is None


def test_a_change_that_something_depends_on_is_noticed_with_the_line_that_did() -> None:
    mutant = changed("        self.num_free = num_blocks\n", "        self.num_free = num_blocks - 1\n")
    death = mutants.run(mutant.test, mutant)
    assert death == mutants.Death("AssertionError", "assert BlockPool(3).num_free == 3")


def test_the_real_modules_are_back_afterwards() -> None:
    before = {name: module for name, module in sys.modules.items() if name.startswith("reference_impl")}
    mutant = changed("        self.num_free = num_blocks\n", "        self.num_free = 0\n")
    assert mutants.run(mutant.test, mutant) is not None
    assert {name: module for name, module in sys.modules.items() if name.startswith("reference_impl")} == before
    assert sys.modules["reference_impl.memory.block_pool"].BlockPool is BlockPool
    assert reference_impl.memory.block_pool.BlockPool is BlockPool
    assert not any(name.startswith("mutated_") for name in sys.modules)


@pytest.mark.parametrize(
    ("old", "new", "module", "why"),
    [
        ("no such line", "", "reference_impl.memory.block_pool", "stands 0 times"),
        ("self", "", "reference_impl.memory.block_pool", "times in reference_impl.memory.block_pool, not once"),
        ("class BlockPool:", "class BlockPool(:", "reference_impl.memory.block_pool", "cannot be loaded: SyntaxError"),
        ("self.num_free = num_blocks\n", "self.num_free = gone\n", "reference_impl.memory.block_pool", "NameError"),
        ("", "", "reference_impl.memory.no_such", "there is no module"),
        ("def main(", "def main(", "reference_impl.cli", "does not use reference_impl.cli"),
    ],
)
def test_what_cannot_be_run_is_no_mutant(old: str, new: str, module: str, why: str) -> None:
    mutant = changed(old, new, module)
    with pytest.raises(mutants.NotAMutant, match=why):
        mutants.run(mutant.test, mutant)


def test_a_test_that_never_ends_has_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def test_bug_99_waits() -> None:
        while True:
            pass

    monkeypatch.setattr(mutants, "TIME_LIMIT_S", 0.05)
    death = mutants.outcome(test_bug_99_waits)
    assert death is not None
    assert death.exception == "Endless"


def test_every_parameter_is_tried_and_one_that_fails_is_enough() -> None:
    seen = []

    @pytest.mark.parametrize("left", [1, 2])
    @pytest.mark.parametrize(("middle", "right"), [(3, 4), pytest.param(5, 6, id="odd")])
    def test_bug_99_sums(left: int, middle: int, right: int) -> None:
        seen.append((left, middle, right))
        assert left + middle + right != 13, "unlucky"

    assert mutants.outcome(test_bug_99_sums) == mutants.Death("AssertionError", "unlucky")
    assert sorted(seen) == [(1, 3, 4), (1, 5, 6), (2, 3, 4), (2, 5, 6)]


def test_a_test_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="is not named test_bug_"):
        mutants.bug_of(test_every_class_has_a_test_and_a_mutant)


# The matrix.

KILLED = changed("        self.num_free = num_blocks\n", "        self.num_free = 0\n")
SURVIVES = changed("        self.num_blocks = num_blocks\n", "        self.num_blocks = num_blocks + 0\n")
NO_MUTANT = changed("no such line", "")


def test_bug_99_fails_on_our_code() -> None:
    # Only where the test below loads it: that is what a broken tree looks like.
    if __name__.startswith("mutated_"):
        raise AssertionError("our code is broken")


@pytest.mark.parametrize(
    ("tests", "changes", "code", "said"),
    [
        ([test_bug_99_a_pool_counts_its_free_blocks], [KILLED], 0, ""),
        ([test_bug_99_a_pool_counts_its_free_blocks], [KILLED, SURVIVES], 1, "the mutant survives test_bug_99_a_pool"),
        ([test_bug_99_a_pool_counts_its_free_blocks], [NO_MUTANT, KILLED], 1, "is no mutant: 'no such line' stands 0"),
        ([test_bug_99_a_pool_counts_its_free_blocks], [], 1, "has no mutant: it has never been seen to fail"),
        ([], [], 1, "class 99 has no test: of nobody"),
        (
            [test_bug_99_fails_on_our_code],
            [KILLED],
            1,
            "fails on our code as it is: AssertionError: our code is broken",
        ),
    ],
)
def test_the_matrix_has_a_hole_wherever_something_was_not_shown(
    tests: list[mutants.Test],
    changes: list[Mutant],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(catalogue, "SYMPTOMS", {99: "of nobody"})
    monkeypatch.setattr(catalogue, "tests", lambda: tests)
    monkeypatch.setattr(catalogue, "mutants", lambda: changes)
    assert command.main() == code
    shown = capsys.readouterr()
    assert said in shown.err
    assert ("hole" in shown.err) == bool(code)
    if KILLED in changes:
        assert "AssertionError: assert BlockPool(3).num_free == 3" in shown.out
