"""The walk of one query head through its blocks, one figure a step: what it kept, what a block adds, what it keeps.

Owns: how a step is drawn, and the choice between steps. Knows nothing of who walked: scores and states are recorded
elsewhere and come in as numbers, and nothing is computed here but the factors between two states.
Source: Milakov and Gimelshein, 2018, section 3, for what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.draw import HATCH, WIDTH, box, label
from labkit.figures import Figure, Table
from labkit.switch import Switch

State = tuple[float, float, Sequence[float]]
"""Largest score, sum of the weights, weighted sum of the values; -inf, 0 and zeros before the first block."""

_FILL, _LINE = "var(--p2p-a, #d6e8f7)", "var(--p2p-a-line, #005a9c)"
_OTHER, _RULE = "var(--p2p-other, #e8eaed)", "var(--p2p-rule, #757c85)"
_SECOND = "var(--p2p-b-line, #9a4a00)"
_BARS_TOP, _BARS_HIGH = 96.0, 70.0


@dataclass(frozen=True)
class Step:
    """One block of the walk: the scores of its live tokens, and the state before it, of it alone and after it."""

    block: int
    scores: Sequence[float]
    before: State
    alone: State
    after: State


def walk_switch(question: str, steps: Sequence[Step], block_size: int) -> Switch:
    """A figure for the start and one for each step, chosen by radio buttons.

    Raises: ValueError, naming the step, without steps, on a block with no score or too many, a partial one before the
    last, or a score that is no finite number.
    """
    if not steps:
        raise ValueError("a walk needs at least one step")
    for number, step in enumerate(steps):
        full = len(step.scores) == block_size or number == len(steps) - 1
        if not 1 <= len(step.scores) <= block_size or not full or not all(map(math.isfinite, step.scores)):
            raise ValueError(f"step {number} reads block {step.block} with scores {list(step.scores)}")
    options = {"Before the first block": _start(steps, block_size)}
    for number, step in enumerate(steps):
        options[f"Step {number + 1}: block {step.block}"] = _figure(steps, number, block_size)
    return Switch(question, options)


def _start(steps: Sequence[Step], block_size: int) -> Figure:
    first = steps[0].before
    rows = [("m", _number(first[0])), ("l", _number(first[1])), ("o", _vector(first[2]))]
    return Figure(
        "Nothing read yet",
        f"The table names {len(steps)} blocks. No token was read: the largest score is minus infinity, the sums are 0.",
        (WIDTH, 262),
        _blocks(steps, -1, block_size) + _bars(steps, -1, block_size) + _kept([("kept", first, None)]),
        Table(("Kept", "value"), rows),
    )


def _figure(steps: Sequence[Step], number: int, block_size: int) -> Figure:
    step = steps[number]
    first = number * block_size
    last = first + len(step.scores) - 1
    fade, weight = math.exp(step.before[0] - step.after[0]), math.exp(step.alone[0] - step.after[0])
    dead = block_size - len(step.scores)
    rose = (
        "This is the first block, so it is all there is."
        if not number
        else f"The largest score rises, so what was kept is multiplied by {fade:.3g}."
        if step.after[0] > step.before[0]
        else f"The largest score stays, so what this block adds is multiplied by {weight:.3g}."
    )
    tail = f" {dead} of its {block_size} slots hold no token of this sequence and are not used." if dead else ""
    states = [("kept so far", step.before, fade), ("this block", step.alone, weight), ("kept now", step.after, None)]
    rows = [
        (name, _number(state[0]), _number(state[1]), _vector(state[2]), "" if factor is None else f"{factor:.3g}")
        for name, state, factor in states
    ]
    return Figure(
        f"Step {number + 1}: tokens {first} to {last} in block {step.block}",
        f"{rose}{tail}",
        (WIDTH, 262),
        _blocks(steps, number, block_size) + _bars(steps, number, block_size) + _kept(states),
        Table(("What", "m", "l", "o", "times"), rows),
    )


def _cell(steps: Sequence[Step], block_size: int) -> float:
    return (WIDTH - 4) / (len(steps) * block_size)


def _blocks(steps: Sequence[Step], now: int, block_size: int) -> str:
    """The blocks in the order of the table: those read, the one that is read now, those to come, and dead slots."""
    cell = _cell(steps, block_size)
    shapes = [HATCH, label(2, 15, "The block table, and the tokens in it", 12, weight=700)]
    for number, step in enumerate(steps):
        x, width = 2 + number * block_size * cell, block_size * cell
        words = f"block {step.block}"
        shapes.append(label(x + width / 2, 32, words, 11.5, anchor="middle", weight=700 if number == now else 400))
        for offset in range(block_size):
            token = number * block_size + offset
            live = offset < len(step.scores)
            fill = "url(#@ID@-hatch)" if not live else _FILL if number == now else _OTHER if number < now else "none"
            shapes.append(box(x + offset * cell, 38, cell, 22, fill, _RULE))
            if live:
                shapes.append(label(x + (offset + 0.5) * cell, 53, str(token), 11.5, anchor="middle"))
        if number == now:
            shapes.append(box(x, 37, width, 24, "none", _LINE, 3))
    return "".join(shapes)


def _bars(steps: Sequence[Step], now: int, block_size: int) -> str:
    """The scores that were read, as bars from 0, and the largest so far as a line above them."""
    cell = _cell(steps, block_size)
    everything = [score for step in steps for score in step.scores]
    low, high = min(0.0, *everything), max(0.0, *everything)
    tall = _BARS_HIGH / max(high - low, 1e-9)
    zero = _BARS_TOP + high * tall
    shapes = [label(2, 80, "Scores read so far; the thick line is the largest, m", 12, weight=700)]
    for number, step in enumerate(steps[: now + 1]):
        for offset, score in enumerate(step.scores):
            x, y = 2 + (number * block_size + offset) * cell, _BARS_TOP + (high - max(score, 0.0)) * tall
            fill = _FILL if number == now else _OTHER
            shapes.append(box(x + 3, y, cell - 6, max(abs(score) * tall, 1), fill, _LINE if number == now else _RULE))
        x, y = 2 + number * block_size * cell, _BARS_TOP + (high - step.after[0]) * tall
        shapes.append(f'<path d="M{x:.1f} {y:.1f}h{block_size * cell:.1f}" stroke="{_SECOND}" stroke-width="3"/>')
    shapes.append(f'<path d="M2 {zero:.1f}H{WIDTH - 2}" stroke="{_RULE}" stroke-width="1"/>')
    return "".join(shapes)


def _kept(states: Sequence[tuple[str, State, float | None]]) -> str:
    """The states as lines of a sum, each with the factor that it enters with."""
    columns = (2, 84, 134, 188, 322)
    shapes = [label(x, 186, name, 11.5, weight=700) for x, name in zip(columns[1:4], ("m", "l", "o"), strict=True)]
    if len(states) > 1:
        shapes.append(label(columns[4], 186, "times", 11.5, weight=700))
    for line, (name, state, factor) in enumerate(states):
        y = 206 + 22 * line
        last = factor is None
        texts = (name, _number(state[0]), _number(state[1]), _vector(state[2]), "" if last else f"{factor:.3g}")
        if last and len(states) > 1:
            shapes.append(f'<path d="M2 {y - 15}H{WIDTH - 2}" stroke="{_RULE}" stroke-width="1"/>')
        shapes += [label(x, y, text, 11.5, weight=700 if last else 400) for x, text in zip(columns, texts, strict=True)]
    return "".join(shapes)


def _number(value: float) -> str:
    return "−∞" if value == -math.inf else f"{value:.3f}".replace("-", "−")


def _vector(values: Sequence[float]) -> str:
    return f"({', '.join(map(_number, values))})"
