"""Numbers from a cell into the sentences of a page.

Owns: the hand-over. Knows nothing of the numbers: they come in as text, formatted and with their digits chosen where
they are computed. A MyST page prints them with the role `{glue:text}` and the name.
"""

from __future__ import annotations

from collections.abc import Callable

_RECORD = "application/papermill.record/"


def glue(**texts: str) -> None:
    """Keep each text under its name for the prose of this page; in a notebook nothing is shown.

    Outside IPython the names and texts are printed. Raises: TypeError for anything but text.
    """
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{name} must be text, formatted where it is computed; got {type(text).__name__}")
    try:
        from IPython.core.display_functions import publish_display_data
        from IPython.core.getipython import get_ipython
    except ImportError:
        in_notebook = False
    else:
        in_notebook = get_ipython() is not None
    for name, text in texts.items():
        if not in_notebook:
            print(f"{name} = {text}")
            continue
        # The output that myst-nb looks for: a mime type no front end shows, with the name beside it. The text goes as a
        # literal: the role reads it as Python, and would take 1,155 for a pair of numbers.
        publish: Callable[..., None] = publish_display_data
        publish(
            {f"{_RECORD}text/plain": repr(text)},
            metadata={"scrapbook": {"name": name, "mime_prefix": _RECORD}},
        )
