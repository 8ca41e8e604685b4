"""Decode attention of other projects on the same batches, where they are installed.

Owns: how each peer is called, which peer was best, and what is said of one that could not be timed. Knows nothing of
clocks, or of how any kernel works. A peer is prepared once for a batch, as an engine prepares it once a step, and then
called for each replica of the data.
What a peer needs beside torch is its own affair: FlashInfer compiles its kernels where it is first called, about a
minute each, so that a first run is slow; the clock does not see that. vLLM's kernel is taken alone, with the choices of
its own engine: 16 segments, and one pass over a sequence from 128 / kv_heads sequences on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from reference_impl.bench.cases import NotHere
from reference_impl.bench.kernel_cases import Batch, Replica, four_digits

Calls = Sequence[Callable[[], Tensor]]
"""One for each replica; each gives its output."""
FLASHINFER, PERSISTENT, VLLM = "FlashInfer", "FlashInfer, persistent", "vLLM, Triton"
_WORKSPACE_BYTES = 256 << 20
_FLASHINFER_HEAD_DIMS = (64, 128, 256)
_TENSOR_CORES_FROM = 4
"""Queries of one KV head: with fewer, FlashInfer's other kernel is the faster one."""
_SEGMENTS, _LEAST_PROGRAMS = 16, 128
_MORE_COLUMNS = 8
_SAID = 160


def contenders(batch: Batch) -> dict[str, Callable[[], Calls]]:
    """Peer -> what prepares it. Preparing raises NotHere, or whatever the peer's own code raises."""
    return {
        FLASHINFER: lambda: _flashinfer(batch),
        PERSISTENT: lambda: _persistent(batch),
        VLLM: lambda: _vllm(batch),
    }


def versions() -> dict[str, str]:
    """Project -> its version, or why there is none."""
    found = {}
    for name in ("flashinfer", "vllm"):
        try:
            found[name] = str(getattr(_imported(name), "__version__", "unknown"))
        except NotHere as reason:
            found[name] = str(reason)
    return found


def best(results: Mapping[str, Mapping[str, Any]], ours: str, among: Iterable[str]) -> dict[str, Any] | None:
    """The fastest of the peers `among` in a row's results, and how many times faster than it ours is.

    None if none of them was timed. met: ours is at or above it.
    """
    timed = {name: results[name]["median_us"] for name in among if "median_us" in results.get(name, {})}
    if not timed:
        return None
    name = min(timed, key=lambda peer: timed[peer])
    times = four_digits(timed[name] / results[ours]["median_us"])
    return {"name": name, "times": times, "met": times >= 1}


def told(error: BaseException) -> str:
    """What is kept of an error of a peer's: its first line, without the names of this machine's folders."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    name = "" if isinstance(error, NotHere) else f"{type(error).__name__}: "
    return re.sub(r"(?:/[\w.+-]+)+/?", "(path)", f"{name}{first.strip()}")[:_SAID]


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise NotHere(f"not installed: {error.name or error}") from None


def _alike(batch: Batch) -> None:
    """Raises: NotHere unless keys, values and queries are of one type, as these adapters need it."""
    first = batch.replicas[0]
    if first.key_cache.dtype != first.query.dtype:
        raise NotHere(f"asked with one type for all, and the cache is {first.key_cache.dtype}")


def _blocks(batch: Batch) -> tuple[Tensor, Tensor]:
    """Blocks of all sequences one after the other [blocks], and where each sequence begins [batch + 1]; int32."""
    size = batch.case.block_size
    counts = (batch.context_lens + size - 1) // size
    starts = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
    starts[1:] = counts.cumsum(0)
    used = torch.arange(batch.block_tables.shape[1], device=counts.device) < counts[:, None]
    return batch.block_tables[used], starts


def _flashinfer_fits(batch: Batch) -> None:
    _alike(batch)
    if batch.case.head_dim not in _FLASHINFER_HEAD_DIMS:
        raise NotHere(f"its kernels are for heads of {_FLASHINFER_HEAD_DIMS}, not {batch.case.head_dim}")


def _flashinfer(batch: Batch) -> Calls:
    """`BatchDecodeWithPagedKVCacheWrapper`: work is split by a plan that is made on the host."""
    _flashinfer_fits(batch)
    flashinfer, case = _imported("flashinfer"), batch.case
    indices, starts = _blocks(batch)
    workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=indices.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", use_tensor_cores=case.heads // case.kv_heads >= _TENSOR_CORES_FROM
    )
    wrapper.plan(
        starts,
        indices,
        (batch.context_lens - 1) % case.block_size + 1,
        case.heads,
        case.kv_heads,
        case.head_dim,
        case.block_size,
        window_left=-1 if case.window is None else case.window - 1,
        q_data_type=case.dtype,
        kv_data_type=case.dtype,
        sm_scale=batch.scale,
    )

    def call(data: Replica) -> Tensor:
        wrapper.run(data.query, (data.key_cache, data.value_cache), out=data.out)
        return data.out

    return [partial(call, data) for data in batch.replicas]


def _persistent(batch: Batch) -> Calls:
    """`BatchAttention`: one launch of as many programs as the GPU holds, each with an equal part of the work."""
    _flashinfer_fits(batch)
    if batch.case.window is not None:
        raise NotHere("it knows no window")
    flashinfer, case = _imported("flashinfer"), batch.case
    indices, starts = _blocks(batch)
    wrapper = flashinfer.BatchAttention(kv_layout="NHD", device=str(indices.device))
    wrapper.plan(
        torch.arange(len(case.lengths) + 1, dtype=torch.int32, device=indices.device),
        starts,
        indices,
        batch.context_lens,
        case.heads,
        case.kv_heads,
        case.head_dim,
        case.head_dim,
        case.block_size,
        sm_scale=batch.scale,
        q_data_type=case.dtype,
        kv_data_type=case.dtype,
    )
    lse = torch.empty(len(case.lengths), case.heads, dtype=torch.float32, device=indices.device)

    def call(data: Replica) -> Tensor:
        wrapper.run(data.query, (data.key_cache, data.value_cache), out=data.out, lse=lse)
        return data.out

    return [partial(call, data) for data in batch.replicas]


def _vllm(batch: Batch) -> Calls:
    """`unified_attention`, called as vLLM's own backend calls it."""
    _alike(batch)
    attention, case = _imported("vllm.v1.attention.ops.triton_unified_attention").unified_attention, batch.case
    device, sequences = batch.context_lens.device, len(case.lengths)
    # It also looks up entries behind a sequence's last block, and masks what it finds there.
    tables = torch.nn.functional.pad(batch.block_tables.clamp(min=0), (0, _MORE_COLUMNS))
    split_up_to = _LEAST_PROGRAMS // case.kv_heads
    shape = (split_up_to, case.heads, _SEGMENTS)
    padded = 1 << (case.head_dim - 1).bit_length()
    common: dict[str, Any] = {
        "cu_seqlens_q": torch.arange(sequences + 1, dtype=torch.int32, device=device),
        "max_seqlen_q": 1,
        "seqused_k": batch.context_lens,
        "max_seqlen_k": max(case.lengths),
        "softmax_scale": batch.scale,
        "causal": True,
        "window_size": (-1, -1) if case.window is None else (case.window - 1, 0),
        "block_table": tables,
        "softcap": 0,
        "q_descale": None,
        "k_descale": None,
        "v_descale": None,
        "seq_threshold_3D": split_up_to,
        "num_par_softmax_segments": _SEGMENTS,
        "softmax_segm_output": torch.empty(*shape, padded, dtype=torch.float32, device=device),
        "softmax_segm_max": torch.empty(shape, dtype=torch.float32, device=device),
        "softmax_segm_expsum": torch.empty(shape, dtype=torch.float32, device=device),
    }

    def call(data: Replica) -> Tensor:
        attention(q=data.query, k=data.key_cache, v=data.value_cache, out=data.out, **common)
        return data.out

    return [partial(call, data) for data in batch.replicas]
