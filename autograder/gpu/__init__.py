"""A student's kernels on a GPU, graded where no student Python ever ran.

Owns: the plan of a call, which `worker/record.py` takes down beside the student, as data, and its validation
(`plan.py`), playing it on other numbers (`replay.py`, in a trusted process that `process.py` starts, asks and ends,
`stand.py` keeps well and `turns.py` lets share a GPU), the clock (`clock.py`, of what `timed.py` describes, and
`textbook.py` beside it), a look at memory accesses (`sanitize.py`), and the object that hidden tests talk to
(`subject.py`). Knows nothing of points and of what any function should compute: that is the hidden tests' business.
Start with `plan.py`: everything else makes, checks or plays one.
"""
