"""From what instructors write to what students get.

Owns: the released notebooks, the student bundle, the scan for leaked answers, the sample class, the site and the book
as PDF. Does not know how a submission is graded. Read `labs.py` first.
"""

from __future__ import annotations
