"""Public checks: what a student may know about their work before it is graded.

Owns: the named properties of each lab, group by group, and how they are printed. Knows nothing of hidden tests, points
or the reference: a property here holds for every correct implementation and is told in words, with public inputs only.
`story.py` records the calls a counterexample is told with; one module per lab holds its properties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from labkit.checks.story import Broken, CheckFailed, Group, Make, NotWritten, Property, PropertyResult, sentence_of

__all__ = ["CheckFailed", "PropertyResult", "check", "groups", "run"]

_MODULES = {
    "lab3_block_allocator": "labkit.checks.lab3_block_allocator",
    "lab4_paged_attention": "labkit.checks.lab4_paged_attention",
}
"""Lab -> the module with its GROUPS; imported on first use, so that `import labkit` stays light."""

_NOT_WRITTEN = "not written yet: "


def groups(lab: str) -> dict[str, Group]:
    """The property groups of `lab` by id, in the order of its notebook. ValueError names an unknown lab."""
    if lab not in _MODULES:
        raise ValueError(f"no lab {lab!r}; labs with checks: {', '.join(_MODULES)}")
    found: dict[str, Group] = import_module(_MODULES[lab]).GROUPS
    return found


def run(lab: str, group: str, make: Make) -> list[PropertyResult]:
    """Every property of `group`, tried on objects that `make` builds; one result each, none left out after a failure.

    `make` builds the object under test, which may be remote. Of lab 3 it takes the constructor's arguments: integers
    (NumPy's in one property); answers are plain values, and a refusal is an instance of the contract's exception. Of
    lab 4 it takes none: the object has the functions as methods, which write into the tensors that they are given; a
    remote one has a true attribute `elsewhere`, so that nobody takes what torch does here for its work.
    Deterministic: seeds are fixed. Raises: ValueError on an unknown lab or group. Cost: seconds in process.
    """
    return [_try(prop, make) for prop in _group(lab, group).properties]


def check(lab: str, group: str, *implementation: Callable[..., Any]) -> None:
    """Print each named property of `group` as passed or failed, with a counterexample in words.

    `implementation` is the class itself, or the functions that the group needs, known by their own names. Raises:
    CheckFailed if a property failed, ValueError on an unknown lab or group, TypeError on anything but what it needs.
    """
    found = _group(lab, group)
    results = run(lab, group, _subject(group, found, implementation))
    print(f"{group}: {found.title}" + (f" ({found.where()})" if found.where else ""))
    for result in results:
        print(f"  {_mark(result)}  {result.sentence}")
        if _mark(result) == "FAILED":
            print(f"          {result.counterexample}")
    failed = sum(not result.passed for result in results)
    if not failed:
        print(f"All {len(results)} properties hold." if len(results) > 1 else "The one property holds.")
        return
    to_write = list(dict.fromkeys(result.counterexample for result in results if _mark(result) == "to do "))
    raise CheckFailed("; ".join((f"{group}: {failed} of {len(results)} properties do not hold yet", *to_write)))


def _subject(name: str, group: Group, given: Sequence[Callable[..., Any]]) -> Make:
    """What `run` makes objects with, out of what the student gave."""
    if not group.needs:
        if len(given) != 1 or not callable(given[0]):
            got = ", ".join(type(thing).__name__ for thing in given) or "nothing"
            raise TypeError(f"implementation must be the class itself, got {got}")
        return given[0]
    functions = {str(getattr(thing, "__name__", "")): thing for thing in given if callable(thing)}
    if not set(group.needs) <= functions.keys():
        got = ", ".join(getattr(thing, "__name__", type(thing).__name__) for thing in given) or "nothing"
        raise TypeError(f"{name} checks {' and '.join(group.needs)}: give it the functions of these names, got {got}")
    return lambda: SimpleNamespace(**functions)


def _mark(result: PropertyResult) -> str:
    if result.passed:
        return "passed"
    return "to do " if result.counterexample.startswith(_NOT_WRITTEN) else "FAILED"


def _group(lab: str, group: str) -> Group:
    known = groups(lab)
    if group not in known:
        raise ValueError(f"no group {group!r} in {lab}; its groups: {', '.join(known)}")
    return known[group]


def _try(prop: Property, make: Make) -> PropertyResult:
    counterexample = ""
    try:
        prop(make)
    except NotWritten as missing:
        counterexample = f"{_NOT_WRITTEN}{missing}"
    except Broken as broken:
        counterexample = str(broken)
    return PropertyResult(prop.__name__, sentence_of(prop), not counterexample, counterexample)
