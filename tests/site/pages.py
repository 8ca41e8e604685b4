"""The pages of the built book, for tests that look at each of them.

Pytest needs their names before the site is built, so they come from the table of contents; a test holds the built
folder against them, in both directions.
"""

from __future__ import annotations

import re
from pathlib import Path

_TOC = (Path(__file__).resolve().parents[2] / "_toc.yml").read_text(encoding="utf-8")
DOCUMENTS = [f"{name}.html" for name in re.findall(r"^\s*-?\s*(?:root|file):\s*(\S+)\s*$", _TOC, re.MULTILINE)]
CHAPTERS = [name for name in DOCUMENTS if name.startswith("chapters/")]
EVERY_PAGE = [*DOCUMENTS, "search.html", "genindex.html"]
