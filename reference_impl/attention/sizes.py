"""Sizes of launches, computed on the host.

Owns: two functions that Triton has under the same names. Its own are made to be called in kernels as well, and take a
host 2 us each, eight times a layer. Knows nothing of kernels.
"""

from __future__ import annotations


def cdiv(number: int, by: int) -> int:
    """ceil(number / by), for by above 0."""
    return -(-number // by)


def next_power_of_2(number: int) -> int:
    """The least power of 2 that is at least `number`, which is 1 or more."""
    return 1 << (number - 1).bit_length()
