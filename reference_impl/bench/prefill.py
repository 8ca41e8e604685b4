"""How fast prefill is on a GPU: ours, torch's own on data that lies as it likes it, and what one does without ours.

Owns: the contenders, the check of each against the oracle before it is timed, and a case's row of the record. Knows
nothing of how any kernel works.

    ours        one launch over the blocks
    dense       torch's flash attention on contiguous keys and values that nobody has to gather: what the arithmetic
                costs. One call for sequences that are alike, else one for each, in one graph
    gathered    keys and values of the sequences out of their blocks into one piece, then the same calls

A chunk behind cached tokens is causal from its lower right corner, which torch's flash kernel knows without a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from reference_impl.attention import reference
from reference_impl.attention.paged_prefill import paged_prefill
from reference_impl.bench import device_clock
from reference_impl.bench.kernel_cases import ERRORS, four_digits
from reference_impl.bench.prefill_cases import PREFILL_CASES, PrefillBatch, PrefillReplica, draw_prefill

Call = Callable[[], list[Tensor]]
"""Gives the answer [tokens, heads, head_dim], in pieces if it was computed so."""
OURS, DENSE, GATHERED = "ours", "torch SDPA, dense", "torch SDPA, gathered"
DENSE_GOAL = 0.70
"""Share of dense SDPA's speed."""
_SLICE = 64
"""Query tokens that are compared at the beginning, in the middle and at the end of each sequence: the oracle's scores
of a whole prompt would fill the memory."""


def measure(names: Sequence[str], generator: torch.Generator, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The rows of these cases; each line of the table is said when it is there."""
    rows: list[dict[str, Any]] = []
    for case in PREFILL_CASES:
        if case.name in names:
            if not rows:
                say(header())
            rows.append(measure_row(draw_prefill(case, generator)))
            torch.cuda.empty_cache()
            say(line(rows[-1]))
    return rows


def measure_row(batch: PrefillBatch) -> dict[str, Any]:
    """The case's row of the record, as `kernels.py` describes it. Raises: ValueError if a contender is wrong."""
    want = list(_oracle(batch))
    results = {
        name: _timed(prepare(batch), batch, want)
        for name, prepare in ((OURS, _ours), (DENSE, _dense), (GATHERED, _gathered))
    }
    ours_us = results[OURS]["median_us"]
    for found in results.values():
        found["of_dense"] = four_digits(results[DENSE]["median_us"] / found["median_us"])
    of_gathered = four_digits(results[GATHERED]["median_us"] / ours_us)
    met = results[OURS]["of_dense"] >= DENSE_GOAL and of_gathered >= 1
    return {
        "name": batch.case.name,
        "flops": batch.case.flops,
        "held_out": batch.case.held_out,
        "of_gathered": of_gathered,
        "goal": {"of_dense": DENSE_GOAL, "of_gathered": 1.0, "met": met},
        "results": results,
    }


def _slices(batch: PrefillBatch) -> Iterator[tuple[int, slice, int]]:
    """(sequence, query tokens of the batch, tokens of context up to the last of them) that are compared."""
    start = 0
    for place, (queries, context) in enumerate(batch.case.rows):
        for first in sorted({0, queries // 2, max(0, queries - _SLICE)}):
            stop = min(first + _SLICE, queries)
            yield place, slice(start + first, start + stop), context - queries + stop
        start += queries


def _oracle(batch: PrefillBatch) -> Iterator[Tensor]:
    data = batch.replicas[0]
    for place, tokens, context in _slices(batch):
        caches = (data.key_cache, data.value_cache)
        key, value = (reference.gather(cache, batch.block_tables[place], context) for cache in caches)
        yield reference.attention(data.query[tokens], key, value, batch.scale).out


def _timed(calls: list[Call], batch: PrefillBatch, want: list[Tensor]) -> dict[str, Any]:
    """Checked on fresh data, with NaN where the answer goes, and then timed."""
    case = batch.case
    batch.replicas[0].out.fill_(float("nan"))
    out = torch.cat(calls[0]())
    if not bool(out.isfinite().all()):
        raise ValueError(f"{case.name}: not every element was written")
    found = torch.cat([out[tokens] for _, tokens, _ in _slices(batch)]).double()
    right = torch.cat(want)
    error = float((found - right).norm() / right.norm())
    if not error <= ERRORS[case.dtype]:
        raise ValueError(f"{case.name}: relative error {error:.1e}, at most {ERRORS[case.dtype]:.0e}")
    seconds = device_clock.replay_s(calls)
    return {
        "median_us": four_digits(seconds * 1e6),
        "tflop_s": four_digits(case.flops / seconds / 1e12),
        "error": four_digits(error),
    }


def _ours(batch: PrefillBatch) -> list[Call]:
    indices = (batch.block_tables, batch.context_lens, batch.cu_seqlens)

    def call(data: PrefillReplica) -> list[Tensor]:
        paged_prefill(data.query, data.key_cache, data.value_cache, *indices, batch.scale, data.out)
        return [data.out]

    return [partial(call, data) for data in batch.replicas]


def _dense(batch: PrefillBatch) -> list[Call]:
    """Everything lies [sequences, heads, tokens, head_dim] before the clock starts."""

    def prepared(data: PrefillReplica) -> Call:
        parts = []
        for query, blocks, context in _parts(batch, data):
            key, value = _gather(data, blocks, context)
            parts.append([tensor.transpose(1, 2).contiguous() for tensor in (query, key, value)])
        return lambda: [_attend(query, key, value, batch.scale) for query, key, value in parts]

    return [prepared(data) for data in batch.replicas]


def _gathered(batch: PrefillBatch) -> list[Call]:
    def call(data: PrefillReplica, parts: list[tuple[Tensor, Tensor, int]]) -> list[Tensor]:
        answers = []
        for query, blocks, context in parts:
            key, value = _gather(data, blocks, context)
            answers.append(_attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), batch.scale))
        return answers

    # Which blocks are whose is made ready once a step for all layers: not on the clock.
    return [partial(call, data, list(_parts(batch, data))) for data in batch.replicas]


def _parts(batch: PrefillBatch, data: PrefillReplica) -> Iterator[tuple[Tensor, Tensor, int]]:
    """What one call of SDPA takes: queries [sequences, tokens, heads, head_dim], their blocks, their context. Syncs."""
    case = batch.case
    if case.equal:
        queries, context = case.rows[0]
        query = data.query.view(len(case.rows), queries, case.heads, case.head_dim)
        yield query, batch.block_tables.long(), context
        return
    starts = batch.cu_seqlens.tolist()
    for place, ((start, stop), (_, context)) in enumerate(zip(pairwise(starts), case.rows, strict=True)):
        blocks = batch.block_tables[place, : -(-context // case.block_size)]
        yield data.query[start:stop].unsqueeze(0), blocks.long().unsqueeze(0), context


def _gather(data: PrefillReplica, tables: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """[sequences, context, kv_heads, head_dim] of keys and of values, contiguous but for the last block's rest."""
    key, value = (
        cache.index_select(0, tables.flatten()).view(len(tables), -1, *cache.shape[2:])[:, :context]
        for cache in (data.key_cache, data.value_cache)
    )
    return key, value


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Torch's flash kernel over [sequences, heads, tokens, head_dim] each, into [all tokens, heads, head_dim]."""
    grouped = query.shape[1] != key.shape[1]
    tokens, context = query.shape[2], key.shape[2]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        if tokens == context:
            out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        else:
            mask = causal_lower_right(tokens, context)
            out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
    # No copy: that is how the kernel leaves it.
    return out.transpose(1, 2).flatten(0, 1)


def header() -> str:
    """What stands above the lines."""
    return f"{'':56} {'TFLOP':>6} {'ours':>24} {'dense':>20} {'gathered':>20}  goal"


def line(row: Mapping[str, Any]) -> str:
    """One case: times in microseconds, TFLOP/s, and our share of dense SDPA's speed."""
    cells = []
    for name in (OURS, DENSE, GATHERED):
        found = row["results"][name]
        share = f" {found['of_dense']:4.0%}" if name == OURS else ""
        cells.append(f"{found['median_us']:8.1f} us {found['tflop_s']:4.0f} T/s{share}")
    name = row["name"] + (" (held out)" if row["held_out"] else "")
    verdict = f"{row['goal']['of_dense']:.0%} {'hit' if row['goal']['met'] else 'MISS'}"
    return f"{name:56} {row['flops'] / 1e12:6.2f} {' '.join(cells)}  {verdict}"
