"""The public properties of lab 4 on decode: the softmax of one query, and query heads that share a KV head.

Owns: the groups `decode` and `head_groups`. Knows nothing of what lies behind a context or of large numbers: those have
files of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.checks.kernel_work import kernels_do_the_work
from labkit.checks.paged import attend, batch, check_near, guarded_out
from labkit.checks.story import Make, group
from labkit.gpu import where

if TYPE_CHECKING:
    from torch import Tensor


def one_token_gives_its_value(make: Make) -> None:
    """A context of one token gives the value of that token."""
    for head_dim in (32, 64, 128):
        given = batch([1, 1], head_dim=head_dim)
        check_near(given, attend(make, given))


def a_query_of_zeros_gives_the_mean_of_the_values(make: Make) -> None:
    """A query of zeros looks at all tokens alike: the answer is the mean of their values."""
    given = batch([4, 8], queries=lambda query: query * 0)
    check_near(given, attend(make, given))


def tokens_are_weighed_by_the_softmax_of_their_scores(make: Make) -> None:
    """The answer is softmax(query . key * scale) . value, over one block and over several, scattered ones."""
    given = batch([3, 9, 16])
    check_near(given, attend(make, given))


def blocks_may_have_any_size(make: Make) -> None:
    """Blocks of 1, 3, 16 and 40 tokens give the answer of the definition."""
    for block_size in (1, 3, 16, 40):
        given = batch([7, 20], heads=1, kv_heads=1, block_size=block_size)
        check_near(given, attend(make, given))


def an_empty_context_gives_zeros(make: Make) -> None:
    """A context of length 0 gives zeros, and its neighbours are as they would be alone."""
    given = batch([5, 0, 4])
    check_near(given, attend(make, given))


def the_scale_is_the_callers(make: Make) -> None:
    """The scale is the one that is given, 1 / sqrt(head_dim) or another."""
    given = batch([6], scale=0.05)
    check_near(given, attend(make, given))


def the_kernels_compute_the_answer(make: Make) -> None:
    """Rule 9: torch may allocate, copy, cast and work on integers; what is computed on floats, your kernels compute."""
    for given in (batch([5, 0, 4]), batch([9, 16], dtype="float16"), batch([530, 3], kv_heads=1, block_size=16)):
        _, out = guarded_out(given)
        args = (*given.inputs.values(), given.scale, out)
        kernels_do_the_work(make, "paged_attention", given.told, args, out)


def query_head_h_reads_kv_head_h_over_group(make: Make) -> None:
    """Query head h reads KV head h // (heads // kv_heads): the first heads share the first KV head."""

    # All values of a KV head are its number plus one, so the answer names the head that was read.
    def numbered(row: int, numbers: Tensor) -> Tensor:
        return (numbers.new_ones(numbers.shape[1]).cumsum(0))[None, :, None].expand_as(numbers)

    given = batch([3], heads=6, kv_heads=3, values=numbered)
    out = attend(make, given)[0].float().cpu().mean(1)
    for head, read in enumerate(out.tolist()):
        if abs(read - (head // 2 + 1)) > 0.01:
            was = f"KV head {round(read) - 1}" if abs(read - round(read)) < 0.01 and 1 <= read <= 3.01 else "no KV head"
            given.broken(f"query head {head} to read KV head {head // 2}, got the values of {was}")


def groups_may_have_any_size(make: Make) -> None:
    """Groups of 1, 2, 3 and 5 query heads give the answer of the definition."""
    for heads, kv_heads in ((2, 2), (4, 2), (6, 2), (5, 1)):
        given = batch([6, 3], heads=heads, kv_heads=kv_heads)
        check_near(given, attend(make, given))


def all_query_heads_may_share_one_kv_head(make: Make) -> None:
    """With one KV head (multi-query attention) all query heads read it, and each gives its own answer."""
    given = batch([7], heads=8, kv_heads=1, head_dim=64)
    check_near(given, attend(make, given))


DECODE = group(
    "Attention over blocks, one query head for each KV head",
    one_token_gives_its_value,
    a_query_of_zeros_gives_the_mean_of_the_values,
    tokens_are_weighed_by_the_softmax_of_their_scores,
    blocks_may_have_any_size,
    an_empty_context_gives_zeros,
    the_scale_is_the_callers,
    the_kernels_compute_the_answer,
    needs=("paged_attention",),
    where=where,
)
HEAD_GROUPS = group(
    "Query heads that share a KV head",
    query_head_h_reads_kv_head_h_over_group,
    groups_may_have_any_size,
    all_query_heads_may_share_one_kv_head,
    needs=("paged_attention",),
    where=where,
)
