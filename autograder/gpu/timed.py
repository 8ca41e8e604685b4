"""What is timed, and what came of it: plain data that the judge, the hidden tests and the clock share.

Owns: a timed case, how its tables are drawn, and the shares of a timing. Torch is imported on first use, as a judge
without a GPU reads cases too. Knows nothing of clocks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FASTER_THAN_POSSIBLE = 1.02
"""A share of the read ceiling above this is no speed but a fault, ours or somebody's."""


@dataclass(frozen=True)
class TimedCase:
    """One decode step: context lengths and shapes. dtype is torch's name."""

    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type itself."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that must be read."""
        return 2 * sum(self.lengths) * self.kv_heads * self.head_dim * self.torch_dtype.itemsize

    @property
    def num_blocks(self) -> int:
        """Physical blocks that the sequences hold together."""
        return sum(-(-length // self.block_size) for length in self.lengths)

    def tables(self, seed: int) -> tuple[Tensor, Tensor]:
        """Block tables [batch, max_blocks] and context lengths [batch], int32 on the CPU; physical blocks shuffled."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        blocks = [-(-length // self.block_size) for length in self.lengths]
        shuffled = torch.randperm(self.num_blocks, generator=generator).to(torch.int32)
        tables = torch.full((len(blocks), max(blocks)), -1, dtype=torch.int32)
        for row, part in zip(tables, torch.split(shuffled, blocks), strict=True):
            row[: len(part)] = part
        return tables, torch.tensor(self.lengths, dtype=torch.int32)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TimedCase:
        """The inverse of `to_json`."""
        return cls(**{**data, "lengths": tuple(data["lengths"])})


@dataclass(frozen=True)
class Timing:
    """What the clock saw of one case. Times are medians of one call, in microseconds."""

    student_us: float
    before_us: float
    after_us: float
    kv_bytes: int
    read_bytes_per_s: float
    wrong: str
    """Why the outputs that were timed are not the answer; "" if they are."""
    slowed: str = ""
    """Why the GPU's clocks were held down meanwhile; "" if they were not, or nobody can tell."""
    textbook_us: float | None = None
    """A textbook's kernel on a case of the same lengths, for the eye; None if it was not timed."""

    @property
    def reference_us(self) -> float:
        """The reference's time, before and after taken together."""
        return (self.before_us + self.after_us) / 2

    @property
    def share(self) -> float:
        """The student's share of the read ceiling."""
        return self.kv_bytes / (self.student_us * 1e-6) / self.read_bytes_per_s

    @property
    def reference_share(self) -> float:
        """The reference's, beside it."""
        return self.kv_bytes / (self.reference_us * 1e-6) / self.read_bytes_per_s

    @property
    def textbook_share(self) -> float | None:
        """The textbook's, if it was timed."""
        us = self.textbook_us
        return None if us is None else self.kv_bytes / (us * 1e-6) / self.read_bytes_per_s

    @property
    def drift(self) -> float:
        """How far the reference before and the reference after are apart, as a share of the smaller."""
        return max(self.before_us, self.after_us) / min(self.before_us, self.after_us) - 1
