"""`engine watch LOG.json`: a log of KV memory, played in the terminal or printed.

Owns: the arguments, the reading of the file, and what is said of one that cannot be shown. Knows nothing of drawing;
what needs `rich` is imported when the command runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference_impl.subcommands import Commands

if TYPE_CHECKING:
    from rich.console import Console

    from reference_impl.engine.watch.replay import Replay

_DESCRIPTION = """Show what happened to KV memory, event by event: which request holds which block, who waits, what was
preempted, copied and evicted. LOG.json is a log with states, as `engine generate --events LOG.json` writes one. Where
the output is no terminal the state after the last event is printed. Keys: space pauses, left and right step, q quits.
Colour only repeats what letters say; NO_COLOR turns it off."""
_LONGEST_REASON = 300
_SPEED = 10.0


def add_parser(commands: Commands) -> None:
    """Add watch."""
    parser = commands.add_parser("watch", help="KV memory in the terminal, from a log", description=_DESCRIPTION)
    parser.add_argument("log", type=Path, metavar="LOG.json")
    parser.add_argument("--speed", type=float, metavar="EVENTS_PER_S", help=f"default: {_SPEED:g}")
    parser.add_argument("--from", dest="first", type=int, metavar="N", help="first event to show (default: 0)")
    parser.add_argument("--to", dest="last", type=int, metavar="N", help="last event to show (default: the last one)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--step", action="store_true", help="wait for a key: space or right, left, q")
    how.add_argument("--once", action="store_true", help="print the state after the last event to show")
    parser.set_defaults(run=_watch)


def _watch(args: argparse.Namespace) -> int:
    speed = _checked_speed(args)
    try:
        from rich.console import Console

        from reference_impl.engine.watch.replay import Replay
    except ModuleNotFoundError as error:
        raise ValueError(f"this command needs {error.name}: install the package with its extra [engine]") from None
    events = read_events(args.log)
    try:
        replay = Replay(events)
    except ValueError as error:
        raise ValueError(f"{args.log}: {_one_line(str(error))}") from None
    first = _checked("--from", 0 if args.first is None else args.first, 0, replay.last)
    last = _checked("--to", replay.last if args.last is None else args.last, first, replay.last)
    console = Console()
    if args.step and not (console.is_terminal and not console.is_dumb_terminal and sys.stdin.isatty()):
        raise ValueError("--step needs a terminal to show in and to read keys from; --once prints instead")
    if args.once or not console.is_terminal or console.is_dumb_terminal:
        console.print(replay.view(last))
    else:
        _play(replay, first, last, speed, args.step, console)
    return 0


def _checked_speed(args: argparse.Namespace) -> float:
    """Nothing that was asked for may be without effect."""
    if args.once and args.first is not None:
        raise ValueError("--from has no effect with --once, which prints the state after the last event to show")
    if args.speed is None:
        return _SPEED
    if args.once or args.step:
        raise ValueError(f"--speed has no effect with {'--once' if args.once else '--step'}")
    if not (args.speed > 0 and math.isfinite(args.speed)):
        raise ValueError(f"--speed must be above 0, got {args.speed}")
    return float(args.speed)


def _play(replay: Replay, first: int, last: int, speed: float, stepping: bool, console: Console) -> None:
    from reference_impl.engine.watch.keys import Keys
    from reference_impl.engine.watch.replay import Play

    with ExitStack() as stack:
        keys = stack.enter_context(Keys(sys.stdin.fileno())) if sys.stdin.isatty() else None
        Play(replay, first, last, speed, stepping=stepping, keys=keys).run(console)


def read_events(path: Path) -> list[Any]:
    """The JSON list in a file, not looked at any closer.

    Raises: OSError if it cannot be read, ValueError naming the file and what is wrong with it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON: byte {error.start} is no UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path} is no event log: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {_one_line(str(error))}") from None
    if not isinstance(found, list):
        raise ValueError(f"{path} is no event log: it holds a JSON {_named(found)}, not a list of events")
    return found


def _named(found: object) -> str:
    names: dict[type, str] = {dict: "object", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(found), "number")


def _checked(option: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ValueError(f"{option} must be {least} to {most}, got {value}")
    return value


def _one_line(reason: str) -> str:
    """A reason may quote the file, which may hold anything, of any length."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in reason)
    return shown if len(shown) <= _LONGEST_REASON else f"{shown[:_LONGEST_REASON]} ..."
