"""A padded batch as the model gets it: tokens, positions, the column that is read, and who may look at whom.

Owns: geometry. Knows nothing of how masks or positions are computed: they come in, a `Figure` goes out. Everything is
drawn 360 units wide, as in `draw.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from labkit.draw import HATCH, WIDTH, box, label
from labkit.figures import Figure, Table

_LEFT, _ROW, _QUERY = 46.0, 46.0, 20.0
_FILL, _LINE = "var(--p2p-a, #d6e8f7)", "var(--p2p-a-line, #005a9c)"
_RULE, _SECOND = "var(--p2p-rule, #757c85)", "var(--p2p-b-line, #9a4a00)"


def padded_batch_figure(
    title: str,
    rows: Sequence[Sequence[str]],
    mask: Sequence[Sequence[bool]],
    positions: Sequence[Sequence[int]],
    may_look: Sequence[Sequence[bool]],
    shown: int,
) -> Figure:
    """The batch above, and below it what each query of row `shown` may look at (`may_look[query][key]`).

    Raises: ValueError, naming it, on a part that has another shape than `rows`.
    """
    width = len(rows[0])
    for name, part in (("rows", rows), ("mask", mask), ("positions", positions)):
        if len(part) != len(rows) or any(len(row) != width for row in part):
            raise ValueError(f"{name} must be {len(rows)} rows of {width}, like the tokens")
    if len(may_look) != width or any(len(row) != width for row in may_look):
        raise ValueError(f"may_look must be {width} queries by {width} keys")
    cell = (WIDTH - _LEFT - 4) / width
    shapes = [HATCH, label(WIDTH - 4, 13, "the next token is read here", 12, anchor="end")]
    for number, row in enumerate(rows):
        shapes += _row(number, row, mask[number], positions[number], cell)
    top = 20 + len(rows) * _ROW
    shapes.append(_frame(_LEFT + (width - 1) * cell - 1, 18.0, cell + 2, top - 20))
    shapes.append(label(2, top + 16, f"Row {_letter(shown)}: at what may each token look?", 12, weight=700))
    shapes += _looks(rows[shown], mask[shown], may_look, cell, top + 24)
    live = [bool(row[-1]) for row in mask]
    dead = ", ".join(_letter(number) for number, alive in enumerate(live) if not alive)
    return Figure(
        title,
        f"{len(rows)} rows of {width} columns; pads are hatched, and below each token stands its position. "
        + (f"In the last column the rows {dead} end in a pad. " if dead else "Every row ends in a real token. ")
        + f"The grid shows row {_letter(shown)}: a filled square is a key that the query of its line may look at.",
        (WIDTH, top + 30 + width * _QUERY),
        "".join(shapes),
        Table(
            ("Row", "Column", "Token", "Real", "Position"),
            [
                (_letter(number), str(column), token, "yes" if mask[number][column] else "no, a pad", str(place))
                for number, row in enumerate(rows)
                for column, (token, place) in enumerate(zip(row, positions[number], strict=True))
            ],
        ),
    )


def _row(number: int, row: Sequence[str], mask: Sequence[bool], positions: Sequence[int], cell: float) -> list[str]:
    y = 20 + number * _ROW
    shapes = [label(2, y + 18, _letter(number), 13, weight=700), label(2, y + 38, "position", 11)]
    for column, token in enumerate(row):
        x, real = _LEFT + column * cell, mask[column]
        shapes.append(box(x, y, cell, 26, _FILL if real else "url(#@ID@-hatch)", _LINE if real else _SECOND))
        if not real:
            shapes.append(box(x + 3, y + 6, cell - 6, 14, "var(--p2p-paper, #fff)", "none"))
        shapes.append(label(x + cell / 2, y + 17, token, 11 if real else min(11, cell / 4), anchor="middle"))
        shapes.append(label(x + cell / 2, y + 38, str(positions[column]) if real else "-", 11, anchor="middle"))
    return shapes


def _looks(
    row: Sequence[str], mask: Sequence[bool], may_look: Sequence[Sequence[bool]], cell: float, top: float
) -> list[str]:
    shapes = []
    for query, token in enumerate(row):
        y = top + query * _QUERY
        shapes.append(label(2, y + 14, token, 11, weight=700 if mask[query] else 400))
        for key, allowed in enumerate(may_look[query]):
            x = _LEFT + key * cell
            fill = (_LINE if mask[query] else "url(#@ID@-hatch)") if allowed else "none"
            shapes.append(
                box(x + 2, y + 2, cell - 4, _QUERY - 4, fill, _LINE if allowed else _RULE, dashed=not allowed)
            )
    return shapes


def _frame(x: float, y: float, width: float, height: float) -> str:
    return box(x, y, width, height, "none", _SECOND, 3)


def _letter(number: int) -> str:
    return chr(ord("A") + number)
