"""A model by its name: the built-in one, the one in the cache, a folder, a file.

Owns: what a source may be, and the joining of weights with their tokenizer. Knows nothing of formats
(`safetensors_folder.py`, `gguf_checkpoint.py`) or arithmetic (`transformer.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reference_impl.model import smollm2
from reference_impl.model.config import ModelConfig
from reference_impl.model.errors import ModelError
from reference_impl.model.transformer import Transformer
from reference_impl.model.weights import Checkpoint, load_weights

if TYPE_CHECKING:
    from reference_impl.model.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BUILT_IN = ("tiny", "smollm2")


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights and its tokenizer. eos_token_ids: the tokens that end an answer."""

    name: str
    config: ModelConfig
    transformer: Transformer
    tokenizer: Tokenizer
    eos_token_ids: frozenset[int]


@dataclass(frozen=True)
class Source:
    """A model that was found and not loaded yet. tokenizer: makes it, which may take a second."""

    name: str
    checkpoint: Checkpoint
    tokenizer: Callable[[], Tokenizer]


def load_model(source: str, *, dtype: str = "float32", device: str = "cpu") -> LoadedModel:
    """The model that `source` names: "tiny", "smollm2", a Hugging Face folder, or a .gguf file.

    dtype: float32, bfloat16 or float16. device: as torch names it.
    Raises: ModelError, one line that names what is wrong and what to do.
    """
    if dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    where = usable_device(device)
    found = find_model(source)
    tokenizer = _tokenizer(found)
    config = found.checkpoint.config
    if tokenizer.vocab_size > config.vocab_size:
        what = f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size} (vocab_size)"
        raise ModelError(f"{source}: {what}; they are not of one model")
    transformer = load_weights(found.checkpoint, dtype=DTYPES[dtype], device=where)
    return LoadedModel(found.name, config, transformer, tokenizer, tokenizer.eos_token_ids)


def find_model(source: str) -> Source:
    """What `load_model` would load: its files are opened and their heads read. Raises: ModelError as there."""
    if source == "tiny":
        return _tiny()
    if source == "smollm2":
        if not smollm2.is_cached():
            raise ModelError(f"{smollm2.cached_file()} is not there: run `engine model get smollm2` first")
        return _gguf(smollm2.cached_file(), smollm2.NAME)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".gguf":
        return _gguf(path, path.stem)
    names = ", ".join(BUILT_IN)
    raise ModelError(f"no model {source!r}; give {names}, a Hugging Face folder or a .gguf file")


def _tiny() -> Source:
    from reference_impl.model.byte_tokenizer import ByteTokenizer
    from reference_impl.model.tiny import RandomCheckpoint, tiny_config

    return Source("tiny", RandomCheckpoint(tiny_config()), ByteTokenizer)


def _folder(folder: Path) -> Source:
    from reference_impl.model.safetensors_folder import SafetensorsFolder

    def tokenizer() -> Tokenizer:
        from reference_impl.model.folder_tokenizer import from_folder

        return from_folder(folder)

    return Source(folder.resolve().name, SafetensorsFolder(folder), tokenizer)


def _gguf(path: Path, name: str) -> Source:
    from reference_impl.model.gguf_checkpoint import GGUFCheckpoint

    checkpoint = GGUFCheckpoint(path)

    def tokenizer() -> Tokenizer:
        from reference_impl.model.gguf_tokenizer import from_gguf

        return from_gguf(checkpoint.file.metadata, str(path))

    return Source(name, checkpoint, tokenizer)


def _tokenizer(found: Source) -> Tokenizer:
    try:
        return found.tokenizer()
    except ImportError as error:
        raise ModelError(f"{found.name}: text needs the package {error.name}: pip install {error.name}") from None


def usable_device(name: str) -> torch.device:
    """The device of this name. Raises: ModelError with torch's reason if it is not there or torch cannot use it."""
    try:
        device = torch.device(name)
        # Only a first tensor tells whether the device is there and this torch can use it.
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {name!r} cannot be used: {reason}; try cpu") from None
    return device
