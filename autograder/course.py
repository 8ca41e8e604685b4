"""The course on disk: its labs, their cells and points, and the version of what grades them.

Owns: where things are, the registry of cells of each released lab (which are the student's, which are ours), the
points, the identity of a suite, and the course key from which seeds are drawn. Knows nothing of submissions. The
released notebook in `labs/` is the registry: it is generated from `solutions/` and checked fresh, and it is plain
JSON.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import importlib.util
import json
import os
import secrets
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autograder.sandbox.limits import Limits
from labkit import checks

STATE_FOLDER = ".course"
"""Journal, key and generated files of a course, beside its notebooks; never in git."""
SUITE_SOURCES = (
    "autograder/course.py",
    "autograder/intake.py",
    "autograder/judge",
    "autograder/sandbox",
    "autograder/worker",
    "reference_impl/memory",
    "labs/labkit/contracts.py",
    "labs/labkit/checks",
    "labs/labkit/watch.py",
)
"""What can change a verdict, beside a lab's own files."""


@dataclass(frozen=True)
class Group:
    """One group of hidden tests: the locked cell `id`, worth `points`."""

    id: str
    title: str
    points: float


@dataclass(frozen=True)
class SourceCell:
    """One code cell of a released notebook. `kind`: solution (the student writes it), setup (ours, run before grading),
    grade (a locked check, never run by the grader), shown (locked, without points, behind a solution cell: a check or
    a demonstration on the student's work, never run either)."""

    id: str
    kind: str
    source: str


@dataclass(frozen=True)
class Lab:
    """One lab: its released notebook, its hidden suite, and what both say."""

    id: str
    notebook: Path
    hidden: Path

    @cached_property
    def cells(self) -> tuple[SourceCell, ...]:
        """The code cells with an nbgrader id, in order."""
        cells: list[SourceCell] = []
        for raw in json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]:
            meta = raw.get("metadata", {}).get("nbgrader")
            if raw["cell_type"] != "code" or not meta:
                continue
            kind = "grade" if meta.get("grade") else "solution" if meta.get("solution") else "setup"
            if kind == "setup" and any(cell.kind == "solution" for cell in cells):
                kind = "shown"
            cells.append(SourceCell(meta["grade_id"], kind, "".join(raw["source"])))
        return tuple(cells)

    @cached_property
    def example_sources(self) -> frozenset[str]:
        """Sources of the released code cells without an nbgrader id: examples, stripped."""
        cells = json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]
        return frozenset(
            "".join(cell["source"]).strip()
            for cell in cells
            if cell["cell_type"] == "code" and not cell.get("metadata", {}).get("nbgrader")
        )

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups with their points, in the notebook's order."""
        titles = checks.groups(self.id)
        groups = []
        for cell in json.loads(self.notebook.read_text(encoding="utf-8"))["cells"]:
            meta = cell.get("metadata", {}).get("nbgrader") or {}
            if cell["cell_type"] == "code" and meta.get("grade"):
                title = titles[meta["grade_id"]].title
                groups.append(Group(meta["grade_id"], title, float(meta["points"])))
        return tuple(groups)

    @cached_property
    def suite(self) -> types.ModuleType:
        """`suite.py` of the hidden tests: VERSION, PROVIDES (class -> methods), PACKAGES the student may use, REFERENCE
        (class -> module with the reference of that name). And, where a lab differs from the usual: KIND ("functions" if
        the methods of PROVIDES are functions of the submission's own), LIMITS (fields of `Limits` -> values),
        ENVIRONMENT of the worker, both also with _CPU or _CUDA behind for one device; DEVICES that it is graded on,
        SOURCES (what can change a verdict, beside SUITE_SOURCES)."""
        return load_module(self.hidden / "suite.py", f"hidden_{self.id}_suite")

    @property
    def kind(self) -> str:
        """What a submission provides: "class" or "functions"."""
        return str(getattr(self.suite, "KIND", "class"))

    @property
    def devices(self) -> tuple[str, ...]:
        """Where hidden tests of this lab run: "cpu", and "cuda" if some need a GPU."""
        return tuple(getattr(self.suite, "DEVICES", ("cpu",)))

    def limits(self, device: str) -> Limits:
        """The caps on a submission to this lab that is graded on `device`."""
        return Limits(**self._on("LIMITS", device))

    def environment(self, device: str) -> dict[str, str]:
        """Variables of the worker there, beside those that every worker has."""
        return self._on("ENVIRONMENT", device)

    def _on(self, name: str, device: str) -> dict[str, Any]:
        """What the suite says under `name`, and on top of it what it says of one device."""
        return {**getattr(self.suite, name, {}), **getattr(self.suite, f"{name}_{device.upper()}", {})}

    def reference(self, name: str) -> Callable[..., Any]:
        """The reference implementation of class `name`."""
        found: Callable[..., Any] = getattr(importlib.import_module(self.suite.REFERENCE[name]), name)
        return found


def load_module(path: Path, name: str) -> types.ModuleType:
    """Import one file by path, without touching `sys.path`."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Course:
    """A checkout of the course."""

    root: Path

    @classmethod
    def open(cls, root: Path | None = None) -> Course:
        """The course at `root`, or the nearest one above the working folder.

        Raises: ValueError if there is none.
        """
        if root is not None:
            if not (root / "_toc.yml").is_file():
                raise ValueError(f"{root} is no course: it has no _toc.yml")
            return cls(root.resolve())
        here = Path.cwd()
        for folder in (here, *here.parents):
            if (folder / "_toc.yml").is_file() and (folder / "labs").is_dir():
                return cls(folder)
        raise ValueError(f"{here} is not inside a course: no folder above it has a _toc.yml and labs/")

    @property
    def state(self) -> Path:
        folder = self.root / STATE_FOLDER
        folder.mkdir(exist_ok=True)
        return folder

    def labs(self) -> tuple[Lab, ...]:
        """Every lab that has a released notebook and a hidden suite."""
        found = []
        for hidden in sorted((self.root / "tests" / "hidden").glob("*/suite.py")):
            lab = hidden.parent.name
            notebook = self.root / "labs" / lab / f"{lab}.ipynb"
            if notebook.is_file():
                found.append(Lab(lab, notebook, hidden.parent))
        return tuple(found)

    def lab(self, lab_id: str) -> Lab:
        """Raises: ValueError naming the known labs."""
        labs = {lab.id: lab for lab in self.labs()}
        if lab_id not in labs:
            raise ValueError(f"no lab {lab_id!r}; this course has {', '.join(labs) or 'none with a hidden suite'}")
        return labs[lab_id]

    def suite_version(self, lab: Lab) -> str:
        """`VERSION` of the suite and a hash of all that can change a verdict: tests, judge, reference, notebook.

        Cost: reads those files once a call.
        """
        digest = hashlib.sha256()
        files = [lab.notebook, *lab.hidden.rglob("*.py")]
        for name in (*SUITE_SOURCES, *getattr(lab.suite, "SOURCES", ())):
            source = self.root / name
            files += [source] if source.is_file() else source.rglob("*.py")
        for file in sorted(files):
            digest.update(f"{file.relative_to(self.root)}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return f"{lab.suite.VERSION}-{digest.hexdigest()[:12]}"

    def seed(self, submission_sha256: str, suite: str) -> int:
        """The seed of one submission under one suite: repeatable for staff, unknown to students.

        An HMAC of both under the course key, 64 bits of it.
        """
        mac = hmac.new(self._key(), f"{submission_sha256}:{suite}".encode(), hashlib.sha256)
        return int.from_bytes(mac.digest()[:8], "big")

    def _key(self) -> bytes:
        path = self.state / "key"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            pass
        fresh = path.with_name(f"key.{os.getpid()}.{secrets.token_hex(4)}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            # Only the first of several processes that start together makes the key; link refuses to replace it.
            os.link(fresh, path)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
        return path.read_bytes()


def seed_id(seed: int) -> str:
    """A name for a seed that does not give it away."""
    return hashlib.sha256(seed.to_bytes(8, "big")).hexdigest()[:12]
