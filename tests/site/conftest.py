"""The built site under test: built once a session from this repository, opened in one Chromium without a network."""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _missing() -> str:
    """Why no site can be built or looked at here; empty if it can."""
    for package, name in (("jupyter_book", "jupyter-book"), ("sphinx-mathjax-offline",) * 2, ("playwright",) * 2):
        if importlib.util.find_spec(package) is None:
            return f"{name} is not installed"
    return "" if shutil.which("chromium") else "chromium is not installed"


@pytest.fixture(scope="session")
def site() -> Path:
    """The built folder. It is kept under `.course/`, so that a second session only checks what changed."""
    if importlib.util.find_spec("jupyter_book") is None:
        pytest.skip("jupyter-book is not installed")
    from autograder.release.site import build_site

    state = ROOT / ".course"
    state.mkdir(exist_ok=True)
    # Processes that test at once share the folder: the first one builds it, the others find it built.
    with (state / "site-under-test.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_site(ROOT, out=state / "site-under-test", progress=lambda line: None).html


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if reason := _missing():
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


class Seen:
    """A page as a reader has it: opened from a file, offline, with all that went wrong written down in `faults`."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.faults: list[str] = []
        page.on("console", lambda said: said.type == "error" and self.faults.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        page.on("requestfailed", lambda request: self.faults.append(f"failed: {request.url}"))
        page.on("request", self._note_remote)

    def _note_remote(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.faults.append(f"asked another host: {request.url}")

    def settle(self) -> None:
        """Wait until the formulas are set and the page's own script has had its last word."""
        self.page.wait_for_load_state("load")
        self.page.evaluate("async () => { if (window.MathJax) await window.MathJax.startup.promise; }")
        self.page.wait_for_timeout(450)


def open_page(site: Path, browser: Any, document: str, mode: str, width: int) -> Seen:
    """The page in a browser of its own, in the colours of `mode`; the caller closes `page.context`."""
    context = browser.new_context(offline=True, color_scheme=mode, viewport={"width": width, "height": 900})
    context.add_init_script(f"localStorage.setItem('mode', '{mode}'); localStorage.setItem('theme', '{mode}')")
    seen = Seen(context.new_page())
    seen.page.goto((site / document).as_uri())
    seen.settle()
    return seen


@pytest.fixture
def visit(site: Path, browser: Any) -> Iterator[Callable[..., Seen]]:
    """`visit(document, mode="light", width=1280)` opens a page that the test may change."""
    opened: list[Seen] = []

    def open_one(document: str, mode: str = "light", width: int = 1280) -> Seen:
        opened.append(open_page(site, browser, document, mode, width))
        return opened[-1]

    yield open_one
    for seen in opened:
        seen.page.context.close()
