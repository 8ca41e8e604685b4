"""Tensors of one call as plain data: the memory they lie in, and how each looks at it.

Owns: taking a call's arguments apart into buffers and views, checking such data, building tensors from it, and carrying
what a call wrote back into the caller's memory. A buffer is one whole storage, guard blocks and all, so that views of
one tensor stay views of one tensor. Both sides use it; the judge relies only on the checks, as what it gets back is
bytes of a length that it knows. Torch is imported on first use: no other lab needs it. Knows nothing of what is called.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

if TYPE_CHECKING or __package__:
    from autograder.worker import wire
else:
    # In the sandbox this file lies beside wire.py, outside any package.
    import wire

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
"""The types that may cross, with the bytes of one element."""
BUFFERS_MAX = 32
ARGUMENTS_MAX = 32
DIMENSIONS_MAX = 8
CALL_BYTES_MAX = 64 << 20
"""Of all buffers of a call together; what the wire takes of it is a matter of the suite's limits."""


def pack(values: Sequence[Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The arguments of a call as (buffers, args).

    A buffer is {"dtype", "numel", "bytes"}, one for each distinct storage in the order of first use, copied to the host
    if it is on a GPU. An arg is {"tensor": [buffer, dtype, shape, strides, offset]}, strides and offset counted in
    elements, or {"value": data} with `wire.encode` of anything else.
    Raises: WireError on types that may not cross, too much of anything, or a storage looked at as two types.
    Cost: one copy of every storage.
    """
    import torch

    places: dict[tuple[int, str], int] = {}
    buffers: list[dict[str, Any]] = []
    args: list[dict[str, Any]] = []
    for value in values:
        if not isinstance(value, torch.Tensor):
            args.append({"value": wire.encode(value)})
            continue
        dtype = str(value.dtype).removeprefix("torch.")
        storage = value.untyped_storage()
        place = places.setdefault(_identity(value), len(buffers))
        if place == len(buffers):
            numel = storage.nbytes() // ITEM_BYTES.get(dtype, 1)
            buffers.append({"dtype": dtype, "numel": numel, "bytes": _bytes_of(value)})
        view = [place, dtype, list(value.shape), list(value.stride()), value.storage_offset()]
        args.append({"tensor": view})
    _check(buffers, args)
    return buffers, args


def unpack(
    buffers: Sequence[dict[str, Any]], args: Sequence[dict[str, Any]], device: str = "cpu"
) -> tuple[list[Any], list[Tensor]]:
    """The inverse of `pack`: the arguments, and the flat tensors [numel] that hold all their memory.

    Raises: WireError, with nothing built, on whatever `pack` would not have made: unknown types, sizes that do not fit,
    views that reach outside their buffer, more than the caps.
    """
    import torch

    _check(buffers, args)
    storages = []
    for buffer in buffers:
        dtype = getattr(torch, buffer["dtype"])
        # frombuffer takes no empty buffer, and wants one that may be written.
        flat = torch.frombuffer(bytearray(buffer["bytes"]), dtype=dtype) if buffer["numel"] else torch.empty(0)
        storages.append(flat.to(device=device, dtype=dtype))
    values: list[Any] = []
    for arg in args:
        if "value" in arg:
            values.append(wire.decode(arg["value"]))
            continue
        place, _, shape, strides, offset = arg["tensor"]
        values.append(torch.as_strided(storages[place], shape, strides, offset))
    return values, storages


def contents(storages: Sequence[Tensor]) -> list[bytes]:
    """The bytes of each flat tensor of `unpack`, as they are now. On a GPU this waits for what is under way."""
    return [_bytes_of(storage) for storage in storages]


def restore(values: Sequence[Any], written: Sequence[Any]) -> None:
    """Copy `written`, one `bytes` for each storage in the order of `pack`, into the storages of the caller's tensors.

    Raises: WireError, with nothing copied, unless there are as many as storages and each has exactly the size of its
    own.
    """
    import torch

    own = {_identity(value): value for value in reversed(values) if isinstance(value, torch.Tensor)}
    tensors = [own[key] for key in dict.fromkeys(_identity(v) for v in values if isinstance(v, torch.Tensor))]
    if len(tensors) != len(written):
        raise wire.WireError(f"{len(written)} buffers came back of {len(tensors)}")
    for tensor, data in zip(tensors, written, strict=True):
        if not isinstance(data, bytes) or len(data) != tensor.untyped_storage().nbytes():
            raise wire.WireError("a buffer came back that is not of the size it had")
    for tensor, data in zip(tensors, written, strict=True):
        if data:
            _whole(tensor).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def _identity(tensor: Tensor) -> tuple[int, str]:
    """The same for two tensors exactly if they lie in one storage."""
    # Storages without memory all have the address 0; those of one type may pass for one, as nothing lies in them.
    storage = tensor.untyped_storage()
    return (storage.data_ptr(), "") if storage.nbytes() else (0, str(tensor.dtype))


def _whole(tensor: Tensor) -> Tensor:
    """The storage of `tensor` as flat bytes, sharing its memory."""
    import torch

    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _bytes_of(tensor: Tensor) -> bytes:
    flat = _whole(tensor).cpu()
    return ctypes.string_at(flat.data_ptr(), flat.numel()) if flat.numel() else b""


def _check(buffers: Any, args: Any) -> None:
    """Raises: WireError unless both are as `pack` makes them. Written for data from a stranger."""
    if not isinstance(buffers, (list, tuple)) or len(buffers) > BUFFERS_MAX:
        raise wire.WireError(f"more than {BUFFERS_MAX} buffers, or no list of them")
    if not isinstance(args, (list, tuple)) or len(args) > ARGUMENTS_MAX:
        raise wire.WireError(f"more than {ARGUMENTS_MAX} arguments, or no list of them")
    for buffer in buffers:
        _check_buffer(buffer)
    if (total := sum(len(buffer["bytes"]) for buffer in buffers)) > CALL_BYTES_MAX:
        raise wire.WireError(f"buffers of {total} bytes; at most {CALL_BYTES_MAX} may cross in a call")
    for arg in args:
        if not isinstance(arg, dict) or set(arg) not in ({"tensor"}, {"value"}):
            raise wire.WireError("an argument that is neither a tensor nor a value")
        if "tensor" in arg:
            _check_view(arg["tensor"], buffers)


def _check_buffer(buffer: Any) -> None:
    if not isinstance(buffer, dict) or set(buffer) != {"dtype", "numel", "bytes"}:
        raise wire.WireError("a buffer without dtype, numel and bytes")
    dtype, numel, data = buffer["dtype"], buffer["numel"], buffer["bytes"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise wire.WireError(f"a buffer of {str(dtype)[:40]}, which may not cross")
    if type(numel) is not int or not isinstance(data, bytes) or len(data) != numel * ITEM_BYTES[dtype]:
        raise wire.WireError("a buffer whose bytes are not those of its elements")


def _check_view(view: Any, buffers: Sequence[Any]) -> None:
    if not isinstance(view, (list, tuple)) or len(view) != 5:
        raise wire.WireError("a tensor without buffer, dtype, shape, strides and offset")
    place, dtype, shape, strides, offset = view
    if type(place) is not int or not 0 <= place < len(buffers) or dtype != buffers[place]["dtype"]:
        raise wire.WireError("a tensor in no buffer, or in one of another type")
    for sizes in (shape, strides):
        if not isinstance(sizes, (list, tuple)) or len(sizes) > DIMENSIONS_MAX or not all(map(_is_count, sizes)):
            raise wire.WireError("a tensor whose shape or strides are no short list of counts")
    if len(shape) != len(strides) or not _is_count(offset) or math.prod(shape) > CALL_BYTES_MAX:
        raise wire.WireError("a tensor whose shape, strides and offset do not go together")
    # Python's integers do not overflow, so the furthest element is the furthest, whatever the strides claim.
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= buffers[place]["numel"]:
        raise wire.WireError("a tensor that reaches outside its buffer")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
