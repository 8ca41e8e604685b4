"""The budget bar: the script says what the Python says, for any state that the keyboard reaches."""

from __future__ import annotations

import pytest

from labkit.budget_bar import CONTEXTS, BudgetBar, Budgeted

SMALL = Budgeted("Small", 114_688, 1_192_099_840, 1_192_099_840)
LARGE = Budgeted("Large & old", 524_288, 13_476_831_232, 13_214_687_232)
BUDGET = 72 * 10**9


def test_it_opens_on_the_first_model_and_says_so_without_a_script() -> None:
    bar = BudgetBar([SMALL, LARGE], BUDGET, 3_000, context=4_096, requests=16)
    said = (
        "114,688 bytes × 4,096 tokens × 16 requests = 7.5 GB of cache, and 1.2 GB of weights. It fits. "
        "At most 150 fit. A step reads 8.7 GB, at least 2.9 ms."
    )
    assert bar.sentence(SMALL, 16, 4_096, 16) == said
    assert said in repr(bar)
    assert said in bar._repr_html_()
    assert "Large &amp; old" in bar._repr_html_()


def test_one_request_more_than_the_most_does_not_fit_and_eight_bits_hold_twice_as_many() -> None:
    bar = BudgetBar([LARGE], BUDGET, 3_000)
    most = bar.most(LARGE, 16, 8_192)
    assert "It fits." in bar.sentence(LARGE, 16, 8_192, most)
    assert "Too much for 72.0 GB." in bar.sentence(LARGE, 16, 8_192, most + 1)
    assert bar.most(LARGE, 8, 8_192) in (2 * most, 2 * most + 1)
    assert BudgetBar([LARGE], 10**9, 3_000).most(LARGE, 16, 512) == 0, "the weights alone are too much"


def test_the_table_has_a_row_for_every_model() -> None:
    bar = BudgetBar([SMALL, LARGE], BUDGET, 3_000)
    assert [row[0] for row in bar.table.rows] == ["Small", "Large & old"]
    assert bar.table.rows[1][3] == f"{bar.most(LARGE, 16, 8_192):,}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "at least one model"),
        ({"context": 1_000}, "got 1000"),
        ({"requests": 0}, "got 0"),
        ({"budget_bytes": 0}, "at least 1"),
    ],
)
def test_a_bar_that_cannot_open_is_refused(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"models": [SMALL], "budget_bytes": BUDGET, "read_gb_s": 3_000}
    with pytest.raises(ValueError, match=message):
        BudgetBar(**{**good, **change})  # type: ignore[arg-type]


@pytest.mark.browser
def test_driven_by_keyboard_it_says_what_python_computes(chromium_page) -> None:  # type: ignore[no-untyped-def]
    bar = BudgetBar([SMALL, LARGE], BUDGET, 3_137)
    chromium_page.set_content(bar._repr_html_())
    said, press = chromium_page.locator("output"), chromium_page.keyboard.press
    assert said.inner_text() == bar.sentence(SMALL, 16, 4_096, 16)
    chromium_page.focus("[name=context]")
    for presses, context in ((1, 8_192), (2, 32_768)):
        for _ in range(presses):
            press("ArrowRight")
        assert said.inner_text() == bar.sentence(SMALL, 16, context, 16)
    assert chromium_page.get_attribute("[name=context]", "aria-valuetext") == "32,768 tokens"
    chromium_page.focus("button")
    press("Enter")
    assert said.inner_text() == bar.sentence(SMALL, 16, 32_768, 17)
    chromium_page.focus("[name=model]")
    press("ArrowDown")
    assert said.inner_text() == bar.sentence(LARGE, 16, 32_768, 17)
    assert "Too much" in said.inner_text()
    chromium_page.focus("[name=bits]")
    press("ArrowDown")
    assert said.inner_text() == bar.sentence(LARGE, 8, 32_768, 17)
    chromium_page.focus("[name=requests]")
    press("Home")
    assert said.inner_text() == bar.sentence(LARGE, 8, 32_768, 1)
    chromium_page.focus("[name=context]")
    press("End")
    assert said.inner_text() == bar.sentence(LARGE, 8, CONTEXTS[-1], 1)
    widths = chromium_page.evaluate(
        "[...document.querySelectorAll('div.p2p-bar i')].map(i => parseFloat(i.style.width))"
    )
    cache = LARGE.kv_bytes(8) * CONTEXTS[-1]
    parts = (LARGE.weight_bytes, cache, BUDGET - LARGE.weight_bytes - cache)
    assert widths == pytest.approx([100 * part / BUDGET for part in parts], abs=0.01)
