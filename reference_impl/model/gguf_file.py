"""The head of a GGUF file, and where each tensor's bytes lie in it.

Owns: the file format. Knows nothing of what keys and tensors mean (`gguf_checkpoint.py`), nor how packed numbers are
read (`ggml_types.py`). The file is mapped into memory, so a tensor's bytes come from the disk when they are looked at.
The lists of 49,152 tokens and their merges are read as whole Python lists: the head of SmolLM2 takes some 50 ms.

    magic, version, tensors, pairs | key, type, value ... | name, shape, type, offset ... | padding | data

Source: the GGUF specification, version 3, in the ggml project's documentation.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference_impl.model.errors import ModelError
from reference_impl.model.ggml_types import GGML_TYPES

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF value type -> format character of `struct`."""


@dataclass(frozen=True)
class TensorEntry:
    """shape: as torch has it, the last dimension contiguous; GGUF writes it the other way round. start: in the file."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    start_bytes: int
    size_bytes: int


class GGUFFile:
    """An open file. metadata: key -> number, bool, string or list of these. tensors: name -> its entry.

    Raises: ModelError, naming the file and the place, if it is no GGUF file, cut off, or holds what is not read here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # A private copy on write: torch wants memory that may be written, and nothing here does write.
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            reason = "is empty" if isinstance(error, ValueError) else f"cannot be read: {error.strerror}"
            raise ModelError(f"{path} {reason}") from None
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorEntry] = {}
        _Head(self).read()

    def raw(self, entry: TensorEntry) -> Tensor:
        """The bytes of a tensor, [size_bytes] uint8, in the file's memory: to be read only."""
        return torch.frombuffer(self._bytes, dtype=torch.uint8, count=entry.size_bytes, offset=entry.start_bytes)

    @property
    def contents(self) -> mmap.mmap:
        """The whole file."""
        return self._bytes


class _Head:
    """Reads a file's head once, from front to back."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.bytes = file.contents
        self.at = 0

    def read(self) -> None:
        if self.bytes[:4] != _MAGIC:
            raise ModelError(f"{self.file.path} is not a GGUF file: it begins with {self.bytes[:4]!r}")
        self.at = 4
        version = self.scalar("I")
        if version not in _VERSIONS:
            raise ModelError(f"{self.file.path} has GGUF version {version}; versions 2 and 3 are read")
        num_tensors, num_pairs = self.scalar("Q"), self.scalar("Q")
        for _ in range(num_pairs):
            key = self.string("a key")
            if key in self.file.metadata:
                raise ModelError(f"{self.file.path} has the key {key!r} twice")
            self.file.metadata[key] = self.value(self.scalar("I"), key)
        self.entries(num_tensors)

    def entries(self, count: int) -> None:
        """The list of tensors; their offsets count from where the list ends, padded."""
        listed = [self.entry() for _ in range(count)]
        alignment = self.file.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ModelError(f"{self.file.path}: general.alignment must be a power of two, got {alignment!r}")
        data = -(-self.at // alignment) * alignment
        for name, shape, ggml_type, offset in listed:
            kind = GGML_TYPES.get(ggml_type)
            where = f"{self.file.path}: tensor {name!r}"
            if name in self.file.tensors:
                raise ModelError(f"{where} is there twice")
            if kind is None:
                names = ", ".join(known.name for known in GGML_TYPES.values())
                raise ModelError(f"{where} has the ggml type {ggml_type}, which is not read; those read are {names}")
            if not shape or shape[-1] % kind.block_numbers:
                raise ModelError(f"{where} has shape {shape}, whose rows are no whole blocks of {kind.name}")
            size = math.prod(shape) // kind.block_numbers * kind.block_bytes
            if data + offset + size > len(self.bytes):
                behind = data + offset + size - len(self.bytes)
                raise ModelError(f"{where} ends {behind:,} bytes behind the end of the file: it is cut off")
            self.file.tensors[name] = TensorEntry(name, shape, ggml_type, data + offset, size)

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string("a tensor's name")
        dimensions = self.scalar("I")
        if dimensions > 4:
            raise ModelError(f"{self.file.path}: tensor {name!r} has {dimensions} dimensions; 4 are the most")
        shape = tuple(self.scalar("Q") for _ in range(dimensions))
        return name, shape[::-1], self.scalar("I"), self.scalar("Q")

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string(key)
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise ModelError(f"{self.file.path}: {key} has the value type {kind}, which GGUF does not know")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner == _STRING:
            return [self.string(key) for _ in range(count)]
        if inner not in _SCALARS:
            raise ModelError(f"{self.file.path}: {key} is a list of values of type {inner}, which is not read")
        return self.scalars(_SCALARS[inner], count)

    def string(self, what: str) -> str:
        length = self.scalar("Q")
        self.need(length)
        text = self.bytes[self.at : self.at + length]
        self.at += length
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise ModelError(f"{self.file.path}: {what} at byte {self.at - length:,} is not UTF-8") from None

    def scalar(self, kind: str) -> Any:
        try:
            (value,) = struct.unpack_from(f"<{kind}", self.bytes, self.at)
        except struct.error:
            raise self.cut_off() from None
        self.at += struct.calcsize(kind)
        return value

    def scalars(self, kind: str, count: int) -> list[Any]:
        self.need(count * struct.calcsize(kind))
        values = list(struct.unpack_from(f"<{count}{kind}", self.bytes, self.at))
        self.at += count * struct.calcsize(kind)
        return values

    def need(self, size_bytes: int) -> None:
        if self.at + size_bytes > len(self.bytes):
            raise self.cut_off()

    def cut_off(self) -> ModelError:
        return ModelError(
            f"{self.file.path} is cut off or damaged at byte {self.at:,}: its head goes on behind its end"
        )
