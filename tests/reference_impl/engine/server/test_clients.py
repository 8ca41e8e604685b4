"""Clients as they are: many at once, slow ones, those that vanish, and those that are there when the server stops."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

import httpx

from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampling import SamplingParams
from tests.reference_impl.engine.driving import blocks_in_use, heard, tiny_engine
from tests.reference_impl.engine.server.http_serving import PATIENCE_S, Served, events_of, serving

pytestmark = pytest.mark.usefixtures("one_thread")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = {"model": "tiny", "prompt": "once upon", "max_tokens": 1_500, "temperature": 0, "ignore_eos": True}
CLIENTS = 200
ABORTED = 'vllm:request_success_total{finished_reason="abort"}'


@pytest.fixture
def served(tiny: LoadedModel) -> Iterator[Served]:
    """Every test sees all blocks free at its end."""
    with serving(tiny_engine(tiny, blocks=2_048, debug=False, max_waiting=1_000).engine) as running:
        yield running
        running.wait_until_idle()


def read_until(connection: socket.socket, words: bytes) -> bytes:
    """What comes, up to and with `words`."""
    data = b""
    while words not in data:
        more = connection.recv(65_536)
        assert more, f"the connection ended before {words!r}: ...{data[-200:]!r}"
        data += more
    return data


def body_of(data: bytes) -> str:
    """The body of a whole response that came in chunks."""
    rest, body = data.partition(b"\r\n\r\n")[2], b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return body.decode()
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


def reset(connection: socket.socket) -> None:
    """Close without a farewell, as a process that is killed does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.slow
def test_two_hundred_streams_at_once_lose_nothing_and_say_what_each_says_alone(
    served: Served, tiny: LoadedModel
) -> None:
    prompts = [f"client {number} asks for {'something ' * (number % 7)}" for number in range(CLIENTS)]
    alone = []
    for prompt in prompts:
        engine = tiny_engine(tiny, debug=False).engine
        engine.add(list(prompt.encode()), SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))
        alone.append(heard(engine)[0, 0].text)

    async def ask(client: httpx.AsyncClient, prompt: str) -> str:
        call = {**LONG, "prompt": prompt, "max_tokens": 12, "stream": True}
        async with client.stream("POST", COMPLETIONS, json=call) as response:
            assert response.status_code == 200
            events = events_of((await response.aread()).decode())
        assert [event["choices"][0]["finish_reason"] for event in events][-1] == "length"
        return "".join(event["choices"][0]["text"] for event in events)

    async def all_of_them() -> list[str]:
        limits = httpx.Limits(max_connections=CLIENTS)
        url = served.url
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60.0, verify=False) as client:
            return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))

    assert asyncio.run(all_of_them()) == alone
    metrics = served.metrics()
    assert metrics['vllm:request_success_total{finished_reason="length"}'] == CLIENTS
    assert metrics["vllm:generation_tokens_total"] == 12 * CLIENTS


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_is_aborted_and_frees_its_blocks(
    served: Served, path: str, leave: Any, stream: bool
) -> None:
    call = {**LONG, "stream": stream, "n": 2}
    if path == CHAT:
        call["messages"] = [{"role": "user", "content": call.pop("prompt")}]
    connection = served.connection(path, call)
    if stream:
        read_until(connection, b'"finish_reason":null')
    else:
        served.wait_for(lambda: blocks_in_use(served.engine) > 0, "the request does not run")
    assert blocks_in_use(served.engine) > 0
    leave(connection)
    served.wait_until_idle()
    metrics = served.metrics()
    assert metrics[ABORTED] == 2
    # A step that only says the last words computes nothing, and is none to the scheduler.
    assert metrics["vllm:iteration_tokens_total_count"] == served.engine.scheduler.counters.steps
    assert metrics["vllm:generation_tokens_total"] < 3_000


def test_a_client_that_vanishes_with_half_of_its_call_sent_leaves_nothing(served: Served) -> None:
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: 900\r\n\r\n" + b'{"model": "ti')
        reset(connection)
    assert served.post(COMPLETIONS, {**LONG, "max_tokens": 1}).status_code == 200
    served.wait_for(lambda: not served.server.server_state.tasks, "calls go on without their clients")


def test_clients_that_vanish_at_any_moment_take_nobody_with_them(served: Served) -> None:
    connections = [served.connection(COMPLETIONS, {**LONG, "stream": number % 2}) for number in range(30)]
    for number, connection in enumerate(connections):
        time.sleep(0.002)
        reset(connection) if number % 3 else connection.close()
    response = served.post(COMPLETIONS, {**LONG, "max_tokens": 20})
    assert response.json()["usage"]["completion_tokens"] == 20
    served.wait_until_idle()
    assert served.get("/health").status_code == 200


def test_a_client_that_does_not_read_holds_up_nobody_and_loses_nothing(served: Served) -> None:
    slow = socket.socket()
    # As little as the kernel keeps for a connection, so that the server has to wait for this client.
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    slow.settimeout(PATIENCE_S)
    slow.connect(("127.0.0.1", served.port))
    call = json.dumps({**LONG, "max_tokens": 1_000, "n": 2, "stream": True, "logprobs": 20}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(call)}"
    slow.sendall(f"{head}\r\n\r\n".encode() + call)
    served.wait_for(lambda: served.engine.num_running > 0, "the slow client is not served")
    quick = served.post(COMPLETIONS, {**LONG, "max_tokens": 10})
    assert quick.json()["usage"]["completion_tokens"] == 10
    # It has read nothing, and yet its answer comes to its end and gives its blocks back.
    served.wait_until_idle()
    assert served.metrics()['vllm:request_success_total{finished_reason="length"}'] == 3
    events = events_of(body_of(read_until(slow, b"data: [DONE]\n\n\r\n0\r\n\r\n")))
    choices = [event["choices"][0] for event in events]
    assert sum(len(choice["logprobs"]["tokens"]) for choice in choices if choice["logprobs"]) == 2_000
    whole = served.post(COMPLETIONS, {**LONG, "max_tokens": 1_000}).json()["choices"][0]["text"]
    for index in (0, 1):
        assert "".join(choice["text"] for choice in choices if choice["index"] == index) == whole
    slow.close()


def test_calls_one_after_the_other_share_a_connection(served: Served) -> None:
    connection = served.connection(COMPLETIONS, {**LONG, "max_tokens": 2})
    read_until(connection, b'"cached_tokens"')
    call = json.dumps({**LONG, "max_tokens": 3, "stream": True}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(call)}"
    connection.sendall(f"{head}\r\n\r\n".encode() + call)
    read_until(connection, b"[DONE]")
    connection.close()


# When the server stops ---------------------------------------------------------------------------------------------


BLOCKS = 512


def stop_soon(served: Served) -> None:
    threading.Timer(0.05, lambda: setattr(served.server, "should_exit", True)).start()


def test_a_stopping_server_lets_streams_come_to_their_end_and_takes_no_more(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, blocks=BLOCKS, debug=False).engine
    with serving(engine, drain_s=PATIENCE_S) as served:
        connection = served.connection(COMPLETIONS, {**LONG, "max_tokens": 600, "stream": True})
        data = read_until(connection, b'"finish_reason":null')
        stop_soon(served)
        data += read_until(connection, b"data: [DONE]\n\n\r\n0\r\n\r\n")
        events = events_of(body_of(data))
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", served.port), timeout=1)
        connection.close()
    assert blocks_in_use(engine) == 0
    assert engine.scheduler.counters.aborted == 0


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_not_done_in_time_ends_as_aborted_with_what_it_has(tiny: LoadedModel, stream: bool) -> None:
    engine = tiny_engine(tiny, blocks=BLOCKS, debug=False).engine
    with serving(engine, drain_s=0.1) as served:
        connection = served.connection(COMPLETIONS, {**LONG, "stream": stream})
        served.wait_for(lambda: engine.num_running > 0, "the request does not run")
        stop_soon(served)
        if stream:
            events = events_of(body_of(read_until(connection, b"data: [DONE]\n\n\r\n0\r\n\r\n")))
            assert events[-1]["choices"][0]["finish_reason"] == "abort"
            assert sum(len(event["choices"][0]["text"]) for event in events) > 0
        else:
            body = json.loads(read_until(connection, b'"cached_tokens":0}}}').partition(b"\r\n\r\n")[2])
            assert body["choices"][0]["finish_reason"] == "abort"
            assert 0 < body["usage"]["completion_tokens"] < 1_500
        connection.close()
    assert blocks_in_use(engine) == 0
    engine.check_invariants()


def test_a_client_that_never_reads_does_not_keep_the_server_from_stopping(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, blocks=BLOCKS, debug=False).engine
    with serving(engine, drain_s=0.0) as served:
        connection = served.connection(COMPLETIONS, {**LONG, "stream": True, "logprobs": 20})
        served.wait_for(lambda: engine.num_running > 0, "the request does not run")
        served.server.should_exit = True
        served.wait_for(lambda: not engine.has_work, "the engine goes on")
    connection.close()
    assert blocks_in_use(engine) == 0
