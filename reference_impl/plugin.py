"""A student's class from a file, in the place of ours.

Owns: loading `FILE.py:Class`, and saying in one line what is wrong with it, when it is loaded and when it runs. Knows
nothing of what the class does. The file is run in this process, with everything this process may do: it is the user's
own machine and the user's own code. Nothing here is a sandbox; marks are given elsewhere.
Cost: objects of a loaded class pay for a look-up at every call, about half a microsecond; ours pay nothing.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

_MODULE = "_engine_plugin_"


class PluginError(ValueError):
    """A file or class that cannot be used, in one line that names it."""


class ContractError(PluginError):
    """A class answered what its contract does not allow: one line that says what was asked, and what is wrong."""


class Guarded:
    """`part`, an object of the class at `place`: whatever it raises that its contract does not is a `PluginError`.

    expected: method -> the exceptions that its contract has it raise; they pass as they are.
    """

    def __init__(self, part: object, place: str, expected: Mapping[str, type[Exception]]) -> None:
        self._part = part
        self._place = place
        self._expected = expected

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        # A property is computed here, a method when it is called: both are the student's code.
        value = self._call(name, getattr, self._part, name)
        return partial(self._call, name, value) if callable(value) else value

    def _call(self, name: str, act: Callable[..., Any], *args: Any) -> Any:
        try:
            return act(*args)
        except self._expected.get(name, ()):
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"{told(error, self._place)}, out of {self._place.rpartition(':')[2]}.{name}") from error


def named(part: object) -> str:
    """What messages call an object: the file and class it came from, or the name of its class."""
    return part._place if isinstance(part, Guarded) else type(part).__name__


def told(error: BaseException, place: str) -> str:
    """One line about `error`, with the line of the file at `place` that raised it, if one did."""
    text = str(error).splitlines()[0] if str(error) else "no message"
    path = Path(place.rpartition(":")[0])
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).resolve() == path.resolve():
            return f"{path}, line {frame.lineno}: {type(error).__name__}: {text}"
    return f"{place}: {type(error).__name__}: {text}"


def is_plugin(name: str) -> bool:
    """Whether a name on the command line is meant as a file, and not as one of ours."""
    return ".py" in name or "/" in name


def shown(name: str) -> str:
    """A name on the command line as reports have it: of a file without its folders, which are this machine's affair."""
    return name.rpartition("/")[2] if is_plugin(name) else name


def load_class(place: str, contract: type) -> type[Any]:
    """The class in `FILE.py:Class`, with every public method of `contract`.

    Raises: PluginError: no such file, an error while it ran, no such class, or a method missing.
    """
    path_text, colon, name = place.rpartition(":")
    if not colon or not name or not path_text.endswith(".py"):
        raise PluginError(f"{place}: write the file and the class as FILE.py:Class")
    path = Path(path_text)
    if not path.is_file():
        raise PluginError(f"{path}: no such file")
    found = getattr(_run(path), name, None)
    if found is None:
        raise PluginError(f"{path}: no class {name!r} in it")
    if not isinstance(found, type):
        raise PluginError(f"{path}: {name!r} is no class")
    missing = [method for method in contract_methods(contract) if not callable(getattr(found, method, None))]
    if missing:
        raise PluginError(f"{path}: class {name} lacks {', '.join(missing)} of the contract {contract.__name__}")
    return found


def load_backend(place: str, contract: type) -> Any:
    """An object with every public method of `contract`: the module `FILE.py`, or one of `FILE.py:Class`, made bare.

    Raises: PluginError as `load_class`, and if the class cannot be made without arguments.
    """
    if not place.endswith(".py"):
        made_by = load_class(place, contract)
        try:
            return made_by()
        except Exception as error:
            path_text, _, name = place.rpartition(":")
            text = str(error).splitlines()[0] if str(error) else "no message"
            raise PluginError(f"{path_text}: {type(error).__name__} while {name}() was made: {text}") from None
    path = Path(place)
    if not path.is_file():
        raise PluginError(f"{path}: no such file")
    module = _run(path)
    missing = [method for method in contract_methods(contract) if not callable(getattr(module, method, None))]
    if missing:
        raise PluginError(f"{path}: lacks {', '.join(missing)} of the contract {contract.__name__}")
    return module


def load_maker(place: str, contract: type, expected: Mapping[str, type[Exception]]) -> Callable[..., Any]:
    """What makes objects of the class in `FILE.py:Class`, each `Guarded`. Raises: PluginError, as `load_class`."""
    found = load_class(place, contract)

    def make(*args: Any) -> Guarded:
        try:
            return Guarded(found(*args), place, expected)
        except (Exception, SystemExit) as error:
            raise PluginError(f"{told(error, place)}, out of {found.__name__}{args}") from error

    return make


def contract_methods(contract: type) -> list[str]:
    """The public methods that a Protocol asks for, in the order it names them. Properties may be set by `__init__`."""
    return [name for name, value in vars(contract).items() if callable(value) and not name.startswith("_")]


def _run(path: Path) -> Any:
    # Its own name in sys.modules, because dataclasses and pickles look their module up there.
    # Two files of one name in different folders are two modules.
    name = f"{_MODULE}{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path}: cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        text = str(error).splitlines()[0] if str(error) else "no message"
        raise PluginError(f"{path}: {type(error).__name__} while it ran: {text}") from None
    return module
