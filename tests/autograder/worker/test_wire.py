"""Plain values cross unchanged; everything else is opaque or refused, on the judge's side too."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograder.worker import wire

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_a_plain_value_crosses_unchanged_with_its_types(value: Any) -> None:
    frame = wire.pack({"value": wire.encode(value)})
    body = frame[wire.HEADER.size :]
    assert wire.frame_length(frame[: wire.HEADER.size]) == len(body)
    back = wire.decode(wire.unpack(body)["value"])
    assert back == value
    assert type(back) is type(value)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5), lambda s: st.lists(s) | st.dictionaries(st.text(max_size=6), s)
    )
)
def test_whatever_json_the_worker_sends_is_decoded_or_refused(data: Any) -> None:
    with contextlib.suppress(wire.WireError):
        wire.decode(json.loads(json.dumps(data)))


def test_an_object_crosses_as_the_name_of_its_type_only() -> None:
    class Sly:
        def __eq__(self, other: object) -> bool:
            return True

    back = wire.decode(wire.encode(Sly()))
    assert isinstance(back, wire.Opaque)
    assert back.type_name == "Sly"
    assert back != 1


def test_subclasses_of_plain_types_cross_as_the_plain_type() -> None:
    class Sly(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert type(wire.decode(wire.encode(Sly(3)))) is int


@pytest.mark.parametrize(
    "data",
    [
        {"tuple": 3},
        {"dict": [[1]]},
        {"dict": [[[1], 2]]},
        {"bytes": "&&"},
        {"numpy": "x"},
        {"unknown": 1},
        {"a": 1, "b": 2},
        2**80,
    ],
)
def test_a_malformed_value_is_refused(data: Any) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(data)


def test_depth_is_capped_both_ways() -> None:
    deep: list[Any] = []
    for _ in range(wire.DEPTH_MAX + 2):
        deep = [deep]
    with pytest.raises(wire.WireError, match="deeper"):
        wire.encode(deep)
    with pytest.raises(wire.WireError):
        wire.decode(deep)


def test_items_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ITEMS_MAX", 10)
    with pytest.raises(wire.WireError):
        wire.decode([0] * 11)


def test_a_frame_that_is_not_one_json_object_is_refused() -> None:
    for body in (b"", b"[1]", b"{", b"[" * 100_000, b'{"x": ' + b"9" * 10_000 + b"}", b"\xff"):
        with pytest.raises(wire.WireError):
            wire.unpack(body)


def test_a_frame_over_the_cap_is_neither_packed_nor_announced() -> None:
    with pytest.raises(wire.WireError):
        wire.pack({"x": "y" * wire.FRAME_BYTES_MAX})
    with pytest.raises(wire.WireError):
        wire.frame_length(wire.HEADER.pack(wire.FRAME_BYTES_MAX + 1))
