"""Numbers on their way into the prose: as text, whole, and invisible in the notebook."""

from __future__ import annotations

from typing import Any

import pytest

from labkit import glue


@pytest.mark.parametrize("text", ["1,155", "3.6", "it's", "None"])
def test_a_page_prints_exactly_the_text_that_was_glued(text: str) -> None:
    formats = pytest.importorskip("myst_nb.core.variables")
    shells = pytest.importorskip("IPython.core.interactiveshell")
    capture = pytest.importorskip("IPython.utils.capture")
    try:
        shells.InteractiveShell.instance()
        with capture.capture_output() as caught:
            glue(mean=text)
    finally:
        shells.InteractiveShell.clear_instance()
    (output,) = caught.outputs
    assert output.metadata["scrapbook"]["name"] == "mean"
    ((mime, kept),) = output.data.items()
    assert mime == output.metadata["scrapbook"]["mime_prefix"] + "text/plain"
    assert caught.stdout == ""
    # What the role {glue:text} does with it.
    assert formats.format_plain_text(kept, "s") == text


def test_outside_a_notebook_the_names_and_texts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    glue(mean="1,155")
    assert capsys.readouterr().out == "mean = 1,155\n"


def test_a_bare_number_is_refused_because_its_digits_were_not_chosen() -> None:
    number: Any = 0.1 + 0.2
    with pytest.raises(TypeError, match="share must be text"):
        glue(share=number)
