"""`engine serve` as a process: one clear line for what is wrong, and an orderly end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("fastapi", reason="fastapi is not installed")

from reference_impl.cli import main
from reference_impl.engine.server.command import KEY_VARIABLE, listen
from tests.reference_impl.engine.server.test_clients import read_until

ROOT = Path(__file__).parents[4]
PATIENCE_S = 60


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "70000"], "--port must be 0 to 65535, got 70000"),
        (["--host", "203.0.113.7", "--port", "0"], "--host 203.0.113.7 is no address of this machine"),
        (["--port", "0", "--timeout-s", "0"], "--timeout-s must be above 0, got 0"),
        (["--port", "0", "--max-waiting", "0"], "--max-waiting must be above 0, got 0"),
        (["--port", "0", "--drain-s", "-1"], "--drain-s must be 0 to 86,400 seconds, got -1"),
        (["--port", "0", "--max-body-mib", "0"], "max_body_bytes must be at least 1, got 0"),
        (["--port", "0", "--api-key", ""], "the API key is empty"),
        (["--port", "0", "--served-model-name", ""], "the served model's name is empty"),
        (["--port", "0", "--model", "nobody"], "nobody"),
        (["--port", "0", "--model", "tiny", "--kv-memory", "10"], "10 bytes"),
    ],
)
def test_bad_options_are_one_line_that_names_them(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *([] if "--model" in options else ["--model", "tiny"]), *options]) == 1
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.startswith("engine serve: ")
    assert shown.count("\n") == 1


def test_a_port_in_use_is_known_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), "--model", "no such model"]) == 1
    said = f"engine serve: port {port} of 127.0.0.1 is in use: stop what listens there, or choose another --port\n"
    assert capsys.readouterr().err == said


@pytest.mark.slow
def test_sigterm_lets_a_stream_end_and_the_process_ends_well() -> None:
    command = [sys.executable, "-m", "reference_impl.cli", "serve", "--model", "tiny", "--port", "0"]
    command += ["--kv-memory", "8MiB", "--served-model-name", "noise", "--drain-s", "30"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'labs'}", KEY_VARIABLE: "s3cret"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said: list[str] = []
        while not said or not said[-1].startswith("serving"):
            said.append(process.stderr.readline())
            assert said[-1], f"the process ended: {said}"
        ready = said.pop()
        assert any("KV memory" in line for line in said)
        assert ready.startswith("serving noise on http://127.0.0.1:")
        url = ready.split()[3]
        port = int(url.rsplit(":", 1)[1].removesuffix("/v1"))
        asked = urllib.request.Request(f"{url}/models", headers={"Authorization": "Bearer s3cret"})
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as response:
            assert json.load(response)["data"][0]["id"] == "noise"
        call = {"model": "noise", "prompt": "a", "max_tokens": 400, "stream": True, "ignore_eos": True}
        data = json.dumps(call).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer s3cret\r\nContent-Length: {len(data)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            connection.sendall(head.encode() + data)
            read_until(connection, b'"finish_reason":null')
            process.send_signal(signal.SIGTERM)
            assert b'"finish_reason":"length"' in read_until(connection, b"data: [DONE]\n\n")
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
