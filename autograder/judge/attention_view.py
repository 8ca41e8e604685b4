"""What a hidden test of lab 4 may see: the memory of a call after it.

Owns: whether an answer is right within the contract's bounds, whether two have equal bits, whether anything else was
written, and the words for each. Messages are static sentences, for students read them. Knows nothing of how a call was
made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autograder.judge.attention_cases import TOLERANCE, Call, Content
from autograder.judge.subject import Subject

WRONG_NOT_INEXACT = 0.05
"""From this relative error on, an answer is called wrong, and below it inexact."""
ROW_FACTOR = 4


def check(out: Tensor, want: Tensor, about: str) -> None:
    """AssertionError, naming `about`, unless `out` [..., head_dim] is `want` (float64) within its type's bounds."""
    got = out.double()
    assert bool(got.isfinite().all()), f"{about}: out holds NaN or infinity, or was not written"
    tolerance = TOLERANCE[out.dtype]
    off, size = (got - want).norm(dim=-1), want.norm(dim=-1)
    nothing = size == 0
    assert bool((off[nothing] <= tolerance).all()), f"{about}: out is not zero where it must be"
    there = off[~nothing] / size[~nothing]
    whole = float(off.norm() / want.norm()) if bool((~nothing).any()) else 0.0
    worst = float(there.max()) if there.numel() else 0.0
    assert worst < WRONG_NOT_INEXACT, f"{about}: the answer is wrong by far more than rounding"
    assert worst <= ROW_FACTOR * tolerance, f"{about}: a row of the answer is less exact than its type allows"
    assert whole <= tolerance, f"{about}: the answer is less exact than its type allows"


def check_call(subject: Subject, call: Call, content: Content, about: str) -> None:
    """Have `subject` answer `call`, and check the answer."""
    check(call.run(subject), content.answer(), about)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one type and shape hold the same bits, NaN and signs of zeros included."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


class Unwritten:
    """Notices what was written into memory that is only to be read. Made before a call, asked after it."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._before = {name: arena.clone() for name, arena in call.arenas.items()}
        # Only what lies between the elements of out must stay there.
        self._out_elsewhere = torch.ones_like(call.arenas["out"], dtype=torch.bool)
        first = call.out.storage_offset()
        self._out_elsewhere.as_strided(call.out.shape, call.out.stride(), first).fill_(False)

    def check(self) -> None:
        """AssertionError if anything but the elements of `out` changed."""
        for name, before in self._before.items():
            after = self._call.arenas[name]
            if name == "out":
                kept = self._out_elsewhere
                assert same_bits(before[kept], after[kept]), "memory around out was written"
            else:
                assert same_bits(before, after), "an input was written, or the memory around it"


def everywhere_but(cache: Tensor, slots: Sequence[int]) -> Tensor:
    """The rows [tokens, kv_heads, head_dim] of a cache that no slot in `slots` names, in order."""
    rows = cache.flatten(0, 1)
    kept = torch.ones(len(rows), dtype=torch.bool)
    kept[[slot for slot in slots if slot >= 0]] = False
    return rows[kept]
