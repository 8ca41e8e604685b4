"""Fields that a spreadsheet shows and does not run.

Owns: one rule, for every CSV file the grader writes. Quoting of commas and line ends is the csv module's.
"""

from __future__ import annotations

from autograder.report.text import clean

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def safe_field(value: object) -> str:
    """`value` as a CSV field without control characters; text that a spreadsheet would take for a formula gets an
    apostrophe in front.
    """
    if value is None:
        return ""
    if isinstance(value, int | float):
        return str(value)
    text = clean(str(value))
    # Blanks in front of a formula do not stop a spreadsheet.
    return f"'{text}" if text.startswith(FORMULA_STARTS) or text.lstrip().startswith(FORMULA_STARTS) else text
