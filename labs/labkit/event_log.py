"""The log of what happens to KV memory: one schema, for whoever writes one and whoever plays or counts it.

Owns: the schema and its check. Knows nothing of allocators or engines (`labkit.recorder` and the engine's own log write
one) nor of drawing (`labkit.player`).

A log is a list of plain JSON objects, the events, in the order things happened. Each has
    call       int that never falls: the call it belongs to; a call has one event or several
    told       str, the call as it would be typed, "append(2)"
    kind       one of KINDS
    sentence   str, the event in words
    seq        int or null, the sequence or request it is about
    blocks     list of int, the blocks on the device that it is about; what they are stands with the kind in KINDS
and the last event of each call also has, unless the log is one without states,
    state      the state after the call, see below
    fault      str, what is wrong with that state as seen from outside; "" or absent when nothing is
A state has
    num_blocks, block_size   int, of the device, 1 or more
    num_free                 int, blocks to be had, as the writer says: those with content that would be evicted too
    tables, tokens           objects keyed by the sequence id as a string: its blocks in logical order; its tokens
    ref_counts, filled       lists with one int a block: the tables that hold it (a publication is not one); the slots
                             written
and, where the writer knows of such things,
    published                list of int: the blocks whose content would be found again
    num_idle                 int: those of them that no table holds
    waiting                  list of int: who waits to be admitted, first in line first
    preempted                list of int: those of them who had blocks and lost them
    host                     object keyed by the sequence id as a string: the host blocks of one that is swapped out
    num_host_blocks          int: blocks of the host in all
A state may be wrong, that is what a fault is for, so the check looks at its shape and not at its truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Event = dict[str, Any]

KINDS: dict[str, str] = {
    "create": "none",
    "admit": "none; those it shares and takes follow as share and allocate",
    "allocate": "those taken",
    "write": "those written",
    "share": "those that one more sequence holds: by a fork, or found again in the prefix cache",
    "copy": "source and destination",
    "free": "those given back",
    "publish": "those that would be found by their content from now on",
    "evict": "those whose content is forgotten",
    "preempt": "none; those given back follow as free or swap_out",
    "swap_out": "those whose content goes to the host",
    "swap_in": "those whose content comes from the host",
    "finish": "none; those given back follow as free",
    "refused": "none",
    "failed": "none",
}
"""Kind -> what its `blocks` are. A refusal is an answer that the contract names; a failure is any other error."""

FAILURES = frozenset({"refused", "failed"})
"""Kinds that say that a call did not do what it was asked for."""

_WITHOUT_BLOCKS = frozenset(kind for kind, blocks in KINDS.items() if blocks.startswith("none"))
_FIELDS = ("call", "told", "kind", "sentence", "seq", "blocks")
_LAST_FIELDS = ("state", "fault")
_STATE_FIELDS = ("num_blocks", "block_size", "num_free", "tables", "tokens", "ref_counts", "filled")
_NUMBERS = ("num_blocks", "block_size", "num_free", "num_idle", "num_host_blocks")
_LISTS = ("ref_counts", "filled", "published", "waiting", "preempted")
_TABLES = ("tables", "host")
_KNOWN_STATE_FIELDS = frozenset((*_STATE_FIELDS, *_NUMBERS, *_LISTS, *_TABLES))


def check_log(events: Sequence[Event], *, states: bool = True) -> None:
    """Refuse what is no log. `states` False is for a log that was written without them.

    Raises: ValueError naming the first event that does not keep to the schema, by its place, and what is wrong with it.
    Cost: O(the log).
    """
    if not events:
        raise ValueError("events is empty: there is nothing to show")
    for place, event in enumerate(events):
        _check_event(place, event)
        if place and event["call"] < events[place - 1]["call"]:
            raise ValueError(f"event {place} is of call {event['call']}, after one of {events[place - 1]['call']}")
    for place, event in enumerate(events):
        is_last = place + 1 == len(events) or events[place + 1]["call"] != event["call"]
        if is_last and states:
            _check_state(event["call"], event.get("state"))
        elif found := [name for name in _LAST_FIELDS if name in event]:
            where = "of a log without states" if not states else "not the last event of its call"
            raise ValueError(f"event {place} is {where}, but it has a {found[0]}")


def _check_event(place: int, event: Any) -> None:
    if not isinstance(event, Mapping):
        raise ValueError(f"event {place} is {event!r}, not an object")
    missing = [name for name in _FIELDS if name not in event]
    if missing:
        raise ValueError(f"event {place} has no {', '.join(missing)}")
    unknown = [name for name in event if name not in _FIELDS + _LAST_FIELDS]
    if unknown:
        raise ValueError(f"event {place} has {unknown[0]!r}, which is no field of a log")
    kind, blocks = event["kind"], event["blocks"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"event {place} is of kind {kind!r}, which is none of {', '.join(KINDS)}")
    for name, well in (
        ("call", _is_int(event["call"])),
        ("told", isinstance(event["told"], str)),
        ("sentence", isinstance(event["sentence"], str)),
        ("seq", event["seq"] is None or _is_int(event["seq"])),
        ("blocks", _is_ints(blocks)),
        ("fault", isinstance(event.get("fault", ""), str)),
    ):
        if not well:
            raise ValueError(f"event {place} has {event[name]!r} as its {name}")
    if blocks and kind in _WITHOUT_BLOCKS:
        raise ValueError(f"event {place} is of kind {kind!r}, which is about no blocks, and names {blocks}")
    if kind == "copy" and len(blocks) != 2:
        raise ValueError(f"event {place} is a copy of {blocks}, which is not a source and a destination")


def _check_state(call: int, state: Any) -> None:
    where = f"the last event of call {call}"
    missing = [name for name in _STATE_FIELDS if not isinstance(state, Mapping) or name not in state]
    if missing:
        raise ValueError(f"{where} has no state with {', '.join(missing)}")
    unknown = [name for name in state if name not in _KNOWN_STATE_FIELDS]
    if unknown:
        raise ValueError(f"the state of {where} has {unknown[0]!r}, which is no field of a state")
    for names, well in ((_NUMBERS, _is_int), (_LISTS, _is_ints), (_TABLES, _is_tables)):
        for name in names:
            if name in state and not well(state[name]):
                raise ValueError(f"the state of {where} has {state[name]!r} as its {name}")
    for name in ("num_blocks", "block_size"):
        if state[name] < 1:
            raise ValueError(f"the state of {where} has {state[name]} as its {name}, which must be at least 1")
    for name in ("ref_counts", "filled"):
        if len(state[name]) != state["num_blocks"]:
            raise ValueError(f"the state of {where} has {len(state[name])} {name} for {state['num_blocks']} blocks")
    tables, tokens = state["tables"], state["tokens"]
    if not isinstance(tokens, Mapping) or tokens.keys() != tables.keys() or not _is_ints(list(tokens.values())):
        raise ValueError(f"the state of {where} has {tokens!r} as its tokens, for the tables of {', '.join(tables)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_int, value))


def _is_tables(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(seq, str) and _is_ints(ids) for seq, ids in value.items())
