"""How fast a textbook's kernel is on a timed case, for a student's figure: a middle between nothing and the reference.

Owns: that one measurement, by the engine's own benchmark clock and on data of its own. Nobody's grade depends on it,
so it has few rounds, and whether the kernel is right is the benchmark's business (`reference_impl/bench/kernels.py`).
It is taken before any kernel of a student runs in its process. Cost on a GPU: two copies of the case's cache are drawn,
and a dozen graph replays.
"""

from __future__ import annotations

from functools import partial

import torch

from autograder.gpu.timed import TimedCase
from reference_impl.bench import device_clock
from reference_impl.bench.kernel_cases import DecodeCase, draw
from reference_impl.bench.textbook_decode import fits, textbook_decode

ROUNDS, AT_LEAST_S = 5, 0.02


def textbook_us(case: TimedCase) -> float | None:
    """Microseconds of one call, a median; None where the textbook's kernel does not take such a cache."""
    if not fits(case.head_dim, case.block_size):
        return None
    generator = torch.Generator("cuda")
    generator.seed()
    shape = (case.heads, case.kv_heads, case.head_dim, case.block_size, case.torch_dtype)
    batch = draw(DecodeCase("", case.lengths, *shape), generator)
    places = (batch.block_tables, batch.context_lens, batch.scale)
    calls = [partial(textbook_decode, r.query, r.key_cache, r.value_cache, *places, r.out) for r in batch.replicas]
    return 1e6 * device_clock.replay_s(calls, at_least_s=AT_LEAST_S, rounds=ROUNDS)
