"""What is said when a model cannot be had.

Owns: the error of everything that reads a model's files. Knows nothing of how they are read.
"""

from __future__ import annotations


class ModelError(ValueError):
    """Weights, a configuration or a tokenizer that cannot be used. One line: the file, what is wrong, what to do."""
