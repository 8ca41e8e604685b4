"""Building a small course from nothing: what stops it, what is done again and what is not, and serving the result."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import urllib.request
import zipfile
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from autograder.release.site import SiteError, _code_fingerprint, build_site, serve_site

ROOT = Path(__file__).resolve().parents[2]
needs_jupyter_book = pytest.mark.skipif(
    importlib.util.find_spec("jupyter_book") is None, reason="jupyter-book is not installed"
)
PAGE = """---
kernelspec: {{name: python3, display_name: Python 3, language: python}}
jupytext: {{text_representation: {{extension: .md, format_name: myst}}}}
---

# A page

A formula: $a^2$.

```{{code-cell}} ipython3
{code}
```
"""


class Course:
    """A course of one page with the real configuration; `say` collects the progress lines."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.said: list[str] = []
        shutil.copy(ROOT / "_config.yml", root)
        shutil.copytree(ROOT / "chapters" / "_assets", root / "chapters" / "_assets")
        (root / "_toc.yml").write_text("format: jb-book\nroot: index\n", encoding="utf-8")
        (root / "labs" / "labkit").mkdir(parents=True)
        (root / "reference_impl").mkdir()
        self.labkit("VALUE = 1")
        self.page("print('value', 1)")

    def labkit(self, code: str) -> None:
        (self.root / "labs" / "labkit" / "__init__.py").write_text(code, encoding="utf-8")

    def page(self, code: str, after: str = "") -> None:
        (self.root / "index.md").write_text(PAGE.format(code=code) + after, encoding="utf-8")

    def build(self) -> Path:
        self.said.clear()
        return build_site(self.root, progress=self.said.append).html

    @property
    def executed(self) -> bool:
        return any("Executing notebook" in line for line in self.said)


@pytest.fixture
def course(tmp_path, monkeypatch):
    monkeypatch.setenv("P2P_TRACES", "none")
    return Course(tmp_path)


@needs_jupyter_book
@pytest.mark.slow
def test_a_second_build_runs_no_cell_and_a_change_in_labkit_runs_them_all(course):
    course.page("import labkit\nprint('value', labkit.VALUE)")
    html = course.build()
    assert course.executed
    assert "value 1" in (html / "index.html").read_text()
    course.build()
    assert not course.executed
    course.labkit("VALUE = 2")
    course.build()
    assert "value 2" in (html / "index.html").read_text()


@needs_jupyter_book
@pytest.mark.slow
def test_a_failing_cell_stops_the_build_names_the_page_and_stops_it_again(course):
    course.page("raise RuntimeError('the cell fell over')")
    for _ in range(2):
        with pytest.raises(SiteError, match=r"index\.md"):
            course.build()


@needs_jupyter_book
@pytest.mark.slow
def test_a_warning_is_an_error_the_second_time_too(course):
    course.page("print(1)", after="\n[nowhere](no-such-page.md)\n")
    for _ in range(2):
        with pytest.raises(SiteError, match=r"index\.md.*no-such-page"):
            course.build()


@needs_jupyter_book
@pytest.mark.slow
def test_a_page_that_would_fetch_a_picture_from_a_host_is_refused_by_name(course):
    course.page("from IPython.display import HTML\nHTML('<img alt=x src=https://a.example/x.png>')")
    with pytest.raises(SiteError, match=r"index\.html: fetches https://a\.example/x\.png"):
        course.build()


@needs_jupyter_book
@pytest.mark.slow
def test_formulas_come_with_the_site_and_the_rest_of_mathjax_does_not(course):
    static = course.build() / "_static" / "mathjax"
    assert (static / "tex-chtml.js").is_file()
    assert list(static.glob("output/chtml/fonts/woff-v2/*.woff"))
    assert not (static / "tex-svg-full.js").exists()
    assert sum(file.stat().st_size for file in static.rglob("*")) < 9e6


def a_built_page(root):
    (root / "_build" / "html").mkdir(parents=True)
    (root / "_build" / "html" / "index.html").write_text("A page", encoding="utf-8")


def test_the_built_site_is_served_on_this_machine_only(tmp_path):
    a_built_page(tmp_path)
    with serve_site(tmp_path, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address[:2]
        assert host == "127.0.0.1"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/index.html", timeout=10) as answer:
            assert answer.read() == b"A page"
        server.shutdown()


def test_serving_before_building_says_what_to_do(tmp_path):
    with pytest.raises(SiteError, match="course site"):
        serve_site(tmp_path)


def test_a_port_that_cannot_be_had_is_named(tmp_path):
    a_built_page(tmp_path)
    with pytest.raises(SiteError, match="port 99999"):
        serve_site(tmp_path, 99999)


def test_a_folder_that_is_no_course_is_refused(tmp_path):
    with pytest.raises(SiteError, match=r"_config\.yml"):
        build_site(tmp_path)


def test_a_traces_folder_that_is_missing_is_named(course, monkeypatch):
    monkeypatch.setenv("P2P_TRACES", str(course.root / "no-traces"))
    with pytest.raises(SiteError, match="no-traces"):
        course.build()


def test_what_executed_cells_read_is_in_their_stamp(course):
    notebook = course.root / "labs" / "lab" / "lab.ipynb"
    notebook.parent.mkdir()
    seen = []
    for text in ('{"points": 1}', '{"points": 2}'):
        notebook.write_text(text, encoding="utf-8")
        seen.append(_code_fingerprint(course.root))
    assert seen[0] != seen[1]


@needs_jupyter_book
@pytest.mark.slow
def test_a_change_in_a_labs_notebook_runs_the_page_that_reads_it(course):
    notebook = course.root / "labs" / "lab" / "lab.ipynb"
    notebook.parent.mkdir()
    course.page("from pathlib import Path\nprint('points', Path('labs/lab/lab.ipynb').read_text())")
    for points in ("ten", "twelve"):
        notebook.write_text(points, encoding="utf-8")
        assert f"points {points}" in (course.build() / "index.html").read_text()


def test_a_lab_without_a_notebook_stops_the_build_by_name(course):
    source = course.root / "solutions" / "lab9" / "lab9.md"
    source.parent.mkdir(parents=True)
    source.write_text("# A lab\n", encoding="utf-8")
    with pytest.raises(SiteError, match=r"there is no labs/lab9/lab9\.ipynb"):
        course.build()


def test_evidence_that_cannot_be_built_stops_the_build_by_name_before_any_page_runs(course):
    builder = course.root / "chapters" / "evidence" / "demo.py"
    builder.parent.mkdir()
    builder.write_text("def build():\n    raise KeyError('lost')\n", encoding="utf-8")
    with pytest.raises(SiteError, match=r"(?s)demo\.py.*lost"):
        course.build()
    assert not course.executed


CHECK = """
import sys
sys.path.append(sys.argv[1])
import labkit
from labkit.contracts import OutOfBlocks
names = {"OutOfBlocks": OutOfBlocks}
exec(open(sys.argv[2], encoding="utf-8").read(), names)
labkit.check("lab3_block_allocator", "tables", names["BlockAllocator"])
print(labkit.__file__)
"""


def unpacked(site, name, folder):
    """The folder in the archive that the page of a lab offers, unpacked, and the page's text."""
    page = BeautifulSoup((site / "chapters" / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
    [link] = page.select("a.download[href$='.zip']")
    with zipfile.ZipFile(site / "chapters" / link["href"]) as bundle:
        bundle.extractall(folder)
    [inside] = folder.iterdir()
    assert f"cd {inside.name}" in page.get_text()
    return inside


@needs_jupyter_book
@pytest.mark.slow
def test_the_page_of_lab_4_offers_a_bundle_whose_checks_are_known_before_torch_is_installed(site, tmp_path):
    folder = unpacked(site, "lab4", tmp_path)
    assert "pip install . notebook torch triton\n" in (folder / "README.md").read_text(encoding="utf-8")
    code = (
        "import sys; sys.path.append(sys.argv[1]); import labkit.checks as c; print(*c.groups('lab4_paged_attention'))"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "store_kv decode head_groups" in done.stdout


@needs_jupyter_book
@pytest.mark.slow
def test_the_page_of_a_lab_offers_a_bundle_that_works_by_itself(site, tmp_path):
    folder = unpacked(site, "lab3", tmp_path)
    honest = sorted((ROOT / "tests" / "submissions" / "lab3_block_allocator" / "correct").glob("*.py"))[0]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHECK, str(folder), str(honest)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    assert str(folder) in done.stdout


@needs_jupyter_book
@pytest.mark.slow
def test_each_chapter_of_the_course_offers_a_notebook_without_roles_for_numbers(site):
    notebooks = sorted((site / "_sources" / "chapters").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        prose = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        assert "{glue" not in prose, f"{path.name} shows a role instead of a number"
        assert all(not cell.get("outputs") for cell in notebook["cells"])


@needs_jupyter_book
@pytest.mark.slow
def test_the_instructors_edition_has_the_answers_and_the_public_one_does_not(course):
    chapter = course.root / "chapters" / "holes.md"
    chapter.write_text(PAGE.format(code="print(1)").replace("# A page", "# Holes"), encoding="utf-8")
    answers = course.root / "solutions" / "chapters" / "holes.md"
    answers.parent.mkdir(parents=True)
    answers.write_text("# Holes: answers\n\n## Answer to 2\n\nForty-two blocks.\n", encoding="utf-8")
    parts = "parts:\n  - caption: Chapters\n    chapters:\n      - file: chapters/holes\n"
    (course.root / "_toc.yml").write_text(f"format: jb-book\nroot: index\n{parts}", encoding="utf-8")
    public = course.build()
    assert not any("Forty-two" in page.read_text() for page in public.rglob("*") if page.suffix in {".html", ".js"})
    instructors = build_site(course.root, answers=True, progress=course.said.append).html
    assert instructors != public
    assert "Forty-two blocks." in (instructors / "solutions" / "chapters" / "holes.html").read_text()
    assert "with answers" in (instructors / "index.html").read_text()
    assert "Forty-two" not in (public / "searchindex.js").read_text()

    (answers.parent / "nowhere.md").write_text("# Answers to nothing\n", encoding="utf-8")
    with pytest.raises(SiteError, match=r"nowhere\.md"):
        build_site(course.root, answers=True, progress=course.said.append)
