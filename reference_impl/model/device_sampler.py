"""The next tokens of a batch on a GPU: most rows by two kernels, the others as the sampler of the CPU does it.

Owns: which rows the kernels can choose, and the one upload and one download around them. Knows nothing of the kernels'
arithmetic (`draw.py`) or of what the other wishes do (`sampler.py`). Between two calls it keeps what it found out about
the wishes of the last one: those of most steps are the same, and only their places have moved on.

The choices are those of `Sampler`, by the same numbers. Where weights are added in float32 a boundary between two
tokens moves by up to about a millionth of the whole, so one draw in some hundred thousand may give the neighbour.
Cost: under a microsecond of Python a row, every logit read once, and one wait for the device; what a row with more
wishes costs, see `sampler.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import add, is_

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference_impl.model.draw import BAD_ROWS, BLOCK_TOKENS, LEAST_TEMPERATURE, draw
from reference_impl.model.sampler import Choice, Wish, bad_row, check_shape, choose, seed_of, uniforms
from reference_impl.model.sampling import Sampled, SamplingParams


class DeviceSampler:
    """Chooses tokens below `vocab_size` from logits on `device`."""

    def __init__(self, vocab_size: int, device: torch.device, *, block_tokens: int = BLOCK_TOKENS) -> None:
        """block_tokens: logits a program reads at once, a power of 2. Raises: ValueError on a size that is none."""
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
        if block_tokens < 1 or block_tokens & (block_tokens - 1):
            raise ValueError(f"block_tokens must be a power of 2, got {block_tokens}")
        self.vocab_size = vocab_size
        self.device = device
        self.block_tokens = block_tokens
        self._rows = _Rows(())

    def make_ready(self, dtype: torch.dtype) -> None:
        """Choose a token for nobody from logits of `dtype`, so that nobody waits for a compiler. Cost: a second."""
        logits = torch.zeros(1, self.vocab_size, dtype=dtype, device=self.device)
        self.sample(logits, [Wish(SamplingParams(temperature=0.0), (), ())])

    def sample(self, logits: Tensor, wishes: Sequence[Wish]) -> list[Sampled]:
        """One token a row. logits: [rows, vocab] of any floating-point type, read only; -inf forbids a token.

        Raises: as `Sampler.sample`. Then no row has a token.
        """
        return self.begin(logits, wishes).sampled()

    def begin(self, logits: Tensor, wishes: Sequence[Wish]) -> Choice:
        """As `sample`, without a wait for the device; rows that are not plain are chosen when they are asked for.

        Raises: ValueError as `Sampler.sample`.
        """
        # Kernels and events go to the device that is current, which need not be that of the logits.
        with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
            return self._begun(logits, wishes)

    def _begun(self, logits: Tensor, wishes: Sequence[Wish]) -> Choice:
        check_shape(logits, wishes, self.vocab_size)
        if not self._rows.are_of(wishes):
            self._rows = _Rows(wishes)
        plain = self._rows.plain
        temperatures, numbers = self._upload(self._rows)
        tokens = torch.empty(len(wishes), dtype=torch.int64, device=self.device)
        self.draw(logits, temperatures, numbers, tokens)
        if not self._rows.all_plain:
            # What was made until then belongs to the wish: a token that is awaited now will be in `made` by then.
            then = [
                wish if drawn else replace(wish, made=tuple(wish.made))
                for wish, drawn in zip(wishes, plain, strict=True)
            ]
            return Choice(tokens, lambda: self._with_wishes(logits, then, _good(tokens.tolist())), complete=False)
        if self.device.type != "cuda":
            return Choice(tokens, lambda: _plain(tokens))
        # Into memory that stays in place, else the copy would wait here.
        there = torch.empty(len(wishes), dtype=torch.int64, pin_memory=True)
        there.copy_(tokens, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

        def sampled() -> list[Sampled]:
            copied.synchronize()
            return _plain(there)

        return Choice(tokens, sampled)

    def check_invariants(self) -> None:
        """What is kept of the last wishes is what they say now. AssertionError names the row. Cost: O(rows)."""
        kept, now = self._rows.by_row(), _Rows(self._rows.wishes).by_row()
        for row, (one, other) in enumerate(zip(kept, now, strict=True)):
            assert one == other, f"row {row}: {one} is kept, its wish says {other}"

    @staticmethod
    def _with_wishes(logits: Tensor, wishes: Sequence[Wish], tokens: list[int]) -> list[Sampled]:
        return [
            Sampled(token) if is_plain(wish) else choose(logits[row], token, wish)
            for row, (token, wish) in enumerate(zip(tokens, wishes, strict=True))
        ]

    def _upload(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        """What `draw` needs of each row: temperatures [rows] float32 and numbers [rows] float64, in one transfer.

        The transfer takes its turn behind what the device was told before, and the host does not wait for it.
        """
        count = len(rows.plain)
        # Numbers first and an even count of them: each part begins where its kind of number, and 16 bytes, may begin.
        first = 8 * (count + count % 2)
        packed = torch.zeros(first + 4 * count, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        here = packed.numpy()
        rows.numbers(here[: 8 * count].view(np.float64))
        here[first:].view(np.float32)[:] = rows.temperatures
        there = packed.to(self.device, non_blocking=True)
        return there[first:].view(torch.float32), there[: 8 * count].view(torch.float64)

    def draw(self, logits: Tensor, temperatures: Tensor, numbers: Tensor, out: Tensor) -> None:
        """See `draw.draw`: launches, and waits for nothing."""
        draw(logits, temperatures, numbers, out, block_tokens=self.block_tokens)


class _Rows:
    """What stays the same of rows with these wishes from step to step. One that is not plain is drawn as if greedy."""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        """Raises: ValueError on a seed of None where a number will be drawn."""
        self.wishes = list(wishes)
        self.plain = list(map(is_plain, wishes))
        self.all_plain = all(self.plain)
        heat = [wish.params.temperature if drawn else 0.0 for wish, drawn in zip(wishes, self.plain, strict=True)]
        self.temperatures = np.array(heat, dtype=np.float32)
        drawing = [row for row, warm in enumerate(heat) if warm]
        self._drawing = np.array(drawing, dtype=np.intp)
        drawn = [wishes[row] for row in drawing]
        self._seeds = list(map(seed_of, drawn))
        self._streams = [wish.stream for wish in drawn]
        self._made = [wish.made for wish in drawn]
        self._awaited = [wish.awaited for wish in drawn]

    def are_of(self, wishes: Sequence[Wish]) -> bool:
        """Whether these are the same wishes, each the same object."""
        return len(wishes) == len(self.wishes) and all(map(is_, wishes, self.wishes))

    def by_row(self) -> list[tuple[object, ...]]:
        """Of each row whether it is plain and its temperature; where it draws, also what its numbers come from."""
        drawing = zip(self._seeds, self._streams, map(id, self._made), self._awaited, strict=True)
        sources = dict(zip(self._drawing.tolist(), drawing, strict=True))
        plain = zip(self.plain, self.temperatures.tolist(), strict=True)
        return [(*each, *sources.get(row, ())) for row, each in enumerate(plain)]

    def numbers(self, out: NDArray[np.float64]) -> None:
        """The random number of each row that draws, at its place in `out` [rows]."""
        places = map(add, map(len, self._made), self._awaited)
        out[self._drawing] = uniforms(zip(self._seeds, self._streams, places, strict=True))


def _plain(tokens: Tensor) -> list[Sampled]:
    return [Sampled(token) for token in _good(tokens.tolist())]


def _good(tokens: list[int]) -> list[int]:
    """The same tokens. Raises: FloatingPointError naming the first row that has none."""
    for row, token in enumerate(tokens):
        if token < 0:
            raise bad_row(row, BAD_ROWS[token])
    return tokens


def is_plain(wish: Wish) -> bool:
    """Whether the kernels choose this row's token: the largest logit, or a draw by temperature alone."""
    params = wish.params
    return params.temperature_alone and (params.greedy or params.temperature >= LEAST_TEMPERATURE)
