"""Several sequences on one prompt: parallel sampling, beam search, and what sharing saves.

Owns: the order of forks and frees, and the count of blocks saved. Knows nothing of how blocks are shared or copied: any
`labkit.contracts.BlockAllocator` will do, a student's too. Which beams survive is for a model to say; `draw_parents`
stands for one where only the memory matters.
Method of the shares: the sequences of a request live in an allocator of this project, one token a step. Blocks with and
without sharing are summed over the steps of a request and over the requests of a workload; the share saved is one less
their quotient, so that a long request counts for the memory that it holds and the time that it holds it. All sequences
of a request make the same number of tokens.
Source: Kwon et al., SOSP 2023, sections 4.4 and 6.3 with figure 15 (memory saved by sharing, OPT-13B).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from labkit.contracts import BlockAllocator as BlockContract
from reference_impl.memory.block_allocator import BlockAllocator
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.contiguous import at_least_one

How = Literal["parallel", "beam"]
_HOWS: tuple[How, ...] = ("parallel", "beam")

SURVIVAL = 0.85
"""Chance that a beam goes on as itself in a step: set so that Alpaca's shares come out as published, not measured.
With it ShareGPT at width 6 saves more here (0.78) than there (0.66): these beams all end at one length."""

PUBLISHED_SAVED: dict[tuple[str, How], tuple[float, float]] = {
    ("alpaca", "parallel"): (0.061, 0.098),
    ("sharegpt", "parallel"): (0.162, 0.305),
    ("alpaca", "beam"): (0.376, 0.552),
    ("sharegpt", "beam"): (0.443, 0.663),
}
"""Workload and decoding -> the least and the greatest share of blocks saved in the paper, at widths 2, 4 and 6."""


def parallel_sampling(allocator: BlockContract, prompt_tokens: int, samples: Sequence[int]) -> None:
    """Start the sequences `samples` on one prompt of `prompt_tokens` tokens, which stands in memory once.

    Raises: what `allocate` and `fork` raise, ValueError on no samples; nothing is left of any of them then.
    """
    if not samples:
        raise ValueError("samples must name at least one sequence")
    allocator.allocate(samples[0], prompt_tokens)
    started = [samples[0]]
    try:
        for sample in samples[1:]:
            allocator.fork(samples[0], sample)
            started.append(sample)
    except Exception:
        _free_all(allocator, started)
        raise


def beam_step(
    allocator: BlockContract, beams: Sequence[int], parents: Sequence[int], new_ids: Iterator[int]
) -> list[int]:
    """The beams after a step in which new beam `i` continues `beams[parents[i]]`; no token is appended yet.

    The first that continues a beam keeps its sequence, the others are forked from it under the next of `new_ids`, and
    beams that nobody continues end. Every fork comes before any end: an ended parent could not be forked.
    Raises: ValueError on a parent that is no place in `beams`; what `fork` raises, and StopIteration on
    too few `new_ids`. All beams are as before then.
    """
    for parent in parents:
        if not 0 <= parent < len(beams):
            raise ValueError(f"parents must be places in {len(beams)} beams, got {parent}")
    next_beams: list[int] = []
    forked: list[int] = []
    kept: set[int] = set()
    try:
        for parent in parents:
            beam = beams[parent]
            if beam in kept:
                child = next(new_ids)
                allocator.fork(beam, child)
                forked.append(child)
                beam = child
            kept.add(beam)
            next_beams.append(beam)
    except Exception:
        _free_all(allocator, forked)
        raise
    _free_all(allocator, [beam for beam in beams if beam not in kept])
    return next_beams


def draw_parents(dice: random.Random, width: int, survival: float = SURVIVAL) -> list[int]:
    """Which of `width` beams each new beam continues: itself with chance `survival`, else any one, all alike."""
    return [place if dice.random() < survival else dice.randrange(width) for place in range(width)]


@dataclass(frozen=True)
class Sharing:
    """Blocks held, summed over steps: `shared` of them in truth, `alone` if every sequence had its own."""

    shared: int
    alone: int

    @property
    def saved_share(self) -> float:
        """Blocks saved by sharing over blocks without sharing."""
        return 1 - self.shared / self.alone

    def __add__(self, other: Sharing) -> Sharing:
        return Sharing(self.shared + other.shared, self.alone + other.alone)


def sharing(
    prompt_tokens: int, output_tokens: int, width: int, how: How, *, block_size: int = 16, seed: int = 0
) -> Sharing:
    """Blocks of one request of `width` sequences, with and without sharing.

    Raises: ValueError, naming the argument, on values below 1 or another way to decode. Cost: O(tokens made * blocks).
    """
    at_least_one("prompt_tokens", prompt_tokens)
    at_least_one("output_tokens", output_tokens)
    at_least_one("width", width)
    at_least_one("block_size", block_size)
    if how not in ("parallel", "beam"):
        raise ValueError(f"how must be 'parallel' or 'beam', got {how!r}")
    dice = random.Random(seed)
    new_ids = count(width)
    # A block more for each, because in a beam step the old tail is still held while the new one is taken.
    allocator = BlockAllocator(width * (blocks_for(prompt_tokens + output_tokens, block_size) + 1), block_size)
    sequences = list(range(width))
    parallel_sampling(allocator, prompt_tokens, sequences)
    total = Sharing(0, 0)
    for made in range(1, output_tokens + 1):
        if how == "beam" and made > 1:
            sequences = beam_step(allocator, sequences, draw_parents(dice, width), new_ids)
        for sequence in sequences:
            allocator.append(sequence)
        held = allocator.num_blocks - allocator.num_free_blocks
        total += Sharing(held, width * blocks_for(prompt_tokens + made, block_size))
    return total


def report(requests: int = 60, seed: int = 0) -> Iterator[str]:
    """Lines of a table: each workload and way to decode, what sharing saves here at three widths, and in the paper."""
    yield f"{'lengths like':13} {'decoding':9} {'2':>7} {'4':>7} {'6':>7}   published, widths 2 to 6"
    for name in LENGTHS:
        saved = saved_table(lengths(name, requests, seed), seed=seed)
        for how in _HOWS:
            ours = " ".join(f"{saved[how, width]:>7.1%}" for width in (2, 4, 6))
            least, most = PUBLISHED_SAVED[name, how]
            yield f"{name:13} {how:9} {ours}   {least:.1%} to {most:.1%}"
    yield (
        "What differs: only the mean lengths are published, their spreads are assumed; how often a beam survives was "
        "set by Alpaca's rows; and here all sequences of a request end together, so that wide searches share more."
    )


def saved_share(prompt_tokens: int, output_tokens: int, width: int, how: How) -> float:
    """Share of blocks that sharing saves for one request; arguments, errors and method as for `sharing`."""
    return sharing(prompt_tokens, output_tokens, width, how).saved_share


def saved_table(
    requests: Iterable[tuple[int, int]], widths: Sequence[int] = (2, 4, 6), seed: int = 0
) -> dict[tuple[How, int], float]:
    """Decoding and width -> share of blocks saved over all `requests`, as (prompt, output) tokens."""
    rows = list(requests)
    return {(how, width): _over_all(rows, width, how, seed).saved_share for how in _HOWS for width in widths}


def _over_all(rows: list[tuple[int, int]], width: int, how: How, seed: int) -> Sharing:
    if not rows:
        raise ValueError("requests must hold at least one request")
    each = (sharing(prompt, output, width, how, seed=seed + row) for row, (prompt, output) in enumerate(rows))
    return sum(each, Sharing(0, 0))


LENGTHS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "alpaca": ((19.3, 0.5), (58.5, 0.8)),
    "sharegpt": ((161.3, 1.2), (338.0, 0.8)),
}
"""Workload -> mean and sigma of prompt and output tokens, both log-normal. Only the means are published (figure 11 of
the source); the spreads are assumed."""


def lengths(name: str, requests: int, seed: int = 0) -> list[tuple[int, int]]:
    """(prompt, output) tokens drawn from `LENGTHS`, at most 2,048 together as in the source. ValueError on a name."""
    if name not in LENGTHS:
        raise ValueError(f"no lengths {name!r}; there are {', '.join(LENGTHS)}")
    dice = random.Random(seed)

    def draw(mean: float, sigma: float) -> int:
        return min(1_024, max(1, round(dice.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))

    prompt, output = LENGTHS[name]
    return [(draw(*prompt), draw(*output)) for _ in range(requests)]


def _free_all(allocator: BlockContract, sequences: Iterable[int]) -> None:
    for sequence in sequences:
        allocator.free(sequence)
