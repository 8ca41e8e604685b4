"""The model solution compiles for an H100, on any machine: the interpreter accepts what a GPU's compiler does not.

In a process of its own, because in this one Triton interprets. Integer arguments of 1 become constants when a kernel is
compiled, so they are tried too. ptxas comes with Triton.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.labkit.lab4.notebook import SOLUTIONS, TEXT
from tests.reference_impl.compiling import compiled_cases

pytest.importorskip("triton")

COMPILE = """
import json, sys
from pathlib import Path
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tests.labkit.lab4 import notebook

cells = [cell for cell in notebook.cells_of(notebook.TEXT.read_text()) if cell[0] in notebook.SOLUTIONS]
imports = "import torch\\nimport triton\\nimport triton.language as tl\\nDEVICE = 'cuda'\\n"
functions = notebook.run_cells([("setup", imports), *cells], {})
DATA = ("query", "key_cache", "value_cache", "out", "key", "value")
TYPES = {"block_tables": "*i32", "context_lens": "*i32", "slot_mapping": "*i64", "scratch": "*fp32"}
TYPES |= {"logarithms": "*fp32", "scale": "fp32"}
for name, dtype, constants in json.loads(sys.argv[1]):
    kernel = getattr(functions, name)
    names = kernel.arg_names
    types = {**dict.fromkeys(DATA, "*" + dtype), **TYPES}
    signature = {arg: "constexpr" if arg in constants else types.get(arg, "i32") for arg in names}
    # Strides and addresses as large models have them; without that nothing is copied 16 bytes at once.
    hints = {
        (names.index(arg),): [["tt.divisibility", 16]]
        for arg, kind in signature.items()
        if kind.startswith("*") or arg.startswith(("query_", "out_", "key_", "value_"))
    }
    source = ASTSource(kernel, signature, {(names.index(arg),): value for arg, value in constants.items()}, hints)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 3})
        used = [word for word in ("mma", "cp.async") if word in compiled.asm["ptx"]]
        print(json.dumps([compiled.metadata.shared, used]))
    except Exception as error:
        print(json.dumps(str(error)))
"""
SHARED_BYTES = 227 * 1024
"""What a program may have of an H100's shared memory."""


def _tiles(
    group: int, head_dim: int, number_bytes: int, block_size: int = 16, rows: int | None = None
) -> dict[str, Any]:
    tile = max(16, min(128, 16384 // (head_dim * number_bytes)))
    rows = rows or 1 << (group - 1).bit_length()
    sizes = {"GROUP": group, "BLOCK_SIZE": block_size, "TILE": tile, "ROWS": rows, "DIM": head_dim}
    return {**sizes, "INTERPRETED": False}


CASES: dict[str, Any] = {
    "store": ("_store_kv", "bf16", {"BLOCK_SIZE": 16, "HEADS": 8, "DIM": 128}),
    "store, one head, blocks of 3": ("_store_kv", "fp32", {"BLOCK_SIZE": 3, "HEADS": 1, "DIM": 32, "kv_heads": 1}),
    "one head": ("_one_head", "fp16", {"BLOCK_SIZE": 16, "SLOTS": 16, "DIM": 128}),
    "one head, blocks of 1": ("_one_head", "fp32", {"BLOCK_SIZE": 1, "SLOTS": 1, "DIM": 64, "group": 1}),
    "grouped": ("_grouped", "bf16", _tiles(4, 128, 2)),
    "split, groups of 4": ("_part", "bf16", _tiles(4, 128, 2)),
    "split, groups of 4, heads of 64": ("_part", "fp16", _tiles(4, 64, 2)),
    "split, no groups": ("_part", "fp16", _tiles(1, 128, 2, 32)),
    "split, groups of 7, heads of 32, blocks of 5": ("_part", "bf16", _tiles(7, 32, 2, 5)),
    "split, groups of 3 in float32": ("_part", "fp32", _tiles(3, 64, 4, 1)),
    "split, no groups in float32": ("_part", "fp32", _tiles(1, 128, 4)),
    "split, 71 heads on one": ("_part", "fp16", _tiles(71, 64, 2, rows=64)),
    "merge": ("_merge_parts", "bf16", {"DIM": 128, "TOGETHER": 16}),
}


@pytest.mark.slow
def test_every_kernel_of_the_model_solution_compiles_for_an_h100() -> None:
    assert SOLUTIONS
    assert TEXT.is_file()
    found = compiled_cases(COMPILE, CASES)
    failed = {case: said for case, said in found.items() if isinstance(said, str)}
    assert not failed, json.dumps(failed, indent=1)
    for case, said in found.items():
        shared, used = said  # type: ignore[misc]
        assert shared <= SHARED_BYTES // 2, f"{case}: {shared} bytes, so that two programs do not fit"
        if case.startswith(("grouped", "split")) and "float32" not in case:
            assert used == ["mma", "cp.async"], f"{case} uses {used}"
