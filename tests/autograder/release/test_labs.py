"""From the text source to the released notebook and the bundle: fresh, the same every time, and without answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from autograder.release import labs
from autograder.release.bundle import build_bundle
from autograder.release.labs import LabError, check_labs, write_labs
from autograder.release.leak import scan_tree, scan_zip
from labkit.evidence import evidence

PROJECT = Path(__file__).resolve().parents[3]
ANSWER = "blocks_of_the_model_answer = 1"
SOURCE = f"""---
kernelspec: {{name: python3, display_name: Python 3}}
---

# A small lab

```{{code-cell}} ipython3
---
nbgrader: {{grade: false, grade_id: answer, locked: false, schema_version: 3, solution: true, task: false}}
---
class BlockAllocator:
    ### BEGIN SOLUTION
    {ANSWER}
    ### END SOLUTION
```

```{{code-cell}} ipython3
---
nbgrader: {{grade: true, grade_id: tables, locked: true, points: 10, schema_version: 3, solution: false, task: false}}
---
# Graded by hidden tests.
```
"""


def project(root: Path, source: str = SOURCE) -> Path:
    text = root / "solutions" / "mini" / "mini.md"
    text.parent.mkdir(parents=True)
    text.write_text(source)
    for name in ("_toc.yml", "pyproject.toml"):
        shutil.copy(PROJECT / name, root / name)
    shutil.copytree(PROJECT / "labs" / "labkit", root / "labs" / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = project(tmp_path_factory.mktemp("labs"))
    write_labs(root)
    return root


@pytest.fixture
def course(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "course")


def notebook(root: Path) -> Path:
    return root / "labs" / "mini" / "mini.ipynb"


class TestCommittedLabs:
    """The notebooks in this repository."""

    @pytest.mark.slow
    def test_they_are_what_their_sources_make(self) -> None:
        stale = {state.lab: state.diff for state in check_labs(PROJECT) if not state.fresh}
        assert not stale, "\n".join(stale.values())

    def test_there_is_one_of_each_source(self) -> None:
        released = sorted(path.stem for path in (PROJECT / "labs").glob("*/*.ipynb"))
        assert released == labs.lab_ids(PROJECT)

    def test_nothing_in_the_release_tree_is_an_answer(self, tmp_path: Path) -> None:
        sources = [labs.make_source(PROJECT, lab, tmp_path) for lab in labs.lab_ids(PROJECT)]
        assert sources
        assert not scan_tree(PROJECT / "labs", solutions=sources)


def test_a_solution_becomes_a_stub(made: Path) -> None:
    text = notebook(made).read_text()
    assert "# YOUR CODE HERE" in text
    assert "raise NotImplementedError()" in text
    assert ANSWER not in text


def test_only_the_notebook_is_released(made: Path) -> None:
    assert [path.name for path in notebook(made).parent.iterdir()] == ["mini.ipynb"]


def test_the_same_source_gives_the_same_bytes_anywhere(made: Path, tmp_path: Path) -> None:
    again = project(tmp_path / "elsewhere")
    write_labs(again)
    assert notebook(again).read_bytes() == notebook(made).read_bytes()


def test_a_cell_keeps_its_id_when_another_one_is_edited(made: Path, tmp_path: Path) -> None:
    again = project(tmp_path, SOURCE.replace("# A small lab", "# A lab\n\n+++\n\nNew text"))
    write_labs(again)
    ids = [[cell["id"] for cell in json.loads(notebook(root).read_text())["cells"]] for root in (made, again)]
    assert ids[0][-2:] == ids[1][-2:] == ["answer", "tables"]


def test_check_says_fresh_and_then_stale_with_the_difference(course: Path) -> None:
    assert all(state.fresh for state in check_labs(course))
    text = course / "solutions" / "mini" / "mini.md"
    text.write_text(text.read_text().replace("# A small lab", "# A smaller lab"))
    before = notebook(course).read_bytes()
    [state] = check_labs(course)
    assert not state.fresh
    assert '-    "# A small lab"' in state.diff
    assert '+    "# A smaller lab"' in state.diff
    assert notebook(course).read_bytes() == before


def test_a_hand_edited_notebook_is_stale(course: Path) -> None:
    notebook(course).write_text(notebook(course).read_text().replace("YOUR CODE", "MY CODE"))
    assert not check_labs(course)[0].fresh


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (SOURCE.replace("    ### END SOLUTION\n", ""), "mini: nbgrader could not make the notebook"),
        (SOURCE.replace("grade_id: tables", "grade_id: answer"), "Duplicate grade id: answer"),
        ("---\nkernelspec: [\n---\n", "mini: solutions/mini/mini.md is not a text notebook"),
        (SOURCE.replace("# A small lab", f"# A small lab\n\n    {ANSWER} "), None),
    ],
)
def test_a_source_that_cannot_be_released_is_an_error_with_its_reason(
    tmp_path: Path, source: str, words: str | None
) -> None:
    root = project(tmp_path, source)
    if words is None:
        # A line that the author shows in the text is no secret.
        write_labs(root)
        return
    with pytest.raises(LabError, match=words):
        write_labs(root)
    assert not notebook(root).exists()


def test_an_unknown_lab_is_named_with_those_that_exist(course: Path) -> None:
    with pytest.raises(LabError, match="no such lab: lab9; labs here: mini"):
        write_labs(course, ["lab9"])


PLANTS = {
    "an open marker": '{"cells": [{"source": ["### BEGIN", " SOLUTION"]}], "a": "### BEGIN SOLUTION"}',
    "a marker written with escapes": '{"a": "BEGIN\\u0020SOLUTION"}',
    "a line of the solution in metadata": json.dumps({"metadata": {"note": [f"  {ANSWER}"]}}),
    "a line of the solution in a comment file": f"first\n{ANSWER}\nlast",
    "a hidden test": "# BEGIN HIDDEN TESTS",
    "the reference": "from reference_impl.memory import BlockPool",
    "the grader": "import autograder.judge",
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_leak_is_found(course: Path, tmp_path: Path, plant: str) -> None:
    source = labs.make_source(course, "mini", tmp_path)
    assert not scan_tree(course / "labs", solutions=[source])
    (course / "labs" / "mini" / "extra.txt").write_text(PLANTS[plant])
    [leak] = scan_tree(course / "labs", solutions=[source])[:1]
    assert leak.path == "mini/extra.txt"


@pytest.mark.parametrize("folder", ["solutions", "hidden", "submissions", "reference_impl", "autograder"])
def test_a_folder_that_students_never_get_is_found(course: Path, folder: str) -> None:
    planted = course / "labs" / folder / "x.txt"
    planted.parent.mkdir()
    planted.write_text("harmless")
    assert [leak.what for leak in scan_tree(course / "labs")] == [f"lies in a folder {folder}"]


def test_a_write_that_fails_leaves_no_part_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    (tmp_path / "x").write_bytes(b"before")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        labs.write_atomically(tmp_path / "x", b"after")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"before"}


# The folder that the archive unpacks to, and nothing else that Python could import from: no site-packages, no engine.
ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("reference_impl", "autograder"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.path.append(sys.argv[1])
import json, labkit
print(json.dumps(labkit.evidence("rectangles"), sort_keys=True))
"""


class TestBundle:
    def test_evidence_comes_with_it_and_is_read_where_there_is_no_engine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(PROJECT)
        monkeypatch.setenv("P2P_TRACES", "none")
        bundle = build_bundle(PROJECT, "lab3_block_allocator", tmp_path / "lab.zip")
        zipfile.ZipFile(bundle).extractall(tmp_path / "unpacked")
        [folder] = (tmp_path / "unpacked").iterdir()
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", ALONE, str(folder)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == evidence("rectangles")

    def test_evidence_that_cannot_be_built_stops_it_and_names_the_chapter(self, course: Path, tmp_path: Path) -> None:
        builder = course / "chapters" / "evidence" / "demo.py"
        builder.parent.mkdir(parents=True)
        builder.write_text("def build():\n    raise KeyError('lost')\n")
        with pytest.raises(LabError, match=r"demo\.py: build\(\) failed"):
            build_bundle(course, "mini", tmp_path / "mini.zip")
        assert not (tmp_path / "mini.zip").exists()

    def test_one_that_did_not_change_is_left_alone(self, course: Path, tmp_path: Path) -> None:
        bundle = build_bundle(course, "mini", tmp_path / "mini.zip")
        os.utime(bundle, (1, 1))
        build_bundle(course, "mini", bundle)
        assert bundle.stat().st_mtime == 1
        (course / "labs" / "labkit" / "more.py").write_text("MORE = 1\n")
        build_bundle(course, "mini", bundle)
        assert bundle.stat().st_mtime > 1

    def test_it_holds_notebook_labkit_and_what_installs_it(self, course: Path, tmp_path: Path) -> None:
        bundle = build_bundle(course, "mini", tmp_path / "mini.zip")
        names = [name.removeprefix("padding-to-paging-mini/") for name in zipfile.ZipFile(bundle).namelist()]
        assert {"README.md", "pyproject.toml", "mini/mini.ipynb", "labkit/__init__.py", "labkit/contracts.py"} <= set(
            names
        )
        assert {name.split("/")[0] for name in names} == {"README.md", "pyproject.toml", "mini", "labkit"}

    def test_its_readme_installs_what_the_notebook_imports(self, tmp_path: Path) -> None:
        source = SOURCE.replace("class BlockAllocator:", "import triton\nimport torch, math\nclass BlockAllocator:")
        root = project(tmp_path / "course", source)
        write_labs(root)
        bundle = build_bundle(root, "mini", tmp_path / "mini.zip")
        readme = zipfile.ZipFile(bundle).read("padding-to-paging-mini/README.md").decode()
        assert "\n    .venv/bin/pip install . notebook torch triton\n" in readme

    def test_its_bytes_depend_on_its_content_alone(self, course: Path, tmp_path: Path) -> None:
        first = build_bundle(course, "mini", tmp_path / "1.zip").read_bytes()
        for path in course.rglob("*.py"):
            path.touch()
        assert build_bundle(course, "mini", tmp_path / "2.zip").read_bytes() == first

    def test_an_answer_in_it_is_refused_and_nothing_is_written(self, course: Path, tmp_path: Path) -> None:
        (course / "labs" / "labkit" / "extra.py").write_text(f"class A:\n    {ANSWER}\n")
        with pytest.raises(LabError, match=r"labkit/extra\.py: contains a line of the solution"):
            build_bundle(course, "mini", tmp_path / "mini.zip")
        assert not (tmp_path / "mini.zip").exists()

    def test_a_lab_that_is_not_released_is_an_error(self, course: Path, tmp_path: Path) -> None:
        with pytest.raises(LabError, match=r"there is no labs/lab9/lab9\.ipynb"):
            build_bundle(course, "lab9", tmp_path / "x.zip")

    @pytest.mark.slow
    def test_its_project_file_builds_labkit_and_it_imports_alone(self, course: Path, tmp_path: Path) -> None:
        builder = course / "chapters" / "evidence" / "demo.py"
        builder.parent.mkdir(parents=True)
        builder.write_text("def build():\n    return {'answer': 42}\n")
        bundle = build_bundle(course, "mini", tmp_path / "mini.zip")
        assert not scan_zip(bundle)
        zipfile.ZipFile(bundle).extractall(tmp_path / "unpacked")
        [folder] = (tmp_path / "unpacked").iterdir()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*pip, "--target", str(tmp_path / "site"), str(folder)], check=True, timeout=300)
        probe = "import labkit, labkit.contracts, labkit.checks; print(labkit.__file__, labkit.evidence('demo'))"
        alone = {"PYTHONPATH": str(tmp_path / "site")}
        done = subprocess.run(
            [sys.executable, "-c", probe], env=alone, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert str(tmp_path / "site") in done.stdout
        assert "{'answer': 42}" in done.stdout
