"""From names to a scheduler on a memory: what the engine is built from, and what `engine simulate` exchanges by rows.

Owns: the names of allocators, schedulers and evictions, and what each is made of. Knows nothing of time, prices, models
or traces: the rule by which recovery "cheaper" decides is the caller's to bring.

    padded       one rectangle for a batch that runs until its last row is done; always under static batching
    contiguous   the longest possible sequence reserved for each request, in one range
    pow2         the prompt and the next power of two above the true output
    oracle       exactly the true length, which no server knows
    grow         a range as long as the prompt, twice as long when it is full, copied where it must move
    paged        blocks as tokens come (`memory/kv_manager.py`), alone with prefix cache, watermark and swap
    FILE.py:Class   blocks as tokens come, from the allocator of lab 3 in that file

A scheduler may be a FILE.py:Class of lab 6, a prefix cache one of lab 5, each with paged.
All rows get the same number of slots, rounded down to whole blocks. Ranges of contiguous, pow2 and oracle come from a
buddy allocator, as in Kwon et al., SOSP 2023, section 6.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from labkit.contracts import BlockAllocator as BlockContract
from labkit.contracts import OutOfBlocks
from labkit.contracts import PrefixCache as CacheContract
from labkit.contracts import Scheduler as SchedulerContract
from reference_impl.memory.cache_memory import PrefixCacheMemory
from reference_impl.memory.eviction import FIFO, LFU, LRU, SLRU, EvictionPolicy
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import KVMemory
from reference_impl.memory.paged_blocks import PagedBlocks
from reference_impl.memory.policies import POLICIES, Sizes
from reference_impl.memory.policy_memory import PolicyMemory
from reference_impl.plugin import PluginError, is_plugin, load_maker
from reference_impl.sched.contract import ContractScheduler
from reference_impl.sched.orca import orca
from reference_impl.sched.preemption import RecoveryRule
from reference_impl.sched.prefill_first import PrefillFirst
from reference_impl.sched.queues import WaitingQueue
from reference_impl.sched.scheduler import ContinuousBatching
from reference_impl.sched.static_batching import StaticBatching
from reference_impl.sched.surface import EngineScheduler, Limits

if TYPE_CHECKING:
    from reference_impl.memory.events import EventLog

ALLOCATORS = ("padded", "contiguous", "pow2", "oracle", "grow", "paged")
SCHEDULERS = ("continuous", "orca", "prefill-first", "static")
EXPECTED: dict[type, dict[str, type[Exception]]] = {
    BlockContract: {"allocate": OutOfBlocks, "append": OutOfBlocks},
    CacheContract: {"acquire": OutOfBlocks},
    SchedulerContract: {"add": ValueError},
}
"""Contract -> what its methods may raise when they are asked as they are here: with ids and values that are right."""
PREFIX_CACHES = ("none", "hash", "radix")
EVICTIONS = ("lru", "lfu", "fifo", "slru")
RECOVERIES = ("recompute", "swap", "cheaper")
_SWAPPING = ("continuous", "prefill-first")
_POLICY = {"contiguous": "reserve_max", **{name: name for name in ("padded", "pow2", "oracle", "grow")}}


@dataclass(frozen=True)
class Setup:
    """One row: which parts, and how large. `max_length`: prompt and output of a request together, at most.

    host_tokens: room on the host for swapped requests, 0 for as much as on the device. max_tokens_per_step bounds only
    `continuous` and schedulers from a file.
    """

    allocator: str
    scheduler: str
    kv_tokens: int
    max_length: int
    block_size: int = 16
    max_running: int = 256
    max_tokens_per_step: int = 2_048
    watermark: float = 0.0
    prefix_cache: str = "none"
    eviction: str = "lru"
    recovery: str = "recompute"
    host_tokens: int = 0

    def __post_init__(self) -> None:
        """Raises: ValueError, naming the setting, on an unknown name or a size below 1."""
        for what, name, known in (
            ("allocator", self.allocator, ALLOCATORS),
            ("scheduler", self.scheduler, SCHEDULERS),
            ("prefix cache", self.prefix_cache, PREFIX_CACHES),
        ):
            if name not in known and not is_plugin(name):
                raise ValueError(f"no {what} {name!r}; there are {', '.join(known)} and FILE.py:Class")
        for what, name, names in (
            ("eviction", self.eviction, EVICTIONS),
            ("recovery", self.recovery, RECOVERIES),
        ):
            if name not in names:
                raise ValueError(f"no {what} {name!r}; there are {', '.join(names)}")
        for what, size in (
            ("block_size", self.block_size),
            ("max_running", self.max_running),
            ("max_tokens_per_step", self.max_tokens_per_step),
            ("max_length", self.max_length),
        ):
            if size < 1:
                raise ValueError(f"{what} must be at least 1, got {size}")
        if self.kv_tokens < self.block_size:
            raise ValueError(f"kv_tokens must be at least one block of {self.block_size} tokens, got {self.kv_tokens}")

    @property
    def num_blocks(self) -> int:
        """Whole blocks of the memory."""
        return self.kv_tokens // self.block_size

    def effective(self) -> Setup:
        """What really runs: whole blocks, static batches for padded rows, and no extras where only paged has them."""
        swaps = self.allocator == "paged" and self.scheduler in _SWAPPING and self.recovery != "recompute"
        settings: dict[str, Any] = asdict(self) | {"kv_tokens": self.num_blocks * self.block_size}
        if self.allocator != "paged" or is_plugin(self.scheduler):
            settings |= {"watermark": 0.0, "prefix_cache": "none"}
        if not swaps:
            settings |= {"recovery": "recompute", "host_tokens": 0}
        if self.allocator == "padded":
            settings |= {"scheduler": "static"}
        return Setup(**settings)


def build(
    setup: Setup,
    *,
    cheaper: RecoveryRule | None = None,
    log: EventLog | None = None,
    queue: WaitingQueue | None = None,
) -> EngineScheduler:
    """A new scheduler on a new memory.

    cheaper: the rule that recovery "cheaper" means. log: a new one, for memory and scheduler to tell. queue: a new one;
    first come, first served unless given. Raises: ValueError on what does not go together or cannot be loaded.
    """
    setup = setup.effective()
    for name in (setup.allocator, setup.prefix_cache):
        if log is not None and (is_plugin(name) or setup.allocator != "paged"):
            raise ValueError(f"only paged memory keeps a log, {name} keeps none")
    if is_plugin(setup.scheduler):
        if queue is not None:
            raise ValueError("a scheduler from a file has an order of its own: no queue goes with it")
        return _student_scheduler(setup, log)
    memory = _memory(setup, log)
    if setup.scheduler == "orca":
        return orca(memory, setup.max_running, setup.max_length, queue, log=log)
    unbounded = Limits(None, setup.max_running, setup.max_length)
    if setup.scheduler == "static":
        return StaticBatching(memory, unbounded, queue, log=log)
    recovery = _recovery(setup, cheaper)
    if setup.scheduler == "prefill-first":
        return PrefillFirst(memory, unbounded, queue, recovery=recovery, log=log)
    limits = Limits(setup.max_tokens_per_step, setup.max_running, setup.max_length)
    return ContinuousBatching(memory, limits, queue, recovery=recovery, log=log)


def _recovery(setup: Setup, cheaper: RecoveryRule | None) -> Literal["recompute", "swap"] | RecoveryRule:
    if setup.recovery != "cheaper":
        return cast(Literal["recompute", "swap"], setup.recovery)
    if cheaper is None:
        raise ValueError("recovery 'cheaper' needs a rule to decide by: pass cheaper=, or choose recompute or swap")
    return cheaper


def _memory(setup: Setup, log: EventLog | None) -> KVMemory:
    capacity = setup.num_blocks * setup.block_size
    if setup.allocator == "paged":
        return _cache_memory(setup) if is_plugin(setup.prefix_cache) else _manager(setup, log)
    if is_plugin(setup.allocator):
        made_by = load_maker(setup.allocator, BlockContract, EXPECTED[BlockContract])
        return PolicyMemory(PagedBlocks(capacity, setup.block_size, made_by))
    # A range longer than the memory could never be given; then every request would be refused.
    sizes = Sizes(capacity, setup.max_length, setup.block_size)
    return PolicyMemory(POLICIES[_POLICY[setup.allocator]](sizes))


def _manager(setup: Setup, log: EventLog | None) -> KVManager:
    evictions: dict[str, Callable[[], EvictionPolicy]] = {
        "lru": LRU,
        "lfu": LFU,
        "fifo": FIFO,
        # Half of the blocks may be protected by a second use; the source leaves the share open.
        "slru": lambda: SLRU(max(1, setup.num_blocks // 2)),
    }
    host = setup.host_tokens or setup.kv_tokens if setup.recovery != "recompute" else 0
    return KVManager(
        setup.num_blocks,
        setup.block_size,
        prefix_cache=cast(Literal["none", "hash", "radix"], setup.prefix_cache),
        eviction=evictions[setup.eviction],
        watermark=setup.watermark,
        num_host_blocks=host // setup.block_size,
        log=log,
    )


def _cache_memory(setup: Setup) -> PrefixCacheMemory:
    for what, value, plain in (
        ("watermark", setup.watermark, 0.0),
        ("recovery", setup.recovery, "recompute"),
        ("eviction", setup.eviction, "lru"),
    ):
        if value != plain:
            with_it = f"{what} {value!r} does not go with a prefix cache from a file: leave it at {plain!r}"
            raise PluginError(f"{setup.prefix_cache}: {with_it}")
    made_by = load_maker(setup.prefix_cache, CacheContract, EXPECTED[CacheContract])
    return PrefixCacheMemory(made_by(setup.num_blocks, setup.block_size), setup.num_blocks, setup.block_size)


def _student_scheduler(setup: Setup, log: EventLog | None) -> EngineScheduler:
    if setup.allocator != "paged":
        raise ValueError(f"a scheduler from a file counts blocks of its own: it goes with paged, not {setup.allocator}")
    made_by = load_maker(setup.scheduler, SchedulerContract, EXPECTED[SchedulerContract])
    sizes = (setup.num_blocks, setup.block_size, setup.max_tokens_per_step, setup.max_running)
    return ContractScheduler(made_by(*sizes), *sizes, max_request_tokens=setup.max_length, log=log)
