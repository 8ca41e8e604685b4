"""`engine serve`: the OpenAI API of a model, on one port of this machine.

Owns: the options of the server, the socket, signals, and what is printed. Knows nothing of how a call is answered. The
port is taken before the model is loaded, so that a port in use is known at once. SIGTERM and Ctrl+C let the answers
under way come to their end for `--drain-s` seconds and abort what is left then; a second Ctrl+C does not wait.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from reference_impl.subcommands import Commands

if TYPE_CHECKING:
    from reference_impl.engine.server.app import ServerSettings

KEY_VARIABLE = "ENGINE_API_KEY"
_BACKLOG = 2_048
_MIB = 2**20
_SERVE = """Serve a model by the OpenAI API: /v1/completions, /v1/chat/completions, /v1/models; /health, /metrics and
/openapi.json besides. Parts of the engine may be your own files; they are loaded and run in this process, with all that
this process may do."""


def add_parser(commands: Commands) -> None:
    """Add serve."""
    from reference_impl.engine.options import add_engine_options

    parser = commands.add_parser("serve", help="the OpenAI API of a model, on this machine", description=_SERVE)
    server = parser.add_argument_group("server")
    option = server.add_argument
    option("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    option("--port", type=int, default=8000, metavar="N", help="default: %(default)s; 0 takes a free one")
    option("--api-key", metavar="KEY", help=f"what clients must send (default: ${KEY_VARIABLE}, else anybody may call)")
    option("--served-model-name", metavar="NAME", help="as clients call it (default: the model's own name)")
    option("--max-waiting", type=int, default=256, metavar="N", help="one more is refused (default: %(default)s)")
    option("--timeout-s", type=float, metavar="S", help="the longest that a request may take (default: no limit)")
    option("--drain-s", type=float, default=30.0, metavar="S", help="for answers under way, when it is stopped")
    option("--max-body-mib", type=float, default=4.0, metavar="X", help="size of a call (default: %(default)s)")
    add_engine_options(parser)
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    for name, value in (("--timeout-s", args.timeout_s), ("--max-waiting", args.max_waiting)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if not 0 <= args.drain_s <= 86_400:
        raise ValueError(f"--drain-s must be 0 to 86,400 seconds, got {args.drain_s}")
    with listen(args.host, args.port) as listener:
        from reference_impl.engine.build import build_engine
        from reference_impl.engine.heap import frozen_heap
        from reference_impl.engine.options import settings_from
        from reference_impl.engine.server.http_server import serve

        settings = _settings(args)
        built = build_engine(settings_from(args, max_waiting=args.max_waiting))
        if args.served_model_name is None:
            settings = replace(settings, model_name=built.engine.loaded.name)
        print(*built.profile.lines(), sep="\n", file=sys.stderr)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {settings.model_name} on http://{shown}:{port}/v1 (Ctrl+C stops)", file=sys.stderr, flush=True)
        signal.signal(signal.SIGTERM, _leave)
        with frozen_heap():
            serve(built.engine, settings, listener, drain_s=args.drain_s)
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    """Of SIGTERM, which uvicorn raises again once everything has come to its end: that is no failure."""
    raise SystemExit(0)


def _settings(args: argparse.Namespace) -> ServerSettings:
    """Checked before the model is loaded, whose name is not known yet."""
    from reference_impl.engine.server.app import ServerSettings

    return ServerSettings(
        model_name=args.model if args.served_model_name is None else args.served_model_name,
        api_key=os.environ.get(KEY_VARIABLE) if args.api_key is None else args.api_key,
        timeout_s=args.timeout_s,
        max_body_bytes=int(args.max_body_mib * _MIB),
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises: ValueError, in one line, if the address is wrong or the port is in use."""
    if not 0 <= port <= 65_535:
        raise ValueError(f"--port must be 0 to 65535, got {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            said = f"port {port} of {host} is in use: stop what listens there, or choose another --port"
        elif error.errno == errno.EACCES:
            said = f"port {port} may not be used by this user: choose one from 1024 on"
        else:
            said = f"--host {host} is no address of this machine: {error.strerror}"
        raise ValueError(said) from None
