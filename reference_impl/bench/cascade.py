"""How fast decode behind a common prefix is on a GPU: the prefix read once, beside plain decode on the same blocks.

Owns: the cases, how one is drawn, the check of both contenders against the oracle, and a case's row of the record.
Knows nothing of how any kernel works.

Both read the same tables, in which the sequences name the prefix's blocks together. Each is held against the floor of
its own bytes: `cascade` the prefix once and what follows it, `plain` the whole context of every sequence. Plain decode
may come below its floor, as the second-level cache holds a short prefix from one sequence to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reference_impl.attention import reference
from reference_impl.attention.cascade_decode import cascade_decode
from reference_impl.attention.cascade_work import CascadeWork
from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.work_list import WorkList
from reference_impl.bench import device_clock
from reference_impl.bench.kernel_cases import ERRORS, REPLICA_BYTES, Replica, four_digits, uniform

CASCADE, PLAIN = "cascade", "plain"


@dataclass(frozen=True)
class CascadeCase:
    """One decode step of sequences that begin alike. own: tokens of each behind the prefix of whole blocks."""

    name: str
    prefix_tokens: int
    own: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int = 16
    dtype: torch.dtype = torch.bfloat16
    held_out: bool = False

    @property
    def token_bytes(self) -> int:
        """Of one token's key and value."""
        return 2 * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def kv_bytes(self) -> dict[str, int]:
        """Bytes of keys and values that each contender must read, the prefix once or once a sequence."""
        own = sum(self.own)
        return {
            CASCADE: (self.prefix_tokens + own) * self.token_bytes,
            PLAIN: (self.prefix_tokens * len(self.own) + own) * self.token_bytes,
        }


@dataclass(frozen=True)
class CascadeBatch:
    """A case drawn: replicas share tables and lengths. block_tables: [batch, max_blocks] int32, -1 where unused."""

    case: CascadeCase
    replicas: list[Replica]
    prefix_table: Tensor
    block_tables: Tensor
    context_lens: Tensor
    scale: float


CASCADE_CASES: tuple[CascadeCase, ...] = (
    CascadeCase("cascade, 64 x (4k shared + 256 own), 32/8, 128", 4096, (256,) * 64, 32, 8, 128),
    CascadeCase("cascade, 256 x (1k shared + 64 own), 16/8, 128", 1024, (64,) * 256, 16, 8, 128),
    # Held out.
    CascadeCase(
        "cascade, 24 x (2000 shared + uniform 1..1500 own), 28/4, 128",
        2000,
        uniform(24, 1, 1500, 7),
        28,
        4,
        128,
        held_out=True,
    ),
    CascadeCase("cascade, 8 x (16k shared + 300 own), 32/8, 128", 16_384, (300,) * 8, 32, 8, 128, held_out=True),
    CascadeCase(
        "cascade, 100 x (768 shared + 90 own), 9/3, 64, block 64", 768, (90,) * 100, 9, 3, 64, 64, held_out=True
    ),
)


def draw_cascade(case: CascadeCase, generator: torch.Generator) -> CascadeBatch:
    """A batch on the generator's device, a fresh one at every call: physical blocks in random order."""
    device, shared = generator.device, case.prefix_tokens // case.block_size
    blocks = [-(-own // case.block_size) for own in case.own]
    num_blocks = shared + sum(blocks)
    shuffled = torch.randperm(num_blocks, generator=generator, device=device).to(torch.int32)
    tables = torch.full((len(blocks), shared + max(blocks)), -1, dtype=torch.int32, device=device)
    tables[:, :shared] = shuffled[:shared]
    start = shared
    for place, count in enumerate(blocks):
        tables[place, shared : shared + count] = shuffled[start : start + count]
        start += count

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=case.dtype)

    def replica() -> Replica:
        query = random(len(blocks), case.heads, case.head_dim)
        key_cache, value_cache = (random(num_blocks, case.block_size, case.kv_heads, case.head_dim) for _ in range(2))
        return Replica(query, key_cache, value_cache, torch.full_like(query, float("nan")))

    copies = max(2, -(-REPLICA_BYTES // case.kv_bytes[CASCADE]))
    contexts = torch.tensor([case.prefix_tokens + own for own in case.own], dtype=torch.int32, device=device)
    prefix_table = shuffled[:shared].clone()
    return CascadeBatch(case, [replica() for _ in range(copies)], prefix_table, tables, contexts, case.head_dim**-0.5)


def measure(
    names: Sequence[str], generator: torch.Generator, read_bytes_per_s: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The rows of these cases; each line of the table is said when it is there."""
    rows: list[dict[str, Any]] = []
    for case in CASCADE_CASES:
        if case.name in names:
            if not rows:
                say(header())
            rows.append(measure_row(draw_cascade(case, generator), read_bytes_per_s))
            torch.cuda.empty_cache()
            say(line(rows[-1]))
    return rows


def measure_row(batch: CascadeBatch, read_bytes_per_s: float) -> dict[str, Any]:
    """The case's row of the record, as `kernels.py` describes it. Raises: ValueError if a contender is wrong."""
    first, case = batch.replicas[0], batch.case
    paged = (first.key_cache, first.value_cache, batch.block_tables, batch.context_lens)
    oracle = reference.paged_decode(first.query, *paged, batch.scale)
    results = {
        name: _timed(name, calls, batch, oracle, read_bytes_per_s)
        for name, calls in ((CASCADE, _cascade(batch)), (PLAIN, _plain(batch)))
    }
    return {
        "name": case.name,
        "held_out": case.held_out,
        "times_plain": four_digits(results[PLAIN]["median_us"] / results[CASCADE]["median_us"]),
        "results": results,
    }


def _timed(
    name: str, calls: list[Callable[[], Tensor]], batch: CascadeBatch, oracle: Tensor, read_bytes_per_s: float
) -> dict[str, Any]:
    """Checked on fresh data, with NaN where the answer goes, and then timed."""
    case = batch.case
    batch.replicas[0].out.fill_(float("nan"))
    error = float((calls[0]().double() - oracle).norm() / oracle.norm())
    if not error <= ERRORS[case.dtype]:
        raise ValueError(f"{case.name}: relative error of {name} {error:.1e}, at most {ERRORS[case.dtype]:.0e}")
    seconds, floor_s = device_clock.replay_s(calls), case.kv_bytes[name] / read_bytes_per_s
    return {
        "kv_bytes": case.kv_bytes[name],
        "floor_us": four_digits(floor_s * 1e6),
        "median_us": four_digits(seconds * 1e6),
        "share": four_digits(floor_s / seconds),
        "error": four_digits(error),
    }


def _cascade(batch: CascadeBatch) -> list[Callable[[], Tensor]]:
    case, device = batch.case, batch.context_lens.device
    work = CascadeWork(len(case.own), case.heads, case.kv_heads, case.head_dim, case.dtype, device)
    work.refresh(batch.context_lens, case.prefix_tokens)
    prefix = (batch.prefix_table, case.prefix_tokens)

    def call(data: Replica) -> Tensor:
        paged = (data.key_cache, data.value_cache, *prefix, batch.block_tables, batch.context_lens)
        cascade_decode(data.query, *paged, batch.scale, data.out, work=work)
        return data.out

    return [partial(call, data) for data in batch.replicas]


def _plain(batch: CascadeBatch) -> list[Callable[[], Tensor]]:
    case, device = batch.case, batch.context_lens.device
    work = WorkList(len(case.own), case.heads, case.kv_heads, case.head_dim, case.dtype, device)
    work.refresh(batch.context_lens)

    def call(data: Replica) -> Tensor:
        paged = (data.key_cache, data.value_cache, batch.block_tables, batch.context_lens)
        paged_decode(data.query, *paged, batch.scale, data.out, work=work)
        return data.out

    return [partial(call, data) for data in batch.replicas]


def header() -> str:
    """What stands above the lines."""
    return f"{'':60} {'floor':>8} {'cascade':>16} {'floor':>9} {'plain':>16}  faster"


def line(row: Mapping[str, Any]) -> str:
    """One case: times in microseconds, and the share of the read ceiling at each contender's own bytes."""
    cells = []
    for name in (CASCADE, PLAIN):
        found = row["results"][name]
        cells.append(f"{found['floor_us']:5.1f} us {found['median_us']:8.1f} us {found['share']:4.0%}")
    name = row["name"].removeprefix("cascade, ") + (" (held out)" if row["held_out"] else "")
    return f"{name:60} {'  '.join(cells)}  {row['times_plain']:4.1f} times"
