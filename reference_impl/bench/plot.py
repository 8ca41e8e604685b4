"""`engine bench plot`: pictures of the records that are there, one for each, as SVG and PNG.

Owns: which records are drawn, how a file is named, and the style. Knows nothing of what a picture shows
(`pictures.py`, `kernel_pictures.py`), and measures nothing. Pictures are as wide as a phone and their text is as large
as the book's (`labkit.draw`), with the theme's colours in place of its variables, because these files stand alone.
Series are told apart by colour, marker and order.
A record of an unknown suite, or one that lacks what its picture shows, ends the command with one line that names it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.draw import figure_style
from reference_impl.bench import kernel_pictures, pictures
from reference_impl.bench.drawing import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Mapping[str, Any]], "Figure"]

PICTURES: dict[str, Draw] = {
    "kernels": kernel_pictures.kernels,
    "offline": pictures.offline,
    "serve": pictures.serve,
    "budget": pictures.budget,
    "cpu": pictures.cpu,
    "memory": pictures.memory,
}
"""Suite -> its picture."""
FORMATS = ("svg", "png")
_DPI = 216
"""Three pixels for each unit: sharp on a phone."""


def draw_all(folder: Path, out: Path) -> list[Path]:
    """Draw every record in `folder` into `out`, which is made if it is not there; the files written.

    Raises: ValueError, naming the file, if there is no record, or one of them cannot be drawn.
    """
    if not folder.is_dir():
        raise ValueError(f"--json {folder}: there is no such folder")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: that is no folder")
    # All are read before the first is drawn, so that a wrong one costs nothing.
    records = [(path, _read(path)) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise ValueError(f"--json {folder}: no record there; run engine bench kernels, offline, serve or budget first")
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for path, record in records:
        written += draw(record, out / path.stem, path.name)
    return written


def _read(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    suite = record.get("suite") if isinstance(record, dict) else None
    if suite not in PICTURES:
        raise ValueError(f"{path}: no picture of suite {suite!r}; there are {', '.join(PICTURES)}")
    found: Mapping[str, Any] = record
    return found


def draw(record: Mapping[str, Any], target: Path, name: str) -> list[Path]:
    """Write `target` with each ending of `FORMATS`. Raises: ValueError naming `name` and what the record lacks."""
    written = []
    with _style():
        try:
            figure = PICTURES[record["suite"]](record)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{name}: no record of {record['suite']}, {error!r} is missing or wrong") from None
        for ending in FORMATS:
            path = target.with_name(f"{target.name}.{ending}")
            figure.savefig(path, dpi=_DPI, metadata={"Date": None} if ending == "svg" else {})
            written.append(path)
    return written


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    colours: Any = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    # Outlines instead of text: a file that stands alone must look the same whichever fonts its reader has.
    page: Any = {"figure.facecolor": "white", "axes.facecolor": "white", "svg.fonttype": "path"}
    with figure_style(), mpl.rc_context({**colours, **page}):
        yield
