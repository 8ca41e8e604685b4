"""Fixtures of labkit's tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit import player
from tests.labkit.player_page import Open


@pytest.fixture
def chromium_page() -> Iterator[Any]:
    """A blank page in headless Chromium that fails the test on any script error; skipped where there is no browser."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert not errors, errors


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as driver:
        engine = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield engine
        engine.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    contexts = []

    def open_page(*players: player.Player, html_attributes: str = 'lang="en"', **options: Any) -> Any:
        body = "".join(f"<h2>Figure {n}</h2>{figure._repr_html_()}" for n, figure in enumerate(players))
        page_file = tmp_path / "page.html"
        page_file.write_text(
            f"<!doctype html><html {html_attributes}><head><meta charset=utf-8><title>Player</title>"
            f'<meta name="viewport" content="width=device-width, initial-scale=1"></head>'
            f"<body><main><h1>Player</h1>{body}</main></body></html>",
            encoding="utf-8",
        )
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
