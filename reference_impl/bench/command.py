"""`engine bench memory`, `cpu` and `kernels`: measure, print goals with hit or miss, keep one file of results each.

Owns: the command line of these three (`serving_command.py` has the others) and the call of pytest. Knows nothing of the
cases. A miss is no failure: it is printed, for memory with the profile of one round, and the exit code stays 0. Exit
code 1: something could not be measured.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference_impl.bench import serving_command
from reference_impl.bench.cases import CASES, RATIOS, Case, NotHere
from reference_impl.bench.record import check_record, commit, lean, table
from reference_impl.bench.serving_command import RESULTS, keep
from reference_impl.subcommands import Commands, check_output

HERE = Path(__file__).parent
_PROFILE_LINES = 8


_SUITES = {
    "memory": "memory, scheduler and simulator",
    "cpu": "the engine beside transformers, and paged beside reserved",
    "kernels": "attention on an NVIDIA GPU, beside FlashInfer and vLLM where they can be imported",
}


def add_parser(commands: Commands) -> None:
    """Add bench and its suites."""
    parser = commands.add_parser(
        "bench", help="speed of memory, of the whole engine and of its kernels", description="Benchmarks, kept as JSON."
    )
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    for name, what in _SUITES.items():
        suite = suites.add_parser(name, help=what, description=f"Measure {what}.")
        suite.add_argument("--only", metavar="TEXT", help="only cases whose name contains TEXT; nothing is kept")
        suite.add_argument("--json", type=Path, metavar="OUT", help="where to keep the record (default: results/)")
        suite.add_argument(
            "--commit", metavar="NAME", help="the commit that is measured, where the checkout has no git"
        )
        suite.set_defaults(run=_bench)
    serving_command.add_parsers(suites)


def _bench(args: argparse.Namespace) -> int:
    return _bench_cpu(args) if args.suite == "cpu" else _bench_cases(args)


def _bench_cpu(args: argparse.Namespace) -> int:
    if args.only is not None:
        raise ValueError("--only chooses among the cases of memory or kernels; cpu has none")
    check_output("--json", args.json)
    try:
        from reference_impl.bench import cpu

        record = cpu.measure()
    except ImportError as error:
        print(f"engine bench cpu: {error}: it needs torch and transformers", file=sys.stderr)
        return 1
    print("\n".join(cpu.lines(record)))
    keep(record, args.json or RESULTS / "cpu.json")
    return 0


def _bench_cases(args: argparse.Namespace) -> int:
    check_output("--json", args.json)
    record = _kernels(args) if args.suite == "kernels" else _memory(args)
    if record is None:
        return 1
    if args.only is None or args.json is not None:
        keep(record, args.json or RESULTS / f"{args.suite}.json")
    return 0


def _chosen(only: str | None, names: Sequence[str]) -> list[str]:
    """Raises: ValueError if no name holds what was asked for."""
    chosen = [name for name in names if only is None or only in name]
    if not chosen:
        raise ValueError(f"no case has {only!r} in its name; there are {'; '.join(names)}")
    return chosen


def _kernels(args: argparse.Namespace) -> dict[str, Any] | None:
    # torch and triton are asked for by those who measure kernels, and by nobody else.
    try:
        from reference_impl.bench import kernels
    except ImportError as error:
        print(f"engine bench kernels: {error.name} is not installed here", file=sys.stderr)
        return None
    try:
        return kernels.measure(_chosen(args.only, kernels.case_names()), args.commit or commit(), print)
    except NotHere as reason:
        print(f"engine bench kernels: {reason}", file=sys.stderr)
        return None


def _memory(args: argparse.Namespace) -> dict[str, Any] | None:
    record = measure(_chosen(args.only, list(CASES)))
    if record is None:
        return None
    if args.commit is not None:
        record["commit"] = args.commit
    print("\n".join(table(record)))
    for name in _missed(record):
        print(f"\n{name}: the goal is missed; where the time of one round went:")
        print(profile(CASES[name]))
        if CASES[name].note:
            print(CASES[name].note)
    return record


def measure(names: Sequence[str]) -> dict[str, Any] | None:
    """The record of these cases, or None if there is none, and why was printed."""
    skipped = {}
    for name in names:
        try:
            if CASES[name].rounds == 1:
                CASES[name].prepare()
        except NotHere as reason:
            skipped[name] = str(reason)
    chosen = [name for name in names if name not in skipped]
    if not chosen:
        # Without a name pytest would run everything that it finds.
        print("\n".join(f"{name}: skipped, {why}" for name, why in skipped.items()), file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", *(f"{HERE / 'memory.py'}::bench_memory[{name}]" for name in chosen)]
        # Processor time, because the neighbours of a shared machine are none of our cost; every case is one thread.
        options = [
            "-q",
            "--benchmark-only",
            "--benchmark-timer=time.process_time",
            "--benchmark-disable-gc",
            f"--benchmark-json={report}",
        ]
        quiet = ["--benchmark-columns=median,iqr,rounds", "-p", "no:cacheprovider", "-o", "python_functions=bench_*"]
        # Started by one of several workers of a test run, it would take itself for one of them, and time nothing.
        alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        done = subprocess.run(
            [*command, *options, *quiet],
            env=alone,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            print(done.stdout, file=sys.stderr)
            return None
        record = lean(json.loads(report.read_text(encoding="utf-8")), skipped)
    check_record(record)
    return record


def _missed(record: dict[str, Any]) -> list[str]:
    """The cases whose goals were missed; of a ratio, the case that is too dear."""
    rows = [row["name"] for row in record["benchmarks"] if "goal" in row and not row["goal"]["met"]]
    rows += [RATIOS[row["name"]][0] for row in record["ratios"] if not row["goal"]["met"]]
    return list(dict.fromkeys(rows))


def profile(case: Case) -> str:
    """The functions in which one round of `case`, or its part, spends its time, most first. Several times slower."""
    prepared = (case.part or case.prepare)()
    profiler = cProfile.Profile()
    profiler.runcall(case.run, prepared)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(_PROFILE_LINES)
    lines = text.getvalue().splitlines()
    first = next(place for place, line in enumerate(lines) if "tottime" in line)
    return "\n".join(line for line in lines[first:] if line.strip())
