"""A plan is read as a claim by a stranger: what does not hold is refused, and nothing else can come of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.gpu import plan
from autograder.gpu.plan import Copy, Fill, Launch, Number, PlanRefused, Pointer, Set, View, parse

INPUTS_BYTES = (256, 1024)


def kernel(**changes: Any) -> dict[str, Any]:
    facts = {"cubin": b"\x7fELF rest", "name": "decode", "shared": 49_152, "warps": 4, "scratch_bytes": 0}
    return {**facts, "scratch_align": 1, **changes}


def claimed(**changes: Any) -> dict[str, Any]:
    """A plan as the recorder writes it, with a step of every kind."""
    arguments = [["pointer", 0, 16], ["i32", -7], ["u64", (1 << 64) - 1], ["fp32", 0.5], ["i1", 1]]
    whole = {
        "kernels": [kernel()],
        "buffers": [["input", 1], ["scratch", 64], ["input", 0], ["scratch", 8]],
        "steps": [
            ["fill", [1, "float32", [4, 4], [4, 1], 0], 0.0],
            ["copy", [1, "float32", [4, 2], [4, 1], 2], [0, "float16", [2], [1], 5]],
            ["set", 3, b"12345678"],
            ["launch", 0, [132, 2, 1], arguments],
        ],
        "problems": [["computes", "aten::softmax"]],
    }
    return {**whole, **changes}


def test_what_the_recorder_writes_is_read_step_by_step() -> None:
    found = parse(claimed(), INPUTS_BYTES)
    assert found.inputs == (1, None, 0, None)
    assert found.sizes_bytes == (1024, 64, 256, 8)
    assert found.steps == (
        Fill(View(1, "float32", (4, 4), (4, 1), 0), 0.0),
        Copy(View(1, "float32", (4, 2), (4, 1), 2), View(0, "float16", (2,), (1,), 5)),
        Set(3, b"12345678"),
        Launch(
            0,
            (132, 2, 1),
            (Pointer(0, 16), Number("i32", -7), Number("u64", (1 << 64) - 1), Number("fp32", 0.5), Number("i1", 1)),
        ),
    )
    assert found.problems == (("computes", "aten::softmax"),)


LAUNCH = claimed()["steps"][3]
VIEW = [1, "float32", [4, 4], [4, 1], 0]
REFUSED: dict[str, dict[str, Any]] = {
    "a kernel that is no ELF file": {"kernels": [kernel(cubin=b"MZ")]},
    "a kernel as text": {"kernels": [kernel(cubin="\x7fELF")]},
    "a kernel above the cap": {"kernels": [kernel(cubin=b"\x7fELF" + bytes(plan.CUBIN_BYTES_MAX))]},
    "a name with an end in it": {"kernels": [kernel(name="a\0b")]},
    "more shared memory than there is": {"kernels": [kernel(shared=plan.SHARED_BYTES_MAX + 1)]},
    "more than 32 warps": {"kernels": [kernel(warps=33)]},
    "no warp": {"kernels": [kernel(warps=0)]},
    "warps as a truth value": {"kernels": [kernel(warps=True)]},
    "a kernel with a part more": {"kernels": [{**kernel(), "extra": 1}]},
    "too many kernels": {"kernels": [kernel()] * (plan.KERNELS_MAX + 1)},
    "an input that is not there": {"buffers": [["input", 2], ["scratch", 64], ["input", 0], ["scratch", 8]]},
    "one input twice": {"buffers": [["input", 1], ["scratch", 64], ["input", 1], ["scratch", 8]]},
    "a negative input": {"buffers": [["input", -1], ["scratch", 64], ["input", 0], ["scratch", 8]]},
    "scratch above the cap": {"buffers": [["scratch", plan.SCRATCH_BYTES_MAX], ["scratch", 8]]},
    "a buffer of another kind": {"buffers": [["input", 1], ["host", 64], ["input", 0], ["scratch", 8]]},
    "a kernel that is not there": {"steps": [["launch", 1, *LAUNCH[2:]]]},
    "an empty grid": {"steps": [["launch", 0, [0, 1, 1], []]]},
    "a grid of two": {"steps": [["launch", 0, [1, 1], []]]},
    "a grid too deep": {"steps": [["launch", 0, [1, 65_536, 1], []]]},
    "a pointer behind its buffer": {"steps": [["launch", 0, [1, 1, 1], [["pointer", 1, 65]]]]},
    "a pointer before its buffer": {"steps": [["launch", 0, [1, 1, 1], [["pointer", 1, -1]]]]},
    "a pointer into no buffer": {"steps": [["launch", 0, [1, 1, 1], [["pointer", 4, 0]]]]},
    "a number too large for its type": {"steps": [["launch", 0, [1, 1, 1], [["i32", 1 << 32]]]]},
    "a number of no type": {"steps": [["launch", 0, [1, 1, 1], [["i33", 1]]]]},
    "a float that is an integer": {"steps": [["launch", 0, [1, 1, 1], [["fp32", 1]]]]},
    "a view that reaches too far": {"steps": [["fill", [1, "float32", [4, 4], [4, 1], 1], 0]]},
    "a view with a negative stride": {"steps": [["fill", [1, "float32", [4], [-1], 3], 0]]},
    "a view of no type": {"steps": [["fill", [1, "complex64", [4], [1], 0], 0]]},
    "a view whose strides are missing": {"steps": [["fill", [1, "float32", [4, 4], [4], 0], 0]]},
    "a fill with a list": {"steps": [["fill", VIEW, [0]]]},
    "a copy between unlike shapes": {"steps": [["copy", VIEW, [0, "float32", [3], [1], 0]]]},
    "contents too long": {"steps": [["set", 3, b"123456789"]]},
    "contents as text": {"steps": [["set", 3, "12345678"]]},
    "a step of no kind": {"steps": [["free", 1]]},
    "an empty step": {"steps": [[]]},
    "too many steps": {"steps": [["set", 3, b"12345678"]] * (plan.STEPS_MAX + 1)},
    "a problem of no kind": {"problems": [["sleeps", ""]]},
    "a problem alone": {"problems": ["computes"]},
    "a part that is missing": {"steps": None},
}  # fmt: skip


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_a_plan_is_refused_with(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanRefused) as refused:
        parse(claimed(**changes), INPUTS_BYTES)
    assert not any(character.isdigit() and character not in "48" for character in refused.value.reason.split("than")[0])


def test_what_the_host_computed_has_a_cap_over_all_steps() -> None:
    half = plan.SET_BYTES_MAX // 2
    data = claimed(buffers=[["scratch", half]], steps=[["set", 0, bytes(half)]] * 2, problems=[])
    assert len(parse(data, ()).steps) == 2
    data["steps"].append(["set", 0, bytes(half)])
    with pytest.raises(PlanRefused, match="numbers that the host computed"):
        parse(data, ())


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=3), st.binary(max_size=3)
) | st.sampled_from([[], {}, [[]], [0], "launch", "pointer", "float64", 1 << 40, -1])


@settings(max_examples=1000)
@given(st.data())
def test_whatever_stands_in_a_plan_it_is_read_or_refused(data: st.DataObject) -> None:
    hostile = copy.deepcopy(claimed())
    for _ in range(data.draw(st.integers(1, 3))):
        way = data.draw(st.sampled_from(list(places(hostile))))
        inner = hostile
        for key in way[:-1]:
            inner = inner[key]
        # A list of its own: one that is drawn twice would come to hold itself.
        inner[way[-1]] = copy.deepcopy(data.draw(HOSTILE))
    try:
        found = parse(hostile, INPUTS_BYTES)
    except PlanRefused:
        return
    for step in found.steps:
        for view in (step.target, step.source) if isinstance(step, Copy) else ():
            last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
            assert 0 in view.shape or (last + 1) * plan.DTYPE_BYTES[view.dtype] <= found.sizes_bytes[view.buffer]
