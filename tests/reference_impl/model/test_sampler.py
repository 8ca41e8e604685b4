"""What the sampler promises, beside a reference that follows the definitions one token at a time."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from reference_impl.model.sampler import Sampler, Wish, uniforms  # noqa: E402
from reference_impl.model.sampling import SamplingParams  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

INF = math.inf


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def wish(prompt=(), made=(), stream=0, **params) -> Wish:
    params.setdefault("seed", 0)
    return Wish(SamplingParams(**params), prompt, made, stream)


def one(row: list[float], **wishes):
    return Sampler(len(row)).sample(logits(row), [wish(**wishes)])[0]


def tokens_drawn(row: list[float], count: int, **params) -> Counter[int]:
    """`count` draws that differ in their position only, as the tokens of one answer do, all in one batch."""
    params = SamplingParams(seed=7, **params)
    wishes = [Wish(params, (), range(place)) for place in range(count)]
    return Counter(each.token for each in Sampler(len(row)).sample(logits(*[row] * count), wishes))


# --- the reference -----------------------------------------------------------------------------------------------


def shares_by_definition(row: list[float], asked: Wish) -> tuple[list[float], float]:
    """Each token's share when it is drawn, and how near any decision of a filter was to going the other way."""
    p = asked.params
    x = list(row)
    for token, bias in p.logit_bias.items():
        x[token] += bias
    for token in {*asked.prompt, *asked.made}:
        x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
    for token in set(asked.made):
        x[token] -= p.frequency_penalty * list(asked.made).count(token) + p.presence_penalty
    if p.greedy:
        return [float(token == x.index(max(x))) for token in range(len(x))], 1.0
    largest = max(x)
    x = [(value - largest) / p.temperature for value in x]
    order = sorted(range(len(x)), key=lambda token: (-x[token], token))
    kept = order[: p.top_k or None]
    weight = [math.exp(value) for value in x]
    doubt = 1.0
    if p.top_p < 1:
        total = math.fsum(weight[token] for token in kept)
        nucleus, mass = [], 0.0
        for token in kept:
            nucleus.append(token)
            mass += weight[token]
            doubt = min(doubt, abs(mass / total - p.top_p))
            if mass >= p.top_p * total:
                break
        kept = nucleus
    for token in kept:
        doubt = min(doubt, abs(weight[token] - p.min_p)) if p.min_p not in (0, weight[token]) else doubt
    kept = [token for token in kept if weight[token] >= p.min_p]
    total, stays = math.fsum(weight[token] for token in kept), set(kept)
    return [weight[token] / total if token in stays else 0.0 for token in range(len(x))], doubt


def token_by_definition(row: list[float], asked: Wish) -> tuple[int, float]:
    shares, doubt = shares_by_definition(row, asked)
    (number,) = uniforms([(asked.params.seed, asked.stream, len(asked.made))])
    running = 0.0
    for token, share in enumerate(shares):
        running += share
        doubt = min(doubt, abs(running - number) if share and not asked.params.greedy else 1.0)
        if running > number:
            return token, doubt
    return max(token for token, share in enumerate(shares) if share), doubt


VOCAB = 12
values = st.one_of(
    st.floats(-8, 8, width=32), st.sampled_from([-INF, 0.0, 1.0, 1.0, 2.5]), st.floats(-1e4, 1e4, width=32)
)
rows = st.lists(values, min_size=VOCAB, max_size=VOCAB).filter(lambda row: max(row) > -INF)
tokens = st.integers(0, VOCAB - 1)
all_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 5, VOCAB, 100]),
    top_p=st.sampled_from([1.0, 0.95, 0.6, 0.2, 1e-9]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    logprobs=st.sampled_from([None, 0, 3, 20]),
    presence_penalty=st.sampled_from([0.0, 1.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100), max_size=3),
)
wishes = st.builds(Wish, all_params, st.lists(tokens, max_size=6), st.lists(tokens, max_size=6), st.integers(0, 3))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(rows, wishes)
def test_any_wish_gives_the_token_that_the_definition_gives(row, asked):
    expected, doubt = token_by_definition(row, asked)
    # Where a sum in another order could decide otherwise, both are right.
    assume(doubt > 1e-9)
    assert Sampler(VOCAB).sample(logits(row), [asked])[0].token == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(rows, wishes), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_token_depends_on_no_neighbour_and_on_no_row(batch, shuffle):
    def sample(pairs):
        return Sampler(VOCAB).sample(logits(*[row for row, _ in pairs]), [asked for _, asked in pairs])

    together = sample(batch)
    assert [sample([pair])[0] for pair in batch] == together
    order = list(range(len(batch)))
    shuffle.shuffle(order)
    assert sample([batch[place] for place in order]) == [together[place] for place in order]


def test_a_large_vocabulary_gives_every_row_what_it_gives_it_alone():
    # Wide enough for vectorised sums and for a head of the order that does not hold all.
    generator = torch.Generator().manual_seed(3)
    many = torch.randn(24, 5_000, generator=generator) * torch.linspace(0.01, 6, 24)[:, None]
    params = [SamplingParams(seed=n, top_p=0.3 + 0.029 * n, top_k=n % 3 * 700, min_p=n % 2 * 0.01) for n in range(24)]
    asked = [Wish(each, (), range(number)) for number, each in enumerate(params)]
    together = Sampler(5_000).sample(many, asked)
    for row in range(24):
        assert Sampler(5_000).sample(many[row : row + 1], asked[row : row + 1]) == [together[row]]
        expected, doubt = token_by_definition(many[row].tolist(), asked[row])
        assert doubt < 1e-10 or together[row].token == expected, row


# --- the random number -------------------------------------------------------------------------------------------


def test_the_random_number_is_fixed_by_seed_stream_and_position():
    # Written down: a change of these numbers changes what every seed in use gives.
    first, far, again = uniforms([(0, 0, 0), (2**63 - 1, 5, 1_000), (2**63 - 1, 5, 1_000)])
    assert first == 0.868510408050094
    assert far == again
    drawn = set(uniforms((seed, stream, place) for seed in range(20) for stream in range(5) for place in range(50)))
    assert len(drawn) == 5_000
    assert 0 <= min(drawn) < 0.01
    assert 0.99 < max(drawn) < 1


def test_another_seed_stream_or_position_draws_anew_and_the_same_ones_draw_the_same():
    row = [0.0] * 1_000
    base = wish(seed=1)
    others = [wish(seed=2), wish(seed=1, stream=1), wish(seed=1, made=[5])]
    drawn = Sampler(1_000).sample(logits(*[row] * 5), [base, base, *others])
    assert drawn[0] == drawn[1]
    assert len({each.token for each in drawn}) == 4


@pytest.mark.parametrize("params", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3}])
def test_draws_are_distributed_as_the_shares_are(params):
    row = [1.0, 0.2, -0.5, 1.0, -3.0, 0.7]
    draws = 4_000
    shares, _ = shares_by_definition(row, wish(**params))
    drawn = tokens_drawn(row, draws, **params)
    assert all(shares[token] for token in drawn)
    expected = {token: share * draws for token, share in enumerate(shares) if share}
    chi_square = sum((drawn[token] - count) ** 2 / count for token, count in expected.items())
    # Exceeded once in 1,000 seeds with 5 degrees of freedom; this seed is fixed.
    assert chi_square < 20.5


# --- each wish ---------------------------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_id_of_the_largest_and_needs_no_seed():
    asked = Wish(SamplingParams(temperature=0), (), ())
    assert Sampler(4).sample(logits([1, 3, 3, 2]), [asked])[0].token == 1
    assert one([0, 0, 0], temperature=0).token == 0


def test_greedy_with_a_penalty_takes_the_largest_of_what_the_penalty_leaves():
    assert one([1, 3, 2.9], temperature=0, made=[1], presence_penalty=0.5).token == 2
    assert one([1, 3, 2.9], temperature=0, logit_bias={0: 100}).token == 0


def test_a_draw_without_a_seed_is_refused():
    with pytest.raises(ValueError, match="seed is None"):
        Sampler(2).sample(logits([0, 0]), [Wish(SamplingParams(), (), ())])


def test_a_tiny_temperature_is_greedy_and_a_huge_one_is_uniform():
    assert tokens_drawn([1.0, 1.001, 0.0], 200, temperature=1e-6) == {1: 200}
    drawn = tokens_drawn([5.0, -5.0, 0.0, 2.0], 4_000, temperature=1e6)
    assert all(abs(drawn[token] - 1_000) < 150 for token in range(4))


def test_a_temperature_that_overflows_float32_keeps_equal_maxima():
    assert set(tokens_drawn([3e38, 3e38, -3e38], 100, temperature=1e-30)) == {0, 1}


def test_top_k_keeps_exactly_k_tokens_and_ties_go_to_the_lowest_ids():
    assert set(tokens_drawn([1.0, 2.0, 1.0, 1.0, 1.0], 500, top_k=3)) == {0, 1, 2}


def test_top_p_keeps_the_smallest_set_that_reaches_it_and_ties_go_to_the_lowest_ids():
    half_quarter_quarter = [math.log(2), 0.0, 0.0]
    assert set(tokens_drawn(half_quarter_quarter, 300, top_p=0.5)) == {0}
    assert set(tokens_drawn(half_quarter_quarter, 300, top_p=0.51)) == {0, 1}
    assert set(tokens_drawn(half_quarter_quarter, 300, top_p=0.76)) == {0, 1, 2}


def test_top_p_counts_shares_of_what_top_k_left():
    # Of four equal tokens top_k leaves two, each half: 0.5 is reached by the first.
    assert set(tokens_drawn([0.0] * 4, 300, top_k=2, top_p=0.5)) == {0}
    assert set(tokens_drawn([0.0] * 4, 300, top_k=2, top_p=0.51)) == {0, 1}


def test_top_p_finds_its_set_where_it_is_larger_than_the_head_that_is_looked_at_first():
    drawn = tokens_drawn([0.0] * 1_000, 4_000, top_p=0.9)
    assert max(drawn) == 899
    assert len(drawn) > 850


def test_min_p_keeps_tokens_by_their_share_of_the_likeliest():
    row = [0.0, math.log(0.5), math.log(0.24)]
    assert set(tokens_drawn(row, 500, min_p=0.25)) == {0, 1}
    assert set(tokens_drawn([1.0, 1.0, 0.9], 500, min_p=1.0)) == {0, 1}


def test_min_p_looks_at_shares_after_the_temperature():
    row = [0.0, math.log(0.5), math.log(0.24)]
    assert set(tokens_drawn(row, 500, min_p=0.3, temperature=0.5)) == {0}


def test_one_allowed_token_is_always_taken():
    assert tokens_drawn([-INF, -INF, -7.0, -INF], 50) == {2: 50}
    assert tokens_drawn([0.0, 1.0, 0.5], 50, top_k=1) == {1: 50}
    assert tokens_drawn([0.0, 1.0, 0.5], 50, top_p=1e-12) == {1: 50}


def test_a_forbidden_token_is_never_drawn():
    assert set(tokens_drawn([-INF, 0.0, 0.0, -INF], 500)) == {1, 2}
    assert set(tokens_drawn([-INF, 0.0, 0.0, -INF], 500, top_k=3, top_p=0.99)) == {1, 2}


def test_presence_counts_once_frequency_counts_each_time_and_neither_counts_the_prompt():
    shares, _ = shares_by_definition([0.0] * 3, wish(made=[1, 1], presence_penalty=1, frequency_penalty=0.5))
    assert shares[0] / shares[1] == pytest.approx(math.exp(2))
    assert one([0, 0.3], temperature=0, made=[1, 1], frequency_penalty=0.1).token == 1
    assert one([0, 0.3], temperature=0, made=[1, 1, 1, 1], frequency_penalty=0.1).token == 0
    assert one([0, 0.3], temperature=0, made=[1, 1, 1, 1], presence_penalty=0.1).token == 1
    assert one([0, 0.3], temperature=0, prompt=[1], presence_penalty=2, frequency_penalty=2).token == 1


def test_the_repetition_penalty_lowers_both_signs_in_prompt_and_answer_and_counts_once():
    assert one([2.0, 1.5], temperature=0, prompt=[0, 0, 0], repetition_penalty=1.3).token == 0
    assert one([2.0, 1.5], temperature=0, prompt=[0], repetition_penalty=1.4).token == 1
    assert one([-1.0, -1.2], temperature=0, made=[0], repetition_penalty=1.3).token == 1


def test_bias_acts_before_the_repetition_penalty():
    # (1 + 1) / 2 = 1 is below 1.2; 1 / 2 + 1 would be above.
    assert one([1.0, 1.2], temperature=0, prompt=[0], repetition_penalty=2, logit_bias={0: 1}).token == 1


def test_logits_are_read_only():
    row = logits([1.0, 2.0, 3.0])
    asked = wish(
        prompt=[0], made=[1], repetition_penalty=2, presence_penalty=1, logit_bias={2: -5}, top_k=2, logprobs=3
    )
    Sampler(3).sample(row, [asked])
    assert row.tolist() == [[1.0, 2.0, 3.0]]


def test_a_share_too_small_for_float32_is_drawn_as_often_as_it_should_be():
    # Each of the many is lost when it is added to the first in float32, and together they are drawn in 1 of 500.
    row = [0.0] + [-17.0] * 50_000
    numbers = list(zip(uniforms((3, 0, place) for place in range(4_000)), range(4_000), strict=True))
    for number, place in sorted(numbers)[-4:]:
        asked = wish(seed=3, made=range(place))
        expected, _ = token_by_definition(row, asked)
        assert number > 0.998
        assert Sampler(len(row)).sample(logits(row), [asked])[0].token == expected > 0


def test_the_lowest_random_number_draws_no_forbidden_token(monkeypatch):
    monkeypatch.setattr("reference_impl.model.sampler.uniforms", lambda keys: np.zeros(len(keys)))
    assert one([-INF, 0.0, 0.0]).token == 1
    assert one([-5.0, 0.0, 0.0], top_k=2).token == 1


def test_the_highest_random_number_draws_the_last_token_that_is_left(monkeypatch):
    monkeypatch.setattr("reference_impl.model.sampler.uniforms", lambda keys: np.full(len(keys), 1 - 2.0**-53))
    assert one([0.3, 0.1, 0.2, -INF]).token == 2
    assert one([0.3, 0.1, 0.2, 0.0], top_k=3).token == 2


# --- what is reported --------------------------------------------------------------------------------------------


def test_nothing_is_reported_unless_it_is_asked_for():
    assert one([1, 2], temperature=0).logprob is None
    assert one([1, 2], temperature=0).top == ()


def test_logprobs_are_the_models_own_whatever_else_is_wished_for():
    row = [1.0, 3.0, 2.0, 0.5]
    total = math.log(sum(map(math.exp, row)))
    got = one(row, temperature=0, made=[1], presence_penalty=2, top_k=1, logit_bias={0: 50}, logprobs=4)
    assert got.token == 0
    assert got.logprob == pytest.approx(1.0 - total)
    assert [token for token, _ in got.top] == [1, 2, 0, 3]
    assert [value for _, value in got.top] == pytest.approx([row[token] - total for token in (1, 2, 0, 3)])
    assert sum(math.exp(value) for _, value in got.top) == pytest.approx(1)


def test_the_list_is_as_long_as_asked_in_order_and_with_ties_by_lowest_id():
    got = one([1.0, 5.0, 1.0, 5.0, 1.0], temperature=0, logprobs=3)
    assert [token for token, _ in got.top] == [1, 3, 0]
    assert one([1.0, 2.0], temperature=0, logprobs=0).top == ()
    assert len(one([1.0, 2.0], temperature=0, logprobs=20).top) == 2


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "what"), [([0, math.nan, 1], "NaN"), ([0, INF, 1], r"\+inf"), ([-INF, -INF, -INF], "nothing but -inf")]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_name_the_row_and_what_is_wrong(row, what, temperature):
    asked = [wish(temperature=temperature)] * 2
    with pytest.raises(FloatingPointError, match=f"row 1 hold {what}"):
        Sampler(3).sample(logits([0, 0, 0], row), asked)


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1.0, 1e6])
@pytest.mark.parametrize("penalty", [5e-324, 1e-30, 1e308])
@pytest.mark.parametrize("row", [[-9.0, -8.0, -INF], [3e38, -3e38, -INF], [0.0, 1e-45, -INF]])
def test_no_wish_is_so_extreme_that_it_ends_a_step_or_allows_what_is_forbidden(row, penalty, temperature):
    extremes = {"temperature": temperature, "repetition_penalty": penalty, "logit_bias": {1: -100, 2: 100}}
    for prompt in ([], [0], [0, 1, 2]):
        for top_p in (1.0, 5e-324):
            got = one(row, prompt=prompt, made=[1] * 3, frequency_penalty=2, top_p=top_p, min_p=1e-300, **extremes)
            assert got.token in (0, 1)


def test_a_shape_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(1, 3\)"):
        Sampler(3).sample(logits([0, 0, 0]), [wish(), wish()])
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        Sampler(0)


def test_no_rows_give_no_tokens():
    assert Sampler(3).sample(torch.empty(0, 3), []) == []


# --- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gives_the_tokens_and_reports_that_the_cpu_gives():
    generator = torch.Generator().manual_seed(5)
    many = torch.randn(12, 3_000, generator=generator) * torch.linspace(0.5, 6, 12)[:, None]
    params = [
        SamplingParams(seed=n, top_p=1 - 0.05 * (n % 4), top_k=n % 3 * 400, min_p=n % 2 * 0.01, temperature=n % 5 * 0.4)
        for n in range(12)
    ]
    penalised = [replace(each, repetition_penalty=1.2, presence_penalty=0.3, logit_bias={7: 2.0}) for each in params]
    asked = [Wish(replace(each, logprobs=3), [1, 2, 3], range(place)) for place, each in enumerate(penalised)]
    on_cpu, on_gpu = Sampler(3_000).sample(many, asked), Sampler(3_000).sample(many.cuda(), asked)
    assert [each.token for each in on_gpu] == [each.token for each in on_cpu]
    for cpu, gpu in zip(on_cpu, on_gpu, strict=True):
        assert [token for token, _ in gpu.top] == [token for token, _ in cpu.top]
        assert gpu.logprob == pytest.approx(cpu.logprob)


# --- speed -------------------------------------------------------------------------------------------------------


def best_of(runs: int, call) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def test_a_step_of_32_rows_of_a_real_vocabulary_is_quick():
    """Goals of 10 ms greedy and 80 ms with temperature and top_p; asserted with room for a busy machine."""
    vocab = 49_152
    many = torch.randn(32, vocab, generator=torch.Generator().manual_seed(0)) * 4
    sampler = Sampler(vocab)
    greedy = [wish(temperature=0)] * 32
    drawn = [wish(temperature=0.8, top_p=0.95, seed=random.Random(n).randrange(99)) for n in range(32)]
    assert best_of(5, lambda: sampler.sample(many, greedy)) < 0.03
    assert best_of(3, lambda: sampler.sample(many, drawn)) < 0.24


def test_a_row_that_wishes_for_nothing_pays_nothing_for_its_neighbours():
    vocab = 49_152
    many = torch.randn(32, vocab, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(vocab)
    plain = [wish(temperature=0)] * 32
    one_wish = [replace(plain[0], params=SamplingParams(temperature=0.8, top_p=0.9, seed=1, logprobs=5)), *plain[1:]]
    alone = best_of(5, lambda: sampler.sample(many, plain))
    assert best_of(5, lambda: sampler.sample(many, one_wish)) < alone + 0.02
