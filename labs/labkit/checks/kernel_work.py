"""Who does the work of a call, for the properties of lab 4: its own kernels (rule 9), not torch.

Owns: three calls on the same input, and what is concluded from them. Knows nothing of what a call computes. An object
whose attribute `elsewhere` is true works in another process, and what torch does here is not its doing: it is called,
and whoever made it watches it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from labkit.checks.paged import call, same_bits
from labkit.checks.story import Broken, Make
from labkit.gpu import device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def kernels_do_the_work(make: Make, function: str, told: str, args: Sequence[Any], written: Tensor) -> None:
    """Broken if torch computes on floats in a call, or if the call leaves the same in `written`, one of `args`, when
    its kernels do nothing. Cost: three calls."""
    before = written.clone()
    # Not watched: on a GPU the first call compiles kernels, and tries them out.
    call(make, function, told, *args)
    if getattr(make(), "elsewhere", False):
        return
    from labkit.watch import Watch, without_kernels

    after = written.clone()
    written.copy_(before)
    with Watch(device()).looking() as watch:
        call(make, function, told, *args)
    if watch.computed:
        raise Broken(
            f"With {told}: expected your kernels to do all that is computed on floats, but torch did some of it: "
            f"{watch.computed}. A call in which it does earns nothing."
        )
    written.copy_(before)
    with without_kernels():
        call(make, function, told, *args)
    if bool(same_bits(written, after).all()):
        raise Broken(f"With {told}: expected your kernels to write the answer, but it is there when they do nothing.")
