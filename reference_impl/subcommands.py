"""What a package needs to add its subcommands to `engine`.

Owns: the type of what it adds to, and what is checked of every file that is to be written. Knows nothing of any
subcommand.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Protocol


class Commands(Protocol):
    """What `argparse` returns from `add_subparsers`."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser:
        """A new subcommand."""


def check_output(option: str, path: Path | None) -> None:
    """What can be known of a file to write before minutes are spent. Raises: ValueError naming the option."""
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{option} {path}: there is no such folder")
    if path.is_dir():
        raise ValueError(f"{option} {path}: that is a folder")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{option} {path}: must not be written")
