"""The figure that steps through memory.

Owns: how a log of `labkit.event_log` is drawn: one panel a call with the sentence, the map of physical memory and its
twin as a table, the block tables, who waits and who lies on the host, and the controls to walk through them. Knows
nothing of allocators or engines; it computes no state but shows the log's. Every panel is written into the page, so
that without JavaScript (or in print) the last state and the list of sentences remain, and a player is one piece of HTML
that loads nothing. Its size is O(calls * slots of the memory): it is for logs that a person can follow.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from itertools import count, groupby
from typing import Any

from labkit.event_log import FAILURES, Event, check_log

_STEPS = 200
_SLOT_COLUMNS = 8
_DONE_TO: dict[str, tuple[str, ...]] = {
    "allocate": ("taken",),
    "write": ("written",),
    "share": ("shared",),
    "copy": ("copied", "the copy"),
    "free": ("given back",),
    "publish": ("published",),
    "evict": ("evicted",),
    "swap_out": ("to the host",),
    "swap_in": ("from the host",),
}
"""Kind -> what is said of its blocks in the map; of a copy, of the source and of the destination."""
_numbers = count(1)


def show(events: list[Event], title: str = "Memory, call by call") -> Player:
    """A player of `events`, displayed by the notebook. Errors as for `Player`."""
    return Player(events, title)


class Player:
    """A log of `labkit.event_log`, to be stepped through in a page.

    `title` names the figure for screen readers and above the controls; give two figures of one page two titles.
    Raises: ValueError on what `labkit.event_log` does not take for a log with states, or more than 200 calls.
    """

    def __init__(self, events: list[Event], title: str = "Memory, call by call") -> None:
        self._title = title
        check_log(events)
        self._steps = [list(group) for _, group in groupby(events, key=lambda event: event["call"])]
        if len(self._steps) > _STEPS:
            raise ValueError(f"events hold {len(self._steps)} calls; a player shows at most {_STEPS}")
        # What never happens in a log has no place in its figure.
        self._has = {
            name
            for name in ("published", "waiting", "host")
            if any(step[-1]["state"].get(name) for step in self._steps)
        }

    def __len__(self) -> int:
        """Steps to walk through: the calls of the log, the making of the pool included."""
        return len(self._steps)

    def _repr_html_(self) -> str:
        # A new id each time it is displayed, since one page may show the same player twice.
        root = f"p2p-player-{next(_numbers)}"
        panels = "".join(self._panel(number) for number in range(len(self._steps)))
        sentences = "".join(f"<li>{_words(step)}</li>" for step in self._steps)
        return (
            f"<style>{_asset('player.css')}</style>"
            f'<div class="p2p-player" id="{root}" role="group" aria-label="{escape(self._title)}" tabindex="0">'
            f'<p class="p2p-free">{escape(self._title)}</p>'
            f'<div class="p2p-controls" hidden>{_buttons()}</div>'
            f'<div class="p2p-live" role="status" style="{_OFF_SCREEN}"></div>'
            f'<div class="p2p-panels">{panels}</div>'
            f"<details open><summary>All {len(self)} steps as a list</summary>"
            f'<ol class="p2p-steps" start="0">{sentences}</ol></details></div>'
            f"<script>{_asset('player.js')}\n"
            f"document.querySelectorAll('#{root}').forEach(p2pPlayer);</script>"
        )

    def _panel(self, number: int) -> str:
        step = self._steps[number]
        state, fault = step[-1]["state"], step[-1].get("fault", "")
        failure = fault or any(event["kind"] in FAILURES for event in step)
        hidden = "" if number == len(self._steps) - 1 else " hidden"
        return (
            f'<section class="p2p-panel"{hidden}{" data-failure=1" if failure else ""}>'
            f'<div class="p2p-words"><p class="p2p-told">Step {number} of {len(self._steps) - 1}: '
            f"<code>{escape(step[0]['told'])}</code></p>"
            f'<p class="p2p-said">{_sentences(step)}</p>'
            f"{f'<p class=p2p-bad>Fault: {escape(fault)}</p>' if fault else ''}"
            f'<p class="p2p-free">{_free(state)}</p></div>'
            f"{_memory(state, _done(step), 'published' in self._has)}{_tables(state)}"
            f"{_waiting(state) if 'waiting' in self._has else ''}{_host(state) if 'host' in self._has else ''}"
            "</section>"
        )


_OFF_SCREEN = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap"


def _asset(name: str) -> str:
    return files("labkit").joinpath(name).read_text(encoding="utf-8").strip()


def _buttons() -> str:
    names = {
        "first": ("Rewind", "Home"),
        "back": ("Back", "ArrowLeft"),
        "play": ("Play", "Space"),
        "next": ("Next", "ArrowRight"),
        "last": ("Last", "End"),
        "failure": ("Next failure", "F"),
    }
    return "".join(
        f'<button type="button" data-do="{name}" aria-keyshortcuts="{key}" title="Key: {key}">{text}</button>'
        for name, (text, key) in names.items()
    )


def _sentences(step: list[Event]) -> str:
    return escape(" ".join(event["sentence"] for event in step))


def _words(step: list[Event]) -> str:
    fault = step[-1].get("fault", "")
    return f"<code>{escape(step[0]['told'])}</code> {_sentences(step)}{f' Fault: {escape(fault)}' if fault else ''}"


def _free(state: dict[str, Any]) -> str:
    idle = state.get("num_idle", 0)
    kept = f", {idle} of them with content that would be found again" if idle else ""
    return f"{state['num_free']} of {state['num_blocks']} blocks free{kept}"


def _done(step: list[Event]) -> dict[int, list[str]]:
    """Block -> what the step did to it, in the order in which it did."""
    done: dict[int, list[str]] = {}
    for event in step:
        words = _DONE_TO.get(event["kind"], ())
        for place, block in enumerate(event["blocks"]):
            done.setdefault(block, []).append(words[min(place, len(words) - 1)])
    return done


def _memory(state: dict[str, Any], done: dict[int, list[str]], publishes: bool) -> str:
    """The map of physical memory, in the order of block ids, and the same as a table."""
    holders: dict[int, list[str]] = {}
    for seq, table in state["tables"].items():
        for block in table:
            holders.setdefault(block, []).append(seq)
    legend = "Solid edge: held by one sequence. Double edge: shared. Dashed edge: free. Filled squares: written slots."
    if publishes:
        legend += (
            " Dotted edge: free, but what stands in it would be found again. Published: later requests find it by its"
            " content, and nobody writes it any more."
        )
    blocks = [_Block(number, holders.get(number, []), state, done) for number in range(state["num_blocks"])]
    return (
        f'<p class="p2p-free">Physical memory</p><p class="p2p-told">{legend}</p>'
        f'<ol class="p2p-map" aria-hidden="true">{"".join(block.square() for block in blocks)}</ol>'
        '<details class="p2p-twin"><summary>Physical memory as a table</summary><div class="p2p-scroll"><table>'
        '<thead><tr><th scope="col">Block</th><th scope="col">State</th><th scope="col">Ref count</th>'
        '<th scope="col">Slots written</th><th scope="col">Held by</th><th scope="col">In this step</th></tr></thead>'
        f"<tbody>{''.join(block.row() for block in blocks)}</tbody></table></div></details>"
    )


class _Block:
    """One block in one state, to be drawn as a square of the map and as a row of the table, from the same words."""

    def __init__(self, number: int, holders: list[str], state: dict[str, Any], done: dict[int, list[str]]) -> None:
        self._number, self._holders = number, holders
        self._references, self._filled = state["ref_counts"][number], state["filled"][number]
        self._size = state["block_size"]
        self._done = ", ".join(dict.fromkeys(done.get(number, ())))
        self._published = number in state.get("published", ())
        if self._references:
            self._kind = "shared" if self._references > 1 else "held"
        else:
            self._kind = "idle" if self._published else "free"

    def square(self) -> str:
        done = f"<em>{self._done}</em>" if self._done else ""
        who = f"seq {', '.join(self._holders)}" if self._holders else "free"
        state = "content kept" if self._kind == "idle" else "published" if self._published else ""
        written = f"slots {self._filled}/{self._size}" if self._kind != "free" else ""
        return (
            f'<li class="{self._kind}{" now" if done else ""}" data-block="{self._number}">'
            f"<span><b>Block {self._number}</b> {done}</span>{_slots(self._filled, self._size)}"
            f"<span>ref count {self._references}</span><span>{escape(who)}</span><span>{written}</span>"
            f"<span>{state}</span></li>"
        )

    def row(self) -> str:
        kind = "free, content kept" if self._kind == "idle" else self._kind
        kind += ", published" if self._published and self._kind != "idle" else ""
        return (
            f'<tr data-row="{self._number}"><th scope="row">{self._number}</th><td>{kind}</td>'
            f"<td>{self._references}</td><td>{self._filled} of {self._size}</td>"
            f"<td>{escape(', '.join(self._holders)) or '-'}</td><td>{self._done or '-'}</td></tr>"
        )


def _slots(filled: int, size: int) -> str:
    """One small square a slot, written ones solid. The words beside it say the same, so screen readers skip it."""
    columns = min(size, _SLOT_COLUMNS)
    rows = -(-size // columns)
    squares = "".join(
        f'<rect class="p2p-slot{" full" if slot < filled else ""}" x="{slot % columns * 10 + 1}"'
        f' y="{slot // columns * 10 + 1}" width="8" height="8"/>'
        for slot in range(size)
    )
    return (
        f'<svg viewBox="0 0 {columns * 10} {rows * 10}" preserveAspectRatio="xMinYMid meet" aria-hidden="true">'
        f"{squares}</svg>"
    )


def _tables(state: dict[str, Any]) -> str:
    if not state["tables"]:
        return '<p class="p2p-free">No sequence lives, so there is no block table.</p>'
    rows = "".join(
        f'<tr data-seq="{escape(seq)}"><th scope="row">{escape(seq)}</th><td>{state["tokens"][seq]}</td>'
        f'<td class="p2p-ids">{", ".join(map(str, table))}</td></tr>'
        for seq, table in state["tables"].items()
    )
    return (
        '<div class="p2p-scroll"><table><caption>Block tables</caption><thead><tr><th scope="col">Sequence</th>'
        '<th scope="col">Tokens</th><th scope="col">Blocks, in logical order</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _waiting(state: dict[str, Any]) -> str:
    preempted = set(state.get("preempted", ()))
    names = [f"{seq} (preempted)" if seq in preempted else str(seq) for seq in state.get("waiting", ())]
    return f'<p class="p2p-waiting"><b>Waiting, first in line first:</b> {", ".join(names) or "nobody"}</p>'


def _host(state: dict[str, Any]) -> str:
    """Who is swapped out, and where it lies."""
    host = state.get("host", {})
    used, total = sum(map(len, host.values())), state.get("num_host_blocks")
    words = f"{used} of {total} blocks in use" if total is not None else f"{used} blocks in use"
    if not host:
        return f'<p class="p2p-host"><b>Host memory:</b> {words}</p>'
    rows = "".join(
        f'<tr data-host="{escape(seq)}"><th scope="row">{escape(seq)}</th>'
        f'<td class="p2p-ids">{", ".join(map(str, blocks))}</td></tr>'
        for seq, blocks in host.items()
    )
    return (
        f'<div class="p2p-scroll p2p-host"><table><caption>Host memory: {words}</caption><thead><tr>'
        '<th scope="col">Sequence</th><th scope="col">Host blocks, in logical order</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
