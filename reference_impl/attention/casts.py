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
def widened_values(stored, like, INTERPRETED: tl.constexpr):
    """As `widened`, but 8-bit values become float16 where `like` is bfloat16, and so must the weights they meet.

    The hardware's way to bfloat16 leads through float16, so it is half of the work; weights are at most 1, and have
    three bits more there.
    """
    if INTERPRETED or stored.dtype != tl.float8e4nv or like.dtype != tl.bfloat16:
        found = widened(stored, like, INTERPRETED)
    else:
        found = stored.to(tl.float16)
    return found


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
