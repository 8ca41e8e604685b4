"""A class from a file: loaded, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.contracts import BlockAllocator, Scheduler
from reference_impl.plugin import contract_methods, is_plugin, load_class


def test_the_contracts_name_their_methods() -> None:
    assert contract_methods(BlockAllocator) == [
        "allocate",
        "append",
        "fork",
        "free",
        "block_table",
        "num_tokens",
        "slot_mapping",
    ]
    assert contract_methods(Scheduler) == ["add", "abort", "schedule", "finish_step"]


def test_names_of_files_are_told_from_ours() -> None:
    assert [is_plugin(name) for name in ("paged", "a.py:B", "folder/a.py:B", "a.py")] == [False, True, True, True]


SCHEDULER = "class Mine:\n" + "".join(
    f"    def {name}(self, *args): pass\n" for name in ("add", "abort", "schedule", "finish_step")
)


def test_a_class_with_all_methods_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n" + SCHEDULER)
    assert load_class(f"{path}:Mine", Scheduler).__name__ == "Mine"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (SCHEDULER, "Yours", "no class 'Yours' in it"),
        ("Mine = 3", "Mine", "'Mine' is no class"),
        (SCHEDULER.replace("abort", "stop"), "Mine", "class Mine lacks abort of the contract Scheduler"),
        ("class Mine: pass", "Mine", "lacks add, abort, schedule, finish_step"),
        ("import nowhere_at_all", "Mine", "ModuleNotFoundError while it ran: No module named 'nowhere_at_all'"),
        ("def f(:", "Mine", "SyntaxError while it ran"),
        ("raise SystemExit", "Mine", "SystemExit while it ran: no message"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, name: str, words: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.py") as caught:
        load_class(f"{path}:{name}", Scheduler)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "words"), [("nowhere.py:A", "nowhere.py: no such file"), ("mine.py", "FILE.py:Class"), ("x/y:A", "FILE")]
)
def test_a_place_that_is_none_is_refused(place: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_class(place, Scheduler)
