"""The picture of a state: what stands in it, without colour, at any width and height."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from labkit.event_log import Event, check_log
from reference_impl.engine.watch.letters import Letters
from reference_impl.engine.watch.replay import Replay
from reference_impl.engine.watch.state import Kind, blocks_of, counts_of, tally_of
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand
from tests.reference_impl.engine.watch.logs import cells, forked, logs, printed, served

BARS = " ▁▂▃▄▅▆▇█"


def the_moment(events: list[Event], kind: str) -> int:
    return next(place for place, event in enumerate(events) if event["kind"] == kind)


def number_before(word: str, lines: list[str]) -> int:
    found = re.search(rf"(-?[\d,]+) {word}", "\n".join(lines))
    assert found is not None, f"nothing is said of {word}"
    return int(found[1].replace(",", ""))


def number_behind(word: str, lines: list[str]) -> int:
    found = re.search(rf"{word} ([\d,]+)", "\n".join(lines))
    assert found is not None, f"nothing is said of {word}"
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("recovery", ["swap", "recompute"])
def test_at_every_event_each_block_is_shown_once_as_what_it_is(recovery: str, width: int) -> None:
    log, _ = served(recovery)
    replay, letters = Replay(log.events), Letters()
    for place in range(0, replay.last + 1, 7):
        lines = printed(replay.view(place), width)
        state = replay.frame(place).state
        of = letters.of([*state["tables"], *state["host"], *map(str, state["waiting"])])
        shown = [cell for _, cell in cells(lines, width=width)]
        expected = []
        for block in range(state["num_blocks"]):
            holders = [request for request, table in state["tables"].items() if block in table]
            bar = BARS[state["filled"][block] * 8 // state["block_size"]]
            if not holders:
                expected.append(f"○{bar}" if block in state["published"] else "· ")
            else:
                expected.append((of[holders[0]] if len(holders) == 1 else str(len(holders))) + bar)
        assert [cell.ljust(2) for cell in shown] == expected
        on_host = {block: request for request, ids in state["host"].items() for block in ids}
        assert [cell[0] for _, cell in cells(lines, "host", width=width)] == [
            of[on_host[block]] if block in on_host else "·" for block in range(state["num_host_blocks"])
        ]


@pytest.mark.parametrize("recovery", ["swap", "recompute"])
def test_the_counters_in_the_picture_are_those_of_the_scheduler(recovery: str) -> None:
    log, scheduler = served(recovery)
    lines = printed(Replay(log.events).view(len(log.events) - 1))
    counters = scheduler.counters
    assert number_behind("admitted", lines) == counters.admitted
    assert number_behind("preempted", lines) == counters.preemptions
    assert number_behind("to the host", lines) == counters.swaps_out
    assert number_behind("hit tokens", lines) == counters.reused_tokens
    assert number_behind("evicted", lines) == scheduler.memory.num_evicted
    assert number_before("available", lines) == scheduler.memory.num_free_blocks == 24


def test_the_requests_are_listed_with_tokens_and_blocks_and_the_queue_in_its_order() -> None:
    log, _ = served("recompute")
    replay = Replay(log.events)
    place = the_moment(log.events, "preempt")
    lines = printed(replay.view(place))
    text, state = "\n".join(lines), replay.frame(place).state
    for request, tokens in state["tokens"].items():
        assert re.search(rf"[A-Z] {request} +{tokens} tokens  {len(state['tables'][request])} block", text)
    lost = state["preempted"][0]
    assert f"{lost} preempted" in text
    queue = text[text.index("queue:") : text.index("── counters")]
    assert [int(number) for number in re.findall(r"\d+", queue)] == state["waiting"]
    assert f"running {len(state['tables'])}, waiting {len(state['waiting'])} " in text
    assert f"── event {place} of {replay.last}, preempt ─" in text
    assert log.events[place]["sentence"] in " ".join(line.strip() for line in lines)


def test_who_lies_on_the_host_is_in_the_list() -> None:
    log, _ = served("swap")
    replay = Replay(log.events)
    place = the_moment(log.events, "swap_out")
    text = "\n".join(printed(replay.view(place)))
    request = log.events[place]["seq"]
    assert re.search(rf"{request} +on the host: {len(log.events[place]['blocks'])} block", text)
    assert ", on the host 1 ─" in text


def test_a_shared_block_says_how_many_hold_it_and_a_copy_is_told() -> None:
    replay = Replay(forked().events)
    lines = printed(replay.view(replay.last))
    # Requests 1, 2 and 3 are B, C and D; C has a tail of its own, and none of its copy is written by the log yet.
    assert [cell.strip() for _, cell in cells(lines)] == ["3█", "3█", "2▄", "C▄", "·", "·", "·", "·"]
    assert number_before("shared", [line for line in lines if line.startswith("blocks:")]) == 3
    assert number_behind("copies", lines) == 1


def test_more_than_nine_holders_are_a_plus_that_the_legend_explains() -> None:
    log = EventLog()
    manager = KVManager(30, 4, log=log)
    manager.admit(Demand(0, 8, 1), 8)
    manager.commit(0, 8)
    for child in range(1, 12):
        manager.fork(0, Demand(child, 9, 1))
    lines = printed(Replay(log.events).view(len(log.events) - 1))
    assert [cell for _, cell in cells(lines)][:2] == ["+█", "+█"]
    assert "+ by 10 or more" in "\n".join(lines)


@settings(max_examples=40, deadline=None)
@given(logs(), st.sampled_from([1, 9, 33, 80, 119, 120, 200]), st.sampled_from([None, 1, 2, 10, 24, 60]))
def test_no_log_of_the_schema_breaks_the_picture(events: list[Event], width: int, height: int | None) -> None:
    check_log(events)
    replay = Replay(events)
    console = Console(width=width, force_terminal=False, color_system=None)
    for place in (*range(len(events)), 0):
        lines = printed(replay.view(place, "keys", height=height), width)
        assert height is None or len(lines) == height
        for line in lines:
            assert console.render_str(line, markup=False, emoji=False, highlight=False).cell_len <= width
            assert line.isprintable()


@settings(max_examples=40, deadline=None)
@given(logs(), st.sampled_from([80, 110, 200]))
def test_the_numbers_are_those_of_the_state_and_cells_say_the_kind(events: list[Event], width: int) -> None:
    replay = Replay(events)
    lines = printed(replay.view(replay.last), width)
    state = events[-1]["state"]
    counts = counts_of(blocks_of(state), state["block_size"])
    tally = tally_of(events, len(events))
    amounts = [line for line in lines if line.startswith("blocks: ")]
    assert [number_before(word, amounts) for word in ("free", "idle", "held", "shared")] == [
        counts.free,
        counts.idle,
        counts.held,
        counts.shared,
    ]
    happened = lines[next(place for place, line in enumerate(lines) if line.startswith("── counters")) + 1 :]
    assert number_behind("copies", happened) == tally.copies
    assert number_behind("refused", happened) == tally.refused
    signs = {Kind.FREE: "·", Kind.IDLE: "○", Kind.LOST: "?"}
    shown = [cell for _, cell in cells(lines, width=width)]
    blocks = blocks_of(state)
    assert len(shown) == len(blocks)
    for sign, block in zip(shown, blocks, strict=True):
        assert sign[0] == signs.get(block.kind, sign[0])
        assert block.kind is not Kind.SHARED or sign[0] == str(block.num_holders)
        assert block.kind is not Kind.HELD or sign[0].isalpha()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, None), (200, 50)])
@pytest.mark.parametrize("num_blocks", [577, 3_000, 20_003])
def test_a_large_pool_is_folded_and_the_cells_cover_it(num_blocks: int, width: int, height: int | None) -> None:
    log = EventLog()
    manager = KVManager(num_blocks, 16, log=log)
    manager.admit(Demand(5, num_blocks * 8, 1), num_blocks * 8)
    lines = printed(Replay(log.events).view(len(log.events) - 1, height=height), width)
    size = re.search(r"a cell is (\d+) blocks", "\n".join(lines))
    each = int(size[1]) if size else 1
    shown = cells(lines, width=width)
    assert len(shown) == -(-num_blocks // each)
    per_row = sum(first == 0 for first, _ in shown)
    assert [first for first, _ in shown] == [place // per_row * per_row * each for place in range(len(shown))]
    half = num_blocks // 2 // each
    if each > 1:
        assert [sign for _, sign in shown[: half - 1]] == ["F█"] * (half - 1)
        assert [sign.strip() for _, sign in shown[half + 1 :]] == ["·"] * (len(shown) - half - 1)
        assert "F" in shown[half][1] or "·" in shown[half][1]


def test_what_does_not_fit_is_counted() -> None:
    log = EventLog()
    manager = KVManager(100, 4, log=log)
    for request in range(60):
        manager.admit(Demand(request, 4, 1), 4)
    log.waits(range(1_000, 1_900))
    manager.commit(59, 4)
    lines = printed(Replay(log.events).view(len(log.events) - 1, height=24))
    assert len(lines) == 24
    more = [int(found[1]) for line in lines if (found := re.match(r"… and (\d+) more", line))]
    listed = sum(len(re.findall(r"\d tokens  \d", line)) for line in lines)
    queue = next(line for line in lines if line.startswith("queue:"))
    assert more == [60 - listed, 900 - len(re.findall(r"\d+", queue))]


def test_a_terminal_without_unicode_is_given_ascii() -> None:
    log, _ = served()
    replay = Replay(log.events)
    for place in range(0, replay.last, 20):
        assert "\n".join(printed(replay.view(place, "q: quit"), encoding="ascii")).isascii()


def test_without_colour_nothing_is_lost() -> None:
    log, _ = served()
    view = Replay(log.events).view(100)
    outputs = {}
    for name, env in (("colour", {}), ("none", {"NO_COLOR": "1"})):
        file = io.StringIO()
        Console(file=file, width=80, force_terminal=True, _environ={"TERM": "xterm-256color", **env}).print(view)
        outputs[name] = file.getvalue()
    colored = re.compile(r"[\[;][39]\d[;m]|38;5;")
    assert colored.search(outputs["colour"])
    assert not colored.search(outputs["none"])
    plain = {name: re.sub(r"\x1b\[[\d;]*m", "", text) for name, text in outputs.items()}
    assert plain["colour"] == plain["none"]


def test_a_recorded_console_has_the_same_text() -> None:
    log, _ = served()
    view = Replay(log.events).view(100)
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(view)
    assert [line.rstrip() for line in console.export_text().splitlines()] == [line.rstrip() for line in printed(view)]


def test_a_fault_is_shown_and_markup_and_escapes_of_a_log_are_text() -> None:
    events: list[dict[str, Any]] = [dict(event) for event in forked().events]
    events[-1] |= {"fault": "I2: block 3 has count 2\x1b[2J", "sentence": "[red]Request[/red] \x1b]0;x\x07 goes"}
    text = "\n".join(printed(Replay(events).view(len(events) - 1)))
    assert "Fault: I2: block 3 has count 2�[2J" in text
    assert "[red]Request[/red] �]0;x� goes" in text


def test_a_small_window_keeps_the_sentence() -> None:
    log, _ = served()
    for height in (8, 12, 16, 24, 40):
        lines = printed(Replay(log.events).view(100, "q: quit", height=height))
        assert len(lines) == height
        assert any(log.events[100]["sentence"][:30] in line for line in lines)


@pytest.mark.parametrize(("num_blocks", "height"), [(24, None), (700, 24)])
def test_the_blocks_of_the_event_are_marked_and_no_others(num_blocks: int, height: int | None) -> None:
    log, _ = served(num_blocks=num_blocks)
    replay, console = Replay(log.events), Console(width=80, color_system=None)
    for place in range(0, replay.last + 1, 15):
        lines = console.render_lines(replay.view(place, height=height), pad=False)
        text = "\n".join("".join(segment.text for segment in line) for line in lines)
        each = int(found[1]) if (found := re.search(r"a cell is (\d+) blocks", text)) else 1
        marked, cell = [], 0
        for line in lines[1:]:
            if not line or not line[0].text.strip().isdecimal():
                break
            for segment in line[1::2]:
                marked += [cell] if segment.style is not None and segment.style.reverse else []
                cell += 1
        assert cell == -(-num_blocks // each)
        assert marked == sorted({block // each for block in log.events[place]["blocks"]})


def test_on_a_screen_the_lower_half_stays_where_it_is() -> None:
    log, _ = served()
    replay = Replay(log.events)
    for width in (80, 130):
        places = set()
        for place in range(60, replay.last, 9):
            lines = printed(replay.view(place, "q: quit", height=30), width)
            assert lines[-1] == "q: quit"
            places.add(next(number for number, line in enumerate(lines) if line.startswith("── event")))
        assert len(places) == 1
