"""The kernels compile for an H100, on any machine: the interpreter accepts what a GPU's compiler does not.

In a process of its own, because in this one Triton interprets. Integer arguments of 1 become constants when a kernel is
compiled, so they are tried too. ptxas comes with Triton.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton

from reference_impl.attention.cascade_work import CascadeWork
from reference_impl.attention.decode_tile import by_grain, rows_turned
from reference_impl.attention.fp8 import FP8
from reference_impl.attention.prefill_tuning import prefill_tuning_for
from reference_impl.attention.work_list import rows_of, tuning_for
from tests.reference_impl.compiling import compiled_cases

COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from reference_impl.attention import cascade_decode, paged_decode, paged_prefill, store_kv, work_list
from reference_impl.bench import textbook_decode

KERNELS = {
    "cut": (work_list._cut, {}),
    "decode": (paged_decode._paged_decode, {"scale": "fp32"}),
    "prefix": (cascade_decode._prefix_pieces, {"scale": "fp32"}),
    "prefill": (paged_prefill._paged_prefill, {"scale": "fp32"}),
    "store": (store_kv._store_kv, {"slot_mapping": "*i64"}),
    "textbook": (textbook_decode._textbook_decode, {"scale": "fp32"}),
}
DATA = ("query", "key_cache", "value_cache", "out", "key", "value")
INDICES = ("block_tables", "context_lens", "cu_seqlens", "ends", "spans", "cuts", "arrived", "table")
PIECES = ("partial_out", "partial_lse", "begun_out", "begun_lse", "pieces_out", "pieces_lse")
SCALES = ("k_scale", "v_scale")
for name, dtype, constants, *options in json.loads(sys.argv[1]):
    kernel, types = KERNELS[name]
    narrow = constants.pop("narrow", False)
    names = kernel.arg_names
    if narrow:
        # Caches of 8 bits, and a scale for each head.
        types = types | dict.fromkeys(("key_cache", "value_cache"), "*fp8e4nv") | dict.fromkeys(SCALES, "*fp32")
    else:
        constants |= {scale: None for scale in SCALES if scale in names}
    pointers = {**dict.fromkeys(DATA, "*" + dtype), **dict.fromkeys(INDICES, "*i32"), **dict.fromkeys(PIECES, "*fp32")}
    pointers |= types
    signature = {arg: "constexpr" if arg in constants else pointers.get(arg, "i32") for arg in names}
    options = dict(zip(("num_warps", "num_stages"), options or (4, 3), strict=True))
    # Strides and addresses as large models have them; without that nothing is copied 16 bytes at once.
    hints = {
        (names.index(arg),): [["tt.divisibility", 16]]
        for arg, kind in signature.items()
        if kind.startswith("*") or arg.startswith(("query_", "out_", "key_", "value_"))
        if narrow or name.startswith("pref") or constants.get("ALIGNED") == 16
    }
    source = ASTSource(kernel, signature, {(names.index(arg),): value for arg, value in constants.items()}, hints)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        used = [word for word in ("wgmma", "cp.async") if word in compiled.asm["ptx"]]
        print(json.dumps([compiled.metadata.shared, len(compiled.asm["cubin"]), used]))
    except Exception as error:
        print(json.dumps(str(error)))
"""

DECODE = {
    "FIELDS": 16,
    "GRAIN": 16,
    "BEGUN": 0,
    "INTERPRETED": False,
    "table_entry": 1,
    "lens_stride": 1,
    "ALIKE": True,
    "ALIGNED": 16,
}
PREFILL = {
    "LANES": 8,
    "GROUP": 4,
    "HEADS": 4,
    "BLOCK_SIZE": 16,
    "SEQUENCES": 128,
    "ALIKE": True,
    "WINDOWED": False,
    "INTERPRETED": False,
    "table_entry": 1,
    "lens_stride": 1,
    "starts_stride": 1,
}


NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def decode(
    dtype: torch.dtype, group: int, head_dim: int, block_size: int = 16, **constants: object
) -> tuple[object, ...]:
    """A case of decode in the tiles and products that a call of its own would choose."""
    kv_dtype = FP8 if "narrow" in constants else dtype
    tuning, rows = tuning_for(head_dim, dtype, kv_dtype), rows_of(group, head_dim)
    product_rows, turned = rows_turned(rows, kv_dtype)
    sizes = {"GROUP": group, "HEAD_DIM": head_dim, "DIMS": max(16, triton.next_power_of_2(head_dim))}
    tile = {"TILE": tuning.tile_tokens, "BLOCK_SIZE": block_size, "BY_GRAIN": by_grain(block_size, kv_dtype)}
    products = {"ROWS": product_rows, "TURNED": turned, "MERGED": rows, "PIECES": 4}
    alone = {} if "BEGUN" in constants else {"begun_out": None, "begun_lse": None}
    return "decode", NAMES[dtype], DECODE | sizes | tile | products | alone | constants


def prefill(head_dim: int, dtype: torch.dtype, **constants: object) -> tuple[object, ...]:
    """A case of prefill in the tiles that a call of its own would choose."""
    tuning = prefill_tuning_for(head_dim, dtype)
    sizes = {"ROWS": tuning.rows, "TOKENS": tuning.rows // 4, "TILE": tuning.tile_tokens, "EDGE": tuning.edge_tokens}
    heads = {"HEAD_DIM": head_dim, "DIMS": max(16, triton.next_power_of_2(head_dim))}
    return "prefill", NAMES[dtype], PREFILL | sizes | heads | constants, tuning.num_warps, tuning.num_stages


def prefix(head_dim: int, dtype: torch.dtype, batch: int, **constants: object) -> tuple[object, ...]:
    """A case of the common prefix in the tiles that a call for `batch` sequences would choose."""
    work = CascadeWork(batch, 32, 8, head_dim, dtype, torch.device("cpu"))
    tuning = work.tuning
    sizes = {"ROWS": tuning.rows, "TILE": tuning.tile_tokens, "EDGE": tuning.edge_tokens, "KV_HEADS": 8, "GROUP": 4}
    heads = {"HEADS": work.tile_heads, "SEQUENCES": work.tile_sequences, "HEAD_DIM": head_dim}
    given = {"DIMS": max(16, triton.next_power_of_2(head_dim)), "BLOCK_SIZE": 16, "ALIKE": True, "INTERPRETED": False}
    strides = {"table_entry": 1, "lens_stride": 1}
    return "prefix", NAMES[dtype], sizes | heads | given | strides | constants, tuning.num_warps, tuning.num_stages


STORE = {"BLOCK_SIZE": 7, "HEAD_DIM": 80, "DIMS": 128, "ROWS": 32, "INTERPRETED": False}
CASES: dict[str, tuple[object, ...]] = {
    "cut": ("cut", "i32", {"FIELDS": 16, "GRAIN": 16, "GRAINS": 4, "SEQUENCES": 128}),
    "cut of one": (
        "cut",
        "i32",
        {"FIELDS": 16, "GRAIN": 16, "GRAINS": 1, "SEQUENCES": 128}
        | dict.fromkeys(("stride", "batch", "num_shares", "window"), 1),
    ),
    "store": (
        "store",
        "fp16",
        STORE | {"slot_stride": 1, "kv_heads": 1},
    ),
    "store in 8 bits": ("store", "bf16", STORE | {"narrow": True, "k_scale_head": 1, "v_scale_head": 1}),
    "decode": decode(torch.bfloat16, 4, 128),
    "decode of a head each": decode(torch.float16, 1, 64),
    "decode of 16 heads each": decode(torch.bfloat16, 16, 128),
    "decode of large heads": decode(torch.bfloat16, 8, 256),
    "decode by token": decode(torch.bfloat16, 7, 96, block_size=7),
    "decode, apart": decode(torch.float16, 4, 128, block_size=48, ALIKE=False, ALIGNED=1),
    "decode of 8 bits": decode(torch.bfloat16, 4, 128, narrow=True),
    "decode of 8 bits in float32": decode(torch.float32, 4, 128, narrow=True),
    "decode behind a prefix": decode(torch.bfloat16, 4, 128, BEGUN=8),
    "prefix": prefix(128, torch.bfloat16, 64),
    "prefix of 8 bits": prefix(128, torch.bfloat16, 64, narrow=True),
    "prefix of few rows": prefix(80, torch.float16, 3),
    "decode of one": decode(torch.float32, 1, 80, batch=1, kv_heads=1),
    "prefill": prefill(128, torch.bfloat16),
    "prefill of 8 bits": prefill(128, torch.bfloat16, narrow=True),
    "prefill of 8 bits, apart": prefill(80, torch.float16, narrow=True, WINDOWED=True, ALIKE=False),
    "prefill of large heads in 8 bits": prefill(256, torch.bfloat16, narrow=True),
    "prefill of one": prefill(64, torch.float16, LANES=1, sequences=1, table_sequence=1),
    "prefill with a window, apart": prefill(80, torch.bfloat16, WINDOWED=True, ALIKE=False, BLOCK_SIZE=5),
    "prefill of large heads": prefill(256, torch.bfloat16),
    "prefill in float32": prefill(128, torch.float32),
    "textbook": ("textbook", "bf16", {"KV_HEADS": 8, "GROUP": 4, "ROWS": 4, "HEAD_DIM": 128, "BLOCK_SIZE": 16}),
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, object]:
    """Case -> bytes of shared memory and of machine code, what it uses of a list, or what the compiler said."""
    return compiled_cases(COMPILE, CASES)


@pytest.mark.parametrize("case", CASES)
def test_it_compiles_and_a_multiprocessor_has_the_shared_memory(compiled: dict[str, object], case: str) -> None:
    found = compiled[case]
    assert isinstance(found, list), found
    shared_bytes, cubin_bytes, _ = found
    assert cubin_bytes > 1000
    assert shared_bytes <= 227 * 1024


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("decode") and "apart" not in case])
def test_as_many_programs_of_decode_fit_as_its_work_is_cut_for(compiled: dict[str, object], case: str) -> None:
    found = compiled[case]
    assert isinstance(found, list), found
    # An H100's multiprocessor has 228 KB, of which each program takes 1 KB for itself.
    assert tuning_for(128, torch.bfloat16).resident * (found[0] + 1024) <= 228 * 1024
    assert found[2] == ["cp.async"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.startswith("pref") and "32" not in case and "few" not in case]
)
def test_prefill_multiplies_on_the_tensor_cores_and_copies_tiles_ahead(compiled: dict[str, object], case: str) -> None:
    found = compiled[case]
    assert isinstance(found, list), found
    assert found[2] == ["wgmma", "cp.async"]
