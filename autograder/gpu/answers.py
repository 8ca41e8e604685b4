"""What the process that plays plans answers: a call played on given data, a case timed, and whether the GPU is well.

Owns: the requests by name, and the words for a fault of the GPU. Everything here is trusted code; the kernels are not,
so after a fault nothing in this process is believed any more.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from autograder.gpu import clock, textbook
from autograder.gpu.driver import DriverError
from autograder.gpu.plan import Plan, PlanRefused, parse
from autograder.gpu.process import decoded
from autograder.gpu.replay import POISONS, Guarded, Loaded, Player, Scratch
from autograder.gpu.timed import TimedCase
from autograder.worker import prints
from reference_impl.bench import device_clock

CANARY_SIZE = 1024
SPARE_BYTES = 10 << 30
"""Memory that must be free for a GPU to be well: a timed case takes 6 GB, its check and the ceiling the rest."""
UNSTEADY = 10.0
"""Two plays with different poison may differ by rounding (atomics); by so many times the rounding of a type they read
what nobody wrote."""


class Answers:
    """Answers one request after another. `answer` says also whether this process must end."""

    def answer(self, request: dict[str, Any], blobs: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes], bool]:
        """The reply, its blobs, and whether the GPU faulted."""
        try:
            reply, found = getattr(self, "_" + request.pop("op"))(blobs, **request)
            torch.cuda.synchronize()
        except PlanRefused as refused:
            return {"refused": refused.reason}, [], False
        except DriverError as error:
            # A kernel that the driver refuses to load or launch leaves the GPU as it was; a fault does not.
            return {"fault": str(error)}, [], True
        except torch.OutOfMemoryError:
            return {"fault": "out of memory"}, [], True
        except RuntimeError as error:
            if "CUDA" not in str(error):
                raise
            return {"fault": str(error).splitlines()[0]}, [], True
        return reply, found, False

    def _play(self, blobs: Sequence[bytes], plan: Any, dtypes: Sequence[str]) -> tuple[dict[str, Any], list[bytes]]:
        """Play a plan on the storages in `blobs`; they come back as the call left them.

        It is played twice, on equal data and differently poisoned scratch: `steady` says whether it made no difference,
        `intact` whether the memory beside every buffer was left alone.
        """
        loaded = Loaded(parse(decoded(plan), [len(blob) for blob in blobs]))
        try:
            results: list[list[Tensor]] = []
            intact = True
            for poison in POISONS:
                storages = [_memory(blob) for blob in blobs]
                scratch = Scratch(loaded.plan)
                scratch.poison(poison)
                Player(loaded, [memory.inner for memory in storages], scratch).play()
                torch.cuda.synchronize()
                intact &= scratch.intact() and all(memory.intact() for memory in storages)
                results.append([memory.inner for memory in storages])
            steady = all(_alike(one, other, dtype) for one, other, dtype in zip(*results, dtypes, strict=True))
            return {"steady": steady, "intact": intact}, [_bytes(memory) for memory in results[0]]
        finally:
            loaded.unload()

    def _time(
        self, blobs: Sequence[bytes], plan: Any, case: dict[str, Any], tables_seed: int
    ) -> tuple[dict[str, Any], list[bytes]]:
        """The timing of a plan (clock.py), on data that is drawn here and now."""
        timed = TimedCase.from_json(case)
        # The order of the contract's arguments: query, caches, tables, lengths, out.
        tables, lengths = timed.tables(tables_seed)
        query = len(timed.lengths) * timed.heads * timed.head_dim * timed.torch_dtype.itemsize
        cache = timed.num_blocks * timed.block_size * timed.kv_heads * timed.head_dim
        cache *= timed.torch_dtype.itemsize
        sizes = [query, cache, cache, 4 * tables.numel(), 4 * lengths.numel(), query]
        read: Plan = parse(decoded(plan), sizes)
        timing = clock.measure(read, timed, tables_seed, secrets.randbits(40), self._read_bytes_per_s)
        torch.cuda.empty_cache()
        return asdict(timing), []

    def _textbook(self, blobs: Sequence[bytes], case: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """The time of a textbook's kernel on a case, or None (textbook.py)."""
        found_us = textbook.textbook_us(TimedCase.from_json(case))
        torch.cuda.empty_cache()
        return {"us": found_us}, []

    @cached_property
    def _read_bytes_per_s(self) -> float:
        return device_clock.read_bytes_per_s()

    def _canary(self, blobs: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        """Whether the GPU computes, and has memory to spare. The first request that touches the GPU."""
        torch.cuda.synchronize()
        prints.make_room()
        generator = torch.Generator("cuda").manual_seed(1)
        a = torch.randint(-8, 8, (CANARY_SIZE, CANARY_SIZE), generator=generator, device="cuda")
        product = (a.double() @ a.double().T).trace().item()
        free, total = torch.cuda.mem_get_info()
        well = product == (a.double() ** 2).sum().item() and free >= SPARE_BYTES
        facts = {"well": well, "free_bytes": free, "total_bytes": total, "gpu": torch.cuda.get_device_name()}
        return facts, []


def _memory(blob: bytes) -> Guarded:
    memory = Guarded(len(blob))
    if blob:
        memory.inner.copy_(torch.frombuffer(bytearray(blob), dtype=torch.uint8))
    return memory


def _bytes(memory: Tensor) -> bytes:
    return bytes(memory.cpu().numpy().tobytes())


def _alike(one: Tensor, other: Tensor, dtype: str) -> bool:
    """Whether two results are equal but for rounding."""
    if torch.equal(one, other):
        return True
    kind = getattr(torch, dtype)
    if not kind.is_floating_point:
        return False
    first, second = one.view(kind).double(), other.view(kind).double()
    if not torch.equal(torch.isfinite(first), torch.isfinite(second)):
        return False
    # Guards and whatever else is equal in both would hide a difference beside them.
    unlike = torch.isfinite(first) & (first != second)
    bound = UNSTEADY * torch.finfo(kind).eps
    return bool((first[unlike] - second[unlike]).norm() <= bound * first[unlike].norm())
