"""Where the cost model's rates come from: published measurements now, an engine's own records later.

Owns: the table of published figures with their sources, and the two fits. Knows nothing of how steps are planned.
`fit_published` goes in three steps. The bandwidth reached is the slope of an attention kernel's time over its bytes, by
non-negative least squares on relative errors; its intercept is part of what an engine spends in a step anyway. The
rates of linear layers and of attention in prefill are taken as published. What an engine's measured time then leaves
unexplained is launch: two engines, two unknowns (a step, and a request in it).
`fit_records` fits everything at once to steps that an engine timed itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from reference_impl.sim.cost import PUBLISHED_RATES, CostModel, Rates, flops, memory_bytes
from reference_impl.sim.device import DEVICES, MODELS, Device, Model
from reference_impl.sim.nnls import nnls
from reference_impl.sim.work import StepWork

MB = 1e6


@dataclass(frozen=True)
class KernelTime:
    """One paged decode attention kernel on an H100 80GB HBM3: bytes of KV read and seconds."""

    kv_bytes: float
    seconds: float


KERNEL_TIMES = tuple(
    KernelTime(kv_mb * MB, microseconds * 1e-6)
    for kv_mb, microseconds in (
        (67, 37),  # 1 x 16k, 32/8 heads of 128
        (134, 55),  # 8 x 4k
        (537, 185),  # 64 x 2k
        (1_074, 365),  # 256 x 1k
        (1_074, 359),  # 32 x 2k, 32/32 heads
        (67, 32),  # 64 x 1k, 16/4 heads of 64
        (268, 94),  # 128 x 512, 16/8 heads
    )
)
"""FlashInfer 0.6.13, bf16, block 16, equal lengths; medians of CUDA-graph replays over KV larger than the L2 cache,
measured for this course on 2026-11-22. The same run read memory at 3,095 GB/s at best."""

READ_CEILING_BYTES_PER_S = 3_095e9

LINEAR_SHARE = 0.80
"""Of the peak: "up to 80-90 %" for large matrix products (Dao, FlashAttention-2, 2023, section 1); the lower end."""

ATTENTION_SHARE = 0.75
"""Of the peak: 740 TFLOP/s on an H100 (Shah et al., FlashAttention-3, 2024, abstract)."""

SINGLE_STREAM_TOKENS_PER_S = 349.0
"""nano-vllm, Qwen3-0.6B, one request at a time on an RTX 3090 (a user's measurement): a step of one row."""

_SINGLE_CONTEXT = 512
"""Tokens of that request; they are a hundredth of what a step of it reads."""

OFFLINE_TOKENS_PER_S = 18_413.0
"""vLLM 0.20.2 on the H100 above, nano-vllm's offline script (`offline_script`), Qwen3-0.6B."""


def offline_script() -> list[tuple[int, int]]:
    """(prompt, output) tokens of nano-vllm's published script: seed 0, 256 requests, both uniform 100..1024.

    The script draws every prompt's ids between the lengths, so they are drawn here too.
    """
    draw = Random(0)
    prompts = []
    for _ in range(256):
        length = draw.randint(100, 1024)
        for _ in range(length):
            draw.randint(0, 10_000)
        prompts.append(length)
    return [(prompt, draw.randint(100, 1024)) for prompt in prompts]


def fit_published(offline: StepWork) -> Rates:
    """The default rates; `offline` is the work of `offline_script()` as a scheduler plans it (see `calibrate.py`)."""
    h100, rtx3090, model = DEVICES["h100-sxm"], DEVICES["rtx3090"], MODELS["qwen3-0.6b"]
    bandwidth = fit_bandwidth(h100)
    bare = Rates(0.0, 0.0, bandwidth, LINEAR_SHARE, ATTENTION_SHARE, PUBLISHED_RATES.copy_s)
    single = StepWork(rows=1, tokens=1, pairs=_SINGLE_CONTEXT, kv_read=_SINGLE_CONTEXT)
    output = sum(new for _, new in offline_script())
    unexplained = (
        (single, 1 / SINGLE_STREAM_TOKENS_PER_S - CostModel(rtx3090, model, bare).step_s(single)),
        (offline, output / OFFLINE_TOKENS_PER_S - CostModel(h100, model, bare).step_s(offline)),
    )
    matrix = np.array([[work.steps, work.rows] for work, _ in unexplained], dtype=np.float64)
    seconds = np.array([left for _, left in unexplained])
    # Relative errors: both engines count alike, however long they ran.
    step_s, request_s = nnls(matrix / seconds[:, None], np.ones(len(seconds)))
    return replace(bare, step_s=float(step_s), request_s=float(request_s))


def fit_bandwidth(device: Device) -> float:
    """Share of the device's peak bandwidth that the published kernels reach, apart from a fixed time for each.

    Times are rounded to a microsecond, so that the slope may come out above what the memory can give: it is cut there.
    """
    matrix = np.array([[1.0, kernel.kv_bytes] for kernel in KERNEL_TIMES])
    seconds = np.array([kernel.seconds for kernel in KERNEL_TIMES])
    _, per_byte_s = nnls(matrix / seconds[:, None], np.ones(len(seconds)))
    return min(float(1 / per_byte_s), READ_CEILING_BYTES_PER_S) / device.bytes_per_s


def fit_records(records: Iterable[tuple[StepWork, float]], device: Device, model: Model) -> Rates:
    """The rates under which the cost model comes closest, in relative error, to recorded (work, seconds).

    Records with swaps or without a row say nothing of the other terms and are refused. A term that no record shows
    (its coefficient comes out as 0) keeps the published rate. Raises: ValueError on a bad record, naming it, or on
    fewer records than terms.
    """
    rows, seconds = [], []
    for place, (work, took_s) in enumerate(records):
        if not took_s > 0 or work.rows < 1 or work.swap_copies:
            raise ValueError(f"record {place}: {took_s} s for {work.rows} rows and {work.swap_copies} swapped blocks")
        linear, attention = flops(work, model)
        parts = memory_bytes(work, model) / device.bytes_per_s, linear / device.flops_per_s
        rows.append([work.steps, work.rows, *parts, attention / device.flops_per_s])
        seconds.append(took_s)
    if len(rows) < 5:
        raise ValueError(f"{len(rows)} records for 5 terms")
    took = np.array(seconds)
    matrix = np.array(rows, dtype=np.float64) / took[:, None]
    step_s, request_s, *slowness = (float(value) for value in nnls(matrix, np.ones(len(took))))
    known = (PUBLISHED_RATES.bandwidth, PUBLISHED_RATES.linear, PUBLISHED_RATES.attention)
    shares = [1 / slow if slow > 0 else share for slow, share in zip(slowness, known, strict=True)]
    bandwidth, linear_share, attention_share = shares
    return Rates(step_s, request_s, bandwidth, linear_share, attention_share, PUBLISHED_RATES.copy_s)
