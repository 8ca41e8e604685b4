"""The public properties of lab 4, group by group.

Owns: the groups in the order of the notebook. Their properties stand in `lab4_decode.py`, `lab4_store.py`,
`lab4_shapes.py`, `lab4_numbers.py` and, for the steps on the way, `lab4_ladder.py`; `paged.py` makes the batches.
Knows nothing of the hidden tests: they hold for the same contract, with other cases. Everything runs on a GPU if there
is one, else in Triton's interpreter, which is slow: all sizes are tiny.
"""

from __future__ import annotations

from labkit.checks.lab4_decode import DECODE, HEAD_GROUPS
from labkit.checks.lab4_ladder import LADDER
from labkit.checks.lab4_numbers import BANDWIDTH_EQUAL, BANDWIDTH_UNEQUAL, NUMERICS, SPLIT_KV
from labkit.checks.lab4_shapes import LAYOUT, RAGGED_TAILS
from labkit.checks.lab4_store import STORE_KV
from labkit.checks.story import Group

GROUPS: dict[str, Group] = {
    **LADDER,
    "store_kv": STORE_KV,
    "decode": DECODE,
    "head_groups": HEAD_GROUPS,
    "ragged_tails": RAGGED_TAILS,
    "numerics": NUMERICS,
    "layout": LAYOUT,
    "split_kv": SPLIT_KV,
    "bandwidth_equal": BANDWIDTH_EQUAL,
    "bandwidth_unequal": BANDWIDTH_UNEQUAL,
}
