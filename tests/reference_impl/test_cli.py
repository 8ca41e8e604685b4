"""The `engine` command: one line for the paradox, one table for the memory, one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reference_impl.cli import main
from reference_impl.memory.contiguous import ContiguousAllocator
from reference_impl.memory.paradox import paradox


def test_the_paradox_of_free_memory_is_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paradox", "--seed", "3"]) == 0
    found = paradox(3)
    assert found is not None
    assert capsys.readouterr().out.strip() == str(found)
    assert found.free_share > 0.5
    assert found.largest_hole < found.wanted <= found.free
    assert found.blocks_needed <= found.blocks_free
    replayed = ContiguousAllocator(found.capacity)
    for call, *args in found.history:
        getattr(replayed, str(call))(*args)
    assert tuple(replayed.holes()) == found.holes


def test_without_a_paradox_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paradox", "--requests", "2"]) == 1
    shown = capsys.readouterr()
    assert "no refusal with more than half of the memory free in 2 requests" in shown.err
    assert not shown.out


def test_the_memory_table_has_the_order_of_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.json"
    assert main(["memory-table", "--requests", "300", "--warm-up", "200", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "96.3%" in shown
    rows = json.loads(out.read_text())
    assert [row["policy"] for row in rows] == ["reserve_max", "pow2", "oracle", "paged"]
    held = [row["held"] for row in rows]
    assert held == sorted(held)
    assert held[-1] > 0.9


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["paradox", "--capacity", "17"], "capacity 17 is no multiple of block_size 16"),
        (["paradox", "--load", "0"], "load must be above 0, got 0"),
        (["paradox", "--workload", "nobody"], "'nobody'"),
        (["memory-table", "--workload", "nobody"], "no workload 'nobody'"),
        (["memory-table", "--requests", "1", "--warm-up", "9"], "nothing was measured"),
        (["memory-table", "--requests", "-5"], "--requests must be at least 1, got -5"),
        (["memory-table", "--warm-up", "-1"], "--warm-up must be at least 0, got -1"),
        (
            ["memory-table", "--json", "no/such/folder/out.json"],
            "--json no/such/folder/out.json: there is no such folder",
        ),
        (["paradox", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["bench", "memory", "--json", "."], "--json .: that is a folder"),
    ],
)
def test_bad_input_is_one_line_that_names_it(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 1
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1


def test_what_sharing_saves_is_shown_beside_what_was_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sharing", "--requests", "4"]) == 0
    head, *rows, differs = capsys.readouterr().out.splitlines()
    assert "published" in head
    assert differs.startswith("What differs")
    assert [row.split()[:2] for row in rows] == [
        ["alpaca", "parallel"],
        ["alpaca", "beam"],
        ["sharegpt", "parallel"],
        ["sharegpt", "beam"],
    ]
    for row in rows:
        at_2, at_4, at_6 = (float(share.rstrip("%")) for share in row.split()[2:5])
        assert 0 < at_2 < at_4 < at_6 < 100, "more sequences share more"
    assert rows[2].endswith("16.2% to 30.5%")


def test_sharing_among_no_requests_is_one_line_of_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sharing", "--requests", "0"]) == 1
    assert capsys.readouterr().err == "engine sharing: requests must hold at least one request\n"
