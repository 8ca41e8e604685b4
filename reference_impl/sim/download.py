"""The public traces, fetched once and checked.

Owns: where each trace is published, its size and its SHA-256, and a download that can be continued. Knows nothing of
what stands in a trace (`labkit.workloads` does). The addresses name a commit, so what lies there cannot change; the
checksum says so again. A file takes its name only once its checksum is right: before that it is `NAME.part`, and a
wrong one is deleted.
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_GITHUB = "https://raw.githubusercontent.com"
_AZURE = f"{_GITHUB}/Azure/AzurePublicDataset/790921015d50dd6aae7f7e47f39ba0e235ad6b08/data"
_MOONCAKE = f"{_GITHUB}/kvcache-ai/Mooncake/a2a4b18ac537fd798d50e6e9f57031ce86419a37/FAST25-release/traces"
_SARATHI = f"{_GITHUB}/microsoft/sarathi-serve/72339db5b120614033b317880ad3a05a5e4c9415/data/processed_traces"

_PIECE_BYTES = 1 << 16
_TIMEOUT_S = 30.0

Progress = Callable[[int, int], None]
"""(bytes there, bytes in all)."""


@dataclass(frozen=True)
class Remote:
    """A published file: its address, its path in a traces folder, its size in bytes and its SHA-256 in hex."""

    url: str
    path: str
    size_bytes: int
    sha256: str


REMOTES: dict[str, Remote] = {
    "azure_conv": Remote(
        f"{_AZURE}/AzureLLMInferenceTrace_conv.csv",
        "azure2023/AzureLLMInferenceTrace_conv.csv",
        719_188,
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
    ),
    "azure_code": Remote(
        f"{_AZURE}/AzureLLMInferenceTrace_code.csv",
        "azure2023/AzureLLMInferenceTrace_code.csv",
        320_117,
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
    ),
    "mooncake_conversation": Remote(
        f"{_MOONCAKE}/conversation_trace.jsonl",
        "mooncake/conversation_trace.jsonl",
        3_029_533,
        "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
    ),
    "sharegpt_8k": Remote(
        f"{_SARATHI}/sharegpt_8k_filtered_stats_llama2_tokenizer.csv",
        "sharegpt_lengths/sharegpt_8k_filtered_stats_llama2_tokenizer.csv",
        949_600,
        "6d6c296302a853e2669a674a96f269283e60c57e60363bd450588a1066919f9f",
    ),
}
"""Workload -> where it is published. The same ShareGPT file is also in github.com/project-etalon/etalon."""


class DownloadError(ValueError):
    """Nothing was fetched, or not what was asked for; the message names the address."""


def is_complete(remote: Remote, folder: Path) -> bool:
    """Whether the file is in the folder with the right checksum. Cost: reads the file."""
    path = folder / remote.path
    return path.is_file() and _sha256(path) == remote.sha256


def fetch(remote: Remote, folder: Path, progress: Progress | None = None) -> Path:
    """The file in `folder`, fetched unless it is there already; a download that was cut off is continued.

    Raises: DownloadError if the address cannot be read (what came is kept, to go on from) or if the checksum is wrong
    (then nothing of it is kept).
    """
    path = folder / remote.path
    if is_complete(remote, folder):
        return path
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    if not (part.is_file() and part.stat().st_size == remote.size_bytes):
        _download(remote, part, progress)
    found = _sha256(part)
    if found != remote.sha256:
        part.unlink()
        raise DownloadError(f"{remote.url}: checksum {found[:16]}..., expected {remote.sha256[:16]}...; nothing kept")
    part.replace(path)
    return path


def _download(remote: Remote, part: Path, progress: Progress | None) -> None:
    there = part.stat().st_size if part.is_file() else 0
    if there > remote.size_bytes:
        part.unlink()
        there = 0
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            # A server that does not know ranges answers 200 and sends everything again.
            continued = answer.status == http.HTTPStatus.PARTIAL_CONTENT
            _store(answer, part, there if continued else 0, remote, progress)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise DownloadError(f"{remote.url}: {getattr(error, 'reason', None) or error}") from None
    size = part.stat().st_size
    if size < remote.size_bytes:
        raise DownloadError(
            f"{remote.url}: cut off after {size:,} of {remote.size_bytes:,} bytes; run it again to go on"
        )


def _store(answer: http.client.HTTPResponse, part: Path, there: int, remote: Remote, progress: Progress | None) -> None:
    with part.open("ab" if there else "wb") as file:
        while piece := answer.read(_PIECE_BYTES):
            file.write(piece)
            there += len(piece)
            if progress is not None:
                progress(there, remote.size_bytes)
            if there > remote.size_bytes:
                # More than was published is not the file, however much more there is.
                break


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
