"""Where the kernels of a notebook run.

Owns: the choice between a GPU and Triton's interpreter, made before Triton is imported. Knows nothing of any kernel.
Source: Triton reads TRITON_INTERPRET when a kernel is defined, its own library's included.
"""

from __future__ import annotations

import os
import sys

_INSTALL = "install it in this notebook's environment: python -m pip install torch triton (Triton needs Linux)"
_INTERPRET = "TRITON_INTERPRET"


def device() -> str:
    """ "cuda" with a GPU, unless TRITON_INTERPRET=1 asks for the interpreter; else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() and os.environ.get(_INTERPRET) != "1" else "cpu"


def where() -> str:
    """The same in words."""
    import torch

    return f"on {torch.cuda.get_device_name()}" if device() == "cuda" else "on the CPU, in Triton's interpreter"


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels. Raises: ImportError without Triton."""
    import triton  # type: ignore[import-untyped]

    return bool(triton.knobs.runtime.interpret)


def triton_here() -> str:
    """Make Triton ready and say what runs the kernels: "cuda" with a GPU, else "cpu", in Triton's interpreter.

    Call it before `import triton`. Raises: ImportError, with what to install, without torch or Triton; RuntimeError if
    Triton was imported before, for a GPU that is not there.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(f"torch is not here: {_INSTALL}") from None
    if device() == "cpu" and "triton" not in sys.modules:
        os.environ[_INTERPRET] = "1"
    try:
        import triton
    except ImportError:
        raise ImportError(f"Triton is not here: {_INSTALL}") from None
    if device() == "cuda":
        print(f"Triton {triton.__version__} compiles your kernels for this machine's {torch.cuda.get_device_name()}.")
    elif interpreted():
        print("Triton's interpreter runs your kernels, on the CPU. It is right, and slow.")
    else:
        raise RuntimeError("triton was imported before this cell: restart the kernel, then run the cells in order")
    return device()
