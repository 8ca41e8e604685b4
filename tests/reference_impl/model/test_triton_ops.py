"""The fused operations beside their definitions in float64: any type, any sizes, any strides."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference_impl.model.fused import LONGEST_ROW, gated, rms_norm, turns
from reference_impl.model.fused_heads import turn_heads
from reference_impl.model.fused_ops import FusedOps
from reference_impl.model.ops import Heads, RMSNorm, Slots, Unnormed, ops_for
from reference_impl.model.rope import Llama3Scaling, Rope, Rotary, Turn, YarnScaling
from reference_impl.model.torch_ops import TorchOps

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BOUND = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Largest error beside the largest number; for 16 bits one rounding, or cutting off, as the interpreter does."""
some = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def drawn(*shape: int, seed: int, dtype: torch.dtype, device: torch.device, strided: bool = False) -> torch.Tensor:
    """Normal numbers; strided: rows with something else between them."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)
    if not strided:
        return numbers
    wide = torch.full((shape[0], shape[1] + 3), torch.nan, dtype=dtype, device=device)
    wide[:, : shape[1]] = numbers
    return wide[:, : shape[1]]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within the type's bound of a definition in float64; NaN never is."""
    error = (found.double().cpu() - expected.cpu()).abs().max() if found.numel() else torch.tensor(0.0)
    return bool(error <= BOUND[found.dtype] * (1 + expected.abs().max().cpu()) if found.numel() else True)


def normed(x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()


def a_norm(size: int, eps: float, seed: int, dtype: torch.dtype, device: torch.device) -> RMSNorm:
    norm = RMSNorm(size, eps, dtype=dtype, device=device)
    norm.weight.copy_(1 + 0.3 * drawn(size, seed=seed, dtype=dtype, device=device))
    return norm


@given(
    rows=st.integers(0, 5),
    size=st.integers(1, 700),
    eps=st.sampled_from([1e-6, 1e-5, 0.3]),
    dtype=st.sampled_from(DTYPES),
    strided=st.booleans(),
    scale=st.sampled_from([1.0, 100.0]),
)
@some
def test_a_norm_is_that_of_the_definition(device, rows, size, eps, dtype, strided, scale) -> None:
    norm = a_norm(size, eps, 1, dtype, device)
    x = drawn(rows, size, seed=2, dtype=dtype, device=device, strided=strided)
    x.mul_(scale)
    before = x.clone()
    found = rms_norm(x, norm.weight, eps)
    assert found.dtype == dtype
    assert found.shape == (rows, size)
    assert close(found, normed(x, norm))
    assert torch.equal(x, before)


def test_the_longest_row_is_normed_and_a_longer_one_is_refused(device) -> None:
    norm = a_norm(LONGEST_ROW, 1e-6, 1, torch.bfloat16, device)
    x = drawn(2, LONGEST_ROW, seed=2, dtype=torch.bfloat16, device=device)
    assert close(rms_norm(x, norm.weight, norm.eps), normed(x, norm))
    with pytest.raises(ValueError, match=f"norm over {LONGEST_ROW + 1} numbers: at most {LONGEST_ROW}"):
        rms_norm(torch.ones(1, LONGEST_ROW + 1, device=device), torch.ones(LONGEST_ROW + 1, device=device), 1e-6)


def some_unnormed(rows: int, size: int, dtype: torch.dtype, device: torch.device, strided: bool) -> Unnormed | None:
    """Rows of `size` numbers that a product was made of, or none for 0; their norm makes nothing much larger."""
    return Unnormed(2 * drawn(rows, size, seed=5, dtype=dtype, device=device, strided=strided), 0.2) if size else None


def factor(unnormed: Unnormed | None) -> torch.Tensor | float:
    """What the norm that was left out multiplies each row by, [rows, 1] float64."""
    if unnormed is None:
        return 1.0
    return (unnormed.rows.double().square().mean(1, keepdim=True) + unnormed.eps).rsqrt()


sizes = st.sampled_from([0, 1, 60, 700, 1_024])
"""Of rows that are normed behind a product; 0: they were normed before."""


@given(
    rows=st.integers(0, 4),
    inner=st.integers(1, 2_100),
    size=sizes,
    dtype=st.sampled_from(DTYPES),
    strided=st.booleans(),
)
@some
def test_a_gate_is_that_of_the_definition(device, rows, inner, size, dtype, strided) -> None:
    gate_up = drawn(rows, 2 * inner, seed=inner, dtype=dtype, device=device, strided=strided)
    unnormed = some_unnormed(rows, size, dtype, device, strided)
    gate, up = (gate_up.double() * factor(unnormed)).chunk(2, dim=1)
    assert close(gated(gate_up, unnormed), gate * gate.sigmoid() * up)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_a_gate_of_large_numbers_neither_overflows_nor_is_nan(device) -> None:
    gate_up = torch.tensor([[-1e4, -200.0, 1e4, 3.0, 1.0, 1.0, 1.0, 1.0]], device=device)
    torch.testing.assert_close(gated(gate_up).cpu(), torch.tensor([[0.0, 0.0, 1e4, 3 / (1 + torch.e**-3)]]))


ROPES = [
    Rope(),
    Rope(1e6),
    Rope(5e5, Llama3Scaling(8.0, 1.0, 4.0, 64)),
    Rope(1e4, YarnScaling(4.0, 32, 32.0, 1.0, 1.14)),
]


@given(
    positions=st.lists(st.integers(0, 131_000), max_size=9),
    half=st.integers(1, 70),
    rope=st.sampled_from(ROPES),
    index=st.sampled_from([torch.int32, torch.int64]),
)
@some
def test_turns_are_those_of_the_angles_in_float32(device, positions, half, rope, index) -> None:
    rotary = Rotary(rope, 2 * half, dtype=torch.float32, device=device)
    at = torch.tensor(positions, dtype=index, device=device)
    cos, sin = turns(at, rotary.frequencies, rotary.amplitude)
    angles = (at.float()[:, None] * rotary.frequencies).double()
    torch.testing.assert_close(cos.double(), angles.cos() * rotary.amplitude, rtol=0, atol=1e-6)
    torch.testing.assert_close(sin.double(), angles.sin() * rotary.amplitude, rtol=0, atol=1e-6)
    ours = TorchOps().turn(rotary, at)
    torch.testing.assert_close(cos, ours.cos[:, 0, :half], rtol=0, atol=1e-6)
    torch.testing.assert_close(sin, ours.sin[:, 0], rtol=0, atol=1e-6)


class Recorder:
    """An attention that stores as the reference does, one token at a time; it says of itself what it is told to."""

    def __init__(self, stores_by_copy: bool) -> None:
        self.stores_by_copy = stores_by_copy
        self.asked = 0

    def store_kv(self, key, value, key_cache, value_cache, slot_mapping) -> None:
        self.asked += 1
        size = key_cache.shape[1]
        for token, slot in enumerate(slot_mapping.tolist()):
            if slot >= 0:
                key_cache[slot // size, slot % size] = key[token]
                value_cache[slot // size, slot % size] = value[token]

    def attend(self, query, key_cache, value_cache, metadata, scale, *, window=None) -> torch.Tensor:
        raise NotImplementedError


def cache_of(blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype, device, heads_first: bool) -> tuple:
    """Keys and values in both ways in which the engine lays them; random, as what others stored."""
    both = drawn(2 * kv_heads, blocks * block_size * head_dim, seed=9, dtype=dtype, device=device)
    if not heads_first:
        keys, values = both.view(2, blocks, block_size, kv_heads, head_dim)
        return keys, values
    keys, values = both.view(2, kv_heads, blocks, block_size, head_dim).permute(0, 2, 3, 1, 4)
    return keys, values


@given(
    tokens=st.integers(0, 6),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3), (9, 3), (16, 8), (5, 1)]),
    half=st.sampled_from([1, 3, 8, 10, 32, 64, 128]),
    qk_norm=st.booleans(),
    by_copy=st.booleans(),
    heads_first=st.booleans(),
    size=sizes,
    block_size=st.sampled_from([1, 3, 16]),
    index=st.sampled_from([torch.int32, torch.int64]),
    dtype=st.sampled_from(DTYPES),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(some, max_examples=50)
def test_heads_are_normed_turned_and_stored_as_by_definition(
    device, tokens, heads, half, qk_norm, by_copy, heads_first, size, block_size, index, dtype, strided, seed
) -> None:
    (num_heads, kv_heads), head_dim = heads, 2 * half
    norms = (a_norm(head_dim, 1e-6, 3, dtype, device), a_norm(head_dim, 0.2, 4, dtype, device)) if qk_norm else None
    shape = Heads(num_heads, kv_heads, head_dim, norms)
    qkv = drawn(tokens, (num_heads + 2 * kv_heads) * head_dim, seed=seed, dtype=dtype, device=device, strided=strided)
    rotary = Rotary(Rope(), head_dim, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 3_000, (tokens,), generator=generator).to(device)
    blocks = 2 + 8 // block_size
    slots = torch.randperm(blocks * block_size, generator=generator)[:tokens].to(index)
    slots[1::3] = -1
    # A block before and one behind belong to nobody: there a slot of -1 or a wrong stride shows.
    ours = cache_of(blocks + 2, block_size, kv_heads, head_dim, dtype, device, heads_first)
    theirs = tuple(cache.double() for cache in ours)

    unnormed = some_unnormed(tokens, size, dtype, device, strided)
    whole = (qkv.double() * factor(unnormed)).view(tokens, num_heads + 2 * kv_heads, head_dim)
    query, key, value = whole.split([num_heads, kv_heads, kv_heads], dim=1)
    if norms is not None:
        query, key = normed(query, norms[0]), normed(key, norms[1])
    angles = (positions.float()[:, None] * rotary.frequencies).double()[:, None]

    def turned(x: torch.Tensor) -> torch.Tensor:
        low, high = x.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)

    expected = turned(query)
    Recorder(True).store_kv(turned(key), value, *(cache[1:-1] for cache in theirs), slots)

    attention, ops = Recorder(by_copy), FusedOps()
    caches = [cache[1:-1] for cache in ours]
    found = ops.heads(qkv, shape, ops.turn(rotary, positions), Slots(attention, *caches, slots.to(device)), unnormed)
    assert attention.asked == (not by_copy)
    assert found.shape == expected.shape
    assert close(found, expected)
    untouched = torch.ones((blocks + 2) * block_size, dtype=torch.bool)
    untouched[slots[slots >= 0].long() + block_size] = False
    for mine, other in zip(ours, theirs, strict=True):
        assert close(mine, other)
        # What nobody wrote is what it was, bit for bit.
        flat = [cache.reshape(-1, kv_heads, head_dim).cpu()[untouched] for cache in (mine, other)]
        assert torch.equal(flat[0].double(), flat[1])


def test_torch_leaves_a_norm_behind_a_product_as_the_kernels_do(device) -> None:
    heads, rotary = Heads(4, 2, 16), Rotary(Rope(), 16, dtype=torch.float32, device=device)
    unnormed = some_unnormed(3, 40, torch.float32, device, False)
    slots = torch.arange(3, device=device)
    found = []
    for ops in (FusedOps(), TorchOps()):
        caches = [torch.zeros(1, 4, 2, 16, device=device) for _ in range(2)]
        qkv = drawn(3, 8 * 16, seed=1, dtype=torch.float32, device=device)
        query = ops.heads(qkv, heads, ops.turn(rotary, slots), Slots(Recorder(True), *caches, slots), unnormed)
        inner = ops.gated(drawn(3, 50, seed=2, dtype=torch.float32, device=device), unnormed)
        found.append(torch.cat([part.flatten() for part in (query, *caches, inner)]))
    torch.testing.assert_close(*found, rtol=0, atol=2e-6)


def test_bug_30_offsets_in_32_bits_wrap_when_heads_lie_gigabytes_apart(device) -> None:
    """The third head begins 2**31 numbers behind the first, in memory that is hardly touched."""
    apart, head_dim = 2**30, 64
    memory = torch.empty(2 * apart + 16_384, dtype=torch.float16, device=device)
    keys, values = (memory.as_strided((2, 16, 3, head_dim), (1_024, 64, apart, 1), start) for start in (0, 4_096))
    qkv = drawn(2, 9 * head_dim, seed=1, dtype=torch.float16, device=device)
    before = qkv.clone().view(2, 9, head_dim)
    rotary = Rotary(Rope(), head_dim, dtype=torch.float16, device=device)
    turn = FusedOps().turn(rotary, torch.zeros(2, dtype=torch.int64, device=device))
    slots = Slots(Recorder(True), keys, values, torch.tensor([31, 5], device=device))
    turn_heads(qkv, Heads(3, 3, head_dim), turn, slots)
    for token, place in ((0, (1, 15)), (1, (0, 5))):
        assert torch.equal(keys[place], before[token, 3:6])
        assert torch.equal(values[place], before[token, 6:])


def refused(device: torch.device, **changes) -> None:
    qkv = torch.ones(3, 32, device=device)
    keys = torch.zeros(4, 2, 2, 8, device=device)
    table = torch.ones(3, 4, device=device)
    given = {
        "qkv": qkv,
        "turn": Turn(table, table),
        "key_cache": keys,
        "value_cache": keys.clone(),
        "slot_mapping": torch.arange(3, device=device),
    } | changes
    slots = Slots(Recorder(True), given["key_cache"], given["value_cache"], given["slot_mapping"])
    try:
        turn_heads(given["qkv"], Heads(2, 1, 8) if "heads" not in changes else changes["heads"], given["turn"], slots)
    finally:
        assert not given["key_cache"].any()
        assert (qkv == 1).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"qkv": torch.ones(3, 31)}, r"qkv is \(3, 31\).*need \[tokens, 48\]"),
        ({"turn": Turn(torch.ones(3, 8), torch.ones(3, 4))}, r"cos is \(3, 8\).*need \(3, 4\)"),
        ({"turn": Turn(torch.ones(3, 4), torch.ones(3, 4).double())}, "sin is .*float64"),
        ({"value_cache": torch.zeros(4, 2, 1, 8)}, "caches of shapes"),
        ({"key_cache": torch.zeros(4, 2, 2, 8).half()}, "keys of torch.float32 do not go into caches of torch.float16"),
        ({"slot_mapping": torch.zeros(2, dtype=torch.int64)}, "for each of 3 tokens"),
        ({"slot_mapping": torch.zeros(3)}, "slot_mapping is .*float32"),
        ({"key_cache": torch.zeros(4, 2, 8, 2).transpose(2, 3)}, "last dimension of key_cache has stride 2"),
    ],
)
def test_a_refused_call_says_why_and_writes_nothing(device, changes, said) -> None:
    def there(given):
        return Turn(given.cos.to(device), given.sin.to(device)) if isinstance(given, Turn) else given.to(device)

    base = {"qkv": torch.ones(3, 48, device=device), "heads": Heads(2, 2, 8)}
    with pytest.raises(ValueError, match=said):
        refused(device, **base | {name: there(value) for name, value in changes.items()})


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda one: rms_norm(one, one[0, :4], 1e-6), r"norm of \(2, 8\).*weight of shape \(4,\)"),
        (lambda one: rms_norm(one.t(), one[:, 0], 1e-6), "contiguous rows"),
        (lambda one: gated(one[:, :5]), r"gate and up are \(2, 5\)"),
        (lambda one: gated(one, Unnormed(one[:1], 1e-6)), r"unnormed rows are \(1, 8\).*need 2 contiguous ones"),
        (
            lambda one: gated(one, Unnormed(one[:, :6].view(2, 2, 3)[:, :, 0], 1e-6)),
            r"unnormed rows are .*strides \(8, 3\)",
        ),
        (lambda one: turns(one[0], one[0], 1.0), r"positions are \(8,\) of torch.float32"),
    ],
)
def test_a_wrong_shape_is_named(device, call, said) -> None:
    with pytest.raises(ValueError, match=said):
        call(torch.ones(2, 8, device=device))


def test_a_cpu_computes_in_torch_and_a_gpu_in_fused_kernels() -> None:
    assert isinstance(ops_for(torch.device("cpu")), TorchOps)
    assert isinstance(ops_for(torch.device("meta")), TorchOps)
    assert isinstance(ops_for(torch.device("cuda")), FusedOps)
