"""A step, run: whatever scheduler and memory do, a token's logits are those of its sequence alone."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.engine.runner import Runner
from reference_impl.memory.kv_manager import KVManager
from reference_impl.model.loader import LoadedModel
from reference_impl.sched import ContinuousBatching, Limits, Plan, Rectangle, Request
from reference_impl.sched.setup import Setup, build
from tests.reference_impl.engine.served import KINDS, serve

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 2e-4
"""Of logits in float32 against the same model with attention in float64; a wrong slot is off by 1."""


def runner(loaded: LoadedModel, memory: Any, **options: Any) -> Runner:
    return Runner(loaded.transformer, TorchAttention(), memory, poison=True, **options)


@st.composite
def jobs(draw: st.DrawFn, *, longest: int = 14) -> list[Request]:
    """Requests whose prompts share beginnings."""
    sizes = draw(st.lists(st.tuples(st.integers(1, longest), st.integers(1, 6)), min_size=1, max_size=5))
    return [
        Request(
            number,
            prompt,
            new,
            token_ids=array("i", ((position // (2 + number % 2)) % KINDS for position in range(prompt))),
        )
        for number, (prompt, new) in enumerate(sizes)
    ]


@given(
    requests=jobs(),
    block_size=st.integers(1, 4),
    spare=st.integers(0, 6),
    budget=st.integers(1, 24),
    prefix_cache=st.sampled_from(["none", "hash", "radix"]),
    recovery=st.sampled_from(["recompute", "swap"]),
    forks=st.frozensets(st.integers(0, 4)),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_logits_are_the_dense_models_under_chunks_hits_forks_copies_preemption_and_swaps(
    tiny: LoadedModel,
    requests: list[Request],
    block_size: int,
    spare: int,
    budget: int,
    prefix_cache: Any,
    recovery: Any,
    forks: frozenset[int],
) -> None:
    # So little memory that the longest request just fits: the others are preempted all the time.
    num_blocks = -(-max(request.final_tokens + 1 for request in requests) // block_size) + spare
    memory = KVManager(num_blocks, block_size, prefix_cache=prefix_cache, num_host_blocks=num_blocks, full_fit=False)
    scheduler = ContinuousBatching(memory, Limits(budget, 8), recovery=recovery)
    served = serve(scheduler, runner(tiny, memory, num_host_blocks=num_blocks), requests, forks)
    assert served.worst_error() <= TOLERANCE


def test_the_cases_above_do_have_chunks_hits_copies_preemption_and_swaps(tiny: LoadedModel) -> None:
    memory = KVManager(11, 2, prefix_cache="hash", num_host_blocks=20, full_fit=False)
    requests = [Request(number, 9, 6, token_ids=array("i", [1, 2] * 4 + [number % 3])) for number in range(4)]
    scheduler = ContinuousBatching(memory, Limits(7, 8), recovery="swap")
    served = serve(scheduler, runner(tiny, memory, num_host_blocks=20), requests, frozenset({0, 1}))
    counters = scheduler.counters
    assert counters.reused_tokens > 0
    assert counters.preemptions > 0
    assert counters.swaps_out > 0
    assert counters.swaps_in > 0
    assert counters.forks > 0
    assert any(plan.copies for plan in served.plans)
    assert any(1 < tokens < 9 for plan in served.plans for tokens in plan.scheduled.values())
    assert served.worst_error() <= TOLERANCE


@pytest.mark.parametrize("allocator", ["padded", "contiguous", "pow2", "grow", "paged"])
def test_logits_are_the_dense_models_however_memory_is_kept(tiny: LoadedModel, allocator: str) -> None:
    requests = [
        Request(number, 3 + 4 * number, 5, token_ids=array("i", [number, 1, 2] * 6)[: 3 + 4 * number])
        for number in range(4)
    ]
    scheduler = build(Setup(allocator, "continuous", 64, 32, block_size=4, max_running=3).effective())
    served = serve(scheduler, runner(tiny, scheduler.memory), requests, frozenset())
    assert len(served.logits) == 20
    assert served.worst_error() <= TOLERANCE
    assert any(plan.rectangle for plan in served.plans) == (allocator == "padded")


# The batch ---------------------------------------------------------------------------------------------------------


class Tables:
    """A memory that says what it is told to."""

    def __init__(self, num_blocks: int, block_size: int, tables: dict[int, list[int]]) -> None:
        self.num_blocks, self.block_size, self.tables = num_blocks, block_size, tables

    def block_table(self, request: int) -> list[int]:
        return list(self.tables[request])


class Watched:
    """A model that keeps what it was given, and answers with the places of the rows."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.config, self.dtype, self.device = loaded.config, torch.float32, torch.device("cpu")
        self.seen: list[SimpleNamespace] = []

    def forward(
        self, ids: Any, positions: Any, caches: Any, metadata: Any, attention: Any, rows: Any, **options: Any
    ) -> Any:
        self.seen.append(SimpleNamespace(ids=ids.tolist(), positions=positions.tolist(), metadata=metadata))
        return rows.float().unsqueeze(1)


@pytest.fixture
def watched(tiny: LoadedModel) -> Watched:
    return Watched(tiny)


def run(model: Watched, plan: Plan, tokens: dict[int, Sequence[int]], tables: dict[int, list[int]]) -> Any:
    return Runner(model, TorchAttention(), Tables(9, 4, tables)).run(plan, tokens)  # type: ignore[arg-type]


TOKENS: dict[int, Sequence[int]] = {7: range(100, 110), 8: range(200, 203), 9: range(30, 36)}
TABLES = {7: [3, 1, 4], 8: [0], 9: [8, 2]}


def test_one_token_sequences_come_first_then_the_plans_order_and_only_makers_have_logits(watched: Watched) -> None:
    plan = Plan(scheduled={7: 4, 8: 1, 9: 2}, computed={7: 3, 8: 2, 9: 4})
    step = run(watched, plan, TOKENS, TABLES)
    seen = watched.seen[0]
    assert seen.ids == [202, 103, 104, 105, 106, 34, 35]
    assert seen.positions == [2, 3, 4, 5, 6, 4, 5]
    assert seen.metadata.slot_mapping.tolist() == [2, 15, 4, 5, 6, 8, 9]
    assert seen.metadata.context_tokens == (3, 7, 6)
    assert step.rows == (8, 9)
    assert step.logits.flatten().tolist() == [0, 6]


def test_a_chunk_of_one_token_that_is_not_the_last_makes_nothing(watched: Watched) -> None:
    step = run(watched, Plan(scheduled={7: 1}, computed={7: 3}), TOKENS, TABLES)
    assert step.rows == ()
    assert watched.seen[0].metadata.num_decodes == 1


def test_a_padded_batch_computes_its_whole_rectangle_and_pads_write_nowhere(watched: Watched) -> None:
    plan = Plan(scheduled={7: 4, 8: 3}, computed={7: 0, 8: 0}, rectangle=Rectangle(3, 4, 0))
    run(watched, plan, TOKENS, TABLES)
    seen = watched.seen[0]
    assert len(seen.ids) == len(seen.positions) == 12
    assert seen.metadata.slot_mapping.tolist()[7:] == [-1] * 5


def test_a_plan_without_tokens_only_moves_blocks(watched: Watched) -> None:
    step = run(watched, Plan(copies=((0, 1),)), {}, {})
    assert (step.rows, step.logits.shape, watched.seen) == ((), (0, watched.config.vocab_size), [])


@pytest.mark.parametrize(
    ("plan", "tables", "said"),
    [
        (Plan(scheduled={8: 2}, computed={8: 2}), TABLES, "request 8 has 3 tokens; the plan computes 2 to 3"),
        (Plan(scheduled={8: 0}, computed={8: 2}), TABLES, "request 8 has 3 tokens; the plan computes 2 to 1"),
        (Plan(scheduled={9: 6}, computed={9: 0}), {9: [8]}, "request 9: 1 blocks of 4 have no slot for token 5"),
        (Plan(scheduled={8: 1}, computed={8: 0}), {8: [9]}, "request 8 was given block 9; there are 0 to 8"),
        (Plan(scheduled={8: 1}, computed={8: 0}), {8: [-1]}, "request 8 was given block -1; there are 0 to 8"),
        (
            Plan(scheduled={8: 3, 9: 2}, computed={8: 0, 9: 0}),
            {8: [5], 9: [5, 2]},
            "requests 8 and 9 both write into block 5",
        ),
        (
            Plan(scheduled={8: 3}, computed={8: 0}, rectangle=Rectangle(1, 2, 0)),
            TABLES,
            r"rows=1, new_tokens=2, context_tokens=0\) holds 2 tokens, 3 are scheduled",
        ),
    ],
)
def test_a_plan_or_a_table_that_cannot_be_is_named_and_nothing_is_computed(
    watched: Watched, plan: Plan, tables: dict[int, list[int]], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        run(watched, plan, TOKENS, tables)
    assert "\n" not in str(caught.value)
    assert watched.seen == []
