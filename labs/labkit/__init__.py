"""labkit: the small package that students import.

Owns: the contracts of the labs, the public checks, the workloads (real traces and the calibrated sampler), the drawings
and the player. Knows nothing of the reference implementation, of hidden tests or of grading, and imports neither
`reference_impl` nor `autograder`. It is the ground floor: everything else may import it.
Start with `contracts.py`, then `checks/`.
"""

from labkit.checks import check
from labkit.contracts import OutOfBlocks
from labkit.evidence import evidence
from labkit.gpu import triton_here
from labkit.page import glue
from labkit.quizzes import quiz
from labkit.workloads import workload

__all__ = ["OutOfBlocks", "check", "evidence", "glue", "quiz", "triton_here", "workload"]
