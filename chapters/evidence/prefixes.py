"""Evidence for "Prefix caching": hit rates on a trace, a story in ten blocks, an accounting trap, four designs.

Owns: which numbers the chapter may show of the engine. Knows nothing of how they are shown.
Every hit is one that a cache of the engine found. What is computed here besides are sums and shares of hits.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from labkit.workloads import HASHED_TOKENS, Workload, workload
from reference_impl.memory import (
    LRU,
    POLICIES,
    SLRU,
    Demand,
    EventLog,
    EvictionPolicy,
    KVManager,
    PrefixCache,
    RadixCache,
    Refusal,
    Sizes,
)
from reference_impl.memory.prefix_cache import IndexedCache, chain_hash
from reference_impl.padding import ModelShape
from reference_impl.sched import ContinuousBatching, Limits, Request

# The sizes of Llama 3 8B (Grattafiori et al., 2024, table 3), 16-bit weights and cache.
SHAPE = ModelShape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, dtype_bytes=2)
CACHE_BLOCKS = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
BLOCK = 16
SYSTEM_TOKENS = 1_000
STORY_BLOCKS, STORY_BLOCK = 8, 4


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    return {
        "kv_bytes": SHAPE.kv_bytes_per_token,
        "trace": trace(),
        "story": story(),
        "probe": probe(),
        "tails": tails(),
        "trap": trap(),
        "mixed": mixed(),
        "pressure": pressure(),
        "tenants": tenants(),
        "chat": chat(),
    }


# Prompts go through a cache one at a time; nobody decodes ------------------------------------------------------------


def serve(cache: IndexedCache, prompts: Iterable[tuple[Sequence[int], str]]) -> Iterator[int]:
    """Tokens that `cache` finds of each prompt (its ids, its salt); each is computed and let go before the next."""
    for seq, (tokens, salt) in enumerate(prompts):
        found = cache.acquire(seq, tokens, salt)
        cache.commit(seq, len(tokens))
        cache.release(seq)
        yield found


def trace() -> dict[str, Any]:
    """Hit rate against the size of the cache on the Mooncake conversation trace, one block for each of its hashes."""
    source = workload("mooncake_conversation")
    full = source.prompt_tokens // HASHED_TOKENS
    hashes = source.prefix_hashes
    real = hashes is not None
    prefixes = stand_in(full) if hashes is None else [p[:n] for p, n in zip(hashes, full, strict=True)]
    # What stands behind the last full block belongs to one request. A prompt without it ends at a boundary.
    own = count(1 + max(int(p.max(initial=0)) for p in prefixes))
    prompts = [
        [*p.tolist(), next(own)] if rest else p.tolist()
        for p, rest in zip(prefixes, source.prompt_tokens % HASHED_TOKENS, strict=True)
    ]
    everything = sum(map(len, prompts))
    tokens = int(source.prompt_tokens.sum())
    rows = [_row(prompts, full, size, tokens) for size in (*CACHE_BLOCKS, everything)]
    return {
        "rows": rows[:-1],
        "unlimited": rows[-1],
        "block_tokens": HASHED_TOKENS,
        "prompt_tokens": tokens,
        "distinct": len({block for prefix in prefixes for block in prefix.tolist()}),
        "agree": _agree(prompts[:1_000], full[:1_000]),
        "is_real": real,
        "source": source.description if real else _description(source),
    }


def _row(prompts: list[list[int]], full: np.ndarray[Any, Any], num_blocks: int, tokens: int) -> dict[str, Any]:
    found = list(_replay(PrefixCache(num_blocks, 1), prompts, full))
    return {
        "blocks": num_blocks,
        "tokens_found": sum(found) * HASHED_TOKENS,
        "by_tokens": sum(found) * HASHED_TOKENS / tokens,
        "by_requests": sum(hits > 0 for hits in found) / len(found),
    }


def _replay(cache: IndexedCache, prompts: list[list[int]], full: np.ndarray[Any, Any]) -> Iterator[int]:
    """Blocks found of each prompt; only its full blocks are published."""
    for seq, (prompt, num_full) in enumerate(zip(prompts, full.tolist(), strict=True)):
        if not prompt:
            yield 0
            continue
        yield cache.acquire(seq, prompt)
        cache.commit(seq, num_full)
        cache.release(seq)


def _agree(prompts: list[list[int]], full: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The same requests through the hash cache, through one with a hash of 8 bits, and through the tree."""
    hashed = 0

    def counted(parent: bytes, tokens: bytes, salt: str) -> bytes:
        nonlocal hashed
        hashed += 1
        return chain_hash(parent, tokens, salt)

    def weak(parent: bytes, tokens: bytes, salt: str) -> bytes:
        return chain_hash(parent, tokens, salt)[:1]

    size = 5_000
    caches = {
        "hash": PrefixCache(size, 1, hash_block=counted),
        "weak": PrefixCache(size, 1, hash_block=weak),
        "radix": RadixCache(size, 1),
    }
    found = {name: list(_replay(cache, prompts, full)) for name, cache in caches.items()}
    assert found["hash"] == found["weak"] == found["radix"], "three ways to find must find the same"
    return {"requests": len(prompts), "blocks_found": sum(found["hash"]), "hashed": hashed}


def stand_in(full: np.ndarray[Any, Any], seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Invented prefixes for the lengths of a sample: some requests go on with what a recent one has said."""
    rng = np.random.default_rng(seed)
    new = count(1)
    prefixes: list[np.ndarray[Any, Any]] = []
    for place, length in enumerate(full.tolist()):
        begin = np.zeros(1, np.int64)
        if place and rng.random() < 0.5:
            begin = prefixes[place - 1 - int(min(place - 1, rng.exponential(500)))]
        kept = begin[: min(length, len(begin))]
        prefixes.append(np.concatenate([kept, np.fromiter((next(new) for _ in range(length - len(kept))), np.int64)]))
    return prefixes


def _description(source: Workload) -> str:
    return f"{source.description} Which prompts share a prefix is invented here: lengths alone do not say it."


# A story to be played, and what a stranger can learn -----------------------------------------------------------------


def story() -> dict[str, Any]:
    """Prompts that share beginnings, in a memory so small that tails must go."""
    log = EventLog()
    kv = KVManager(STORY_BLOCKS, STORY_BLOCK, prefix_cache="hash", log=log)
    rules, question, other = range(8), range(20, 23), range(30, 35)
    reused = {"first": _come(kv, 0, [*rules, *question])}
    kv.free(0)
    reused["shares"] = _come(kv, 1, [*rules, *other])
    reused["whole"] = _come(kv, 2, rules)
    kv.free(1)
    kv.free(2)
    twins = [_demand(request, range(50, 56)) for request in (3, 4)]
    reused["twins"] = sum(_admit(kv, twin) for twin in twins)
    for twin in twins:
        kv.commit(twin.request, twin.num_tokens)
    kv.free(3)
    kv.free(4)
    reused["long"] = _come(kv, 5, range(60, 84))
    evicted = kv.num_evicted
    # One of the two free blocks is the one that it finds: it cannot be taken as a new one too.
    again = _demand(6, [*rules, *question])
    refusal = kv.admit(again, again.num_tokens)
    assert isinstance(refusal, Refusal), "the story needs a refusal"
    kv.free(5)
    reused["after"] = _come(kv, 6, [*rules, *question])
    kv.free(6)
    reused["salted"] = _come(kv, 7, [*rules, *question], salt="another tenant's")
    kv.check_invariants()
    return {
        "events": log.events,
        "num_blocks": STORY_BLOCKS,
        "block_size": STORY_BLOCK,
        "reused": reused,
        "evicted": evicted,
        "refused": {"needed": refusal.needed // STORY_BLOCK, "free": refusal.free // STORY_BLOCK},
    }


def probe() -> dict[str, Any]:
    """What a guess finds of another's prompt: the right one and a wrong one, under one salt for all and under two."""
    secret, wrong = [7] * BLOCK, [8] * BLOCK
    template = list(range(100, 100 + 4 * BLOCK))
    answers: dict[str, Any] = {}
    for name, salts in (("shared", ("", "")), ("salted", ("victim", "stranger")), ("own", ("victim", "victim"))):
        row = {}
        for guess, tokens in (("right", secret), ("wrong", wrong)):
            cache = PrefixCache(64, BLOCK)
            list(serve(cache, [([*template, *secret, 1], salts[0])]))
            (row[guess],) = serve(cache, [([*template, *tokens, 2], salts[1])])
        answers[name] = row
    return {**answers, "block_size": BLOCK, "template": len(template)}


def tails() -> dict[str, Any]:
    """A prompt of six blocks becomes idle, two are needed: what its next arrival finds."""
    cache, prompt = PrefixCache(7, BLOCK), [*range(6 * BLOCK), 999]
    list(serve(cache, [(prompt, "")]))
    list(serve(cache, [(range(1_000, 1_000 + 3 * BLOCK), "")]))
    (found,) = serve(cache, [(prompt, "")])
    return {"blocks": 6, "needed": 2, "found_blocks": found // BLOCK}


# The trap: a hit rate where nothing is shared ------------------------------------------------------------------------


def trap(num_blocks: int = 512, requests: int = 200, prompt: int = 256, output: int = 256) -> dict[str, Any]:
    """Prompts of random tokens, memory too small for all who run: what two ways to count a hit rate say."""
    rng = np.random.default_rng(0)
    scheduler = ContinuousBatching(KVManager(num_blocks, BLOCK, prefix_cache="hash"), Limits(2_048, 256))
    live = {}
    for request in range(requests):
        ids = array("i", rng.integers(0, 2**31 - 1, prompt).tolist())
        live[request] = Request(request, prompt, output, token_ids=ids)
        scheduler.add(live[request])
    tokens = {"first": 0, "again": 0}
    hits = dict.fromkeys(tokens, 0)
    seen: set[int] = set()
    while live:
        plan = scheduler.schedule()
        for request in plan.admitted:
            time = "again" if request in seen else "first"
            tokens[time] += live[request].num_tokens
            hits[time] += plan.reused.get(request, 0)
            seen.add(request)
        makes = [r for r, n in plan.scheduled.items() if plan.computed[r] + n == live[r].num_tokens]
        done = [r for r in makes if live[r].num_new + 1 == output]
        scheduler.finish_step(done, dict(zip(makes, rng.integers(0, 2**31 - 1, len(makes)).tolist(), strict=True)))
        for request in done:
            del live[request]
    return {
        "requests": requests,
        "prompt": prompt,
        "output": output,
        "capacity": num_blocks * BLOCK,
        "tokens": tokens,
        "hits": hits,
        "preemptions": scheduler.counters.preemptions,
        "naive": sum(hits.values()) / sum(tokens.values()),
        "honest": hits["first"] / tokens["first"],
    }


# Four designs --------------------------------------------------------------------------------------------------------


def mixed(requests: int = 2_000, capacity: int = 131_072) -> dict[str, Any]:
    """One system prompt, behind it user prompts with the lengths of the Azure conversation trace."""
    source = workload("azure_conv")
    lengths = source.prompt_tokens[:requests].tolist()
    new = count(SYSTEM_TOKENS)
    prompts = [[*range(SYSTEM_TOKENS), *(next(new) for _ in range(length))] for length in lengths]
    classes = {"short": (0, 256), "middle": (256, 2_048), "long": (2_048, 1 << 40)}
    rows = []
    for size in (16, 64, 256, 512, 1_024):
        found = list(serve(RadixCache(capacity // size, size), ((prompt, "") for prompt in prompts)))
        rows.append({"block_size": size, **_shares(found, [len(prompt) for prompt in prompts])})
        if size == BLOCK:
            by_class = {
                name: {"up_to": high, **_shares(*_chosen(found, lengths, low, high))}
                for name, (low, high) in classes.items()
            }
    outputs = int(source.output_tokens[:requests].sum())
    return {
        "requests": requests,
        "system": SYSTEM_TOKENS,
        "capacity": capacity,
        "rows": rows,
        "classes": by_class,
        "outputs": outputs,
        "source": source.description,
    }


def _chosen(found: list[int], lengths: list[int], low: int, high: int) -> tuple[list[int], list[int]]:
    kept = [(hit, SYSTEM_TOKENS + n) for hit, n in zip(found, lengths, strict=True) if low <= n < high]
    return [hit for hit, _ in kept], [n for _, n in kept]


def _shares(found: list[int], lengths: list[int]) -> dict[str, Any]:
    return {
        "count": len(found),
        "by_requests": sum(hit > 0 for hit in found) / len(found),
        "by_tokens": sum(found) / sum(lengths),
        "tokens": sum(lengths),
        "found": sum(found),
    }


def pressure(capacity: int = 16_384, system: int = 2_000, user: int = 150, output: int = 250) -> dict[str, Any]:
    """How many requests of one shape are in memory at once, each with all its tokens, under each strategy."""
    reserve = POLICIES["reserve_max"](Sizes(capacity, 4_096, placement="first"))
    at_once = {"reserve": 0}
    while reserve.admit(at_once["reserve"], system + user, output, output) is None:
        at_once["reserve"] += 1

    def by_blocks(size: int, kind: Any, salted: bool = False) -> int:
        kv = KVManager(capacity // size, size, prefix_cache=kind)
        new = count(system)
        for request in count():
            ids = [*range(system), *(next(new) for _ in range(user + output))]
            salt = str(request) if salted else ""
            demand = Demand(request, len(ids), 1, token_ids=array("i", ids), salt=salt)
            if isinstance(kv.admit(demand, len(ids)), Refusal):
                return request
            kv.commit(request, len(ids))
        raise AssertionError("a memory that never refuses")

    at_once |= {
        "blocks": by_blocks(BLOCK, "none"),
        "cache": by_blocks(BLOCK, "hash"),
        "large": by_blocks(1_024, "hash"),
        "salted": by_blocks(BLOCK, "hash", salted=True),
    }
    return {"capacity": capacity, "system": system, "user": user, "output": output, "at_once": at_once}


def tenants(quiet: int = 6, rounds: int = 20, num_blocks: int = 1_280) -> dict[str, Any]:
    """Six tenants with a system prompt each and one that sends documents: what the six find again."""
    noisy_blocks = 576
    designs: dict[str, tuple[int, Callable[[], EvictionPolicy], int]] = {
        "lru": (num_blocks, LRU, 0),
        "slru": (num_blocks, lambda: SLRU(num_blocks // 2), 0),
        "quota": (num_blocks - noisy_blocks, LRU, noisy_blocks),
        "double": (2 * num_blocks, LRU, 0),
    }
    rows = {}
    for name, (size, eviction, own) in designs.items():
        row = {}
        for load, documents, copies in (("once", 2, 1), ("twice", 2, 2), ("more", 6, 1)):
            cache = PrefixCache(size, BLOCK, eviction=eviction)
            noisy = PrefixCache(own, BLOCK) if own else cache
            row[load] = _quiet_rate(cache, noisy, quiet, rounds, documents, copies)
        rows[name] = row
    alone = PrefixCache(num_blocks, BLOCK)
    rows["alone"] = {"none": _quiet_rate(alone, alone, quiet, rounds, 0, 0)}
    return {"quiet": quiet, "system": 1_024, "document": 8_192, "blocks": num_blocks, "own": noisy_blocks, "rows": rows}


def _quiet_rate(
    cache: IndexedCache, noisy: IndexedCache, quiet: int, rounds: int, documents: int, copies: int
) -> float:
    """Share of the quiet tenants' prompt tokens that is found; in a round each sends two prompts, then come documents.

    A document is sent `copies` times. No tenant's text is another's.
    """
    new, seq = count(1_000_000), count()
    found = asked = 0
    for _ in range(rounds):
        for prompt in range(2 * quiet):
            first = 2_000 * (prompt // 2)
            ids = [*range(first, first + 1_024), *(next(new) for _ in range(128))]
            found += _one(cache, next(seq), ids)
            asked += len(ids)
        for _ in range(documents):
            document = [next(new) for _ in range(8_192)]
            for _ in range(copies):
                _one(noisy, next(seq), document)
    return found / asked


def _one(cache: IndexedCache, seq: int, ids: Sequence[int]) -> int:
    found = cache.acquire(seq, ids)
    cache.commit(seq, len(ids))
    cache.release(seq)
    return found


def chat(conversations: int = 20, turns: int = 8) -> dict[str, Any]:
    """Conversations under one system prompt whose clock stands in one of four places, in two sizes of memory."""
    return {
        "conversations": conversations,
        "turns": turns,
        "system": SYSTEM_TOKENS,
        "rows": {
            place: {size: _chat(place, conversations, turns, size // BLOCK) for size in (65_536, 32_768)}
            for place in ("front", "behind", "message", "never")
        },
    }


def _chat(place: str, conversations: int, turns: int, num_blocks: int) -> dict[str, Any]:
    """A turn is a user's 60 tokens and an answer of 200; the clock has 8, new in each request."""
    cache, new = PrefixCache(num_blocks, BLOCK), count(SYSTEM_TOKENS)
    past: list[list[int]] = [[] for _ in range(conversations)]
    computed: list[int] = []

    def fresh(tokens: int) -> list[int]:
        return [next(new) for _ in range(tokens)]

    for said in past * turns:
        clock = fresh(8) if place != "never" else []
        front, behind, message = (clock if place == where else [] for where in ("front", "behind", "message"))
        said += [*message, *fresh(60)]
        prompt = [*front, *range(SYSTEM_TOKENS), *behind, *said]
        found = _one(cache, len(computed), prompt)
        computed.append(len(prompt) - found)
        # The answer is published behind its prompt: the next turn begins with both.
        answer = fresh(200)
        _one(cache, 1_000_000 + len(computed), [*prompt, *answer])
        said += answer
    return {
        "mean": float(np.mean(computed)),
        "median": float(np.median(computed)),
        "most": max(computed[conversations:]),
        "requests": len(computed),
    }


def _demand(request: int, ids: Iterable[int], salt: str = "") -> Demand:
    tokens = array("i", ids)
    return Demand(request, len(tokens), 1, token_ids=tokens, salt=salt)


def _admit(kv: KVManager, demand: Demand) -> int:
    granted = kv.admit(demand, demand.num_tokens)
    assert not isinstance(granted, Refusal), f"the story stops at request {demand.request}: {granted}"
    return granted.num_reused


def _come(kv: KVManager, request: int, ids: Iterable[int], salt: str = "") -> int:
    demand = _demand(request, ids, salt)
    reused = _admit(kv, demand)
    kv.commit(request, demand.num_tokens)
    return reused
