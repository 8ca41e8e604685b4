"""Python's collector of cycles, kept away from what lives as long as an engine.

Owns: the one context manager. Knows nothing of engines. For whoever owns the process: a command, a server, a benchmark.

The collector looks at every container from time to time. Torch, Triton and a model with its graphs are some 200,000 of
them, so that a look takes 80 ms, during which no step is planned and every client waits (`NOTES.md`). None of these is
ever garbage. Frozen, they are not looked at; what requests leave behind still is.
Source: `gc.freeze` of Python's library, which is made for this.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def frozen_heap() -> Iterator[None]:
    """All that there is now is left out of collections within it; garbage that there is now goes first.

    Cost: one collection, a tenth of a second with torch loaded. One within another ends with the outer one.
    """
    is_outermost = not gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if is_outermost:
            gc.unfreeze()
