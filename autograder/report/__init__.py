"""What students and staff read about a grade.

Owns: words for verdicts, the feedback page, the terminal table and the class report. Does not know how a verdict was
reached and computes no points. Everything a student wrote is escaped here, at the point where it becomes HTML or CSV.
"""

from __future__ import annotations
