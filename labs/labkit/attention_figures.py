"""Three figures of attention over blocks: the walk of a query, the softmax in one pass, and who works how long.

Owns: how they are drawn. They compute what they show from a table, scores or lengths, in plain Python. Knows nothing of
anybody's kernel.
Source: Kwon et al., SOSP 2023, figure 5, for the walk; Milakov and Gimelshein, 2018, for the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from labkit.draw import HATCH, WIDTH, box, label
from labkit.figures import Figure, Table

_COLUMNS, _HIGH = 6, 48
_FILL, _LINE = "var(--p2p-a, #d6e8f7)", "var(--p2p-a-line, #005a9c)"
_OTHER, _RULE = "var(--p2p-other, #e8eaed)", "var(--p2p-rule, #757c85)"
_SECOND = "var(--p2p-b-line, #9a4a00)"


def page_walk_figure(table: Sequence[int], length: int, block_size: int, num_blocks: int) -> Figure:
    """A context of `length` tokens in the blocks of `table`: in order above, where they lie below.

    Raises: ValueError, naming the value, if the table does not hold the context, names a block twice or outside.
    """
    needed = -(-length // block_size) if block_size > 0 else 0
    if block_size < 1 or length < 1 or len(table) < needed:
        raise ValueError(f"{length} tokens do not lie in {len(table)} blocks of {block_size}: need {needed} blocks")
    blocks = list(table[:needed])
    if len(set(blocks)) != needed or not all(0 <= block < num_blocks for block in blocks):
        raise ValueError(f"the table {blocks} names a block twice, or one outside of 0 to {num_blocks - 1}")
    shapes = [HATCH, label(2, 15, f"Tokens 0 to {length - 1}, in the order of the table", 12, weight=700)]
    slots = needed * block_size
    cell = (WIDTH - 4) / slots
    for step, block in enumerate(blocks):
        x, width = 2 + step * block_size * cell, block_size * cell
        shapes.append(label(x + width / 2, 32, f"block {block}", 11.5, anchor="middle"))
        for offset in range(block_size):
            token = step * block_size + offset
            fill = _FILL if token < length else "url(#@ID@-hatch)"
            shapes.append(box(x + offset * cell, 38, cell, 24, fill, _LINE))
            if token < length and cell > 14:
                shapes.append(label(x + (offset + 0.5) * cell, 54, str(token), 11.5, anchor="middle"))
    shapes.append(label(2, 85, f"Memory: {num_blocks} blocks", 12, weight=700))
    width = (WIDTH - 4) / _COLUMNS
    for block in range(num_blocks):
        x, y = 3 + block % _COLUMNS * width, 94 + block // _COLUMNS * (_HIGH + 4.0)
        shapes += _block(block, blocks.index(block) if block in blocks else None, x, y, width - 2, length, block_size)
    rows = [
        (
            str(step + 1),
            str(block),
            f"{step * block_size} to {min(length, (step + 1) * block_size) - 1}",
            str(max(0, (step + 1) * block_size - length)),
        )
        for step, block in enumerate(blocks)
    ]
    return Figure(
        "The walk of a query",
        f"{length} tokens lie in blocks {', '.join(map(str, blocks))}, which are read in this order; "
        f"{slots - length} of the last block's {block_size} slots hold no token and are masked out. "
        f"The other {num_blocks - needed} blocks are not touched.",
        (WIDTH, 98 + -(-num_blocks // _COLUMNS) * (_HIGH + 4)),
        "".join(shapes),
        Table(("Step", "Block", "Tokens read", "Slots masked"), rows),
    )


def _block(block: int, step: int | None, x: float, y: float, width: float, length: int, block_size: int) -> list[str]:
    if step is None:
        return [box(x, y, width, _HIGH, _OTHER, _RULE), label(x + 4, y + 13, str(block), 11.5)]
    first, last = step * block_size, min(length, (step + 1) * block_size) - 1
    return [
        box(x, y, width, _HIGH, _FILL, _LINE, 2),
        label(x + 4, y + 13, str(block), 11.5),
        label(x + width / 2, y + 28, f"step {step + 1}", 11.5, anchor="middle", weight=700),
        label(x + width / 2, y + 43, f"{first} to {last}" if last > first else str(first), 11.5, anchor="middle"),
    ]


def online_softmax_figure(scores: Sequence[float], block_size: int) -> Figure:
    """Scores as bars, the running maximum as a line, and what is kept after each block: top and total.

    Raises: ValueError without scores, with one that is no finite number, or with a block size below 1.
    """
    if not scores or block_size < 1 or not all(math.isfinite(score) for score in scores):
        raise ValueError(f"need finite scores and blocks of at least 1 token, got {list(scores)} and {block_size}")
    rows = _online(scores, block_size)
    low, high = min(0.0, *scores), max(0.0, *scores)
    height = 120 / max(high - low, 1e-9)
    cell = (WIDTH - 4) / len(scores)
    zero = 24 + high * height
    shapes = [label(2, 15, "Scores, and the largest so far", 12, weight=700)]
    for token, score in enumerate(scores):
        y, tall = 24 + (high - max(score, 0.0)) * height, abs(score) * height
        shapes.append(box(2 + token * cell + 2, y, max(cell - 4, 1), max(tall, 1), _FILL, _LINE))
    shapes.append(f'<path d="M2 {zero:.1f}H{WIDTH - 2}" stroke="{_RULE}" stroke-width="1"/>')
    for step, (_, _, top, fade, total) in enumerate(rows):
        first, stop = step * block_size, min(len(scores), (step + 1) * block_size)
        x, width = 2 + first * cell, (stop - first) * cell
        y = 24 + (high - top) * height
        shapes.append(f'<path d="M{x:.1f} {y:.1f}h{width:.1f}" stroke="{_SECOND}" stroke-width="3"/>')
        shapes.append(f'<path d="M{x + width:.1f} 24V150" stroke="{_RULE}" stroke-dasharray="3 3"/>')
        for line, text in enumerate((f"top {top:g}", f"fade {fade:.2g}", f"total {total:.3g}")):
            shapes.append(label(x + width / 2, 168 + 15 * line, text, 11.5, anchor="middle"))
    told = [(str(step), tokens, f"{top:g}", f"{fade:.3g}", f"{total:.4g}") for step, tokens, top, fade, total in rows]
    return Figure(
        "The softmax in one pass",
        f"{len(scores)} scores in blocks of {block_size}. After each block two numbers are kept: the largest score "
        "so far (top) and the sum of the weights under it (total). Where top rises, what was summed is multiplied "
        f"by fade. At the end top is {rows[-1][2]:g} and total {rows[-1][4]:.4g}.",
        (WIDTH, 204),
        "".join(shapes),
        Table(("Block", "Tokens", "top", "fade", "total"), told),
    )


def _online(scores: Sequence[float], block_size: int) -> list[tuple[int, str, float, float, float]]:
    """(block, its tokens, top, fade, total) after each block."""
    rows = []
    top, total = -math.inf, 0.0
    for first in range(0, len(scores), block_size):
        part = scores[first : first + block_size]
        higher = max(top, *part)
        fade = math.exp(top - higher)
        total = total * fade + sum(math.exp(score - higher) for score in part)
        top = higher
        rows.append((first // block_size, f"{first} to {first + len(part) - 1}", top, fade, total))
    return rows


def programs_figure(lengths: Sequence[int], part_tokens: int, processors: int) -> Figure:
    """A program for each context above, one for each part of it below, on `processors` that each take the next one.

    A program takes as long as it has tokens. Raises: ValueError, with the value, without tokens or on sizes below 1.
    """
    if part_tokens < 1 or processors < 1 or not any(lengths) or min(lengths) < 0:
        raise ValueError(f"need tokens, parts and processors, got {list(lengths)}, {part_tokens} and {processors}")
    whole = [(sequence, length) for sequence, length in enumerate(lengths) if length]
    cut = [
        (sequence, min(part_tokens, length - first))
        for sequence, length in whole
        for first in range(0, length, part_tokens)
    ]
    runs = [
        ("a program for each context", _placed(whole, processors)),
        ("a program for each part", _placed(cut, processors)),
    ]
    ends = [max(start + tokens for _, _, start, tokens in placed) for _, placed in runs]
    shapes, rows, top = [], [], 0.0
    for (name, placed), end in zip(runs, ends, strict=True):
        shapes.append(label(2, top + 15, f"{name.capitalize()}: done after {end:,} tokens", 12, weight=700))
        for sequence, processor, start, tokens in placed:
            x, width = 2 + start * (WIDTH - 4) / max(ends), tokens * (WIDTH - 4) / max(ends)
            y = top + 22 + processor * 20
            shapes.append(box(x, y, max(width - 1, 0.5), 18, _FILL if sequence % 2 else _OTHER, _LINE))
            if width > 16:
                shapes.append(label(x + width / 2, y + 13, str(sequence), 11.5, anchor="middle"))
        busy = sum(tokens for *_, tokens in placed) / (end * processors)
        rows.append((name, f"{len(placed):,}", f"{max(tokens for *_, tokens in placed):,}", f"{end:,}", f"{busy:.0%}"))
        top += 36 + processors * 20
    return Figure(
        "Who works how long",
        f"{len(whole)} contexts with {sum(lengths):,} tokens on {processors} processors. With a program for each of "
        f"them the last is done after {ends[0]:,} tokens, with parts of {part_tokens:,} tokens after {ends[1]:,}. "
        f"No way is faster than {-(-sum(lengths) // processors):,}. The number in a bar is its sequence.",
        (WIDTH, top),
        "".join(shapes),
        Table(("Way", "Programs", "Longest walk", "Done after", "Busy"), rows),
    )


def _placed(programs: Sequence[tuple[int, int]], processors: int) -> list[tuple[int, int, int, int]]:
    """(sequence, processor, start, tokens) of each program: in order, each on the processor that is free first."""
    free = [0] * processors
    placed = []
    for sequence, tokens in programs:
        processor = free.index(min(free))
        placed.append((sequence, processor, free[processor], tokens))
        free[processor] += tokens
    return placed
