"""The chapter "Attention over pages": its walk is the engine's, its bound bounds, and what it says in words holds."""

from __future__ import annotations

import re
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labkit.quizzes import Quiz
from labkit.switch import Switch
from labkit.workloads import workload
from reference_impl.attention.reference import attention
from reference_impl.memory.block_table import blocks_for

CHAPTER = "attention"
ROOT = Path(__file__).resolve().parents[2]


PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-", ",")


def number(text: str) -> float:
    """The number in a text of the page, `5 · 10⁻⁴` included."""
    return float(text.translate(PLAIN).replace("\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}10", "e"))


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_bytes_of_the_page_are_those_of_llama_3_8b(chapter: Any) -> None:
    heads, kv_heads, head_dim, context = 32, 8, 128, 8_192
    assert number(chapter.glued["kept_bytes"]) == (head_dim + 2) * 4
    assert number(chapter.glued["group"]) == heads // kv_heads
    assert number(chapter.glued["kv_mib"]) == context * 2 * head_dim * 2 / 2**20
    assert number(chapter.glued["scores_kib"]) == heads // kv_heads * context * 4 / 1024
    assert number(chapter.glued["prompt_mib"]) == context**2 * 4 / 2**20
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(np.float32(89)))
        assert np.isfinite(np.exp(np.float32(88)))


def test_the_walk_in_the_figure_is_what_the_engine_gives_for_the_same_keys_and_values(chapter: Any) -> None:
    walk = chapter.names["seen"]["walk"]
    query, key, value = (torch.tensor(walk[name], dtype=torch.float64) for name in ("query", "key", "value"))
    head, size = walk["head"], walk["block_size"]
    assert len(walk["steps"]) == len(walk["table"]) == blocks_for(walk["tokens"], size)
    assert walk["tokens"] % size, "the page shows a tail"
    assert walk["table"] != sorted(walk["table"]), "the page says that blocks lie anywhere"
    for number_of, step in enumerate(walk["steps"], start=1):
        so_far = min(walk["tokens"], number_of * size)
        whole = attention(query[None], key[:so_far], value[:so_far], walk["scale"], causal=False)
        assert step["lse"] == pytest.approx(float(whole.lse[0, head]))
        assert step["out"] == pytest.approx(whole.out[0, head].tolist())
        assert step["m"] == max(score for done in walk["steps"][:number_of] for score in done["scores"])
    tops = [step["m"] for step in walk["steps"]]
    assert [after > before for before, after in pairwise(tops)] == [False, True, False], (
        "the figure shows a largest score that stays and one that rises"
    )
    assert head % walk["kv_heads"] != head // (walk["heads"] // walk["kv_heads"]), "a head that tells both maps apart"


def test_the_switch_has_a_figure_for_the_start_and_for_each_block_and_ends_in_the_answer(chapter: Any) -> None:
    (switch,) = (shown for shown in chapter.shown if isinstance(shown, Switch))
    walk = chapter.names["seen"]["walk"]
    assert list(switch.figures)[1:] == [f"Step {n}: block {block}" for n, block in enumerate(walk["table"], start=1)]
    last = walk["steps"][-1]
    *_, (name, m, total, _, _) = switch.figures[list(switch.figures)[-1]].table.rows
    assert (name, number(m), number(total)) == ("kept now", round(last["m"], 3), round(last["l"], 3))
    answer = [round(o / last["l"], 3) for o in last["o"]]
    assert [number(text) for text in chapter.glued["answer"].split(", ")] == answer == [
        round(x, 3) for x in walk["answers"][walk["head"]]
    ]  # fmt: skip
    rise = int(chapter.glued["rise_step"])
    assert (
        f"multiplied by {float(chapter.glued['rise_fade']):.3g}"
        in switch.figures[list(switch.figures)[rise]].description
    )


def test_the_merge_by_hand_is_the_merge_of_the_page(chapter: Any) -> None:
    left = 1.5 * number(chapter.glued["hand_fade"])
    assert number(chapter.glued["hand_left"]) == round(left, 2)
    assert number(chapter.glued["hand_l"]) == round(left + 1, 2)


def test_merging_is_associative_commutative_and_has_a_neutral_element(chapter: Any) -> None:
    part, merge = chapter.names["part"], chapter.names["merge"]
    draw = np.random.default_rng(1)
    parts = [part(draw.normal(0, 30, n), draw.normal(size=(n, 3))) for n in (1, 5, 0, 2, 0, 9)]
    none = part(np.zeros(0), np.zeros((0, 3)))

    def same(a: Any, b: Any) -> bool:
        return a[0] == b[0] and np.allclose(a[1], b[1], rtol=1e-14) and np.allclose(a[2], b[2], rtol=1e-13)

    for a in parts:
        assert same(merge(a, none), a)
        assert same(merge(none, a), a)
        for b in parts:
            assert same(merge(a, b), merge(b, a))
            for c in parts:
                assert same(merge(merge(a, b), c), merge(a, merge(b, c)))
    top, total, found = merge(none, none)
    assert (top, total, found.tolist()) == (-np.inf, 0, [0, 0, 0]), "nothing and nothing is nothing"


def test_no_order_seed_or_length_breaks_the_bound_of_the_page(chapter: Any) -> None:
    part, in_blocks, bound = (chapter.names[name] for name in ("part", "in_blocks", "bound"))
    for seed in range(6):
        draw = np.random.default_rng(seed)
        for tokens in (1, 17, 100, 3_000):
            for spread in (0.0, 1.0, 20.0):
                scores, values = draw.normal(0, spread, tokens), draw.uniform(-1, 1, (tokens, 3))
                scores, values = scores.astype(np.float32), values.astype(np.float32)
                _, total, found = part(scores.astype(float), values.astype(float))
                _, total32, found32 = in_blocks(scores, values)
                assert np.abs(found32 / total32 - found / total).max() <= bound(tokens)
    assert number(chapter.glued["bound32"]) == float(f"{bound(8192):.0e}")
    assert number(chapter.glued["seen32"]) < number(chapter.glued["bound32"]) / 100


def test_only_the_mask_that_selects_both_survives_the_poison_and_the_engine_does(chapter: Any) -> None:
    assert chapter.names["fine"] == {"add": False, "select_score": False, "select_both": True}
    poison = chapter.names["poison"]
    assert poison["finite"]
    assert poison["zero_of_empty"]
    assert poison["worst"] < 1e-5, "within the tolerance of lab 4"
    assert {0, 1, 15, 16, 17} <= set(poison["contexts"])


def test_what_the_page_says_of_the_maps_from_heads_to_kv_heads_holds(chapter: Any) -> None:
    agree = chapter.names["agree"]
    for heads in (4, 8, 32):
        assert agree(heads, heads)[0] == agree(heads, 1)[0] == heads, "h % KV is not found there"
    for kv_heads in (2, 8):
        assert agree(kv_heads**2, kv_heads)[1] == kv_heads**2, "h // KV is not found there"
    for heads, kv_heads in ((32, 8), (6, 2)):
        assert max(agree(heads, kv_heads)) < heads, "the page says that these find both"
    assert number(chapter.glued["modulo_right"]) == sum(h // 4 == h % 8 for h in range(32))


def test_16_bits_lose_tokens_and_32_bits_do_not(chapter: Any) -> None:
    half, single, limit = (chapter.names[name] for name in ("half", "single", "limit"))
    assert half[-1] > 5 * half[0], "it grows with the context"
    assert all(few < many for few, many in zip(single, limit, strict=True))
    assert max(single) < 2e-6 < half[0]
    requests = workload("azure_conv")
    totals = requests.prompt_tokens + requests.output_tokens
    assert number(chapter.glued["half_share"]) == round(100 * float((totals > 2_048).mean()))


def test_the_bug_is_found_by_15_contexts_and_by_no_round_one(chapter: Any) -> None:
    reads_too_far = chapter.names["reads_too_far"]
    assert [n for n in range(1, 128 * 16 + 1) if reads_too_far(n)] == list(range(241, 256))
    assert not any(reads_too_far(n) for n in range(16, 2_049, 16))
    assert number(chapter.glued["bug_met"]) > 5


def test_the_quizzes_have_their_answers(chapter: Any) -> None:
    quizzes = [shown for shown in chapter.shown if isinstance(shown, Quiz)]
    assert [quiz.answer for quiz in quizzes] == ["130", "`select_both`"]


def test_the_folded_answer_to_build_merges_as_the_page_does(chapter: Any) -> None:
    body = re.search(r"^    def merge_answers\(.*?np\.log\(total\)$", chapter.source, re.MULTILINE | re.DOTALL)
    assert body is not None
    names: dict[str, Any] = {"np": np}
    exec("\n".join(line[4:] for line in body[0].splitlines()), names)
    part, merge = chapter.names["part"], chapter.names["merge"]
    draw = np.random.default_rng(2)

    def pair(kept: Any) -> tuple[Any, Any]:
        m, total, found = kept
        return (found / total, m + np.log(total)) if total > 0 else (np.zeros_like(found), -np.inf)

    for sizes in ((3, 5), (0, 4), (4, 0), (0, 0)):
        a, b = (part(draw.normal(0, 5, n), draw.normal(size=(n, 2))) for n in sizes)
        answer, lse = names["merge_answers"](pair(a), pair(b))
        expected = pair(merge(a, b))
        assert np.allclose(answer, expected[0])
        assert lse == expected[1] or np.isclose(lse, expected[1])


def test_the_traced_answer_for_instructors_is_what_the_pages_walk_gives(chapter: Any) -> None:
    text = (ROOT / "solutions" / "chapters" / "attention.md").read_text(encoding="utf-8")
    part, merge = chapter.names["part"], chapter.names["merge"]
    scores, values = np.log([2.0, 1.0, 4.0, 2.0, 1.0]), np.array([[4.0], [0.0], [1.0], [3.0], [6.0]])
    cut = {3: slice(0, 2), 0: slice(2, 4), 5: slice(4, 5)}
    parts = {block: part(scores[where], values[where]) for block, where in cut.items()}
    for order in ((3, 0, 5), (5, 0, 3)):
        for stop in (1, 2, 3):
            m, total, found = reduce(merge, [parts[block] for block in order[:stop]])
            top = {1.0: "0", 2.0: "ln 2", 4.0: "ln 4"}[round(float(np.exp(m)), 9)]
            assert re.search(rf"\| block {order[stop - 1]}: .* \| {top} \| {total:.12g} \| {found[0]:.12g} \|", text)
    assert f"6 / 2.5 = {found[0] / total:.12g}" in text


def test_the_chapter_is_at_most_2500_words(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
