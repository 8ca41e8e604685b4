"""Two published effects, in direction and order of size."""

from __future__ import annotations

import pytest

from reference_impl.sim import chunked_prefill, watermark


def test_a_few_blocks_kept_free_cut_preemptions_and_the_time_they_cost() -> None:
    without, some, much = watermark.ablation(scale=0.25, watermarks=(0.0, 0.05, 0.15))
    assert without.preemptions > 1.5 * some.preemptions > 1.5 * much.preemptions
    assert some.tokens_per_s > 0.97 * without.tokens_per_s
    assert much.tokens_per_s < some.tokens_per_s


@pytest.mark.long
def test_the_ablation_at_its_published_size_is_of_the_published_order() -> None:
    rows = watermark.ablation()
    for ours, theirs in zip(rows, watermark.PUBLISHED, strict=True):
        assert ours.preemptions == pytest.approx(theirs.preemptions, rel=0.5)
        assert ours.tokens_per_s == pytest.approx(theirs.tokens_per_s, rel=0.1)
    by_mark = {row.watermark: row for row in rows}
    assert by_mark[0.0].preemptions > 4 * by_mark[0.05].preemptions
    assert by_mark[0.0].itl_p99_ms > 2 * by_mark[0.05].itl_p99_ms
    assert by_mark[0.0].itl_p99_ms == pytest.approx(40.62, rel=0.25)


@pytest.mark.parametrize("published", chunked_prefill.PUBLISHED, ids=lambda row: f"{row.prompt_tokens}")
def test_chunks_cut_the_stall_that_a_long_prompt_causes(published: chunked_prefill.Row) -> None:
    ours = chunked_prefill.effect(published.prompt_tokens)
    assert ours.whole_ms == pytest.approx(published.whole_ms, rel=0.34)
    assert ours.chunked_ms == pytest.approx(published.chunked_ms, rel=0.34)
    assert ours.whole_ms / ours.chunked_ms == pytest.approx(published.whole_ms / published.chunked_ms, rel=0.34)
    assert 0 < ours.later < 1


def test_the_stall_grows_with_the_prompt_whole_and_hardly_in_chunks() -> None:
    short, middle, long = (chunked_prefill.effect(tokens) for tokens in (4_096, 8_192, 16_384))
    assert long.whole_ms > 2.5 * middle.whole_ms > 2.5 * 2.0 * short.whole_ms
    assert long.chunked_ms < 3 * short.chunked_ms


def test_the_report_shows_both_sides() -> None:
    shown = chunked_prefill.report()
    assert "361" in shown
    assert "16,384" in shown


@pytest.mark.parametrize("scale", [0.0, 1.5, -1.0])
def test_a_scale_outside_its_range_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be at least"):
        watermark.ablation(scale)
