"""From names to an engine: the model, the memory, the scheduler and the attention that a command line asks for.

Owns: the order in which the parts are made. Knows nothing of what any part does, nor of a command line (`options.py`).
Each of four parts may be the user's own file, which is tried against its contract first (`contract_check.py`): the
block allocator of lab 3, the attention of lab 4, the prefix cache of lab 5, the scheduler of lab 6. Everything else
stays the same, so two runs that differ in one part differ by that part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from labkit.contracts import AttentionBackend
from reference_impl.attention.backend import Attention
from reference_impl.attention.common_prefix import PAYS_BYTES
from reference_impl.attention.fp8 import KVScales
from reference_impl.attention.lab4 import Lab4Attention
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.engine.contract_check import check_plugins
from reference_impl.engine.device import on_device
from reference_impl.engine.engine import Engine
from reference_impl.engine.kv_scales import find_scales
from reference_impl.engine.memory_profile import MemoryProfile, profile_memory
from reference_impl.engine.options import CASCADE, KV_DTYPES, SWITCH, EngineSettings
from reference_impl.engine.pipelined import PipelinedEngine
from reference_impl.engine.runner import Runner
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_memory import PlacedMemory
from reference_impl.model.loader import LoadedModel, load_model
from reference_impl.plugin import is_plugin, load_backend
from reference_impl.sched.lifecycle import Lifecycle
from reference_impl.sched.setup import Setup, build
from reference_impl.sched.surface import EngineScheduler


@dataclass(frozen=True)
class Built:
    """An engine and what is worth saying about it."""

    engine: Engine
    profile: MemoryProfile


def build_engine(settings: EngineSettings, *, log: EventLog | None = None, loaded: LoadedModel | None = None) -> Built:
    """Make the parts and join them. `log`, which must be new, becomes that of the memory. `loaded`: the model, if it is
    there already.

    Raises: ValueError, in one line, on what does not exist, does not fit or does not go together.
    """
    check_plugins(settings.block_allocator, settings.prefix_cache, settings.scheduler, settings.attention)
    loaded = loaded or load_model(settings.model, dtype=settings.dtype, device=settings.device)
    longest = settings.max_context_tokens or loaded.config.max_context_tokens
    attention = _attention(settings.attention, loaded.transformer.device)
    graph_rows = _graph_rows(settings, attention, loaded.transformer.device)
    kv_scales = _kv_scales(settings, attention, loaded)
    profile = profile_memory(
        loaded,
        attention=attention,
        graph_rows=graph_rows,
        block_size=settings.block_size,
        budget_bytes=settings.kv_memory_bytes,
        share=settings.memory_share,
        max_tokens_per_step=settings.max_tokens_per_step,
        max_context_tokens=longest,
        max_running=settings.max_running,
        kv_scales=kv_scales,
    )
    setup = _setup(settings, profile.num_blocks * settings.block_size, longest, profile.bytes_per_token)
    scheduler = build(setup, log=log)
    runner = _runner(loaded, attention, graph_rows, kv_scales, settings, scheduler, setup)
    engine = _engine_class(settings, scheduler, loaded.transformer.device)(
        loaded,
        scheduler,
        runner,
        max_waiting=settings.max_waiting,
        max_context_tokens=settings.max_context_tokens,
        has_prefix_cache=setup.prefix_cache != "none",
        debug=settings.debug,
    )
    if not engine.longest_request_tokens:
        raise ValueError(
            f"memory of {scheduler.memory.capacity} tokens serves no request at all with allocator "
            f"{setup.allocator!r} and a context of {longest}: give it more, or ask for a shorter context"
        )
    return Built(engine, profile)


def _engine_class(settings: EngineSettings, scheduler: EngineScheduler, device: torch.device) -> type[Engine]:
    """Raises: ValueError if steps must overlap and a part of somebody's would be told a guess in place of a token."""
    _check_switch("overlap", settings.overlap)
    parts = (settings.block_allocator, settings.prefix_cache, settings.scheduler, settings.attention)
    theirs = next((part for part in parts if part is not None and is_plugin(part)), None)
    if settings.overlap == "on" and theirs is not None:
        raise ValueError(f"overlap on needs parts of ours only, not {theirs}: it plans before tokens are known")
    wanted = settings.overlap == "on" or (settings.overlap == "auto" and device.type == "cuda")
    return PipelinedEngine if wanted and theirs is None and isinstance(scheduler, Lifecycle) else Engine


def _check_switch(name: str, value: str, values: tuple[str, ...] = SWITCH) -> None:
    if value not in values:
        raise ValueError(f"{name} must be {', '.join(values)}, got {value!r}")


def _setup(settings: EngineSettings, kv_tokens: int, longest: int, bytes_per_token: int) -> Setup:
    """The scheduler's side. Raises: ValueError on a setting that the other parts would ignore."""
    paged = settings.block_allocator == "paged" and not is_plugin(settings.scheduler)
    prefix_cache = settings.prefix_cache or ("hash" if paged else "none")
    asked = Setup(
        allocator=settings.block_allocator,
        scheduler=settings.scheduler,
        kv_tokens=kv_tokens,
        max_length=longest,
        block_size=settings.block_size,
        max_running=settings.max_running,
        max_tokens_per_step=settings.max_tokens_per_step,
        watermark=settings.watermark,
        prefix_cache=prefix_cache,
        eviction=settings.eviction,
        recovery=settings.recovery,
        host_tokens=settings.host_memory_bytes // bytes_per_token,
    )
    runs = asked.effective()
    if settings.block_allocator == "padded" and settings.scheduler == "continuous":
        # A rectangle can only be filled as a static batch: that is no setting of its own.
        asked = replace(asked, scheduler="static")
    for name in ("prefix_cache", "watermark", "recovery", "scheduler", "host_tokens"):
        if getattr(asked, name) != getattr(runs, name):
            parts = f"allocator {asked.allocator}, scheduler {asked.scheduler} and recovery {asked.recovery}"
            raise ValueError(f"{name} {getattr(asked, name)} does not go with {parts}")
    return runs


def _runner(
    loaded: LoadedModel,
    attention: Attention,
    graph_rows: int,
    kv_scales: list[KVScales] | None,
    settings: EngineSettings,
    scheduler: EngineScheduler,
    setup: Setup,
) -> Runner:
    memory = scheduler.memory
    assert isinstance(memory, PlacedMemory), f"{type(memory).__name__} does not say where tokens lie"
    host_tokens = (setup.host_tokens or setup.kv_tokens) if setup.recovery == "swap" else 0
    return Runner(
        loaded.transformer,
        attention,
        memory,
        num_host_blocks=host_tokens // memory.block_size,
        poison=settings.debug,
        graph_rows=graph_rows,
        graph_tokens=settings.max_tokens_per_step,
        max_context_tokens=setup.max_length,
        kv_scales=kv_scales,
        cascade_bytes=PAYS_BYTES if settings.cascade == "auto" else None,
    )


def _kv_scales(settings: EngineSettings, attention: Attention, loaded: LoadedModel) -> list[KVScales] | None:
    """None if keys and values stay in the model's type. Raises: ValueError if they cannot be kept in 8 bits."""
    _check_switch("kv_cache_dtype", settings.kv_cache_dtype, KV_DTYPES)
    if settings.kv_cache_dtype == "auto":
        return None
    if isinstance(attention, Lab4Attention):
        raise ValueError(f"kv_cache_dtype fp8 needs attention of ours: lab 4 ({settings.attention}) knows no scales")
    with on_device(loaded.transformer.device):
        return find_scales(loaded.transformer)


def _attention(name: str | None, device: torch.device) -> Attention:
    """Raises: ValueError naming what is not there."""
    if name is not None and is_plugin(name):
        return Lab4Attention(load_backend(name, AttentionBackend))
    on_gpu = device.type == "cuda"
    if name is None and not (on_gpu and find_spec("triton")):
        return TorchAttention()
    chosen = name or "triton"
    if chosen == "torch":
        return TorchAttention()
    if chosen != "triton":
        raise ValueError(f"no attention {chosen!r}; there are torch, triton, FILE.py and FILE.py:Class")
    if not on_gpu:
        raise ValueError(f"attention triton runs on an NVIDIA GPU, this model is on {device}: take torch")
    try:
        from reference_impl.attention.triton_attention import TritonAttention
    except ImportError as error:
        raise ValueError(f"attention triton needs the package {error.name}: pip install {error.name}") from None
    return TritonAttention()


def _graph_rows(settings: EngineSettings, attention: Attention, device: torch.device) -> int:
    """Sequences of the largest step that is captured; 0: none is. Raises: ValueError if one must and cannot be."""
    _check_switch("cuda_graphs", settings.cuda_graphs)
    _check_switch("cascade", settings.cascade, CASCADE)
    can_be = device.type == "cuda" and not isinstance(attention, TorchAttention | Lab4Attention)
    if settings.cuda_graphs == "on" and not can_be:
        raise ValueError("cuda_graphs on needs attention triton on an NVIDIA GPU: other attention waits for the device")
    return settings.max_running if can_be and settings.cuda_graphs != "off" else 0
