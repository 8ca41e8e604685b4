"""What lab 4 asks of a submission, and which edition of its hidden tests this is.

Owns: the names the judge looks up, what a submission may import, and the caps that its tools need. Knows nothing of the
tests.
"""

from __future__ import annotations

from typing import Any

VERSION = "1.0"
"""Raised when a test is added or made stricter, so that a regrade can say under which edition a grade was given."""

PROVIDES = {"AttentionBackend": ("store_kv", "paged_attention")}
"""Contract -> its methods: here functions of the submission itself."""
KIND = "functions"

PACKAGES = ("numpy", "torch", "triton")
"""Packages beyond the standard library and labkit; what they need in turn comes with them."""

REFERENCE = {"AttentionBackend": "autograder.judge.attention_cases"}
"""Contract -> the module that holds the reference of that name: the definition in float64, our kernels on a GPU."""

SOURCES = ("autograder/gpu", "reference_impl/attention", "reference_impl/bench/device_clock.py")
"""What can change a verdict of this lab, beside what can of any."""

DEVICES = ("cpu", "cuda")

ENVIRONMENT = {"TRITON_CACHE_DIR": "/tmp/triton"}
ENVIRONMENT_CPU = {"TRITON_INTERPRET": "1"}
"""Without a GPU kernels run in Triton's interpreter; whether they do is decided where they are defined."""

LIMITS = {
    # Importing torch and triton takes seconds, and many of them on a busy machine; so do a hundred programs.
    "load_cell_s": 60.0,
    "call_s": 20.0,
    # An honest call takes 2.3 seconds on a busy machine.
    "impatient_call_s": 8.0,
    "patience": 1,
    "total_s": 300.0,
    "cpu_s": 240,
    "open_files": 256,
    # Tensors cross as text.
    "frame_bytes": 32 << 20,
    "reply_bytes": 32 << 20,
}
"""Caps that differ from other labs'."""

LIMITS_CPU = {
    # Torch maps much that it never touches.
    "memory_bytes": 4 << 30,
}
LIMITS_CUDA = {
    # The first call of a kind compiles its kernels, a second or more each.
    "call_s": 60.0,
    "impatient_call_s": 10.0,
    # CUDA maps more addresses than there is memory; Triton starts a compiler, and keeps what it made.
    "memory_bytes": -1,
    "resident_bytes": 12 << 30,
    "allow_processes": True,
    "processes": 256,
    "open_files": 1024,
    "disk_bytes": 512 << 20,
    "file_bytes": 64 << 20,
}
"""And those that differ between devices."""


def rehearsal() -> dict[str, tuple[Any, ...]]:
    """One public call of each function, on which the judge looks whether kernels do the work."""
    import torch

    from autograder.judge.attention_cases import GROUPED, Draw

    draw = Draw(0)
    call = draw.placed(draw.content(GROUPED, [5, 9]))
    new = draw.normal(3, GROUPED.kv_heads, GROUPED.head_dim)
    store = (new, new + 1, call.key_cache.clone(), call.value_cache.clone(), torch.tensor([1, -1, 6]))
    return {"store_kv": store, "paged_attention": call.arguments}
