"""Where the kernels of a notebook run.

Owns: the choice between a GPU and Triton's interpreter, made before Triton is imported. Knows nothing of any kernel.
Source: Triton reads TRITON_INTERPRET when a kernel is defined, its own library's included.
"""

from __future__ import annotations

import os
import sys

_INSTALL = "install it in this notebook's environment: python -m pip install torch triton (Triton needs Linux)"


def triton_here() -> str:
    """Make Triton ready and say what runs the kernels: "cuda" with a GPU, else "cpu", in Triton's interpreter.

    Call it before `import triton`. Raises: ImportError, with what to install, without torch or Triton; RuntimeError if
    Triton was imported before, for a GPU that is not there.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(f"torch is not here: {_INSTALL}") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError(f"Triton is not here: {_INSTALL}") from None
    if device == "cuda":
        print(f"Triton {triton.__version__} compiles your kernels for this machine's {torch.cuda.get_device_name()}.")
    elif triton.knobs.runtime.interpret:
        print("There is no GPU here: Triton's interpreter runs your kernels on the CPU. It is right, and slow.")
    else:
        raise RuntimeError("triton was imported before this cell: restart the kernel, then run the cells in order")
    return device
