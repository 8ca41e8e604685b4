"""From verdicts to an nbgrader gradebook, without a kernel.

Owns: how the stock commands `nbgrader autograde`, `generate_feedback` and `export` reach the judge, and what stands in
the gradebook afterwards. Does not know how a submission is run, nor how points follow from verdicts. Read `config.py`
first: it names every seam of nbgrader that is used, then `exporter.py` (what nbgrader reads) and `preprocessors.py`.
"""

from __future__ import annotations
