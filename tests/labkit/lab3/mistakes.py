"""Wrong allocators, each one small change to a right one and named after the belief behind it.

Owns: the mistakes with which the public checks are tested. `base` is a right class, made like the model solution of
lab 3: its helpers `_take`, `_give_back`, `_need` and its `_tables` are what the changes go through.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any, ClassVar

from labkit.contracts import OutOfBlocks

Mistake = Callable[[Any], Any]


def one_block_too_many_at_the_boundary(base: Any) -> Any:
    class Mistaken(base):
        def _blocks_for(self, num_tokens: int) -> int:
            return num_tokens // self.block_size + 1

    return Mistaken


def counts_blocks_from_one(base: Any) -> Any:
    class Mistaken(base):
        def block_table(self, seq: int) -> list[int]:
            return [block + 1 for block in super().block_table(seq)]

    return Mistaken


def counts_blocks_as_tokens(base: Any) -> Any:
    class Mistaken(base):
        def num_tokens(self, seq: int) -> int:
            return super().num_tokens(seq) // self.block_size * self.block_size

    return Mistaken


def slots_as_if_memory_were_contiguous(base: Any) -> Any:
    class Mistaken(base):
        def slot_mapping(self, seq: int, start: int, stop: int) -> list[int]:
            first = self.block_table(seq)[0] * self.block_size
            return [first + token - start for token in range(start, stop)]

    return Mistaken


def hands_out_its_own_table(base: Any) -> Any:
    class Mistaken(base):
        def block_table(self, seq: int) -> list[int]:
            return self._tables[self._known_id(seq)]

    return Mistaken


def free_forgets_the_last_block(base: Any) -> Any:
    class Mistaken(base):
        def free(self, seq: int) -> None:
            seq = self._known_id(seq)
            for block in self._tables.pop(seq)[:-1]:
                self._give_back(block)

    return Mistaken


def takes_a_block_without_removing_it(base: Any) -> Any:
    class Mistaken(base):
        def _take(self) -> int:
            block = self._free[-1]
            if len(self._free) > 1:
                self._free.pop()
            self._holders[block] = 1
            return block

    return Mistaken


def frees_a_block_twice(base: Any) -> Any:
    class Mistaken(base):
        def _give_back(self, block: int) -> None:
            super()._give_back(block)
            if self._holders[block] == 0:
                self._free.append(block)

    return Mistaken


def keeps_one_block_in_reserve(base: Any) -> Any:
    class Mistaken(base):
        def _need(self, num_blocks: int) -> None:
            super()._need(num_blocks + 1)

    return Mistaken


def free_of_the_unknown_is_harmless(base: Any) -> Any:
    class Mistaken(base):
        def free(self, seq: int) -> None:
            if seq in self._tables:
                super().free(seq)

    return Mistaken


def one_pool_for_all(base: Any) -> Any:
    class Mistaken(base):
        shared: ClassVar[dict[str, Any]] = {}

        def __init__(self, num_blocks: int, block_size: int) -> None:
            super().__init__(num_blocks, block_size)
            if self.shared and self.shared["size"] == num_blocks:
                self._free, self._tables = self.shared["free"], self.shared["tables"]
            else:
                self.shared.update(size=num_blocks, free=self._free, tables=self._tables)

    return Mistaken


def any_size_will_do(base: Any) -> Any:
    class Mistaken(base):
        @staticmethod
        def _at_least_one(name: str, value: int) -> int:
            return index(value)

    return Mistaken


def unknown_is_a_value_error(base: Any) -> Any:
    class Mistaken(base):
        def _known_id(self, seq: int) -> int:
            if seq not in self._tables:
                raise ValueError(seq)
            return seq

    return Mistaken


def starting_again_replaces(base: Any) -> Any:
    class Mistaken(base):
        def _new_id(self, seq: int) -> int:
            return index(seq)

    return Mistaken


def negative_ranges_are_slices(base: Any) -> Any:
    class Mistaken(base):
        def slot_mapping(self, seq: int, start: int, stop: int) -> list[int]:
            return super().slot_mapping(seq, 0, self.num_tokens(seq))[start:stop]

    return Mistaken


def takes_what_it_can_before_it_fails(base: Any) -> Any:
    class Mistaken(base):
        def _need(self, num_blocks: int) -> None:
            while self._free and num_blocks > len(self._free):
                self._free.pop()
                num_blocks -= 1
            super()._need(num_blocks)

    return Mistaken


def counts_the_copy_too_late(base: Any) -> Any:
    class Mistaken(base):
        def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
            free = len(self._free)
            try:
                return super().append(seq, num_tokens)
            except OutOfBlocks:
                if free:
                    self._take()
                raise

    return Mistaken


def only_int_is_an_integer(base: Any) -> Any:
    class Mistaken(base):
        def allocate(self, seq: int, num_tokens: int) -> None:
            if type(seq) is not int:
                raise TypeError("seq")
            super().allocate(seq, num_tokens)

    return Mistaken


def each_append_starts_a_block(base: Any) -> Any:
    class Mistaken(base):
        def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
            copies = super().append(seq, num_tokens)
            self._tables[seq].append(self._take())
            return copies

    return Mistaken


def append_moves_the_sequence(base: Any) -> Any:
    class Mistaken(base):
        def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
            copies = super().append(seq, num_tokens)
            self._tables[seq].reverse()
            return copies

    return Mistaken


def append_always_copies_a_partial_tail(base: Any) -> Any:
    class Mistaken(base):
        def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
            seq = self._known_id(seq)
            block = self._tables[seq][-1]
            partial = self._lengths[seq] % self.block_size != 0
            return super().append(seq, num_tokens) or ([(block, block)] if partial else [])

    return Mistaken


def append_adds_one_token(base: Any) -> Any:
    class Mistaken(base):
        def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
            return super().append(seq, 1)

    return Mistaken


def every_sequence_grows_into_block_zero(base: Any) -> Any:
    class Mistaken(base):
        def slot_mapping(self, seq: int, start: int, stop: int) -> list[int]:
            slots = super().slot_mapping(seq, start, stop)
            return [slot % self.block_size if token + start >= 4 else slot for token, slot in enumerate(slots)]

    return Mistaken


def fork_copies_the_blocks(base: Any) -> Any:
    class Mistaken(base):
        def fork(self, parent: int, child: int) -> None:
            self._known_id(parent)
            self.allocate(child, self._lengths[parent])

    return Mistaken


def fork_does_not_count_holders(base: Any) -> Any:
    class Mistaken(base):
        def fork(self, parent: int, child: int) -> None:
            super().fork(parent, child)
            for block in self._tables[child]:
                self._holders[block] -= 1

    return Mistaken


def fork_uses_the_same_list(base: Any) -> Any:
    class Mistaken(base):
        def fork(self, parent: int, child: int) -> None:
            super().fork(parent, child)
            self._tables[child] = self._tables[parent]

    return Mistaken


def fork_shares_full_blocks_only(base: Any) -> Any:
    class Mistaken(base):
        def fork(self, parent: int, child: int) -> None:
            super().fork(parent, child)
            if self._lengths[parent] % self.block_size:
                self._give_back(self._tables[child].pop())

    return Mistaken


def never_copies(base: Any) -> Any:
    class Mistaken(base):
        def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
            before = list(self._tables.get(seq, []))
            copies = super().append(seq, num_tokens)
            for src, dst in copies:
                self._tables[seq][len(before) - 1] = src
                self._holders[src] += 1
                self._give_back(dst)
            return []

    return Mistaken


def copies_the_whole_sequence(base: Any) -> Any:
    class Mistaken(base):
        def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
            copies = super().append(seq, num_tokens)
            if copies:
                table = self._tables[seq]
                for place, block in enumerate(table):
                    if self._holders[block] > 1 and self._free:
                        table[place] = self._take()
                        self._give_back(block)
                        copies.append((block, table[place]))
            return copies

    return Mistaken


def a_fork_is_a_fork_for_ever(base: Any) -> Any:
    class Mistaken(base):
        def _give_back(self, block: int) -> None:
            if self._holders[block] > 2 or self._holders[block] == 1:
                super()._give_back(block)

    return Mistaken


def copies_full_tails(base: Any) -> Any:
    class Mistaken(base):
        def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
            seq = self._known_id(seq)
            tail = self._tables[seq][-1]
            full = self._lengths[seq] % self.block_size == 0 and self._holders[tail] > 1
            copies = super().append(seq, num_tokens)
            return [(tail, self._tables[seq][-1])] if full else copies

    return Mistaken


def pops_the_head_of_a_list(base: Any) -> Any:
    class Mistaken(base):
        def _take(self) -> int:
            block = self._free.pop(0)
            self._holders[block] = 1
            return block

    return Mistaken


def counts_holders_by_looking_at_every_table(base: Any) -> Any:
    class Mistaken(base):
        def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
            sum(self._tables[seq][-1] in table for table in self._tables.values())
            return super().append(seq, num_tokens)

    return Mistaken


def append_rebuilds_the_table(base: Any) -> Any:
    class Mistaken(base):
        def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
            copies = super().append(seq, num_tokens)
            self._tables[seq] = [block for block in self._tables[seq] if block >= 0]
            return copies

    return Mistaken


def looks_from_the_first_token_always(base: Any) -> Any:
    class Mistaken(base):
        def slot_mapping(self, seq: int, start: int, stop: int) -> list[int]:
            super().slot_mapping(seq, start, stop)
            return super().slot_mapping(seq, 0, stop - start)

    return Mistaken


MISTAKES: dict[Mistake, tuple[str, str]] = {
    one_block_too_many_at_the_boundary: ("tables", "table_has_just_enough_blocks"),
    counts_blocks_from_one: ("tables", "table_names_distinct_blocks_of_the_pool"),
    counts_blocks_as_tokens: ("tables", "tokens_are_counted"),
    slots_as_if_memory_were_contiguous: ("tables", "slots_follow_the_table"),
    looks_from_the_first_token_always: ("tables", "slots_of_a_part"),
    every_sequence_grows_into_block_zero: ("growth", "appended_tokens_get_fresh_slots"),
    hands_out_its_own_table: ("tables", "table_is_the_callers_own"),
    free_forgets_the_last_block: ("conservation", "free_and_held_add_up"),
    takes_a_block_without_removing_it: ("conservation", "every_block_can_be_used"),
    fork_does_not_count_holders: ("sharing", "held_blocks_are_not_handed_out"),
    frees_a_block_twice: ("conservation", "no_block_has_two_owners"),
    keeps_one_block_in_reserve: ("conservation", "freed_blocks_are_used_again"),
    free_of_the_unknown_is_harmless: ("conservation", "second_free_frees_nothing"),
    one_pool_for_all: ("conservation", "pools_share_nothing"),
    any_size_will_do: ("refusals", "sizes_below_one_are_refused"),
    unknown_is_a_value_error: ("refusals", "unknown_sequences_are_key_errors"),
    starting_again_replaces: ("refusals", "existing_ids_are_value_errors"),
    negative_ranges_are_slices: ("refusals", "slot_ranges_are_checked"),
    takes_what_it_can_before_it_fails: ("refusals", "failed_allocate_changes_nothing"),
    counts_the_copy_too_late: ("refusals", "failed_copy_changes_nothing"),
    only_int_is_an_integer: ("refusals", "numpy_integers_are_integers"),
    each_append_starts_a_block: ("growth", "append_fills_the_tail_first"),
    append_moves_the_sequence: ("growth", "append_keeps_what_is_there"),
    append_adds_one_token: ("growth", "append_of_many_tokens"),
    append_always_copies_a_partial_tail: ("growth", "append_alone_copies_nothing"),
    fork_copies_the_blocks: ("sharing", "fork_takes_no_block"),
    fork_uses_the_same_list: ("sharing", "fork_and_parent_grow_apart"),
    fork_shares_full_blocks_only: ("sharing", "fork_shares_every_block"),
    never_copies: ("copy_on_write", "first_writer_copies_the_tail"),
    copies_the_whole_sequence: ("copy_on_write", "copy_keeps_the_head_shared"),
    a_fork_is_a_fork_for_ever: ("copy_on_write", "last_holder_writes_in_place"),
    copies_full_tails: ("copy_on_write", "full_tail_is_never_copied"),
    pops_the_head_of_a_list: ("cost", "cost_does_not_depend_on_the_pool"),
    counts_holders_by_looking_at_every_table: ("cost", "cost_does_not_depend_on_other_sequences"),
    append_rebuilds_the_table: ("cost", "cost_of_append_does_not_depend_on_length"),
}
"""Mistake -> the group and the property that speak of it."""
