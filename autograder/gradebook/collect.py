"""Collecting from the exchange without following a link.

Owns: what is copied from a folder that students can write to. Stock `nbgrader collect` copies as the instructor and
follows symbolic links, so that a link to a private file would be fetched for the student. Only regular files of bounded
size and number are taken here; what is left out is logged and never stops the class.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nbgrader.exchange.default.collect import ExchangeCollect  # type: ignore[import-untyped]

from autograder.intake import Rejected, read_regular

MAX_FILE_BYTES = 20 * 1024 * 1024
MAX_FILES = 200


class SafeCollect(ExchangeCollect):  # type: ignore[misc]
    """`nbgrader collect` that takes regular files only."""

    def do_copy(self, src: str, dest: str, log: Any = None) -> None:
        """Copy the regular files of folder `src` to `dest`, with nbgrader's usual permissions."""
        for reason in copy_regular_files(Path(src), Path(dest)):
            self.log.warning("Not collected: %s", reason)
        # The time of the record that nbgrader chose by, not what a file inside the submission claims.
        claimed = os.path.basename(src).rsplit("+", 3)[2]
        Path(dest, "timestamp.txt").write_text(claimed, encoding="utf-8")
        self.set_perms(dest, fileperms=0o644, dirperms=0o755)


def copy_regular_files(source: Path, target: Path) -> list[str]:
    """Copy the regular files directly in folder `source`; returns why each other entry was left out.

    Folders inside a submission hold nothing that is graded and are left out too. `target` is made, empty if need be.
    """
    target.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        return [f"{source.name}: the submission itself is a symbolic link"]
    left_out = []
    taken = 0
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        if taken == MAX_FILES:
            left_out.append(f"{source.name}: more than {MAX_FILES} files")
            break
        reason = _copy_one(Path(entry.path), target / entry.name)
        if reason:
            left_out.append(f"{source.name}: {reason}")
        else:
            taken += 1
    return left_out


def _copy_one(source: Path, target: Path) -> str:
    try:
        target.write_bytes(read_regular(source, MAX_FILE_BYTES))
    except Rejected as reason:
        return str(reason)
    return ""
