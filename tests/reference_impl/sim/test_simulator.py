"""The clock and the clients: tiny runs by hand, and what must hold in every run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.workloads import HASHED_TOKENS, Workload, workload
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.policy_memory import PolicyMemory
from reference_impl.sched import ContinuousBatching, Limits, Plan, StaticBatching
from reference_impl.sched.setup import ALLOCATORS, Setup, build
from reference_impl.sim.arrivals import Arrival, faster, limits_of, poisson, recorded, sampled_id, spelled, synthetic
from reference_impl.sim.compare import cost_model
from reference_impl.sim.cost import CostModel, Rates
from reference_impl.sim.device import Device, Model
from reference_impl.sim.metrics import Metrics, Targets
from reference_impl.sim.simulator import NOTHING_ASKED, Settings, SimulationError, simulate
from tests.reference_impl.sim.test_cost import TINY

# A step takes 1 s and 0.1 s for each token, whatever else happens: times can be worked out on paper.
SLOW = Device("slow", 1e30, 1e30, 1e30, 100)


class PerToken(CostModel):
    """A second for a step and a tenth for each token in it."""

    def __init__(self, model: Model = TINY) -> None:
        super().__init__(SLOW, model, Rates(1.0, 0.0, 1.0, 1.0, 1.0, 0.0))
        self._per_token = 0.1


def run(
    arrivals: list[Arrival], options: Settings | None = None, *, kv_tokens: int = 1_600, max_running: int = 8
) -> Metrics:
    memory = KVManager(kv_tokens // 16, 16)
    return simulate(arrivals, ContinuousBatching(memory, Limits(100, max_running)), PerToken(), options)


def test_one_request_by_hand() -> None:
    metrics = run([Arrival(5.0, 10, 3, 3)], Settings(account_every=1))
    summary = metrics.summary()
    # Prompt: 1 + 10 * 0.1 = 2 s. Two decodes of 1.1 s each.
    assert summary["duration_s"] == pytest.approx(4.2)
    latency = summary["latency"]
    assert latency["ttft_s"]["mean"] == pytest.approx(2.0)
    assert latency["itl_s"]["mean"] == pytest.approx(1.1)
    assert latency["tpot_s"]["mean"] == pytest.approx(1.1)
    assert latency["e2e_s"]["mean"] == pytest.approx(4.2)
    assert latency["normalised_s"]["mean"] == pytest.approx(1.4)
    assert latency["queue_s"]["mean"] == 0
    # 10 slots for 2 s, then 11 and 12 for 1.1 s each, of 1,600.
    held = (10 * 2.0 + 11 * 1.1 + 12 * 1.1) / 4.2 / 1_600
    assert summary["mean_over_time"]["held"] == pytest.approx(held)


def test_two_requests_by_hand_the_second_arrives_in_the_middle_of_a_step() -> None:
    metrics = run([Arrival(0.0, 10, 3, 3), Arrival(0.5, 20, 2, 2)])
    # 0 to 2: prompt of the first. 2 to 5.1: its second token beside the prompt of the second (21 tokens).
    # 5.1 to 6.3: both decode. Both are done.
    assert metrics.duration_s == pytest.approx(6.3)
    ttft, queue, gaps = (metrics.latencies[name] for name in ("ttft_s", "queue_s", "itl_s"))
    assert (ttft.minimum, ttft.maximum) == pytest.approx((2.0, 4.6))
    assert (queue.minimum, queue.maximum) == pytest.approx((0.0, 1.5))
    assert gaps.count == 3
    assert gaps.total == pytest.approx(3.1 + 1.2 + 1.2)
    assert metrics.work.steps == 3
    assert metrics.output_tokens == 5


def test_a_chunked_prompt_gives_its_first_token_with_its_last_chunk() -> None:
    # 250 tokens at 100 a step: 11 + 11 + 6 s.
    metrics = run([Arrival(0.0, 250, 1, 1)])
    assert metrics.latencies["ttft_s"].maximum == pytest.approx(28.0)
    assert metrics.latencies["itl_s"].count == 0
    assert metrics.latencies["tpot_s"].count == 0
    assert metrics.summary()["latency"]["tpot_s"] is None


def test_waiting_for_the_next_arrival_passes_time_with_an_empty_memory() -> None:
    metrics = run([Arrival(0.0, 10, 1, 1), Arrival(10.0, 10, 1, 1)], Settings(account_every=1))
    assert metrics.duration_s == pytest.approx(12.0)
    assert metrics.busy_s == pytest.approx(4.0)
    assert metrics.memory.means()["free"] == pytest.approx((8 * 1.0 + 4 * (1 - 16 / 1_600)) / 12)


@pytest.mark.parametrize("allocator", ["padded", "contiguous", "paged"])
def test_who_runs_over_time_is_exact_however_seldom_memory_is_looked_at(allocator: str) -> None:
    lengths = [(40 + 37 * place % 300, 1 + 11 * place % 40) for place in range(60)]
    arrivals = [Arrival(3.0 * place, prompt, new, new) for place, (prompt, new) in enumerate(lengths)]
    setup = Setup(allocator, "continuous", 2_000, 400, max_running=8, max_tokens_per_step=100)
    means = [
        simulate(iter(arrivals), build(setup), PerToken(), Settings(account_every=every)).memory.means()
        for every in (1, 16, 10_000)
    ]
    assert [mean["running"] for mean in means] == pytest.approx([means[0]["running"]] * 3)
    assert means[1]["held"] == pytest.approx(means[0]["held"], rel=0.05)


def test_requests_in_the_system_are_their_rate_times_their_stay() -> None:
    # Little's law. Who arrives in the middle of a step is seen at its end: half a step of 1 to 3 s, of some 200.
    arrivals = [Arrival(7.0 * place, 30, 20, 20) for place in range(300)]
    metrics = run(arrivals, max_running=2)
    mean = metrics.memory.means()
    inside = metrics.completed / metrics.duration_s * metrics.latencies["e2e_s"].mean
    assert mean["running"] + mean["waiting"] == pytest.approx(inside, rel=0.01)


def test_one_server_makes_its_queue_wait_as_theory_says() -> None:
    # M/D/1 at load 0.6: 0.6 / (2 * (1 - 0.6)) = 0.75 service times in the queue.
    service_s = run([Arrival(0.0, 10, 3, 3)]).duration_s
    metrics = run(list(poisson([Arrival(0.0, 10, 3, 3)] * 20_000, 0.6 / service_s, seed=1)), max_running=1)
    assert metrics.busy_s / metrics.duration_s == pytest.approx(0.6, rel=0.02)
    assert metrics.latencies["queue_s"].mean / service_s == pytest.approx(0.75, rel=0.05)


def test_clients_that_wait_send_their_next_request_when_the_last_is_answered() -> None:
    arrivals = [Arrival(1_000.0 * place, 10, 1, 1) for place in range(4)]
    metrics = run(arrivals, Settings(concurrency=2))
    # Two at a time: 1 + 20 * 0.1 s, twice. Recorded times play no part.
    assert metrics.duration_s == pytest.approx(6.0)
    assert metrics.latencies["ttft_s"].maximum == pytest.approx(3.0)
    assert metrics.latencies["queue_s"].maximum == 0


def test_a_refused_request_is_counted_with_its_reason_and_its_client_goes_on() -> None:
    arrivals = [Arrival(0.0, 5_000, 1, 1), Arrival(0.0, 10, 0, 5), Arrival(0.0, 10, 1, 1)]
    for options in (Settings(), Settings(concurrency=1)):
        metrics = run(arrivals, options)
        assert metrics.completed == 1
        assert metrics.refused == {"more than the memory could ever give": 1, NOTHING_ASKED: 1}
        assert metrics.first_refused.startswith("request 0, 5,000 prompt tokens")


def test_goodput_counts_requests_that_meet_both_targets() -> None:
    arrivals = [Arrival(0.0, 10, 3, 3), Arrival(0.5, 20, 2, 2)]
    # TTFT 2.0 and 4.6 s; TPOT (3.1 + 1.2) / 2 = 2.15 and 1.2 s.
    for targets, good in (
        (Targets(), 2),
        (Targets(ttft_s=4.0), 1),
        (Targets(tpot_s=2.0), 1),
        (Targets(ttft_s=4.0, tpot_s=2.0), 0),
    ):
        metrics = run(arrivals, Settings(targets=targets))
        assert metrics.good == good
        assert metrics.summary()["goodput_per_s"] == pytest.approx(good / 6.3)


def test_the_gap_of_a_preempted_request_lasts_until_its_next_token() -> None:
    # Six blocks: two requests of 40 tokens hold three each and cannot both take a fourth.
    metrics = run([Arrival(0.0, 40, 20, 20), Arrival(0.0, 40, 20, 20)], kv_tokens=96)
    assert metrics.preemptions == 1
    assert metrics.recomputed_tokens == 48
    assert metrics.completed == 2
    gaps = metrics.latencies["itl_s"]
    assert gaps.count == 38
    # The first goes on alone for 11 tokens, then the second is computed again in one step.
    assert gaps.maximum == pytest.approx(11 * 1.1 + 1 + 4.9)
    # Both ran from the first step on: coming back is no second time in the queue.
    assert metrics.latencies["queue_s"].maximum == 0


requests = st.lists(st.tuples(st.integers(1, 120), st.integers(1, 40), st.floats(0, 3)), min_size=1, max_size=25)


def arrivals_of(drawn: list[tuple[int, int, float]]) -> list[Arrival]:
    clock_s, made = 0.0, []
    for prompt, output, gap_s in drawn:
        clock_s += gap_s
        made.append(Arrival(clock_s, prompt, output, output + 7))
    return made


@settings(deadline=None, max_examples=25)
@given(requests, st.sampled_from([None, 1, 3]))
def test_every_allocator_and_scheduler_answers_the_same_tokens(
    drawn: list[tuple[int, int, float]], concurrency: int | None
) -> None:
    tokens, alone = sum(output for _, output, _ in drawn), []
    for allocator in ALLOCATORS:
        for scheduler in ("continuous", "orca", "prefill-first", "static"):
            setup = Setup(allocator, scheduler, kv_tokens=512, max_length=200, max_running=6, max_tokens_per_step=64)
            metrics = simulate(arrivals_of(drawn), build(setup), PerToken(), Settings(concurrency))
            assert metrics.completed == len(drawn)
            assert metrics.output_tokens == tokens
            gaps = metrics.latencies["itl_s"]
            assert gaps.count == tokens - len(drawn)
            # What a request waited for its first token and between the others is all of its time.
            times = {name: metrics.latencies[name].total for name in ("ttft_s", "itl_s", "e2e_s")}
            assert times["ttft_s"] + times["itl_s"] == pytest.approx(times["e2e_s"], rel=1e-6)
            alone.append(metrics.latencies["ttft_s"].count)
    assert set(alone) == {len(drawn)}


def test_paging_runs_at_least_as_many_requests_at_once_as_reserving() -> None:
    most = {}
    arrivals = list(synthetic(200, (10, 200), (10, 200), 50.0, seed=1))
    for allocator in ("padded", "contiguous", "pow2", "oracle", "paged"):
        setup = Setup(allocator, "continuous", kv_tokens=8_192, max_length=400, max_running=256)
        metrics = simulate(arrivals, build(setup), PerToken(), Settings(account_every=1))
        most[allocator] = metrics.memory.means()["running"]
    assert most["contiguous"] < most["pow2"] < most["paged"]
    assert most["contiguous"] < most["oracle"] <= most["paged"]


def hashed(blocks: list[list[int]], outputs: int = 2) -> Workload:
    prompts = np.array([HASHED_TOKENS * len(ids) - 100 for ids in blocks])
    return Workload(
        "x", "x", "x", "x", True, np.arange(len(blocks)) * 1e6, prompts, np.full(len(blocks), outputs),
        tuple(np.array(ids) for ids in blocks),
    )  # fmt: skip


def test_prompts_share_exactly_the_blocks_that_the_trace_says() -> None:
    trace = hashed([[0, 1, 2], [0, 1, 3], [4, 1, 2]])
    first, second, third = (spelled(arrival) for arrival in recorded(trace, limits_of(trace)))
    assert first is not None
    assert second is not None
    assert third is not None
    assert len(first) == 3 * 512 - 100
    assert first[:1024] == second[:1024]
    assert first[1024] != second[1024]
    assert first[0] != third[0]


def test_a_prefix_cache_finds_them_again_and_never_an_answer() -> None:
    trace = hashed([[0, 1, 2], [0, 1, 3], [0, 1, 2]])
    setup = Setup("paged", "continuous", kv_tokens=64 * 512, max_length=4_096, block_size=512, prefix_cache="hash")
    metrics = simulate(recorded(trace, limits_of(trace)), build(setup), PerToken())
    assert metrics.reused_tokens == 2 * 1_024
    assert metrics.prompt_tokens == 3 * (3 * 512 - 100)
    off = simulate(recorded(trace, limits_of(trace)), build(setup), PerToken(), Settings(keep_contents=False))
    assert off.reused_tokens == 0


def test_what_one_request_makes_has_another_id_than_anything_else() -> None:
    ids = {sampled_id(request) for request in range(1_000)}
    assert len(ids) == 1_000
    assert min(ids) >= 2**30
    array("i", ids)  # fits into the type of token ids


def test_too_few_hashes_for_a_prompt_are_refused() -> None:
    with pytest.raises(ValueError, match="1 prefix hashes spell 512 tokens, the prompt has 600"):
        spelled(Arrival(0.0, 600, 1, 1, prefix_hashes=[7]))


def test_rates_change_times_and_nothing_else() -> None:
    arrivals = [Arrival(2.0, 10, 3, 3), Arrival(4.0, 5, 1, 1)]
    assert [arrival.arrival_s for arrival in faster(arrivals, 4.0)] == [0.5, 1.0]
    drawn = list(poisson(iter(arrivals * 2_000), 8.0, seed=3))
    assert drawn[-1].arrival_s == pytest.approx(4_000 / 8, rel=0.05)
    assert [arrival.prompt_tokens for arrival in drawn[:2]] == [10, 5]
    assert drawn == list(poisson(arrivals * 2_000, 8.0, seed=3))
    for broken in (faster(arrivals, 0.0), poisson(arrivals, float("nan"), 0)):
        with pytest.raises(ValueError, match="must be above 0"):
            next(broken)


def test_arrivals_that_go_back_in_time_are_refused() -> None:
    with pytest.raises(ValueError, match="request 1 arrives before"):
        run([Arrival(1.0, 10, 1, 1), Arrival(0.0, 10, 1, 1)])


def test_a_scheduler_that_plans_nothing_is_named() -> None:
    class Idle(ContinuousBatching):
        def schedule(self) -> Plan:
            return Plan()

    with pytest.raises(SimulationError, match="Idle planned no token with 1 requests to serve"):
        simulate([Arrival(0.0, 10, 1, 1)], Idle(KVManager(4, 16)), PerToken())


@pytest.mark.parametrize("option", ["concurrency", "account_every"])
def test_counts_below_one_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        Settings(**{option: 0})


def test_static_batches_pay_for_their_rectangle() -> None:
    arrivals = [Arrival(0.0, 10, 1, 1), Arrival(0.0, 4, 3, 3)]
    memory = KVManager(100, 16)
    metrics = simulate(arrivals, StaticBatching(memory), PerToken())
    # Two rows of 10, then two steps of two rows although one row is done: 3 + 1.2 + 1.2 s.
    assert metrics.duration_s == pytest.approx(5.4)
    assert metrics.work.tokens == 24


def test_holes_are_external_for_the_request_that_waits_and_free_when_nobody_does() -> None:
    setup = Setup("contiguous", "continuous", kv_tokens=384, max_length=200)
    arrivals = [Arrival(0.0, 10, 3, 3), Arrival(0.0, 10, 3, 3)]
    metrics = simulate(arrivals, build(setup), PerToken(), Settings(account_every=1))
    # Each is given 256 of 384: the other 128 are a hole too short for the second, as long as it waits.
    assert metrics.most_running == 1
    means = metrics.memory.means()
    assert means["external"] == means["free"] == pytest.approx(1 / 6)


def test_tokens_copied_only_to_make_room_are_paid_for() -> None:
    setup = Setup("grow", "continuous", kv_tokens=512, max_length=200)
    scheduler = build(setup)
    assert isinstance(scheduler.memory, PolicyMemory)
    metrics = simulate([Arrival(0.0, 10, 40, 40), Arrival(0.0, 10, 40, 40)], scheduler, PerToken())
    assert metrics.work.copied_tokens == scheduler.memory.policy.copied_tokens > 0


def test_progress_is_told_at_the_end_at_the_latest() -> None:
    told: list[tuple[int, float]] = []
    arrivals: Iterator[Arrival] = synthetic(300, (1, 5), (1, 5), 100.0, seed=0)
    scheduler = ContinuousBatching(KVManager(100, 16))
    metrics = simulate(arrivals, scheduler, PerToken(), progress=lambda over, clock_s: told.append((over, clock_s)))
    assert [over for over, _ in told] == [256, 300]
    assert metrics.completed == 300


@pytest.mark.slow
def test_the_mooncake_trace_is_replayed_in_less_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("P2P_TRACES", raising=False)
    trace = workload("mooncake_conversation")
    if not trace.is_real:
        pytest.skip("the Mooncake conversation trace is not on this machine (P2P_TRACES names the folder)")
    limits = limits_of(trace)
    setup = Setup(
        "paged", "continuous", kv_tokens=50_000 * HASHED_TOKENS, max_length=limits.max_length, block_size=HASHED_TOKENS,
        max_tokens_per_step=8_192, prefix_cache="hash",
    )  # fmt: skip
    started_s = time.process_time()
    metrics = simulate(recorded(trace, limits), build(setup), cost_model("llama-3.1-8b", "h100-sxm"))
    took_s = time.process_time() - started_s
    found = metrics.reused_tokens / metrics.prompt_tokens
    print(f"{metrics.completed:,} requests, {metrics.work.steps:,} steps in {took_s:.1f} s; {found:.1%} found again")
    assert metrics.completed == 12_031
    assert took_s < 60
    # An LRU of as many blocks that sees one request after another finds 35.5 % of the blocks, an unlimited one 36.6 %.
    # Here hundreds run at once, last blocks that are not full are never found, and a trace this much over what one
    # device serves keeps requests of one conversation close together.
    assert 0.34 < found < 0.37


REPLAY = """
import resource, sys, time
from reference_impl.sim.arrivals import synthetic
from reference_impl.sim.compare import cost_model
from reference_impl.sched.setup import Setup, build
from reference_impl.sim.simulator import simulate
count, started_s = int(sys.argv[1]), time.perf_counter()
scheduler = build(Setup("paged", "continuous", kv_tokens=65_536, max_length=128))
metrics = simulate(synthetic(count, (8, 64), (1, 4), 200.0, seed=2), scheduler, cost_model("qwen3-0.6b", "h100-sxm"))
assert metrics.completed == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter() - started_s)
"""


def peak_kib(count: int) -> int:
    """Most resident memory of a process of its own that serves `count` requests."""
    path = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, "-c", REPLAY, str(count)], capture_output=True, text=True, check=True, env={"PYTHONPATH": path}
    )
    kib, seconds = done.stdout.split()
    print(f"{count:,} requests: {int(kib) / 1024:.1f} MiB at most, {float(seconds):.1f} s")
    return int(kib)


def test_ten_times_the_requests_take_no_more_memory() -> None:
    # A request is a kilobyte: thirty thousand of them would be thirty megabytes.
    assert peak_kib(30_000) < peak_kib(3_000) + 4 * 1024


@pytest.mark.long
def test_a_million_requests_take_no_more_memory_than_a_hundred_thousand() -> None:
    assert peak_kib(1_000_000) < peak_kib(100_000) + 4 * 1024
