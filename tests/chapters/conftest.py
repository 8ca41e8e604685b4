"""Runs a page's visible and hidden code the way a notebook would, and keeps what it hands to the prose."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from labkit.places import traces_folder

ROOT = Path(__file__).resolve().parents[2]
_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n((?::[^\n]*\n)*)(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Page:
    """One MyST page: its text, its cells, and after a run what was glued and what each cell's last line showed."""

    path: Path
    glued: dict[str, str] = field(default_factory=dict)
    shown: list[Any] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def cells(self) -> list[str]:
        return [match[2] for match in _CELL.finditer(self.source)]

    @property
    def prose(self) -> str:
        """The text without front matter and code cells."""
        return _CELL.sub("", self.source.split("---\n", 2)[2])

    def run_answer(self, exercise: int, names: dict[str, Any]) -> None:
        """Run the indented code of the folded answer to an exercise; what it defines is in `names` afterwards."""
        folded = rf"```\{{dropdown\}} Answer to {exercise}\n.*?\n\n((?:(?:    [^\n]*)?\n)+)"
        code = re.search(folded, self.source, re.DOTALL)
        assert code is not None, f"the answer to exercise {exercise} has no code"
        exec("if True:\n" + code[1], names)

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import ast

        import matplotlib

        import labkit

        matplotlib.use("Agg")
        monkeypatch.chdir(self.path.parent)
        monkeypatch.setattr(labkit, "glue", lambda **texts: self.glued.update(texts))
        for cell in self.cells:
            body = ast.parse(cell).body
            last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
            exec(compile(ast.Module(body, []), str(self.path), "exec"), self.names)
            if isinstance(last, ast.Expr):
                self.shown.append(eval(compile(ast.Expression(last.value), str(self.path), "eval"), self.names))


@pytest.fixture(scope="session")
def page() -> Callable[[str], Page]:
    """`page("rectangles")` runs chapters/rectangles.md and returns it."""

    def run(name: str) -> Page:
        found = Page(ROOT / "chapters" / f"{name}.md")
        with pytest.MonkeyPatch.context() as patch:
            found.run(patch)
        return found

    return run


@pytest.fixture(scope="module", params=["trace", "sampler"])
def chapter(request: pytest.FixtureRequest, page: Callable[[str], Page]) -> Iterator[Page]:
    """The page that the test module names in `CHAPTER`, run on the real trace and run where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "sampler":
            patch.setenv("P2P_TRACES", "none")
        elif traces_folder() is None:
            pytest.skip("no traces on this machine")
        yield page(request.module.CHAPTER)


@pytest.fixture(scope="module")
def seen(chapter: Page) -> dict[str, Any]:
    """What the engine showed the page."""
    found: dict[str, Any] = chapter.names["seen"]
    return found
