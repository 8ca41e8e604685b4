"""Evidence for "What was measured on a GPU": the kept records of the benchmarks, without what the page does not show.

Owns: which figures the chapter may show. Knows nothing of how they are shown, and measures nothing: the records were
written by `engine bench kernels`, `offline`, `serve` and `budget` on the machine that each of them names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reference_impl import bench
from reference_impl.bench.kernel_cases import DECODE_CASES
from reference_impl.bench.kernels import OURS, PADDED, PAGED_PEERS, TEXTBOOK
from reference_impl.bench.pictures import PEERS, PEERS_ON

RESULTS = Path(bench.__file__).parent / "results"
EQUAL, UNEQUAL = "64 x 2k, 32/8, 128", "64 x lognormal(7, 1), 32/8, 128"


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    kernels, offline, serve, budget = (
        json.loads((RESULTS / f"{suite}.json").read_text(encoding="utf-8"))
        for suite in ("kernels", "offline", "serve", "budget")
    )
    where = _head(offline)
    lengths = next(case.lengths for case in DECODE_CASES if case.name == UNEQUAL)
    return {
        "contenders": {"ours": OURS, "textbook": TEXTBOOK, "padded": PADDED, "paged": list(PAGED_PEERS)},
        "equal": EQUAL,
        "equal_lengths": [case.name for case in DECODE_CASES if case.equal],
        "unequal": {"name": UNEQUAL, "tokens": sum(lengths), "longest": max(lengths), "sequences": len(lengths)},
        "kernels": {
            **_head(kernels),
            # In the place of a version stands why there is none.
            "peers": {name: version for name, version in kernels["peers"].items() if version[0].isdigit()},
            "read_gb_s": kernels["ceilings"]["read_gb_s"],
            "decode": kernels["decode"],
        },
        "offline": {**where, "runs": offline["runs"], "peers": PEERS if PEERS_ON in where["device"] else {}},
        "serve": {**_head(serve), **{part: serve[part] for part in ("model", "workload", "bounds", "rates")}},
        "budget": {**_head(budget), **{part: budget[part] for part in ("model", "workload", "memory", "rows")}},
    }


def _head(record: dict[str, Any]) -> dict[str, str]:
    """Where and when it was measured."""
    machine = record["machine"]
    return {"device": machine.get("gpu") or machine["device"], "date": record["date"], "commit": record["commit"]}
