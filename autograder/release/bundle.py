"""The archive that students download: one lab's notebook and `labkit`.

Owns: what is in it and that its bytes depend on its content alone. `pip install .` inside the unpacked folder gives
`labkit`; the notebook then runs anywhere, and the chapters' notebooks too: the evidence that they show comes along,
since students have no engine. Every bundle is scanned for answers before it is put in its place.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from autograder.gradebook.config import RELEASE_DIRECTORY
from autograder.release.labs import LabError, lab_ids, make_source, write_atomically
from autograder.release.leak import scan_zip
from labkit.evidence import EvidenceError, write_bundle

LABKIT = "labs/labkit"
LABKIT_SUFFIXES = (".py", ".js", ".css", ".typed", ".json", ".svg")
EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The time of every member: the first that the format can hold."""

README = """# {lab}

What you need: Python 3.11 or newer.

    python3 -m venv .venv
    .venv/bin/pip install {installed}
    .venv/bin/jupyter notebook {lab}/{lab}.ipynb

`labkit` comes from this folder. Do not install it by name from a package index: what bears that name there is not ours.

Write your code where the notebook says so, and run its public checks as often as you like. Hand in the one file
`{lab}/{lab}.ipynb`, under this name. Locked cells are the course's: whatever stands in yours, ours are used.
"""


def build_bundle(root: Path, lab: str, target: Path) -> Path:
    """Write the bundle of `lab` to the file `target` and return it.

    A file that holds it already is left alone. Raises: LabError if the lab has no released notebook, if a chapter's
    evidence cannot be built, or if an answer would leave; nothing is written then.
    """
    notebook = root / RELEASE_DIRECTORY / lab / f"{lab}.ipynb"
    if not notebook.is_file():
        raise LabError(f"{lab}: there is no {notebook.relative_to(root)}; make it with `course labs`")
    content = _archive(dict(_members(root, lab, notebook)))
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch, "draft.zip")
        draft.write_bytes(content)
        sources = [make_source(root, name, Path(scratch)) for name in lab_ids(root)]
        leaks = scan_zip(draft, solutions=sources)
    if leaks:
        listed = "\n".join(f"  {leak.path}: {leak.what}" for leak in leaks)
        raise LabError(f"{lab}: the bundle would give answers away.\n{listed}")
    if not target.is_file() or target.read_bytes() != content:
        write_atomically(target, content)
    return target


def _members(root: Path, lab: str, notebook: Path) -> Iterator[tuple[str, bytes]]:
    top = f"padding-to-paging-{lab}"
    content = notebook.read_bytes()
    installed = " ".join([".", "notebook", *packages_of(content)])
    yield f"{top}/README.md", README.format(lab=lab, installed=installed).encode()
    yield f"{top}/pyproject.toml", _pyproject(root).encode()
    yield f"{top}/{lab}/{lab}.ipynb", content
    for path in sorted((root / LABKIT).rglob("*")):
        if path.is_file() and path.suffix in LABKIT_SUFFIXES and "__pycache__" not in path.parts:
            yield f"{top}/labkit/{path.relative_to(root / LABKIT).as_posix()}", path.read_bytes()
    for name, content in _evidence(root):
        yield f"{top}/labkit/evidence/{name}", content


def packages_of(notebook: bytes) -> list[str]:
    """The packages that a notebook's cells import at their top level, beside labkit, what it brings and the standard
    library; a package is taken to bear the name of its distribution."""
    found = set()
    for cell in json.loads(notebook)["cells"]:
        if cell["cell_type"] != "code":
            continue
        for line in "".join(cell["source"]).splitlines():
            imported = re.match(r"(?:import|from) (\w+)", line)
            if imported is not None:
                found.add(imported[1])
    return sorted(found - {"labkit", "numpy", "matplotlib"} - set(sys.stdlib_module_names))


def _evidence(root: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each chapter's evidence, in the folder beside `labkit/evidence.py` that it reads."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            written = write_bundle(Path(scratch), root)
        except EvidenceError as error:
            raise LabError(f"the bundle needs the evidence of every chapter: {error}") from error
        for path in written:
            yield path.name, path.read_bytes()


def _pyproject(root: Path) -> str:
    """labkit alone, with the version, licence and dependencies that the course's own project file states."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies = ", ".join(f'"{requirement}"' for requirement in project["dependencies"])
    return (
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n\n'
        f'[project]\nname = "labkit"\nversion = "{project["version"]}"\n'
        'description = "What the labs of Padding to Paging import."\n'
        f'requires-python = "{project["requires-python"]}"\n'
        f"dependencies = [{dependencies}]\n\n"
        '[tool.setuptools.packages.find]\ninclude = ["labkit*"]\n\n'
        '[tool.setuptools.package-data]\nlabkit = ["**/*.js", "**/*.css", "**/*.json", "**/*.svg", "py.typed"]\n'
    )


def _archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, EARLIEST)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, members[name])
    return buffer.getvalue()
