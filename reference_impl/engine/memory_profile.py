"""How many blocks fit: what is free, less what the largest step needs, and the words in which it is said.

Owns: reading how much memory is free, on the host and on a GPU, and the measured step. Knows nothing of who uses the
blocks. With a budget in bytes nothing is measured: it is taken, if it is there.
Free on the host: what the system says is available, or what is left of the control group's limit if that is less.
Source: the profiling run at start as in vLLM; Linux, Documentation/filesystems/proc.rst, for `MemAvailable`, `VmHWM`
and `clear_refs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reference_impl.attention.backend import Attention, LayerCache
from reference_impl.attention.fp8 import FP8, KVScales
from reference_impl.attention.metadata import BatchRow, build_metadata
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.engine.device import on_device
from reference_impl.engine.graphs import StepGraphs
from reference_impl.engine.kv_cache import block_bytes
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.contiguous import at_least_one
from reference_impl.model.loader import LoadedModel
from reference_impl.model.transformer import Transformer

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryProfile:
    """What fits. step_bytes: what the largest step needs beside weights and blocks; graph_bytes: what CUDA graphs keep.

    Both are None if they were not measured.
    """

    num_blocks: int
    block_size: int
    block_bytes: int
    weight_bytes: int
    max_context_tokens: int
    free_bytes: int | None = None
    step_bytes: int | None = None
    share: float | None = None
    graph_bytes: int | None = None

    @property
    def kv_bytes(self) -> int:
        """Of all blocks."""
        return self.num_blocks * self.block_bytes

    @property
    def kv_tokens(self) -> int:
        """Slots of all blocks."""
        return self.num_blocks * self.block_size

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token, in all layers."""
        return self.block_bytes // self.block_size

    @property
    def longest_requests(self) -> int:
        """Requests of the longest length that fit at once."""
        return self.num_blocks // blocks_for(self.max_context_tokens, self.block_size)

    def lines(self) -> list[str]:
        """For people: bytes, blocks, tokens, requests; and what was measured."""
        blocks = f"{self.num_blocks:,} blocks of {self.block_size} tokens = {self.kv_tokens:,} tokens"
        most = self.longest_requests
        requests = f"at most {most:,} request{'s' if most != 1 else ''}" if most else "less than one request"
        length = f"of the longest length ({self.max_context_tokens:,} tokens)"
        found = [f"KV memory {shown_bytes(self.kv_bytes)}: {blocks}, {requests} {length}"]
        measured = [f"weights {shown_bytes(self.weight_bytes)}"]
        if self.step_bytes is not None:
            measured.append(f"largest step {shown_bytes(self.step_bytes)}")
        if self.graph_bytes is not None:
            measured.append(f"CUDA graphs {shown_bytes(self.graph_bytes)}")
        if self.free_bytes is not None:
            measured.append(f"free before {shown_bytes(self.free_bytes)}")
        if self.share is not None:
            measured.append(f"of which {self.share:.0%} may be used")
        return [*found, ", ".join(measured)]


def profile_memory(
    loaded: LoadedModel,
    *,
    block_size: int,
    budget_bytes: int | None = None,
    share: float = 0.5,
    max_tokens_per_step: int = 512,
    max_context_tokens: int | None = None,
    max_running: int = 64,
    attention: Attention | None = None,
    graph_rows: int = 0,
    kv_scales: Sequence[KVScales] | None = None,
) -> MemoryProfile:
    """Blocks from a budget, or from `share` of the memory that is free once the largest step has its part.

    No more blocks than `max_running` requests of the longest length could fill, unless a budget asks for them: a pool
    costs time for each block that it begins with.
    The step that is measured is a prompt of `max_tokens_per_step` tokens, or of the longest context if that is less,
    with `max_running` rows of logits. attention: whose memory counts too; torch's unless given. graph_rows: if not 0,
    steps of up to so many sequences will be captured as CUDA graphs, which is tried once to see what they keep.
    kv_scales: of each layer, if keys and values will be kept in 8 bits.
    Raises: ValueError naming the numbers, if not one block fits, the budget is more than is free, an argument makes no
    sense, or this system does not say what is free.
    """
    model = loaded.transformer
    at_least_one("block_size", block_size)
    longest = loaded.config.max_context_tokens if max_context_tokens is None else max_context_tokens
    if not 0 < share <= 1:
        raise ValueError(f"memory share must be above 0 and at most 1, got {share}")
    one = block_bytes(loaded.config, block_size, model.dtype if kv_scales is None else FP8)
    free, step, graphs = free_bytes(model.device), None, None
    if budget_bytes is None:
        if free is None:
            raise ValueError("this system does not say how much memory is free: give KV memory in bytes")
        attention = attention or TorchAttention()
        step = step_bytes(model, min(max_tokens_per_step, longest), max_running, attention, block_size, kv_scales)
        if graph_rows:
            graphs = graph_bytes(model, attention, graph_rows, max_tokens_per_step, longest, block_size, kv_scales)
        budget = int(share * max(0, free - (step or 0) - (graphs or 0)))
        said = f"{share:.0%} of {shown_bytes(free)} free, less {shown_bytes(step or 0)} for the largest step,"
    else:
        budget, said = budget_bytes, f"KV memory of {shown_bytes(budget_bytes)}"
        if free is not None and budget > free:
            raise ValueError(f"{said} is more than the {shown_bytes(free)} that are free: ask for less")
    if budget < one:
        what = f"no block of {block_size} tokens, which takes {shown_bytes(one)}"
        raise ValueError(f"{said} holds {what}: give more KV memory, or use smaller blocks")
    num_blocks, used_share = budget // one, None
    if budget_bytes is None:
        used_share = share
        num_blocks = min(num_blocks, at_least_one("max_running", max_running) * blocks_for(longest, block_size))
    return MemoryProfile(num_blocks, block_size, one, model.weight_bytes, longest, free, step, used_share, graphs)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that could be taken on `device` now; None where the system does not say."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        # What torch keeps for later use is free for us too.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    amounts = [amount for amount in (_available(), _left_in_group()) if amount is not None]
    return min(amounts, default=None)


def step_bytes(
    model: Transformer,
    tokens: int,
    max_running: int,
    attention: Attention,
    block_size: int,
    kv_scales: Sequence[KVScales] | None = None,
) -> int | None:
    """What a prompt of `tokens` tokens needs at its peak, beside weights and blocks; None where it cannot be seen."""
    device, blocks = model.device, blocks_for(tokens, block_size)
    caches = shared_cache(model, blocks, block_size, kv_scales)
    metadata = build_metadata([BatchRow(range(blocks), tokens, tokens)], block_size, device=device)
    ids = torch.zeros(tokens, dtype=torch.int64, device=device)
    rows = torch.arange(min(tokens, max_running), device=device)
    places, dtype = torch.arange(tokens, device=device), model.dtype
    before = _start_watching(device)
    with on_device(device):
        model.forward(ids, places, caches, metadata, attention, rows, logits_dtype=dtype)
    return None if before is None else max(0, _peak(device) - before)


def graph_bytes(
    model: Transformer,
    attention: Attention,
    max_rows: int,
    max_tokens: int,
    max_context_tokens: int,
    block_size: int,
    kv_scales: Sequence[KVScales] | None = None,
) -> int:
    """What CUDA graphs for up to `max_rows` sequences and `max_tokens` tokens a step keep, torch's part and the
    driver's: made once, and let go."""
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info(model.device)[0]
    cache = shared_cache(model, 1, block_size, kv_scales)
    graphs = StepGraphs(
        model,
        attention,
        cache,
        max_rows=max_rows,
        max_tokens=max_tokens,
        max_context_tokens=max_context_tokens,
    )
    torch.cuda.empty_cache()
    kept = before - torch.cuda.mem_get_info(model.device)[0]
    del graphs
    torch.cuda.empty_cache()
    return max(0, kept)


def shared_cache(
    model: Transformer, blocks: int, block_size: int, kv_scales: Sequence[KVScales] | None = None
) -> list[LayerCache]:
    """One layer's cache for all layers: what they compute is of no use, and their shapes are those of a real step."""
    size = (blocks, block_size, model.config.num_kv_heads, model.config.head_dim)
    dtype = model.dtype if kv_scales is None else FP8
    key, value = (torch.zeros(size, dtype=dtype, device=model.device) for _ in range(2))
    if kv_scales is None:
        return [(key, value)] * model.config.num_layers
    return [(key, value, by) for by in kv_scales]


def _start_watching(device: torch.device) -> int | None:
    """What is in use now; from now on the peak is kept."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        (PROC / "self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _field(PROC / "self/status", "VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _field(PROC / "self/status", "VmHWM") or 0


def _available() -> int | None:
    return _field(PROC / "meminfo", "MemAvailable")


def _left_in_group() -> int | None:
    """What the control group's limit leaves, in the second or the first version of control groups."""
    versions = (("memory.max", "memory.current", "."), ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory"))
    for limit, used, folder in versions:
        try:
            most, current = (int((CGROUP / folder / name).read_text("ascii")) for name in (limit, used))
            stat = (CGROUP / folder / "memory.stat").read_text("ascii").split()
        except (OSError, ValueError):
            # Not there, or "max", which is no limit.
            continue
        # Files that were read are counted as used, and given up as soon as somebody wants the memory.
        counts = dict(zip(stat[::2], stat[1::2], strict=False))
        return max(0, most - current + int(counts.get("inactive_file", 0)))
    return None


def _field(path: Path, name: str) -> int | None:
    """`name:   123 kB` in a file of the system, in bytes."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None


def shown_bytes(amount: int) -> str:
    """ "512 MiB": at most three digits before the unit, one behind the point where there is one digit before it."""
    value, units = float(amount), ["bytes", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    digits = 1 if value < 10 and value != int(value) else 0
    return f"{value:,.{digits}f} {units[0]}"
