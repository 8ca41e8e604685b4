"""Does somebody's part keep its contract? Tried before an engine is built on it, and told in words if it does not.

Owns: one short trial for each part that can be exchanged. Knows nothing of engines or marks: what holds here is public,
small and quick (under a second or two each), and no proof. A block allocator has the public checks of lab 3; the other
parts are asked what our own is asked, and answer alike or are told where they do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

from labkit.checks import groups, run
from labkit.contracts import AttentionBackend, BlockAllocator, OutOfBlocks, PrefixCache, Scheduler
from reference_impl.attention.reference import paged_decode, store_kv
from reference_impl.memory import prefix_cache as ours
from reference_impl.memory.block_table import blocks_for
from reference_impl.plugin import PluginError, is_plugin, load_backend, load_class
from reference_impl.sched.contract import ContractScheduler, PlanError
from reference_impl.sched.request import Request

_LAB3 = "lab3_block_allocator"
_BLOCKS = 256
_TOLERANCE = 1e-4
"""Of attention in float32 against float64, relative: an engine's answers, not marks, depend on it."""


def check_plugins(block_allocator: str, prefix_cache: str | None, scheduler: str, attention: str | None) -> None:
    """Try each part that is a file; ours are not tried. Raises: PluginError, naming file, class and what broke."""
    if is_plugin(block_allocator):
        _tried(block_allocator, _try_allocator, load_class(block_allocator, BlockAllocator))
    if prefix_cache is not None and is_plugin(prefix_cache):
        _tried(prefix_cache, _try_cache, load_class(prefix_cache, PrefixCache))
    if is_plugin(scheduler):
        _tried(scheduler, _try_scheduler, load_class(scheduler, Scheduler))
    if attention is not None and is_plugin(attention):
        _tried(attention, _try_attention, load_backend(attention, AttentionBackend))


class _Broken(Exception):  # noqa: N818 - no error of the program: what does not hold
    """What the contract says, and what was seen instead."""


def _tried(place: str, trial: Callable[[Any], None], part: Any) -> None:
    try:
        trial(part)
    except _Broken as broken:
        raise PluginError(f"{place} does not keep its contract: {broken}") from None
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else "no message"
        raise PluginError(f"{place} does not keep its contract: it raised {type(error).__name__}: {text}") from error


def _expect(holds: bool, said: str) -> None:
    if not holds:
        raise _Broken(said)


def _try_allocator(made_by: Any) -> None:
    # What work costs is for marks and not for answers: a slow allocator serves.
    results = [result for name in groups(_LAB3) if name != "cost" for result in run(_LAB3, name, made_by)]
    broken = [result for result in results if not result.passed]
    if broken:
        first, more = broken[0], len(broken) - 1
        others = f" ({more} more properties of lab 3's public checks do not hold)" if more else ""
        raise _Broken(f"{first.sentence} But: {first.counterexample}{others}")


def _try_cache(made_by: Any) -> None:
    """Prompts with common beginnings, in a cache that never has to evict: the reuse is then known exactly."""
    for block_size in (1, 4):
        cache, model = made_by(_BLOCKS, block_size), ours.PrefixCache(_BLOCKS, block_size)
        draw = random.Random(block_size)
        for seq in range(12):
            tokens = [7] * draw.randint(1, 3 * block_size) + [draw.randint(0, 1) for _ in range(draw.randint(0, 6))]
            salt = draw.choice(["", "", "other"])
            told = f"acquire({seq}, {tokens}, salt={salt!r}) with blocks of {block_size}"
            reused, expected = cache.acquire(seq, list(tokens), salt), model.acquire(seq, list(tokens), salt)
            _expect(reused == expected, f"{told} reuses {expected} tokens, not {reused}")
            table = cache.block_table(seq)
            blocks = blocks_for(len(tokens), block_size)
            well = len(set(table)) == blocks == len(table) and all(0 <= block < _BLOCKS for block in table)
            _expect(well, f"after {told} the table has {blocks} different blocks of 0 to {_BLOCKS - 1}, not {table}")
            computed, over = draw.randint(0, len(tokens)), draw.random() < 0.5
            for part in (cache, model):
                part.commit(seq, computed)
                if over:
                    part.release(seq)
            free, right = cache.num_free_blocks, model.num_free_blocks
            _expect(free == right, f"after {told} num_free_blocks is {right}, not {free}")
        _expect_out_of_blocks(cache, block_size)


def _expect_out_of_blocks(cache: Any, block_size: int) -> None:
    free = cache.num_free_blocks
    try:
        cache.acquire(1_000, list(range(100, 100 + (_BLOCKS + 1) * block_size)), "")
    except OutOfBlocks:
        _expect(
            cache.num_free_blocks == free, "an acquire that raises OutOfBlocks changes nothing; num_free_blocks did"
        )
        return
    raise _Broken("an acquire of more blocks than there are raises OutOfBlocks")


def _try_scheduler(made_by: Any) -> None:
    """Forty requests through little memory, and again with few at once; `ContractScheduler` checks every plan."""
    for sizes in ((24, 4, 16, 6), (256, 4, 16, 3)):
        _drive(made_by, sizes)


def _drive(made_by: Any, sizes: tuple[int, int, int, int]) -> None:
    scheduler = ContractScheduler(made_by(*sizes), *sizes)
    draw = random.Random(6)
    left = {request: (draw.randint(1, 30), draw.randint(1, 20)) for request in range(40)}
    made: dict[int, int] = {}
    try:
        for request, (prompt, new) in left.items():
            scheduler.add(Request(request, prompt, new))
        for _ in range(5_000):
            plan = scheduler.schedule()
            if not plan.scheduled:
                break
            finished = set()
            for request, tokens in plan.scheduled.items():
                prompt, new = left[request]
                if plan.computed[request] + tokens == prompt + made.get(request, 0):
                    made[request] = made.get(request, 0) + 1
                    if made[request] == new:
                        finished.add(request)
            scheduler.finish_step(finished)
    except PlanError as error:
        raise _Broken(str(error)) from None
    late = [request for request, (_, new) in left.items() if made.get(request, 0) < new]
    _expect(not late, f"every request ends; {len(late)} of 40 did not, the first is request {late[:1]}")


def _try_attention(backend: Any) -> None:
    """Ragged contexts round block borders, groups of heads, shuffled blocks, garbage wherever nothing may be read."""
    make = torch.Generator().manual_seed(4)
    block_size, kv_heads, heads, dim = 4, 2, 4, 32
    contexts = [0, 1, 3, 4, 5, 11]
    key_cache, value_cache = (torch.full((16, block_size, kv_heads, dim), float("nan")) for _ in range(2))
    blocks = torch.randperm(16, generator=make).tolist()
    tables = torch.full((len(contexts), 4), -1, dtype=torch.int32)
    for row, context in enumerate(contexts):
        own = [blocks.pop() for _ in range(blocks_for(context, block_size))]
        tables[row, : len(own)] = torch.tensor(own, dtype=torch.int32)
        slots = torch.tensor([own[t // block_size] * block_size + t % block_size for t in range(context)] + [-1])
        key, value = (torch.randn(context + 1, kv_heads, dim, generator=make) for _ in range(2))
        right_keys, right_values = key_cache.clone(), value_cache.clone()
        store_kv(key, value, right_keys, right_values, slots)
        backend.store_kv(key, value, key_cache, value_cache, slots)
        same = all(
            torch.equal(got.nan_to_num(7e7), right.nan_to_num(7e7))
            for got, right in ((key_cache, right_keys), (value_cache, right_values))
        )
        _expect(same, f"store_kv of {context} tokens and one with slot -1 writes their slots and nothing else")
    query, out = torch.randn(len(contexts), heads, dim, generator=make), torch.full((len(contexts), heads, dim), 7e7)
    lens = torch.tensor(contexts, dtype=torch.int32)
    backend.paged_attention(query, key_cache, value_cache, tables, lens, dim**-0.5, out)
    right = paged_decode(query, key_cache, value_cache, tables, lens, dim**-0.5)
    for row, context in enumerate(contexts):
        # Nothing at all is exactly that.
        error = float((out[row] - right[row]).norm() / (right[row].norm() or 1.0))
        said = f"paged_attention of a context of {context} tokens in blocks of {block_size}"
        # Written so that a NaN is not let through.
        _expect(error <= _TOLERANCE, f"{said} is off by {error:.1e} of its length; {_TOLERANCE:.0e} may be")
