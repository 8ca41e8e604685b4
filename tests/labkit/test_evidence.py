"""Evidence: built and cached beside the engine, read from the bundle elsewhere, never silently absent."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.evidence import EvidenceError, build_all, evidence, write_bundle

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty course of its own, as the working directory, that takes the sampler for traces."""
    (tmp_path / "_toc.yml").write_text("root: index\n")
    (tmp_path / "chapters" / "evidence").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("P2P_TRACES", "none")
    monkeypatch.syspath_prepend(str(REPOSITORY))
    return tmp_path


def builder(course: Path, body: str) -> None:
    (course / "chapters" / "evidence" / "demo.py").write_text(body)


def test_evidence_is_built_once_and_again_when_its_builder_changes(course: Path) -> None:
    count = (
        "from pathlib import Path\nlog = Path('runs'); log.write_text(log.read_text() + 'x' if log.exists() else 'x')\n"
    )
    builder(course, count + "def build():\n    return {'answer': 1}\n")
    assert evidence("demo") == {"answer": 1}
    assert evidence("demo") == {"answer": 1}
    assert (course / "runs").read_text() == "x"
    builder(course, count + "def build():\n    return {'answer': 2}\n")
    assert evidence("demo") == {"answer": 2}
    assert (course / "runs").read_text() == "xx"


def test_evidence_is_built_again_when_a_record_of_the_engine_changes(
    course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = course / "engine" / "reference_impl"
    engine.mkdir(parents=True)
    (engine / "__init__.py").touch()
    record = engine / "results.json"
    spec = importlib.util.spec_from_file_location(
        "reference_impl", engine / "__init__.py", submodule_search_locations=[str(engine)]
    )
    monkeypatch.setattr(sys.modules["labkit.evidence"].importlib.util, "find_spec", lambda name: spec)
    builder(course, f"import json\ndef build():\n    return json.loads(open({str(record)!r}).read())\n")
    for rate in (1, 2):
        record.write_text(json.dumps({"rate": rate}))
        assert evidence("demo") == {"rate": rate}


def test_the_builder_sees_the_engine_and_the_page_does_not(course: Path) -> None:
    builder(
        course,
        "from reference_impl.memory import BlockAllocator\n"
        "def build():\n    a = BlockAllocator(4, 2); a.allocate(0, 3); return {'table': a.block_table(0)}\n",
    )
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\nimport labkit\nprint(labkit.evidence('demo'))\n"
        "assert not any(name.startswith('reference_impl.') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *sys.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'table': [0, 1]" in done.stdout


@pytest.mark.parametrize(
    "body", ["def build():\n    raise KeyError('lost')\n", "def build():\n    return {'x': float('nan')}\n", "x = 1\n"]
)
def test_a_builder_that_fails_leaves_no_evidence_behind(course: Path, body: str) -> None:
    builder(course, body)
    for _ in range(2):
        with pytest.raises(EvidenceError, match=r"demo\.py: build\(\) failed"):
            evidence("demo")
    assert not list((course / ".course" / "evidence").iterdir())


def test_a_torn_cache_file_is_named_and_not_believed(course: Path) -> None:
    builder(course, "def build():\n    return {'answer': 1}\n")
    evidence("demo")
    (cached,) = (course / ".course" / "evidence").glob("*.json")
    cached.write_text('{"answer"')
    with pytest.raises(EvidenceError, match=cached.name):
        evidence("demo")


def test_without_the_engine_the_bundle_is_read_and_without_both_the_error_says_where_it_looked(
    course: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    builder(course, "def build():\n    return {'answer': 42}\n")
    student = tmp_path_factory.mktemp("student")
    (written,) = write_bundle(student / "evidence")
    assert json.loads(written.read_text()) == {"answer": 42}
    # By sys.modules: the package shows the function `evidence` under the name of this module.
    monkeypatch.setattr(sys.modules["labkit.evidence"], "_engine_is_installed", lambda: False)
    monkeypatch.chdir(student)
    assert evidence("demo") == {"answer": 42}
    with pytest.raises(EvidenceError, match=r"no evidence for chapter 'other'.*evidence"):
        evidence("other")
    with pytest.raises(EvidenceError, match="reference_impl installed"):
        write_bundle(student / "again")


@pytest.mark.parametrize("page", [".", "pages", "pages/first"])
def test_a_book_above_that_has_no_builder_does_not_hide_the_bundle(
    course: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    builder(course, "def build():\n    return {'answer': 42}\n")
    write_bundle(course / "evidence")
    (course / "chapters" / "evidence" / "demo.py").unlink()
    (course / page).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(course / page)
    assert evidence("demo") == {"answer": 42}


@pytest.mark.parametrize("name", ["../secrets", "a/b", ""])
def test_a_chapter_is_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        evidence(name)


def test_all_evidence_is_built_side_by_side_and_then_read(course: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["labkit.evidence"].os, "cpu_count", lambda: 2)
    waits = (
        "import time\nfrom pathlib import Path\nPath({own!r}).touch()\n"
        "def build():\n"
        "    for _ in range(600):\n        if Path({other!r}).exists():\n            return {{'by': {own!r}}}\n"
        "        time.sleep(0.1)\n    raise TimeoutError('the other never ran')\n"
    )
    for own, other in (("first", "second"), ("second", "first")):
        (course / "chapters" / "evidence" / f"{own}.py").write_text(waits.format(own=own, other=other))
    assert build_all(course) == {"first": {"by": "first"}, "second": {"by": "second"}}
    (course / "second").unlink()
    assert evidence("first") == {"by": "first"}
    assert not (course / "second").exists(), "what is cached is not built again"
