"""The figure that steps through memory.

Owns: how a log of `labkit.recorder` is drawn: one panel a call with the sentence, the map of physical memory, the block
tables and the free count, and the controls to walk through them. Knows nothing of allocators; it computes no state but
shows the log's. Every panel is written into the page, so that without JavaScript (or in print) the last state and the
list of sentences remain, and a player is one piece of HTML that loads nothing.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from itertools import count, groupby
from typing import Any

Event = dict[str, Any]

_FIELDS = ("call", "told", "kind", "sentence", "blocks")
_STATE_FIELDS = ("num_blocks", "block_size", "num_free", "tables", "tokens", "ref_counts", "filled")
_STEPS = 200
_SLOT_COLUMNS = 8
_numbers = count(1)


def show(events: list[Event], title: str = "Memory, call by call") -> Player:
    """A player of `events`, displayed by the notebook. Errors as for `Player`."""
    return Player(events, title)


class Player:
    """A log of `labkit.recorder`, to be stepped through in a page.

    `title` names the figure for screen readers and above the controls; give two figures of one page two titles.
    Raises: ValueError on an empty log, an event without the fields of the schema, or more than 200 calls.
    """

    def __init__(self, events: list[Event], title: str = "Memory, call by call") -> None:
        self._title = title
        self._steps = [list(group) for _, group in groupby(_checked(events), key=lambda event: event["call"])]
        if len(self._steps) > _STEPS:
            raise ValueError(f"events hold {len(self._steps)} calls; a player shows at most {_STEPS}")
        for step in self._steps:
            missing = [name for name in _STATE_FIELDS if name not in step[-1].get("state", {})]
            if missing:
                raise ValueError(f"the last event of call {step[0]['call']} has no state with {', '.join(missing)}")

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
            f'<div class="p2p-player" id="{root}" role="group" aria-labelledby="{root}-title" tabindex="0">'
            f'<p class="p2p-free" id="{root}-title">{escape(self._title)}</p>'
            f'<div class="p2p-controls" hidden>{_buttons()}</div>'
            f'<div class="p2p-live" role="status" style="{_OFF_SCREEN}"></div>'
            f'<div class="p2p-panels">{panels}</div>'
            f"<details open><summary>All {len(self)} steps as a list</summary>"
            f'<ol class="p2p-steps" start="0">{sentences}</ol></details></div>'
            f"<script>{_asset('player.js')}\np2pPlayer({root!r});</script>"
        )

    def _panel(self, number: int) -> str:
        step = self._steps[number]
        state, fault = step[-1]["state"], step[-1].get("fault", "")
        failure = fault or step[-1]["kind"] in ("refused", "failed")
        now = {block for event in step for block in event["blocks"]}
        hidden = "" if number == len(self._steps) - 1 else " hidden"
        return (
            f'<section class="p2p-panel"{hidden}{" data-failure=1" if failure else ""}>'
            f'<div class="p2p-words"><p class="p2p-told">Step {number} of {len(self._steps) - 1}: '
            f"<code>{escape(step[0]['told'])}</code></p>"
            f'<p class="p2p-said">{_sentences(step)}</p>'
            f"{f'<p class=p2p-bad>Fault: {escape(fault)}</p>' if fault else ''}"
            f'<p class="p2p-free">{state["num_free"]} of {state["num_blocks"]} blocks free</p></div>'
            f"{_memory(state, now)}{_tables(state)}</section>"
        )


_OFF_SCREEN = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap"


def _checked(events: list[Event]) -> list[Event]:
    if not events:
        raise ValueError("events is empty: there is nothing to show")
    for place, event in enumerate(events):
        missing = [name for name in _FIELDS if name not in event]
        if missing:
            raise ValueError(f"event {place} has no {', '.join(missing)}")
    return events


def _asset(name: str) -> str:
    return files("labkit").joinpath(name).read_text(encoding="utf-8").strip()


def _buttons() -> str:
    names = {
        "first": "First",
        "back": "Back",
        "play": "Play",
        "next": "Next",
        "last": "Last",
        "failure": "Next failure",
    }
    return "".join(f'<button type="button" data-do="{name}">{text}</button>' for name, text in names.items())


def _sentences(step: list[Event]) -> str:
    return escape(" ".join(event["sentence"] for event in step))


def _words(step: list[Event]) -> str:
    fault = step[-1].get("fault", "")
    return f"<code>{escape(step[0]['told'])}</code> {_sentences(step)}{f' Fault: {escape(fault)}' if fault else ''}"


def _memory(state: dict[str, Any], now: set[int]) -> str:
    """The map of physical memory, in the order of block ids: who holds each block, and how many slots are written."""
    holders: dict[int, list[str]] = {}
    for seq, table in state["tables"].items():
        for block in table:
            holders.setdefault(block, []).append(seq)
    blocks = "".join(_block(block, holders.get(block, []), state, block in now) for block in range(state["num_blocks"]))
    legend = "Solid edge: held by one sequence. Double edge: shared. Dashed edge: free. Filled squares: written slots."
    return (
        f'<p class="p2p-free">Physical memory</p><p class="p2p-told">{legend}</p>'
        f'<ol class="p2p-map" role="list">{blocks}</ol>'
    )


def _block(block: int, holders: list[str], state: dict[str, Any], now: bool) -> str:
    references, filled, size = state["ref_counts"][block], state["filled"][block], state["block_size"]
    kind = "free" if references == 0 else "shared" if references > 1 else "held"
    who = f"seq {', '.join(holders)}" if holders else "free"
    return (
        f'<li class="{kind}{" now" if now else ""}" data-block="{block}"><span><b>Block {block}</b>'
        f"{' touched' if now else ''}</span>{_slots(filled, size)}<span>ref count {references}</span>"
        f"<span>{escape(who)}</span><span>{f'slots {filled}/{size}' if holders else ''}</span></li>"
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
