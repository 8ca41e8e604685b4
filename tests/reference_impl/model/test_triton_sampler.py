"""The kernels' choices beside those of `Sampler`: the same seed, the same token, in blocks of any size."""

# ruff: noqa: N803
from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference_impl.model.device_sampler import DeviceSampler, is_plain
from reference_impl.model.draw import BAD_ROWS, LEAST_TEMPERATURE, _first_past, draw
from reference_impl.model.sampler import Sampler, Wish, sampler_for, uniforms
from reference_impl.model.sampling import MAX_SEED, SamplingParams

# What is not finite is subtracted on purpose; NumPy, which stands behind the interpreter, remarks on it.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
]

INF = math.inf
NEAR = 1e-5
"""How near to a boundary of two tokens, in shares of the whole, a draw may fall to either side."""
some = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def wish(made: int = 0, **params) -> Wish:
    params.setdefault("seed", 0)
    return Wish(SamplingParams(**params), (), range(made))


def distance(row: torch.Tensor, asked: Wish) -> float:
    """From this wish's number to the nearest boundary between two tokens, in shares of the whole."""
    weights = ((row.double() - row.double().max()) / asked.params.temperature).exp()
    shares = weights.cumsum(0) / weights.sum()
    (number,) = uniforms([(asked.params.seed, asked.stream, len(asked.made))]).tolist()
    return float((shares - number).abs().min())


def differ(logits: torch.Tensor, wishes: list[Wish], block_tokens: int, device: torch.device) -> int:
    """How many tokens are others than `Sampler`'s; each of them must be a draw at a boundary."""
    logits = logits.to(device)
    ours = DeviceSampler(logits.shape[1], device, block_tokens=block_tokens).sample(logits, wishes)
    theirs = Sampler(logits.shape[1]).sample(logits.cpu(), wishes)
    others = [row for row, (mine, other) in enumerate(zip(ours, theirs, strict=True)) if mine != other]
    for row in others:
        assert not wishes[row].params.greedy
        assert distance(logits[row].cpu(), wishes[row]) < NEAR
        assert logits[row, ours[row].token] > -INF
    return len(others)


@given(
    rows=st.integers(1, 3),
    vocab=st.integers(1, 80),
    block_tokens=st.sampled_from([8, 16, 128]),
    temperatures=st.lists(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 1e6]), min_size=3, max_size=3),
    seed=st.integers(0, MAX_SEED),
    spread=st.sampled_from([0.0, 1.0, 8.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    forbidden=st.floats(0, 0.99),
    padded=st.booleans(),
)
@some
def test_any_row_gives_the_token_that_the_sampler_of_the_cpu_gives(
    device, rows, vocab, block_tokens, temperatures, seed, spread, dtype, forbidden, padded
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    wide = torch.full((rows, vocab + 5), torch.nan, dtype=dtype)
    logits = wide[:, :vocab]
    logits.copy_((torch.randn(rows, vocab, generator=generator) * spread).clamp(-6e4, 6e4))
    logits[torch.rand(rows, vocab, generator=generator) < forbidden] = -INF
    logits[:, vocab // 2] = 0.5
    wishes = [wish(row, seed=seed, temperature=temperatures[row]) for row in range(rows)]
    wide = wide.to(device)
    differ(wide[:, :vocab] if padded else wide[:, :vocab].contiguous(), wishes, block_tokens, device)


def test_thousands_of_draws_are_those_of_the_cpu(device) -> None:
    """Peaked and flat rows; hardly any draw lies at a boundary. The interpreter takes 20 ms for each."""
    rows = 4_000 if device.type == "cuda" else 120
    generator = torch.Generator().manual_seed(1)
    spreads = torch.tensor([0.0, 0.5, 2.0, 6.0])
    logits = torch.randn(rows, 300, generator=generator) * spreads.repeat(rows // 4)[:, None]
    seeds = torch.randint(0, MAX_SEED, (rows,), generator=generator).tolist()
    wishes = [wish(row % 7, seed=seed, temperature=0.6 + row % 3 * 0.2) for row, seed in enumerate(seeds)]
    assert differ(logits, wishes, 256, device) <= rows // 1_000


def drawn(
    device: torch.device, row: list[float], numbers: list[float], temperature: float = 1.0, block: int = 4
) -> list[int]:
    """The token of each number, over the same row."""
    count = len(numbers)
    out = torch.full((count,), -9, dtype=torch.int64, device=device)
    logits = torch.tensor([row] * count, device=device)
    heat = torch.full((count,), temperature, device=device)
    draw(logits, heat, torch.tensor(numbers, dtype=torch.float64, device=device), out, block_tokens=block)
    return out.tolist()


def test_tokens_come_as_often_as_their_shares_say(device) -> None:
    """Chi-square, 8 degrees of freedom: below 26.1 but once in a thousand times; the numbers are fixed."""
    draws = 20_000 if device.type == "cuda" else 300
    row = [0.0, 1.0, -1.0, 2.0, 0.5, -INF, 1.5, 0.0, -1.0, 1.0]
    found = drawn(device, row, uniforms((5, 0, place) for place in range(draws)).tolist(), block=16)
    expected = torch.tensor(row).softmax(0) * draws
    counts = torch.tensor(found).bincount(minlength=10)
    assert counts[5] == 0
    possible = expected > 0
    assert ((counts - expected).square()[possible] / expected[possible]).sum() < 26.1


def test_a_number_takes_the_first_token_whose_running_share_passes_it(device) -> None:
    # Shares of an eighth each, but the third and the sixth, which have none: all sums are exact.
    row = [0.0, 0.0, -INF, 0.0, 0.0, -INF, 0.0, 0.0, 0.0, 0.0]
    numbers = [eighth / 8 + within for eighth in range(8) for within in (0.0, 0.1249)]
    assert drawn(device, row, numbers) == [token for token in (0, 1, 3, 4, 6, 7, 8, 9) for _ in range(2)]


@pytest.mark.parametrize("block", [1, 2, 4, 64])
def test_what_weighs_nothing_is_never_drawn(device, block: int) -> None:
    """Numbers at both ends, and rows that begin and end with tokens, and whole blocks, of no weight."""
    ends = [0.0, 2.0**-53, 0.5, 1 - 2.0**-53]
    row = [-INF, -INF, -INF, -INF, -INF, 3.0, -INF, -INF, -INF, -INF, -INF]
    assert drawn(device, row, ends, block=block) == [5] * 4
    assert drawn(device, [-1e30, -200.0, 0.0, -200.0, -1e30, -INF], ends, 1.0, block) == [2] * 4
    # Subtracting what is beside the largest must not overflow either.
    assert drawn(device, [-3e38, 3e38, -3e38], ends, LEAST_TEMPERATURE, block) == [1] * 4
    assert drawn(device, [1.0, 1.0, 0.0], [0.0, 0.49, 0.51, 0.99], 1e-20, block) == [0, 0, 1, 1]


def test_where_rounding_leaves_a_sum_short_or_long_the_token_still_has_weight(device) -> None:
    """The largest number there is, and numbers at the very end of a block; blocks begin with a token of no weight."""
    rows = 5_000 if device.type == "cuda" else 100
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 24, generator=generator) * 2
    logits[:, ::4] = -INF
    logits[:, -2:] = -INF
    weights = (logits.double() - logits.double().amax(1, keepdim=True)).exp()
    shares = weights.cumsum(1) / weights.sum(1, keepdim=True)
    last_of_block = torch.randint(1, 6, (rows,), generator=generator) * 4 - 1
    numbers = shares[torch.arange(rows), last_of_block].clamp(max=1 - 2.0**-53)
    numbers[::2] = 1 - 2.0**-53
    out = torch.zeros(rows, dtype=torch.int64, device=device)
    draw(logits.to(device), torch.ones(rows, device=device), numbers.to(device), out, block_tokens=4)
    assert out.max() < 22
    assert (logits[torch.arange(rows), out.cpu()] > -INF).all()
    assert (out[::2] == 21).all()


@triton.jit
def _past(weights, target, out, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    chosen, before = _first_past(tl.load(weights + place), tl.load(target), place, SIZE)
    tl.store(out, chosen.to(tl.float64))
    tl.store(out + 1, before)


@pytest.mark.parametrize(("target", "expected"), [(-1e-9, (1, 0.0)), (0.0, (1, 0.0)), (2.0, (3, 2.0)), (9.0, (6, 7.0))])
def test_a_sum_that_is_rounded_below_0_or_above_all_chooses_what_has_weight(device, target, expected) -> None:
    weights = torch.tensor([0.0, 2, 0, 1, 4, 0, 3, 0], dtype=torch.float64, device=device)
    out = torch.zeros(2, dtype=torch.float64, device=device)
    _past[(1,)](weights, torch.tensor([target], dtype=torch.float64, device=device), out, SIZE=8)
    assert tuple(out.tolist()) == expected


def test_a_draw_in_a_block_that_hardly_weighs_is_right(device) -> None:
    """A block with a billionth of the whole: the number lands in it, and at the right place of its own."""
    weights = [1.0, 1e-9, 3e-9, 4e-9]
    row = [0.0, -INF, *map(math.log, weights[1:])]
    total = sum(weights)
    middles = [(sum(weights[:place]) + weight / 2) / total for place, weight in enumerate(weights)]
    assert drawn(device, row, middles, block=2) == [0, 2, 3, 4]


@pytest.mark.parametrize("block_tokens", [1, 2, 8])
def test_of_equal_logits_the_greedy_choice_is_the_lowest_id(device, block_tokens: int) -> None:
    logits = torch.tensor([[1.0, 3, 3, 2, 3], [0, -0.0, 0, 0, 0], [-INF, -5, -INF, -5, -INF], [2.0, 1, 0, 1, 2]])
    sampler = DeviceSampler(5, device, block_tokens=block_tokens)
    assert [one.token for one in sampler.sample(logits.to(device), [wish(temperature=0)] * 4)] == [1, 0, 1, 0]


def test_a_row_with_more_wishes_is_chosen_as_on_the_cpu_beside_plain_ones(device) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(12, 90, generator=generator) * 3
    plain = [wish(3, seed=seed, temperature=seed % 3 * 0.5) for seed in range(12)]
    more = [{"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"logprobs": 3}, {"repetition_penalty": 1.5}]
    more += [{"frequency_penalty": 1.0}, {"presence_penalty": -1.0}, {"logit_bias": {4: 3.0}}, {"temperature": 1e-35}]
    wishes = [replace(one, params=replace(one.params, **extra)) for one, extra in zip(plain, more, strict=False)]
    assert not any(map(is_plain, wishes))
    assert all(map(is_plain, plain))
    mixed = [*wishes, *plain[len(wishes) :]]
    assert differ(logits, mixed, 32, device) == 0
    ours = DeviceSampler(90, device).sample(logits.to(device), mixed)
    assert ours[3].logprob == pytest.approx(Sampler(90).sample(logits, mixed)[3].logprob)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({3: math.nan}, "NaN"),
        ({0: INF}, r"\+inf"),
        ({9: -INF, 1: INF, 4: math.nan}, "NaN"),
        (dict.fromkeys(range(11), -INF), "nothing but -inf"),
        (dict.fromkeys(range(11), math.nan), "NaN"),
    ],
)
@pytest.mark.parametrize("wishes", [{}, {"temperature": 0}, {"top_k": 3}])
def test_logits_without_a_choice_are_named_by_their_row(device, values, said, wishes) -> None:
    logits = torch.zeros(4, 11)
    for row in (2, 3):
        for token, value in values.items():
            logits[row, token] = value
    asked = [wish(), wish(temperature=0), wish(**wishes), wish()]
    for sampler, there in ((DeviceSampler(11, device, block_tokens=4), device), (Sampler(11), torch.device("cpu"))):
        with pytest.raises(FloatingPointError, match=f"logits of row 2 hold {said}: the model's weights"):
            sampler.sample(logits.to(there), asked)
    out = torch.zeros(4, dtype=torch.int64, device=device)
    heat = torch.ones(4, device=device)
    draw(logits.to(device), heat, torch.zeros(4, dtype=torch.float64, device=device), out, block_tokens=4)
    assert [BAD_ROWS.get(token) for token in out.tolist()] == [None, None, *[said.replace("\\", "")] * 2]


def test_what_is_chosen_later_is_chosen_with_the_number_of_when_it_was_asked_for(device) -> None:
    """By then the token that was awaited is in `made`, and counts there."""
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    made = [3]
    asked = [Wish(SamplingParams(seed=5, top_k=9), (), made, awaited=1), Wish(SamplingParams(seed=6), (), ())]
    choice = DeviceSampler(40, device).begin(logits.to(device), asked)
    assert not choice.complete
    made.append(4)
    chosen = choice.sampled()
    assert chosen[0] == Sampler(40).sample(logits[:1], [wish(2, seed=5, top_k=9)])[0]
    assert DeviceSampler(40, device).begin(logits[1:].to(device), asked[1:]).complete


def test_from_step_to_step_the_choice_is_that_of_the_sampler_that_keeps_nothing(device) -> None:
    """Wishes that stay while what was made grows; then some leave, some come, and one that draws becomes greedy."""
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(3)).to(device)
    made: list[list[int]] = [[0] * number for number in range(6)]

    def wishes_of(row: int, temperature: float) -> Wish:
        return Wish(SamplingParams(seed=row, temperature=temperature), (), made[row], awaited=row % 2)

    kept = [wishes_of(row, [0.0, 0.7, 2.0][row % 3]) for row in range(6)]
    others = [wishes_of(row, 1.0) for row in range(6)]
    greedy = [wishes_of(row, 0.0) for row in range(6)]
    steps = [kept, kept, kept[::-1], kept[:4], [*kept[:3], *others[3:]], [*greedy[:3], *others[3:]], others, kept]
    sampler, seen = DeviceSampler(50, device), set()
    for asked in steps:
        chosen = tuple(sampler.sample(logits[: len(asked)], asked))
        assert list(chosen) == Sampler(50).sample(logits[: len(asked)].cpu(), asked)
        seen.add(chosen)
        sampler.check_invariants()
        for ids in made:
            ids.append(len(ids))
    assert len(seen) == len(steps), "the numbers move on"
    sampler._rows._awaited[-1] += 1
    with pytest.raises(AssertionError, match=r"row 5: .*its wish says"):
        sampler.check_invariants()


def test_no_rows_give_no_tokens(device) -> None:
    assert DeviceSampler(3, device).sample(torch.empty(0, 3, device=device), []) == []


def test_wrong_input_is_named(device) -> None:
    logits = torch.zeros(2, 3, device=device)
    sampler = DeviceSampler(3, device)
    with pytest.raises(ValueError, match=r"logits must be \[rows, vocab\] = \(1, 3\), got \(2, 3\)"):
        sampler.sample(logits, [wish()])
    with pytest.raises(ValueError, match="seed is None"):
        sampler.sample(logits, [wish(), wish(seed=None)])
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        DeviceSampler(0, device)
    with pytest.raises(ValueError, match="block_tokens must be a power of 2, got 12"):
        DeviceSampler(3, device, block_tokens=12)
    out = torch.full((2,), 7, dtype=torch.int64, device=device)
    ones, numbers = torch.ones(2, device=device), torch.zeros(2, dtype=torch.float64, device=device)
    for wrong, said in (
        ((logits.long(), ones, numbers, out), "logits are .*int64"),
        ((logits.t().contiguous().t(), ones, numbers, out), "contiguous rows"),
        ((logits, ones[:1], numbers, out), r"temperatures is \(1,\)"),
        ((logits, ones, ones, out), "numbers is .*float32: need torch.float64"),
        ((logits, ones, numbers, out.int()), "out is .*int32"),
    ):
        with pytest.raises(ValueError, match=said):
            draw(*wrong)
    assert out.tolist() == [7, 7]


def test_a_cpu_chooses_in_torch_and_a_gpu_by_the_kernels() -> None:
    assert isinstance(sampler_for(torch.device("cpu"), 9), Sampler)
    on_gpu = sampler_for(torch.device("cuda"), 9)
    assert isinstance(on_gpu, DeviceSampler)
    assert on_gpu.vocab_size == 9


def test_a_sampler_is_ready_once_it_has_drawn_from_such_logits(device, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(DeviceSampler, "draw", lambda self, logits, *_: drawn.append((logits.shape, logits.dtype)))
    monkeypatch.setattr(DeviceSampler, "sample", lambda self, *given: self.begin(*given))
    DeviceSampler(300, device).make_ready(torch.bfloat16)
    assert drawn == [((1, 300), torch.bfloat16)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_real_vocabulary_is_drawn_as_on_the_cpu(device, dtype) -> None:
    generator = torch.Generator(device=device).manual_seed(3)
    logits = (torch.randn(256, 151_936, device=device, generator=generator) * 3).to(dtype)
    wishes = [wish(row, seed=row, temperature=row % 4 * 0.4) for row in range(256)]
    assert differ(logits, wishes, 4_096, device) <= 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_graph_holds_a_draw_and_its_replay_draws_from_what_is_there_now(device) -> None:
    logits = torch.randn(8, 5_000, device=device)
    heat, numbers = torch.full((8,), 0.7, device=device), torch.rand(8, dtype=torch.float64, device=device)
    held, now = torch.zeros(2, 8, dtype=torch.int64, device=device)
    draw(logits, heat, numbers, held)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        draw(logits, heat, numbers, held)
    logits.copy_(torch.randn_like(logits))
    numbers.copy_(torch.rand_like(numbers))
    graph.replay()
    draw(logits, heat, numbers, now)
    assert torch.equal(held, now)
