"""Padding: unequal sequences made into a rectangle, and what that rectangle costs.

Owns: padding of token lists on either side (`rows.py`) and the account of a static batch in cache slots, arithmetic and
memory traffic (`account.py`). Knows nothing of tensors, masks or positions, and nothing of which batch is worth making.
Start with `account.py`.
"""

from reference_impl.padding.account import Account, ModelShape, static_batch
from reference_impl.padding.rows import pad_rows

__all__ = ["Account", "ModelShape", "pad_rows", "static_batch"]
