"""A model in a Hugging Face folder: `config.json` and its tensors in one or more `.safetensors` files.

Owns: which file has which tensor. Knows nothing of tokenizers or of what a tensor means. Pickled weights
(`pytorch_model.bin`) are not read: to load one is to run code from it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from reference_impl.model.config import ModelConfig
from reference_impl.model.errors import ModelError

INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16", "F64")


class SafetensorsFolder:
    """A `Checkpoint`.

    Raises: ModelError, naming the file, if the folder has no configuration or no weights, if a file that its index
    names is not there, or if one is cut off, damaged, or has a tensor that another has too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = ModelConfig.from_hf(read_json(folder / "config.json"), str(folder / "config.json"))
        index = folder / INDEX
        if index.is_file():
            mapping = read_json(index).get("weight_map")
            files = _files_of_index(index, mapping)
        else:
            mapping = None
            files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{folder} has no .safetensors file; pickled weights are not read")
        self._place: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._open: dict[Path, Any] = {}
        for path in files:
            self._list(path)
        for name in mapping or ():
            if name not in self._place:
                raise ModelError(f"{index} names tensor {name!r}, which no file has")

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def where(self, name: str) -> str:
        return f"{self._place.get(name, self.folder)}: tensor {name!r}"

    def read(self, name: str) -> Tensor:
        if self._dtypes[name] not in _FLOATS:
            kinds = ", ".join(_FLOATS)
            raise ModelError(f"{self.where(name)} has dtype {self._dtypes[name]}; {kinds} are read")
        tensor = self._open[self._place[name]].get_tensor(name)
        assert isinstance(tensor, Tensor)
        return tensor

    def _list(self, path: Path) -> None:
        """What a file's head says of its tensors. The file stays open, mapped into memory, for `read`."""
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise ModelError(f"{path}: needs the package safetensors: pip install safetensors") from None
        try:
            opened: Any = safe_open(path, framework="pt")
            for name in opened.keys():  # noqa: SIM118 - not a dict
                if name in self._place:
                    raise ModelError(f"{path}: tensor {name!r} is in {self._place[name].name} too")
                entry = opened.get_slice(name)
                self._place[name] = path
                self._shapes[name] = tuple(entry.get_shape())
                self._dtypes[name] = entry.get_dtype()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is cut off or damaged: {' '.join(str(error).split())}") from None
        self._open[path] = opened


def _files_of_index(index: Path, mapping: Any) -> list[Path]:
    if not isinstance(mapping, dict) or not mapping:
        raise ModelError(f"{index}: weight_map must be an object that names files")
    names = set()
    for name in mapping.values():
        # Only files beside the index: one that somebody else wrote has no business elsewhere.
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index}: weight_map names {name!r}, which is no file of this folder")
        names.add(name)
    for name in sorted(names):
        if not (index.parent / name).is_file():
            raise ModelError(f"{index.parent / name} is missing, though {INDEX} names it")
    return [index.parent / name for name in sorted(names)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises: ModelError naming the file."""
    try:
        with contextlib.closing(path.open(encoding="utf-8")) as file:
            value = json.load(file)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold an object, got {type(value).__name__}")
    return value
