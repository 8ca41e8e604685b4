"""What a worker says was raised, as the judge's tests meet it."""

from __future__ import annotations

import pytest

from autograder.judge.remote import StudentRaised, rebuilt
from labkit.contracts import OutOfBlocks


def raised(*bases: str) -> Exception:
    return rebuilt({"name": bases[0], "bases": list(bases), "message": "something hidden"})


@pytest.mark.parametrize(
    ("bases", "kinds"),
    [
        pytest.param(("KeyError", "LookupError", "Exception"), {KeyError}, id="a public class"),
        pytest.param(("Mine", "OutOfBlocks", "Exception"), {OutOfBlocks}, id="a class of the student's"),
        pytest.param(("Mine", "ValueError", "OutOfBlocks", "Exception"), {ValueError, OutOfBlocks}, id="of two"),
        pytest.param(
            ("Mine", "OSError", "KeyError", "LookupError", "Exception"), {OSError, KeyError}, id="of two kinds"
        ),
        pytest.param(("Mine", "BaseException"), {Exception}, id="of none"),
    ],
)
def test_it_is_of_every_public_class_that_the_students_was_of(
    bases: tuple[str, ...], kinds: set[type[Exception]]
) -> None:
    error = raised(*bases)
    assert all(isinstance(error, kind) for kind in kinds | {StudentRaised})
    assert not isinstance(error, IndexError)
    assert "hidden" not in f"{error!r} {error}"


def test_bases_that_no_class_can_have_together_are_cut_to_the_first() -> None:
    error = raised("Lie", "SyntaxError", "OSError", "ImportError")
    assert isinstance(error, SyntaxError)
    assert not isinstance(error, OSError)


@pytest.mark.parametrize("told", [None, [], {"bases": None}, {"bases": [3, None, ["ValueError"]]}, {}])
def test_what_is_no_error_at_all_is_an_exception(told: object) -> None:
    assert isinstance(rebuilt(told), StudentRaised)
