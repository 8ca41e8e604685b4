"""Requests that people really sent: when they came, how long the prompt was, how long the answer.

Owns: the loaders of the public traces and the seeded sampler that stands in where no trace is at hand. Knows nothing of
what is done with a request. `workload(name)` gives the trace or the sample, and says which in `is_real`; `load(path)`
reads any file in one of the three formats, which it tells by the columns.
The sampler draws prompt and output lengths independently by inverse quantiles and arrivals evenly at random: it keeps
the marginal lengths and the mean rate, and loses bursts, order and any link between prompt and output.
"""

from __future__ import annotations

import csv
import json
import math
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.calibration import CALIBRATIONS, PERCENT, Calibration
from labkit.places import TRACES_VARIABLE, traces_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = tuple[float, int, int]
"""Arrival in seconds (of any clock), prompt tokens, output tokens."""

_MOST_TOKENS = 2**40
"""Far above any model's context, and so few that the sums over a trace fit into the arrays' 64 bits."""

_MOST_SHOWN = 200
"""Characters of a file that an error message repeats."""

HASHED_TOKENS = 512
"""Tokens of one block of a Mooncake trace, for which it has one hash."""

_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_SHAREGPT_COLUMNS = ("num_prefill_tokens", "num_decode_tokens")
_MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length")


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in order of arrival; arrays of one length. Arrivals are seconds after the first request.

    prefix_hashes: for each request one number for each block of `HASHED_TOKENS` prompt tokens, the last block mostly
    partial; equal numbers mean that all tokens up to the end of the block are equal. None where the trace has none.
    """

    name: str
    title: str
    source: str
    licence: str
    is_real: bool
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    prefix_hashes: tuple[NDArray[np.int64], ...] | None = None

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def description(self) -> str:
        """One sentence that a page can print under a figure: what this is and where it comes from."""
        count = "1 request" if len(self) == 1 else f"{len(self):,} requests"
        if self.is_real:
            return f"{self.title}: the recorded trace, {count}. Source: {self.source}; {self.licence}."
        return (
            f"{self.title}: a seeded sample of {count} with the published quantiles, "
            f"because the recorded trace is not on this machine. Quantiles from: {self.source}."
        )


def workload(name: str, seed: int = 0) -> Workload:
    """The named trace if a traces folder has it, else its calibrated sample; `seed` matters only to the sample.

    Raises: ValueError on an unknown name, on a broken file (with file and line), and if `$P2P_TRACES` is set but lacks
    the file. Cost: O(requests), under a second.
    """
    if name not in _FILES:
        raise ValueError(f"no workload {name!r}; there are {', '.join(_FILES)}")
    folder = traces_folder()
    path, load = _FILES[name]
    if folder is not None and (folder / path).is_file():
        return load(folder / path)
    if folder is not None and folder_was_asked_for():
        raise ValueError(f"{folder / path}: no such file, though {TRACES_VARIABLE} names this folder")
    return sample(name, seed)


def folder_was_asked_for() -> bool:
    """Whether the traces folder was named by the user and not merely found."""
    return bool(os.environ.get(TRACES_VARIABLE))


def sample(name: str, seed: int = 0, requests: int | None = None) -> Workload:
    """A seeded stand-in for the named trace, `requests` long (as long as the trace if None).

    One draw from each of `requests` equal slices of probability, shuffled: quantiles match closely at any seed.
    Raises: ValueError on an unknown name or fewer than one request.
    """
    import numpy as np

    if name not in CALIBRATIONS:
        raise ValueError(f"no workload {name!r}; there are {', '.join(CALIBRATIONS)}")
    known = CALIBRATIONS[name]
    count = known.requests if requests is None else requests
    if count < 1:
        raise ValueError(f"requests must be at least 1, got {count}")
    rng = np.random.default_rng(seed)

    def draw(quantiles: tuple[int, ...]) -> NDArray[np.int64]:
        levels = (rng.permutation(count) + rng.random(count)) / count * 100
        return np.rint(np.interp(levels, PERCENT, quantiles)).astype(np.int64)

    arrivals = np.sort(rng.random(count)) * known.duration_s * (count / known.requests)
    return _made(name, known, False, arrivals - arrivals[0], draw(known.prompt_quantiles), draw(known.output_quantiles))


def load_azure(path: Path, name: str) -> Workload:
    """An Azure LLM inference trace of 2023: CSV with TIMESTAMP, ContextTokens, GeneratedTokens."""

    def row(line: dict[str, str]) -> Row:
        # Seven digits of a second in the file, six in datetime, which leaves the last one out.
        moment = datetime.fromisoformat(line["TIMESTAMP"])
        if moment.tzinfo is None:
            # The zone of this machine would move requests by an hour wherever its summer time begins or ends.
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp(), _count(line["ContextTokens"]), _count(line["GeneratedTokens"])

    return _from_rows(name, path, _csv_rows(path, _AZURE_COLUMNS, row))


def load_sharegpt(path: Path, name: str = "sharegpt_8k") -> Workload:
    """ShareGPT lengths: CSV with num_prefill_tokens and num_decode_tokens; no clock, so all arrive at 0 s."""

    def row(line: dict[str, str]) -> Row:
        return 0.0, _count(line["num_prefill_tokens"]), _count(line["num_decode_tokens"])

    return _from_rows(name, path, _csv_rows(path, _SHAREGPT_COLUMNS, row))


def load_mooncake(path: Path, name: str = "mooncake_conversation") -> Workload:
    """A Mooncake trace: one JSON object a line with timestamp (ms), input_length, output_length, perhaps hash_ids.

    `hash_ids` must be on every line or on none, `ceil(input_length / 512)` of them, each from 0 to 2**31 - 1.
    """
    hashes = _Hashes(path)

    def rows() -> Iterator[tuple[int, Row]]:
        for number, line in enumerate(_lines(path), start=1):
            try:
                entry = json.loads(line)
                arrival_s = _number(entry, "timestamp") / 1000
                made = arrival_s, _whole(entry, "input_length"), _whole(entry, "output_length")
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not a request of a Mooncake trace ({error!r})") from None
            hashes.add(number, made[1], entry.get("hash_ids"))
            yield number, made

    read = _from_rows(name, path, rows())
    return replace(read, prefix_hashes=hashes.as_arrays())


def _count(text: str) -> int:
    """A number of tokens in a CSV. Raises: ValueError unless it is written in digits; `int` takes 1_000 for 1000."""
    if "_" in text:
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def _number(entry: dict[str, object], name: str) -> float:
    """A number in a line of JSON. Raises: KeyError without it, ValueError on text, true, null or a list."""
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r:.{_MOST_SHOWN}}")
    return value


def _whole(entry: dict[str, object], name: str) -> int:
    """A whole number in a line of JSON. Raises: as `_number`, and ValueError on a fraction."""
    value = _number(entry, name)
    if value != int(value):
        raise ValueError(f"{name} is {value}, no whole number")
    return int(value)


class _Hashes:
    """The hash_ids of a file, in one flat array: a tuple of lists would take ten times the memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._flat = array("i")
        self._ends: list[int] = []
        self._given: bool | None = None

    def add(self, line: int, prompt_tokens: int, hash_ids: object) -> None:
        """The hashes of one more line. Raises: ValueError with file and line."""
        given = hash_ids is not None
        if self._given not in (None, given):
            raise ValueError(f"{self._path}, line {line}: hash_ids must stand on every line or on none")
        self._given = given
        if not given:
            return
        try:
            self._flat.extend(hash_ids)  # type: ignore[arg-type]  # checked here: anything but integers raises
        except (TypeError, OverflowError) as error:
            raise ValueError(f"{self._path}, line {line}: hash_ids are no list of token hashes ({error})") from None
        start = self._ends[-1] if self._ends else 0
        found, needed = len(self._flat) - start, -(-prompt_tokens // HASHED_TOKENS)
        if found != needed:
            raise ValueError(
                f"{self._path}, line {line}: {found} hash_ids for {prompt_tokens} prompt tokens, needs {needed}"
            )
        if min(self._flat[start:], default=0) < 0:
            raise ValueError(f"{self._path}, line {line}: a hash id is negative")
        self._ends.append(len(self._flat))

    def as_arrays(self) -> tuple[NDArray[np.int64], ...] | None:
        """One read-only array for each line, all views of one; None if no line had any."""
        import numpy as np

        if not self._given:
            return None
        flat = np.array(self._flat, dtype=np.int64)
        flat.setflags(write=False)
        return tuple(np.split(flat, self._ends[:-1]))


def load(path: Path) -> Workload:
    """The trace in any file: an Azure or ShareGPT CSV or a Mooncake JSONL, told by its columns.

    Raises: OSError if the file cannot be read; ValueError with file and line on anything that is no such trace.
    """
    first = next(_lines(path), "")
    columns = _columns(first, path)
    formats: tuple[tuple[tuple[str, ...], Callable[[Path, str], Workload]], ...] = (
        (_AZURE_COLUMNS, load_azure),
        (_SHAREGPT_COLUMNS, load_sharegpt),
        (_MOONCAKE_FIELDS, load_mooncake),
    )
    # A format with a column missing is still that format: its loader says which column it misses.
    likeness = [len(columns.intersection(known)) for known, _ in formats]
    if not any(likeness):
        known = "; ".join(", ".join(names) for names, _ in formats)
        shown = f"{sorted(columns)!s:.{_MOST_SHOWN}}"
        raise ValueError(f"{path}, line 1: no trace known here; its columns are {shown}, known are {known}")
    return formats[likeness.index(max(likeness))][1](path, path.stem)


def _columns(line: str, path: Path) -> set[str]:
    """The names in the first line of a file: keys of a JSON object, or the fields of a CSV header."""
    if not line.strip():
        raise ValueError(f"{path}, line 1: empty, so no requests in it")
    if not line.lstrip().startswith("{"):
        try:
            return {field.strip() for field in next(csv.reader([line]))}
        except csv.Error as error:
            raise ValueError(f"{path}, line 1: {error}") from None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line 1: not JSON ({error})") from None
    return set(entry)


def _csv_rows(path: Path, columns: tuple[str, ...], row: Callable[[dict[str, str]], Row]) -> Iterator[tuple[int, Row]]:
    table = csv.DictReader(_lines(path))
    try:
        missing = [column for column in columns if column not in (table.fieldnames or [])]
        if missing:
            raise ValueError(f"{path}, line 1: no column {missing[0]!r}; the columns are {table.fieldnames}")
        header = list(table.fieldnames or [])
        twice = [column for column in columns if header.count(column) > 1]
        if twice:
            raise ValueError(f"{path}, line 1: the column {twice[0]!r} stands there {header.count(twice[0])} times")
        for line in table:
            # The table puts what is too many under None, and None where there is too little.
            if None in line or None in line.values():
                found = len(header) + len(line.get(None, ())) - sum(value is None for value in line.values())
                raise ValueError(f"{path}, line {table.line_num}: {found} fields under {len(header)} columns")
            try:
                made = row(line)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {table.line_num}: {error}") from None
            yield table.line_num, made
    except csv.Error as error:
        # Of the reader beneath: the table counts a line only once it is read.
        raise ValueError(f"{path}, line {table.reader.line_num}: {error}") from None


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends. Raises: ValueError with file and line where the bytes are not UTF-8."""
    # Files are decoded in pieces larger than a line, so the decoder alone could not say which line was wrong.
    # Spreadsheets put a byte order mark in front, which "utf-8-sig" takes away.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.encode("utf-8")
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) & 0xFF
                raise ValueError(f"{path}, line {number}: the byte 0x{byte:02x} is not UTF-8") from None
            yield line


def _from_rows(name: str, path: Path, rows: Iterator[tuple[int, Row]]) -> Workload:
    import numpy as np

    arrivals: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    for number, (arrival_s, prompt, output) in rows:
        if not math.isfinite(arrival_s):
            raise ValueError(f"{path}, line {number}: arrives at {arrival_s} s")
        if not (1 <= prompt <= _MOST_TOKENS and 0 <= output <= _MOST_TOKENS):
            raise ValueError(f"{path}, line {number}: {prompt} prompt tokens and {output} output tokens")
        if arrivals and arrival_s < arrivals[-1]:
            raise ValueError(f"{path}, line {number}: arrives before the line above")
        arrivals.append(arrival_s)
        prompts.append(prompt)
        outputs.append(output)
    if not arrivals:
        raise ValueError(f"{path}: no requests in it")
    clock = np.array(arrivals, dtype=np.float64)
    return _made(
        name, CALIBRATIONS.get(name), True, clock - clock[0], np.array(prompts, np.int64), np.array(outputs, np.int64)
    )


def _made(
    name: str,
    known: Calibration | None,
    is_real: bool,
    arrival_s: NDArray[np.float64],
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
) -> Workload:
    # Every reader of a workload shares the arrays, so nobody may write them.
    for column in (arrival_s, prompt_tokens, output_tokens):
        column.setflags(write=False)
    if known is None:
        return Workload(
            name,
            name,
            "a file given by the user",
            "licence not stated",
            is_real,
            arrival_s,
            prompt_tokens,
            output_tokens,
        )
    return Workload(name, known.title, known.source, known.licence, is_real, arrival_s, prompt_tokens, output_tokens)


_FILES: dict[str, tuple[str, Callable[[Path], Workload]]] = {
    "azure_conv": ("azure2023/AzureLLMInferenceTrace_conv.csv", lambda path: load_azure(path, "azure_conv")),
    "azure_code": ("azure2023/AzureLLMInferenceTrace_code.csv", lambda path: load_azure(path, "azure_code")),
    "mooncake_conversation": ("mooncake/conversation_trace.jsonl", load_mooncake),
    "sharegpt_8k": ("sharegpt_lengths/sharegpt_8k_filtered_stats_llama2_tokenizer.csv", load_sharegpt),
}
"""Workload -> its file in a traces folder, and what reads it."""
