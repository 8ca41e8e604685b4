"""`python -m tests.bugs` (`make mutants`): which bug each test knows, and what it did to our code that has it.

Exits with 1 if a class has no test, a test no mutant, a test fails on our code as it is, or a mutant survives.
"""

from __future__ import annotations

import sys

from tests.bugs import catalogue, mutants
from tests.bugs.mutants import Mutant, NotAMutant

WIDTHS = (2, 34, 60, 36, 80)
HEADS = ("", "class", "test", "mutant", "killed by")


def main() -> int:
    """Print the matrix; 1 if it has a hole, else 0."""
    tests, changes = list(catalogue.tests()), list(catalogue.mutants())
    holes = [
        *_missing("test", {mutants.bug_of(test) for test in tests}),
        *_missing("mutant", {mutant.bug for mutant in changes}),
    ]
    for test in tests:
        if (death := mutants.run(test, None)) is not None:
            holes.append(f"{test.__name__} fails on our code as it is: {death}")
        if all(mutant.test is not test for mutant in changes):
            holes.append(f"{test.__name__} has no mutant: it has never been seen to fail")
    _print(*HEADS)
    for mutant in sorted(changes, key=lambda mutant: (mutant.bug, mutant.test.__name__)):
        killed = _killed(mutant)
        if killed is None:
            holes.append(f"{mutant.bug:02} {mutant.name}: the mutant survives {mutant.test.__name__}")
        name = mutant.test.__name__.removeprefix(f"test_bug_{mutant.bug:02}_").replace("_", " ")
        _print(f"{mutant.bug:02}", catalogue.SYMPTOMS.get(mutant.bug, "not a class"), name, mutant.name, killed or "-")
    print(f"\n{len(changes)} mutants of {len(tests)} tests of {len(catalogue.SYMPTOMS)} classes, {len(holes)} holes")
    for hole in holes:
        print(f"hole: {hole}", file=sys.stderr)
    return 1 if holes else 0


def _missing(what: str, have: set[int]) -> list[str]:
    return [
        f"class {number:02} has no {what}: {catalogue.SYMPTOMS[number]}" for number in set(catalogue.SYMPTOMS) - have
    ]


def _killed(mutant: Mutant) -> str | None:
    try:
        death = mutants.run(mutant.test, mutant)
    except NotAMutant as error:
        print(f"{mutant.bug:02} {mutant.name} is no mutant: {error}", file=sys.stderr)
        return None
    return None if death is None else str(death)


def _print(*cells: str) -> None:
    short = (
        cell if len(cell) <= width else f"{cell[: width - 3]}..." for cell, width in zip(cells, WIDTHS, strict=True)
    )
    print("  ".join(f"{cell:{width}}" for cell, width in zip(short, WIDTHS, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
