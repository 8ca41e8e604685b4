"""Where things lie: the course's root, the folder with request traces, and the user's cache.

Owns: the search for them, so that no other file knows a path. Knows nothing of what the files hold.
A student's folder has no root (no `_toc.yml`): then the root is None, and the traces are None too unless some were
downloaded before; the callers fall back or say so.
"""

from __future__ import annotations

import os
from pathlib import Path

TRACES_VARIABLE = "P2P_TRACES"
NO_TRACES = "none"
"""`P2P_TRACES=none` asks for the sampler although a trace may lie about."""


def course_root(start: Path | None = None) -> Path | None:
    """The nearest folder with `_toc.yml`, upwards from `start`; by default from the working directory, then here."""
    for origin in [start] if start is not None else [Path.cwd(), Path(__file__).resolve().parent]:
        for folder in (origin, *origin.parents):
            if (folder / "_toc.yml").is_file():
                return folder
    return None


def traces_cache() -> Path:
    """Where downloaded traces lie: `padding-to-paging/traces` in the user's cache folder. It need not exist."""
    return _cache() / "traces"


def models_cache() -> Path:
    """Where downloaded models lie: `padding-to-paging/models` in the user's cache folder. It need not exist."""
    return _cache() / "models"


def _cache() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "padding-to-paging"


def traces_folder() -> Path | None:
    """`$P2P_TRACES`, else `../shared/traces` beside the course's root, else downloaded ones; None where none is there.

    Raises: ValueError if `$P2P_TRACES` names no folder; what was asked for by name is never silently replaced.
    """
    asked = os.environ.get(TRACES_VARIABLE)
    if asked == NO_TRACES:
        return None
    if asked:
        folder = Path(asked)
        if not folder.is_dir():
            raise ValueError(f"{TRACES_VARIABLE}={asked}: no such folder (use {NO_TRACES!r} for the sampler)")
        return folder
    root = course_root()
    beside = root.parent / "shared" / "traces" if root is not None else None
    if beside is not None and beside.is_dir():
        return beside
    return traces_cache() if traces_cache().is_dir() else None
