"""`engine generate`, as it is typed: one prompt, a file, a chat, somebody's parts, and everything that cannot be."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from labkit.event_log import check_log
from reference_impl.cli import main
from reference_impl.engine.asks import read_asks
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampling import SamplingParams
from tests.reference_impl.engine.same_tokens import LAB3, LAB4, LAB5, LAB6

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["--model", "tiny", "--kv-memory", "1MiB", "--block-size", "4", "--max-tokens", "6", "--ignore-eos", "--debug"]


def generated(*words: object) -> int:
    return main(["generate", *SMALL, *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line with which a command line is refused."""
    assert generated(*words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("engine generate:")]
    assert len(lines) == 1, lines
    return lines[0]


def test_one_prompt_gives_its_answer_on_standard_output_and_the_rest_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert generated("--prompt", "Hello") == 0
    told = capsys.readouterr()
    assert "KV memory 1 MiB" in told.err
    assert "6 tokens" in told.err
    assert "KV memory" not in told.out


def test_the_same_answer_comes_from_every_memory_and_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    ways = [
        [],
        *(["--block-allocator", name] for name in ("padded", "contiguous", "pow2", "oracle", "grow", LAB3)),
        *(["--prefix-cache", name] for name in ("none", "radix", LAB5)),
        *(["--scheduler", name] for name in ("static", "orca", "prefill-first", LAB6)),
        ["--attention", LAB4],
        ["--recovery", "swap", "--host-memory", "1MiB", "--watermark", "0.1"],
    ]
    answers = set()
    for way in ways:
        assert generated("--prompt", "Hello", "--max-context", 64, *way) == 0, way
        answers.add(capsys.readouterr().out)
    assert len(answers) == 1


def test_a_file_of_prompts_gives_a_line_of_json_for_each_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, answered = tmp_path / "asks.jsonl", tmp_path / "answers.jsonl"
    rows = [
        {"prompt": "one"},
        {"prompt": "two", "n": 2, "temperature": 1.0, "seed": 3, "logprobs": 2},
        {"prompt": "x" * 5_000},
        {"messages": [{"role": "user", "content": "three"}], "max_tokens": 2},
    ]
    asked.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    assert generated("--file", asked, "--output", answered) == 0
    replies = [json.loads(line) for line in answered.read_text(encoding="utf-8").splitlines()]
    assert [reply["index"] for reply in replies] == [0, 1, 2, 3]
    assert [len(reply.get("answers", ())) for reply in replies] == [1, 2, 0, 1]
    assert "context" in replies[2]["refused"]
    assert [len(answer["token_ids"]) for answer in replies[1]["answers"]] == [6, 6]
    assert all(len(token["top"]) == 2 for token in replies[1]["answers"][0]["logprobs"])
    assert replies[3]["usage"]["completion_tokens"] == 2
    assert "1 refused" in capsys.readouterr().err


def test_a_text_file_has_a_prompt_a_line_and_answers_go_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "asks.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    assert generated("--file", tmp_path / "asks.txt") == 0
    assert [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()] == [0, 1]


def test_a_talk_goes_on_from_what_was_said_and_finds_it_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("Hello there, how are you?\n\nAnd now?\n/reset\nAgain.\n/quit\nnever said\n")
    )
    assert generated() == 0
    summaries = [line for line in capsys.readouterr().err.splitlines() if "found in the cache" in line]
    assert len(summaries) == 3
    found = [int(line.split("; ")[2].split(" of ")[0]) for line in summaries]
    assert found[0] == 0 < found[1]


def test_a_talk_that_grows_too_long_loses_only_its_last_turn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Hello\n{'far too much ' * 30}\nshort\n"))
    assert generated("--max-context", 128) == 0
    told = capsys.readouterr().err
    assert told.count("engine generate:") == 1
    assert told.count("found in the cache") == 2


def test_the_log_of_a_run_is_one_that_the_player_plays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.json"
    assert generated("--prompt", "Hello", "--n", 3, "--events", log) == 0
    events = json.loads(log.read_text(encoding="utf-8"))
    check_log(events)
    kinds = {event["kind"] for event in events}
    assert {"create", "admit", "allocate", "write", "share", "copy", "finish", "free"} <= kinds
    assert main(["watch", str(log), "--once"]) == 0
    assert capsys.readouterr().out


def test_a_watched_run_shows_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert generated("--prompt", "Hello", "--watch") == 0
    assert "block" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "x", "--max-tokens", "0"], "max_tokens must be at least 1, got 0"),
        (["--prompt", "x", "--temperature", "nan"], "temperature"),
        (["--prompt", "x", "--top-p", "0"], "top_p must be above 0, got 0.0"),
        (["--prompt", "x", "--stop", ""], "stop holds an empty string"),
        (["--prompt", "x", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--prompt", "x", "--n", "65"], "n is 65; at most 64"),
        (["--prompt", "x", "--max-tokens", "5000"], "5000"),
        (["--prompt", "x", "--model", "nonesuch"], "no model 'nonesuch'"),
        (["--prompt", "x", "--device", "abacus"], "abacus"),
        (["--prompt", "x", "--attention", "fast"], "no attention 'fast'"),
        (["--prompt", "x", "--attention", "nowhere.py"], "nowhere.py: no such file"),
        (["--prompt", "x", "--block-allocator", "heap"], "no allocator 'heap'"),
        (
            ["--prompt", "x", "--block-allocator", "padded", "--prefix-cache", "hash"],
            "does not go with allocator padded",
        ),
        (["--prompt", "x", "--block-allocator", "contiguous", "--recovery", "swap"], "recovery swap does not go with"),
        (["--prompt", "x", "--host-memory", "1MiB"], "and recovery recompute"),
        (["--prompt", "x", "--block-allocator", "contiguous", "--events", "log.json"], "log"),
        (["--prompt", "x", "--kv-memory", "100"], "100 bytes holds no block of 4 tokens"),
        (["--prompt", "x", "--kv-memory", "900TiB"], None),
        (["--prompt", "x", "--kv-memory", "900000GiB"], "more than the"),
        (["--prompt", "x", "--max-context", "1"], "max_context_tokens must be 2"),
        (["--prompt", "x", "--max-context", "9999999"], "max_context_tokens must be 2"),
        (["--prompt", "x", "--max-running", "0"], "max_running must be at least 1, got 0"),
        (["--prompt", "x", "--output", "out.jsonl"], "--output is for the answers to --file"),
        (["--prompt", "x", "--logprobs", "2"], "--logprobs"),
        (["--file", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--prompt", "x", "--events", "nowhere/log.json"], "--events"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str], words: list[str], named: str | None
) -> None:
    if named is None:
        with pytest.raises(SystemExit, match="2"):
            generated(*words)
        assert "900TiB" in capsys.readouterr().err
        return
    assert named in refused(capsys, *words)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"prompt": "x", "best_of": 2}', "unknown field 'best_of'"),
        ('{"max_tokens": 3}', "either prompt or messages"),
        ('{"prompt": "x", "messages": []}', "either prompt or messages"),
        ('{"prompt": 3}', "prompt must be a string, got 3"),
        ('{"prompt": ""}', "empty"),
        ('{"prompt": "x", "max_tokens": 0}', "max_tokens must be at least 1, got 0"),
        ('{"prompt": "x", "max_tokens": 2.5}', "max_tokens must be int, got 2.5"),
        ('{"prompt": "x", "max_tokens": true}', "max_tokens must be int, got True"),
        ('{"prompt": "x", "n": "two"}', "n must be int, got 'two'"),
        ('{"prompt": "x", "stop": ["\\ud800"]}', "not valid UTF-8"),
        ('{"prompt": "x", "stop": [3]}', "stop must hold str only, got 3"),
        ('{"prompt": "x", "stop_token_ids": ["a"]}', "stop_token_ids must hold int only"),
        ('{"prompt": "x", "logit_bias": {"a": 1}}', "logit_bias"),
        ('{"prompt": "x", "logit_bias": {"1": "much"}}', "logit_bias"),
        ('{"prompt": "x", "cache_salt": 3}', "cache_salt must be a string, got 3"),
        ('{"messages": "hello"}', "messages"),
    ],
)
def test_a_line_that_is_no_ask_is_named_before_anything_is_computed(
    tmp_path: Path, tiny: LoadedModel, line: str, named: str
) -> None:
    path = tmp_path / "asks.jsonl"
    path.write_text('{"prompt": "good"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2") as told:
        read_asks(path, tiny.tokenizer, SamplingParams(), chat=False)
    assert named in str(told.value)


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_only_a_line_feed_ends_a_line_and_no_other_character_that_breaks_text(
    tmp_path: Path, tiny: LoadedModel, kind: str, end: str
) -> None:
    # JSON must escape the rest of what `str.splitlines` cuts at; in a text file it may stand as it is.
    breaks = "\u2028\u2029\x85" if kind == "jsonl" else "\u2028\u2029\x85\f\v\x1c\x1d\x1e"
    prompts = [f"first{mark}second" for mark in breaks]
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) if kind == "jsonl" else text for text in prompts]
    path = tmp_path / f"asks.{kind}"
    path.write_bytes((end.join(lines) + end).encode())
    asks = read_asks(path, tiny.tokenizer, SamplingParams(), chat=False)
    assert [tiny.tokenizer.decode(ask.prompt) for ask in asks] == prompts


@pytest.mark.parametrize(("data", "named"), [(b"\xff\xfe", "not UTF-8 at byte 0"), (b"\n \n", "no prompt in it")])
def test_a_file_without_prompts_is_named(tmp_path: Path, tiny: LoadedModel, data: bytes, named: str) -> None:
    path = tmp_path / "asks.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=named):
        read_asks(path, tiny.tokenizer, SamplingParams(), chat=False)
