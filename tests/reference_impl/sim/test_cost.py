"""The cost model: its terms by hand, its rates from what was published, and figures it was not fitted to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.memory.kv_memory import BlockCopies
from reference_impl.padding.account import ModelShape
from reference_impl.sched.plan import Plan, Rectangle
from reference_impl.sim.calibrate import calibrated, offline_work
from reference_impl.sim.cost import PUBLISHED_RATES, CostModel, Rates, flops, memory_bytes
from reference_impl.sim.device import DEVICES, MODELS, Device, Model
from reference_impl.sim.fit import (
    KERNEL_TIMES,
    OFFLINE_TOKENS_PER_S,
    READ_CEILING_BYTES_PER_S,
    SINGLE_STREAM_TOKENS_PER_S,
    fit_bandwidth,
    fit_records,
    offline_script,
)
from reference_impl.sim.work import StepWork, work_of

PLAIN = Rates(step_s=1.0, request_s=0.1, bandwidth=0.5, linear=0.5, attention=0.25, copy_s=2.0)
# One layer of width 2 with one head of 2: 16 weights of attention, 12 of the MLP; 8 of the head.
TINY = Model("tiny", ModelShape(1, 2, 2, 1, 1, 2, 2), vocabulary=4)
UNIT = Device("unit", bytes_per_s=1.0, flops_per_s=1.0, link_bytes_per_s=1.0, memory_bytes=100)

works = st.builds(
    StepWork,
    steps=st.just(1),
    rows=st.integers(1, 300),
    tokens=st.integers(1, 20_000),
    pairs=st.integers(1, 10**8),
    kv_read=st.integers(1, 10**6),
    copied_tokens=st.integers(0, 10**5),
    swapped_tokens=st.integers(0, 10**5),
    swap_copies=st.integers(0, 10**4),
)


def test_every_term_by_hand() -> None:
    work = StepWork(rows=2, tokens=3, pairs=5, kv_read=7, copied_tokens=1, swapped_tokens=4, swap_copies=2)
    terms = CostModel(UNIT, TINY, PLAIN).terms(work)
    assert TINY.weight_bytes == 2 * (28 + 8)
    assert TINY.kv_bytes_per_token == 8
    assert terms["launch"] == pytest.approx(1 + 2 * 0.1)
    # Weights, 7 tokens read, 3 written, 1 read and written again; at half of the peak.
    assert terms["memory"] == pytest.approx((72 + 8 * (7 + 3 + 2)) / 0.5)
    assert terms["linear"] == pytest.approx((2 * 28 * 3 + 2 * 8 * 2) / 0.5)
    assert terms["attention"] == pytest.approx(4 * 2 * 5 / 0.25)
    assert terms["link"] == pytest.approx(4 * 8 + 2 * 2.0)


@given(works)
def test_a_step_takes_the_sum_of_its_terms(work: StepWork) -> None:
    cost = CostModel(DEVICES["h100-sxm"], MODELS["llama-3.1-8b"])
    assert cost.step_s(work) == pytest.approx(sum(cost.terms(work).values()))


@given(works, works)
def test_the_work_of_two_steps_costs_what_both_cost(first: StepWork, second: StepWork) -> None:
    cost = CostModel(DEVICES["a100-80g"], MODELS["opt-13b"])
    assert cost.step_s(first + second) == pytest.approx(cost.step_s(first) + cost.step_s(second))


@pytest.mark.parametrize("scheduled", [{1: 1, 2: 1, 3: 1}, {1: 1, 2: 30, 3: 7}])
def test_work_is_what_a_loop_over_tokens_counts(scheduled: dict[int, int]) -> None:
    computed = {1: 100, 2: 0, 3: 12}
    pairs = sum(computed[request] + place + 1 for request, new in scheduled.items() for place in range(new))
    work = work_of(Plan(scheduled=scheduled, computed=computed))
    read = sum(computed[request] + new for request, new in scheduled.items())
    assert work == StepWork(rows=3, tokens=sum(scheduled.values()), pairs=pairs, kv_read=read)


def test_a_rectangle_computes_and_reads_its_pads() -> None:
    plan = Plan(scheduled={7: 1}, computed={7: 4}, rectangle=Rectangle(rows=3, new_tokens=2, context_tokens=10))
    assert work_of(plan) == StepWork(rows=3, tokens=6, pairs=3 * (11 + 12), kv_read=36)


def test_copies_and_swaps_count_in_tokens_of_their_blocks() -> None:
    out: dict[int, BlockCopies] = {4: ((0, 1), (2, 3))}
    plan = Plan(scheduled={1: 1}, computed={1: 0}, swapped_out=out, swapped_in={5: ((9, 8),)}, copies=((1, 2),))
    work = work_of(plan, block_tokens=16)
    assert (work.copied_tokens, work.swapped_tokens, work.swap_copies) == (16, 48, 3)


def test_the_offline_script_is_the_published_one() -> None:
    script = offline_script()
    assert len(script) == 256
    assert sum(new for _, new in script) == 133_966


def test_our_schedule_of_it_moves_the_bytes_that_were_counted_for_it() -> None:
    moved = memory_bytes(offline_work(), MODELS["qwen3-0.6b"])
    assert moved == pytest.approx(15.1e12, rel=0.01)
    assert 133_966 / (moved / READ_CEILING_BYTES_PER_S) == pytest.approx(27_505, rel=0.01)


def test_the_default_rates_are_those_that_the_published_figures_give() -> None:
    found = calibrated()
    for name, value in vars(PUBLISHED_RATES).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4), name


def test_with_them_the_model_gives_both_engines_back() -> None:
    script = CostModel(DEVICES["h100-sxm"], MODELS["qwen3-0.6b"]).step_s(offline_work())
    assert 133_966 / script == pytest.approx(OFFLINE_TOKENS_PER_S, rel=1e-3)
    alone = StepWork(rows=1, tokens=1, pairs=512, kv_read=512)
    single = CostModel(DEVICES["rtx3090"], MODELS["qwen3-0.6b"]).step_s(alone)
    assert 1 / single == pytest.approx(SINGLE_STREAM_TOKENS_PER_S, rel=1e-3)


def test_the_bandwidth_is_the_slope_of_the_kernels_and_below_what_memory_can_give() -> None:
    device = DEVICES["h100-sxm"]
    reached = fit_bandwidth(device) * device.bytes_per_s
    assert reached <= READ_CEILING_BYTES_PER_S
    for kernel in KERNEL_TIMES:
        assert kernel.kv_bytes / reached <= kernel.seconds


@pytest.mark.parametrize(("prompt", "whole_ms", "chunk_ms"), [(4_096, 64, 40), (8_192, 142, 41), (16_384, 361, 66)])
def test_a_long_prompt_among_decodes_on_another_gpu_comes_out_within_a_third(
    prompt: int, whole_ms: float, chunk_ms: float
) -> None:
    """Published: the longest gap between tokens of 16 decodes, with the prompt whole and in chunks of 2,048."""
    cost = CostModel(DEVICES["rtx4090"], MODELS["qwen3-0.6b"])
    decodes = StepWork(steps=0, rows=16, tokens=16, pairs=16 * 512, kv_read=16 * 512)
    whole = StepWork(rows=1, tokens=prompt, pairs=prompt * (prompt + 1) // 2, kv_read=prompt)
    new, context = 2_048 - 16, prompt - 2_032
    last = StepWork(rows=1, tokens=new, pairs=new * context + new * (new + 1) // 2, kv_read=prompt)
    assert cost.step_s(whole + decodes) * 1e3 == pytest.approx(whole_ms, rel=0.34)
    assert cost.step_s(last + decodes) * 1e3 == pytest.approx(chunk_ms, rel=0.34)


def test_recorded_steps_give_the_rates_back_that_made_them() -> None:
    device, model = DEVICES["h100-sxm"], MODELS["llama-3.1-8b"]
    true = Rates(2e-3, 5e-6, 0.7, 0.6, 0.4, PUBLISHED_RATES.copy_s)
    rng = np.random.default_rng(3)
    records = []
    for _ in range(60):
        rows, new, context = int(rng.integers(1, 200)), int(rng.integers(1, 60)), int(rng.integers(1, 4_000))
        work = work_of(Plan(scheduled=dict.fromkeys(range(rows), new), computed=dict.fromkeys(range(rows), context)))
        records.append((work, CostModel(device, model, true).step_s(work)))
    found = fit_records(records, device, model)
    assert vars(found) == pytest.approx(vars(true), rel=1e-6)
    noisy = [(work, took_s * float(rng.normal(1, 0.02))) for work, took_s in records]
    assert fit_records(noisy, device, model).bandwidth == pytest.approx(0.7, rel=0.1)


def test_records_that_cannot_be_fitted_are_refused_by_place() -> None:
    device, model = DEVICES["h100-sxm"], MODELS["qwen3-0.6b"]
    good = (StepWork(rows=1, tokens=1, pairs=1, kv_read=1), 0.01)
    with pytest.raises(ValueError, match="4 records for 5 terms"):
        fit_records([good] * 4, device, model)
    with pytest.raises(ValueError, match=r"record 1: 0\.0 s"):
        fit_records([good, (good[0], 0.0)], device, model)


@pytest.mark.parametrize(
    ("name", "parameters"), [("qwen3-0.6b", 0.596), ("qwen2.5-7b", 7.07), ("llama-3.1-8b", 7.50), ("opt-13b", 12.84)]
)
def test_a_preset_has_the_parameters_that_a_step_of_the_model_reads(name: str, parameters: float) -> None:
    """In billions: all of the model, less an input embedding of its own, which is looked up and not read."""
    assert MODELS[name].weight_bytes / 2e9 == pytest.approx(parameters, rel=0.005)


def test_what_does_not_fit_beside_the_weights_is_said() -> None:
    assert MODELS["qwen3-0.6b"].kv_tokens_on(DEVICES["h100-sxm"]) == pytest.approx(617_000, rel=0.01)
    with pytest.raises(ValueError, match="no KV memory is left"):
        MODELS["opt-13b"].kv_tokens_on(DEVICES["rtx4090"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"bandwidth": 0.0}, "bandwidth must be above 0"), ({"step_s": -1.0}, "step_s must be at le")],
)
def test_rates_that_make_no_sense_are_refused(changed: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Rates(**{**vars(PUBLISHED_RATES), **changed})
    with pytest.raises(ValueError, match="flops_per_s must be above 0"):
        Device("x", 1.0, 0.0, 1.0, 1)


def test_flops_count_the_projection_once_a_request() -> None:
    linear, attention = flops(StepWork(rows=2, tokens=5, pairs=9), TINY)
    assert (linear, attention) == (2 * 28 * 5 + 2 * 8 * 2, 4 * 2 * 9)
