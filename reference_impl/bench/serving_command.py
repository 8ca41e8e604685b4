"""`engine bench offline`, `serve`, `budget` and `plot`: their options, and what is printed and kept.

Owns: the four command lines. Knows nothing of what is measured or drawn. torch and matplotlib are imported by those
who run a command, not by `engine --help`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from reference_impl.bench.record import commit
from reference_impl.engine.options import DTYPES, KV_DTYPES, SWITCH, EngineSettings, parse_bytes
from reference_impl.sched.setup import ALLOCATORS, PREFIX_CACHES
from reference_impl.subcommands import Commands, check_output

RESULTS = Path(__file__).parent / "results"


def add_parsers(suites: Commands) -> None:
    """Add offline, serve, budget and plot."""
    offline = suites.add_parser(
        "offline",
        help="batch jobs, beside the floor of their bytes",
        description="All requests are there at once. Without --model, --lengths and --requests: the jobs that are "
        "kept, two shapes and the lengths of two traces. With one of them: that job alone, kept where --json says.",
    )
    _add_engine(offline, max_tokens_per_step=16_384)
    offline.add_argument(
        "--kv-cache-dtype", default="auto", choices=KV_DTYPES, help="fp8: in 8 bits, kept where --json says"
    )
    offline.set_defaults(model=None)
    offline.add_argument("--lengths", help="script, as nano-vllm published it, or a trace: azure_conv, ...")
    offline.add_argument("--requests", type=int, metavar="N", help="of a trace (default: 256)")
    offline.add_argument("--turns", type=int, default=3, metavar="N", help="how often (default: 3)")
    offline.add_argument("--memory-share", type=float, default=0.9, metavar="SHARE", help="for KV, of what is free")
    offline.set_defaults(run=_offline)

    serve = suites.add_parser(
        "serve", help="latency and throughput at given rates of requests", description="Requests come as they like."
    )
    _add_engine(serve, max_tokens_per_step=2_048)
    serve.add_argument(
        "--rates", type=_rates, default=(4.0, 8.0, 16.0, 32.0, 64.0), metavar="R,R,...", help="requests a second"
    )
    serve.add_argument("--requests", type=int, default=256, metavar="N", help="of each rate (default: 256)")
    serve.add_argument("--seed", type=int, default=0, help="of arrivals and prompts")
    serve.add_argument("--workload", default="azure_conv", help="a trace or its sample (default: azure_conv)")
    serve.add_argument(
        "--ttft", type=float, default=0.45, metavar="S", help="a good request has its first token by then"
    )
    serve.add_argument("--tpot", type=float, default=0.04, metavar="S", help="and one more at least every S seconds")
    serve.add_argument("--kv-memory", type=parse_bytes, metavar="BYTES", help="for keys and values, as 512MiB or 2GiB")
    serve.add_argument("--memory-share", type=float, default=0.8, metavar="SHARE", help="else: of what is free")
    serve.add_argument("--max-context", type=int, metavar="TOKENS", help="longer requests are cut to it")
    serve.add_argument("--block-allocator", default="paged", choices=ALLOCATORS, help="(default: paged)")
    serve.add_argument("--prefix-cache", choices=PREFIX_CACHES, help="(default: hash where it can be)")
    serve.add_argument("--max-waiting", type=int, metavar="N", help="requests beyond that are refused")
    serve.set_defaults(run=_serve)

    budget = suites.add_parser(
        "budget", help="one budget of KV bytes, kept in five ways", description="The same requests, the same bytes."
    )
    _add_engine(budget, max_tokens_per_step=2_048)
    budget.add_argument("--kv-tokens", type=int, default=16_384, metavar="TOKENS", help="slots (default: 16384)")
    budget.add_argument("--requests", type=int, default=240, metavar="N", help="all there at the start (default: 240)")
    budget.add_argument("--max-context", type=int, default=2_048, metavar="TOKENS", help="what reserving reserves")
    budget.add_argument("--max-prompt", type=int, default=500, metavar="TOKENS", help="longer prompts are left out")
    budget.add_argument("--seed", type=int, default=0, help="of the prompts")
    budget.add_argument("--workload", default="sharegpt_8k", help="a trace or its sample (default: sharegpt_8k)")
    budget.set_defaults(run=_budget)

    plot = suites.add_parser("plot", help="draw what was kept", description="Pictures of the records that are there.")
    plot.add_argument("--json", type=Path, default=RESULTS, metavar="DIR", help="records (default: results/)")
    plot.add_argument("--out", type=Path, default=Path("_build/bench"), metavar="DIR", help="(default: _build/bench)")
    plot.set_defaults(run=_plot)


def _add_engine(parser: argparse.ArgumentParser, max_tokens_per_step: int) -> None:
    parser.add_argument(
        "--model", default="qwen3-0.6b", help="a shape with random weights, or as `engine serve` takes it"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--attention", help="torch or triton (default: triton on a GPU)")
    parser.add_argument("--cuda-graphs", default="auto", choices=SWITCH, help="a step as one launch")
    parser.add_argument("--overlap", default="auto", choices=SWITCH, help="plan a step while the last is computed")
    parser.add_argument("--max-running", type=int, default=256, metavar="N", help="requests at once")
    parser.add_argument("--max-tokens-per-step", type=int, default=max_tokens_per_step, metavar="N")
    parser.add_argument("--json", type=Path, metavar="OUT", help="where to keep the record (default: results/)")
    parser.add_argument("--commit", metavar="NAME", help="the commit that is measured, where the checkout has no git")


def _rates(text: str) -> tuple[float, ...]:
    """ "1,2.5,10". Raises: ArgumentTypeError naming the text."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no rates; write them as 1,2.5,10") from None


def _settings(args: argparse.Namespace, **more: Any) -> EngineSettings:
    return EngineSettings(
        model=args.model,
        dtype=args.dtype,
        device=args.device,
        attention=args.attention,
        cuda_graphs=args.cuda_graphs,
        overlap=args.overlap,
        max_running=args.max_running,
        max_tokens_per_step=args.max_tokens_per_step,
        **more,
    )


def _offline(args: argparse.Namespace) -> int:
    check_output("--json", args.json)
    from reference_impl.bench import offline

    asked = {"model": args.model, "lengths": args.lengths, "requests": args.requests}
    alone = {name: value for name, value in asked.items() if value is not None}
    chosen = [offline.Job(**alone)] if alone else offline.KEPT
    jobs = [replace(job, turns=args.turns) for job in chosen]
    more = {"memory_share": args.memory_share, "kv_cache_dtype": args.kv_cache_dtype}
    settings = replace(_settings(args, **more), model=jobs[0].model)
    record = offline.measure(settings, jobs, args.commit or commit(), _say)
    print("\n".join(offline.lines(record)))
    if args.json is not None or not (alone or args.kv_cache_dtype != "auto"):
        keep(record, args.json or RESULTS / "offline.json")
    return 0


def _serve(args: argparse.Namespace) -> int:
    check_output("--json", args.json)
    from reference_impl.bench import serve
    from reference_impl.sim.metrics import Targets

    load = serve.Load(args.rates, args.requests, args.workload, args.seed, Targets(args.ttft, args.tpot))
    settings = _settings(
        args,
        kv_memory_bytes=args.kv_memory,
        memory_share=args.memory_share,
        max_context_tokens=args.max_context,
        max_waiting=args.max_waiting,
        block_allocator=args.block_allocator,
        prefix_cache=args.prefix_cache,
    )
    keep(serve.measure(settings, load, args.commit or commit(), _say), args.json or RESULTS / "serve.json")
    return 0


def _budget(args: argparse.Namespace) -> int:
    check_output("--json", args.json)
    from reference_impl.bench import budget
    from reference_impl.bench.budget_record import verdict

    terms = budget.Terms(args.kv_tokens, args.requests, args.max_context, args.max_prompt, args.workload, args.seed)
    record = budget.measure(_settings(args), terms, args.commit or commit(), _say)
    print("\n".join(verdict(record)))
    keep(record, args.json or RESULTS / "budget.json")
    return 0


def _plot(args: argparse.Namespace) -> int:
    from reference_impl.bench import plot

    for path in plot.draw_all(args.json, args.out):
        print(path)
    return 0


def _say(line: str) -> None:
    """At once, because minutes lie between two lines."""
    print(line, flush=True)


def keep(record: dict[str, Any], path: Path) -> None:
    """Write a record, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nkept in {path.name}")
