"""Evidence for "Left, right, mask, position": one batch as the engine pads it on either side, then as it decodes.

Owns: which masks, positions and biases the chapter may show of the engine. Knows nothing of how they are shown, nor of
the chapter's own model.
"""

from __future__ import annotations

from typing import Any

import torch

from reference_impl.padding.batch import attention_bias, pad_batch, position_ids

PROMPTS = ("The cat sat on the mat", "I really like", "A quick")
ANSWERS = (("and", "saw"), ("this", "song"), ("brown", "fox"))
"""What a decoder appended in its first two steps."""
SHOWN = 1
"""The row whose attention the figure shows: it has pads, and more than two tokens."""
PAD = "<pad>"


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    return {
        "prompts": list(PROMPTS),
        "answers": [list(answer) for answer in ANSWERS],
        "shown": SHOWN,
        "batches": {
            f"{side}, {'prompt' if not steps else f'{steps} steps later'}": batch(side, steps)
            for side in ("left", "right")
            for steps in (0, 2)
        },
        "empty_row": empty_row(),
    }


def batch(side: str, steps: int) -> dict[str, Any]:
    """The prompts padded on `side`, then `steps` answered tokens appended as one column each, as a decoder does."""
    words = [PAD, *dict.fromkeys(word for prompt in PROMPTS for word in prompt.split())]
    ids, mask = pad_batch([[words.index(word) for word in prompt.split()] for prompt in PROMPTS], 0, side)
    mask = torch.cat([mask, torch.ones(len(PROMPTS), steps, dtype=torch.bool)], dim=1)
    look = attention_bias(mask) == 0
    rows = [
        [words[token] for token in row] + list(answer[:steps])
        for row, answer in zip(ids.tolist(), ANSWERS, strict=True)
    ]
    return {
        "rows": rows,
        "mask": mask.tolist(),
        "positions": position_ids(mask).tolist(),
        "may_look": look[:, 0].tolist(),
    }


def empty_row() -> dict[str, Any]:
    """How many keys each query of a row sees that is all pads beside a row that is not, under the engine's bias."""
    _, mask = pad_batch([[1, 2, 3], []], 0)
    return {"keys": (attention_bias(mask) == 0).sum(dim=-1)[:, 0].tolist()}
