"""What a record says of the machine it was made on: enough to compare, nothing that names it.

Owns: the fields. Knows nothing of what was measured.

    device   str, the GPU's name, or the processor's
    cores, threads   int, of the host, and those that torch uses there
    python, torch, triton, cuda   str, versions; "none" where there is none

and of an engine, `computed_by`: attention (str: torch, triton, or lab4), cuda_graphs and overlap (bool):
what it was built with, whatever was asked for.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from reference_impl.bench.record import Schema, cpu_model
from reference_impl.engine.engine import Engine
from reference_impl.engine.pipelined import PipelinedEngine

MACHINE: Schema = {
    "machine": {"device": str, "cores": int, "threads": int, "python": str, "torch": str, "triton": str, "cuda": str}
}


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, as a run on `device` sees it."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": triton,
        "cuda": (torch.version.cuda or "none") if device.type == "cuda" else "none",
    }


def computed_by(engine: Engine) -> dict[str, Any]:
    """Whose attention an engine uses, and whether it runs captured steps, and plans one while the last is computed."""
    name = type(engine.runner.attention).__name__.removesuffix("Attention").lower()
    return {
        "attention": name,
        "cuda_graphs": engine.runner.graphs is not None,
        "overlap": isinstance(engine, PipelinedEngine),
    }
