"""The model's kernels compile for an H100, on any machine: the interpreter accepts what a GPU's compiler does not.

In a process of its own, because in this one Triton interprets. Integer arguments of 1 become constants when a kernel is
compiled, so they are tried too. What is read and written in pieces of 16 bytes shows in the compiler's output.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from tests.reference_impl.compiling import compiled_cases

COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from reference_impl.model import draw, fused, fused_heads

KERNELS = {
    "norm": fused._rms_norm, "gated": fused._gated, "turns": fused._turns, "heads": fused_heads._turn_heads,
    "heads in 8 bits": fused_heads._turn_heads, "weigh": draw._weigh, "choose": draw._choose,
}
DATA = ("x", "weight", "out", "gate_up", "qkv", "query_weight", "key_weight", "key_cache", "value_cache", "logits")
DATA += ("unnormed",)
FLOATS = ("cos", "sin", "frequencies", "temperatures", "largest", "found", "k_scale", "v_scale")
TYPES = dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(("eps", "query_eps", "key_eps", "amplitude"), "fp32")
TYPES |= {"positions": "*i32", "slot_mapping": "*i64", "numbers": "*fp64"}
for name, dtype, warps, constants in json.loads(sys.argv[1]):
    kernel = KERNELS[name]
    types = TYPES | dict.fromkeys(DATA, "*" + dtype)
    if name == "choose":
        types["out"] = "*i64"
    if name == "heads in 8 bits":
        types |= dict.fromkeys(("key_cache", "value_cache"), "*fp8e4nv")
    names = kernel.arg_names
    signature = {arg: "constexpr" if arg in constants else types.get(arg, "i32") for arg in names}
    # As when strides are multiples of 16, which those of models are.
    even = {(place,): [["tt.divisibility", 16]] for place, arg in enumerate(names) if "fp" not in signature[arg][:2]}
    fixed = {(names.index(arg),): value for arg, value in constants.items()}
    even = {place: what for place, what in even.items() if place not in fixed}
    try:
        source = ASTSource(kernel, signature, fixed, even)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        ptx = compiled.asm["ptx"]
        print(json.dumps([compiled.metadata.shared, ptx.count("ld.global.v4.b32")]))
    except Exception as error:
        print(json.dumps(str(error)))
"""

NO_SLOTS = dict.fromkeys(("key_cache", "value_cache", "slot_mapping"))
NORMED_BEFORE = {"unnormed": None, "NORM_SIZE": 0, "NORM_BLOCK": 1}
NORMED_BEHIND = {"NORM_SIZE": 1_024, "NORM_BLOCK": 1_024}
PLAIN = {"k_scale": None, "v_scale": None, "INTERPRETED": False}
NO_NORMS = dict.fromkeys(("query_weight", "key_weight"))
QWEN = {
    "HEADS": 16,
    "KV_HEADS": 8,
    "HEAD_DIM": 128,
    "HALF": 64,
    "ROWS": 8,
    "NORMED": True,
    "STORED": True,
}
ODD = {
    "HEADS": 9,
    "KV_HEADS": 3,
    "HEAD_DIM": 20,
    "HALF": 16,
    "ROWS": 16,
    "NORMED": False,
    "STORED": False,
}

CASES: dict[str, tuple[str, str, int, dict[str, object]]] = {
    "norm": ("norm", "bf16", 4, {"SIZE": 1024, "BLOCK": 1024}),
    "norm of the longest row": ("norm", "fp32", 16, {"SIZE": 16_384, "BLOCK": 16_384}),
    "norm of an odd row": ("norm", "fp16", 1, {"SIZE": 77, "BLOCK": 128}),
    "gated": ("gated", "bf16", 4, {"INNER": 3072, "BLOCK": 1024} | NORMED_BEFORE),
    "gated and normed": ("gated", "bf16", 4, {"INNER": 3072, "BLOCK": 1024} | NORMED_BEHIND),
    "turns": ("turns", "fp32", 4, {"PLANES": 64, "COLUMNS": 64, "ROWS": 8}),
    "turns of one": ("turns", "fp32", 4, {"PLANES": 10, "COLUMNS": 16, "ROWS": 32}),
    "heads, normed and stored": (
        "heads",
        "bf16",
        2,
        QWEN | PLAIN | NORMED_BEFORE | {"BLOCK_SIZE": 16, "slot_stride": 1},
    ),
    "heads, normed twice": ("heads", "bf16", 2, QWEN | PLAIN | NORMED_BEHIND | {"BLOCK_SIZE": 16, "slot_stride": 1}),
    "heads, stored in 8 bits": (
        "heads in 8 bits",
        "bf16",
        2,
        QWEN | NORMED_BEFORE | {"BLOCK_SIZE": 16, "INTERPRETED": False},
    ),
    "heads, stored in blocks of one": (
        "heads",
        "fp16",
        2,
        QWEN | PLAIN | NORMED_BEFORE | {"NORMED": False, "BLOCK_SIZE": 1} | NO_NORMS,
    ),
    "heads in place": ("heads", "fp32", 2, ODD | PLAIN | NORMED_BEFORE | {"BLOCK_SIZE": 1} | NO_NORMS | NO_SLOTS),
    "heads and values in place": (
        "heads",
        "bf16",
        2,
        ODD | PLAIN | NORMED_BEHIND | {"BLOCK_SIZE": 1} | NO_NORMS | NO_SLOTS,
    ),
    "weigh": ("weigh", "bf16", 4, {"BLOCK": 4096}),
    "weigh one block": ("weigh", "fp32", 4, {"BLOCK": 1024, "blocks": 1}),
    "choose": ("choose", "bf16", 8, {"BLOCK": 4096, "BLOCKS": 64}),
    "choose from one block": ("choose", "fp32", 8, {"BLOCK": 1024, "BLOCKS": 1, "blocks": 1}),
}
WIDE_LOADS = {
    "norm": 2,
    "gated": 2,
    "gated and normed": 3,
    # Of queries or values both halves; weights, cosines and sines as they lie in them.
    "heads, normed and stored": 10,
    "heads, normed twice": 12,
    "heads, stored in 8 bits": 10,
    "weigh": 4,
    "choose": 2,
}
"""Loads of 16 bytes that a thread must have, where sizes are those of a real model in bfloat16."""


@pytest.fixture(scope="module")
def compiled() -> dict[str, object]:
    """Case -> bytes of shared memory and loads of 16 bytes, or what the compiler said."""
    return compiled_cases(COMPILE, CASES)


@pytest.mark.parametrize("case", CASES)
def test_it_compiles_and_reads_in_wide_pieces(compiled: dict[str, object], case: str) -> None:
    found = compiled[case]
    assert isinstance(found, list), found
    shared_bytes, wide_loads = found
    assert shared_bytes <= 227 * 1024
    assert wide_loads >= WIDE_LOADS.get(case, 0)
