"""The next token, from logits and wishes.

Owns: the order in which wishes act and the arithmetic of each. Knows nothing of text, of requests or of models; keeps
nothing between two calls. The order, which is the usual one of serving engines:

    log-probabilities as the model gave them -> logit_bias -> repetition, frequency, presence penalty -> temperature
    -> top_k -> top_p (of what top_k left) -> min_p -> draw

Every row is computed by itself, in float64, and its random number is a hash of (seed, stream, position). So a token
depends on nothing that the batch does: not on its row, its neighbours, or a preemption in between. Equal logits count
as ordered by token id, lowest first, in the greedy choice, in every filter and in the reported list.
Cost: one pass over all logits, and for each row that draws about five passes over its own; only a top_p that needs more
than the 512 most likely tokens sorts a row.
Source: top_p is Holtzman et al., ICLR 2020; min_p Nguyen et al., 2024; repetition penalty Keskar et al., 2019.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference_impl.model.sampling import Sampled, SamplingParams

if TYPE_CHECKING:
    from reference_impl.model.device_sampler import DeviceSampler

_KEY = struct.Struct("<QQQ")
"""Seed, stream, position."""
_HEAD = 512
"""Most likely tokens that top_p looks at before it sorts them all; text seldom needs more."""

_LARGEST = 1e300
"""What a repetition penalty makes of a logit at most: a wish may be extreme, but none may end a step with an error."""


@dataclass(frozen=True)
class Wish:
    """One row's wishes: the token at place len(made) + awaited of answer `stream` of a request with this prompt.

    awaited: tokens that were chosen and are not in `made` yet; not for wishes that look back.
    """

    params: SamplingParams
    prompt: Sequence[int]
    made: Sequence[int]
    stream: int = 0
    awaited: int = 0


@dataclass(frozen=True)
class Choice:
    """Tokens that are chosen, or will be when the device comes to it.

    tokens: [rows] int64 on the device of the logits. complete: whether all of them will be there by themselves; else
    some are chosen by `sampled`, which must be called while the logits are good. sampled: waits for them.
    Raises: FloatingPointError as `Sampler.sample`.
    """

    tokens: Tensor
    sampled: Callable[[], list[Sampled]]
    complete: bool = True


def uniforms(keys: Iterable[tuple[int, int, int]]) -> NDArray[np.float64]:
    """The random number of each (seed, stream, position), 0 <= u < 1 in steps of 2**-53.

    Cost: one SHA-256 each, half a microsecond.
    """
    hashes = b"".join([sha256(_KEY.pack(*key)).digest() for key in keys])
    # The upper 53 bits of the first of four numbers in a hash.
    return (np.frombuffer(hashes, dtype="<u8")[::4] >> np.uint64(11)) * np.float64(2.0**-53)


def seed_of(wish: Wish) -> int:
    """Raises: ValueError on a seed of None."""
    if wish.params.seed is None:
        raise ValueError("seed is None: whoever adds a request draws a seed for it")
    return wish.params.seed


def number_of(wish: Wish) -> float:
    """The random number of the token that is wished for. Raises: ValueError on a seed of None."""
    return float(uniforms([(seed_of(wish), wish.stream, len(wish.made) + wish.awaited)])[0])


def sampler_for(
    device: torch.device, vocab_size: int, *, ready_for: torch.dtype | None = None
) -> Sampler | DeviceSampler:
    """The fastest for logits on `device`: kernels on a GPU where Triton is installed, torch elsewhere.

    ready_for: logits for which the kernels, if there are any, are compiled now and not when the first come.
    """
    if device.type == "cuda":
        try:
            from reference_impl.model.device_sampler import DeviceSampler
        except ImportError:
            # A build of torch without Triton: slower, and the same choices.
            return Sampler(vocab_size)
        kernels = DeviceSampler(vocab_size, device)
        if ready_for is not None:
            kernels.make_ready(ready_for)
        return kernels
    return Sampler(vocab_size)


class Sampler:
    """Chooses tokens below `vocab_size`, from logits on any device."""

    def __init__(self, vocab_size: int) -> None:
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
        self.vocab_size = vocab_size

    def sample(self, logits: Tensor, wishes: Sequence[Wish]) -> list[Sampled]:
        """One token a row. logits: [rows, vocab] of any floating-point type, read only; -inf forbids a token.

        Raises: ValueError on other shapes and on a seed of None; FloatingPointError, naming the row, where logits hold
        a NaN or +inf or nothing but -inf. Then no row has a token.
        """
        check_shape(logits, wishes, self.vocab_size)
        best, first = logits.max(dim=1)
        if not bool(best.isfinite().all()):
            row = int(best.isfinite().logical_not().nonzero()[0])
            raise bad_row(row, {"nan": "NaN", "inf": "+inf"}.get(str(float(best[row])), "nothing but -inf"))
        likeliest = first.tolist()
        return [choose(logits[row], likeliest[row], wish) for row, wish in enumerate(wishes)]

    def begin(self, logits: Tensor, wishes: Sequence[Wish]) -> Choice:
        """As `sample`, at once."""
        chosen = self.sample(logits, wishes)
        return Choice(torch.tensor([one.token for one in chosen], device=logits.device), lambda: chosen)


def check_shape(logits: Tensor, wishes: Sequence[Wish], vocab_size: int) -> None:
    """Raises: ValueError unless there is a row of `vocab_size` logits for each wish."""
    expected = (len(wishes), vocab_size)
    if tuple(logits.shape) != expected:
        raise ValueError(f"logits must be [rows, vocab] = {expected}, got {tuple(logits.shape)}")


def bad_row(row: int, what: str) -> FloatingPointError:
    """The error of logits that hold no choice."""
    return FloatingPointError(f"the logits of row {row} hold {what}: the model's weights or memory are broken")


def choose(row: Tensor, likeliest: int, wish: Wish) -> Sampled:
    """One row's token; `likeliest` is the lowest id of its largest logits. Raises: ValueError on a seed of None."""
    params = wish.params
    biased = _biased(row, wish)
    if not params.greedy:
        token = _draw(biased, params, number_of(wish))
    elif biased is row:
        token = likeliest
    else:
        token = int(biased.argmax())
    return _reported(row, token, params.logprobs)


def _biased(row: Tensor, wish: Wish) -> Tensor:
    """The row after bias and penalties, in float64; the row itself if none is wished for."""
    params = wish.params
    repeats = params.repetition_penalty != 1
    counted = (params.frequency_penalty or params.presence_penalty) and wish.made
    if not (params.logit_bias or repeats or counted):
        return row
    biased = row.to(torch.float64, copy=True)  # logits in float64 would be changed themselves
    if params.logit_bias:
        tokens = _ids(params.logit_bias, row)
        biased[tokens] += torch.tensor(list(params.logit_bias.values()), dtype=torch.float64, device=row.device)
    if repeats:
        tokens = _ids({*wish.prompt, *wish.made}, row)
        seen = biased[tokens]
        penalty = params.repetition_penalty
        changed = torch.where(seen > 0, seen / penalty, seen * penalty).clamp(-_LARGEST, _LARGEST)
        biased[tokens] = torch.where(seen.isneginf(), seen, changed)
    if counted:
        times = Counter(wish.made)
        count = torch.tensor(list(times.values()), dtype=torch.float64, device=row.device)
        biased[_ids(times, row)] -= params.frequency_penalty * count + params.presence_penalty
    return biased


def _ids(tokens: Iterable[int], row: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=row.device)


def _draw(row: Tensor, params: SamplingParams, number: float) -> int:
    """The first token, by id, at which the running sum of shares passes `number`."""
    scaled = row.double()
    # The largest first becomes 0: no temperature overflows, and its weight is 1, so that the sum is never 0.
    scaled = (scaled - scaled.max()) / params.temperature
    weights = scaled.exp()
    top_k = params.top_k if params.top_k < len(row) else 0
    if top_k or params.top_p < 1:
        weights = weights * _most_likely(scaled, weights, top_k, params.top_p)
    if params.min_p > 0:
        weights = weights * (weights >= params.min_p)
    running = weights.cumsum(0)
    # Strictly greater: a token of weight 0 adds nothing to the sum and is never the first to pass the number.
    return int(torch.searchsorted(running, running[-1] * number, right=True))


def _most_likely(scaled: Tensor, weights: Tensor, top_k: int, top_p: float) -> Tensor:
    """Which tokens top_k and then top_p leave, [vocab] bool. They are the `count` largest, ties by lowest id."""
    # Only the values in order are needed, not whose they are: they tell how many stay and the least of those.
    if top_k:
        ordered = scaled.topk(top_k).values
        total = ordered.exp().sum()
    else:
        ordered = scaled.topk(min(_HEAD, len(scaled))).values
        total = weights.sum()
        if ordered.exp().sum() < top_p * total:
            ordered = _descending(scaled)
    count = len(ordered)
    if top_p < 1:
        running = ordered.exp().cumsum(0)
        # The bound is for sums that end a rounding error short of the total.
        count = min(int(torch.searchsorted(running, top_p * total)) + 1, count)
    least = ordered[count - 1]
    above, tied = scaled > least, scaled == least
    return above | (tied & (tied.cumsum(0) <= count - above.sum()))


def _descending(values: Tensor) -> Tensor:
    # NumPy sorts values alone, which takes half as long as torch's sort, which has to say whose they are.
    return torch.from_numpy(-np.sort(-values.cpu().numpy())).to(values.device)


def _reported(row: Tensor, token: int, logprobs: int | None) -> Sampled:
    if logprobs is None:
        return Sampled(token)
    exact = row.double()
    exact = exact - exact.logsumexp(0)
    chosen = float(exact[token])
    if logprobs == 0:
        return Sampled(token, chosen)
    count = min(logprobs, len(exact))
    least = exact.topk(count).values[-1]
    # Ascending ids, then a sort that keeps the order of equals.
    ids = (exact >= least).nonzero().flatten()
    values, order = exact[ids].sort(descending=True, stable=True)
    top = zip(ids[order[:count]].tolist(), values[:count].tolist(), strict=True)
    return Sampled(token, chosen, tuple(top))
