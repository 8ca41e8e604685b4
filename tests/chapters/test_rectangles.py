"""The chapter "Rectangles are expensive": its numbers are the reference's, and its figures can be read by anyone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from labkit.figures import Figure
from labkit.quizzes import Quiz
from labkit.workloads import workload
from reference_impl.padding import ModelShape, pad_rows, static_batch
from tests.chapters.reading import number

CHAPTER = "rectangles"
SHAPE = ModelShape(32, 4096, 14336, 32, 8, 128, 2)


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    used = set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source))
    assert used == set(chapter.glued)


def test_the_numbers_of_the_workload_are_the_workloads(chapter: Any) -> None:
    lengths = workload("azure_conv").prompt_tokens
    assert chapter.glued["source"] == workload("azure_conv").description
    assert number(chapter.glued["mean"]) == round(float(lengths.mean()))
    assert number(chapter.glued["median"]) == round(float(np.median(lengths)))
    assert number(chapter.glued["p99"]) == round(float(np.percentile(lengths, 99)))


def test_the_padding_shares_are_those_of_a_second_count(chapter: Any) -> None:
    lengths = workload("azure_conv").prompt_tokens
    whole = len(lengths) // 16 * 16

    def share(ordered: np.ndarray) -> float:
        batches = ordered[:whole].reshape(-1, 16)
        return 100 * (1 - batches.sum() / (batches.max(axis=1).sum() * 16))

    windowed = np.concatenate([np.sort(lengths[start : start + 512]) for start in range(0, len(lengths), 512)])
    assert number(chapter.glued["share16"]) == pytest.approx(share(lengths), abs=0.05)
    assert number(chapter.glued["windowed16"]) == pytest.approx(share(windowed), abs=0.05)
    assert number(chapter.glued["sorted16"]) == pytest.approx(share(np.sort(lengths)), abs=0.05)
    width = lengths[:whole].reshape(-1, 16).max(axis=1).mean()
    assert number(chapter.glued["width16"]) == pytest.approx(width, abs=0.5)
    assert number(chapter.glued["pads16"]) == number(chapter.glued["width16"]) - number(chapter.glued["mean"])


def test_the_three_ledgers_are_the_reference_account_and_differ_as_the_page_says(chapter: Any) -> None:
    requests = workload("azure_conv")
    prompts, outputs = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
    batches = [static_batch(prompts[i : i + 16], outputs[i : i + 16], SHAPE) for i in range(0, len(prompts) - 15, 16)]
    total = sum(batches[1:], batches[0])
    slots, flops, read = (number(chapter.glued[name]) for name in ("slots_lost", "flops_lost", "bytes_lost"))
    assert [slots, flops, read] == pytest.approx(
        [100 * total.slots_lost, 100 * total.flops_lost, 100 * total.bytes_lost], abs=0.05
    )
    held = [16 * (max(prompts[i : i + 16]) + max(outputs[i : i + 16]) - 1) for i in range(0, len(prompts) - 15, 16)]
    written = sum(prompt + output - 1 for prompt, output in list(zip(prompts, outputs, strict=True))[: 16 * len(held)])
    assert slots == pytest.approx(100 * (1 - written / sum(held)), abs=0.05), "an answer's last token takes no slot"
    assert len({slots, flops, read}) == 3
    assert read < min(slots, flops), "weights are read whoever is alive, so they dilute the loss of bytes"
    assert number(chapter.glued["kv_bytes"]) == SHAPE.kv_bytes_per_token


def test_what_the_page_claims_in_words_holds_on_this_workload(chapter: Any) -> None:
    mean, pads = number(chapter.glued["mean"]), number(chapter.glued["pads16"])
    assert pads > mean, "each prompt of average length carries more pads than it has tokens"
    assert number(chapter.glued["p99"]) > 3 * mean
    arrival, windowed, ordered = chapter.names["curves"].values()
    assert arrival == sorted(arrival), "padding grows with the batch size"
    assert windowed == sorted(windowed)
    assert all(a > w > o for a, w, o in zip(arrival, windowed, ordered, strict=True))
    lengths = workload("azure_conv").prompt_tokens
    independent = np.random.default_rng(0).permutation(lengths)
    for size in (4, 8, 16, 32, 64):
        assert reach(independent, size) == pytest.approx(0.5, abs=0.05), "about half reach into the top 0.7 / B"


def reach(lengths: np.ndarray, size: int) -> float:
    """Share of the batches of `size`, in this order, whose longest is among the top 0.7 / `size` of all lengths."""
    return float((batches_of(lengths, size).max(axis=1) >= np.percentile(lengths, 100 * (1 - 0.7 / size))).mean())


def batches_of(lengths: np.ndarray, size: int) -> np.ndarray:
    return lengths[: len(lengths) // size * size].reshape(-1, size)


def test_the_rule_of_the_tail_names_this_workloads_own_share_and_a_reason_that_holds(chapter: Any) -> None:
    requests = workload("azure_conv")
    lengths = requests.prompt_tokens
    said = chapter.glued["reach16"]
    (share,) = re.findall(r"([\d.]+) %", said)
    assert float(share) == pytest.approx(100 * reach(lengths, 16), abs=0.05)
    # How unevenly the long prompts fall on batches, against a thousand shuffled orders.
    long = (lengths >= np.percentile(lengths, 100 * (1 - 0.7 / 16))).astype(int)
    rng = np.random.default_rng(0)
    shuffled = [batches_of(rng.permutation(long), 16).sum(axis=1).var() for _ in range(1_000)]
    together = batches_of(long, 16).sum(axis=1).var() > max(shuffled)
    assert together == ("come close together" in said) == requests.is_real


def test_the_page_says_recorded_only_of_what_was_recorded(chapter: Any) -> None:
    figure = next(shown for shown in chapter.shown if isinstance(shown, Figure) and "Prompt lengths" in shown.title)
    if workload("azure_conv").is_real:
        assert "that a public service received" in chapter.glued["whose_prompts"]
        assert figure.title == "Prompt lengths of one hour"
    else:
        assert "drawn at random" in chapter.glued["whose_prompts"]
        assert figure.title == "Prompt lengths of a seeded sample"


def test_the_picture_is_the_starting_texts_and_its_blocks_lie_scattered(chapter: Any) -> None:
    picture = chapter.names["picture"]
    assert picture["rows"] == pad_rows(
        [["<SOS>", "I", "think", "this", "movie", "is", "better"], ["<SOS>", "I", "really", "like"]],
        "<pad>",
        side="left",
    )
    for table in picture["block_tables"]:
        assert len(table) == 4
        assert table != list(range(table[0], table[0] + 4))
    held = {block for table in picture["block_tables"] for block in table} | {int(b) for b in picture["others"]}
    assert len(held) == 8 + len(picture["others"])
    unused = 4 * picture["block_size"] - len(picture["rows"][0])
    assert (chapter.glued["row_blocks"], chapter.glued["last_label"], unused) == ("4", "3", 1)
    assert unused * 2 < number(chapter.glued["pads"]), "rounding is the smallest of the three losses"
    assert unused * 2 < picture["block_size"] * number(chapter.glued["free"])
    assert number(chapter.glued["free"]) == picture["num_free_blocks"] == picture["num_blocks"] - len(held)
    assert number(chapter.glued["longest_run"]) < number(chapter.glued["need"]) <= picture["num_free_blocks"]


def test_the_keys_of_the_questions_are_right(chapter: Any) -> None:
    batch, share, challenge = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    assert batch.answer == "`The cat sat <pad>`\n`A quick brown fox`\n`On the mat <pad>`"
    guesses = [int(re.findall(r"\d+", text)[0]) for text in share.options]
    nearest = min(guesses, key=lambda guess: abs(guess - number(chapter.glued["share16"])))
    assert share.answer == f"about {nearest} %"
    assert challenge.answer.startswith("The free memory is in gaps")


def test_every_figure_describes_itself_and_names_the_source_of_its_data(chapter: Any) -> None:
    figures = [shown for shown in chapter.shown if isinstance(shown, Figure)]
    assert len(figures) == 3
    for figure in figures:
        assert len(figure.description.split()) >= 12
        assert figure.table.rows
        assert 'role="img"' in figure.svg
    assert all(figure.note == chapter.glued["source"] for figure in figures[1:])


def test_the_bug_shows_the_numbers_the_page_explains(chapter: Any) -> None:
    # Nine tokens in a rectangle of twelve; three of the nine look like pads.
    assert (chapter.glued["bug_true"], chapter.glued["bug_shown"], chapter.glued["bug_lost"]) == ("25", "50", "3")


def test_the_folded_answer_to_exercise_3_runs_and_keeps_its_promise(chapter: Any) -> None:
    names: dict[str, Any] = {}
    chapter.run_answer(3, names)
    lengths = chapter.names["prompts"][:64]
    batches = list(names["batches"](lengths, 8_000))
    assert sorted(length for batch in batches for length in batch) == sorted(lengths)
    assert all(len(batch) * max(batch) <= 8_000 for batch in batches)


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"[A-Za-z0-9']+", chapter.prose)) <= 2_500
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "numpy", "matplotlib"}
