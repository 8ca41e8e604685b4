"""How fast the kernels are on a GPU: ours, a textbook's, torch's own and other projects', beside what the memory gives.

Owns: the contenders, the check of each against the oracle before it is timed, and the record. Knows nothing of how any
kernel works, and of other projects' only what `peers.py` answers. What fails of theirs is kept as a reason; what fails
of ours ends the run. Every figure is a share of the read ceiling of the same run: the bytes of keys and values that
must be read, over the time, over the fastest read of this device.

    suite      "kernels"
    date       str, YYYY-MM-DD
    commit     str
    machine    gpu, multiprocessors, python, torch, triton, cuda
    peers      project -> version, or why it is not here
    ceilings   read_gb_s, copy_gb_s (bytes read and written)
    decode     list of: name, kv_bytes, floor_us, held_out, cut_us (the work list, once a step for all layers), goal
               (share, met), results: contender -> median_us, share, error (relative L2), or the reason it has none; and
               peer (name, times: how many times faster ours is, met) of all but the textbook's, and paged_peer, of
               those that read from blocks as ours does; null where none was timed
    prefill    list of: name, flops, held_out, of_gathered (ours over gather-then-SDPA, in speed), goal (of_dense,
               of_gathered, met) and results: contender (bench/prefill.py) -> median_us, tflop_s, of_dense (share of
               dense SDPA's speed), error (relative L2 over the query tokens that are compared)
    cascade    list of: name, held_out, times_plain (plain decode's time over ours) and results: contender
               (bench/cascade.py) -> kv_bytes, floor_us, median_us, share (of the read ceiling, by its own bytes), error
    store      list of: name, bytes (read and written), median_us, share (of the copy ceiling), goal
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reference_impl.attention import reference
from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.store_kv import store_kv
from reference_impl.attention.work_list import WorkList
from reference_impl.bench import cascade, device_clock, peers, prefill, textbook_decode
from reference_impl.bench.cascade import CASCADE_CASES
from reference_impl.bench.cases import NotHere
from reference_impl.bench.kernel_cases import DECODE_CASES, ERRORS, REPLICA_BYTES, Batch, Replica, draw, four_digits
from reference_impl.bench.peers import Calls
from reference_impl.bench.prefill_cases import PREFILL_CASES

OURS, TEXTBOOK, PADDED = "ours", "textbook", "torch SDPA, padded"
_SHORT = {peers.FLASHINFER: "FlashInfer", peers.PERSISTENT: "persistent", peers.VLLM: "vLLM"}
PAGED_PEERS = tuple(_SHORT)
LARGE_BYTES, LARGE_GOAL, SMALL_GOAL, STORE_GOAL = 250_000_000, 0.90, 0.75, 0.80
_STORE_CASES = (("8k tokens, 8 x 128", 8192, 8, 128), ("64k tokens, 8 x 128", 65_536, 8, 128))
_BLOCK = 16


def measure(names: Sequence[str], commit: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of these cases; each line of the table is said when it is there. Raises: NotHere without a GPU."""
    if not torch.cuda.is_available():
        raise NotHere("the kernels are timed on an NVIDIA GPU, and torch finds none here")
    generator = torch.Generator("cuda")
    generator.seed()
    ceilings = {"read": device_clock.read_bytes_per_s(), "copy": device_clock.copy_bytes_per_s()}
    say(f"read {ceilings['read'] / 1e9:,.0f} GB/s, copy {ceilings['copy'] / 1e9:,.0f} GB/s read and written")
    decode: list[dict[str, Any]] = []
    for case in DECODE_CASES:
        if case.name in names:
            if not decode:
                say(header())
            decode.append(_decode_row(draw(case, generator), ceilings["read"]))
            torch.cuda.empty_cache()
            say(line(decode[-1]))
    prompts = prefill.measure(names, generator, say)
    prefixes = cascade.measure(names, generator, ceilings["read"], say)
    store = [_store_row(*case, ceilings["copy"], generator) for case in _STORE_CASES if store_name(case[0]) in names]
    for row in store:
        say(f"{row['name']:46} {row['median_us']:8.1f} us {row['share']:5.0%} of the copy ceiling")
    return {
        "suite": "kernels",
        "date": date.today().isoformat(),
        "commit": commit,
        "machine": _machine(),
        "peers": peers.versions(),
        "ceilings": {f"{name}_gb_s": round(rate / 1e9) for name, rate in ceilings.items()},
        "decode": decode,
        "prefill": prompts,
        "cascade": prefixes,
        "store": store,
    }


def case_names() -> list[str]:
    """Every case that can be asked for."""
    attention = [case.name for case in DECODE_CASES] + [case.name for case in PREFILL_CASES]
    prefixes = [case.name for case in CASCADE_CASES]
    return attention + prefixes + [store_name(case[0]) for case in _STORE_CASES]


def store_name(shape: str) -> str:
    """What a case of store_kv is called."""
    return f"store_kv, {shape}"


def _decode_row(batch: Batch, read_bytes_per_s: float) -> dict[str, Any]:
    case = batch.case
    first = batch.replicas[0]
    caches = (first.key_cache, first.value_cache, batch.block_tables, batch.context_lens)
    oracle = reference.paged_decode(first.query, *caches, batch.scale, window=case.window, **batch.scaled)
    shape = (len(case.lengths), case.heads, case.kv_heads, case.head_dim, case.dtype, first.query.device)
    work = WorkList(*shape, window=case.window, kv_dtype=case.kv_dtype).refresh(batch.context_lens)
    contenders: dict[str, Callable[[], Calls]] = {
        OURS: lambda: _ours(batch, work),
        TEXTBOOK: lambda: _textbook(batch),
        PADDED: lambda: _padded(batch),
    }
    results: dict[str, Any] = {}
    for name, prepare in contenders.items():
        try:
            results[name] = _timed(prepare(), batch, oracle, name == PADDED, read_bytes_per_s)
        except NotHere as reason:
            results[name] = {"skipped": str(reason)}
    for name, prepare in peers.contenders(batch).items():
        results[name] = _of_a_peer(name, prepare, batch, oracle, read_bytes_per_s)
    least = LARGE_GOAL if case.kv_bytes >= LARGE_BYTES else SMALL_GOAL
    return {
        "name": case.name,
        "kv_bytes": case.kv_bytes,
        "floor_us": four_digits(case.kv_bytes / read_bytes_per_s * 1e6),
        "held_out": case.held_out,
        "cut_us": four_digits(
            device_clock.replay_s([lambda: work.refresh(batch.context_lens)] * 8, at_least_s=0.01) * 1e6
        ),
        "goal": {"share": least, "met": results[OURS]["share"] >= least},
        "peer": peers.best(results, OURS, (*PAGED_PEERS, PADDED)),
        "paged_peer": peers.best(results, OURS, PAGED_PEERS),
        "results": results,
    }


def _of_a_peer(
    name: str, prepare: Callable[[], Calls], batch: Batch, oracle: Tensor, read_bytes_per_s: float
) -> dict[str, Any]:
    """Its figures, or why it has none.

    Raises: RuntimeError if it left the device unusable, as nothing that is timed after it could be believed.
    """
    try:
        return _timed(prepare(), batch, oracle, False, read_bytes_per_s)
    except Exception as error:
        # Foreign code, which may raise anything: that is its result, and no reason to lose ours.
        reason = peers.told(error)
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise RuntimeError(f"{name} left the GPU unusable ({reason}); take it off PYTHONPATH and run again") from error
    return {"skipped": reason}


def _timed(calls: Calls, batch: Batch, oracle: Tensor, padded: bool, read_bytes_per_s: float) -> dict[str, Any]:
    """Checked on fresh data, with NaN where the answer goes, and then timed."""
    case = batch.case
    batch.replicas[0].out.fill_(float("nan"))
    out = calls[0]().double()
    if padded:
        # Nothing masks the padding, so that only a sequence without any can be compared.
        rows = [place for place, length in enumerate(case.lengths) if length == max(case.lengths)]
        out, oracle = out[rows], oracle[rows]
    error = float((out - oracle).norm() / oracle.norm())
    if not error <= ERRORS[case.dtype]:
        raise ValueError(f"{case.name}: relative error {error:.1e}, at most {ERRORS[case.dtype]:.0e}")
    seconds = device_clock.replay_s(calls)
    share = case.kv_bytes / seconds / read_bytes_per_s
    return {"median_us": four_digits(seconds * 1e6), "share": four_digits(share), "error": four_digits(error)}


def _ours(batch: Batch, work: WorkList) -> Calls:
    places, scale, scaled = (batch.block_tables, batch.context_lens), batch.scale, batch.scaled

    def call(data: Replica) -> Tensor:
        paged_decode(data.query, data.key_cache, data.value_cache, *places, scale, data.out, work=work, **scaled)
        return data.out

    return [partial(call, data) for data in batch.replicas]


def _textbook(batch: Batch) -> Calls:
    case, tables, lengths = batch.case, batch.block_tables, batch.context_lens
    if case.window is not None or not textbook_decode.fits(case.head_dim, case.block_size):
        raise NotHere("the textbook's kernel knows no window, and only sizes that are powers of two")
    if case.narrow:
        raise NotHere("the textbook's kernel reads what it computes with")

    def call(data: Replica) -> Tensor:
        caches = (data.key_cache, data.value_cache, tables, lengths)
        textbook_decode.textbook_decode(data.query, *caches, batch.scale, data.out)
        return data.out

    return [partial(call, data) for data in batch.replicas]


def _padded(batch: Batch) -> Calls:
    """Keys and values of each replica in a rectangle, [batch, kv_heads, longest, head_dim], gathered beforehand.

    Without a mask, for with one torch has no fast kernel: what it reads is what padding costs at least.
    """
    case = batch.case
    if case.window is not None:
        raise NotHere("without a mask there is no window")
    if case.narrow:
        raise NotHere("torch has no attention over 8-bit floats")
    longest, tables = max(case.lengths), batch.block_tables.long()

    def rectangle(cache: Tensor) -> Tensor:
        return cache[tables].flatten(1, 2)[:, :longest].transpose(1, 2).contiguous()

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grouped = case.heads != case.kv_heads
        return scaled_dot_product_attention(
            query.unsqueeze(2), key, value, scale=batch.scale, enable_gqa=grouped
        ).squeeze(2)

    padded_bytes = case.kv_bytes * len(case.lengths) * longest // sum(case.lengths)
    replicas = batch.replicas[: max(1, -(-REPLICA_BYTES // padded_bytes))]
    return [partial(call, data.query, rectangle(data.key_cache), rectangle(data.value_cache)) for data in replicas]


def _store_row(
    shape: str, tokens: int, kv_heads: int, head_dim: int, copy_bytes_per_s: float, generator: torch.Generator
) -> dict[str, Any]:
    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device="cuda", dtype=torch.bfloat16)

    moved = 4 * tokens * kv_heads * head_dim * 2
    copies = max(2, -(-512_000_000 // moved))
    sets = []
    for _ in range(copies):
        caches = [random(2 * tokens // _BLOCK, _BLOCK, kv_heads, head_dim) for _ in range(2)]
        blocks = torch.randperm(2 * tokens // _BLOCK, generator=generator, device="cuda")[: tokens // _BLOCK]
        slots = (blocks[:, None] * _BLOCK + torch.arange(_BLOCK, device="cuda")).flatten()
        sets.append((random(tokens, kv_heads, head_dim), random(tokens, kv_heads, head_dim), *caches, slots))
    key, value, key_cache, value_cache, slots = sets[0]
    store_kv(*sets[0])
    for given, cache in ((key, key_cache), (value, value_cache)):
        if not torch.equal(cache.flatten(0, 1)[slots], given):
            raise ValueError(f"store_kv, {shape}: what was written is not what was given")
    seconds = device_clock.replay_s([partial(store_kv, *given) for given in sets])
    share = moved / seconds / copy_bytes_per_s
    return {
        "name": store_name(shape),
        "bytes": moved,
        "median_us": four_digits(seconds * 1e6),
        "share": four_digits(share),
        "goal": {"share": STORE_GOAL, "met": share >= STORE_GOAL},
    }


def _machine() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda or "unknown",
    }


def header() -> str:
    """What stands above the lines."""
    columns = f"{'ours':>16} {'textbook':>16} {'torch, padded':>16}"
    others = " ".join(f"{name:>11}" for name in _SHORT.values())
    return f"{'':46} {'KV MB':>6} {'floor':>8} {columns} {others}  goal      best peer"


def line(row: Mapping[str, Any]) -> str:
    """One case: times in microseconds, shares of the read ceiling, the goal, and how ours stands to the best peer."""
    results = row["results"]
    cells = []
    for name in (OURS, TEXTBOOK, PADDED):
        found = results[name]
        cells.append(f"{found['median_us']:8.1f} us {found['share']:4.0%}" if "share" in found else f"{'-':>16}")
    for name in PAGED_PEERS:
        found = results[name]
        cells.append(f"{found['median_us']:6.0f} {found['share']:4.0%}" if "share" in found else f"{'-':>11}")
    verdict = f"{row['goal']['share']:.0%} {'hit ' if row['goal']['met'] else 'MISS'}"
    if (peer := row["peer"]) is not None:
        verdict += f"  {peer['times']:.2f}x {'hit' if peer['met'] else 'MISS'} ({peer['name']})"
    name = row["name"] + (" (held out)" if row["held_out"] else "")
    return f"{name:46} {row['kv_bytes'] / 1e6:6.0f} {row['floor_us']:5.1f} us {' '.join(cells)}  {verdict}"
