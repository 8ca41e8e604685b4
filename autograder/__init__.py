"""From a submission to a grade.

Owns: the course on disk (`course.py`), what is taken from a submission (`intake.py`), the sandbox, the untrusted
worker, the trusted judge, the local runner with its journal, nbgrader's gradebook, release and reports; what the
machine's GPUs are (`nvml.py`), and the command line (`cli.py`, with a `..._command.py` for each command that has more
to say). Knows nothing of how a lab is solved: the truth comes from `reference_impl` and the hidden tests. The one
rule: student code runs in `worker/` only, which holds no test, no reference, no seed, no clock and no result. Start
with `course.py`, then follow a submission: `intake.py`, `judge/grade.py`, `judge/remote.py`, `worker/shim.py`.
"""
