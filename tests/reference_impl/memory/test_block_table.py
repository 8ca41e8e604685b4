"""A block table under any growth and truncation, beside a plain list of slots."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reference_impl.memory import BlockTable


class TableMachine(RuleBasedStateMachine):
    """The model is the slot of every token; block ids come from a counter, out of order."""

    @initialize(block_size=st.integers(1, 5))
    def build(self, block_size: int) -> None:
        self.table = BlockTable(block_size, [], 0)
        self.slots: list[int] = []
        self.next_block = 0

    @rule(num_tokens=st.integers(0, 12))
    def grow(self, num_tokens: int) -> None:
        table, size = self.table, self.table.block_size
        partial = len(self.slots) % size != 0
        assert table.tail_is_partial == partial
        needed = table.blocks_to_grow(num_tokens)
        new = [((self.next_block + place) * 7) % 1009 for place in range(needed)]
        self.next_block += needed
        table.blocks += new
        table.num_tokens += num_tokens
        for place in range(len(self.slots), len(self.slots) + num_tokens):
            offset = place % size
            self.slots.append(self.slots[-1] + 1 if offset else new.pop(0) * size)
        assert not new, "a block was taken that no token needs"

    @rule(share=st.integers(0, 4))
    def truncate(self, share: int) -> None:
        keep = len(self.slots) * share // 4
        before = list(self.table.blocks)
        fallen = self.table.truncate(keep)
        del self.slots[keep:]
        assert self.table.blocks + fallen == before

    @rule(extra=st.integers(1, 3))
    def truncate_to_what_it_never_had(self, extra: int) -> None:
        before = list(self.table.blocks)
        for num_tokens in (len(self.slots) + extra, -extra):
            with pytest.raises(ValueError, match=f"num_tokens must be 0 to {len(self.slots)}, got {num_tokens}"):
                self.table.truncate(num_tokens)
        assert self.table.blocks == before

    @rule(start=st.integers(0, 40), length=st.integers(0, 9))
    def look(self, start: int, length: int) -> None:
        stop = start + length
        if stop > len(self.slots):
            with pytest.raises(ValueError, match=f"a sequence of {len(self.slots)} tokens"):
                self.table.slot_mapping(start, stop)
            return
        assert self.table.slot_mapping(start, stop) == self.slots[start:stop]

    @invariant()
    def agrees_with_the_model(self) -> None:
        if hasattr(self, "table"):
            self.table.check_invariants()
            assert self.table.slot_mapping(0, self.table.num_tokens) == self.slots
            twin = self.table.copy()
            twin.blocks.append(-1)
            assert len(self.table.blocks) == -(-len(self.slots) // self.table.block_size)


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_the_blocks_past_the_end_fall_off_in_logical_order() -> None:
    table = BlockTable(4, [7, 2, 5, 9], 13)
    assert table.truncate(13) == []
    assert table.truncate(8) == [5, 9]
    assert table.truncate(5) == []
    assert (table.blocks, table.num_tokens, table.tail_is_partial) == ([7, 2], 5, True)
    assert table.truncate(0) == [7, 2]
    table.check_invariants()
