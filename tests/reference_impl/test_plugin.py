"""A class from a file: loaded, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.contracts import AttentionBackend, BlockAllocator, Scheduler
from reference_impl.plugin import contract_methods, is_plugin, load_backend, load_class


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


BACKEND = "def store_kv(*args): return 'kept'\ndef paged_attention(*args): pass\n"


@pytest.mark.parametrize("as_class", [False, True])
def test_functions_of_a_module_and_an_object_of_a_class_both_serve(tmp_path: Path, as_class: bool) -> None:
    path = tmp_path / "mine.py"
    text = BACKEND.replace("*args", "self, *args").replace("def ", "    def ") if as_class else BACKEND
    path.write_text(f"class Mine:\n{text}" if as_class else text)
    backend = load_backend(f"{path}:Mine" if as_class else str(path), AttentionBackend)
    assert backend.store_kv() == "kept"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("def store_kv(): pass", "", "lacks paged_attention of the contract AttentionBackend"),
        ("import nowhere_at_all", "", "ModuleNotFoundError while it ran"),
        ("class Mine: pass", ":Mine", "class Mine lacks store_kv, paged_attention"),
        (
            "class Mine:\n    def __init__(self, x): pass\n    store_kv = paged_attention = print",
            ":Mine",
            "TypeError while Mine() was made",
        ),
    ],
)
def test_what_is_wrong_with_a_backend_is_said_in_one_line(tmp_path: Path, text: str, name: str, words: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.py") as caught:
        load_backend(f"{path}{name}", AttentionBackend)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_backend_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.py: no such file"):
        load_backend("nowhere.py", AttentionBackend)
