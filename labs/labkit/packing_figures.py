"""Two figures of batching without a rectangle: what a token budget is spent on, and who looks at whom in a packed row.

Owns: geometry. Knows nothing of how batches are chosen or masks are made: lengths, boundaries and looks come in, a
`Figure` goes out. Everything is drawn 360 units wide, as in `draw.py`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from labkit.draw import HATCH, WIDTH, box, label
from labkit.figures import Figure, Table

_STRIP, _QUERY, _LEFT = 25.0, 19.0, 52.0
_FILL, _LINE = "var(--p2p-a, #d6e8f7)", "var(--p2p-a-line, #005a9c)"
_RULE, _SECOND = "var(--p2p-rule, #757c85)", "var(--p2p-b-line, #9a4a00)"


def passes_figure(title: str, passes: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> Figure:
    """One strip for each forward pass of a padded batch: its prompts and their pads, on the scale of the token budget.

    `passes` are lists of indices into `lengths`; a batch is as wide as its longest.
    Raises: ValueError, naming the pass, on one that is empty or over the budget.
    """
    return _passes(title, passes, lengths, [max((lengths[i] for i in one), default=0) for one in passes], budget)


def packed_passes_figure(title: str, passes: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> Figure:
    """As `passes_figure`, of packed rows: a sequence takes its own length and no pad. Raises: as `passes_figure`."""
    return _passes(title, passes, lengths, [None] * len(passes), budget)


def _passes(
    title: str, passes: Sequence[Sequence[int]], lengths: Sequence[int], widths: Sequence[int | None], budget: int
) -> Figure:
    shapes, rows, taken, held = [HATCH], [], 0, 0
    for number, (one, width) in enumerate(zip(passes, widths, strict=True)):
        pads = [0 if width is None else width - lengths[i] for i in one]
        slots = sum(lengths[i] for i in one) + sum(pads)
        if not one or slots > budget:
            raise ValueError(f"pass {number} takes {slots} slots of a budget of {budget}, in {len(one)} sequences")
        y = 4 + number * _STRIP
        x = 26.0
        unit = (WIDTH - x - 2) / budget
        shapes.append(label(2, y + 15, str(number + 1), 11.5))
        shapes.append(box(x, y, budget * unit, 20, "none", _RULE, dashed=True))
        for i, pad in zip(one, pads, strict=True):
            shapes.append(box(x, y, lengths[i] * unit, 20, _FILL, _LINE))
            if lengths[i] * unit > 15:
                shapes.append(label(x + lengths[i] * unit / 2, y + 14, f"{i + 1}", 11, anchor="middle"))
            x += lengths[i] * unit
            if pad:
                shapes.append(box(x, y, pad * unit, 20, "url(#@ID@-hatch)", _SECOND))
                x += pad * unit
        taken, held = taken + slots, held + slots - sum(pads)
        who = ", ".join(str(i + 1) for i in one)
        rows.append((str(number + 1), who, f"{slots:,}", f"{sum(pads):,}"))
    return Figure(
        title,
        f"{len(passes)} forward passes of at most {budget:,} slots take {taken:,} slots for {held:,} tokens: "
        f"{100 * (1 - held / taken):.1f} % padding. A strip is a pass, a filled piece a prompt with its number, "
        "a hatched piece its pads; what is left of the budget has a dashed edge.",
        (WIDTH, 6 + len(passes) * _STRIP),
        "".join(shapes),
        Table(("Pass", "Prompts", "Slots", "Pads"), rows),
    )


def packed_row_figure(
    title: str,
    words: Sequence[str],
    boundaries: Sequence[int],
    positions: Sequence[int],
    may_look: Sequence[Sequence[bool]],
) -> Figure:
    """A packed row with its boundaries and positions, and below it who may look at whom (`may_look[query][key]`).

    Sequence i is tokens `boundaries[i]` to `boundaries[i + 1] - 1`. A look from one sequence into another is drawn in
    another colour and hatched. Raises: ValueError, naming it, on a part that does not fit the words.
    """
    total = len(words)
    if list(boundaries) != sorted(boundaries) or boundaries[0] != 0 or boundaries[-1] != total:
        raise ValueError(f"boundaries must rise from 0 to {total}, the number of words, got {list(boundaries)}")
    if len(positions) != total or len(may_look) != total or any(len(line) != total for line in may_look):
        raise ValueError(f"positions must be {total}, and may_look {total} queries by {total} keys, like the words")
    owner = [bisect_right(boundaries, place) - 1 for place in range(total)]
    names = [f"{chr(ord('A') + who)}{place - boundaries[who]}" for place, who in enumerate(owner)]
    cell = (WIDTH - _LEFT - 4) / total
    shapes = [HATCH, label(2, 34, "token", 11), label(2, 55, "position", 11)]
    for place, name in enumerate(names):
        x = _LEFT + place * cell
        shapes.append(box(x, 18, cell, 24, _FILL if owner[place] % 2 == 0 else "var(--p2p-b, #fde7cb)", _LINE))
        shapes.append(label(x + cell / 2, 34, name, 11, anchor="middle"))
        shapes.append(label(x + cell / 2, 55, str(positions[place]), 11, anchor="middle"))
    for place in dict.fromkeys(boundaries):
        x = _LEFT + place * cell
        shapes.append(f'<path d="M{x:.1f} 14V44" stroke="{_SECOND}" stroke-width="2.5"/>')
        side = "start" if place == 0 else "end" if place == total else "middle"
        shapes.append(label(x, 11, str(place), 11, anchor=side, weight=700))
    strange = 0
    for query in range(total):
        y = 66 + query * _QUERY
        shapes.append(label(2, y + 13, words[query], 11))
        for key in range(total):
            x, allowed, foreign = _LEFT + key * cell, may_look[query][key], owner[query] != owner[key]
            strange += allowed and foreign
            fill = ("url(#@ID@-hatch)" if foreign else _LINE) if allowed else "none"
            edge = (_SECOND if foreign else _LINE) if allowed else _RULE
            shapes.append(box(x + 2, y + 1, cell - 4, _QUERY - 4, fill, edge, dashed=not allowed))
    looks = sum(map(sum, may_look))
    crossing = f"{strange} of them, hatched, {'goes' if strange == 1 else 'go'}" if strange else "None of them goes"
    return Figure(
        title,
        f"{total} tokens of {len(boundaries) - 1} sequences in one row; the bold numbers above it are the boundaries "
        f"{', '.join(map(str, boundaries))}. Each line of the grid is a token that looks, each square a token it may "
        f"look at: {looks} looks are allowed. {crossing} into another sequence.",
        (WIDTH, 70 + total * _QUERY),
        "".join(shapes),
        Table(
            ("Token", "Word", "Position", "May look at"),
            [
                (
                    name,
                    words[place],
                    str(positions[place]),
                    " ".join(n for n, may in zip(names, may_look[place], strict=True) if may),
                )
                for place, name in enumerate(names)
            ],
        ),
    )
