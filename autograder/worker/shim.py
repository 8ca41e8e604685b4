"""The program inside the sandbox: run the student's cells, then answer calls until the socket closes.

Owns: the student's namespace and the objects the judge asked for. Knows no test and no answer: it is a telephone.
Student code shares this process and may rewrite any of it; the judge therefore believes nothing that comes from here
beyond "this is what the student's object answered". Started as `python -I -S -B shim.py FD`, with the paths of labkit
and the allowed packages in the first frame.
"""

from __future__ import annotations

import importlib
import json
import linecache
import os
import socket
import sys
import types
from collections.abc import Callable
from operator import index
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
harden = importlib.import_module("harden")
wire = importlib.import_module("wire")
tensors = importlib.import_module("tensors")
sys.path.pop(0)

MODULE_NAME = "submission"
PUBLIC_MODULES = ("builtins", "labkit.contracts")


class Worker:
    """Answers one request after another; every answer is a dict ready for the wire."""

    def __init__(self) -> None:
        self.module = types.ModuleType(MODULE_NAME)
        # Dataclasses and pickling-like helpers look the module of a class up by name.
        sys.modules[MODULE_NAME] = self.module
        self.objects: dict[int, Any] = {}
        self.next_handle = 0

    def exec(self, request: dict[str, Any]) -> None:
        """Run one cell in the student's namespace."""
        name, source = request["name"], request["source"]
        # Not under this file's own `from __future__ import annotations`.
        code = compile(source, name, "exec", dont_inherit=True)
        # Triton reads a kernel's source, where inspect looks for the lines of any function.
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(code, self.module.__dict__)

    def describe(self, request: dict[str, Any]) -> dict[str, Any]:
        """Which of a class's methods, or of the module's functions, exist and take the given numbers of positional
        arguments, `self` among them."""
        target = self.module if request["kind"] == "functions" else getattr(self.module, request["name"], None)
        if not isinstance(target, (type, types.ModuleType)):
            return {"kind": "missing" if target is None else "other"}
        faults = {
            name: fault
            for name, counts in request["methods"].items()
            if (fault := fault_of(getattr(target, name, None), counts))
        }
        return {"kind": request["kind"], "faults": faults}

    def function(self, request: dict[str, Any]) -> Any:
        """Call one of the module's functions on tensors. The answer is what stands in their memory afterwards, and what
        torch computed itself. With `ghost`, the call is made with kernels that do nothing."""
        # labkit's, which imports torch: only where a lab asks for it.
        watch = importlib.import_module("labkit.watch")
        buffers = [{**buffer, "bytes": wire.decode(buffer["bytes"])} for buffer in request["buffers"]]
        values, storages = tensors.unpack(buffers, request["args"])
        watcher = watch.Watch()
        with watch.without_kernels() if request.get("ghost") else watcher.looking():
            getattr(self.module, request["name"])(*values)
        return wire.encode({"contents": tensors.contents(storages), "computed": watcher.computed})

    def record(self, request: dict[str, Any]) -> Any:
        """The plan of one call on the GPU (record.py), on random numbers where the judge sent none."""
        recorder = self.beside("record")
        values, storages = recorder.sample_call(request["buffers"], request["args"], wire.decode)
        try:
            return wire.encode(recorder.record(getattr(self.module, request["name"]), values, storages))
        except BaseException:
            if not recorder.usable():
                # CUDA tells of a bad access at every call from then on: what comes next needs a fresh process.
                os._exit(1)
            raise

    @staticmethod
    def beside(name: str) -> types.ModuleType:
        """A module of the worker's own that needs torch: imported when a lab asks for it."""
        sys.path.insert(0, str(Path(__file__).resolve().parent))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.pop(0)

    def new(self, request: dict[str, Any]) -> int:
        """Build an object of the student's class; the handle stands for it from now on."""
        made = getattr(self.module, request["name"])(*self.arguments(request["args"]))
        self.next_handle += 1
        self.objects[self.next_handle] = made
        return self.next_handle

    def call(self, request: dict[str, Any]) -> Any:
        """Call a method; with `scribble`, ruin the returned list after its value was taken down."""
        result = getattr(self.objects[request["target"]], request["method"])(*self.arguments(request["args"]))
        value = wire.encode(result)
        if request.get("scribble") and isinstance(result, list):
            result.reverse()
            result.append(-1)
        return value

    def get(self, request: dict[str, Any]) -> Any:
        return wire.encode(getattr(self.objects[request["target"]], request["method"]))

    def batch(self, request: dict[str, Any]) -> str:
        """Many calls on one object in one request: what the judge's clock measures. Every answer goes back, as JSON
        text made in C, so that looking at them costs the same small share in every design."""
        target = self.objects[request["target"]]
        calls = [(getattr(target, name), self.arguments(args)) for name, args in request["calls"]]
        return json.dumps([method(*args) for method, args in calls], default=index)

    @staticmethod
    def arguments(data: list[Any]) -> list[Any]:
        values = [wire.decode(item) for item in data]
        if not any(isinstance(value, wire.NumpyInteger) for value in values):
            return values
        import numpy

        return [numpy.int64(value) if isinstance(value, wire.NumpyInteger) else value for value in values]


def fault_of(function: Any, counts: list[int]) -> str:
    """Why `function` cannot be called with each of these numbers of arguments; "" if it can."""
    import inspect

    if not callable(function):
        return "missing"
    try:
        signature = inspect.signature(function)
        for count in counts:
            signature.bind(*[None] * count)
    except (TypeError, ValueError):
        return "signature"
    return ""


def failure(error: BaseException) -> dict[str, Any]:
    """An exception as names of its public bases, its own name and a short message; never the object."""
    bases = [c.__name__ for c in type(error).__mro__ if c.__module__ in PUBLIC_MODULES]
    try:
        message = str(error)[:300]
    except BaseException:
        message = ""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == MODULE_NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno or 0
    return {"bases": bases, "name": type(error).__name__[:80], "message": message, "line": line}


def serve(connection: socket.socket) -> None:
    """Answer requests until the judge closes the socket."""
    reader = connection.makefile("rb")

    def read_request(cap_bytes: int = wire.FRAME_BYTES_MAX) -> dict[str, Any] | None:
        header = reader.read(wire.HEADER.size)
        if len(header) < wire.HEADER.size:
            return None
        request: dict[str, Any] = wire.unpack(reader.read(wire.frame_length(header, cap_bytes)))
        return request

    hello = read_request()
    if hello is None:
        return
    sys.path.extend(hello["paths"])
    harden.die_with_parent()
    harden.limit_resources(hello["limits"])
    harden.filter_system_calls(allow_processes=bool(hello["limits"]["allow_processes"]))
    connection.sendall(wire.pack({"id": 0, "ok": "ready"}))
    worker = Worker()
    frame_bytes = hello["limits"]["frame_bytes"]
    while (request := read_request(frame_bytes)) is not None:
        for handle in request.get("drop", ()):
            worker.objects.pop(handle, None)
        operation: Callable[[dict[str, Any]], Any] = getattr(worker, request["op"])
        try:
            reply = {"id": request["id"], "ok": operation(request)}
            frame = wire.pack(reply, frame_bytes)
        except wire.WireError as error:
            frame = wire.pack({"id": request["id"], "refused": str(error)[:200]})
        except BaseException as error:
            frame = wire.pack({"id": request["id"], "error": failure(error)})
        connection.sendall(frame)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
