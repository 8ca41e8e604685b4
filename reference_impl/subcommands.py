"""What a package needs to add its subcommands to `engine`.

Owns: the type of what it adds to. Knows nothing of any subcommand.
"""

from __future__ import annotations

import argparse
from typing import Protocol


class Commands(Protocol):
    """What `argparse` returns from `add_subparsers`."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser:
        """A new subcommand."""
