"""Bugs that real schedulers had, on ours: what they did with aborts, full memory, returning requests and bad ones.

The threads named are where engines met them; where our design has no such place, the comment says what stands for it.
See `tests/bugs/mutants.py` for what becomes of MUTANTS. The file is loaded anew for each of them, so it imports nothing
that would bring in the reference on another way.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping

import pytest

from reference_impl.memory.kv_manager import KVManager
from reference_impl.sched import ContinuousBatching, FairShare, FirstCome, Limits, Plan, PrefillFirst, Request, State
from tests.bugs.mutants import Mutant

Live = dict[int, Request]


def arrive(scheduler: ContinuousBatching, sizes: Mapping[int, tuple[int, int]]) -> Live:
    """Add a request for each id -> (prompt, tokens to make)."""
    requests = {identity: Request(identity, *size) for identity, size in sizes.items()}
    for request in requests.values():
        assert scheduler.add(request) is None
    return requests


def step(scheduler: ContinuousBatching, requests: Live) -> Plan:
    """One step, in which those that have made all they may end. Checks what every plan must obey."""
    plan = scheduler.schedule()
    assert sum(plan.scheduled.values()) <= scheduler.limits.budget
    finished = set()
    for identity, tokens in plan.scheduled.items():
        request = requests[identity]
        assert request.state is State.RUNNING, f"request {identity} is scheduled and is {request.state.value}"
        assert request.num_scheduled == tokens
        if request.num_left == 0 and request.num_new + 1 == request.max_new_tokens:
            finished.add(identity)
    scheduler.finish_step(finished)
    scheduler.check_invariants()
    return plan


def serve(scheduler: ContinuousBatching, requests: Live, most_steps: int = 1000) -> list[Plan]:
    """All steps until every request has ended."""
    plans = []
    while any(request.state is not State.FINISHED for request in requests.values()):
        plans.append(step(scheduler, requests))
        assert len(plans) <= most_steps, f"{most_steps} steps, and not all have ended"
    return plans


def until(scheduler: ContinuousBatching, requests: Live, seen: Callable[[Plan], bool]) -> Plan:
    """Steps up to the first plan in which that is seen."""
    for _ in range(100):
        if seen(plan := step(scheduler, requests)):
            return plan
    raise AssertionError("it was never seen")


def crowded(recovery: str = "recompute", **how: object) -> tuple[ContinuousBatching, Live]:
    """Three requests run in five blocks of four: two tokens from now, two of them want a block and one is free."""
    scheduler = ContinuousBatching(
        KVManager(5, 4, full_fit=False, num_host_blocks=8),
        Limits(100, 3),
        recovery=recovery,  # type: ignore[arg-type]
        **how,  # type: ignore[arg-type]
    )
    requests = arrive(scheduler, {1: (4, 6), 2: (4, 6), 3: (3, 6)})
    step(scheduler, requests)
    return scheduler, requests


# 20 ----------------------------------------------------------------------------------------------------------------


def test_bug_20_an_abort_frees_no_block_that_the_step_under_way_still_writes() -> None:
    # mini-sglang #111, SGLang #18803: the row was freed at the abort, then again when the step's results came.
    memory = KVManager(4, 4)
    scheduler = ContinuousBatching(memory, Limits(100, 4))
    arrive(scheduler, {1: (8, 4), 2: (4, 4)})
    scheduler.schedule()
    scheduler.abort(1)
    assert memory.num_free_blocks == 1
    scheduler.finish_step()
    assert memory.num_free_blocks == 3
    scheduler.check_invariants()


PHASES: dict[str, Callable[[ContinuousBatching], None]] = {
    "waiting": lambda scheduler: None,
    "prefill under way": lambda scheduler: scheduler.schedule() and None,
    "between two steps": lambda scheduler: (scheduler.schedule(), scheduler.finish_step(), None)[-1],
    "decode under way": lambda scheduler: (scheduler.schedule(), scheduler.finish_step(), scheduler.schedule(), None)[
        -1
    ],
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("ended_as_well", [False, True])
def test_bug_20_an_abort_at_any_phase_ends_the_request_once(phase: str, ended_as_well: bool) -> None:
    # SGLang-omni #2077: the end of the answer and the abort met, and both freed.
    memory = KVManager(8, 4)
    scheduler = ContinuousBatching(memory, Limits(100, 4))
    requests = arrive(scheduler, {1: (6, 9), 2: (3, 9)})
    PHASES[phase](scheduler)
    scheduler.abort(1)
    with pytest.raises(KeyError):
        scheduler.abort(1)
    if phase.endswith("under way"):
        scheduler.finish_step({1} if ended_as_well else set())
    scheduler.check_invariants()
    assert requests[1].state is State.FINISHED
    assert memory.num_free_blocks >= 7
    del requests[1]
    serve(scheduler, requests)
    assert memory.num_free_blocks == 8
    assert scheduler.counters.finished == scheduler.counters.aborted == 1


def test_bug_20_an_abort_on_the_host_frees_the_place_there() -> None:
    scheduler, requests = crowded("swap")
    plan = until(scheduler, requests, lambda plan: bool(plan.swapped_out))
    (away,) = plan.swapped_out
    scheduler.abort(away)
    scheduler.check_invariants()
    del requests[away]
    serve(scheduler, requests)
    assert isinstance(scheduler.memory, KVManager)
    assert scheduler.memory.num_free_blocks == 5


# 21 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "makes"), [(21, 1), (17, 5), (1, 21), (1000, 1)])
def test_bug_21_a_request_that_can_never_fit_is_refused_at_the_door(prompt: int, makes: int) -> None:
    # inference-sim #373, vLLM #39734 and #56028: it was preempted and queued again for ever.
    scheduler = ContinuousBatching(KVManager(5, 4), Limits(8, 4))
    refusal = scheduler.add(Request(1, prompt, makes))
    assert refusal is not None
    assert refusal.reason.is_final
    assert str(prompt + makes - 1) in str(refusal)
    serve(scheduler, arrive(scheduler, {2: (20, 1), 3: (16, 5)}))


def test_bug_21_a_whole_prompt_that_no_step_could_compute_after_a_preemption_is_refused() -> None:
    # The same deadlock by the budget: what was made has to be computed again in one step with the prompt.
    scheduler = ContinuousBatching(KVManager(6, 4, full_fit=False), Limits(11, 4), chunked=False)
    refusal = scheduler.add(Request(1, 9, 9))
    assert refusal is not None
    assert refusal.reason.is_final
    serve(scheduler, arrive(scheduler, {2: (4, 8), 3: (4, 8), 4: (4, 8)}))
    assert scheduler.counters.preemptions > 0


# 22 ----------------------------------------------------------------------------------------------------------------


def first_is_victim(running: list[Request]) -> Request:
    """A choice that falls on the oldest, who may have been scheduled in this step already."""
    return running[0]


@pytest.mark.parametrize("victim", ["last", "fewest_tokens", "most_freed", first_is_victim])
def test_bug_22_the_first_that_runs_keeps_what_it_computed_and_nobody_loses_what_it_made(victim: str) -> None:
    # inference-sim #297, #1087: a preempted request lost all progress, so two took each other's blocks for ever.
    memory = KVManager(12, 2, full_fit=False)
    scheduler = ContinuousBatching(memory, Limits(8, 8), victim=victim)
    requests = arrive(scheduler, {identity: (1 + identity % 7, 3 + identity % 11) for identity in range(40)})
    made: dict[int, int] = {}
    for _ in range(400):
        running = [identity for identity, request in requests.items() if request.state is State.RUNNING]
        plan = step(scheduler, requests)
        assert len(running) < 2 or running[0] not in plan.preempted
        for identity, request in requests.items():
            assert request.num_new >= made.get(identity, 0)
            made[identity] = request.num_new
    assert scheduler.counters.preemptions > 10
    assert scheduler.counters.finished == 40


@pytest.mark.parametrize("recovery", ["recompute", "swap"])
def test_bug_22_between_two_preemptions_of_a_request_another_one_ends(recovery: str) -> None:
    # vLLM #37307 saw one prompt preempted and let in again without end. Nothing else makes room for it to come back.
    memory = KVManager(24, 2, num_host_blocks=80)
    scheduler = ContinuousBatching(memory, Limits(6, 8), recovery=recovery)  # type: ignore[arg-type]
    requests = arrive(scheduler, {identity: (9 + identity % 7, 3 + identity % 11) for identity in range(40)})
    ended_before: dict[int, int] = {}
    while scheduler.counters.finished < 40:
        ended = scheduler.counters.finished
        plan = step(scheduler, requests)
        for identity in [*plan.preempted, *plan.swapped_out]:
            assert ended > ended_before.get(identity, -1)
            ended_before[identity] = ended
        assert scheduler.counters.steps < 400
    assert scheduler.counters.preemptions > 5


@pytest.mark.parametrize("prompts", [(1, 1, 4, 4), (1, 6, 4, 1)])
def test_bug_22_prompts_that_take_each_other_s_blocks_do_not_starve_the_decodes(prompts: tuple[int, ...]) -> None:
    # inference-sim #1087's circle, where prefill goes first: two that evict each other always have a next chunk,
    # and the decodes that hold the rest of the memory would never have a step. A state machine found it on ours.
    scheduler = PrefillFirst(KVManager(5, 2, full_fit=False), Limits(2, 4), chunked=True, victim="most_freed")
    serve(scheduler, arrive(scheduler, {identity: (prompt, 3) for identity, prompt in enumerate(prompts)}), 100)


def test_bug_22_a_request_alone_that_lost_its_memory_is_let_in_again_at_once() -> None:
    # inference-sim #529: the gate for newcomers stayed shut after the preemption, with nobody left to open it.
    from reference_impl.memory.policies import GrowingRanges
    from reference_impl.memory.policy_memory import PolicyMemory

    scheduler = ContinuousBatching(PolicyMemory(GrowingRanges(20)), Limits(100, 4))
    requests = arrive(scheduler, {1: (8, 1), 2: (6, 12)})
    plans = serve(scheduler, requests)
    # Request 2 lies behind the hole that 1 left. It cannot grow where it lies, nor move while it lies there.
    assert any(set(plan.preempted) == set(plan.admitted) == {2} for plan in plans)


# 23 ----------------------------------------------------------------------------------------------------------------


def test_bug_23_long_prompts_are_admitted_only_when_all_of_them_fit() -> None:
    # vLLM #37307: the first chunk was enough to be admitted; four prompts held the memory and threw out each other.
    scheduler = ContinuousBatching(KVManager(40, 4), Limits(16, 8))
    requests = arrive(scheduler, dict.fromkeys(range(6), (100, 30)))
    serve(scheduler, requests)
    assert scheduler.counters.recomputed_tokens == 0
    assert scheduler.counters.preemptions == 0


@pytest.mark.parametrize("recovery", ["recompute", "swap"])
def test_bug_23_a_step_that_preempts_lets_nobody_in(recovery: str) -> None:
    # vLLM #25538, #21793, #28018: what was freed went to the next in the queue, who was thrown out a step later.
    memory = KVManager(12, 2, full_fit=False, num_host_blocks=40)
    scheduler = ContinuousBatching(memory, Limits(8, 8), recovery=recovery)  # type: ignore[arg-type]
    requests = arrive(scheduler, {identity: (1 + identity % 7, 3 + identity % 11) for identity in range(40)})
    plans = serve(scheduler, requests)
    short = [plan for plan in plans if plan.preempted or plan.swapped_out]
    assert len(short) > 5
    assert not any(plan.admitted or plan.swapped_in for plan in short)


# 24 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [FirstCome, FairShare])
def test_bug_24_nobody_is_admitted_while_a_preempted_one_waits(queue: type[FirstCome]) -> None:
    # vLLM #5578, #13539: new prefills took the memory for which those that had run before were waiting.
    scheduler, requests = crowded(queue=queue())
    requests |= arrive(scheduler, {4: (1, 1), 5: (1, 1)})
    until(scheduler, requests, lambda plan: 3 in plan.preempted)
    order = [identity for plan in serve(scheduler, requests) for identity in plan.admitted]
    assert order.index(3) < order.index(4) < order.index(5)


def test_bug_24_nobody_is_admitted_while_one_waits_on_the_host() -> None:
    scheduler, requests = crowded("swap")
    plan = until(scheduler, requests, lambda plan: bool(plan.swapped_out))
    (away,) = plan.swapped_out
    requests |= arrive(scheduler, {9: (1, 1)})
    for plan in serve(scheduler, requests):
        if away in plan.swapped_in:
            return
        assert 9 not in plan.admitted
    pytest.fail(f"request {away} never came back")


# 25 ----------------------------------------------------------------------------------------------------------------


def test_bug_25_what_a_preempted_request_has_computed_is_read_anew_when_it_comes_back() -> None:
    # nano-vllm #211: the count from before the preemption met another prefix hit. Here one block of it is still there.
    memory = KVManager(7, 2, prefix_cache="hash")
    scheduler = ContinuousBatching(memory, Limits(100, 4))
    requests = {identity: Request(identity, 4, 7, token_ids=array("i", [identity] * 4)) for identity in (1, 2)}
    for request in requests.values():
        assert scheduler.add(request) is None
    came_back = []
    for _ in range(100):
        plan = scheduler.schedule()
        for identity in plan.preempted:
            assert requests[identity].num_computed == 0
        came_back += [plan for identity in plan.admitted if requests[identity].num_preemptions]
        for identity in plan.admitted:
            assert plan.computed[identity] == plan.reused.get(identity, 0)
            assert len(memory.block_table(identity)) * 2 >= plan.computed[identity] + plan.scheduled[identity]
        ended = {i for i in plan.scheduled if requests[i].num_left == 0 and requests[i].num_new == 6}
        scheduler.finish_step(ended, {identity: 50 + identity for identity in plan.scheduled if identity not in ended})
        scheduler.check_invariants()
        for identity in plan.scheduled:
            assert requests[identity].num_computed == plan.computed[identity] + plan.scheduled[identity]
    assert scheduler.counters.finished == 2
    assert came_back
    assert 0 < came_back[0].reused[2] < came_back[0].reused[2] + came_back[0].scheduled[2]


def test_bug_25_without_a_prefix_cache_it_starts_from_nothing() -> None:
    scheduler, requests = crowded()
    plans = serve(scheduler, requests)
    seen = set()
    for plan in plans:
        for identity in plan.admitted:
            assert plan.computed[identity] == 0
            seen.add(identity)
    assert seen == {2, 3}
    assert scheduler.counters.admitted == 3 + scheduler.counters.preemptions


# 26 ----------------------------------------------------------------------------------------------------------------


def test_bug_26_a_victim_that_was_scheduled_already_leaves_the_plan() -> None:
    # vLLM #23347, #28558: it stayed in the step, which then held more requests than ran.
    scheduler = ContinuousBatching(KVManager(4, 2, full_fit=False), Limits(100, 4), victim=first_is_victim)
    requests = arrive(scheduler, {1: (1, 6), 2: (1, 6), 3: (2, 6), 4: (1, 6)})
    plan = until(scheduler, requests, lambda plan: bool(plan.preempted))
    assert plan.preempted == (2,)
    assert plan.scheduled.keys() == plan.computed.keys() == {1, 3, 4}
    serve(scheduler, requests)


def test_bug_26_the_tokens_of_such_a_victim_go_back_to_the_budget() -> None:
    # The same threads: the budget stayed spent. Here one of three decodes leaves, and the prompt gets its token.
    scheduler = ContinuousBatching(KVManager(4, 3, full_fit=False), Limits(4, 4), victim=first_is_victim)
    requests = arrive(scheduler, {1: (1, 6), 2: (1, 6), 3: (2, 6), 4: (9, 2)})
    plan = until(scheduler, requests, lambda plan: bool(plan.preempted))
    assert plan.preempted == (2,)
    assert plan.scheduled == {1: 1, 3: 1, 4: 2}


def test_bug_26_nobody_who_could_run_is_skipped_when_another_leaves() -> None:
    # vLLM #49097: the list shifted under the loop's index, and a request got nothing in that step.
    scheduler = ContinuousBatching(KVManager(8, 2, full_fit=False), Limits(100, 8), victim=first_is_victim)
    requests = arrive(scheduler, {identity: (1 + identity % 2, 6) for identity in range(8)})
    for _ in range(60):
        running = {identity for identity, request in requests.items() if request.state is State.RUNNING}
        plan = step(scheduler, requests)
        assert plan.scheduled.keys() == (running - set(plan.preempted)) | set(plan.admitted)
    assert scheduler.counters.preemptions > 3
    assert scheduler.counters.finished == 8


def test_bug_26_a_preempted_request_keeps_its_place_in_the_queue() -> None:
    # vLLM #41951: it went to the end of the queue, or in front of older ones.
    scheduler = ContinuousBatching(KVManager(6, 2, full_fit=False), Limits(100, 3))
    requests = arrive(scheduler, dict.fromkeys(range(6), (3, 4)))
    away: set[int] = set()
    while scheduler.counters.finished < 6:
        plan = step(scheduler, requests)
        away |= set(plan.preempted)
        for identity in plan.admitted:
            away.discard(identity)
            assert all(other > identity for other in away), f"{identity} is let in while {away} wait"
    assert scheduler.counters.preemptions > 0


# 27 ----------------------------------------------------------------------------------------------------------------


def test_bug_27_a_request_that_made_tokens_computes_all_of_them_again_in_chunks() -> None:
    # nano-vllm #144: "has made no token" was taken for "is in its prompt", which a preempted request is not.
    scheduler = ContinuousBatching(KVManager(5, 4, full_fit=False), Limits(4, 4))
    requests = arrive(scheduler, {1: (4, 12), 2: (4, 6)})
    plans = serve(scheduler, requests)
    lost = next(number for number, plan in enumerate(plans) if plan.preempted == (2,))
    again = [dict(plan.scheduled).get(2, 0) for plan in plans[lost + 1 :]]
    chunks = [tokens for tokens in again if tokens]
    assert max(chunks) > 1
    assert max(chunks) <= 4
    assert requests[2].num_new == 6
    assert requests[2].num_recomputed > 4


# 28 ----------------------------------------------------------------------------------------------------------------


def test_bug_28_a_refused_request_leaves_nothing_behind() -> None:
    # vLLM #42381: one prompt of a token too many, and the scheduler served nobody any more.
    scheduler = ContinuousBatching(KVManager(5, 4), Limits(8, 4, max_request_tokens=12))
    for identity, size in enumerate(((13, 1), (12, 1), (1, 12), (50, 50))):
        refusal = scheduler.add(Request(identity, *size))
        assert refusal is not None
        assert refusal.reason.is_final
    assert scheduler.schedule() == Plan()
    with pytest.raises(KeyError):
        scheduler.abort(0)
    serve(scheduler, arrive(scheduler, {0: (11, 1), 1: (6, 6)}))
    assert scheduler.counters.finished == 2


@pytest.mark.parametrize("bad", [lambda: Request(7, 0, 1), lambda: Request(7, 1, 0), lambda: Request(1, 3, 3)])
def test_bug_28_a_request_that_makes_no_sense_is_an_error_and_the_others_go_on(bad: Callable[[], Request]) -> None:
    scheduler = ContinuousBatching(KVManager(5, 4), Limits(8, 4))
    requests = arrive(scheduler, {1: (4, 4), 2: (4, 4)})
    step(scheduler, requests)
    with pytest.raises(ValueError):
        scheduler.add(bad())
    serve(scheduler, requests)
    assert scheduler.counters.finished == 2


LIFECYCLE = "reference_impl.sched.lifecycle"
SCHEDULER = "reference_impl.sched.scheduler"
PREFILL_FIRST = "reference_impl.sched.prefill_first"
QUEUES = "reference_impl.sched.queues"
RUNNING = "reference_impl.sched.running"
STEP = "reference_impl.sched.step"
MANAGER = "reference_impl.memory.kv_manager"

COUNTED = "        self._count_admission(request, reused)\n"
FORGOTTEN = "        request.num_computed = 0\n"
READ_ANEW = "        request.num_computed = reused\n"

MUTANTS = [
    Mutant(
        "freed at the abort",
        test_bug_20_an_abort_frees_no_block_that_the_step_under_way_still_writes,
        LIFECYCLE,
        (("            step.aborted.add(request)\n", "            self.memory.free(request)\n"),),
    ),
    Mutant(
        "ended by word and by abort",
        test_bug_20_an_abort_at_any_phase_ends_the_request_once,
        LIFECYCLE,
        (("in ended - step.aborted:", "in ended:"),),
    ),
    Mutant(
        "the place on the host kept",
        test_bug_20_an_abort_on_the_host_frees_the_place_there,
        LIFECYCLE,
        (
            (
                "            del self._swapped[request.request]\n            self._release(request)\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        "memory is not asked at the door",
        test_bug_21_a_request_that_can_never_fit_is_refused_at_the_door,
        LIFECYCLE,
        (("return self.memory.never_fits(request.demand())", "return None"),),
    ),
    Mutant(
        "the prompt alone compared",
        test_bug_21_a_whole_prompt_that_no_step_could_compute_after_a_preemption_is_refused,
        LIFECYCLE,
        (("if request.final_tokens > budget:", "if request.prompt_tokens > budget:"),),
    ),
    Mutant(
        "anybody may be the victim",
        test_bug_22_the_first_that_runs_keeps_what_it_computed_and_nobody_loses_what_it_made,
        SCHEDULER,
        (("self._victim(running[1:] or running)", "self._victim(running)"),),
    ),
    Mutant(
        "let in by its first chunk again",
        test_bug_22_between_two_preemptions_of_a_request_another_one_ends,
        MANAGER,
        (("known if self.full_fit else slots", "slots"),),
    ),
    Mutant(
        "what it made is lost",
        test_bug_22_the_first_that_runs_keeps_what_it_computed_and_nobody_loses_what_it_made,
        LIFECYCLE,
        ((FORGOTTEN, FORGOTTEN + "        request.num_tokens = request.prompt_tokens\n"),),
    ),
    Mutant(
        "prompts preempt beside decodes",
        test_bug_22_prompts_that_take_each_other_s_blocks_do_not_starve_the_decodes,
        PREFILL_FIRST,
        (("if request.num_left > 1 and len(self.running.decodes):", "if False:"),),
    ),
    Mutant(
        "the gate stays shut",
        test_bug_22_a_request_alone_that_lost_its_memory_is_let_in_again_at_once,
        SCHEDULER,
        (("return step.preempted_any and len(self.running) > 0", "return step.preempted_any"),),
    ),
    Mutant(
        "room for the first chunk is enough",
        test_bug_23_long_prompts_are_admitted_only_when_all_of_them_fit,
        MANAGER,
        (("known if self.full_fit else slots", "slots"),),
    ),
    Mutant(
        "newcomers take what was freed",
        test_bug_23_a_step_that_preempts_lets_nobody_in,
        SCHEDULER,
        (("return step.preempted_any and len(self.running) > 0", "return False"),),
    ),
    Mutant(
        "a new place at each return",
        test_bug_24_nobody_is_admitted_while_a_preempted_one_waits,
        QUEUES,
        (
            (
                "        if request.place is None:\n            request.place = (self._rank",
                "        if True:\n            request.place = (self._rank",
            ),
        ),
    ),
    Mutant(
        "those on the host overtaken",
        test_bug_24_nobody_is_admitted_while_one_waits_on_the_host,
        SCHEDULER,
        (
            (
                "        if self._swapped:\n            self._head_waits",
                "        if False:\n            self._head_waits",
            ),
        ),
    ),
    Mutant(
        "the old count kept",
        test_bug_25_what_a_preempted_request_has_computed_is_read_anew_when_it_comes_back,
        SCHEDULER,
        ((COUNTED + READ_ANEW, "        request.num_computed = max(reused, request.num_lost)\n" + COUNTED),),
    ),
    Mutant(
        "the old count kept without a cache",
        test_bug_25_without_a_prefix_cache_it_starts_from_nothing,
        SCHEDULER,
        ((COUNTED + READ_ANEW, "        request.num_computed = max(reused, request.num_lost)\n" + COUNTED),),
    ),
    Mutant(
        "the prefix hit not read",
        test_bug_25_what_a_preempted_request_has_computed_is_read_anew_when_it_comes_back,
        SCHEDULER,
        (("        request.num_computed = reused\n", ""),),
    ),
    Mutant(
        "computed tokens not forgotten",
        test_bug_25_what_a_preempted_request_has_computed_is_read_anew_when_it_comes_back,
        LIFECYCLE,
        (("        request.num_computed = 0\n", ""),),
    ),
    Mutant(
        "the victim stays in the step",
        test_bug_26_a_victim_that_was_scheduled_already_leaves_the_plan,
        SCHEDULER,
        (("        step.leave(victim)\n", ""),),
    ),
    Mutant(
        "its tokens stay spent",
        test_bug_26_the_tokens_of_such_a_victim_go_back_to_the_budget,
        STEP,
        (("        self.budget += request.num_scheduled\n", ""),),
    ),
    Mutant(
        "the walk stops at a preemption",
        test_bug_26_nobody_who_could_run_is_skipped_when_another_leaves,
        SCHEDULER,
        (
            (
                "            if grant is None:\n                continue\n",
                "            if step.preempted_any:\n                return\n",
            ),
        ),
    ),
    Mutant(
        "back to the end of the queue",
        test_bug_26_a_preempted_request_keeps_its_place_in_the_queue,
        QUEUES,
        (
            (
                "        if request.place is None:\n            request.place = (self._rank",
                "        if True:\n            request.place = (self._rank",
            ),
        ),
    ),
    Mutant(
        "who made a token decodes",
        test_bug_27_a_request_that_made_tokens_computes_all_of_them_again_in_chunks,
        RUNNING,
        (("(self.decodes if left == 1 else", "(self.decodes if left == 1 or request.num_new else"),),
    ),
    Mutant(
        "only the prompt computed again",
        test_bug_27_a_request_that_made_tokens_computes_all_of_them_again_in_chunks,
        SCHEDULER,
        (
            (
                "wanted = min(head.num_tokens, step.budget)",
                "wanted = min(head.prompt_tokens - head.num_new, step.budget)",
            ),
        ),
    ),
    Mutant(
        "in the books before it is refused",
        test_bug_28_a_refused_request_leaves_nothing_behind,
        LIFECYCLE,
        (
            (
                "        refusal = self._refuse(request)\n",
                "        self._requests[request.request] = request\n        refusal = self._refuse(request)\n",
            ),
        ),
    ),
    Mutant(
        "an id taken twice",
        test_bug_28_a_request_that_makes_no_sense_is_an_error_and_the_others_go_on,
        LIFECYCLE,
        (("if request.request in self._requests:", "if request.request in ():"),),
    ),
]
