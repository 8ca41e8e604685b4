"""The memory table in kind: by hand where it can be followed, in order on recorded or sampled lengths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.workloads import workload
from reference_impl.memory.accounting import Account
from reference_impl.memory.contiguous import kv_bytes_per_token
from reference_impl.memory.occupancy import PUBLISHED_HELD, memory_table, occupancy
from reference_impl.memory.policies import POLICIES, Sizes

CAPACITY = 12 * 2**30 // kv_bytes_per_token(num_layers=40, num_kv_heads=40, head_dim=128, dtype_bytes=2)
LONGEST = 2048


def queue_of(name: str, count: int) -> list[tuple[int, int]]:
    """The first `count` requests of the workload that a model of 2,048 positions can serve."""
    lengths = workload(name)
    pairs = zip(lengths.prompt_tokens.tolist(), lengths.output_tokens.tolist(), strict=True)
    return [(prompt, output) for prompt, output in pairs if prompt + output <= LONGEST and output >= 1][:count]


def test_two_at_a_time_followed_by_hand() -> None:
    # Ranges of 4 in a memory of 9. Requests 0 and 1 run while 2 waits; then 1 and 2; then the queue is empty.
    row = occupancy("reserve_max", Sizes(9, 4, placement="first"), [(1, 1), (2, 2), (3, 1)])
    first = Account(held=1 + 2, reserved=1 + 2, internal=2, external=1)
    assert (row.total, row.steps, row.mean_running) == (first, 1, 2)
    assert (row.held, row.served, row.preemptions, row.turned_away) == (3 / 9, 3, 0, 0)


def test_a_token_without_room_preempts_the_request_admitted_last() -> None:
    # Five blocks of 1: both prompts fit, and after a token each the memory is full. The next token preempts request 1,
    # which waits with its 3 tokens until request 0 is done; request 2 waits all the time.
    row = occupancy("paged", Sizes(5, 5, 1), [(1, 3), (2, 2), (3, 1)])
    assert row.preemptions == 1
    assert row.total == Account(held=3 + 5 + 3 + 3, free=2 + 0 + 2 + 2)
    assert (row.steps, row.served) == (4, 3)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(POLICIES)),
    requests=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=40, max_size=60),
    placement=st.sampled_from(["first", "best", "buddy"]),
)
def test_every_request_is_served_and_every_slot_counted(
    name: str, requests: list[tuple[int, int]], placement: str
) -> None:
    row = occupancy(name, Sizes(32, 24, 4, placement), requests)  # type: ignore[arg-type]
    assert row.served + row.turned_away == len(requests)
    assert row.turned_away == 0
    assert row.total.capacity == 32 * row.steps
    assert row.total.held >= row.request_steps
    assert (row.copied_tokens > 0) <= (name == "grow")


@pytest.mark.parametrize("name", ["sharegpt_8k", "azure_conv"])
def test_the_policies_stand_in_the_published_order_and_paging_holds_more_than_nine_tenths(name: str) -> None:
    rows = memory_table(Sizes(CAPACITY, LONGEST), queue_of(name, 300), warm_up=200)
    held = {row.policy: row.held for row in rows}
    assert list(held) == list(PUBLISHED_HELD)
    assert held["reserve_max"] < held["pow2"] < held["oracle"] < 0.65 < 0.9 < held["paged"]
    assert all(row.total.capacity == CAPACITY * row.steps for row in rows)


def test_the_maximum_reserved_admits_seven_as_in_the_paper_and_leaves_what_is_too_short_for_an_eighth() -> None:
    row = occupancy("reserve_max", Sizes(CAPACITY, LONGEST), queue_of("sharegpt_8k", 100))
    assert CAPACITY == 15_728
    assert row.mean_running == 7
    assert row.total.shares()["external"] == pytest.approx((CAPACITY - 7 * LONGEST) / CAPACITY)


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([(1, 1), (0, 5)], "request 1: 0 prompt and 5 output tokens; needs 1 of each, 8 in all"),
        ([(1, 0)], "request 0: 1 prompt and 0 output"),
        ([(5, 4)], "request 0: 5 prompt and 4 output"),
        ([(1, 1)], "the queue of 1 requests was empty after 0 steps, nothing was measured"),
        ([], "the queue of 0 requests"),
    ],
)
def test_requests_that_cannot_be_played_are_named(requests: list[tuple[int, int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        occupancy("paged", Sizes(64, 8, 4), requests)


def test_an_unknown_policy_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no policy 'pages'; there are padded, reserve_max, pow2, oracle, grow, paged"):
        occupancy("pages", Sizes(64, 8), [(1, 1)])


def test_a_request_too_long_for_the_memory_is_turned_away_and_holds_nobody_up() -> None:
    row = occupancy("oracle", Sizes(8, 20, placement="first"), [(9, 2), (4, 2), (4, 2), (1, 1)])
    assert (row.turned_away, row.served) == (1, 3)
