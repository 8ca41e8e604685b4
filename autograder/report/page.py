"""The frame of every HTML page that the grader writes.

Owns: the document head, the colours in light and dark, and escaping. A page is one file: no script, no font, no image
and no address outside it, and a policy in its head that forbids all of them, so that it is safe to open wherever it
came from.
"""

from __future__ import annotations

import html

from autograder.report.text import clean

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --soft: #f2f4f7; --line: #c9d0d8;
  --good: #0b6b33; --bad: #a31621; --mark: #2456a6; --other: #6b7480; }
@media (prefers-color-scheme: dark) { :root { --text: #e8ebef; --back: #14171b; --soft: #1f242a; --line: #414a54;
  --good: #6fd08c; --bad: #ff9a94; --mark: #8ab4f8; --other: #98a2ad; } }
body { color: var(--text); background: var(--back); font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 60rem; padding: 1.5rem; }
h1 { line-height: 1.2; } h1, h2 { overflow-wrap: anywhere; }
h2 { margin-top: 2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--soft); border: 1px solid var(--line); padding: 0.7rem; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); }
.remark { border-left: 4px solid var(--mark); padding: 0.3rem 0.8rem; }
ul.tests { list-style: none; padding: 0; } ul.tests li { margin: 0.3rem 0; }
svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
svg .bar { fill: var(--mark); } svg .frame { stroke: var(--line); fill: none; }
.speed { margin: 1rem 0; } .speed p { margin: 0.7rem 0 0.2rem; font-weight: 600; }
.speed ul { list-style: none; margin: 0; padding: 0; }
.speed li { display: grid; grid-template-columns: 15rem 1fr; gap: 0 1rem; align-items: center; }
@media (max-width: 40rem) { .speed li { grid-template-columns: 1fr; margin-bottom: 0.4rem; } }
.speed .other { fill: var(--other); } .speed .ceiling { fill: var(--line); }
"""


def escape(text: object) -> str:
    """`text` for HTML, in an element or a quoted attribute; control characters are replaced."""
    return html.escape(clean(str(text)), quote=True)


def page(title: str, body: str) -> str:
    """A whole document. `title` is escaped here; `body` is HTML that is safe already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
