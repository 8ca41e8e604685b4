"""The engine beside a padded batch and beside reserved memory: what is compared, and what is kept of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from reference_impl.bench import beside_transformers, concurrency, cpu
from reference_impl.bench.beside_transformers import Job, Offline, Turn, mixed_job
from reference_impl.cli import main
from tests.reference_impl.bench.records import changed

pytestmark = pytest.mark.usefixtures("one_thread")

RESULTS = Path(cpu.__file__).parent / "results"
JOB = Job([[5, 6, 7], [8, 9]], [4, 2])


def test_the_job_is_of_unlike_lengths_and_most_of_its_rectangle_is_padding() -> None:
    job = mixed_job()
    assert len(job.prompts) == len(job.outputs) == 32
    assert max(job.outputs) > 8 * min(job.outputs)
    assert 0.4 < job.padded_share < 0.8
    assert Job([[1] * 3, [1]], [1, 3]).padded_share == pytest.approx(1 - 8 / 12)


def test_both_sides_get_the_same_job_and_the_gain_is_the_median_of_the_turns() -> None:
    calls: list[str] = []

    def run(name: str) -> beside_transformers.Run:
        def answer(job: Job) -> list[list[int]]:
            calls.append(name)
            return [[0] * new for new in job.outputs]

        return answer

    found = beside_transformers.compare(run("ours"), run("theirs"), JOB, 2, progress=lambda text: None)
    assert calls == ["ours", "theirs", "ours", "theirs", "theirs", "ours"], "a warm-up, then who goes first changes"
    assert [turn.same for turn in found.turns] == [2, 2]
    assert Offline(JOB, [Turn(1.0, 2.0, 2), Turn(3.0, 3.0, 2), Turn(1.0, 9.0, 2)]).gain == 2.0
    assert Offline(JOB, [Turn(2.0, 4.0, 2)]).ours_tokens_per_s == 3.0


def test_a_run_that_makes_too_few_tokens_is_an_error_and_no_gain() -> None:
    def lazy(job: Job) -> list[list[int]]:
        return [[0]] * len(job.outputs)

    with pytest.raises(ValueError, match=r"answers of \[1, 1\] tokens were made, \[4, 2\] were asked for"):
        beside_transformers.compare(lazy, lazy, JOB, 1, progress=lambda text: None)


def test_ours_and_transformers_make_the_same_tokens() -> None:
    pytest.importorskip("transformers")
    job = Job([[5, 6, 7, 8, 9, 10], [11], [12, 13, 14]], [3, 9, 6])
    found = beside_transformers.measure("tiny", 1, job, progress=lambda text: None)
    assert found.turns[0].same == 3


def test_paged_memory_holds_more_requests_at_once_than_reserved() -> None:
    lengths = [(400, 20)] * 20
    reserved, paged = (concurrency.hold(name, lengths, 4_096) for name in concurrency.ALLOCATORS)
    assert reserved.peak_running == 2, "4,096 slots, 2,048 reserved for each"
    assert reserved.kv_bytes == paged.kv_bytes
    assert paged.peak_running == 10, "4,096 slots, 400 tokens each when they come in"
    assert paged.mean_running > 3 * reserved.mean_running
    with pytest.raises(ValueError, match="2 requests all fit at once under paged"):
        concurrency.hold("paged", lengths[:2], 4_096)


def test_the_conversations_are_those_that_the_setting_allows() -> None:
    found = concurrency.conversations(50)
    assert len(found) == 50
    assert all(prompt <= 500 and prompt + new <= 2_048 for prompt, new in found)
    with pytest.raises(ValueError, match=r"requests must be 1 to \d+, got 0"):
        concurrency.conversations(0)


def test_the_kept_record_has_the_schema() -> None:
    path = RESULTS / "cpu.json"
    assert path.is_file(), "engine bench cpu"
    kept = json.loads(path.read_text(encoding="utf-8"))
    cpu.check_record(kept)
    assert kept["offline"]["model"] == cpu.MODEL


@pytest.fixture
def record() -> dict[str, Any]:
    """The kept one, with figures that this file knows."""
    kept: dict[str, Any] = json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8"))
    kept["offline"] |= {"gain": 2.5, "goal": {"at_least": 2.0, "met": True}}
    return kept


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("clock",), None, "record: ['clock'] is missing or too many"),
        (("machine", "host"), "x", "machine: ['host'] is missing or too many"),
        (("offline", "gain"), 0.5, "offline: gain 0.5 and the goal"),
        (("concurrency", "rows", 0, "steps"), None, "row: ['steps'] is missing or too many"),
    ],
)
def test_a_record_of_another_shape_is_refused_by_name(
    record: dict[str, Any], path: tuple[Any, ...], value: Any, said: str
) -> None:
    broken = changed(record, path, value)
    with pytest.raises(ValueError, match=re.escape(said)):
        cpu.check_record(broken)


def test_the_command_prints_both_comparisons_and_keeps_them(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "measure", lambda: record)
    kept = tmp_path / "cpu.json"
    assert main(["bench", "cpu", "--json", str(kept)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"gain +2\.50  at least 2: hit", shown)
    assert re.search(r"gain +[\d.]+  at least 3: (hit|MISS)", shown)
    assert json.loads(kept.read_text(encoding="utf-8")) == record


def test_cases_cannot_be_chosen_where_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cpu", "--only", "x"]) == 1
    assert "--only chooses among the cases of memory" in capsys.readouterr().err
