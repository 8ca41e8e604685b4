"""Every question of the book in the built pages: whatever option is chosen by keyboard, it gives its own feedback."""

from __future__ import annotations

import pytest

from tests.site.pages import EVERY_PAGE

pytestmark = [pytest.mark.browser, pytest.mark.slow]

_SAYS = """form => [...form.querySelectorAll('.p2p-option')].map(option => ({
    chosen: option.querySelector('input').checked,
    label: option.querySelector('label').textContent,
    said: option.querySelector('.p2p-feedback').innerText.trim() }))"""


def quizzes_in(site, document):
    return (site / document).read_text(encoding="utf-8").count('<form class="p2p p2p-quiz"')


def test_the_book_asks(site):
    assert any(quizzes_in(site, document) for document in EVERY_PAGE)


@pytest.mark.parametrize("document", EVERY_PAGE)
def test_every_option_of_every_question_gives_its_own_feedback_by_keyboard(site, visit, document):
    if not (written := quizzes_in(site, document)):
        return
    seen = visit(document)
    page = seen.page
    forms = page.locator("form.p2p-quiz")
    assert forms.count() == written
    for number in range(written):
        form = forms.nth(number)
        assert [row for row in form.evaluate(_SAYS) if row["chosen"] or row["said"]] == [], (
            "it answers before the reader"
        )
        form.locator("input").first.focus()
        page.keyboard.press("Space")
        said = []
        for option in range(form.locator("input").count()):
            rows = form.evaluate(_SAYS)
            assert [place for place, row in enumerate(rows) if row["chosen"]] == [option]
            assert [place for place, row in enumerate(rows) if row["said"]] == [option], (
                "the feedback of another option"
            )
            said.append(rows[option])
            page.keyboard.press("ArrowDown")
        assert len({row["said"] for row in said}) == len(said), "two options with the same feedback"
        assert all(row["said"].startswith(("Yes.", "No.")) for row in said)
        (right,) = (row["label"] for row in said if row["said"].startswith("Yes."))
        assert form.locator("details p").first.text_content() == right, "the folded answer is another"
    assert seen.faults == []
