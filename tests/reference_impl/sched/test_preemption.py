"""Who loses its memory, how it comes back, and what that costs."""

from __future__ import annotations

import pytest

from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.swap import Recovery
from reference_impl.sched import ContinuousBatching, Limits, Plan, PrefillFirst, Request, State
from reference_impl.sched.preemption import VICTIMS, RecoveryRule, Way
from reference_impl.sched.step import Step
from tests.reference_impl.sched.driving import CountedBlocks, Driver, random_sizes, run


def crowded(recovery: Way | RecoveryRule = "recompute", host: int = 8, victim: str = "last") -> Driver:
    """Three requests in five blocks of four: after some steps they need a sixth."""
    memory = KVManager(5, 4, num_host_blocks=host)
    driver = Driver(ContinuousBatching(memory, Limits(100, 3), recovery=recovery, victim=victim))
    for identity, prompt in ((1, 4), (2, 4), (3, 3)):
        driver.add(Request(identity, prompt, 6), makes=6)
    return driver


def test_recomputed_the_last_one_starts_again_and_all_of_it_counts() -> None:
    driver = crowded()
    victim = driver.requests[3]
    plans = [driver.step() for _ in range(3)]
    assert [plan.preempted for plan in plans] == [(), (), (3,)]
    assert victim.state is State.WAITING
    assert (victim.num_computed, victim.num_lost, victim.num_new) == (0, 4, 2)
    driver.run()
    assert victim.num_preemptions == 1
    assert victim.num_recomputed == 4
    assert driver.scheduler.counters.recomputed_tokens >= 4
    assert driver.ended == {1: 6, 2: 6, 3: 6}


def test_swapped_it_comes_back_with_all_it_had() -> None:
    driver = crowded("swap")
    plan = driver.step()
    while not plan.swapped_out:
        plan = driver.step()
    assert list(plan.swapped_out) == [3]
    assert plan.preempted == ()
    assert driver.scheduler.num_waiting_by_reason() == {"on the host": 1}
    while not plan.swapped_in:
        plan = driver.step()
    assert plan.computed[3] == 4
    driver.run()
    assert driver.scheduler.counters.recomputed_tokens == 0
    assert driver.ended == {1: 6, 2: 6, 3: 6}


def test_a_full_host_means_recomputation() -> None:
    driver = crowded("swap", host=0)
    driver.run()
    assert driver.scheduler.counters.swaps_out == 0
    assert driver.scheduler.counters.recomputed_tokens > 0


def test_a_rule_decides_for_each_victim() -> None:
    asked = []

    def rule(victim: Request) -> Way:
        asked.append(victim.request)
        return Recovery.SWAP if len(asked) == 1 else "recompute"

    driver = crowded(rule)
    driver.run()
    assert driver.scheduler.counters.swaps_out == 1
    assert driver.scheduler.counters.preemptions == len(asked) > 1


@pytest.mark.parametrize(
    ("victim", "expected"),
    [("last", 4), ("fewest_tokens", 3), ("most_freed", 2), (lambda running: running[0], 2)],
)
def test_the_victim_is_the_one_that_the_choice_names(victim: str, expected: int) -> None:
    # Request 1 runs first and is spared. Of the others, 2 holds the most and 3 the least.
    memory = KVManager(8, 4, full_fit=False)
    driver = Driver(ContinuousBatching(memory, Limits(100, 4), victim=victim))
    for identity, prompt in ((1, 4), (2, 11), (3, 2), (4, 7)):
        driver.add(Request(identity, prompt, 9), makes=9)
    plan = driver.step()
    while not plan.preempted:
        plan = driver.step()
    assert plan.preempted[0] == expected
    driver.run()


def late_to_the_host(victim: Request) -> Recovery:
    return Recovery.SWAP if victim.num_new > 3 else Recovery.RECOMPUTE


@pytest.mark.parametrize("scheduler", [ContinuousBatching, PrefillFirst])
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("recovery", ["recompute", "swap", late_to_the_host])
def test_preempted_or_not_every_request_makes_the_same_number_of_tokens(
    scheduler: type[ContinuousBatching], victim: str, recovery: Way | RecoveryRule
) -> None:
    sizes = random_sizes(11, 80, 20, 15)
    limits = Limits(40, 16)
    roomy = run(scheduler(KVManager(1000, 4), limits), sizes)
    tight = scheduler(KVManager(20, 4, num_host_blocks=20), limits, recovery=recovery, victim=victim)
    crowded = run(tight, sizes)
    assert roomy.scheduler.counters.preemptions == 0
    assert crowded.scheduler.counters.preemptions > 10
    assert roomy.ended == crowded.ended == dict(enumerate(output for _, output in sizes))


class HostFirst(ContinuousBatching):
    """Brings requests back before anything else, so that others may be preempted after that in one step."""

    def schedule(self) -> Plan:
        step = self._open_step()
        self._bring_back(step)
        self._decode(step)
        self._prefill(step)
        if not self._swapped and not step.preempted_any:
            self._admit(step)
        return self._close_step(step)

    def _resume(self, step: Step, request: Request) -> None:
        """It is scheduled with all the others, behind this."""


@pytest.mark.parametrize("victim", ["last", "most_freed"])
def test_nobody_goes_to_the_host_in_a_step_that_brings_one_back(victim: str) -> None:
    # A runner copies to the host first: a place there that was left in this very step is not to be written yet.
    memory = KVManager(16, 2, num_host_blocks=16)
    scheduler = HostFirst(memory, Limits(60, 6), recovery="swap", victim=victim)
    requests = [Request(identity, *sizes) for identity, sizes in enumerate(random_sizes(3, 80, 8, 16))]
    for request in requests:
        scheduler.add(request)
    while (plan := scheduler.schedule()).scheduled:
        assert not (plan.swapped_in and plan.swapped_out)
        computed = {identity: plan.computed[identity] + tokens for identity, tokens in plan.scheduled.items()}
        scheduler.finish_step([i for i, tokens in computed.items() if tokens == requests[i].final_tokens])
        scheduler.check_invariants()
    assert scheduler.counters.finished == 80
    assert scheduler.counters.swaps_in > 0
    assert scheduler.counters.recomputed_tokens > 0


def test_swapping_needs_a_memory_that_can() -> None:
    with pytest.raises(ValueError, match="CountedBlocks cannot swap"):
        ContinuousBatching(CountedBlocks(4, 4), recovery="swap")  # type: ignore[arg-type]


@pytest.mark.parametrize("how", [{"recovery": "hope"}, {"victim": "me"}])
def test_a_choice_that_is_not_there_is_named(how: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(how))} must be .*{next(iter(how.values()))}"):
        ContinuousBatching(KVManager(4, 4), **how)  # type: ignore[arg-type]


def test_a_share_kept_free_at_admission_makes_preemptions_rarer() -> None:
    sizes = random_sizes(5, 150, 20, 60)
    preemptions = [
        run(ContinuousBatching(KVManager(60, 4, watermark=share), Limits(64, 32)), sizes).scheduler.counters.preemptions
        for share in (0.0, 0.1, 0.3)
    ]
    assert preemptions[0] > preemptions[1] > preemptions[2]
