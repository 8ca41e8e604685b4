"""The subcommands of `engine` that simulate, and the one that fetches traces.

Owns: their arguments and what they print. Knows nothing of how anything is computed; what is imported for that is
imported when a subcommand runs, so that `engine --help` stays quick.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from reference_impl.subcommands import Commands, check_output

if TYPE_CHECKING:
    from reference_impl.sched.setup import Setup
    from reference_impl.sim.compare import Traffic
    from reference_impl.sim.cost import CostModel
    from reference_impl.sim.report import Run

_SIMULATE = """Replay a trace through one or more allocators and compare them. FILE.py:Class stands for a class of your
own with the contract of lab 3 (--allocator), lab 5 (--prefix-cache) or lab 6 (--scheduler). It is loaded and run in
this process, with all that this process may do: run only code that you trust. Columns: good/s, requests a second
within the targets; held, the share of KV memory that holds tokens; run and most, requests at once, in the mean and at
most; preempt, preemptions; recomp, tokens computed again after one; hit, the share of prompt tokens found in the
prefix cache."""


_PICTURES = (".png", ".svg", ".pdf")
_MOST_GIB = 1e6
_WIDE = 1_000
_DEFAULT_STEP_TOKENS = 2_048


def add_parsers(commands: Commands) -> None:
    """Add simulate, traces, capacity, watermark and chunked-prefill."""
    _add_simulate(commands)
    traces = commands.add_parser(
        "traces", help="the public traces: list them, fetch them", description="List or fetch the public traces."
    )
    traces.add_argument("action", choices=("list", "get"))
    traces.add_argument("names", nargs="*", metavar="NAME", help="which ones to fetch (default: all)")
    traces.add_argument("--folder", type=Path, help="where to (default: the user's cache folder)")
    traces.set_defaults(run=_traces)
    for name, text, run in (
        ("capacity", "how many requests a second paging sustains, against contiguous memory", _capacity),
        ("watermark", "free blocks kept back at admission, against preemptions", _watermark),
        ("chunked-prefill", "a long prompt among decodes, whole and in chunks", _chunked_prefill),
    ):
        effect = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ", beside published figures."
        )
        if name == "watermark":
            effect.add_argument("--scale", type=float, default=1.0, help="share of the published size (default: 1)")
        if name == "capacity":
            effect.add_argument("--requests", type=int, default=1_000, metavar="N", help="default: %(default)s")
            effect.add_argument("--target", type=float, default=0.25, metavar="S", help="seconds a token, on average")
        if name != "chunked-prefill":
            effect.add_argument("--seed", type=int, default=0)
        effect.set_defaults(run=run)


def _add_simulate(commands: Commands) -> None:
    from labkit.calibration import CALIBRATIONS
    from reference_impl.sim.device import DEVICES, MODELS

    add = commands.add_parser(
        "simulate", help="replay a trace through allocators, without a GPU", description=_SIMULATE
    )
    option = add.add_argument
    option("--trace", required=True, metavar="NAME|FILE", help=f"{', '.join(CALIBRATIONS)}, or a file in their formats")
    option(
        "--allocator",
        action="append",
        metavar="NAME",
        help="padded, contiguous, pow2, oracle, grow, paged (default) or FILE.py:Class; repeat it for more rows",
    )
    option(
        "--scheduler",
        default="continuous",
        metavar="NAME",
        help="continuous, orca, prefill-first, static or FILE.py:Class; padded rows are always static",
    )
    option("--model", default="llama-3.1-8b", metavar="NAME", help=f"{', '.join(MODELS)} (default: %(default)s)")
    option("--device", default="h100-sxm", metavar="NAME", help=f"{', '.join(DEVICES)} (default: %(default)s)")
    memory = add.add_mutually_exclusive_group()
    memory.add_argument("--kv-tokens", type=int, metavar="N", help="KV memory in tokens (default: what the device has)")
    memory.add_argument("--kv-gib", type=float, metavar="X", help="KV memory in GiB")
    option("--block-size", type=int, default=16, metavar="TOKENS", help="default: %(default)s")
    option("--max-running", type=int, default=256, metavar="N", help="requests at once, at most (default: %(default)s)")
    option(
        "--max-tokens-per-step",
        type=int,
        metavar="N",
        help=f"for continuous and FILE.py:Class (default: {_DEFAULT_STEP_TOKENS})",
    )
    option("--watermark", type=float, default=0.0, metavar="SHARE", help="blocks kept free at admission (paged)")
    option("--prefix-cache", default="none", metavar="NAME", help="none, hash, radix or FILE.py:Class (paged)")
    option("--eviction", metavar="NAME", help="of the prefix cache: lru (default), lfu, fifo or slru")
    option(
        "--recovery",
        default="recompute",
        metavar="NAME",
        help="of preempted requests: recompute, swap or cheaper (paged)",
    )
    when = add.add_mutually_exclusive_group()
    when.add_argument("--concurrency", type=int, metavar="N", help="N clients that each wait for their answer")
    when.add_argument("--rate-factor", type=float, default=1.0, metavar="X", help="recorded times, X times as fast")
    when.add_argument("--poisson", type=float, metavar="RATE", help="Poisson arrivals at RATE requests a second")
    option("--requests", type=int, metavar="N", help="only the first N of the trace")
    option(
        "--max-length", type=int, metavar="TOKENS", help="longer requests are refused (default: the trace's longest)"
    )
    option("--ttft-target", type=float, metavar="SECONDS", help="a request counts as good within it")
    option("--tpot-target", type=float, metavar="SECONDS", help="and within this one")
    option("--seed", type=int, default=0, help="of Poisson arrivals and of sampled traces")
    option("--json", type=Path, metavar="OUT", help="everything measured, as one file")
    option("--plot", type=Path, metavar="OUT", help="an image; the ending says which kind")
    add.set_defaults(run=_simulate)


def _simulate(args: argparse.Namespace) -> int:
    from reference_impl.sim.compare import compare, cost_model, refusals
    from reference_impl.sim.metrics import Targets
    from reference_impl.sim.report import as_json, folded, table, write_json
    from reference_impl.sim.show import Watcher
    from reference_impl.sim.simulator import Settings

    _check_outputs(args)
    traffic = _traffic(args)
    cost = cost_model(args.model, args.device)
    kv_tokens = _kv_tokens(args, cost)
    setups = [_setup(args, name, kv_tokens, traffic) for name in args.allocator or ["paged"]]
    _check_used(args, setups, traffic)
    targets = Targets(args.ttft_target, args.tpot_target)
    keeps = any(setup.effective().prefix_cache != "none" for setup in setups)
    settings = Settings(args.concurrency, targets, keep_contents=keeps)
    with Watcher(traffic.requests, sys.stderr) as watcher:
        runs = compare(setups, traffic, cost, settings, watcher.progress_of)
    print(f"{traffic.workload.description}")
    kv_tokens = setups[0].effective().kv_tokens
    print(
        f"{traffic.requests:,} requests; {args.model} on {args.device} ({kv_tokens:,} tokens of KV, "
        f"{kv_tokens * cost.model.kv_bytes_per_token / 2**30:.1f} GiB), scheduler {_schedulers(runs)}"
    )
    print(_remark(kv_tokens, cost), end="")
    # Where there is no terminal a line may be as long as it likes.
    print(folded(table(runs), shutil.get_terminal_size((_WIDE, 24)).columns))
    for run in runs:
        if run.metrics.refused:
            print(f"{run.allocator}: refused at the door: {refusals(run.metrics)}")
    report = as_json(runs, traffic.workload, traffic.requests, traffic.described(settings), cost)
    if args.json is not None:
        write_json(report, args.json)
    if args.plot is not None:
        from reference_impl.sim.plot import draw

        draw(report, args.plot)
    return 0


def _remark(kv_tokens: int, cost: CostModel) -> str:
    """A line about memory that the device does not have; empty if it has it."""
    try:
        room = cost.model.kv_tokens_on(cost.device)
    except ValueError as error:
        return f"note: {error}\n"
    if kv_tokens <= room:
        return ""
    return f"note: more than {cost.device.name} has, {room:,} tokens beside the weights\n"


def _schedulers(runs: list[Run]) -> str:
    """Under which scheduler the rows ran: padded rows have one of their own."""
    names = {run.allocator: str(run.config["scheduler"]) for run in runs}
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    others = next(name for allocator, name in names.items() if allocator != "padded")
    return f"{others} ({names['padded']} for padded)"


def _kv_tokens(args: argparse.Namespace, cost: CostModel) -> int:
    if args.kv_gib is not None:
        if not 0 < args.kv_gib < _MOST_GIB:
            raise ValueError(f"--kv-gib must be above 0 and below {_MOST_GIB:g}, got {args.kv_gib}")
        return int(args.kv_gib * 2**30 / cost.model.kv_bytes_per_token)
    return cost.model.kv_tokens_on(cost.device) if args.kv_tokens is None else int(args.kv_tokens)


def _check_outputs(args: argparse.Namespace) -> None:
    """What can be known of the files to write. Raises: ValueError naming the option."""
    check_output("--json", args.json)
    check_output("--plot", args.plot)
    if args.plot is not None and args.plot.suffix not in _PICTURES:
        raise ValueError(f"--plot {args.plot}: its ending must be one of {', '.join(_PICTURES)}")
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib, which is not installed")


def _check_used(args: argparse.Namespace, setups: list[Setup], traffic: Traffic) -> None:
    """No option is taken and then ignored. Raises: ValueError naming the option that no row has a use for."""
    from reference_impl.plugin import is_plugin

    schedulers = {setup.effective().scheduler for setup in setups}
    if args.max_tokens_per_step is not None and not any(name == "continuous" or is_plugin(name) for name in schedulers):
        raise ValueError(f"--max-tokens-per-step has no effect under {', '.join(sorted(schedulers))}")
    for option, setting, none in (
        ("--watermark", "watermark", 0.0),
        ("--prefix-cache", "prefix_cache", "none"),
        ("--recovery", "recovery", "recompute"),
    ):
        asked = getattr(setups[0], setting) != none
        if asked and all(getattr(setup.effective(), setting) == none for setup in setups):
            rows = ", ".join(f"{setup.allocator} under {setup.effective().scheduler}" for setup in setups)
            raise ValueError(f"{option} has no effect on {rows}")
    finds = any(setup.effective().prefix_cache != "none" for setup in setups)
    if args.eviction is not None and not finds:
        raise ValueError("--eviction has no effect without --prefix-cache")
    if finds and traffic.workload.prefix_hashes is None:
        raise ValueError(f"--prefix-cache: {traffic.workload.name} has no prefix hashes, nothing could be found again")


def _traffic(args: argparse.Namespace) -> Traffic:
    from dataclasses import replace

    from reference_impl.sim.compare import read_trace, traffic_of

    for option, value in (("--rate-factor", args.rate_factor), ("--poisson", args.poisson)):
        if value is not None and not value > 0:
            raise ValueError(f"{option} must be above 0, got {value}")
    found = traffic_of(read_trace(args.trace, args.seed), args.requests)
    if args.max_length is not None:
        found = replace(found, limits=replace(found.limits, max_length=args.max_length))
    return replace(found, rate_factor=args.rate_factor, poisson_per_s=args.poisson, seed=args.seed)


def _setup(args: argparse.Namespace, allocator: str, kv_tokens: int, traffic: Traffic) -> Setup:
    from reference_impl.sched.setup import Setup

    return Setup(
        allocator=allocator,
        scheduler=args.scheduler,
        kv_tokens=kv_tokens,
        max_length=traffic.limits.max_length,
        block_size=args.block_size,
        max_running=args.max_running,
        max_tokens_per_step=_DEFAULT_STEP_TOKENS if args.max_tokens_per_step is None else args.max_tokens_per_step,
        watermark=args.watermark,
        prefix_cache=args.prefix_cache,
        eviction="lru" if args.eviction is None else args.eviction,
        recovery=args.recovery,
    )


def _traces(args: argparse.Namespace) -> int:
    from labkit.calibration import CALIBRATIONS
    from labkit.places import traces_cache, traces_folder
    from reference_impl.sim.download import REMOTES, fetch, is_complete
    from reference_impl.sim.show import Watcher

    folder = args.folder or (traces_cache() if args.action == "get" else traces_folder() or traces_cache())
    unknown = [name for name in args.names if name not in REMOTES]
    if unknown:
        raise ValueError(f"no trace {unknown[0]!r}; there are {', '.join(REMOTES)}")
    for name in args.names or REMOTES:
        remote = REMOTES[name]
        if args.action == "get":
            with Watcher(remote.size_bytes, sys.stderr, unit="bytes") as watcher:
                print(f"{name}: {fetch(remote, folder, watcher.bytes_of(name))}")
            continue
        there = "there" if is_complete(remote, folder) else "not there"
        known = CALIBRATIONS[name]
        print(f"{name:22} {there:10} {remote.size_bytes / 1e6:5.1f} MB  {known.licence:10} {remote.url}")
    if args.action == "list":
        print(f"folder: {folder}")
    return 0


def _capacity(args: argparse.Namespace) -> int:
    from reference_impl.sim.capacity import comparison, report

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    print(report(comparison(args.requests, args.target, args.seed, progress=progress)))
    return 0


def _watermark(args: argparse.Namespace) -> int:
    from reference_impl.sim.watermark import report

    print(report(scale=args.scale, seed=args.seed))
    return 0


def _chunked_prefill(args: argparse.Namespace) -> int:
    from reference_impl.sim.chunked_prefill import report

    print(report())
    return 0
