"""The book as one PDF, printed from the built site.

Owns: the browser that prints, the numbers in the contents, and the refusal of a PDF that lacks a page. Knows nothing of
figures or questions: `pdf_pages.py` joins the pages and `pdf.css` dresses them for paper. No cell runs: what is printed
is what the site shows. Chromium is the one that the tests of the site use; the network is off while it prints.

Cost: the book is set twice, for the contents need the numbers of its pages; about half a minute.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograder.release.site import Progress, SiteError

BROWSER_HINT = "on Debian or Ubuntu run: sudo apt-get install chromium"
_STOP_AFTER_MS = 300_000
_SETTLED = """async () => {
  if (window.MathJax) await window.MathJax.startup.promise;
  await document.fonts.ready;
}"""
_FILL_IN = """numbers => {
  for (const place of document.querySelectorAll("[data-page-of]")) place.textContent = numbers[place.dataset.pageOf];
}"""


@dataclass(frozen=True)
class Pdf:
    """A printed book: its file, its sheets, and the page on which each page of the site begins (id -> 1, 2, ...)."""

    file: Path
    num_pages: int
    starts: dict[str, int]


def print_book(html: Path, file: Path, *, progress: Progress = print) -> Pdf:
    """Print the built site in the folder `html` into `file`, which is replaced only by a whole book.

    Raises: SiteError if there is no built site, no Chromium, a package is missing, a page asks another host for
    something, or a page of the book is missing in what was printed.
    """
    started = time.monotonic()
    html, file = html.resolve(), file.resolve()
    if not (html / "index.html").is_file():
        raise SiteError(f"no built site in {html}: run `course site` first")
    chromium = can_print()
    from autograder.release import pdf_pages, site_preview

    with tempfile.TemporaryDirectory(prefix="book-") as folder:
        source, printed = Path(folder) / "book.html", Path(folder) / "book.pdf"
        try:
            cover = site_preview.draw(Path(folder) / "cover.svg", words=False)
            source.write_text(pdf_pages.join(html, cover), encoding="utf-8")
            ids = [entry.id for entry in pdf_pages.entries(html)]
        except ValueError as error:
            raise SiteError(str(error)) from error
        with _opened(chromium, source) as page:
            progress("printing, to learn the numbers of the pages")
            _print(page, printed)
            starts = _starts(printed, ids)
            page.evaluate(_FILL_IN, {name: str(number) for name, number in starts.items()})
            progress("printing")
            _print(page, printed)
        moved = [name for name, number in _starts(printed, list(starts)).items() if number != starts[name]]
        if moved:
            raise SiteError(f"the contents would name wrong pages, for these moved meanwhile: {', '.join(moved)}")
        book = Pdf(file, _num_pages(printed), starts)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(printed, file)
    size = f"{book.num_pages} pages, {file.stat().st_size / 1e6:.1f} MB"
    progress(f"book ready in {time.monotonic() - started:.0f} s: {os.path.relpath(file)}, {size}")
    return book


def can_print() -> str:
    """The path of the browser that prints. Raises: SiteError saying what is missing and how it is installed."""
    missing = [name for name in ("playwright", "pypdf", "bs4") if importlib.util.find_spec(name) is None]
    if missing:
        raise SiteError(f"the PDF needs {', '.join(missing)}: install the extras (pip install -e '.[site,dev]')")
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SiteError(f"the PDF is printed by Chromium, and there is no command chromium; {BROWSER_HINT}")
    return chromium


@contextmanager
def _opened(chromium: str, source: Path) -> Iterator[Any]:
    """The joined document in a browser without a network, its formulas set; errors of the browser become ours."""
    from playwright.sync_api import Error, sync_playwright

    faults: list[str] = []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_context(offline=True, color_scheme="light").new_page()
            page.set_default_timeout(_STOP_AFTER_MS)
            page.on("request", lambda request: _note(request.url, faults))
            page.on("requestfailed", lambda request: faults.append(f"cannot be read: {Path(request.url).name}"))
            page.on("pageerror", lambda error: faults.append(f"script: {error}"))
            # From the start as on paper: what is set for a screen first is not set in the same way later.
            page.emulate_media(media="print")
            page.goto(source.as_uri())
            page.evaluate(_SETTLED)
            yield page
            browser.close()
    except Error as error:
        raise SiteError(f"Chromium did not print the book: {error.message.splitlines()[0]}") from error
    if faults:
        raise SiteError("the book was printed, but not whole:", sorted(set(faults)))


def _note(address: str, faults: list[str]) -> None:
    if not address.startswith(("file:", "data:", "blob:")):
        faults.append(f"asks another host: {address}")


def _print(page: Any, file: Path) -> None:
    page.pdf(path=str(file), prefer_css_page_size=True, print_background=True, outline=True, tagged=True)


def _starts(printed: Path, ids: list[str]) -> dict[str, int]:
    """Where each page of the site begins, counted from 1. Raises: SiteError naming those that are nowhere."""
    from pypdf import PdfReader

    reader = PdfReader(printed)
    places = reader.named_destinations
    lost = [name for name in ids if f"/{name}" not in places]
    if lost:
        raise SiteError(f"not in the printed book: {', '.join(lost)}")
    return {name: (reader.get_destination_page_number(places[f"/{name}"]) or 0) + 1 for name in ids}


def _num_pages(printed: Path) -> int:
    from pypdf import PdfReader

    return len(PdfReader(printed).pages)
