"""Small functions of every kind that a submission may be made of, honest and otherwise, for the tests of recording.

Owns: the functions; each takes source and target, one-dimensional and of one type, and should leave twice the source in
the target. Knows nothing of how they are recorded. Needs a GPU.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import threading
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit
def _double(source, target, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, 2 * tl.load(source + at, mask=at < count), mask=at < count)


@triton.jit
def _move(source, target, count, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, factor * tl.load(source + at, mask=at < count), mask=at < count)


@triton.jit
def _at_places(source, target, places, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + at, mask=at < count, other=0)
    tl.store(target + place, 2 * tl.load(source + place, mask=at < count), mask=at < count)


@triton.jit
def _write_far(target, offset):
    tl.store(target + offset, 1.0)


@triton.jit
def _never_ends(target):
    found = tl.load(target)
    while found != 12345.0:
        found = tl.load(target, volatile=True)


@triton.jit
def _says_much(source):
    tl.device_print("the first number is", tl.load(source))


@triton.jit
def _from_address(source, address, count, BLOCK: tl.constexpr):
    target = address.to(tl.pointer_type(tl.float32))
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, 2 * tl.load(source + at, mask=at < count), mask=at < count)


@triton.autotune(configs=[triton.Config({"BLOCK": n}, num_warps=w) for n, w in ((128, 1), (512, 4))], key=["count"])
@triton.jit
def _tuned(source, target, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, 2 * tl.load(source + at, mask=at < count), mask=at < count)


def _grid(count: int) -> tuple[int]:
    return (triton.cdiv(count, BLOCK),)


def one_kernel(source: Tensor, target: Tensor) -> None:
    _double[_grid(source.numel())](source, target, source.numel(), BLOCK=BLOCK)


def two_kernels_and_scratch(source: Tensor, target: Tensor) -> None:
    half = torch.empty_like(source, dtype=torch.float32)
    _move[_grid(source.numel())](source, half, source.numel(), 0.5, BLOCK=BLOCK)
    _move[_grid(source.numel())](half, target, source.numel(), 4.0, BLOCK=BLOCK)


def casts_copies_and_fills(source: Tensor, target: Tensor) -> None:
    wide = source.to(torch.float64)
    room = torch.full((2, source.numel()), 7.0, device=source.device, dtype=torch.float64)
    room[1].copy_(wide)
    _double[_grid(source.numel())](room[1], room[0], source.numel(), BLOCK=BLOCK)
    target.copy_(room[0])


def tuned(source: Tensor, target: Tensor) -> None:
    _tuned[lambda chosen: (triton.cdiv(source.numel(), chosen["BLOCK"]),)](source, target, source.numel())


def places_by_torch(source: Tensor, target: Tensor) -> None:
    places = torch.arange(source.numel(), device=source.device).flip(0) * 1
    _at_places[_grid(source.numel())](source, target, places, source.numel(), BLOCK=BLOCK)


def places_from_the_host(source: Tensor, target: Tensor) -> None:
    places = torch.tensor(list(reversed(range(source.numel()))), device=source.device)
    _at_places[_grid(source.numel())](source, target, places, source.numel(), BLOCK=BLOCK)


_KEPT: dict[int, Tensor] = {}


def kept_workspace(source: Tensor, target: Tensor) -> None:
    room = _KEPT.setdefault(source.numel(), torch.empty(source.numel(), device=source.device))
    _move[_grid(source.numel())](source, room, source.numel(), 1.0, BLOCK=BLOCK)
    _double[_grid(source.numel())](room, target, source.numel(), BLOCK=BLOCK)


def set_by_assignment(source: Tensor, target: Tensor) -> None:
    room = torch.empty(source.numel() + 3, device=source.device)
    room[:] = float("-inf")
    room[source.numel() :] = 0.0
    room[0] = 1.0
    _move[_grid(source.numel())](source, room, source.numel(), 1.0, BLOCK=BLOCK)
    _double[_grid(source.numel())](room, target, source.numel(), BLOCK=BLOCK)


def prints(source: Tensor, target: Tensor) -> None:
    _says_much[(4096,)](source)
    one_kernel(source, target)


HONEST = (
    one_kernel, two_kernels_and_scratch, casts_copies_and_fills, tuned, places_by_torch, places_from_the_host,
    kept_workspace, set_by_assignment, prints,
)  # fmt: skip


def torch_alone(source: Tensor, target: Tensor) -> None:
    torch.mul(source, 2, out=target)


def torch_in_front(source: Tensor, target: Tensor) -> None:
    _move[_grid(source.numel())](source.exp().log() * 2, target, source.numel(), 1.0, BLOCK=BLOCK)


def looks_at_floats(source: Tensor, target: Tensor) -> None:
    factor = 2.0 if source.sum().item() > 1e9 else 2
    _move[_grid(source.numel())](source, target, source.numel(), float(factor), BLOCK=BLOCK)


def reads_floats(source: Tensor, target: Tensor) -> None:
    source.cpu()
    one_kernel(source, target)


def other_stream(source: Tensor, target: Tensor) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        one_kernel(source, target)
    stream.synchronize()


def other_thread(source: Tensor, target: Tensor) -> None:
    thread = threading.Thread(target=one_kernel, args=(source, target))
    thread.start()
    thread.join()


_GRAPHS: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}


def graph(source: Tensor, target: Tensor) -> None:
    key = (source.data_ptr(), target.data_ptr())
    if key not in _GRAPHS:
        one_kernel(source, target)
        _GRAPHS[key] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(_GRAPHS[key]):
            one_kernel(source, target)
    _GRAPHS[key].replay()


def address_as_a_number(source: Tensor, target: Tensor) -> None:
    _from_address[_grid(source.numel())](source, target.data_ptr(), source.numel(), BLOCK=BLOCK)


UNFIT: dict[Callable[[Tensor, Tensor], None], str] = {
    torch_alone: "torch computed on floating-point numbers",
    torch_in_front: "torch computed on floating-point numbers",
    looks_at_floats: "torch computed on floating-point numbers",
    reads_floats: "floating-point numbers were read by the host",
    other_stream: "launched on another stream",
    other_thread: "launched from another thread",
    graph: "a CUDA graph was replayed",
    address_as_a_number: "the address of a tensor as a number",
}
"""Function -> what the student reads."""


_ANSWERS: dict[int, Tensor] = {}


def remembers_the_answer(source: Tensor, target: Tensor) -> None:
    if source.numel() not in _ANSWERS:
        one_kernel(source, target)
        _ANSWERS[source.numel()] = target.clone()
    target.copy_(_ANSWERS[source.numel()])


def works_once(source: Tensor, target: Tensor) -> None:
    if source.data_ptr() not in _ANSWERS:
        one_kernel(source, target)
        _ANSWERS[source.data_ptr()] = source


def reads_what_nobody_wrote(source: Tensor, target: Tensor) -> None:
    room = torch.empty(1, device=source.device)
    one_kernel(source, target)
    _move[(1,)](room, target, 1, 1.0, BLOCK=BLOCK)


def writes_beside(source: Tensor, target: Tensor) -> None:
    one_kernel(source, target)
    _write_far[(1,)](target, target.numel())


def never_ends(source: Tensor, target: Tensor) -> None:
    one_kernel(source, target)
    target[0:1].fill_(12345.0)
    _never_ends[(1,)](target)
    one_kernel(source, target)
