"""The tiny model served over real HTTP on this machine, beside the test: for the tests of the server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from reference_impl.engine.engine import Engine
from reference_impl.engine.server.app import ServerSettings
from reference_impl.engine.server.command import listen
from reference_impl.engine.server.http_server import Server, make_server
from tests.reference_impl.engine.driving import blocks_in_use

PATIENCE_S = 30.0


@dataclass
class Served:
    """A server that runs in a thread of this process, and the engine in it."""

    engine: Engine
    server: Server
    port: int
    client: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """A call with `body` as JSON, or as it is if it is bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **headers}
        return self.client.post(path, content=content, headers=sent)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers=headers)

    def connection(self, path: str, body: Any) -> socket.socket:
        """A socket over which a call was sent, and nothing read."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        made = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        made.sendall(f"{head}\r\n\r\n".encode() + data)
        return made

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Raises: AssertionError, saying `what`, if that does not come true in time."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, what
            time.sleep(0.005)

    def wait_until_idle(self) -> None:
        """Until nobody is served: then no block may be in use."""
        self.wait_for(lambda: not self.engine.has_work, "requests go on")
        assert blocks_in_use(self.engine) == 0
        self.engine.check_invariants()

    def events(self, path: str, body: Any) -> list[dict[str, Any]]:
        """The objects of a stream that came to its end."""
        response = self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        return events_of(response.text)

    def metrics(self) -> dict[str, float]:
        return samples_of(self.get("/metrics").text)


def samples_of(text: str) -> dict[str, float]:
    """Each sample of metrics by its name and labels, as "name{reason=...}" without the model's name."""
    samples = {}
    for line in text.splitlines():
        if not line.startswith("#") and "_created" not in line:
            name, _, value = line.rpartition(" ")
            name = name.replace('model_name="tiny",', "").replace(',model_name="tiny"', "")
            samples[name.replace('{model_name="tiny"}', "")] = float(value)
    return samples


def events_of(text: str) -> list[dict[str, Any]]:
    """The objects of a whole stream. Raises: AssertionError unless [DONE] is its last word."""
    *events, last, rest = text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", ""), text[-200:]
    return [json.loads(event.removeprefix("data: ")) for event in events]


@contextmanager
def serving(engine: Engine, *, drain_s: float = 5.0, **settings: Any) -> Iterator[Served]:
    """Serve for as long as the context lasts; at its end everything has come to its end, and nothing is left."""
    before = set(threading.enumerate())
    listener = listen("127.0.0.1", 0)
    server = make_server(engine, ServerSettings(model_name="tiny", **settings), drain_s=drain_s)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, verify=False)
    served = Served(engine, server, port, client)
    try:
        with client:
            served.wait_for(lambda: server.started, "the server does not start")
            yield served
    finally:
        server.should_exit = True
        thread.join(timeout=PATIENCE_S)
    assert not thread.is_alive(), "the server does not stop"
    left = set(threading.enumerate()) - before
    assert not [other.name for other in left if other.name in ("engine", "server")]
