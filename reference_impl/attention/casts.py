"""What memory holds and what a kernel computes with: the casts between them.

Owns: whether Triton's interpreter runs the kernels, and the casts out of a cache and into one of 8 bits. Knows nothing
of scales' meaning (`fp8.py`) or of where anything lies.
On a GPU the casts are the hardware's: into 8 bits it rounds to the nearest and to even in the middle, and every 8-bit
number is exact in 16 bits. Triton's interpreter (3.7) computes wrongly in bfloat16, rounds wrongly to 8 bits (31.3 to
16) and makes 480 of an 8-bit NaN. So there everything is computed in float32, and the bits are put together by hand.
"""

# Kernels take pointers and constants that Python's types do not describe, and Triton ships no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
"""Whether Triton's interpreter runs the kernels. They are told, as a kernel reads no globals."""


@triton.jit
def widened(stored, like, INTERPRETED: tl.constexpr):
    """What was loaded, of the type of `like` (the query's), exact; interpreted, of float32."""
    found = stored
    if INTERPRETED:
        found = stored.to(tl.float32)
        if stored.dtype == tl.float8e4nv:
            found = tl.where((stored.to(tl.uint8, bitcast=True) & 0x7F) == 0x7F, float("nan"), found)
    elif stored.dtype != like.dtype:
        found = stored.to(like.dtype)
    return found


@triton.jit
def beside_8_bits(rows, INTERPRETED: tl.constexpr):
    """Queries that meet 8-bit keys, and the power of two that their scores are to be multiplied by.

    The hardware's way from 8 bits to bfloat16 leads through float16 and costs more than the product. So it is bfloat16
    queries that become float16: over the power of two of the largest, what is lost of them is 2^-25 of it at most.
    """
    power = 1.0
    found = rows
    if rows.dtype == tl.bfloat16:
        largest = tl.max(tl.abs(rows.to(tl.float32)))
        # Its exponent alone; of 0, and of what is larger than any query, one that has an inverse.
        bits = tl.minimum(tl.maximum(largest.to(tl.int32, bitcast=True) & 0x7F800000, 0x00800000), 0x7E800000)
        power = bits.to(tl.float32, bitcast=True)
        inverse = (0x7F000000 - bits).to(tl.float32, bitcast=True)
        found = (rows.to(tl.float32) * inverse).to(tl.float16)
    return found, power


@triton.jit
def narrowed(numbers, scale, INTERPRETED: tl.constexpr):
    """float8e4nv of numbers / scale, both float32 and of one shape: `fp8.quantised`."""
    found = tl.div_rn(numbers, scale)
    # Not tl.clamp, of which NaN would come out as a number.
    found = tl.where(found > 448.0, 448.0, found)
    found = tl.where(found < -448.0, -448.0, found)
    if INTERPRETED:
        bits = found.to(tl.uint32, bitcast=True)
        size = bits & 0x7FFFFFFF
        # 20 of 23 bits of mantissa go; half of the last that stays is added, less one where that is even.
        normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
        # Below 2^-6 steps are 2^-9: added to 2^14, a float32 keeps just these.
        small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
        kept = tl.where(size < 0x3C800000, small, normal)
        kept = tl.where(size > 0x7F800000, 0x7F, kept)
        narrow = (kept | ((bits >> 24) & 0x80)).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    else:
        narrow = found.to(tl.float8e4nv)
    return narrow
