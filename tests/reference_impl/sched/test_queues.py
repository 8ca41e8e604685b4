"""Whose turn it is, under each queue."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.sched import ByPriority, FairShare, FirstCome, Request, ShortestFirst, WaitingQueue

QUEUES: dict[str, Callable[[], WaitingQueue]] = {
    "first come": FirstCome,
    "priority": lambda: ByPriority(aging_steps=2),
    "shortest": ShortestFirst,
    "fair": FairShare,
}
on_each = pytest.mark.parametrize("make", QUEUES.values(), ids=QUEUES.keys())


def asks(identity: int, prompt: int = 4, priority: int = 0, tenant: str = "") -> Request:
    return Request(identity, prompt, 4, priority=priority, tenant=tenant)


def drained(queue: WaitingQueue) -> list[int]:
    order = []
    while len(queue):
        first = queue.peek()
        order.append(queue.pop().request)
        assert first.request == order[-1]
        queue.check_invariants()
    return order


@on_each
def test_an_empty_queue_says_so(make: Callable[[], WaitingQueue]) -> None:
    queue = make()
    assert len(queue) == 0
    with pytest.raises(IndexError, match="no request waits"):
        queue.peek()
    with pytest.raises(IndexError, match="no request waits"):
        queue.pop()
    with pytest.raises(KeyError, match="request 3"):
        queue.remove(3)


@on_each
def test_requests_that_are_alike_come_out_in_order_of_arrival(make: Callable[[], WaitingQueue]) -> None:
    queue = make()
    for identity in (5, 3, 9, 1):
        queue.push(asks(identity))
    assert drained(queue) == [5, 3, 9, 1]


@on_each
def test_a_request_cannot_wait_twice(make: Callable[[], WaitingQueue]) -> None:
    queue = make()
    request = asks(1)
    queue.push(request)
    with pytest.raises(ValueError, match="request 1 waits already"):
        queue.push(request)
    assert drained(queue) == [1]


@on_each
def test_one_that_comes_back_stands_where_it_stood(make: Callable[[], WaitingQueue]) -> None:
    queue = make()
    for identity in range(4):
        queue.push(asks(identity))
    first, second = queue.pop(), queue.pop()
    queue.push(second)
    queue.push(first)
    assert drained(queue) == [0, 1, 2, 3]


@on_each
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_removal_anywhere_leaves_the_order_of_the_others(make: Callable[[], WaitingQueue], data: st.DataObject) -> None:
    requests = [
        asks(i, data.draw(st.integers(1, 9)), data.draw(st.integers(0, 3)), data.draw(st.sampled_from("ab")))
        for i in range(data.draw(st.integers(1, 20)))
    ]
    gone = data.draw(st.sets(st.sampled_from(range(len(requests)))))
    queue = make()
    for request in requests:
        queue.push(request)
    for identity in gone:
        assert queue.remove(identity).request == identity
        queue.check_invariants()
    order = drained(queue)
    assert sorted(order) == sorted(set(range(len(requests))) - gone)
    if not isinstance(queue, FairShare):
        assert order == sorted(order, key=lambda identity: requests[identity].place or (0, 0))


def test_a_lower_priority_number_goes_first() -> None:
    queue = ByPriority(aging_steps=100)
    for identity, priority in enumerate((2, 0, 1, 0)):
        queue.push(asks(identity, priority=priority))
    assert drained(queue) == [1, 3, 2, 0]


@given(
    priorities=st.lists(st.integers(-3, 3), min_size=2, max_size=40),
    aging_steps=st.integers(1, 9),
    later=st.integers(0, 100),
)
def test_the_fixed_rank_orders_as_aging_does_at_any_later_moment(
    priorities: list[int], aging_steps: int, later: int
) -> None:
    queue = ByPriority(aging_steps)
    for identity, priority in enumerate(priorities):
        queue.push(asks(identity, priority=priority))
    now = len(priorities) + later

    def aged(identity: int) -> int:
        # The priority after one level less for every `aging_steps` arrivals since, times aging_steps to stay exact.
        return priorities[identity] * aging_steps - (now - identity)

    assert drained(queue) == sorted(range(len(priorities)), key=lambda identity: (aged(identity), identity))


def test_nobody_starves_under_priorities_because_waiting_raises_them() -> None:
    # One request of the lowest level among endless ones of the highest, two arrivals for one that is served.
    queue = ByPriority(aging_steps=10)
    queue.push(asks(0, priority=5))
    for served in range(1, 1000):
        queue.push(asks(2 * served, priority=0))
        queue.push(asks(2 * served + 1, priority=0))
        if queue.pop().request == 0:
            # 5 levels are 50 arrivals: the 49 behind it are served before it, and none after them.
            assert served == 50
            return
    pytest.fail("it was never served")


def test_without_aging_enough_it_would_starve() -> None:
    queue = ByPriority(aging_steps=10**9)
    queue.push(asks(0, priority=5))
    for served in range(1, 1000):
        queue.push(asks(2 * served, priority=0))
        queue.push(asks(2 * served + 1, priority=0))
        assert queue.pop().request != 0


def test_the_shortest_prompt_goes_first() -> None:
    queue = ShortestFirst()
    for identity, prompt in enumerate((7, 2, 9, 2)):
        queue.push(asks(identity, prompt))
    assert drained(queue) == [1, 3, 0, 2]


def test_tenants_that_ask_alike_take_turns() -> None:
    queue = FairShare()
    for identity in range(6):
        queue.push(asks(identity, tenant="a"))
    for identity in range(6, 9):
        queue.push(asks(identity, tenant="b"))
    assert drained(queue) == [0, 6, 1, 7, 2, 8, 3, 4, 5]


def test_a_tenant_with_twice_the_weight_gets_twice_the_turns() -> None:
    queue = FairShare({"a": 2.0})
    for identity in range(12):
        queue.push(asks(identity, tenant="a" if identity < 8 else "b"))
    assert sum(identity < 8 for identity in drained(queue)[:6]) == 4


def test_tokens_made_count_and_cost_what_they_are_priced() -> None:
    queue = FairShare(prompt_price=1.0, output_price=3.0)
    request = asks(1, prompt=4, tenant="a")
    queue.push(request)
    queue.pop()
    queue.served([request, request])
    assert queue.counters == {"a": 10.0}


@pytest.mark.parametrize("busy", ["a", ""], ids=["named", "without a name, as a request has none unless given"])
def test_a_tenant_that_was_idle_has_saved_nothing_up(busy: str) -> None:
    # Sheng et al., OSDI 2024: without the lift, the newcomer would be served alone for as long as others were before.
    queue = FairShare()
    for identity in range(100):
        queue.push(asks(identity, tenant=busy))
    for _ in range(50):
        queue.pop()
    for identity in range(100, 110):
        queue.push(asks(identity, tenant="b"))
    order = [queue.pop().tenant for _ in range(10)]
    assert order.count(busy) == order.count("b") == 5


def test_a_tenant_that_comes_back_to_an_empty_queue_starts_at_the_last_one_served() -> None:
    queue = FairShare()
    for identity in range(10):
        queue.push(asks(identity, tenant="a"))
        queue.pop()
    queue.push(asks(10, tenant="b"))
    assert queue.counters["b"] == queue.counters["a"] == 40.0


def test_a_tenant_in_debt_keeps_it_when_it_comes_back() -> None:
    queue = FairShare()
    for identity in range(6):
        queue.push(asks(identity, tenant="b"))
    queue.push(asks(6, prompt=1000, tenant="a"))
    assert [queue.pop().tenant for _ in range(2)] == ["b", "a"]
    queue.push(asks(7, tenant="a"))
    assert queue.counters["a"] == 1000.0
    assert [queue.pop().tenant for _ in range(6)] == ["b"] * 5 + ["a"]


def test_one_that_was_preempted_goes_first_and_is_not_charged_again() -> None:
    queue = FairShare()
    preempted = asks(0, prompt=50, tenant="a")
    queue.push(preempted)
    queue.pop()
    queue.push(asks(1, tenant="b"))
    queue.push(preempted)
    assert queue.pop() is preempted
    assert queue.counters["a"] == 50.0


def test_turns_that_are_over_do_not_pile_up() -> None:
    queue = FairShare()
    queue.push(asks(0, tenant="stays"))
    for identity in range(1, 2000):
        queue.push(asks(identity, tenant="comes and goes"))
        queue.remove(identity)
    assert queue.peek().request == 0
    assert len(queue._turns) < 200


@pytest.mark.parametrize("arguments", [{"weights": {"a": 0.0}}, {"prompt_price": 0.0}, {"output_price": -1.0}])
def test_a_weight_or_price_not_above_zero_is_named(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        FairShare(**arguments)  # type: ignore[arg-type]


def test_aging_in_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="aging_steps must be at least 1"):
        ByPriority(aging_steps=0)


@on_each
def test_the_cost_of_an_operation_hardly_grows_with_those_that_wait(make: Callable[[], WaitingQueue]) -> None:
    def seconds(waiting: int) -> float:
        chance = random.Random(1)
        queue = make()
        for identity in range(waiting):
            queue.push(asks(identity, chance.randint(1, 99), chance.randint(0, 5), chance.choice("abcdefgh")))
        begin = time.perf_counter()
        for identity in range(waiting, waiting + 1000):
            queue.push(asks(identity, chance.randint(1, 99)))
            queue.remove(identity if identity % 2 else identity - waiting)
            queue.peek()
        return time.perf_counter() - begin

    # 64 times as many wait: a scan or a sort would cost about 64 times as much, a heap about twice.
    assert min(seconds(32_000) for _ in range(2)) < 16 * min(seconds(500) for _ in range(3))
