"""The trusted side: hidden tests, reference, seeds, clock, verdicts and points.

Owns: what is asked of a submission and what its answers are worth. Runs in a process of its own for each submission,
and meets student code only as plain values that came over the wire. Start with `subject.py` (what a test sees) and
`verdicts.py`, then `remote.py` and `grade.py`.
"""
