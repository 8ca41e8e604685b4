"""An engine beside an event loop: who gets which piece, who is aborted when, and what is left at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.engine.async_engine import AsyncEngine, EngineStoppedError, State
from reference_impl.engine.engine import RequestRefused
from reference_impl.engine.outputs import FinishReason, Piece
from reference_impl.engine.stream import RequestFailedError, Stream
from reference_impl.model.sampling import SamplingParams
from tests.reference_impl.engine.scripted_engine import BROKEN, REFUSED, ScriptedEngine, letters

PROMPT = [1, 2, 3]


def wishes(max_tokens: int = 5, n: int = 1) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, n=n)


def run(engine: ScriptedEngine, test: Callable[[AsyncEngine], Awaitable[None]], **options: Any) -> AsyncEngine:
    """Run `test` with `engine` served, within 20 seconds, and see that nothing is left of it."""
    served = AsyncEngine(engine.served, **options)

    async def all_of_it() -> None:
        async with asyncio.timeout(20), served:
            await test(served)
            served.check_invariants()
        served.check_invariants()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(all_of_it())
    assert not [thread for thread in threading.enumerate() if thread.name == "engine"]
    return served


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def step_until(engine: ScriptedEngine, condition: Callable[[], bool]) -> None:
    while not condition():
        engine.allow()
        await asyncio.sleep(0.001)


async def text_of(stream: Stream, choice: int = 0) -> str:
    return "".join([piece.text async for piece in stream if piece.choice == choice])


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    """One whose steps have to be allowed; what a test leaves over may run to its end."""
    made = ScriptedEngine(free=False)
    yield made
    made.allow(1_000)


def test_each_of_many_consumers_gets_its_own_answer_from_one_thread() -> None:
    engine = ScriptedEngine()

    async def test(served: AsyncEngine) -> None:
        async def one(count: int) -> str:
            async with await served.submit([PROMPT], wishes(count)) as stream:
                return await text_of(stream)

        answers = await asyncio.gather(*(one(count) for count in range(1, 40)))
        assert answers == [letters(count) for count in range(1, 40)]

    run(engine, test)
    assert engine.threads == {"engine"}
    assert not engine.aborted


def test_a_consumer_who_keeps_up_sees_each_step(engine: ScriptedEngine) -> None:
    async def test(served: AsyncEngine) -> None:
        async with await served.submit([PROMPT], wishes(3)) as stream:
            for expected in "abc":
                engine.allow()
                assert (await anext(stream)).text == expected
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    run(engine, test)


def test_a_consumer_who_is_slow_gets_one_piece_for_each_answer(engine: ScriptedEngine) -> None:
    async def test(served: AsyncEngine) -> None:
        async with await served.submit([PROMPT], wishes(500, n=2)) as stream:
            engine.allow(500)
            await until(lambda: not engine.live)
            await served.inspect(lambda engine: None)
            pieces = [piece async for piece in stream]
        assert [(piece.choice, piece.text) for piece in pieces] == [(0, letters(500)), (1, letters(500))]
        assert [len(piece.tokens) for piece in pieces] == [500, 500]
        assert [piece.finish for piece in pieces] == [FinishReason.LENGTH] * 2
        assert pieces[1].usage is not None
        assert pieces[1].usage.completion_tokens == 1_000

    run(engine, test)


def test_whole_waits_for_all_answers_in_the_order_of_the_prompts() -> None:
    async def test(served: AsyncEngine) -> None:
        async with await served.submit([PROMPT, PROMPT, PROMPT], wishes(4, n=2)) as stream:
            pieces = await stream.whole()
        places = [(stream.requests.index(piece.request), piece.choice) for piece in pieces]
        assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
        assert {piece.text for piece in pieces} == {letters(4)}

    run(ScriptedEngine(), test)


def test_a_cancelled_consumer_aborts_its_request_and_no_other(engine: ScriptedEngine) -> None:
    async def test(served: AsyncEngine) -> None:
        async def consume() -> None:
            async with await served.submit([PROMPT], wishes(1_000)) as stream:
                await text_of(stream)

        other = await served.submit([PROMPT], wishes(3))
        task = asyncio.ensure_future(consume())
        await asyncio.sleep(0)
        # The step under way has to end before anybody else is admitted.
        engine.allow()
        await until(lambda: len(engine.live) == 2)
        task.cancel()
        await asyncio.wait([task])
        await step_until(engine, lambda: not engine.has_work)
        assert await text_of(other) == letters(3)
        assert engine.aborted == [1]

    run(engine, test)


def test_one_who_is_cancelled_before_he_knows_that_he_was_admitted_is_aborted(engine: ScriptedEngine) -> None:
    async def test(served: AsyncEngine) -> None:
        first = await served.submit([PROMPT], wishes(2))
        # The step under way holds the thread, so the next one waits at the door.
        task = asyncio.ensure_future(served.submit([PROMPT], wishes(1_000)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await step_until(engine, lambda: engine.aborted == [1] and not engine.has_work)
        assert await text_of(first) == letters(2)

    run(engine, test)


def test_leaving_early_aborts_and_leaving_late_does_not() -> None:
    engine = ScriptedEngine()

    async def test(served: AsyncEngine) -> None:
        async with await served.submit([PROMPT], wishes(2)) as stream:
            await text_of(stream)
        async with await served.submit([PROMPT], wishes(10**9)) as stream:
            await anext(stream)
        await until(lambda: not engine.has_work)
        assert engine.aborted == [1]

    run(engine, test)


def test_a_refusal_is_its_callers_alone(engine: ScriptedEngine) -> None:
    async def test(served: AsyncEngine) -> None:
        stream = await served.submit([PROMPT], wishes(3))
        engine.allow(1_000)
        with pytest.raises(RequestRefused, match="nobody wants"):
            await served.submit([[REFUSED]], wishes())
        with pytest.raises(TypeError, match="nobody foresaw"):
            await served.submit([[BROKEN]], wishes())
        assert await text_of(stream) == letters(3)
        assert served.state is State.READY

    run(engine, test)


@pytest.mark.parametrize(("bad", "kind"), [(REFUSED, RequestRefused), (BROKEN, TypeError)])
def test_of_several_prompts_all_are_taken_or_none(bad: int, kind: type[Exception]) -> None:
    engine = ScriptedEngine()

    async def test(served: AsyncEngine) -> None:
        with pytest.raises(kind):
            await served.submit([PROMPT, PROMPT, [bad], PROMPT], wishes())
        await until(lambda: not engine.has_work)
        assert engine.aborted == [0, 1]

    run(engine, test)


@pytest.mark.parametrize("error", [ValueError("weights\nare broken"), SystemExit(3), MemoryError()])
def test_an_error_in_a_step_ends_every_request_and_says_why(error: BaseException) -> None:
    engine = ScriptedEngine()

    async def test(served: AsyncEngine) -> None:
        streams = [await served.submit([PROMPT], wishes(10**9)) for _ in range(3)]
        engine.error = error
        for stream in streams:
            with pytest.raises(EngineStoppedError, match=type(error).__name__):
                await text_of(stream)
        assert served.state is State.FAILED
        assert served.error is not None
        assert "\n" not in served.error
        with pytest.raises(EngineStoppedError, match="until it is started again"):
            await served.submit([PROMPT], wishes())
        assert await served.inspect(lambda engine: engine.num_running) == 3

    served = run(engine, test)
    assert served.state is State.FAILED


def test_who_waits_at_the_door_when_a_step_fails_hears_of_it() -> None:
    engine = ScriptedEngine(free=False)
    engine.error = ValueError("weights are broken")

    async def test(served: AsyncEngine) -> None:
        stream = await served.submit([PROMPT], wishes())
        asked = [asyncio.ensure_future(served.submit([PROMPT], wishes())) for _ in range(3)]
        await asyncio.sleep(0)
        engine.allow()
        for task in asked:
            with pytest.raises(EngineStoppedError, match="weights are broken"):
                await task
        with pytest.raises(EngineStoppedError):
            await text_of(stream)

    run(engine, test)


def test_a_step_that_fails_ends_its_own_requests_and_the_others_go_on() -> None:
    engine = ScriptedEngine()

    async def test(served: AsyncEngine) -> None:
        failing = await served.submit([PROMPT], wishes(10**9))
        several = await served.submit([PROMPT, PROMPT], wishes(10**9))
        other = await served.submit([PROMPT], wishes(2_000))
        for stream in (failing, several):
            await anext(stream)
        engine.failing, engine.error = [0, 1], MemoryError("no room at all")
        with pytest.raises(RequestFailedError, match="failed: no room at all"):
            await text_of(failing)
        async with several:
            with pytest.raises(RequestFailedError):
                await several.whole()
        await until(lambda: engine.aborted == [2])
        assert await text_of(other) == letters(2_000), "the second prompt of a call whose first failed is of no use"
        assert await text_of(await served.submit([PROMPT], wishes(4))) == letters(4)
        assert served.state is State.READY
        assert served.error is None

    run(engine, test)


def test_the_text_of_a_request_that_fails_comes_before_the_error(engine: ScriptedEngine) -> None:
    async def test(served: AsyncEngine) -> None:
        stream = await served.submit([PROMPT], wishes(10))
        engine.allow(3)
        await until(lambda: engine.steps == 3)
        engine.failing, engine.error = [0], MemoryError("no room")
        engine.allow(2)
        await until(lambda: not engine.has_work)
        await served.inspect(lambda engine: None)
        assert (await anext(stream)).text == "abc"
        with pytest.raises(RequestFailedError):
            await anext(stream)

    run(engine, test)


def test_shutdown_lets_answers_end_and_takes_no_more(engine: ScriptedEngine) -> None:
    async def test(served: AsyncEngine) -> None:
        stream = await served.submit([PROMPT], wishes(3))
        stopping = asyncio.ensure_future(served.shutdown())
        await asyncio.sleep(0)
        assert served.state is State.STOPPING
        with pytest.raises(EngineStoppedError, match="stopping"):
            await served.submit([PROMPT], wishes())
        engine.allow(10)
        await stopping
        assert served.state is State.STOPPED
        assert await text_of(stream) == letters(3)
        assert not engine.aborted

    run(engine, test)


def test_what_is_not_done_when_the_time_is_over_is_aborted_and_keeps_what_it_has() -> None:
    engine = ScriptedEngine()

    async def test(served: AsyncEngine) -> None:
        streams = [await served.submit([PROMPT], wishes(10**9)) for _ in range(3)]
        await served.shutdown()
        for stream in streams:
            (piece,) = await stream.whole()
            assert piece.finish is FinishReason.ABORT
            assert piece.usage is not None
            assert piece.text == letters(piece.usage.completion_tokens)
        assert sorted(engine.aborted) == [0, 1, 2]

    run(engine, test, drain_s=0.05)


def test_who_is_admitted_while_the_rest_is_aborted_is_aborted_too(engine: ScriptedEngine) -> None:
    async def test(served: AsyncEngine) -> None:
        await served.submit([PROMPT], wishes(10**9))
        late = asyncio.ensure_future(served.submit([PROMPT], wishes(10**9)))
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(served.shutdown())
        await asyncio.sleep(0.05)
        engine.allow(1_000)
        await stopping
        assert (await (await late).whole())[0].finish is FinishReason.ABORT

    run(engine, test, drain_s=0.0)


def test_shutdown_may_be_asked_for_twice_and_before_the_start() -> None:
    async def test(served: AsyncEngine) -> None:
        await asyncio.gather(served.shutdown(), served.shutdown())
        await served.shutdown()

    run(ScriptedEngine(), test)

    async def never_started() -> None:
        served = AsyncEngine(ScriptedEngine().served)
        with pytest.raises(EngineStoppedError, match="not started"):
            await served.submit([PROMPT], wishes())
        await served.shutdown()

    asyncio.run(never_started())


def test_a_look_inside_happens_in_the_engines_thread_between_steps(engine: ScriptedEngine) -> None:
    async def test(served: AsyncEngine) -> None:
        await served.submit([PROMPT], wishes(2))
        looking = asyncio.ensure_future(served.inspect(lambda engine: threading.current_thread().name))
        await asyncio.sleep(0.02)
        assert not looking.done()
        engine.allow(2)
        assert await looking == "engine"
        with pytest.raises(ZeroDivisionError):
            await served.inspect(lambda engine: 1 / 0)
        assert served.state is State.READY

    served = run(engine, test)
    assert asyncio.run(served.inspect(lambda engine: threading.current_thread().name)) == "MainThread"


def test_an_engine_with_nothing_to_do_runs_no_step() -> None:
    engine = ScriptedEngine()

    async def test(served: AsyncEngine) -> None:
        async with await served.submit([PROMPT], wishes(2)) as stream:
            await text_of(stream)
        await asyncio.sleep(0.05)

    run(engine, test)
    assert engine.steps == 2


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 6), st.integers(1, 3)),
        st.tuples(st.sampled_from(["step", "cancel", "read", "refuse", "breathe"]), st.integers(0, 9), st.just(0)),
    ),
    max_size=40,
)


@given(acts=ACTS)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_in_whatever_order_every_consumer_gets_his_own_or_is_aborted(
    acts: list[tuple[str, int, int]],
) -> None:
    engine = ScriptedEngine(free=False)

    async def consume(served: AsyncEngine, max_tokens: int, n: int, gate: asyncio.Event) -> list[Piece]:
        async with await served.submit([PROMPT], wishes(max_tokens, n)) as stream:
            await gate.wait()
            return [piece async for piece in stream]

    async def test(served: AsyncEngine) -> None:
        consumers: list[tuple[asyncio.Task[list[Piece]], int, int, asyncio.Event]] = []
        for act, number, n in acts:
            if act == "submit":
                gate = asyncio.Event()
                task = asyncio.create_task(consume(served, number, n, gate))
                consumers.append((task, number, n, gate))
            elif act == "step":
                engine.allow(number + 1)
            elif act == "refuse":
                asyncio.create_task(served.submit([[REFUSED]], wishes())).add_done_callback(
                    lambda task: task.exception()
                )
            elif act == "breathe":
                await asyncio.sleep(0.001)
            elif consumers:
                task, _, _, gate = consumers[number % len(consumers)]
                task.cancel() if act == "cancel" else gate.set()
            served.check_invariants()
        engine.allow(10_000)
        for task, max_tokens, n, gate in consumers:
            gate.set()
            await asyncio.wait([task])
            if not task.cancelled():
                for choice in range(n):
                    text = "".join(piece.text for piece in task.result() if piece.choice == choice)
                    assert text == letters(max_tokens)
        await until(lambda: not engine.has_work)

    run(engine, test)
    assert not engine.live
