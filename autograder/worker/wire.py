"""Frames and values between judge and worker: length-prefixed JSON, never pickle.

Owns: which values may cross and how large they may be. Both sides use it, but only the judge relies on it: whatever
the worker sends is parsed here into plain values of this process or refused with `WireError`, so no student object,
and no `__eq__` of one, ever reaches a comparison.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

FRAME_BYTES_MAX = 8 << 20
REPLY_BYTES_MAX = 1 << 20
"""What the judge takes: plain values weigh some thirty times as much in its memory as on the wire. A lab whose calls
carry tensors raises both through its limits: text of base64 weighs little more than itself."""
DEPTH_MAX = 16
ITEMS_MAX = 2 << 20
INT_BITS_MAX = 64
HEADER = struct.Struct("!I")


class WireError(Exception):
    """A frame or value that breaks the rules of the wire."""


class Opaque:
    """A student's value that may not cross; only the name of its type did, as the student gave it."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name


class NumpyInteger(int):
    """Sent by the judge to be decoded as `numpy.int64` in the worker: the integers that real callers pass."""


def encode(value: Any, depth: int = 0) -> Any:
    """`value` as JSON data. Tuples, bytes and dicts are tagged; anything else that is not plain becomes opaque."""
    if depth > DEPTH_MAX:
        raise WireError(f"a value nested deeper than {DEPTH_MAX}")
    # Bytes are one item, and as many as a frame takes.
    if isinstance(value, (list, tuple, dict, str)) and len(value) > ITEMS_MAX:
        raise WireError(f"a value with more than {ITEMS_MAX} items")
    if value is None or isinstance(value, (bool, float)):
        return value if value is None or type(value) in (bool, float) else float(value)
    if isinstance(value, NumpyInteger):
        return {"numpy": int(value)}
    if isinstance(value, int):
        return _encode_int(int(value))
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [encode(item, depth + 1) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item, depth + 1) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": base64.b64encode(value).decode("ascii")}
    if hasattr(type(value), "__index__"):
        return _encode_int(int(value.__index__()))
    return {"opaque": type(value).__name__[:80]}


def _encode_int(value: int) -> int:
    if value.bit_length() > INT_BITS_MAX:
        raise WireError(f"an integer of more than {INT_BITS_MAX} bits")
    return value


def decode(data: Any) -> Any:
    """The plain value of `encode`'s data; NumpyInteger stays an int here (the worker makes it numpy's)."""
    return _Decoder().value(data, 0)


class _Decoder:
    """Counts the items of one frame, so that a small frame cannot claim a large structure."""

    def __init__(self) -> None:
        self._items = 0

    def value(self, data: Any, depth: int) -> Any:
        self._items += 1
        if depth > DEPTH_MAX or self._items > ITEMS_MAX:
            raise WireError("a value too deep or too large")
        if data is None or isinstance(data, (bool, float, str)):
            return data
        if isinstance(data, int):
            return _encode_int(data)
        if isinstance(data, list):
            return [self.value(item, depth + 1) for item in data]
        if isinstance(data, dict) and len(data) == 1:
            ((tag, body),) = data.items()
            return self._tagged(tag, body, depth)
        raise WireError("a value without a known form")

    def _tagged(self, tag: str, body: Any, depth: int) -> Any:
        if tag == "tuple" and isinstance(body, list):
            return tuple(self.value(item, depth + 1) for item in body)
        if tag == "dict" and isinstance(body, list):
            return dict(self._pair(pair, depth) for pair in body)
        if tag == "bytes" and isinstance(body, str):
            try:
                return base64.b64decode(body, validate=True)
            except ValueError as error:
                raise WireError("bytes that are not base64") from error
        if tag == "numpy" and isinstance(body, int):
            return NumpyInteger(_encode_int(body))
        if tag == "opaque" and isinstance(body, str):
            return Opaque(body[:80])
        raise WireError("a value with an unknown tag")

    def _pair(self, pair: Any, depth: int) -> tuple[str | int, Any]:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise WireError("a dict entry that is not a pair")
        key = self.value(pair[0], depth + 1)
        if not isinstance(key, (str, int)):
            raise WireError("a dict key that is neither str nor int")
        return key, self.value(pair[1], depth + 1)


def pack(message: dict[str, Any], cap_bytes: int = FRAME_BYTES_MAX) -> bytes:
    """One frame: a four-byte length, then the JSON text. WireError if it is over the cap."""
    # As text, not as escapes: a source full of accents would triple. Python strings may hold lone surrogates.
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(body) > cap_bytes:
        raise WireError(f"a frame of {len(body)} bytes; at most {cap_bytes} may cross")
    return HEADER.pack(len(body)) + body


def frame_length(header: bytes, cap_bytes: int = FRAME_BYTES_MAX) -> int:
    """The length that a header announces. WireError if it is over the cap."""
    length = int(HEADER.unpack(header)[0])
    if length > cap_bytes:
        raise WireError(f"a frame of {length} bytes announced; at most {cap_bytes} may cross")
    return length


def unpack(body: bytes) -> dict[str, Any]:
    """The message of a frame's body. WireError unless it is one JSON object of reasonable depth."""
    try:
        message = json.loads(body.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise WireError("a frame that is not JSON") from error
    if not isinstance(message, dict):
        raise WireError("a frame that is not an object")
    return message
