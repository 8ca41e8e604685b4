"""The judge's process: one job on standard input, one result on standard output, both JSON.

Owns: nothing but this hand-over. A process of its own for each submission keeps the grader's memory flat, lets the
runner end a judge that hangs, and leaves no trace of one submission for the next.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from autograder.course import Course
from autograder.judge.grade import Job, grade
from autograder.worker import harden


def main() -> None:
    # If the runner is killed, so is this process, and with it the sandbox: nothing goes on grading unseen.
    harden.die_with_parent()
    request = json.load(sys.stdin)
    if os.getppid() != request["runner_pid"]:
        sys.exit("the runner is gone")
    # Only the result may reach standard output, whatever a library prints.
    result_fd = os.dup(1)
    os.dup2(2, 1)
    result = grade(Course.open(Path(request["root"])), Job(**request["job"]))
    with os.fdopen(result_fd, "w", encoding="utf-8") as out:
        json.dump(result.to_json(), out)


if __name__ == "__main__":
    main()
