"""Whole schedulers over a long time: who starves, who gets what share."""

from __future__ import annotations

import random

import pytest

from reference_impl.memory.kv_manager import KVManager
from reference_impl.sched import ByPriority, ContinuousBatching, FairShare, FirstCome, Limits, Request, WaitingQueue
from tests.reference_impl.sched.driving import Driver


def served_under_overload(queue: WaitingQueue, weights: dict[str, int], steps: int = 1500) -> dict[str, list[int]]:
    """Tenant -> tokens it was served (prompt and output) up to each step; each always has requests waiting.

    Tenant "a" keeps eighty requests waiting and "b" thirteen, one more than could start in a step; those of "a" are
    longer.
    """
    chance = random.Random(1)
    driver = Driver(ContinuousBatching(KVManager(80, 4), Limits(64, 12), queue), check_every=50)
    waiting = dict.fromkeys(weights, 0)
    tenant_of: dict[int, str] = {}
    served = dict.fromkeys(weights, 0)
    history: dict[str, list[int]] = {tenant: [] for tenant in weights}
    for _ in range(steps):
        for tenant, (batch, longest) in zip(weights, ((80, 30), (13, 8)), strict=True):
            while waiting[tenant] < batch:
                identity = len(tenant_of)
                tenant_of[identity] = tenant
                output = chance.randint(1, longest)
                driver.add(Request(identity, chance.randint(1, longest), output, tenant=tenant), output)
                waiting[tenant] += 1
        prompts = {identity: request.prompt_tokens for identity, request in driver.requests.items()}
        first = {i for i, request in driver.requests.items() if request.num_preemptions == 0}
        made = dict(driver.made)
        plan = driver.step()
        for identity in plan.admitted:
            if identity in first:
                waiting[tenant_of[identity]] -= 1
                served[tenant_of[identity]] += prompts[identity]
        for identity in plan.scheduled:
            served[tenant_of[identity]] += driver.made[identity] - made[identity]
        for tenant, tokens in served.items():
            history[tenant].append(tokens)
    return history


# What two backlogged tenants may differ by: the work of a full batch and one prompt (Sheng et al., theorem 4.4). Twelve
# run at once, of at most 60 tokens.
BOUND = 2 * 12 * 60


def test_two_tenants_of_one_weight_are_served_alike_however_much_each_asks() -> None:
    history = served_under_overload(FairShare(output_price=1.0), {"a": 1, "b": 1})
    apart = [abs(a - b) for a, b in zip(history["a"], history["b"], strict=True)]
    assert history["a"][-1] > 5 * BOUND
    assert max(apart) <= BOUND


def test_a_weight_of_three_gives_three_times_as_much() -> None:
    history = served_under_overload(FairShare({"a": 3.0}, output_price=1.0), {"a": 3, "b": 1})
    apart = [abs(a / 3 - b) for a, b in zip(history["a"], history["b"], strict=True)]
    assert max(apart) <= BOUND


def test_first_come_serves_whoever_asks_most() -> None:
    # The bound above is no matter of course: without the counters the share follows the demand.
    history = served_under_overload(FirstCome(), {"a": 1, "b": 1})
    assert history["a"][-1] - history["b"][-1] > 5 * BOUND


def steps_until_the_low_one_starts(queue: WaitingQueue, steps: int) -> int | None:
    """A request of low priority among endless ones of high priority, one more of which comes at every step."""
    driver = Driver(ContinuousBatching(KVManager(8, 4), Limits(32, 2), queue), check_every=100)
    driver.add(Request(0, 4, 4, priority=3), makes=4)
    for identity in range(1, 9):
        driver.add(Request(identity, 4, 4, priority=0), makes=4)
    for number in range(steps):
        driver.add(Request(number + 9, 4, 4, priority=0), makes=4)
        if 0 in driver.step().admitted:
            return number
    return None


def test_a_low_priority_is_served_after_a_wait_that_its_aging_bounds() -> None:
    # Three levels of ten arrivals each go before it; a step serves about half a request.
    started = steps_until_the_low_one_starts(ByPriority(aging_steps=10), 300)
    assert started is not None
    assert started <= 2 * 30 + 10


def test_with_hardly_any_aging_it_starves() -> None:
    assert steps_until_the_low_one_starts(ByPriority(aging_steps=10**6), 300) is None


@pytest.mark.parametrize("aging_steps", [1, 10, 50])
def test_the_wait_grows_with_the_aging_steps(aging_steps: int) -> None:
    started = steps_until_the_low_one_starts(ByPriority(aging_steps), 1000)
    assert started is not None
    assert started <= 2 * 3 * aging_steps + 10


def test_a_tenant_is_charged_for_the_tokens_that_its_requests_make() -> None:
    queue = FairShare(prompt_price=1.0, output_price=3.0)
    driver = Driver(ContinuousBatching(KVManager(80, 4), Limits(64, 12), queue))
    for identity, tenant in ((1, "a"), (2, "b")):
        driver.add(Request(identity, 5, 9, tenant=tenant), makes=2 * identity)
    driver.run()
    assert queue.counters == {"a": 5.0 + 2 * 3.0, "b": 5.0 + 4 * 3.0}
