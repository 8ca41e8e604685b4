"""`engine simulate`, `traces`, `capacity`, `watermark` and `chunked-prefill`: what they print, write and refuse."""

from __future__ import annotations

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from labkit.places import traces_cache, traces_folder
from labkit.workloads import workload
from reference_impl.cli import main
from reference_impl.sim import download
from reference_impl.sim.metrics import LATENCIES, SHARES
from reference_impl.sim.plot import draw
from reference_impl.sim.show import Watcher

SUBMISSIONS = Path(__file__).resolve().parents[2] / "submissions" / "lab3_block_allocator"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
SMALL = ["--model", "qwen3-0.6b", "--kv-tokens", "4096", "--requests", "60", "--max-running", "16"]


@pytest.fixture(autouse=True)
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same traces on every machine."""
    monkeypatch.setenv("P2P_TRACES", "none")


def simulate(*args: str) -> int:
    return main(["simulate", "--trace", "azure_conv", *SMALL, *args])


def test_one_row_for_each_allocator_and_the_best_uses_memory_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.json"
    allocators = ("padded", "contiguous", "pow2", "oracle", "grow", "paged")
    options = [text for name in allocators for text in ("--allocator", name)]
    longest = ["--max-length", "4096", "--concurrency", "60"]
    assert simulate(*options, *longest, "--json", str(out), "--plot", str(tmp_path / "out.png")) == 0
    shown = capsys.readouterr().out
    assert "a seeded sample" in shown
    lines = shown.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("allocator"))
    assert [line.split()[0] for line in lines[start + 1 : start + 7]] == list(allocators)
    report = json.loads(out.read_text())
    check_schema(report)
    held = {run["allocator"]: run["metrics"]["mean_over_time"]["held"] for run in report["runs"]}
    assert held["contiguous"] < held["pow2"] < held["paged"]
    made = {run["metrics"]["output_tokens"] for run in report["runs"]}
    assert len(made) == 1
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def check_schema(report: dict[str, Any]) -> None:
    assert set(report) == {"schema", "versions", "trace", "traffic", "device", "model", "rates", "runs"}
    assert report["schema"] == "engine-simulate/1"
    assert set(report["trace"]) == {"name", "description", "is_real", "requests"}
    assert set(report["traffic"]) == {
        "concurrency",
        "rate_factor",
        "poisson_per_s",
        "seed",
        "max_length",
        "max_new_tokens",
        "targets",
    }
    assert set(report["versions"]) == {"padding-to-paging", "python", "numpy"}
    for run in report["runs"]:
        assert set(run) == {"allocator", "config", "took_s", "metrics", "series", "distributions"}
        assert set(run["distributions"]) == set(LATENCIES)
        assert set(run["series"]) == {"time_s", *SHARES, "running", "waiting"}
        lengths = {len(column) for column in run["series"].values()}
        assert len(lengths) == 1
        assert 0 < lengths.pop() <= 512
        metrics = run["metrics"]
        for name in LATENCIES:
            assert set(metrics["latency"][name]) == {"mean", "p50", "p90", "p95", "p99", "max"}
        whole = [sum(run["series"][share][place] for share in SHARES) for place in range(len(run["series"]["held"]))]
        assert whole == pytest.approx([1.0] * len(whole))
        assert metrics["completed"] + sum(metrics["refused"].values()) == report["trace"]["requests"]


def test_the_same_command_gives_the_same_figures(tmp_path: Path) -> None:
    found = []
    for place in range(2):
        out = tmp_path / f"{place}.json"
        assert simulate("--poisson", "5", "--seed", "3", "--json", str(out)) == 0
        found.append(json.loads(out.read_text())["runs"][0]["metrics"])
    assert found[0] == found[1]


def test_refused_requests_are_said_with_their_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("--max-length", "500", "--concurrency", "4") == 0
    assert "paged: refused at the door: " in capsys.readouterr().out


def test_progress_is_in_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--trace", "azure_code", "--requests", "600", "--model", "qwen3-0.6b"]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert 1 <= len(shown) <= 4
    assert shown[-1].startswith("paged: 600 of 600 requests")


def test_a_students_allocator_takes_the_place_of_ours(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    theirs = f"{SUBMISSIONS / 'correct' / 'stack_and_counter.py'}:BlockAllocator"
    assert simulate("--allocator", theirs, "--allocator", "paged", "--json", str(out)) == 0
    runs = json.loads(out.read_text())["runs"]
    assert runs[0]["metrics"]["output_tokens"] == runs[1]["metrics"]["output_tokens"]
    # Ours counts no slot for a last token, theirs behind a policy does: nearly the same, not exactly.
    assert runs[0]["metrics"]["duration_s"] == pytest.approx(runs[1]["metrics"]["duration_s"], rel=0.1)


SCHEDULER = '''
"""First come, first served, one request at a time, all of its tokens in a row."""
from labkit.contracts import StepPlan

class Mine:
    def __init__(self, num_blocks, block_size, max_tokens_per_step, max_running):
        self.waiting, self.now, self.done, self.budget = [], None, 0, max_tokens_per_step
        self.room = num_blocks * block_size
    def add(self, request, prompt_tokens, max_new_tokens):
        if prompt_tokens + max_new_tokens - 1 > self.room:
            raise ValueError("could never fit")
        self.waiting.append([request, prompt_tokens])
    def abort(self, request):
        self.waiting = [one for one in self.waiting if one[0] != request]
    def schedule(self):
        admitted = []
        if self.now is None:
            if not self.waiting:
                return StepPlan()
            self.now, self.done = self.waiting.pop(0), 0
            admitted = [self.now[0]]
        self.tokens = min(self.budget, self.now[1] - self.done)
        return StepPlan({self.now[0]: self.tokens}, [], admitted)
    def finish_step(self, finished):
        self.done += self.tokens
        if self.done == self.now[1]:
            self.now[1] += 1
        if self.now[0] in finished:
            self.now = None
'''


def test_a_students_scheduler_takes_the_place_of_ours(tmp_path: Path) -> None:
    path, out = tmp_path / "mine.py", tmp_path / "out.json"
    path.write_text(SCHEDULER)
    assert simulate("--scheduler", f"{path}:Mine", "--json", str(out)) == 0
    metrics = json.loads(out.read_text())["runs"][0]["metrics"]
    assert metrics["completed"] + sum(metrics["refused"].values()) == 60
    assert metrics["most_running"] == 1


def test_a_student_who_breaks_the_contract_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SCHEDULER.replace("min(self.budget, self.now[1] - self.done)", "self.now[1]"))
    assert simulate("--scheduler", f"{path}:Mine") == 1
    shown = capsys.readouterr().err
    assert "mine.py" in shown
    assert "PlanError" in shown
    path.write_text(SCHEDULER.replace("self.done += self.tokens", "self.done += self.token"))
    assert simulate("--scheduler", f"{path}:Mine") == 1
    line = SCHEDULER.splitlines().index("        self.done += self.tokens") + 1
    assert f"mine.py, line {line}: AttributeError" in capsys.readouterr().err


def test_a_students_scheduler_is_kept_from_requests_above_the_longest(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SCHEDULER)
    refused = []
    for name in ("continuous", f"{path}:Mine"):
        assert simulate("--scheduler", name, "--max-length", "1500", "--json", str(tmp_path / "out.json")) == 0
        refused.append(json.loads((tmp_path / "out.json").read_text())["runs"][0]["metrics"]["refused"])
    assert refused[0] == refused[1]
    assert sum(refused[0].values()) > 0


def test_a_report_names_a_students_file_without_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "mine.py", tmp_path / "out.json"
    path.write_text(SCHEDULER)
    theirs = f"{SUBMISSIONS / 'correct' / 'stack_and_counter.py'}:BlockAllocator"
    assert simulate("--allocator", theirs, "--json", str(out)) == 0
    shown, kept = capsys.readouterr(), out.read_text()
    assert simulate("--scheduler", f"{path}:Mine", "--json", str(out)) == 0
    for text in (*shown, kept, *capsys.readouterr(), out.read_text()):
        assert str(tmp_path) not in text
        assert str(SUBMISSIONS) not in text
    assert "stack_and_counter.py:BlockAllocator" in shown.out
    assert json.loads(out.read_text())["runs"][0]["config"]["scheduler"] == "mine.py:Mine"


@pytest.mark.parametrize("leaves", ["raise SystemExit", "raise SystemExit(0)", "import sys; sys.exit()"])
def test_a_students_class_cannot_end_the_command_in_silence(
    tmp_path: Path, leaves: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SCHEDULER.replace("        admitted = []\n", f"        {leaves}\n"))
    assert simulate("--scheduler", f"{path}:Mine") == 1
    assert "mine.py, line 16: SystemExit" in capsys.readouterr().err


def test_a_run_can_be_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SCHEDULER.replace("        admitted = []\n", "        raise KeyboardInterrupt\n"))
    assert simulate("--scheduler", f"{path}:Mine") == 130
    assert capsys.readouterr().err == "engine simulate: interrupted\n"


def test_a_file_with_the_name_of_one_of_ours_is_not_blamed_for_our_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "contract.py"
    path.write_text(SCHEDULER.replace("min(self.budget, self.now[1] - self.done)", "self.now[1]"))
    assert simulate("--scheduler", f"{path}:Mine", "--max-tokens-per-step", "64") == 1
    assert f"engine simulate: {path}:Mine: PlanError" in capsys.readouterr().err


def test_what_cannot_be_loaded_is_known_before_any_row_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reference_impl.sim.compare.simulate", lambda *args, **options: pytest.fail("it ran"))
    path = tmp_path / "mine.py"
    path.write_text("raise RuntimeError('not yet written')")
    assert simulate("--allocator", "paged", "--allocator", f"{path}:Mine") == 1
    assert capsys.readouterr().err == f"engine simulate: {path}: RuntimeError while it ran: not yet written\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (AZURE + "2023-11-16 18:00:00.0,5,6\nbroken\n", "trace.csv, line 3: "),
        (AZURE + "2023-11-16 18:00:00.0,-5,6\n", "trace.csv, line 2: -5 prompt tokens"),
        (AZURE + "2023-11-16 18:00:00.0,0,6\n", "trace.csv, line 2: 0 prompt tokens"),
        ("when,what\n1,2\n", "trace.csv, line 1: no trace known here; its columns are ['what', 'when']"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "trace.csv, line 1: no column 'GeneratedTokens'"),
        ("", "trace.csv, line 1: empty"),
        (AZURE + "2023-11-16 18:00:00.0,5000,6\n", "paged: not one of 1 requests could run: "),
    ],
)
def test_a_broken_trace_is_one_line_with_file_and_line(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    assert main(["simulate", "--trace", str(path), *SMALL]) == 1
    # Above it, at most, how far the simulation was.
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith("engine simulate: ")
    assert words in last
    assert len(before) <= 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--kv-tokens", "0"], "kv_tokens must be at least one block of 16 tokens, got 0"),
        (["--kv-tokens", "-16"], "kv_tokens must be at least one block of 16 tokens, got -16"),
        (["--block-size", "0"], "block_size must be at least 1, got 0"),
        (["--max-running", "0"], "max_running must be at least 1, got 0"),
        (["--requests", "0"], "requests must be at least 1, got 0"),
        (["--concurrency", "0"], "concurrency must be at least 1, got 0"),
        (["--rate-factor", "0"], "--rate-factor must be above 0, got 0.0"),
        (["--poisson", "-1"], "--poisson must be above 0, got -1.0"),
        (["--ttft-target", "0"], "ttft_s must be above 0, got 0.0"),
        (["--allocator", "magic"], "no allocator 'magic'; there are padded, contiguous"),
        (["--scheduler", "magic"], "no scheduler 'magic'"),
        (["--model", "gpt-9"], "no model 'gpt-9'; there are qwen3-0.6b"),
        (["--device", "abacus"], "no device 'abacus'"),
        (["--prefix-cache", "magic"], "no prefix cache 'magic'"),
        (["--eviction", "magic"], "no eviction 'magic'"),
        (["--eviction", ""], "no eviction ''"),
        (["--recovery", "magic"], "no recovery 'magic'"),
        (["--watermark", "1.5"], "watermark must be at least 0 and below 1, got 1.5"),
        (["--allocator", "nowhere.py:A"], "nowhere.py: no such file"),
        (["--allocator", "nowhere.py"], "write the file and the class as FILE.py:Class"),
        (["--allocator", "pow2", "--scheduler", "mine.py:Mine"], "it goes with paged, not pow2"),
        (["--prefix-cache", "hash"], "--prefix-cache: azure_conv has no prefix hashes, nothing could be found again"),
        (["--watermark", "0.1", "--allocator", "pow2"], "--watermark has no effect on pow2 under continuous"),
        (["--recovery", "swap", "--scheduler", "static"], "--recovery has no effect on paged under static"),
        (["--eviction", "lfu"], "--eviction has no effect without --prefix-cache"),
        (["--eviction", "lru", "--allocator", "pow2"], "--eviction has no effect without --prefix-cache"),
        (["--max-tokens-per-step", "64", "--scheduler", "orca"], "--max-tokens-per-step has no effect under orca"),
        (["--max-tokens-per-step", "64", "--allocator", "padded"], "--max-tokens-per-step has no effect under static"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--json", "."], "--json .: that is a folder"),
        (["--json", "no/such/folder/out.json"], "--json no/such/folder/out.json: there is no such folder"),
        (["--plot", "out.magic"], "--plot out.magic: its ending must be one of .png, .svg, .pdf"),
    ],
)
def test_bad_input_is_one_line_that_names_it(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(*args) == 1
    shown = capsys.readouterr().err
    assert words in shown.splitlines()[-1]


@pytest.mark.parametrize("gib", ["0", "-1", "inf", "nan", "1e300"])
def test_a_memory_of_no_size_is_refused(gib: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--trace", "azure_conv", "--kv-gib", gib]) == 1
    assert "--kv-gib must be above 0" in capsys.readouterr().err


def test_a_pool_that_this_machine_cannot_hold_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate("--kv-tokens", str(10**17)) == 1
    assert capsys.readouterr().err == "engine simulate: this machine has too little memory for so large a pool\n"


@pytest.mark.parametrize("allocators", [["padded"], ["paged", "padded"]])
def test_the_scheduler_that_is_printed_is_the_one_that_ran(
    allocators: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(*(text for name in allocators for text in ("--allocator", name)), "--scheduler", "orca") == 0
    said = "static" if allocators == ["padded"] else "orca (static for padded)"
    assert f"scheduler {said}\n" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_keeps_within_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows() -> list[str]:
        assert simulate("--allocator", "contiguous", "--allocator", "paged", "--kv-tokens", "65536") == 0
        lines = capsys.readouterr().out.splitlines()
        return lines[next(place for place, line in enumerate(lines) if line.startswith("allocator")) :]

    monkeypatch.delenv("COLUMNS", raising=False)
    wide = rows()
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = rows()
    assert all(len(line) <= columns for line in narrow)
    assert len(wide) == 3
    parts = [narrow[start : start + 3] for start in range(0, len(narrow), 4)]
    assert len(parts) > 1
    for row in range(3):
        cells = [cell for part in parts for cell in part[row].split()[1:]]
        assert [wide[row].split()[0], *cells] == wide[row].split()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kv-tokens", "4096"], ""),
        (["--kv-tokens", "4096000"], "note: more than h100-sxm has, 617,397 tokens"),
        (["--model", "opt-13b", "--device", "rtx4090"], "note: opt-13b has 25.7 GB of weights: no KV memory is left"),
    ],
)
def test_memory_that_no_such_device_has_is_remarked_on(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(*options) == 0
    shown = capsys.readouterr().out
    assert words in shown
    assert ("note: " in shown) == bool(words)


def test_an_unknown_trace_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--trace", "azure"]) == 1
    assert "no trace 'azure': it is no file, and the names are azure_conv, azure_code" in capsys.readouterr().err


def test_a_class_that_lacks_a_method_is_named_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text("class Mine:\n    def allocate(self, seq, num_tokens): ...\n")
    assert simulate("--allocator", f"{path}:Mine") == 1
    assert "class Mine lacks append, fork, free" in capsys.readouterr().err


def test_help_says_that_a_students_file_is_run_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", "--help"])
    assert "run only code that you trust" in " ".join(capsys.readouterr().out.split())


def test_swap_and_a_prefix_cache_work_from_the_command_line(tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.jsonl", tmp_path / "out.json"
    lines = [
        json.dumps(
            {"timestamp": 10 * place, "input_length": 1_500, "output_length": 200, "hash_ids": [0, 1, place + 2]}
        )
        for place in range(30)
    ]
    trace.write_text("\n".join(lines) + "\n")
    options = ["--kv-tokens", "8192", "--prefix-cache", "hash", "--recovery", "swap", "--model", "qwen3-0.6b"]
    assert main(["simulate", "--trace", str(trace), *options, "--json", str(out)]) == 0
    run = json.loads(out.read_text())["runs"][0]
    assert run["metrics"]["hit_rate"] > 0.5
    assert run["metrics"]["swaps"] > 0
    assert run["config"]["recovery"] == "swap"


def test_a_saved_report_can_be_drawn_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.json"
    assert simulate("--json", str(out)) == 0
    draw(json.loads(out.read_text()), tmp_path / "out.svg")
    assert "<svg" in (tmp_path / "out.svg").read_text()


def test_a_plot_without_matplotlib_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert simulate("--plot", str(tmp_path / "out.png")) == 1
    assert "--plot needs matplotlib" in capsys.readouterr().err


def test_on_a_terminal_there_is_a_bar() -> None:
    pytest.importorskip("rich")

    class Terminal:
        def __init__(self) -> None:
            self.text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            self.text += text
            return len(text)

        def flush(self) -> None:
            pass

    terminal = Terminal()
    with Watcher(10, terminal) as watcher:  # type: ignore[arg-type]
        watcher.progress_of("paged")(10, 1.0)
    assert "paged" in terminal.text
    assert "10/10" in terminal.text


def test_traces_are_listed_with_where_they_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traces", "list"]) == 0
    shown = capsys.readouterr().out
    assert "mooncake_conversation" in shown
    assert "CC-BY-4.0" in shown
    assert main(["traces", "get", "azure"]) == 1
    assert "no trace 'azure'; there are azure_conv" in capsys.readouterr().err


def test_fetched_traces_lie_where_workloads_look_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (AZURE + "2023-11-16 18:00:00.0,5,6\n").encode()
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "conv.csv").write_bytes(content)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    known = download.REMOTES["azure_conv"]
    url = f"http://127.0.0.1:{server.server_address[1]}/conv.csv"
    served = download.Remote(url, known.path, len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(download.REMOTES, "azure_conv", served)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("P2P_TRACES")
    try:
        assert main(["traces", "get", "azure_conv"]) == 0
    finally:
        server.shutdown()
        server.server_close()
    assert str(traces_cache()) in capsys.readouterr().out
    monkeypatch.setattr("labkit.places.course_root", lambda: None)
    assert traces_folder() == traces_cache()
    assert workload("azure_conv").is_real
    assert not workload("azure_code").is_real


def test_the_effects_are_one_command_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chunked-prefill"]) == 0
    assert main(["watermark", "--scale", "0.05"]) == 0
    shown = capsys.readouterr().out
    assert "361" in shown
    assert "1,065" in shown
    assert main(["watermark", "--scale", "0"]) == 1
    assert "scale must be at least 0.05" in capsys.readouterr().err
    assert main(["capacity", "--requests", "0"]) == 1
    assert "requests must be at least 1, got 0" in capsys.readouterr().err
