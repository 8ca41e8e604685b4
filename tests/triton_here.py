"""Triton for tests: on a GPU where there is one, elsewhere in its interpreter.

Owns: the first import. Triton reads TRITON_INTERPRET where a kernel is defined, its own included, so it is set around
that import and taken back, as what other tests start must not inherit it; Triton's knob keeps it for this process.
"""

from __future__ import annotations

import os
import sys


def import_triton() -> str:
    """Import Triton; gives the device its kernels run on here, "cuda" or "cpu", or "" if there is no Triton.

    Raises: RuntimeError if something imported it without the interpreter, and there is no GPU.
    """
    import torch

    if torch.cuda.is_available():
        return "cuda"
    first = "triton" not in sys.modules
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton
    except ImportError:
        return ""
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
    if first:
        triton.knobs.runtime.interpret = True
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("something imported triton without TRITON_INTERPRET=1 before these tests")
    return "cpu"
