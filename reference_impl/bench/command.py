"""`engine bench memory`: measure, print the goals with hit or miss, and keep one file of results.

Owns: the command line and the call of pytest. Knows nothing of the cases. A miss is no failure: it is printed with the
profile of one round, and the exit code stays 0. Exit code 1: something could not be measured.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import pstats
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference_impl.bench.cases import CASES, RATIOS, Case, NotHere
from reference_impl.bench.record import check_record, lean, table
from reference_impl.subcommands import Commands, check_output

HERE = Path(__file__).parent
RESULTS = HERE / "results"
_PROFILE_LINES = 8


def add_parser(commands: Commands) -> None:
    """Add bench."""
    parser = commands.add_parser(
        "bench", help="speed of memory, scheduler and simulator", description="Benchmarks on a CPU, kept as JSON."
    )
    parser.add_argument("suite", choices=("memory",))
    parser.add_argument("--only", metavar="TEXT", help="only the cases whose name contains TEXT; nothing is kept")
    parser.add_argument("--json", type=Path, metavar="OUT", help="where to keep the record (default: results/)")
    parser.set_defaults(run=_bench)


def _bench(args: argparse.Namespace) -> int:
    names = [name for name in CASES if args.only is None or args.only in name]
    if not names:
        print(f"no case has {args.only!r} in its name; there are {'; '.join(CASES)}", file=sys.stderr)
        return 1
    check_output("--json", args.json)
    record = measure(names)
    if record is None:
        return 1
    print("\n".join(table(record)))
    for name in _missed(record):
        print(f"\n{name}: the goal is missed; where the time of one round went:")
        print(profile(CASES[name]))
        if CASES[name].note:
            print(CASES[name].note)
    if args.only is None or args.json is not None:
        path = args.json or RESULTS / f"{args.suite}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"\nkept in {path.name}")
    return 0


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
        done = subprocess.run(
            [*command, *options, *quiet], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
