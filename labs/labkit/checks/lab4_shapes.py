"""The public properties of lab 4 on what is not there and on where things lie: tails, tables, strides, order.

Owns: the groups `ragged_tails` and `layout`. What must not matter is given two different contents, and the two answers
must have the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.checks.paged import GUARD_HEADS, NAN, Batch, attend, batch, call, check_near, same_bits
from labkit.checks.story import Make, group
from labkit.gpu import where

if TYPE_CHECKING:
    from torch import Tensor


def lengths_around_a_block_boundary(make: Make) -> None:
    """Contexts of 1, b - 1, b, b + 1 and 2b tokens, with blocks of b, give the answer of the definition."""
    for block_size in (4, 5):
        given = batch(
            [1, block_size - 1, block_size, block_size + 1, 2 * block_size], heads=1, kv_heads=1, block_size=block_size
        )
        check_near(given, attend(make, given))


def slots_behind_the_context_do_not_matter(make: Make) -> None:
    """Slots behind a context, and free blocks, may hold nan or 1e30: the answer has the same bits."""
    # Block 0 is what a masked table entry often becomes; here it holds poison too.
    given, other = (batch([3, 6, 0], poison=poison, block_zero_is_free=True) for poison in (NAN, 1e30))
    out = attend(make, given)
    check_near(given, out)
    _expect_same(given, out, attend(make, other), "whatever stands in slots without a token")


def table_entries_behind_the_context_are_no_addresses(make: Make) -> None:
    """Table entries behind a context hold -1 or anything: they are never used as an address."""
    # The blocks before the first and behind the last one are nobody's and hold nan.
    for unused in (-1, -2, 6):
        given = batch([9, 2, 0], unused=unused)
        check_near(given, attend(make, given))


def a_table_may_be_wider_than_any_context(make: Make) -> None:
    """A table of many entries is no reason to read more than the context."""
    given = batch([2, 5])
    wide = given.block_tables.new_full((2, 40), -1)
    wide[:, : given.block_tables.shape[1]] = given.block_tables
    given.block_tables = wide
    check_near(given, attend(make, given))


def the_order_of_blocks_in_memory_does_not_matter(make: Make) -> None:
    """The same tokens in other physical blocks give the same bits."""
    given, other = (batch([7, 10], order=order) for order in (0, 1))
    out = attend(make, given)
    check_near(given, out)
    _expect_same(given, out, attend(make, other), "wherever its blocks lie")


def caches_go_by_their_strides(make: Make) -> None:
    """Each cache goes by its own strides, with a contiguous last dimension: here with its heads outermost."""
    for names in (("key_cache", "value_cache"), ("value_cache",)):
        given = batch([6, 3])
        for name in names:
            heads_first = getattr(given, name).permute(2, 0, 1, 3).contiguous()
            setattr(given, name, heads_first.permute(1, 2, 0, 3))
        given.told += f", {' and '.join(names)} with the heads outermost"
        check_near(given, attend(make, given))


def rows_of_query_out_and_tables_may_lie_apart(make: Make) -> None:
    """query, out and block_tables may be parts of larger tensors; what lies beside out is not written."""
    import torch

    given = batch([5, 9], heads=4)
    queries, heads, head_dim = given.query.shape
    wide = torch.full((queries, heads + 2, head_dim + 8), NAN, dtype=given.query.dtype, device=given.query.device)
    wide[:, 1 : heads + 1, :head_dim] = given.query
    given.query = wide[:, 1 : heads + 1, :head_dim]
    tables = given.block_tables.new_full((queries, given.block_tables.shape[1] + 3), -1)
    tables[:, 3:] = given.block_tables
    given.block_tables = tables[:, 3:]
    given.told += ", query, out and tables as parts of larger tensors"
    around = wide.new_full((queries + GUARD_HEADS, *wide.shape[1:]), 7.0)
    out = around[:queries, :heads, :head_dim]
    out.fill_(NAN)
    attend(make, given, out)
    check_near(given, out)
    beside = (around[:queries, heads:], around[:queries, :, head_dim:], around[queries:])
    if any(bool((part != 7).any()) for part in beside):
        given.broken("nothing to be written beside out, but something was")


def inputs_stay_as_they_are(make: Make) -> None:
    """query, caches, tables and lengths are only read."""
    given = batch([4, 6])
    before = {name: tensor.clone() for name, tensor in given.inputs.items()}
    attend(make, given)
    for name, tensor in given.inputs.items():
        if not bool(same_bits(before[name], tensor).all()):
            given.broken(f"{name} to stay as it was, it was changed")


def an_empty_batch_does_nothing(make: Make) -> None:
    """No sequence at all is no error."""
    given = batch([])
    call(make, "paged_attention", given.told, *given.inputs.values(), given.scale, given.query.clone())


def _expect_same(given: Batch, out: Tensor, again: Tensor, when: str) -> None:
    differs = ~same_bits(out, again)
    if bool(differs.any()):
        row, head, at = (int(place) for place in differs.nonzero()[0])
        got = f"{float(out[row, head, at]):.9g} and {float(again[row, head, at]):.9g}"
        given.broken(f"the same bits {when}, got {got} for number {at} of sequence {row}, query head {head}")


RAGGED_TAILS = group(
    "Tails, and what lies behind them",
    lengths_around_a_block_boundary,
    slots_behind_the_context_do_not_matter,
    table_entries_behind_the_context_are_no_addresses,
    a_table_may_be_wider_than_any_context,
    needs=("paged_attention",),
    where=where,
)
LAYOUT = group(
    "Where things lie",
    the_order_of_blocks_in_memory_does_not_matter,
    caches_go_by_their_strides,
    rows_of_query_out_and_tables_may_lie_apart,
    inputs_stay_as_they_are,
    an_empty_batch_does_nothing,
    needs=("paged_attention",),
    where=where,
)
