"""What the clock saw is handed on once, under names that tell no length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autograder.gpu.stand import Stand
from autograder.gpu.subject import PRINTING, TRIES, FromHere, Seen, names_of, played
from autograder.gpu.timed import TimedCase, Timing
from autograder.judge.attention_speed import equal_cases, unequal_cases
from autograder.judge.remote import TestEnded
from autograder.judge.verdicts import Verdict

CASES = tuple(TimedCase(lengths, 4, 2, 64, 16, "float16") for lengths in ((33, 33), (5, 777), (9,)))
PLAN: dict[str, list[Any]] = {"kernels": [], "buffers": [], "steps": [], "problems": []}


class Source:
    """A worker that records nothing."""

    def record(self, name: str, buffers: Any, args: Any) -> Any:
        return PLAN

    def gone(self) -> None:
        pass

    def left_s(self) -> float:
        return 60.0


def subject(
    seen: Seen,
    wrong: str = "",
    drift: float = 0.0,
    read_bytes_per_s: float = 1e12,
    slowed: Sequence[str] = (),
    source: Source | None = None,
    started: list[None] | None = None,
) -> Any:
    """Functions whose timing takes as many microseconds as the case has tokens; the last case is `wrong`.

    slowed: what held the clocks down at each timing, as long as it goes on.
    """
    held_down = list(slowed)

    def time(plan: Any, case: TimedCase, seed: int, at_most_s: float) -> Timing:
        assert at_most_s == 60.0
        told = wrong if case == CASES[-1] else ""
        why = held_down.pop(0) if held_down else ""
        return Timing(sum(case.lengths), 10.0, 10.0 * (1 + drift), case.kv_bytes, read_bytes_per_s, told, why)

    def textbook_us(case: TimedCase, at_most_s: float) -> float | None:
        return None if case == CASES[0] else 2.0 * sum(case.lengths)

    def renew() -> None:
        if started is not None:
            started.append(None)

    stand = cast(Stand, SimpleNamespace(time=time, textbook_us=textbook_us, renew=renew, alone=nullcontext))
    return played(cast(FromHere, source or Source()), stand, ("paged_attention",), seen)()


def test_each_case_is_told_once_in_the_order_of_time() -> None:
    seen: Seen = []
    functions = subject(seen)
    for _ in range(2):
        functions.timed(CASES, 7)
    assert [(name, timing.student_us) for name, timing in seen] == [
        ("equal lengths, batch 1 of 3", 66),
        ("unequal lengths, batch 2 of 3", 782),
        ("equal lengths, batch 3 of 3", 9),
    ]


def test_a_textbooks_time_stands_beside_where_there_is_one() -> None:
    seen: Seen = []
    subject(seen).timed(CASES, 7)
    assert [timing.textbook_us for _, timing in seen] == [None, 1564.0, 18.0]
    shares = [(timing.share, timing.textbook_share) for _, timing in seen]
    assert shares[0][1] is None
    # Twice as long is half the share.
    assert all(textbook == pytest.approx(share / 2) for share, textbook in shares[1:])


def test_a_textbook_that_fails_costs_nobody_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the process that its making starts.
    stand = object.__new__(Stand)
    stand.turns = None

    def gone(*_: Any, **__: Any) -> Any:
        raise TestEnded(Verdict.GPU_FAULT, "a fault of ours")

    monkeypatch.setattr(stand, "_request", gone)
    assert stand.textbook_us(CASES[0]) is None


def test_cases_named_along_are_timed_in_one_process_and_told_when_they_are_asked_for() -> None:
    seen: Seen = []
    started: list[None] = []
    functions = subject(seen, started=started)
    asked, others = CASES[:1], CASES[1:2]
    functions.timed(asked, 7, along=[others])
    assert [timing.student_us for _, timing in seen] == [66]
    assert functions.timed(others, 7, along=[asked])[0].textbook_us == 1564.0
    assert [timing.student_us for _, timing in seen] == [66, 782]
    assert len(started) == 1


def test_what_goes_wrong_in_cases_named_along_ends_only_who_asks_for_them() -> None:
    functions = subject([], wrong="not the answer")
    functions.timed(CASES[:2], 7, along=[CASES[2:]])
    with pytest.raises(TestEnded, match="not the answer"):
        functions.timed(CASES[2:], 7)

    class Stumbles(Source):
        def record(self, name: str, buffers: Any, args: Any) -> Any:
            if buffers[0]["numel"] == 4 * 64:
                raise ValueError("a single sequence")
            return PLAN

    functions = subject([], source=Stumbles())
    assert functions.timed(CASES[:2], 7, along=[CASES[2:]])[0].student_us == 66
    with pytest.raises(ValueError, match="a single sequence"):
        functions.timed(CASES[2:], 7, along=[CASES[:2]])


def test_nothing_is_told_of_cases_of_which_one_is_wrong() -> None:
    seen: Seen = []
    functions = subject(seen, wrong="not the answer")
    with pytest.raises(TestEnded):
        functions.timed(CASES, 7)
    assert seen == []


@pytest.mark.parametrize(
    "noise", [{"drift": 0.031}, {"read_bytes_per_s": 1e6}], ids=["restless", "faster than possible"]
)
def test_what_cannot_be_believed_is_no_speed(noise: dict[str, float]) -> None:
    seen: Seen = []
    with pytest.raises(TestEnded) as ended:
        subject(seen, **noise).timed(CASES, 7)  # type: ignore[arg-type]
    assert ended.value.verdict is Verdict.INCONCLUSIVE
    assert seen == []


def test_a_time_under_slowed_clocks_is_taken_again_and_why_is_told_if_they_stay_so() -> None:
    seen: Seen = []
    subject(seen, slowed=["power brake"]).timed(CASES, 7)
    assert [timing.slowed for _, timing in seen] == ["", "", ""]
    with pytest.raises(TestEnded, match="the GPU's clocks were held down: power brake") as ended:
        subject([], slowed=["power brake"] * TRIES).timed(CASES, 7)
    assert ended.value.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("seed", range(3))
def test_a_name_tells_no_length_and_no_seed(seed: int) -> None:
    kinds = {"equal": equal_cases(seed), "unequal": unequal_cases(seed)}
    for kind, cases in kinds.items():
        assert names_of(cases) == [f"{kind} lengths, batch {n} of 3" for n in (1, 2, 3)]
        for name, case in zip(names_of(cases), cases, strict=True):
            assert set(re.findall(r"\d+", name)) <= {"1", "2", "3"}
            assert str(len(case.lengths)) not in name


@pytest.mark.parametrize(("code", "told"), [(b"vprintf\0", True), (b"vprintf_of_mine\0", False)])
def test_kernels_that_do_not_end_and_print_are_told_that_printing_takes_time(code: bytes, told: bool) -> None:
    kernel = {"cubin": b"\x7fELF" + code, "name": "decode", "shared": 0, "warps": 4, "scratch_bytes": 0}

    class Prints(Source):
        def record(self, name: str, buffers: Any, args: Any) -> Any:
            return {**PLAN, "kernels": [{**kernel, "scratch_align": 1}]}

    def play(*_: Any) -> Any:
        raise TestEnded(Verdict.TIMEOUT, "too long")

    stand = cast(Stand, SimpleNamespace(play=play))
    functions = played(cast(FromHere, Prints()), stand, ("call",), [])()
    with pytest.raises(TestEnded) as ended:
        functions.call()
    assert ended.value.verdict is Verdict.TIMEOUT
    assert ended.value.message == (f"too long; {PRINTING}" if told else "too long")
