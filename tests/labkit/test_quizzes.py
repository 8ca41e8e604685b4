"""Quizzes: feedback for every option, from the keyboard, without a script."""

from __future__ import annotations

import re

import pytest

from labkit import quiz

OPTIONS = {"one": "Too few.", "`two` <b>": "Just so.", "three": "Too many."}


def test_every_option_carries_its_own_feedback_and_only_the_answer_says_yes() -> None:
    page = quiz("How many?", OPTIONS, answer="`two` <b>")._repr_html_()
    feedback = re.findall(r'p2p-feedback" aria-live="polite"><p><strong>(\w+)\.</strong> ([^<]+)<', page)
    assert feedback == [("No", "Too few."), ("Yes", "Just so."), ("No", "Too many.")]


def test_text_is_escaped_and_backquotes_are_code() -> None:
    page = quiz("How many?", OPTIONS, answer="one")._repr_html_()
    assert "<code>two</code> &lt;b&gt;" in page
    assert "<b>" not in page


def test_every_radio_button_has_a_label_of_its_own_and_all_form_one_group() -> None:
    page = quiz("How many?", OPTIONS, answer="one")._repr_html_()
    inputs = re.findall(r'<input type="radio" name="([^"]+)" id="([^"]+)">', page)
    assert len({name for name, _ in inputs}) == 1
    assert [own for _, own in inputs] == re.findall(r'<label for="([^"]+)">', page)
    assert quiz("How many?", OPTIONS, answer="one").name != quiz("How few?", OPTIONS, answer="one").name


def test_the_text_twin_marks_the_answer() -> None:
    assert "[x] three\n    Too many." in str(quiz("How many?", OPTIONS, answer="three"))


@pytest.mark.parametrize(
    ("options", "answer", "message"),
    [
        ({"one": "x"}, "one", "at least two"),
        ({"one": "x", "two": " "}, "one", "'two' has no feedback"),
        (OPTIONS, "four", "'four' is none of the options"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(options: dict[str, str], answer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiz("How many?", options, answer=answer)


@pytest.mark.browser
def test_the_keyboard_alone_reaches_every_feedback(chromium_page) -> None:  # type: ignore[no-untyped-def]
    chromium_page.set_content(quiz("How many?", OPTIONS, answer="`two` <b>")._repr_html_())
    shown = chromium_page.locator(".p2p-feedback p:visible")
    assert shown.count() == 0
    chromium_page.keyboard.press("Tab")
    chromium_page.keyboard.press("Space")
    for expected in ("No. Too few.", "Yes. Just so.", "No. Too many."):
        assert shown.all_inner_texts() == [expected]
        chromium_page.keyboard.press("ArrowDown")
