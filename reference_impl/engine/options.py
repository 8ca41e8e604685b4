"""What an engine is made of, as settings and as options of a command line.

Owns: names, defaults and help texts. Knows nothing of how an engine is made (`build.py`), and imports no torch, so that
`engine --help` stays quick.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from reference_impl.sched.setup import ALLOCATORS, EVICTIONS, PREFIX_CACHES, SCHEDULERS

RECOVERIES = ("recompute", "swap")
DTYPES = ("float32", "bfloat16", "float16")
KV_DTYPES = ("auto", "fp8")
SWITCH = ("auto", "on", "off")
CASCADE = ("auto", "off")
_UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is made of; every field is an option of the same name.

    model: "tiny", a model that `engine model get` has fetched, a Hugging Face folder or a GGUF file. kv_memory_bytes:
    for keys and values on the device; None takes `memory_share` of what is free there. max_context_tokens: prompt and
    answer together; None for what the model was made for. prefix_cache: None takes "hash" where the memory can have one
    and "none" elsewhere. attention: "torch", "triton", or a file with the two functions of lab 4; None takes "triton"
    on an NVIDIA GPU and "torch" elsewhere. cuda_graphs: "auto" captures steps where that can be, which is with "triton"
    on an NVIDIA GPU; "on" refuses to run where it cannot, "off" captures nothing. overlap: "auto"
    plans a step while a GPU computes the one before, where all parts are ours; "on" does so on a CPU too.
    cascade: "auto" lets decodes that begin in the same blocks read these once, where that pays, which is in graphs;
    "off" never does. kv_cache_dtype: "auto" keeps keys and values in the model's dtype, "fp8" in 8
    bits with scales that are found when the engine is made (`kv_scales.py`).
    """

    model: str
    dtype: str = "float32"
    device: str = "cpu"
    kv_cache_dtype: str = "auto"
    kv_memory_bytes: int | None = None
    memory_share: float = 0.5
    block_size: int = 16
    max_context_tokens: int | None = None
    max_running: int = 64
    max_tokens_per_step: int = 512
    max_waiting: int | None = None
    block_allocator: str = "paged"
    prefix_cache: str | None = None
    eviction: str = "lru"
    scheduler: str = "continuous"
    recovery: str = "recompute"
    host_memory_bytes: int = 0
    watermark: float = 0.0
    attention: str | None = None
    cuda_graphs: str = "auto"
    overlap: str = "auto"
    cascade: str = "off"
    debug: bool = False


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """The options that every command with an engine has."""
    defaults = EngineSettings(model="smollm2")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default=defaults.model, help="tiny, smollm2, a folder or a .gguf (default: smollm2)")
    model.add_argument("--dtype", default=defaults.dtype, choices=DTYPES)
    model.add_argument("--device", default=defaults.device, help="cpu (default), cuda or cuda:N")
    memory = parser.add_argument_group("memory")
    memory.add_argument("--kv-memory", type=parse_bytes, metavar="BYTES", help="for keys and values, as 512MiB or 2GiB")
    memory.add_argument(
        "--kv-cache-dtype",
        default=defaults.kv_cache_dtype,
        choices=KV_DTYPES,
        help="auto: the model's (default); fp8: 8 bits",
    )
    memory.add_argument(
        "--memory-share", type=float, default=defaults.memory_share, metavar="SHARE", help="else: of what is free"
    )
    memory.add_argument("--block-size", type=int, default=defaults.block_size, metavar="TOKENS")
    memory.add_argument("--max-context", type=int, metavar="TOKENS", help="prompt and answer together")
    memory.add_argument("--host-memory", type=parse_bytes, default=0, metavar="BYTES", help="for what is swapped out")
    memory.add_argument("--watermark", type=float, default=0.0, metavar="SHARE", help="blocks kept free at admission")
    memory.add_argument("--eviction", default=defaults.eviction, choices=EVICTIONS, help="of the prefix cache")
    memory.add_argument("--recovery", default=defaults.recovery, choices=RECOVERIES, help="of preempted requests")
    parts = parser.add_argument_group("parts", "each of ours, or your own FILE.py:Class, which is checked first")
    parts.add_argument("--block-allocator", default=defaults.block_allocator, help=f"{', '.join(ALLOCATORS)}, or lab 3")
    parts.add_argument("--prefix-cache", help=f"{', '.join(PREFIX_CACHES)}, or lab 5 (default: hash where it can be)")
    parts.add_argument("--scheduler", default=defaults.scheduler, help=f"{', '.join(SCHEDULERS)}, or lab 6")
    parts.add_argument("--attention", help="torch, triton (default on a GPU), or lab 4: FILE.py or FILE.py:Class")
    steps = parser.add_argument_group("steps")
    steps.add_argument("--max-running", type=int, default=defaults.max_running, metavar="N", help="requests at once")
    steps.add_argument("--max-tokens-per-step", type=int, default=defaults.max_tokens_per_step, metavar="N")
    steps.add_argument(
        "--cuda-graphs", default=defaults.cuda_graphs, choices=SWITCH, help="a step as one launch (default: auto)"
    )
    steps.add_argument(
        "--overlap",
        default=defaults.overlap,
        choices=SWITCH,
        help="plan a step while the last is computed (default: auto)",
    )
    steps.add_argument(
        "--cascade",
        default=defaults.cascade,
        choices=CASCADE,
        help="auto: graphs read a prefix that all decodes share once, where that pays (default: off)",
    )
    steps.add_argument("--debug", action="store_true", help="check every invariant after every step")


def settings_from(args: argparse.Namespace, *, max_waiting: int | None = None) -> EngineSettings:
    """What `add_engine_options` read."""
    return EngineSettings(
        model=args.model,
        dtype=args.dtype,
        device=args.device,
        kv_cache_dtype=args.kv_cache_dtype,
        kv_memory_bytes=args.kv_memory,
        memory_share=args.memory_share,
        block_size=args.block_size,
        max_context_tokens=args.max_context,
        max_running=args.max_running,
        max_tokens_per_step=args.max_tokens_per_step,
        max_waiting=max_waiting,
        block_allocator=args.block_allocator,
        prefix_cache=args.prefix_cache,
        eviction=args.eviction,
        scheduler=args.scheduler,
        recovery=args.recovery,
        host_memory_bytes=args.host_memory,
        watermark=args.watermark,
        attention=args.attention,
        cuda_graphs=args.cuda_graphs,
        overlap=args.overlap,
        cascade=args.cascade,
        debug=args.debug,
    )


def parse_bytes(text: str) -> int:
    """ "512MiB", "2GB" or plain bytes. Raises: ArgumentTypeError naming the text."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; write it as 512MiB, 2GiB or 1000000")
    return int(float(found[1]) * _UNITS[found[2]])
