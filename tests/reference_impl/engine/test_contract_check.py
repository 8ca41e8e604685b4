"""A part that does not keep its contract is told so before an engine is built on it; one that does is let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference_impl.engine.contract_check import check_plugins
from reference_impl.plugin import PluginError
from tests.reference_impl.engine.same_tokens import LAB3, LAB4, LAB5, LAB6

OURS = {"block_allocator": "paged", "prefix_cache": None, "scheduler": "continuous", "attention": "torch"}


def check(**parts: object) -> None:
    check_plugins(**{**OURS, **parts})  # type: ignore[arg-type]


def changed(tmp_path: Path, source: str, *changes: tuple[str, str]) -> str:
    """The file and class of `source`, with each change made exactly once."""
    path, _, name = source.partition(":")
    text = Path(path).read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    copy = tmp_path / "changed.py"
    copy.write_text(text, encoding="utf-8")
    return f"{copy}:{name}" if name else str(copy)


def test_parts_that_keep_their_contract_are_let_in() -> None:
    check(block_allocator=LAB3, attention=LAB4, prefix_cache=LAB5)
    check(scheduler=LAB6)


def test_our_own_parts_are_not_tried() -> None:
    check()


def test_an_allocator_is_told_by_the_public_checks_of_lab_3(tmp_path: Path) -> None:
    wrong = changed(tmp_path, LAB3, ("            self.free_ids.append(block)\n", "            pass\n"))
    with pytest.raises(PluginError, match="does not keep its contract") as told:
        check(block_allocator=wrong)
    assert "But:" in str(told.value)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("(len(tokens) - 1) // self.block_size", "len(tokens) // self.block_size", "reuses"),
        ("(salt, tuple(tokens", "('', tuple(tokens", "salt='other'"),
        (
            "tuple(tokens[: (number + 1) * self.block_size])",
            "tuple(tokens[number * self.block_size : (number + 1) * self.block_size])",
            "reuses",
        ),
        ("raise OutOfBlocks(needed, room)", "raise MemoryError", "MemoryError"),
        (
            "        self.live[seq] = (list(tokens), salt, table)\n",
            "        self.live[seq] = (list(tokens), salt, table + table[-1:])\n",
            "different blocks",
        ),
        ("                self.blank.append(block)\n", "                pass\n", "num_free_blocks"),
    ],
)
def test_a_prefix_cache_is_told_where_it_answers_otherwise(tmp_path: Path, old: str, new: str, named: str) -> None:
    with pytest.raises(PluginError, match="does not keep its contract") as told:
        check(prefix_cache=changed(tmp_path, LAB5, (old, new)))
    assert named in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("        left = self.budget\n", "        left = self.budget + 1\n", "a step has"),
        ("len(self.running) == self.max_running or ", "", "may"),
        (" or held + self._blocks(sizes) > self.num_blocks:", ":", "blocks"),
        ("                sizes[2] += 1\n", "                pass\n", "nothing is scheduled"),
        ('            raise ValueError("never fits")\n', "            pass\n", None),
    ],
)
def test_a_scheduler_is_told_which_rule_its_plan_breaks(tmp_path: Path, old: str, new: str, named: str | None) -> None:
    place = changed(tmp_path, LAB6, (old, new))
    if named is None:
        # Requests that never fit are not part of the trial; the engine asks for itself.
        check(scheduler=place)
        return
    with pytest.raises(PluginError, match="does not keep its contract") as told:
        check(scheduler=place)
    assert named in str(told.value)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("        if slot >= 0:\n", "        if True:\n", "store_kv"),
        (
            "[:context].repeat_interleave(group, 1)\n        value",
            "[:].repeat_interleave(group, 1)\n        value",
            "raised",
        ),
        (" * scale, -1)", ", -1)", "is off by"),
        (
            "value_cache[slot // block_size, slot % block_size] = value",
            "value_cache[slot // block_size, 0] = value",
            "store_kv",
        ),
        ("            out[row] = 0\n", "            pass\n", "context of 0"),
    ],
)
def test_attention_is_told_how_far_it_is_off(tmp_path: Path, old: str, new: str, named: str) -> None:
    with pytest.raises(PluginError, match="does not keep its contract") as told:
        check(attention=changed(tmp_path, LAB4, (old, new)))
    assert named in str(told.value)


def test_heads_grouped_by_modulo_are_noticed(tmp_path: Path) -> None:
    place = changed(tmp_path, LAB4)
    text = Path(place).read_text(encoding="utf-8").replace(".repeat_interleave(group, 1)", ".repeat(1, group, 1)")
    Path(place).write_text(text, encoding="utf-8")
    with pytest.raises(PluginError, match="is off by"):
        check(attention=place)
