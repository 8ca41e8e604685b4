"""`engine generate`: one prompt, a file of them, or a chat at the terminal.

Owns: the options and what is printed. Answers go to standard output, everything else to standard error, so that the
answers can be piped. Knows nothing of how an answer is made; the heavy imports wait until the command runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from reference_impl.subcommands import Commands, check_output

if TYPE_CHECKING:
    from rich.console import Console

    from reference_impl.engine.build import Built
    from reference_impl.engine.generate import Ask, Reply, Totals
    from reference_impl.engine.outputs import Piece
    from reference_impl.memory.events import EventLog
    from reference_impl.model.sampling import SamplingParams

_GENERATE = """Answer one prompt (--prompt), all prompts of a file (--file: a prompt a line, or .jsonl with an object a
line: prompt or messages, and sampling parameters by name), or talk at the terminal (neither). Parts of the engine may
be your own files; they are loaded and run in this process, with all that this process may do."""
_SEEN_EVENTS = 10_000
"""More than happen between two pictures."""


def add_parser(commands: Commands) -> None:
    """Add generate."""
    from reference_impl.engine.options import add_engine_options

    parser = commands.add_parser(
        "generate", help="answer prompts from paged memory on this machine", description=_GENERATE
    )
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--prompt", metavar="TEXT")
    asked.add_argument("--file", type=Path, metavar="FILE", help="prompts, answered as one batch")
    parser.add_argument(
        "--chat", action="store_true", help="a prompt is a user's message, in the model's chat template"
    )
    parser.add_argument("--output", type=Path, metavar="OUT.jsonl", help="of --file (default: standard output)")
    parser.add_argument(
        "--events", type=Path, metavar="LOG.json", help="what happened to memory, for engine watch and the player"
    )
    parser.add_argument("--watch", action="store_true", help="show the memory while it works")
    _add_wishes(parser)
    add_engine_options(parser)
    parser.set_defaults(run=_generate)


def _add_wishes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the choice of tokens")
    group.add_argument("--max-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    group.add_argument("--temperature", type=float, default=0.0, help="0 (default) takes the most likely token")
    group.add_argument("--top-k", type=int, default=0, metavar="K")
    group.add_argument("--top-p", type=float, default=1.0, metavar="SHARE")
    group.add_argument("--min-p", type=float, default=0.0, metavar="SHARE")
    group.add_argument("--seed", type=int, metavar="N", help="the same answers again, in whatever batch")
    group.add_argument("--n", type=int, default=1, metavar="N", help="answers to each prompt, sharing its blocks")
    group.add_argument("--logprobs", type=int, metavar="N", help="with the N most likely tokens, in --output")
    group.add_argument("--presence-penalty", type=float, default=0.0, metavar="X")
    group.add_argument("--frequency-penalty", type=float, default=0.0, metavar="X")
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated")
    group.add_argument("--ignore-eos", action="store_true", help="go on to --max-tokens")


def _wishes(args: argparse.Namespace) -> SamplingParams:
    from reference_impl.model.sampling import SamplingParams

    return SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=args.seed,
        n=args.n,
        logprobs=args.logprobs,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(args.stop),
        ignore_eos=args.ignore_eos,
    )


def _generate(args: argparse.Namespace) -> int:
    from rich.console import Console

    from reference_impl.engine.build import build_engine
    from reference_impl.engine.heap import frozen_heap
    from reference_impl.engine.options import settings_from
    from reference_impl.memory.events import EventLog

    params = _wishes(args)
    check_output("--output", args.output)
    check_output("--events", args.events)
    if args.output is not None and args.file is None:
        raise ValueError("--output is for the answers to --file; pipe the answer to --prompt instead")
    if args.logprobs is not None and args.file is None:
        raise ValueError("--logprobs are written to the answers of --file, as JSON; give --file")
    if args.file is not None and not args.file.is_file():
        raise ValueError(f"{args.file}: no such file")
    console = Console(stderr=True)
    # A picture asks for the state when it is drawn; only a log to be played later holds one for each call.
    log = (
        EventLog() if args.events is not None else EventLog(with_state=False, keep=_SEEN_EVENTS) if args.watch else None
    )
    built = build_engine(settings_from(args), log=log)
    console.print("\n".join(built.profile.lines()), highlight=False, soft_wrap=True)
    with frozen_heap(), ExitStack() as stack:
        after_step = None if log is None or not args.watch else _watching(stack, log, console)
        if args.file is not None:
            code = _batch(args, built, params, console, after_step)
        elif args.prompt is not None:
            code = _one(args, built, params, console, after_step)
        else:
            code = _talk(built, params, console, after_step)
    if args.events is not None and log is not None:
        args.events.write_text(json.dumps(log.events) + "\n", encoding="utf-8")
        console.print(f"{len(log.events):,} events in {args.events.name}", highlight=False, soft_wrap=True)
    return code


def _watching(stack: ExitStack, log: EventLog, console: Console) -> Callable[[], None]:
    from reference_impl.engine.watch.live import Watch

    return stack.enter_context(Watch(log, console)).update


# One prompt ----------------------------------------------------------------------------------------------------


def _one(
    args: argparse.Namespace,
    built: Built,
    params: SamplingParams,
    console: Console,
    after_step: Callable[[], None] | None,
) -> int:
    from reference_impl.engine.asks import ask_of_text

    ask = ask_of_text(args.prompt, built.engine.loaded.tokenizer, params, chat=args.chat)
    return _answer(built, ask, console, after_step)[1]


def _answer(built: Built, ask: Ask, console: Console, after_step: Callable[[], None] | None) -> tuple[Reply, int]:
    """Answer one ask, its first answer as it comes and the others behind it; the reply and an exit code."""
    from reference_impl.engine.generate import generate

    replies, totals = generate(built.engine, [ask], hear=_echo, after_step=after_step)
    reply = replies[0]
    if reply.refused:
        print(f"engine generate: {reply.refused}", file=sys.stderr)
        return reply, 1
    print()
    for number, told in enumerate(reply.answers[1:], start=2):
        print(f"--- answer {number}\n{told.text}")
    console.print(_summary(built, totals), style="dim", highlight=False, soft_wrap=True)
    return reply, 0


def _echo(piece: Piece) -> None:
    if piece.choice == 0:
        print(piece.text, end="", flush=True)


# A chat at the terminal ----------------------------------------------------------------------------------------


def _talk(built: Built, params: SamplingParams, console: Console, after_step: Callable[[], None] | None) -> int:
    """Turns until the end of input. Each turn asks with all turns before it, whose blocks are found again."""
    from reference_impl.engine.generate import Ask

    console.print("Say something. /reset forgets what was said, /quit ends.", highlight=False, soft_wrap=True)
    messages: list[dict[str, str]] = []
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return 0
        if said.strip() == "/quit":
            return 0
        if said.strip() == "/reset":
            messages.clear()
            continue
        if not said.strip():
            continue
        messages.append({"role": "user", "content": said})
        reply, code = _answer(built, Ask(built.engine.loaded.tokenizer.chat(messages), params), console, after_step)
        if code:
            # What did not fit is not part of the talk; the next turn may be shorter.
            messages.pop()
        else:
            messages.append({"role": "assistant", "content": reply.answers[0].text})


# A file of prompts ---------------------------------------------------------------------------------------------


def _batch(
    args: argparse.Namespace,
    built: Built,
    params: SamplingParams,
    console: Console,
    after_step: Callable[[], None] | None,
) -> int:
    from reference_impl.engine.asks import read_asks, reply_row
    from reference_impl.engine.generate import generate

    asks = read_asks(args.file, built.engine.loaded.tokenizer, params, chat=args.chat)
    # A watched memory fills the terminal already.
    hear = None if after_step is not None else _Progress(console, len(asks))
    with hear or ExitStack():
        replies, totals = generate(built.engine, asks, hear=hear, after_step=after_step)
    lines = [json.dumps(reply_row(number, reply), ensure_ascii=False) for number, reply in enumerate(replies)]
    if args.output is None:
        print("\n".join(lines))
    else:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print(_summary(built, totals), style="dim", highlight=False, soft_wrap=True)
    return 0


class _Progress:
    """A bar of the prompts answered, with the tokens made a second."""

    def __init__(self, console: Console, asks: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("prompts"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[tokens]:,} tokens"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task("prompts", total=asks, tokens=0)
        self._tokens = 0

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, piece: Piece) -> None:
        self._tokens += len(piece.tokens)
        self._progress.update(self._task, advance=0 if piece.usage is None else 1, tokens=self._tokens)


def _summary(built: Built, totals: Totals) -> str:
    counters = built.engine.scheduler.counters
    said = [
        f"{totals.made_tokens:,} tokens in {totals.seconds:.1f} s ({totals.tokens_per_s:.1f} a second)",
        f"{totals.steps:,} steps, {totals.most_running} requests at once",
        f"{totals.cached_tokens:,} of {totals.prompt_tokens:,} prompt tokens found in the cache",
    ]
    if counters.preemptions:
        said.append(f"{counters.preemptions:,} preemptions so far")
    if totals.refused:
        said.append(f"{totals.refused:,} refused")
    return "; ".join(said)
