"""Three counters, and the table of what may happen."""

from __future__ import annotations

from array import array

import pytest

from reference_impl.sched import Request, State


def test_what_is_left_is_neither_computed_nor_scheduled() -> None:
    request = Request(1, 10, 4)
    request.num_computed, request.num_scheduled = 3, 2
    assert request.num_left == 5
    assert request.num_new == 0


def test_the_last_token_is_never_computed() -> None:
    assert Request(1, 10, 4).final_tokens == 13
    assert Request(1, 10, 1).final_tokens == 10


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"true_new_tokens": 0}, "true_new_tokens"),
        ({"true_new_tokens": 5}, "true_new_tokens"),
        ({"token_ids": array("i", [1])}, "token_ids"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Request(1, **{"prompt_tokens": 3, "max_new_tokens": 4} | arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "possible"),
    [
        (State.WAITING, State.RUNNING, True),
        (State.WAITING, State.SWAPPED, False),
        (State.RUNNING, State.WAITING, True),
        (State.RUNNING, State.SWAPPED, True),
        (State.SWAPPED, State.RUNNING, True),
        (State.SWAPPED, State.WAITING, True),
        (State.FINISHED, State.WAITING, False),
        (State.FINISHED, State.RUNNING, False),
    ],
)
def test_only_what_the_table_has_may_happen(before: State, after: State, possible: bool) -> None:
    request = Request(1, 3, 4)
    request.state = before
    if possible:
        request.become(after)
        assert request.state is after
        return
    with pytest.raises(ValueError, match=f"is {before.value} and cannot become {after.value}"):
        request.become(after)
    assert request.state is before


def test_what_memory_is_told_after_some_tokens_counts_them_as_prompt() -> None:
    request = Request(1, 10, 8, true_new_tokens=5)
    request.num_tokens = 12
    demand = request.demand()
    assert (demand.num_tokens, demand.max_new_tokens, demand.true_new_tokens) == (12, 6, 3)


@pytest.mark.parametrize(
    ("counter", "value"), [("num_computed", 11), ("num_computed", -1), ("num_tokens", 15), ("num_scheduled", 1)]
)
def test_the_invariant_names_the_request(counter: str, value: int) -> None:
    request = Request(7, 10, 4)
    setattr(request, counter, value)
    with pytest.raises(AssertionError, match="I9: request 7"):
        request.check_invariants()
