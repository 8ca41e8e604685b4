"""How Hugging Face's `config.json` writes a model's rotary embedding, in its newer and its older form.

    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, ...}
    "rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 8.0, ...}

Owns: the words and their defaults. Knows nothing of turns (`rope.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from reference_impl.model.errors import ModelError
from reference_impl.model.fields import Fields
from reference_impl.model.rope import LinearScaling, Llama3Scaling, Rope, Scaling, YarnScaling

_DEFAULT_THETA = 10_000.0


def rope_from_hf(fields: Fields) -> Rope:
    """The rotary embedding of a whole `config.json`. Raises: ModelError naming an unknown type or a wrong value."""
    part = fields.part("rope_parameters") or fields.part("rope_scaling")
    theta = fields.number("rope_theta", _DEFAULT_THETA)
    if part is None:
        return Rope(theta)
    # A field that is absent from the part is looked for beside it.
    theta = part.number("rope_theta", theta)
    kind = part.word("rope_type", part.word("type", "default"))
    if part.values.get("partial_rotary_factor") not in (None, 1.0):
        raise part.wrong("partial_rotary_factor", "1.0")
    if kind == "default":
        return Rope(theta)
    if kind not in KINDS:
        kinds = ", ".join(("default", *KINDS))
        raise ModelError(f"{part.where}: rope_type {kind!r} is not supported; there are {kinds}")
    return Rope(theta, KINDS[kind](part, fields))


def _linear(part: Fields, fields: Fields) -> Scaling:
    return LinearScaling(part.number("factor"))


def _llama3(part: Fields, fields: Fields) -> Scaling:
    low, high = part.number("low_freq_factor"), part.number("high_freq_factor")
    if low >= high:
        raise part.wrong("low_freq_factor", f"below high_freq_factor, {high}")
    return Llama3Scaling(part.number("factor"), low, high, _original(part, fields))


def _yarn(part: Fields, fields: Fields) -> Scaling:
    for name, only in (("truncate", True), ("mscale", None), ("mscale_all_dim", None)):
        if part.values.get(name, only) != only:
            raise part.wrong(name, "left out: this variant of yarn is not supported")
    factor = part.number("factor")
    sharper = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return YarnScaling(
        factor,
        _original(part, fields),
        part.number("beta_fast", 32.0),
        part.number("beta_slow", 1.0),
        part.number("attention_factor", sharper),
    )


def _original(part: Fields, fields: Fields) -> int:
    """The context that the model was first trained for, in tokens."""
    return part.whole("original_max_position_embeddings", fields.whole("max_position_embeddings"))


KINDS: dict[str, Callable[[Fields, Fields], Scaling]] = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
"""`rope_type` -> what it says, from its own part and the whole file."""
