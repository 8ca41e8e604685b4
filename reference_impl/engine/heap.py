"""Python's collector of cycles, kept away from what lives as long as an engine.

Owns: the one context manager. Knows nothing of engines. For whoever owns the process: a command, a server, a benchmark.

The collector looks at every container from time to time. Torch, Triton and a model with its graphs are some 200,000 of
them, so that a look takes 80 ms, during which no step is planned and every client waits (`NOTES.md`). None of these is
ever garbage. Frozen, they are not looked at. What requests make still is, but hardly any of it lies in cycles, and
the 130,000 tokens of a batch are another 12 ms: so what is new is looked at in small pieces, and what stays seldom.
Source: `gc.freeze` of Python's library, which is made for this.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = (5_000, 1_000, 10)
"""New containers until they are looked at, which takes some 0.3 ms; how often that is until those that stayed are, too;
and how often that is until everything is that is not frozen.
"""
_DEPTH = 0
"""How many of them are open."""


@contextmanager
def frozen_heap() -> Iterator[None]:
    """All that there is now is left out of collections within it; garbage that there is now goes first.

    Cost: one collection, a tenth of a second with torch loaded. One within another ends with the outer one.
    """
    global _DEPTH
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    _DEPTH += 1
    try:
        yield
    finally:
        _DEPTH -= 1
        gc.set_threshold(*thresholds)
        if not _DEPTH:
            gc.unfreeze()
