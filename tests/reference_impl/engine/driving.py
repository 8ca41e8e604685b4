"""An engine on the tiny model, and answers run to their end: for the tests of everything above a step."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

from reference_impl.engine.build import Built, build_engine
from reference_impl.engine.engine import Engine
from reference_impl.engine.generate import Told
from reference_impl.engine.options import EngineSettings
from reference_impl.engine.outputs import Piece
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampling import SamplingParams

OVERLAP = "off"
"""Whether the steps of `tiny_engine` overlap; tests that run on both kinds of engine change it."""
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


def tiny_engine(tiny: LoadedModel, *, blocks: int = 256, block_size: int = 4, **settings: Any) -> Built:
    """`blocks` blocks of `block_size` tokens, every invariant checked after every step."""
    memory = blocks * block_size * tiny.config.kv_bytes_per_token(tiny.transformer.dtype.itemsize)
    wanted = replace(
        EngineSettings(model="tiny", block_size=block_size, kv_memory_bytes=memory, overlap=OVERLAP, debug=True),
        **settings,
    )
    return build_engine(wanted, loaded=tiny)


def heard(engine: Engine, *, most_steps: int = 10_000) -> dict[tuple[int, int], Told]:
    """Step until nothing is left; each answer by (request, choice)."""
    told: defaultdict[tuple[int, int], Told] = defaultdict(Told)
    for _ in range(most_steps):
        if not engine.has_work:
            return dict(told)
        for piece in engine.step():
            told[piece.request, piece.choice].hear(piece)
    raise AssertionError(f"not done after {most_steps} steps")


def pieces_of(engine: Engine) -> list[Piece]:
    """Every piece until nothing is left."""
    pieces = []
    while engine.has_work:
        pieces += engine.step()
    return pieces


def blocks_in_use(engine: Engine) -> int:
    """Slots that hold tokens or are kept for some, in tokens: 0 when nobody is served."""
    account = engine.scheduler.memory.account()
    return account.capacity - account.free - account.external
