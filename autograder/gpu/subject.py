"""Functions of a submission whose kernels are recorded in the worker and played by us.

Owns: a `Subject` like `judge.functions.RemoteFunctions`, for a GPU: a call is recorded in the worker on random numbers,
the plan crosses, is checked, and is played here on the caller's numbers, which the worker never meets. Integers of the
call (block tables, lengths, slots) do cross, so that the host may do its bookkeeping; they are the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from autograder.gpu.plan import PROBLEMS, Plan, PlanRefused, parse
from autograder.gpu.stand import Stand
from autograder.gpu.timed import FASTER_THAN_POSSIBLE, TimedCase, Timing
from autograder.judge.functions import InPlaceFunctions
from autograder.judge.remote import Session, TestEnded
from autograder.judge.subject import Make
from autograder.judge.verdicts import Verdict
from autograder.worker import tensors, wire

DRIFT_MAX = 0.03
"""The reference before and after may differ by so much; beyond, the measurement says nothing."""
TRIES = 3
CONTRACT = "paged_attention"
UNSTEADY = (
    "two runs on the same numbers gave different answers: they depend on memory that nobody wrote, or on which of two "
    "programs writes a place first"
)
PRINTING = "one of them prints, and a GPU that prints much waits for its lines to be taken: print from one program only"
REHEARSAL = TimedCase((5, 40), 4, 2, 64, 16, "float16")

Turn = Callable[[], AbstractContextManager[None]]
Asked = tuple[tuple[TimedCase, ...], int]
"""Cases that are timed together, and the seed of their tables."""


class FromWorker:
    """Plans from the worker of a session, which takes a `turn` on the GPU for each."""

    def __init__(self, session: Session, faults: Mapping[str, str], turn: Turn = nullcontext) -> None:
        self._session = session
        self._faults = faults
        self._turn = turn

    def record(self, name: str, buffers: list[dict[str, Any]], args: list[dict[str, Any]]) -> Any:
        """The plan of a call whose buffers have no bytes where floats belong.

        Raises: what the student's code raised, or TestEnded.
        """
        if name in self._faults:
            raise TestEnded(Verdict.MISSING, self._faults[name])
        sent = [{**b, "bytes": None if b["bytes"] is None else wire.encode(b["bytes"])} for b in buffers]
        with self._turn():
            self._session.worker()
            return self._session.ask(self._session.generation, op="record", name=name, buffers=sent, args=args)

    def left_s(self) -> float:
        """Seconds left for this submission. Raises: TestEnded if there are none."""
        return self._session.left_s()

    def gone(self) -> None:
        """End the worker, so that nothing of the student's runs beside a clock."""
        self._session.fresh()


class FromHere:
    """Plans of functions in this process, for the reference and for designs of our own. They need the GPU here."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions

    def record(self, name: str, buffers: list[dict[str, Any]], args: list[dict[str, Any]]) -> Any:
        """The plan of a call whose buffers have no bytes where floats belong. Raises: what the function raises."""
        from autograder.worker import record

        sent = [{**b, "bytes": None if b["bytes"] is None else wire.encode(b["bytes"])} for b in buffers]
        values, storages = record.sample_call(sent, args, wire.decode)
        return record.record(getattr(self._functions, name), values, storages)

    def left_s(self) -> float:
        """Nobody waits for a design of our own."""
        return math.inf

    def gone(self) -> None:
        """Leave the GPU's memory to others."""
        import torch

        torch.cuda.empty_cache()


@dataclass
class Timings:
    """What was timed already, for all objects of one submission, and what of it was told to somebody who asked."""

    found: dict[Asked, list[Timing] | TestEnded] = field(default_factory=dict)
    told: set[Asked] = field(default_factory=set)


class PlayedFunctions(InPlaceFunctions):
    """The functions, called with torch tensors on the CPU; what a kernel wrote is copied back into them."""

    def __init__(
        self, source: FromWorker | FromHere, stand: Stand, names: Sequence[str], timings: Timings, seen: Seen
    ) -> None:
        super().__init__(names)
        self._source = source
        self._stand = stand
        self._timings = timings
        self._seen = seen

    def _call(self, name: str, args: tuple[Any, ...]) -> None:
        """Raises: what the student's code raised while it was recorded, or TestEnded."""
        buffers, packed = tensors.pack(args)
        data = self._source.record(name, [_without_floats(buffer) for buffer in buffers], packed)
        plan = self._parsed(data, sizes_of(buffers))
        try:
            facts, written = self._stand.play(
                data,
                [buffer["bytes"] for buffer in buffers],
                [buffer["dtype"] for buffer in buffers],
                self._source.left_s(),
            )
        except TestEnded as ended:
            if ended.verdict is Verdict.TIMEOUT and plan.prints():
                raise TestEnded(ended.verdict, f"{ended.message}; {PRINTING}") from None
            raise
        if not facts["intact"]:
            raise TestEnded(Verdict.GPU_FAULT, "memory beside the call's tensors was overwritten")
        if not facts["steady"]:
            raise TestEnded(Verdict.WRONG, UNSTEADY)
        tensors.restore(args, written)

    def _parsed(self, data: Any, sizes: Sequence[int]) -> Plan:
        try:
            plan = parse(data, sizes)
        except PlanRefused as refused:
            raise TestEnded(Verdict.PROTOCOL_VIOLATION, f"what was recorded is no plan: {refused.reason}") from None
        if plan.problems:
            # Without its name, as a hidden length could be spelt with it; the rehearsal tells names.
            raise TestEnded(Verdict.WRONG, PROBLEMS[plan.problems[0][0]])
        return plan

    def timed(self, cases: Sequence[TimedCase], seed: int, along: Sequence[Sequence[TimedCase]] = ()) -> list[Timing]:
        """Each case timed beside the reference, once for all tests that ask. The worker is ended before the clock runs.

        along: other cases that will be asked for. They are recorded and timed now, by one worker and in one process,
        and told when they are asked for. Raises: TestEnded, also if the machine was too restless to tell
        (INCONCLUSIVE).
        """
        key = (tuple(cases), seed)
        if key not in self._timings.found:
            self._time_all(key, [(tuple(others), seed) for others in along])
        found = self._timings.found[key]
        if isinstance(found, TestEnded):
            raise found
        if key not in self._timings.told:
            self._timings.told.add(key)
            self._seen += zip(names_of(cases), found, strict=True)
        return found

    def _time_all(self, asked: Asked, along: Sequence[Asked]) -> None:
        """Raises: what the student's code raised for what is asked. What it raises for others is left to who asks."""
        plans: dict[Asked, list[Any]] = {}
        for key in (asked, *(key for key in along if key not in self._timings.found)):
            try:
                plans[key] = [self._plan_of(case, key[1]) for case in key[0]]
            except TestEnded as ended:
                self._timings.found[key] = ended
            except Exception:
                if key == asked:
                    raise
        if not plans:
            return
        self._source.gone()
        try:
            # The process that has the clock has played no plan before.
            self._stand.renew()
            with self._stand.alone():
                self._take_times(plans)
        except TestEnded as ended:
            self._timings.found.update(dict.fromkeys(plans, ended))

    def _take_times(self, plans: Mapping[Asked, list[Any]]) -> None:
        """Raises: TestEnded if no time is left for the first of them."""
        beside_us = {key: [self._stand.textbook_us(case, self._source.left_s()) for case in key[0]] for key in plans}
        for key, recorded in plans.items():
            try:
                self._timings.found[key] = [
                    replace(self._one(plan, case, key[1]), textbook_us=us)
                    for plan, case, us in zip(recorded, key[0], beside_us[key], strict=True)
                ]
            except TestEnded as ended:
                self._timings.found[key] = ended

    def _plan_of(self, case: TimedCase, seed: int) -> Any:
        buffers, args = call_of(case, seed)
        data = self._source.record(CONTRACT, buffers, args)
        self._parsed(data, sizes_of(buffers))
        return data

    def _one(self, plan: Any, case: TimedCase, seed: int) -> Timing:
        slowed = ""
        for _ in range(TRIES):
            timing = self._stand.time(plan, case, seed, self._source.left_s())
            if timing.wrong:
                raise TestEnded(Verdict.WRONG, timing.wrong)
            fastest = max(timing.share, timing.reference_share)
            if timing.drift <= DRIFT_MAX and fastest <= FASTER_THAN_POSSIBLE and not timing.slowed:
                return timing
            slowed = slowed or timing.slowed
        why = f"; the GPU's clocks were held down: {slowed}" if slowed else ""
        raise TestEnded(Verdict.INCONCLUSIVE, f"the machine was too restless to time anything{why}")


Seen = list[tuple[str, Timing]]
"""The name of each case that was timed, and what the clock saw, in the order of time."""


def names_of(cases: Sequence[TimedCase]) -> list[str]:
    """What a student may read of cases that were timed together: their kind and number, none of their lengths."""
    kinds = ["equal" if len(set(case.lengths)) == 1 else "unequal" for case in cases]
    return [f"{kind} lengths, batch {number} of {len(kinds)}" for number, kind in enumerate(kinds, 1)]


def rehearse(session: Session, source: FromWorker) -> None:
    """Record one public call, before any hidden test, and note by name what makes its plan unfit to be played."""
    buffers, args = call_of(REHEARSAL, seed=0)
    try:
        plan = parse(source.record(CONTRACT, buffers, args), sizes_of(buffers))
    except (Exception, TestEnded):
        # The hidden tests will meet it again, and have words for it.
        return
    for kind, name in plan.problems:
        session.note(f"{PROBLEMS[kind]}: {name}" if name else PROBLEMS[kind])


def played(source: FromWorker | FromHere, stand: Stand, names: Sequence[str], seen: Seen | None = None) -> Make:
    """A `Make` without arguments for functions whose plans come from `source`. What is timed is added to `seen`."""
    timings = Timings()
    told: Seen = [] if seen is None else seen

    def make() -> Any:
        return PlayedFunctions(source, stand, names, timings, told)

    return make


def sizes_of(buffers: Sequence[dict[str, Any]]) -> list[int]:
    """Bytes of each storage of a call."""
    return [buffer["numel"] * tensors.ITEM_BYTES[buffer["dtype"]] for buffer in buffers]


def _without_floats(buffer: dict[str, Any]) -> dict[str, Any]:
    """A buffer whose numbers the worker draws itself, unless they are integers."""
    return {**buffer, "bytes": None} if "float" in buffer["dtype"] else buffer


def call_of(case: TimedCase, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The call of `paged_attention` on a case, as `tensors.pack` would have it but for the floats."""
    tables, lengths = case.tables(seed)
    queries = (len(case.lengths), case.heads, case.head_dim)
    cache = (case.num_blocks, case.block_size, case.kv_heads, case.head_dim)
    (packed_tables, packed_lengths), (tables_arg, lengths_arg) = tensors.pack([tables, lengths])

    def floats(shape: Sequence[int]) -> dict[str, Any]:
        return {"dtype": case.dtype, "numel": math.prod(shape), "bytes": None}

    def arg(place: int, shape: Sequence[int]) -> dict[str, Any]:
        strides = [1]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * size)
        return {"tensor": [place, case.dtype, list(shape), strides, 0]}

    def moved(argument: dict[str, Any], place: int) -> dict[str, Any]:
        return {"tensor": [place, *argument["tensor"][1:]]}

    buffers = [floats(queries), floats(cache), floats(cache), packed_tables, packed_lengths, floats(queries)]
    scale = {"value": wire.encode(case.head_dim**-0.5)}
    args = [arg(0, queries), arg(1, cache), arg(2, cache), moved(tables_arg, 3), moved(lengths_arg, 4)]
    return buffers, [*args, scale, arg(5, queries)]
