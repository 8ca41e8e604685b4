"""What has been graded, on disk, so that a job is done once and survives kill -9.

Owns: one SQLite table from job id to result. A job id is a hash of content (submission, suite, seed, tier), never of
a name or a time, so asking again finds the result and a changed file or suite does not. A result is written in one
transaction when its judge has ended: it is there whole or not at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autograder.judge.verdicts import SubmissionResult

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    job_id   TEXT PRIMARY KEY,
    lab      TEXT NOT NULL,
    sha256   TEXT NOT NULL,
    suite    TEXT NOT NULL,
    finished TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    result   TEXT NOT NULL
)
"""
_BUSY_TIMEOUT_S = 30.0


class Journal:
    """Finished results. Safe for several threads and processes at once; every call opens the file anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as db:
            db.execute(_SCHEMA)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S)
        try:
            with db:
                yield db
        finally:
            db.close()

    def find(self, job_id: str) -> SubmissionResult | None:
        """The finished result of a job, if there is one."""
        with self._open() as db:
            row = db.execute("SELECT result FROM results WHERE job_id = ?", (job_id,)).fetchone()
        return None if row is None else SubmissionResult.from_json(json.loads(row[0]))

    def add(self, job_id: str, result: SubmissionResult) -> SubmissionResult:
        """Keep `result` unless another process finished the same job first; returns the one that is kept."""
        row = (job_id, result.lab, result.sha256, result.suite, json.dumps(result.to_json()))
        with self._open() as db:
            db.execute("INSERT OR IGNORE INTO results (job_id, lab, sha256, suite, result) VALUES (?, ?, ?, ?, ?)", row)
        kept = self.find(job_id)
        assert kept is not None
        return kept

    def __len__(self) -> int:
        with self._open() as db:
            return int(db.execute("SELECT COUNT(*) FROM results").fetchone()[0])
