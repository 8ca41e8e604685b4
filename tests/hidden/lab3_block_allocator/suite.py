"""What lab 3 asks of a submission, and which edition of its hidden tests this is.

Owns: the name the judge looks up, its methods, and the packages a submission may import. Knows nothing of the tests.
"""

from __future__ import annotations

VERSION = "1.0"
"""Raised when a test is added or made stricter, so that a regrade can say under which edition a grade was given."""

PROVIDES = {
    "BlockAllocator": ("allocate", "append", "fork", "free", "block_table", "num_tokens", "slot_mapping"),
}
"""Class -> the methods that must be there; `num_free_blocks` may be an attribute, so it is looked at by the tests."""

PACKAGES = ("numpy",)
"""Packages beyond the standard library and labkit."""

REFERENCE = {"BlockAllocator": "reference_impl.memory"}
"""Class -> the module that holds the reference of that name."""
