"""The batch builder: the script says what the Python says, for any choice."""

from __future__ import annotations

import re

import pytest

from labkit.batch_builder import BatchBuilder

LENGTHS = [374, 396, 879, 91, 90, 1313, 388, 242, 2221]


def test_it_opens_on_the_first_requests_and_says_so_without_a_script() -> None:
    builder = BatchBuilder(LENGTHS, 3)
    said = "3 rows of 879 slots = 2,637 slots; 1,649 hold tokens. Padding: 37.5 %."
    assert builder.sentence(builder.first) == said
    assert said in builder._repr_html_()
    assert [int(pads) for pads in re.findall(r'count">(\d+)<', builder._repr_html_())] == [505, 483, 0]


def test_alike_picks_the_rectangle_with_the_least_padding() -> None:
    from itertools import combinations

    builder = BatchBuilder(LENGTHS, 3)
    best = min(combinations(range(len(LENGTHS)), 3), key=builder.share)
    assert builder.share(builder.alike) == builder.share(best)


@pytest.mark.parametrize(
    ("lengths", "size", "message"), [([5, 6], 3, "1 to 2"), ([5, 6], 0, "got 0"), ([5, 0], 1, "at least 1 prompt")]
)
def test_a_builder_that_cannot_open_is_refused(lengths: list[int], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchBuilder(lengths, size)


@pytest.mark.browser
def test_driven_by_keyboard_it_says_what_python_computes(chromium_page) -> None:  # type: ignore[no-untyped-def]
    builder = BatchBuilder(LENGTHS, 3)
    chromium_page.set_content(builder._repr_html_())
    said = chromium_page.locator("output")
    assert said.inner_text() == builder.sentence(builder.first)
    buttons = chromium_page.locator("button")
    buttons.nth(1).focus()
    chromium_page.keyboard.press("Enter")
    assert said.inner_text() == builder.sentence(builder.alike)
    buttons.nth(2).focus()
    chromium_page.keyboard.press("Space")
    assert said.inner_text() == "The batch is empty."
    boxes = chromium_page.locator("input")
    picked: list[int] = []
    for number in (3, 8, 0, 5):
        boxes.nth(number).focus()
        chromium_page.keyboard.press("Space")
        picked.append(number)
        assert said.inner_text() == builder.sentence(picked)
    pads = chromium_page.locator(".count").all_inner_texts()
    assert pads == [f"{2221 - own:,}" if number in picked else "-" for number, own in enumerate(LENGTHS)]
