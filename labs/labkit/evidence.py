"""What the engine showed: numbers, tables and event logs that chapters read and never compute.

Owns: building, caching and bundling the evidence of a chapter. Knows nothing of what it says, and never imports
`reference_impl`: where that package is installed the builder runs in a process of its own, so that a page, whose
visible code needs `labkit` alone, stays free of the engine. Elsewhere the evidence comes from the bundle.
Plain JSON in, plain JSON out. The cache key covers the builder, the engine, the workloads and the traces at hand.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from labkit.places import course_root, traces_folder

_TIMEOUT_S = 1_200
"""For a builder that never ends, not for one on a machine that others use too."""

_RUN = """
import json, runpy, sys
evidence = runpy.run_path(sys.argv[1])["build"]()
with open(sys.argv[2], "w", encoding="utf-8") as out:
    json.dump(evidence, out, indent=1, allow_nan=False)
"""


class EvidenceError(Exception):
    """There is no evidence to give; the message says what was looked for and where."""


def evidence(chapter: str) -> dict[str, Any]:
    """The evidence of `chapter`: built (and cached) where the engine and a builder are, else read from the bundle.

    Raises: ValueError if `chapter` is no plain name, EvidenceError if the builder fails or no bundle has the chapter.
    Cost: a file read once cached; the builder's run otherwise.
    """
    if not chapter.isidentifier():
        raise ValueError(f"a chapter's evidence has a plain name such as 'rectangles', got {chapter!r}")
    builder = _builder(chapter)
    if builder is not None:
        return _built(builder, _engines_part())
    return _bundled(chapter)


def build_all(root: Path | None = None) -> dict[str, dict[str, Any]]:
    """The evidence of every chapter by its name; what is not cached is built side by side, a process for each core.

    `root` is the course's folder; by default the one that the working directory or this package lies in.

    Raises: EvidenceError where there is nothing to build from, or if a builder fails.
    """
    root = root or course_root()
    if root is None or not _engine_is_installed():
        raise EvidenceError("evidence is built in the course's folder with reference_impl installed")
    builders = sorted((root / "chapters" / "evidence").glob("*.py"))
    engines_part = _engines_part()
    # Threads are enough: each waits for a process.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda builder: _built(builder, engines_part), builders)
        return {builder.stem: evidence for builder, evidence in zip(builders, found, strict=True)}


def write_bundle(folder: Path, root: Path | None = None) -> list[Path]:
    """Write the evidence of every chapter into `folder` as `<chapter>.json`, for places without the engine.

    `root` as for `build_all`, which also says what it raises. Returns the files written.
    """
    found = build_all(root)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for chapter, shown in found.items():
        target = folder / f"{chapter}.json"
        target.write_text(json.dumps(shown, indent=1), encoding="utf-8")
        written.append(target)
    return written


def _engine_is_installed() -> bool:
    return importlib.util.find_spec("reference_impl") is not None


def _builder(chapter: str) -> Path | None:
    root = course_root()
    if root is None or not _engine_is_installed():
        return None
    path = root / "chapters" / "evidence" / f"{chapter}.py"
    return path if path.is_file() else None


def _built(builder: Path, engines_part: bytes) -> dict[str, Any]:
    key = hashlib.sha256(engines_part + builder.name.encode() + b"\0" + builder.read_bytes()).hexdigest()[:20]
    cached = builder.parents[2] / ".course" / "evidence" / f"{builder.stem}-{key}.json"
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        _run_builder(builder, cached)
    return _read(cached)


def _run_builder(builder: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "evidence.json"
        # The child sees the packages that this process sees, however they were put on its path.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        try:
            done = subprocess.run(
                [sys.executable, "-c", _RUN, str(builder), str(made)],
                capture_output=True,
                text=True,
                env=environment,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EvidenceError(f"{builder.name}: build() took more than {_TIMEOUT_S} s") from None
        if done.returncode != 0:
            raise EvidenceError(f"{builder.name}: build() failed\n{done.stderr.strip()}")
        # Whole or not at all: another page may ask for the same evidence at this moment.
        os.replace(made, target)


def _engines_part() -> bytes:
    """A hash of all that evidence depends on beside its builder: engine and its records, this package, the traces."""
    digest = hashlib.sha256()
    engine = importlib.util.find_spec("reference_impl")
    folders = [Path(place) for place in (engine.submodule_search_locations or [])] if engine else []
    folders.append(Path(__file__).parent)
    for source in (f for folder in folders for f in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")])):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    traces = traces_folder()
    if traces is not None:
        for trace in sorted(traces.rglob("*.*")):
            digest.update(f"{trace.relative_to(traces)} {trace.stat().st_size}\n".encode())
    return digest.digest()


def _bundled(chapter: str) -> dict[str, Any]:
    # A root without a builder is a book that a bundle was put into; its pages may lie more than one folder deep.
    above = [Path.cwd(), Path.cwd().parent, *([root] if (root := course_root()) is not None else [])]
    places = [folder / "evidence" for folder in [*dict.fromkeys(above), Path(__file__).resolve().parent]]
    for place in places:
        if (place / f"{chapter}.json").is_file():
            return _read(place / f"{chapter}.json")
    looked = ", ".join(str(place) for place in places)
    raise EvidenceError(
        f"no evidence for chapter {chapter!r}: the engine (reference_impl) is not installed or has no builder for it, "
        f"and none of these folders has {chapter}.json: {looked}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvidenceError(f"{path}: not JSON ({error}); delete it to have it built again") from None
    if not isinstance(found, dict):
        raise EvidenceError(f"{path}: evidence is one JSON object, this is a {type(found).__name__}")
    return found
