"""The public properties of lab 4 on writing: each token's key and value into its slot, and nothing anywhere else.

Owns: the group `store_kv`. What is written is copied, so everything here is compared bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from labkit.checks.kernel_work import kernels_do_the_work
from labkit.checks.paged import GUARD_BLOCKS, call
from labkit.checks.story import Broken, Make, counted, group
from labkit.gpu import device, where

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Writes:
    """Keys and values with their slots, and the memory that they go into, whose first and last blocks are nobody's."""

    told: str
    key: Tensor
    value: Tensor
    memory: Tensor
    slot_mapping: Tensor

    @property
    def caches(self) -> tuple[Tensor, Tensor]:
        inner = self.memory[GUARD_BLOCKS:-GUARD_BLOCKS]
        return inner[:, 0], inner[:, 1]

    def broken(self, expected: str) -> NoReturn:
        raise Broken(f"With {self.told}: expected {expected}.")


def writes(
    slots: list[int],
    *,
    num_blocks: int = 3,
    block_size: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    dtype: str = "float32",
    heads_first: bool = False,
) -> Writes:
    """One token for each of `slots`; the memory holds -7 before. Keys and values are parts of one wider matrix.

    heads_first: values lie head by head instead.
    """
    import torch

    number_type = getattr(torch, dtype)
    draw = torch.Generator().manual_seed(len(slots))
    rows = torch.randn(len(slots), 2 * kv_heads + 1, head_dim, generator=draw).to(device(), number_type)
    key, value = rows[:, 1 : kv_heads + 1], rows[:, kv_heads + 1 :]
    if heads_first:
        value = value.transpose(0, 1).contiguous().transpose(0, 1)
    shape = (num_blocks + 2 * GUARD_BLOCKS, 2, block_size, kv_heads, head_dim)
    return Writes(
        f"{counted(len(slots), 'token')} for slots {slots} of {counted(num_blocks, 'block')} of {block_size}, "
        f"{counted(kv_heads, 'KV head')} of {head_dim} numbers, {dtype}",
        key,
        value,
        torch.full(shape, -7.0, dtype=number_type, device=device()),
        torch.tensor(slots, dtype=torch.int64, device=device()),
    )


def _args(given: Writes) -> tuple[Tensor, ...]:
    return (given.key, given.value, *given.caches, given.slot_mapping)


def store(make: Make, given: Writes) -> None:
    """Call `store_kv`, then Broken unless the memory is what it must be, the nearest slot named."""
    want = given.memory.clone()
    inner = want[GUARD_BLOCKS:-GUARD_BLOCKS]
    block_size = want.shape[2]
    slots = given.slot_mapping.tolist()
    for token, slot in enumerate(slots):
        if slot >= 0:
            inner[slot // block_size, 0, slot % block_size] = given.key[token]
            inner[slot // block_size, 1, slot % block_size] = given.value[token]
    call(make, "store_kv", given.told, *_args(given))
    wrong = (given.memory != want).flatten(3).any(3)
    if bool(wrong.any()):
        block, side, offset = (int(place) for place in wrong.nonzero()[0])
        slot = (block - GUARD_BLOCKS) * block_size + offset
        what = ("key", "value")[side]
        if slot in slots:
            given.broken(
                f"slot {slot} of the {what} cache to hold the {what} of token {slots.index(slot)}, it does not"
            )
        given.broken(f"slot {slot} of the {what} cache to stay as it was, but something was written there")


def every_token_lands_in_its_slot(make: Make) -> None:
    """The key and the value of token t stand in slot slot_mapping[t] afterwards, block slot // block_size."""
    store(make, writes([5, 0, 11, 6]))


def all_heads_and_numbers_are_written(make: Make) -> None:
    """All KV heads are written, with all their numbers, for heads of 32, 64 and 128 numbers."""
    for kv_heads, head_dim in ((1, 128), (3, 64), (8, 32)):
        store(make, writes([2, 9], kv_heads=kv_heads, head_dim=head_dim))


def a_slot_of_minus_one_writes_nowhere(make: Make) -> None:
    """Slot -1 is skipped: its token is written nowhere, and the tokens after it are."""
    store(make, writes([-1, 4, -1, 8, -1]))


def blocks_of_any_size_take_tokens(make: Make) -> None:
    """Blocks of 1, 3 and 16 tokens are filled alike."""
    for block_size in (1, 3, 16):
        store(make, writes([2, 0], block_size=block_size))


def any_number_of_tokens_is_written(make: Make) -> None:
    """One token, and more tokens than one program takes; no token changes nothing."""
    for count in (0, 1, 70):
        store(make, writes(list(range(count))[::-1], num_blocks=18, kv_heads=1))


def keys_and_values_go_by_their_strides(make: Make) -> None:
    """Keys may be a part of a wider matrix, and values lie in another way than keys."""
    given = writes([6, 1, 8], heads_first=True)
    given.told += ", values head by head"
    store(make, given)


def bits_are_copied(make: Make) -> None:
    """float16 numbers arrive with the bits that they had."""
    store(make, writes([3, 7, 1], dtype="float16"))


def what_is_written_is_not_changed(make: Make) -> None:
    """Keys, values and slots are only read."""
    given = writes([5, -1, 2])
    before = [tensor.clone() for tensor in (given.key, given.value, given.slot_mapping)]
    store(make, given)
    for name, was, now in zip(
        ("key", "value", "slot_mapping"), before, (given.key, given.value, given.slot_mapping), strict=True
    ):
        if not bool((was == now).all()):
            given.broken(f"{name} to stay as it was, it was changed")


def the_kernels_write_the_slots(make: Make) -> None:
    """Rule 9: torch may allocate, copy, cast and work on integers; keys and values are written by your kernels."""
    for given in (writes([5, -1, 0, 6]), writes([3, 7], dtype="float16")):
        kernels_do_the_work(make, "store_kv", given.told, _args(given), given.memory)


STORE_KV = group(
    "Keys and values into their slots",
    every_token_lands_in_its_slot,
    all_heads_and_numbers_are_written,
    a_slot_of_minus_one_writes_nowhere,
    blocks_of_any_size_take_tokens,
    any_number_of_tokens_is_written,
    keys_and_values_go_by_their_strides,
    bits_are_copied,
    what_is_written_is_not_changed,
    the_kernels_write_the_slots,
    needs=("store_kv",),
    where=where,
)
