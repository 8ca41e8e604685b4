"""Workloads: the real traces where they are, the calibrated sample where they are not, clear errors everywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from labkit.calibration import CALIBRATIONS, PERCENT
from labkit.places import traces_folder
from labkit.workloads import HASHED_TOKENS, load, load_azure, load_mooncake, load_sharegpt, sample, workload

NAMES = tuple(CALIBRATIONS)
# Mean, p50, p95 as published with the traces (rounded there to a token).
PUBLISHED = {
    "azure_conv": ((1155, 1020, 4083), (211, 129, 451)),
    "azure_code": ((2048, 1469, 7303), (28, 13, 90)),
    "mooncake_conversation": ((12035, 6909, 39550), (343, 350, 698)),
    "sharegpt_8k": ((2340, 1730, 6563), (439, 415, 920)),
}
MEAN_TOLERANCE, QUANTILE_TOLERANCE = 0.05, 0.02


def figures(lengths: np.ndarray) -> tuple[float, float, float]:
    return float(lengths.mean()), float(np.percentile(lengths, 50)), float(np.percentile(lengths, 95))


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_has_the_published_mean_and_quantiles_at_any_seed(name: str, seed: int) -> None:
    drawn = sample(name, seed)
    for lengths, published in zip((drawn.prompt_tokens, drawn.output_tokens), PUBLISHED[name], strict=True):
        mean, *quantiles = figures(lengths)
        assert mean == pytest.approx(published[0], rel=MEAN_TOLERANCE)
        assert quantiles == pytest.approx(published[1:], rel=QUANTILE_TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_the_calibration_is_what_the_real_trace_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("P2P_TRACES", raising=False)
    if traces_folder() is None:
        pytest.skip("no traces on this machine")
    real, known = workload(name), CALIBRATIONS[name]
    assert real.is_real
    assert len(real) == known.requests
    assert np.rint(np.percentile(real.prompt_tokens, PERCENT)).tolist() == list(known.prompt_quantiles)
    assert np.rint(np.percentile(real.output_tokens, PERCENT)).tolist() == list(known.output_quantiles)
    assert real.prompt_tokens.mean() == pytest.approx(known.prompt_mean, abs=0.06)
    assert real.output_tokens.mean() == pytest.approx(known.output_mean, abs=0.06)
    assert float(real.arrival_s[-1]) == pytest.approx(known.duration_s, abs=0.06)


def test_the_same_seed_gives_the_same_sample_and_another_seed_another() -> None:
    assert sample("azure_conv", 3).prompt_tokens.tolist() == sample("azure_conv", 3).prompt_tokens.tolist()
    assert sample("azure_conv", 3).prompt_tokens.tolist() != sample("azure_conv", 4).prompt_tokens.tolist()


def test_arrivals_of_a_sample_keep_the_rate_at_any_size_and_never_go_back() -> None:
    known = CALIBRATIONS["azure_conv"]
    drawn = sample("azure_conv", 0, requests=2_000)
    assert np.all(np.diff(drawn.arrival_s) >= 0)
    assert 2_000 / drawn.arrival_s[-1] == pytest.approx(known.requests / known.duration_s, rel=0.05)


def test_a_workload_says_whether_it_is_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("P2P_TRACES", "none")
    drawn = workload("azure_conv")
    assert not drawn.is_real
    assert "sample" in drawn.description
    folder = tmp_path / "azure2023"
    folder.mkdir()
    (folder / "AzureLLMInferenceTrace_conv.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109"
    )
    monkeypatch.setenv("P2P_TRACES", str(tmp_path))
    real = workload("azure_conv")
    assert real.is_real
    assert "recorded trace, 2 requests" in real.description
    assert real.prompt_tokens.tolist() == [374, 396]
    assert real.output_tokens.tolist() == [44, 109]
    assert real.arrival_s.tolist() == pytest.approx([0, 4.314579])


def test_nobody_can_change_a_workload_under_another_reader() -> None:
    with pytest.raises(ValueError, match="read-only"):
        sample("azure_conv", requests=10).prompt_tokens[0] = 1


def test_a_named_folder_without_the_file_is_an_error_and_not_a_sample(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("P2P_TRACES", str(tmp_path))
    with pytest.raises(ValueError, match=r"AzureLLMInferenceTrace_conv\.csv: no such file"):
        workload("azure_conv")
    monkeypatch.setenv("P2P_TRACES", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        workload("azure_conv")


def test_an_unknown_name_lists_the_known_ones() -> None:
    for ask in (workload, sample):
        with pytest.raises(ValueError, match=r"no workload 'azur'.*azure_conv"):
            ask("azur")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("TIMESTAMP,ContextTokens\n", r"line 1: no column 'GeneratedTokens'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", r"line 2: .*yesterday"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,5,6\n2023-11-16 18:00:01.0,x,6\n", "line 3"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,5\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,0,6\n", "line 2: 0 prompt tokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,1,024,6\n", "line 2: 4 fields under 3"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,5\n", "line 2: 2 fields under 3"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,1_0,6\n", "line 2: '1_0' is no whole"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens,ContextTokens\n2023-11-16 18:00:00.0,5,6,7\n",
            "line 1: the column 'ContextTokens' stands there 2 times",
        ),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:01.0,5,6\n2023-11-16 18:00:00.0,5,6\n",
            "line 3: arrives before",
        ),
    ],
)
def test_a_broken_azure_file_is_refused_with_file_and_line(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(lines)
    with pytest.raises(ValueError, match=f"trace.csv.*{message}"):
        load_azure(path, "azure_conv")


HEADER = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
REQUEST = b"2023-11-16 18:00:00.0,5,6\n"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (HEADER + REQUEST * 2_000 + b"2023-11-16 18:00:01.0,\xff5,6\n", "line 2002: the byte 0xff is not UTF-8"),
        (b"TIMESTAMP,\xe9\n" + REQUEST, "line 1: the byte 0xe9 is not UTF-8"),
        (HEADER + REQUEST + b"2023-11-16 18:00:01.0,5," + b"6" * 131_073 + b"\n", "line 3: field larger than"),
        (b"x" * 131_073 + b"\n" + REQUEST, "line 1: field larger than"),
        (HEADER + REQUEST + b"2023-11-16 18:00:01.0,9223372036854775808,6\n", "line 3: 9223372036854775808 prompt"),
    ],
)
def test_bytes_fields_and_numbers_that_no_table_holds_are_refused_with_file_and_line(
    tmp_path: Path, lines: bytes, message: str
) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(lines)
    with pytest.raises(ValueError, match=rf"trace\.csv, {message}"):
        load_azure(path, "azure_conv")


def test_letters_beyond_ascii_are_no_error(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens,remark\n74,918,caf\u00e9 \U0001f600\n", encoding="utf-8")
    assert load_sharegpt(path).prompt_tokens.tolist() == [74]


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process in a zone with summer time, and back."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_the_summer_time_of_this_machine_does_not_move_a_request(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    nights = ("2023-10-29 00:30:00.0", "2023-10-29 04:30:00.0")
    path.write_bytes(HEADER + "".join(f"{moment},5,6\n" for moment in nights).encode())
    assert load_azure(path, "azure_conv").arrival_s.tolist() == [0, 4 * 3600]


def test_the_zone_of_a_moment_counts_however_many_digits_its_second_has(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    moments = ("2024-05-10 01:00:00.1234567+02:00", "2024-05-10 00:00:00.1234567+00:00", "2024-05-10 00:00:01.5")
    path.write_bytes(HEADER + "".join(f"{moment},5,6\n" for moment in moments).encode())
    assert load_azure(path, "azure_conv").arrival_s.tolist() == pytest.approx([0, 3600, 3601.376544])


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbf" + HEADER + REQUEST)
    assert load(path).prompt_tokens.tolist() == [5]


def test_the_lengths_of_the_longest_request_can_be_added_up(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(HEADER + b"2023-11-16 18:00:00.0,1099511627776,1099511627776\n")
    trace = load(path)
    assert int((trace.prompt_tokens + trace.output_tokens).max()) == 2**41
    path.write_bytes(HEADER + b"2023-11-16 18:00:00.0,1099511627777,6\n")
    with pytest.raises(ValueError, match="line 2: 1099511627777 prompt tokens"):
        load(path)


def test_an_error_repeats_only_the_beginning_of_a_file_that_is_one_long_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no trace known here") as caught:
        load(path)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1, 2]",
        '{"timestamp": 0}',
        '{"timestamp": null, "input_length": 1}',
        '{"timestamp": NaN, "input_length": 5, "output_length": 6}',
        '{"timestamp": Infinity, "input_length": 5, "output_length": 6}',
        '{"timestamp": 0, "input_length": Infinity, "output_length": 6}',
        '{"timestamp": 0, "input_length": 1e30, "output_length": 6}',
        '{"timestamp": 0, "input_length": "5", "output_length": 6}',
        '{"timestamp": 0, "input_length": 5.5, "output_length": 6}',
        '{"timestamp": 0, "input_length": 5, "output_length": true}',
        '{"timestamp": "0", "input_length": 5, "output_length": 6}',
        "[" * 100_000,
    ],
)
def test_a_broken_mooncake_line_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 5, "output_length": 6}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"trace\.jsonl, line 2"):
        load_mooncake(path)


def test_a_mooncake_line_that_is_not_utf_8_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    good = b'{"timestamp": 0, "input_length": 5, "output_length": 6}\n'
    path.write_bytes(good * 500 + b'{"timestamp": 0, "input_length": 5, "output_length": 6, "who": "\xc3("}\n' + good)
    with pytest.raises(ValueError, match=r"trace\.jsonl, line 501: the byte 0xc3 is not UTF-8"):
        load_mooncake(path)


def mooncake_line(prompt: int, **more: object) -> str:
    return json.dumps({"timestamp": 0, "input_length": prompt, "output_length": 6, **more}) + "\n"


def test_the_prefix_hashes_of_a_mooncake_trace_come_with_it(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(mooncake_line(1_030, hash_ids=[0, 7, 9]) + mooncake_line(512, hash_ids=[0]))
    read = load_mooncake(path)
    assert read.prefix_hashes is not None
    assert [hashes.tolist() for hashes in read.prefix_hashes] == [[0, 7, 9], [0]]
    with pytest.raises(ValueError, match="read-only"):
        read.prefix_hashes[0][0] = 1
    path.write_text(mooncake_line(1_030))
    assert load_mooncake(path).prefix_hashes is None


def test_the_real_mooncake_trace_has_a_hash_for_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("P2P_TRACES", raising=False)
    real = workload("mooncake_conversation")
    if not real.is_real:
        pytest.skip("no traces on this machine")
    assert real.prefix_hashes is not None
    lengths = [len(hashes) for hashes in real.prefix_hashes]
    assert lengths == (-(-real.prompt_tokens // HASHED_TOKENS)).tolist()
    assert sum(lengths) == 288_500
    assert sample("mooncake_conversation").prefix_hashes is None


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (mooncake_line(512), "line 2: hash_ids must stand on every line or on none"),
        (mooncake_line(513, hash_ids=[1]), "line 2: 1 hash_ids for 513 prompt tokens, needs 2"),
        (mooncake_line(512, hash_ids=[]), "line 2: 0 hash_ids for 512 prompt tokens, needs 1"),
        (mooncake_line(512, hash_ids=[-1]), "line 2: a hash id is negative"),
        (mooncake_line(512, hash_ids=["x"]), "line 2: hash_ids are no list of token hashes"),
        (mooncake_line(512, hash_ids=[2**31]), "line 2: hash_ids are no list of token hashes"),
        (mooncake_line(512, hash_ids=3), "line 2: hash_ids are no list of token hashes"),
    ],
)
def test_broken_prefix_hashes_are_refused_with_file_and_line(tmp_path: Path, second: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(mooncake_line(512, hash_ids=[0]) + second)
    with pytest.raises(ValueError, match=rf"trace\.jsonl, {message}"):
        load_mooncake(path)


def test_a_file_by_path_is_read_by_its_columns(tmp_path: Path) -> None:
    for name, text, arrivals in (
        ("a.txt", "ContextTokens,TIMESTAMP,GeneratedTokens\n5,2023-11-16 18:00:00.0,6\n", [0]),
        ("q.csv", '"TIMESTAMP","ContextTokens","GeneratedTokens"\n"2023-11-16 18:00:00.0","5","6"\n', [0]),
        ("b.csv", "num_prefill_tokens,num_decode_tokens,num_total_tokens\n5,6,11\n", [0]),
        ("c.csv", mooncake_line(5, hash_ids=[3]), [0]),
    ):
        path = tmp_path / name
        path.write_text(text)
        read = load(path)
        assert (read.prompt_tokens.tolist(), read.output_tokens.tolist()) == ([5], [6])
        assert read.arrival_s.tolist() == arrivals
        assert read.name == path.stem
        assert read.is_real
        assert "a file given by the user" in read.description
    assert load(tmp_path / "c.csv").prefix_hashes is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: empty"),
        ("\n", "line 1: empty"),
        ("when,how\n1,2\n", r"line 1: no trace known here; its columns are \['how', 'when'\], known are TIMESTAMP"),
        ("TIMESTAMP,GeneratedTokens\n1,2\n", "line 1: no column 'ContextTokens'"),
        ("num_prefill_tokens,num_total_tokens\n1,2\n", "line 1: no column 'num_decode_tokens'"),
        ('{"timestamp": 1, "input_length": 5}\n', "line 1: not a request of a Mooncake trace"),
        ('{"who": 1}\n', "line 1: no trace known here"),
        ("x" * 131_073 + "\n", "line 1: field larger than"),
        ('{"timestamp"\n', "line 1: not JSON"),
        ("num_prefill_tokens,num_decode_tokens\n5,-6\n", "line 2: 5 prompt tokens and -6 output tokens"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"trace, {message}"):
        load(path)


def test_a_file_that_is_not_there_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere\.csv"):
        load(tmp_path / "nowhere.csv")


def test_sharegpt_requests_all_arrive_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens,pd_ratio\n74,918,0.08\n290,905,0.32\n")
    found = load_sharegpt(path)
    assert found.arrival_s.tolist() == [0, 0]
    assert found.prompt_tokens.tolist() == [74, 290]


def test_a_sample_comes_in_no_order_and_its_prompts_tell_nothing_of_its_outputs() -> None:
    drawn = sample("azure_conv")
    position = np.arange(len(drawn))
    for first, second in (
        (position, drawn.prompt_tokens),
        (position, drawn.output_tokens),
        (drawn.prompt_tokens, drawn.output_tokens),
    ):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
