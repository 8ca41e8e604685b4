"""The asynchronous engine around the real one: requests of all kinds at once, and nothing left of any of them."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter

import pytest

from reference_impl.engine.async_engine import AsyncEngine, State
from reference_impl.engine.engine import Engine, RequestRefused
from reference_impl.engine.outputs import FinishReason, Piece
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampling import SamplingParams
from tests.reference_impl.engine.driving import blocks_in_use, tiny_engine

pytestmark = pytest.mark.usefixtures("one_thread")
LIMITS = {"blocks": 40, "block_size": 4, "max_running": 8, "max_context_tokens": 52}
RECOVERIES = [{}, {"recovery": "swap", "host_memory_bytes": 64 * 1024}, {"block_allocator": "contiguous"}]


def test_every_answer_has_an_end_also_one_that_never_began(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny).engine

    async def run() -> list[Piece]:
        async with AsyncEngine(engine) as served:
            wishes = SamplingParams(max_tokens=8, n=3)
            stream = await served.submit([[1, 2, 3]], wishes, timeout_s=1e-9)
            return await stream.whole()

    pieces = asyncio.run(run())
    assert [(piece.choice, piece.finish) for piece in pieces] == [(n, FinishReason.TIMEOUT) for n in range(3)]
    assert [piece.usage is None for piece in pieces] == [True, True, False]


async def one_client(served: AsyncEngine, chance: random.Random, fates: Counter[str]) -> None:
    """A request with a fate that is drawn beforehand: read to the end, left, cancelled, late, wrong or impossible."""
    fate = chance.choice(["read", "read", "whole", "leave", "cancel", "late", "wrong", "impossible"])
    prompt = [chance.randrange(256) for _ in range(chance.randint(1, 40))]
    wishes = SamplingParams(
        max_tokens=chance.randint(1, 12), n=chance.choice([1, 1, 2, 3]), temperature=chance.choice([0.0, 1.0])
    )
    timeout_s = chance.uniform(1e-4, 0.05) if fate == "late" else None
    if fate == "wrong":
        prompt.append(9_999)
    if fate == "impossible":
        prompt *= 60
    prompts = [prompt] * chance.randint(1, 2)
    while True:
        try:
            stream = await served.submit(prompts, wishes, timeout_s=timeout_s)
            break
        except RequestRefused as refused:
            fates[refused.kind] += 1
            if refused.kind != "busy":
                return
            await asyncio.sleep(0.01)
    async with stream:
        if fate == "leave":
            await anext(stream)
        elif fate == "whole":
            pieces = await stream.whole()
            assert len(pieces) == len(stream.requests) * wishes.n
            fates["whole"] += 1
        else:
            ends = [piece.finish async for piece in stream if piece.finish is not None]
            assert len(ends) == len(stream.requests) * wishes.n
            fates[fate] += 1


async def many_clients(engine: Engine, requests: int, at_once: int) -> Counter[str]:
    fates: Counter[str] = Counter()
    async with AsyncEngine(engine) as served:
        slots = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with slots:
                chance = random.Random(number)
                task = asyncio.ensure_future(one_client(served, chance, fates))
                if chance.random() < 0.2:
                    await asyncio.sleep(chance.uniform(0, 0.02))
                    task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    task.result()
                served.check_invariants()

        await asyncio.gather(*(one(number) for number in range(requests)))
    assert served.state is State.STOPPED, served.error
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return fates


def nothing_is_left(engine: Engine) -> None:
    assert not engine.has_work
    assert blocks_in_use(engine) == 0
    engine.check_invariants()
    assert not [thread for thread in threading.enumerate() if thread.name == "engine"]


@pytest.mark.parametrize("parts", RECOVERIES, ids=["recompute", "swap", "contiguous"])
def test_mixed_requests_leave_no_block_no_task_and_no_thread(tiny: LoadedModel, parts: dict[str, object]) -> None:
    engine = tiny_engine(tiny, max_waiting=12, **LIMITS, **parts).engine
    fates = asyncio.run(many_clients(engine, 150, at_once=30))
    nothing_is_left(engine)
    assert fates["invalid"] > 0
    assert fates["read"] > 0
    assert fates["too_long"] + fates["never_fits"] > 0


@pytest.mark.long
@pytest.mark.parametrize("parts", RECOVERIES[:2], ids=["recompute", "swap"])
def test_ten_thousand_mixed_requests_leave_nothing_either(tiny: LoadedModel, parts: dict[str, object]) -> None:
    engine = tiny_engine(tiny, max_waiting=40, debug=False, **LIMITS, **parts).engine
    fates = asyncio.run(many_clients(engine, 10_000, at_once=50))
    nothing_is_left(engine)
    assert set(fates) >= {"read", "whole", "late", "invalid", "busy"}
