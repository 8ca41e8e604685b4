"""The `engine` command: what the reference engine can show on a machine without a GPU.

Owns: exit codes, and the arguments and printing of the subcommands about memory alone; those that simulate are in
`sim/command.py`. Every subcommand is a thin call into the package that does the work.
Exit code 0: done; 1: not done, with the reason in one line on standard error; 2: the command line itself was wrong;
130: interrupted from the keyboard.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from reference_impl.bench import command as bench
from reference_impl.engine import generate_command as generate
from reference_impl.engine.server import command as serve
from reference_impl.engine.watch import command as watch
from reference_impl.model import command as model
from reference_impl.sim import command as sim
from reference_impl.subcommands import check_output

PARADOX_SEED = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    # Read once, when torch is imported, which no subcommand has done yet. Threads that wait for one another by turning
    # in place, as is the default, make each other wait where something else runs on the same cores: a step of 32
    # sequences took four times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    args = _parser().parse_args(argv)
    try:
        if (getattr(args, "seed", None) or 0) < 0:
            raise ValueError(f"--seed must be at least 0, got {args.seed}")
        return int(args.run(args))
    except (ValueError, OSError) as error:
        print(f"engine {args.command}: {error}", file=sys.stderr)
        return 1
    except MemoryError:
        print(f"engine {args.command}: this machine has too little memory for so large a pool", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"engine {args.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="engine", description="Padding to Paging: the reference engine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    paradox = commands.add_parser("paradox", help="a request refused while more than half of the memory is free")
    paradox.add_argument("--seed", type=int, default=PARADOX_SEED, help="of the sampled lengths and the arrivals")
    paradox.add_argument("--capacity", type=int, default=15_728, metavar="TOKENS")
    paradox.add_argument("--load", type=float, default=0.4, help="mean share of the memory in use")
    paradox.add_argument("--workload", default="azure_conv")
    paradox.add_argument("--requests", type=int, default=10_000)
    paradox.set_defaults(run=_paradox)

    table = commands.add_parser("memory-table", help="share of KV memory that holds tokens, under each policy")
    table.add_argument("--workload", default="sharegpt_8k")
    table.add_argument("--requests", type=int, default=2_000, help="how many of the workload's first requests")
    table.add_argument("--capacity", type=int, default=15_728, metavar="TOKENS")
    table.add_argument("--max-length", type=int, default=2_048, metavar="TOKENS", help="longer requests are left out")
    table.add_argument("--max-prompt", type=int, metavar="TOKENS", help="longer prompts are left out too")
    table.add_argument("--warm-up", type=int, default=500, metavar="STEPS", help="steps before counting begins")
    table.add_argument("--json", type=Path, metavar="OUT")
    table.set_defaults(run=_memory_table)

    sharing = commands.add_parser("sharing", help="blocks that parallel sampling and beam search save by sharing")
    sharing.add_argument("--requests", type=int, default=60, help="drawn from each of the two workloads' lengths")
    sharing.add_argument("--seed", type=int, default=0)
    sharing.set_defaults(run=_sharing)
    sim.add_parsers(commands)
    model.add_parser(commands)
    bench.add_parser(commands)
    generate.add_parser(commands)
    serve.add_parser(commands)
    watch.add_parser(commands)
    return parser


def _paradox(args: argparse.Namespace) -> int:
    from reference_impl.memory.paradox import paradox

    found = paradox(args.seed, args.capacity, args.load, args.workload, args.requests)
    if found is None:
        said = f"no refusal with more than half of the memory free in {args.requests:,} requests; try a higher --load"
        print(f"engine paradox: {said}", file=sys.stderr)
        return 1
    print(found)
    return 0


def _sharing(args: argparse.Namespace) -> int:
    from reference_impl.memory.sharing import report

    for line in report(args.requests, args.seed):
        print(line, flush=True)
    return 0


def _memory_table(args: argparse.Namespace) -> int:
    from labkit.workloads import workload
    from reference_impl.memory.occupancy import PUBLISHED_HELD, memory_table
    from reference_impl.memory.policies import Sizes

    for option, value, least in (("--requests", args.requests, 1), ("--warm-up", args.warm_up, 0)):
        if value < least:
            raise ValueError(f"{option} must be at least {least}, got {value}")
    check_output("--json", args.json)
    source = workload(args.workload)
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    longest_prompt = args.max_length if args.max_prompt is None else args.max_prompt
    rows = [
        (prompt, new)
        for prompt, new in pairs
        if 1 <= prompt <= longest_prompt and new >= 1 and prompt + new <= args.max_length
    ][: args.requests]
    table = memory_table(Sizes(capacity=args.capacity, max_length=args.max_length), rows, warm_up=args.warm_up)
    print(source.description)
    print(f"{len(rows):,} requests of at most {args.max_length:,} tokens, {args.capacity:,} slots")
    print(f"{'policy':12} {'holds tokens':>12} {'paper':>7} {'running':>8} {'preempted':>9}")
    for row in table:
        paper = f"{PUBLISHED_HELD[row.policy]:.1%}"
        print(f"{row.policy:12} {row.held:>12.1%} {paper:>7} {row.mean_running:>8.1f} {row.preemptions:>9}")
    if args.json is not None:
        shown = [{"policy": row.policy, "held": row.held, "mean_running": row.mean_running} for row in table]
        args.json.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
