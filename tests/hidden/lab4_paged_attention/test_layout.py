"""Layout: tensors go by their strides, blocks lie anywhere, and nothing but out is written.

Owns: the forms of caches and views, guards, unchanged inputs, and batches of nothing. Knows nothing of numbers.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from autograder.judge import attention_cases as cases
from autograder.judge import attention_view as view
from autograder.judge.attention_cases import Draw, Layout
from autograder.judge.subject import Make

GROUP = "layout"


def test_blocks_may_lie_anywhere(make: Make, seed: int) -> None:
    """The same tokens in other physical blocks give the same answer."""
    draw = Draw(seed)
    content = draw.content(cases.GROUPED, [9, 17, 2, 0])
    for spare in (0, 1, 20):
        call = draw.placed(content, Layout(spare_blocks=spare))
        view.check_call(make(), call, content, "the same tokens in other blocks")


def test_caches_may_be_views_of_one_tensor(make: Make, seed: int) -> None:
    """Key and value cache may be two parts of one tensor, whole or block by block."""
    draw = Draw(seed)
    for kind in (cases.GROUPED, cases.HALF_GROUPED):
        content = draw.content(kind, [1, 6, 19])
        for form in ("one_tensor", "interleaved"):
            view.check_call(make(), draw.placed(content, Layout(caches=form)), content, "caches in one tensor")


def test_caches_go_by_their_strides(make: Make, seed: int) -> None:
    """Heads may lie before tokens, rows may be apart, and each cache may have its own strides."""
    draw = Draw(seed)
    content = draw.content(cases.GROUPED, [1, 6, 19])
    for form in ("heads_first", "padded", "unlike"):
        view.check_call(make(), draw.placed(content, Layout(caches=form)), content, "caches with other strides")


def test_query_out_and_tables_go_by_their_strides(make: Make, seed: int) -> None:
    """Rows of query, out and tables may lie apart, and what lies between those of out stays as it is."""
    draw = Draw(seed)
    for kind in (cases.GROUPED, cases.HALF_ODD):
        content = draw.content(kind, [4, 0, 11, 7])
        call = draw.placed(content, Layout(strided=True))
        unwritten = view.Unwritten(call)
        view.check_call(make(), call, content, "views with gaps")
        unwritten.check()


def test_query_may_be_part_of_a_fused_projection(make: Make, seed: int) -> None:
    """Query may be the first heads of a wider tensor."""
    draw = Draw(seed)
    content = draw.content(cases.GROUPED, [5, 8])
    fused = draw.normal(2, 12, 32)
    fused[:, :8] = content.query
    call = replace(draw.placed(content), query=fused[:, :8])
    view.check_call(make(), call, content, "a query inside a wider tensor")


def test_inputs_stay_as_they_are(make: Make, seed: int) -> None:
    """Query, caches, tables and lengths are only read, free blocks and unused entries included."""
    draw = Draw(seed)
    for kind, form in ((cases.GROUPED, "apart"), (cases.HALF_ODD, "interleaved")):
        content = draw.content(kind, [3, 0, 9])
        layout = Layout(caches=form, pads=(-1, 5), key_poison=5.0, value_poison=float("nan"))
        call = draw.placed(content, layout)
        unwritten = view.Unwritten(call)
        view.check_call(make(), call, content, "inputs that are only read")
        unwritten.check()


def test_every_element_of_out_is_written_and_no_other(make: Make, seed: int) -> None:
    """Whatever stood in out is gone, and the memory round it is as before, for every number of heads."""
    draw = Draw(seed)
    for kind in (cases.PLAIN, cases.PAIRS, cases.SEVENS):
        content = draw.content(kind, [2, 0, 5])
        answers = []
        for fill in (float("nan"), 11.0):
            call = draw.placed(content, Layout(out_fill=fill))
            unwritten = view.Unwritten(call)
            answers.append(call.run(make()))
            unwritten.check()
        view.check(answers[0], content.answer(), "out full of NaN before the call")
        view.check(answers[1], content.answer(), "out full of numbers before the call")


def test_sequences_may_share_blocks(make: Make, seed: int) -> None:
    """Two sequences may name the same physical blocks, as a common prefix is stored once."""
    draw = Draw(seed)
    content = draw.content(cases.GROUPED, [13, 10])
    call = draw.placed(content)
    call.block_tables[1, :2] = call.block_tables[0, :2]
    shared = replace(
        content,
        keys=(content.keys[0], torch.cat((content.keys[0][:8], content.keys[1][8:]))),
        values=(content.values[0], torch.cat((content.values[0][:8], content.values[1][8:]))),
    )
    view.check_call(make(), call, shared, "two sequences with a common prefix")


def test_an_empty_batch_does_nothing(make: Make, seed: int) -> None:
    """A batch of no sequences is no error, and nothing is written; the next batch is answered."""
    draw = Draw(seed)
    subject = make()
    for lengths in ([], [3]):
        content = draw.content(cases.GROUPED, lengths)
        call = draw.placed(content)
        unwritten = view.Unwritten(call)
        view.check_call(subject, call, content, "a batch after one of no sequences")
        unwritten.check()


def test_a_wide_table_costs_nothing_but_its_entries(make: Make, seed: int) -> None:
    """A table may have room for many more blocks than a sequence has."""
    draw = Draw(seed)
    content = draw.content(cases.PLAIN, [3, 6])
    call = draw.placed(content)
    wide = torch.full((2, 64), -1, dtype=torch.int32)
    wide[:, : call.block_tables.shape[1]] = call.block_tables
    view.check_call(make(), replace(call, block_tables=wide), content, "a table with room for many blocks")
