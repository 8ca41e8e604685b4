"""The steps on the way through lab 4: warm-ups, versions and counted work. None of them is graded.

Owns: the groups of the checks that stand between the parts of the notebook. A version is a function with the
signature of `paged_attention` and a name of its own, so its properties are some of those of `paged_attention`.
"""

from __future__ import annotations

from functools import wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from labkit.checks import lab4_decode, lab4_numbers, lab4_shapes
from labkit.checks.story import Broken, Group, Make, NotWritten, Property, error_of, group, unwritten
from labkit.gpu import where

if TYPE_CHECKING:
    from torch import Tensor

    State = tuple[Tensor, Tensor, Tensor]


def _on(name: str, prop: Property) -> Property:
    """The property, tried on the function `name` instead of paged_attention."""

    @wraps(prop)
    def renamed(make: Make) -> None:
        prop(lambda: SimpleNamespace(paged_attention=getattr(make(), name)))

    return renamed


def _version(title: str, name: str, *properties: Property) -> Group:
    return group(title, *(_on(name, prop) for prop in properties), needs=(name,), where=where)


def _ask(make: Make, function: str, told: str, *args: Any) -> Any:
    """What the function returns; NotWritten if it is a stub, Broken if it raises."""
    try:
        return getattr(make(), function)(*args)
    except NotImplementedError as stub:
        raise NotWritten(unwritten(stub, function)) from None
    except Exception as raised:
        raise Broken(f"{told}: expected {function} to return, got {error_of(raised)}.") from None


class Pieces:
    """`partial` and `merge` on drawn scores and values, cut in pieces."""

    def __init__(self, make: Make, tokens: int, spread: float = 1.0) -> None:
        import torch

        draw = torch.Generator().manual_seed(tokens)
        self.make = make
        self.scores = torch.randn(tokens, generator=draw) * spread
        self.values = torch.randn(tokens, 4, generator=draw)

    def partial(self, start: int, stop: int) -> State:
        told = f"With tokens {start} to {stop - 1} of {len(self.scores)}" if stop > start else "With no token"
        state = _ask(self.make, "partial", told, self.scores[start:stop], self.values[start:stop])
        return self._state("partial", told, state)

    def merge(self, told: str, one: State, other: State) -> State:
        return self._state("merge", told, _ask(self.make, "merge", told, one, other))

    def expect(self, told: str, state: State, start: int, stop: int) -> None:
        """Broken unless the state is that of tokens start to stop - 1, whatever maximum it is told under."""
        import torch

        top, total, found = state
        if stop == start:
            nothing = float(total) == 0 and not bool(found.any()) and float(top) == float("-inf")
            if not nothing:
                raise Broken(f"{told}: expected nothing, (-inf, 0, zeros), got {_shown(state)}.")
            return
        share = torch.softmax(self.scores[start:stop].double(), 0)
        want = share @ self.values[start:stop].double()
        error = float((found.double() / total.double() - want).norm() / want.norm())
        if not error <= 1e-5:
            raise Broken(
                f"{told}: expected found / total to be the softmax times the values, {_numbers(want)}, "
                f"got {_numbers(found / total)}."
            )
        largest = float(self.scores[start:stop].max())
        if abs(float(top) - largest) > 1e-6 * max(1.0, abs(largest)):
            raise Broken(f"{told}: expected top to be the largest score, {largest:.6g}, got {float(top):.6g}.")

    def _state(self, function: str, told: str, state: Any) -> State:
        import torch

        fits = isinstance(state, tuple) and len(state) == 3
        if not fits or not all(isinstance(part, torch.Tensor) for part in state) or state[2].shape != (4,):
            raise Broken(f"{told}: expected {function} to return three tensors (top, total, found[head_dim]).")
        return state  # type: ignore[no-any-return]


def _shown(state: State) -> str:
    top, total, found = state
    return f"({float(top):.6g}, {float(total):.6g}, {_numbers(found)})"


def _numbers(row: Tensor) -> str:
    return "[" + ", ".join(f"{number:.4g}" for number in row.tolist()) + "]"


def a_partial_is_attention_over_its_tokens(make: Make) -> None:
    """partial gives the largest score, the sum of weights under it, and the weighted sum of the values."""
    for tokens in (1, 5):
        pieces = Pieces(make, tokens)
        pieces.expect(f"With {tokens} tokens", pieces.partial(0, tokens), 0, tokens)


def two_partials_merge_to_the_whole(make: Make) -> None:
    """The partials of two halves, merged, are the partial of all, wherever the cut is."""
    pieces = Pieces(make, 7, spread=4.0)
    for cut in (1, 3, 6):
        told = f"With 7 tokens cut before token {cut}"
        pieces.expect(told, pieces.merge(told, pieces.partial(0, cut), pieces.partial(cut, 7)), 0, 7)


def block_after_block_is_the_whole(make: Make) -> None:
    """Merging block after block, as a kernel does, ends at the same answer."""
    pieces = Pieces(make, 10, spread=4.0)
    state = pieces.partial(0, 3)
    for start in (3, 6, 9):
        stop = min(start + 3, 10)
        told = f"With blocks of 3 tokens, behind token {stop - 1}"
        state = pieces.merge(told, state, pieces.partial(start, stop))
        pieces.expect(told, state, 0, stop)


def nothing_merged_changes_nothing(make: Make) -> None:
    """A partial of no token, (-inf, 0, zeros), changes nothing on either side, and two of them are nothing, not nan."""
    pieces = Pieces(make, 4)
    nothing = pieces.partial(0, 0)
    pieces.expect("With no token", nothing, 0, 0)
    whole = pieces.partial(0, 4)
    pieces.expect("With 4 tokens and nothing behind them", pieces.merge("4 and 0", whole, nothing), 0, 4)
    pieces.expect("With nothing and 4 tokens behind it", pieces.merge("0 and 4", nothing, whole), 0, 4)
    pieces.expect("With nothing twice", pieces.merge("0 and 0", nothing, nothing), 0, 0)


def scores_of_any_size_merge(make: Make) -> None:
    """Scores of thousands, of either sign, are merged without an overflow."""
    pieces = Pieces(make, 8, spread=5000.0)
    told = "With 8 tokens and scores of thousands"
    pieces.expect(told, pieces.merge(told, pieces.partial(0, 4), pieces.partial(4, 8)), 0, 8)


def _expect_work(make: Make, version: str, lengths: list[int], want: tuple[int, int, int]) -> None:
    told = f"With contexts of {lengths}, 8 heads over 2, 64 numbers of 2 bytes, parts of 256 tokens"
    got = _ask(make, "counted_work", told, version, lengths, 8, 2, 64, 2, 256)
    if not isinstance(got, tuple) or len(got) != 3:
        raise Broken(f"{told}: expected three numbers (programs, bytes, longest walk), got {got!r}.")
    for name, number, due in zip(("programs", "bytes", "longest walk"), got, want, strict=True):
        if number != due:
            raise Broken(f'{told}: expected "{version}" to have {name} {due}, got {number!r}.')


def one_head_reads_the_cache_once_for_each_query_head(make: Make) -> None:
    """one_head: a program for each sequence and query head, and each reads all keys and values of its KV head."""
    _expect_work(make, "one_head", [100, 1], (16, 8 * 101 * 64 * 2 * 2, 100))


def grouped_reads_the_cache_once(make: Make) -> None:
    """grouped: a program for each sequence and KV head, so that each key and value is read once."""
    _expect_work(make, "grouped", [100, 1], (4, 2 * 101 * 64 * 2 * 2, 100))


def split_bounds_the_longest_walk(make: Make) -> None:
    """split: as many bytes in more programs, none of which walks more than one part."""
    _expect_work(make, "split", [1000, 100], (10, 2 * 1100 * 64 * 2 * 2, 256))
    _expect_work(make, "split", [256, 257], (6, 2 * 513 * 64 * 2 * 2, 256))
    _expect_work(make, "split", [100, 20], (4, 2 * 120 * 64 * 2 * 2, 100))


def a_context_of_no_token_has_no_work(make: Make) -> None:
    """A context of 0 reads nothing; its programs are not counted."""
    for version in ("one_head", "grouped", "split"):
        _expect_work(make, version, [0, 0], (0, 0, 0))


LADDER: dict[str, Group] = {
    "warm_up_walk": _version(
        "Version 1: the page walk in torch",
        "page_walk",
        lab4_decode.one_token_gives_its_value,
        lab4_decode.tokens_are_weighed_by_the_softmax_of_their_scores,
        lab4_decode.query_head_h_reads_kv_head_h_over_group,
        lab4_shapes.lengths_around_a_block_boundary,
        lab4_decode.an_empty_context_gives_zeros,
    ),
    "warm_up_merge": group(
        "Version 2: the softmax in pieces",
        a_partial_is_attention_over_its_tokens,
        two_partials_merge_to_the_whole,
        block_after_block_is_the_whole,
        nothing_merged_changes_nothing,
        scores_of_any_size_merge,
        needs=("partial", "merge"),
    ),
    "version_one_head": _version(
        "Version 3: a program for each sequence and query head",
        "one_head",
        lab4_decode.one_token_gives_its_value,
        lab4_decode.tokens_are_weighed_by_the_softmax_of_their_scores,
        lab4_decode.query_head_h_reads_kv_head_h_over_group,
        lab4_shapes.lengths_around_a_block_boundary,
        lab4_numbers.a_late_maximum_rescales_what_came_before,
    ),
    "version_grouped": _version(
        "Version 4: a program for each sequence and KV head",
        "grouped",
        lab4_decode.query_head_h_reads_kv_head_h_over_group,
        lab4_decode.groups_may_have_any_size,
        lab4_shapes.lengths_around_a_block_boundary,
        lab4_shapes.slots_behind_the_context_do_not_matter,
        lab4_numbers.float32_keeps_its_precision,
    ),
    "counted_work": group(
        "Work, counted",
        one_head_reads_the_cache_once_for_each_query_head,
        grouped_reads_the_cache_once,
        split_bounds_the_longest_walk,
        a_context_of_no_token_has_no_work,
        needs=("counted_work",),
    ),
    "version_split": _version(
        "Version 5: long contexts in parts",
        "split",
        lab4_decode.groups_may_have_any_size,
        lab4_shapes.lengths_around_a_block_boundary,
        lab4_numbers.lengths_far_apart_are_right_together,
        lab4_numbers.the_largest_score_may_stand_anywhere,
        lab4_numbers.each_part_counts_by_its_weight,
    ),
}
