"""The published book: built with warnings as errors, made to work without a network, and checked before it is shown.

Owns: the order of the work (what changed, students' bundles, evidence, Jupyter Book, patches, audit) and the stamps
that make a second run quick without hiding a fault. Knows nothing of chapters or of HTML: `site_pages.py` mends pages,
`site_preview.py` draws what stands for them where they are shared, `site_audit.py` judges them.

Two stamps lie in `_build/`. `.executed-with` names the code and traces that the executed cells saw: the execution
cache looks at a page's own cells only, so a change in `labkit` would leave old figures standing. `.built-with` names
the rest. It is removed before a build and written after a good one, for Sphinx repeats no warning of a page it skips.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from labkit.evidence import EvidenceError, build_all
from labkit.places import traces_folder

_NEEDED = ("jupyter_book", "sphinx_book_theme", "sphinx-mathjax-offline", "bs4", "jupytext", "traitlets")
DOWNLOADS = "chapters/_generated"
"""Where the bundles lie that pages offer: Sphinx takes a download only from below its sources. Never in git."""
_RUN_JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"
"""Not the script `jupyter-book`: this interpreter's own copy, whether or not its scripts are on the path."""
_STOP_AFTER_S = 1800
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PROBLEM = re.compile(r"\b(?:WARNING|ERROR|CRITICAL|SEVERE): ")
_PROGRESS = re.compile(r"(?:reading sources|writing output)\.\.\. \[ *\d+%\]|Executing notebook|Executed notebook")

Progress = Callable[[str], None]


class SiteError(Exception):
    """The site was not built, or is not fit to be seen; `problems` has one line each and names the page."""

    def __init__(self, summary: str, problems: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([summary, *(f"  {problem}" for problem in self.problems)]))


@dataclass(frozen=True)
class Site:
    """A built site: its folder, its pages mended in this run, and the time taken."""

    html: Path
    pages_mended: int
    duration_s: float

    @property
    def index(self) -> Path:
        return self.html / "index.html"


def build_site(
    root: Path, *, out: Path | None = None, strict: bool = True, answers: bool = False, progress: Progress = print
) -> Site:
    """Build the book of the course at `root` into `<out>/_build/html` and check it.

    `out`: default `root`; with `answers` `.course/instructor`, so that the two are never mixed up.
    `strict`: warnings, notebook errors and unresolved references stop the build. `progress` gets one line per step.
    `answers`: the instructor's edition, which has a page for each file of `solutions/chapters/` too.
    Raises: SiteError, which names every faulty page. Cost: seconds where nothing changed; each chapter's own run else.
    """
    started = time.monotonic()
    root = root.resolve()
    build = (out.resolve() if out is not None else root / ".course" / "instructor" if answers else root) / "_build"
    _require(root)
    everything = _prepare(root, build, progress)
    write_downloads(root)
    _build_evidence(root, progress)
    edition = _with_answers(root, build) if answers else []
    _jupyter_book(root, build, edition, strict=strict, everything=everything, progress=progress)
    html = build / "html"
    if not (html / "index.html").is_file():
        raise SiteError("jupyter-book ended without a fault and without a landing page; is `root: index` in _toc.yml?")
    # Imported late: `course` must start where the site's packages are not installed.
    from autograder.release import site_audit, site_pages, site_preview

    site_pages.write_notebooks(build / "jupyter_execute", html)
    mended = site_pages.patch_site(html)
    site_preview.draw(html / site_preview.PICTURE)
    problems = site_audit.audit(html, forbidden=(str(root), str(build)))
    if problems:
        raise SiteError("the site was built, but must not be published:", problems)
    (build / ".built-with").write_text(_site_fingerprint(root), encoding="utf-8")
    site = Site(html, mended, time.monotonic() - started)
    progress(f"site ready in {site.duration_s:.0f} s: {os.path.relpath(site.index)}")
    return site


def write_downloads(root: Path) -> list[Path]:
    """The students' bundle of every released lab, where the pages that offer it find it; returns the files.

    A bundle that did not change keeps its time, so that Sphinx leaves its page alone. Raises: SiteError naming the lab.
    """
    from autograder.release.bundle import build_bundle
    from autograder.release.labs import LabError, lab_ids

    try:
        return [build_bundle(root, lab, root / DOWNLOADS / f"{lab}.zip") for lab in lab_ids(root)]
    except LabError as error:
        raise SiteError(f"a page offers a bundle that cannot be made: {error}") from error


def _build_evidence(root: Path, progress: Progress) -> None:
    """What pages show of the engine, built before they run: on every core, where pages run one after the other.

    Without the engine pages read what was bundled.
    """
    if importlib.util.find_spec("reference_impl") and any((root / "chapters" / "evidence").glob("*.py")):
        progress("evidence: what the pages show of the engine")
        try:
            build_all(root)
        except EvidenceError as error:
            raise SiteError("pages show what cannot be built:", str(error).splitlines()) from None


def serve_site(root: Path, port: int = 8000, *, out: Path | None = None) -> ThreadingHTTPServer:
    """A server of the built site on this machine's loopback address; the caller runs `serve_forever()`.

    `port` 0 takes any free one (`server_port` tells which). Raises: SiteError if there is no built site or the port is
    taken.
    """
    html = (out.resolve() if out is not None else root.resolve()) / "_build" / "html"
    if not (html / "index.html").is_file():
        raise SiteError(f"no built site in {html}: run `course site` first")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(html)))
    except (OSError, OverflowError) as error:
        raise SiteError(f"cannot serve on port {port}: {error}") from None


def _require(root: Path) -> None:
    for name in ("_config.yml", "_toc.yml"):
        if not (root / name).is_file():
            raise SiteError(f"{root} is no course: it has no {name}")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SiteError(f"the site needs {', '.join(missing)}: install the extras (pip install -e '.[site,grading]')")


def _prepare(root: Path, build: Path, progress: Progress) -> bool:
    """Drop what is out of date; True if every page must be read and written again."""
    build.mkdir(parents=True, exist_ok=True)
    executed, built = build / ".executed-with", build / ".built-with"
    everything = not _says(built, _site_fingerprint(root))
    code = _code_fingerprint(root)
    if not _says(executed, code):
        if executed.is_file():
            progress("labkit, the engine, a lab's notebook or the traces changed: every chapter runs again")
        shutil.rmtree(build / ".jupyter_cache", ignore_errors=True)
        executed.write_text(code, encoding="utf-8")
        everything = True
    if everything:
        # A page that has left the table of contents must leave the site.
        shutil.rmtree(build / "html", ignore_errors=True)
    built.unlink(missing_ok=True)
    return everything


def _says(stamp: Path, fingerprint: str) -> bool:
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint


def _code_fingerprint(root: Path) -> str:
    """What executed cells depend on beside their own text: the packages they import, the evidence, the labs' notebooks
    (a lab's page computes its table from one), the traces.
    """
    try:
        traces = traces_folder()
    except ValueError as error:
        raise SiteError(str(error)) from None
    folders = (root / "labs" / "labkit", root / "reference_impl", root / "chapters" / "evidence")
    notebooks = sorted((root / "labs").glob("*/*.ipynb"))
    files = [*(file for folder in folders for file in _sources(folder)), *notebooks]
    names = sorted(path for path in traces.rglob("*") if path.is_file()) if traces is not None else []
    return _digest(files, [f"{path.name} {path.stat().st_size}" for path in names])


def _site_fingerprint(root: Path) -> str:
    """What every page depends on: configuration, table of contents, assets and this package's own patches."""
    assets = sorted((root / "chapters" / "_assets").glob("*"))
    own = sorted(Path(__file__).parent.glob("site*.py"))
    return _digest([root / "_config.yml", root / "_toc.yml", *assets, *own], [sys.version])


def _sources(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix in {".py", ".js", ".css", ".json"})


def _digest(files: Iterable[Path], words: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    for word in words:
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()


def _with_answers(root: Path, build: Path) -> list[str]:
    """Options for the instructor's edition: its table of contents and configuration, made from the public ones."""
    import yaml  # type: ignore[import-untyped]

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    named = [chapter["file"] for part in toc.get("parts", []) for chapter in part["chapters"]]
    files = {f"chapters/{path.stem}": path for path in (root / "solutions" / "chapters").glob("*.md")}
    if stray := sorted(set(files) - set(named)):
        raise SiteError("answers to chapters that the book has not:", (str(files[name]) for name in stray))
    pages = [{"file": f"solutions/{name}"} for name in named if name in files]
    toc.setdefault("parts", []).append({"caption": "For instructors: answers", "chapters": pages})
    config["title"] += " (with answers)"
    config["exclude_patterns"] = [pattern for pattern in config["exclude_patterns"] if pattern != "solutions"]
    made = {"--toc": (build / "toc-with-answers.yml", toc), "--config": (build / "config-with-answers.yml", config)}
    for path, content in made.values():
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return [word for option, (path, _) in made.items() for word in (option, str(path))]


def _jupyter_book(
    root: Path, build: Path, edition: list[str], *, strict: bool, everything: bool, progress: Progress
) -> None:
    """Run `jupyter-book build`. Its kernels see labkit and the engine of `root`, installed or not."""
    command = [sys.executable, "-c", _RUN_JUPYTER_BOOK, "build", str(root), "--path-output", str(build.parent)]
    command += edition
    command += ["-W", "--keep-going", "-n"] if strict else []
    command += ["--all"] if everything else []
    paths = [str(root / "labs"), str(root), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        cwd=root,
    )
    # A silent process cannot be noticed by reading its lines, so the clock runs beside them.
    clock = threading.Timer(_STOP_AFTER_S, process.kill)
    clock.start()
    try:
        with process:
            for raw in process.stdout or ():
                lines.append(_ANSI.sub("", raw).rstrip().replace(f"{root}{os.sep}", ""))
                if _PROGRESS.search(lines[-1]):
                    progress(lines[-1])
        late = not clock.is_alive()
    finally:
        clock.cancel()
    if late:
        raise SiteError(f"jupyter-book took more than {_STOP_AFTER_S} s and was stopped; it said last:", lines[-1:])
    if process.returncode != 0:
        raise SiteError("jupyter-book refused the book:", _problems(lines))


def _problems(lines: list[str]) -> list[str]:
    """The faults in Jupyter Book's output; its last lines where none has the usual form."""
    found = [line for line in lines if _PROBLEM.search(line) and "IPKernelApp" not in line]
    said = [line for line in lines if line.strip("= ")]
    return found or said[-15:]
