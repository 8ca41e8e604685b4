"""The application on a socket, from the first connection to the last.

Owns: uvicorn's configuration and the order of a shutdown. Knows nothing of routes or of engines.
A connection ends when its answer does, and answers end when the engine says so. So both shutdowns run at once: uvicorn
takes no connection any more and waits for those that are open, while the engine lets requests end, then aborts them.
"""

from __future__ import annotations

import asyncio
import math
import socket

import uvicorn

from reference_impl.engine.async_engine import AsyncEngine
from reference_impl.engine.engine import Engine
from reference_impl.engine.server.app import ServerSettings, build_app
from reference_impl.engine.server.metrics import Metrics

_WRITE_S = 5
"""For the last words to clients that read slowly, after the engine has ended."""


class Server(uvicorn.Server):
    """uvicorn's, with an engine that stops when it does."""

    def __init__(self, config: uvicorn.Config, served: AsyncEngine) -> None:
        super().__init__(config)
        self._served = served

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = asyncio.ensure_future(self._served.shutdown())
        await super().shutdown(sockets)
        if self.force_exit:
            self._served.abort_all()
        await stopping


def make_server(engine: Engine, settings: ServerSettings, *, drain_s: float) -> Server:
    """A server that has not begun: `run(sockets=[...])` serves until it is told to exit."""
    metrics = Metrics(settings.model_name)
    served = AsyncEngine(engine, observer=metrics, drain_s=drain_s)
    config = uvicorn.Config(
        build_app(served, settings, metrics),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        # Strict with what is no HTTP, and the same one on every machine.
        http="h11",
        timeout_graceful_shutdown=math.ceil(drain_s) + _WRITE_S,
    )
    return Server(config, served)


def serve(engine: Engine, settings: ServerSettings, listener: socket.socket, *, drain_s: float) -> None:
    """Serve on `listener` until SIGTERM or SIGINT."""
    make_server(engine, settings, drain_s=drain_s).run(sockets=[listener])
