"""The prefix cache on the Mooncake conversation trace, against an ordered dictionary that knows nothing of blocks.

How it is counted: every one of the trace's `hash_ids` is one prompt block of 512 tokens, also the last and mostly
partial one of a prompt; requests come one after another; a hit is an id of the leading run of ids still in the cache;
all ids of a request count as used at its end, tails before heads. So each request here is its ids, one block for each,
and one token more, the first generated one, which lies in a block of its own: `num_blocks` + 1 blocks hold
`num_blocks` prompt blocks.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable

import pytest

from labkit.places import traces_folder
from reference_impl.memory import PrefixCache, RadixCache
from reference_impl.memory.prefix_cache import IndexedCache

Requests = list[list[int]]
PUBLISHED = {1_000: 4.5, 5_000: 11.2, 10_000: 21.2, 20_000: 28.8, 50_000: 35.5, None: 36.6}
"""Blocks -> LRU hits in % of prompt blocks, as computed independently of this code when the trace was chosen."""


@pytest.fixture(scope="module")
def requests() -> Requests:
    folder = traces_folder()
    path = folder / "mooncake" / "conversation_trace.jsonl" if folder is not None else None
    if path is None or not path.is_file():
        pytest.skip("the Mooncake conversation trace is not on this machine (P2P_TRACES names the folder)")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["hash_ids"] for line in lines]


def plain_lru(requests: Requests, num_blocks: int) -> int:
    """Hits of an LRU over ids."""
    cached: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for ids in requests:
        hits += next((place for place, block in enumerate(ids) if block not in cached), len(ids))
        for block in reversed(ids):
            cached[block] = None
            cached.move_to_end(block)
        while len(cached) > num_blocks:
            cached.popitem(last=False)
    return hits


def replay(kind: Callable[..., IndexedCache], requests: Requests, num_blocks: int, block_size: int) -> int:
    """Blocks reused, with `block_size` equal tokens to spell an id."""
    cache = kind(num_blocks + 1, block_size)
    reused = 0
    for seq, ids in enumerate(requests):
        tokens = [token for block in ids for token in [block] * block_size]
        reused += cache.acquire(seq, [*tokens, 0])
        cache.commit(seq, len(tokens))
        cache.release(seq)
    cache.check_invariants()
    return reused // block_size


@pytest.mark.parametrize("kind", [PrefixCache, pytest.param(RadixCache, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("num_blocks", "percent"), PUBLISHED.items())
def test_lru_reuses_the_published_share_of_the_prompt_blocks(
    requests: Requests, kind: Callable[..., IndexedCache], num_blocks: int | None, percent: float
) -> None:
    prompt_blocks = sum(map(len, requests))
    room = num_blocks or prompt_blocks
    reused = replay(kind, requests, room, block_size=1)
    assert reused == plain_lru(requests, room)
    assert round(100 * reused / prompt_blocks, 1) == percent


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PrefixCache, RadixCache])
def test_the_whole_trace_with_all_its_tokens_takes_less_than_a_minute(
    requests: Requests, kind: Callable[..., IndexedCache]
) -> None:
    start_s = time.perf_counter()
    reused = replay(kind, requests, 5_000, block_size=512)
    took_s = time.perf_counter() - start_s
    print(f"{kind.__name__}: {len(requests):,} requests, {reused:,} blocks reused, {took_s:.1f} s")
    assert reused == plain_lru(requests, 5_000)
    assert took_s < 60
