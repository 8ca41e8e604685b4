"""Traces from a server of our own: whole, continued, cut off, wrong."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from labkit.calibration import CALIBRATIONS
from labkit.places import traces_folder
from reference_impl.sim.download import REMOTES, DownloadError, Remote, fetch, is_complete

BODY = bytes(range(256)) * 1_000


@dataclass
class Server:
    """What is served, and what was asked for."""

    url: str = ""
    body: bytes = BODY
    knows_ranges: bool = True
    cut_after: int | None = None
    status: int = 200
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.knows_ranges else 0
            body = state.body[start:]
            self.send_response(206 if start else state.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cut_after])

        def log_message(self, format: str, *args: object) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{made.server_address[1]}/trace.csv"
    yield state
    made.shutdown()
    made.server_close()


def remote(server: Server) -> Remote:
    return Remote(server.url, "some/trace.csv", len(BODY), hashlib.sha256(BODY).hexdigest())


def test_a_file_is_fetched_once_and_told_about(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = fetch(remote(server), tmp_path, lambda there, size: told.append((there, size)))
    assert path.read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    assert is_complete(remote(server), tmp_path)
    fetch(remote(server), tmp_path)
    assert server.ranges == [None]
    assert [file.name for file in path.parent.iterdir()] == ["trace.csv"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_download_that_was_cut_off_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, knows_ranges: bool
) -> None:
    server.cut_after, server.knows_ranges = 100_000, knows_ranges
    with pytest.raises(DownloadError, match=r"trace\.csv"):
        fetch(remote(server), tmp_path)
    assert not (tmp_path / "some/trace.csv").exists()
    kept = (tmp_path / "some/trace.csv.part").stat().st_size
    assert 0 < kept <= 100_000
    server.cut_after = None
    assert fetch(remote(server), tmp_path).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={kept}-"]


@pytest.mark.parametrize("body", [BODY[:-1] + b"x", BODY + b"more"])
def test_another_content_is_refused_and_nothing_of_it_kept(server: Server, tmp_path: Path, body: bytes) -> None:
    server.body = body
    with pytest.raises(DownloadError, match=r"trace\.csv: checksum .* expected .*; nothing kept"):
        fetch(remote(server), tmp_path)
    assert list((tmp_path / "some").iterdir()) == []


def test_a_part_of_something_else_is_found_out_by_the_checksum(server: Server, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some/trace.csv.part").write_bytes(b"?" * 50)
    with pytest.raises(DownloadError, match="nothing kept"):
        fetch(remote(server), tmp_path)
    assert fetch(remote(server), tmp_path).read_bytes() == BODY


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    path = fetch(remote(server), tmp_path)
    path.write_bytes(BODY[:10])
    assert not is_complete(remote(server), tmp_path)
    assert fetch(remote(server), tmp_path).read_bytes() == BODY


def test_an_address_that_does_not_answer_is_named(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DownloadError, match=r"trace\.csv: Not Found"):
        fetch(remote(server), tmp_path)
    nowhere = replace(remote(server), url="http://127.0.0.1:9/trace.csv")
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9"):
        fetch(nowhere, tmp_path)


def test_every_workload_can_be_fetched_and_the_files_here_have_its_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(REMOTES) == set(CALIBRATIONS)
    monkeypatch.delenv("P2P_TRACES", raising=False)
    folder = traces_folder()
    if folder is None:
        pytest.skip("no traces on this machine")
    for name, known in REMOTES.items():
        assert is_complete(known, folder), name
        assert (folder / known.path).stat().st_size == known.size_bytes
