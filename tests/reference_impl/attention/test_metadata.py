"""The shape of a batch: slots as the block tables say, and rows that cannot be are refused by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.attention.metadata import BatchRow, build_metadata
from reference_impl.memory.block_table import BlockTable

rows = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=5
).map(lambda found: sorted(found, key=lambda row: row[0] > 1))


@given(rows=rows, block_size=st.integers(1, 4), num_pads=st.integers(0, 3), spare=st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_every_query_token_has_the_slot_that_its_table_gives_and_pads_have_none(
    rows: list[tuple[int, int]], block_size: int, num_pads: int, spare: int
) -> None:
    at, tables, expected = 100, [], []
    for queries, context in rows:
        blocks = -(-context // block_size)
        # Downwards, and with blocks to spare behind, as an allocator may give them.
        tables.append([at + number for number in range(blocks + spare)][::-1])
        at += blocks + spare
        expected += BlockTable(block_size, tables[-1][:blocks], context).slot_mapping(context - queries, context)
    batch = [BatchRow(table, *sizes) for table, sizes in zip(tables, rows, strict=True)]
    metadata = build_metadata(batch, block_size, num_pads=num_pads)
    assert metadata.slot_mapping.tolist() == expected + [-1] * num_pads
    assert metadata.num_tokens == len(expected) + num_pads
    assert metadata.num_decodes == sum(queries == 1 for queries, _ in rows)
    assert metadata.context_lens.tolist() == [context for _, context in rows]
    assert metadata.cu_seqlens.diff().tolist() == [queries for queries, _ in rows]
    for row, table in enumerate(tables):
        assert metadata.block_tables[row].tolist() == table + [-1] * (metadata.block_tables.shape[1] - len(table))


def test_the_types_are_those_of_lab_4() -> None:
    metadata = build_metadata([BatchRow([3], 1, 2)], 4)
    assert metadata.slot_mapping.dtype == torch.int64
    assert {tensor.dtype for tensor in (metadata.block_tables, metadata.context_lens, metadata.cu_seqlens)} == {
        torch.int32
    }


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([BatchRow([0], 0, 1)], "row 0 has 0 query tokens in a context of 1"),
        ([BatchRow([0], 3, 2)], "row 0 has 3 query tokens in a context of 2"),
        ([BatchRow([0], 1, 1), BatchRow([1], 1, 5)], "row 1: 1 blocks of 4 do not hold 5 tokens"),
        ([BatchRow([0], 2, 2), BatchRow([1], 1, 2)], "row 0 has 2 query tokens and stands before one that has 1"),
    ],
)
def test_rows_that_cannot_be_are_refused_by_their_place(batch: list[BatchRow], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_metadata(batch, 4)
