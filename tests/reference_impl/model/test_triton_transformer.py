"""A model with fused operations gives the logits of one without, whatever its family."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from reference_impl.attention.metadata import BatchRow, build_metadata
from reference_impl.model.fused_ops import FusedOps
from reference_impl.model.ops import Ops, RMSNorm
from reference_impl.model.rope import Llama3Scaling, Rope, YarnScaling
from reference_impl.model.tiny import RandomCheckpoint, tiny_config
from reference_impl.model.torch_ops import TorchOps
from reference_impl.model.transformer import Transformer
from reference_impl.model.weights import fill
from tests.reference_impl.model.paged_batches import PlainAttention

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, one key for all heads": {"num_kv_heads": 1, "tied_embeddings": True},
    "llama, heads of 20, all biases": {
        "head_dim": 20,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    },
    "llama 3": {"rope": Rope(5e5, Llama3Scaling(8.0, 1.0, 4.0, 32))},
    "llama, yarn": {"rope": Rope(1e4, YarnScaling(4.0, 32, 32.0, 1.0, 1.14)), "hidden_size": 60, "num_heads": 6},
    "mistral": {"architecture": "mistral", "sliding_window": 5},
    "qwen2": {"architecture": "qwen2", "attention_bias": True},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "head_dim": 24, "intermediate_size": 77},
    "qwen3, window": {"architecture": "qwen3", "qk_norm": True, "sliding_window": 6, "full_layers": frozenset({1})},
}
BLOCK_SIZE = 4


class CopyingAttention(PlainAttention):
    """One whose keys and values anybody may write."""

    stores_by_copy = True

    def store_kv(self, *arguments: Any) -> None:
        raise AssertionError("the fused kernel stores by itself")


def model(ops: Ops | None, device: torch.device, dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
    made = Transformer(tiny_config(**changes), dtype=dtype, device=device, ops=ops)
    fill(made, RandomCheckpoint(made.config))
    return made


def two_steps(model: Transformer, attention: PlainAttention, index: torch.dtype = torch.int64) -> torch.Tensor:
    """Two prompts and a pad, then a decode of one beside a chunk of the other: every logit, and the caches."""
    config, device = model.config, model.device
    size = (8, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
    caches = [torch.zeros(2, *size, dtype=model.dtype, device=device) for _ in range(config.num_layers)]
    pairs = [(both[0], both[1]) for both in caches]
    found = []
    for rows, starts, pads in (
        ([BatchRow([5, 1, 0], 9, 9), BatchRow([2, 7], 3, 3)], (0, 0), 1),
        ([BatchRow([5, 1, 0], 1, 10), BatchRow([2, 7], 4, 7)], (9, 3), 0),
    ):
        metadata = build_metadata(rows, BLOCK_SIZE, num_pads=pads, device=device)
        places = [start + at for row, start in zip(rows, starts, strict=True) for at in range(row.query_tokens)]
        positions = torch.tensor(places + [0] * pads, dtype=index, device=device)
        ids = (positions * 37 + torch.arange(len(positions), device=device)).remainder(258).to(index)
        logits = model.forward(ids, positions, pairs, metadata, attention, None)
        assert logits.shape == (len(positions), config.vocab_size)
        # A pad's logits are of no use to anybody.
        found.append(logits[: len(places)])
    return torch.cat([part.flatten() for part in (*found, *caches)])


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_operations_give_the_logits_and_the_caches_of_torch(device: torch.device, family: str) -> None:
    expected = two_steps(model(TorchOps(), device, **FAMILIES[family]), PlainAttention())
    ours = model(FusedOps(), device, **FAMILIES[family])
    for attention in (PlainAttention(), CopyingAttention()):
        # Beside the largest: a small number is the sum of large ones.
        assert (two_steps(ours, attention) - expected).abs().max() < 1e-5 * expected.abs().max()


class Counting(FusedOps):
    """Fused operations that know how often a norm was a call of its own."""

    def __init__(self) -> None:
        self.norms = 0

    def norm(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        self.norms += 1
        return super().norm(x, norm)


def norms_a_forward(made: Transformer) -> float:
    assert isinstance(made.ops, Counting)
    made.ops.norms = 0
    two_steps(made, CopyingAttention())
    return made.ops.norms / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_behind_their_products_give_the_logits_of_norms_before_them(device: torch.device, family: str) -> None:
    made = model(Counting(), device, **FAMILIES[family])
    layers, config = made.config.num_layers, made.config
    assert norms_a_forward(made) == 2 * layers + 1
    expected = two_steps(made, PlainAttention())
    made.pack()
    assert norms_a_forward(made) == layers * (config.attention_bias + config.mlp_bias) + 1, "a bias is not normed"
    for attention in (PlainAttention(), CopyingAttention()):
        assert (two_steps(made, attention) - expected).abs().max() < 1e-5 * expected.abs().max()
    again = two_steps(made, PlainAttention())
    made.pack()
    assert torch.equal(two_steps(made, PlainAttention()), again)
    if not config.attention_bias:
        with pytest.raises(RuntimeError, match="there is nothing to fill any more"):
            dict(made.weights())


@pytest.mark.parametrize(
    ("dtype", "longest", "norms"),
    [
        (torch.float16, 10_000, 5),  # products of numbers that were not normed may be too large for it
        (torch.bfloat16, 10_000, 1),
        (torch.bfloat16, 64, 1),
        (torch.bfloat16, 63, 5),
    ],
)
def test_a_norm_stays_before_its_product_where_the_rows_are_too_long_or_the_type_is_too_small(
    device: torch.device, dtype: torch.dtype, longest: int, norms: int
) -> None:
    made = model(Counting(), device, dtype)
    assert (made.config.hidden_size, made.config.num_layers) == (64, 2)
    made.ops.longest_before_heads = made.ops.longest_before_gated = longest
    made.pack()
    assert norms_a_forward(made) == norms


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_nearer_to_float32_than_torchs_operations_or_as_near(device, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter cuts bfloat16 off where a GPU rounds it")
    changes = FAMILIES["qwen3"]

    def error(ops: Ops, packed: bool = False) -> float:
        found, exact = model(ops, device, dtype, **changes), model(TorchOps(), device, **changes)
        for (_, weight), (_, rounded) in zip(exact.weights(), found.weights(), strict=True):
            weight.copy_(rounded)
        if packed:
            found.pack()
        apart = two_steps(found, PlainAttention()).double() - two_steps(exact, PlainAttention()).double()
        return float(apart.square().mean().sqrt())

    bound = 1.2 * error(TorchOps())
    assert error(FusedOps()) < bound
    assert error(FusedOps(), packed=True) < bound


@pytest.mark.parametrize("ops", [TorchOps(), FusedOps()])
def test_ids_and_positions_in_32_bits_are_as_good(device: torch.device, ops: Ops) -> None:
    made = model(ops, device)
    assert torch.equal(two_steps(made, PlainAttention(), torch.int32), two_steps(made, PlainAttention()))


@pytest.mark.parametrize("ops", [TorchOps(), FusedOps()])
def test_logits_in_the_models_type_are_those_in_float32(device: torch.device, ops: Ops) -> None:
    made = model(ops, device, torch.bfloat16)
    metadata = build_metadata([BatchRow([0, 1], 5, 5)], BLOCK_SIZE, device=device)
    size = (2, BLOCK_SIZE, 2, 16)
    caches = [(torch.zeros(size).to(device).bfloat16(), torch.zeros(size).to(device).bfloat16()) for _ in range(2)]
    ids = torch.arange(5, device=device)
    rows = torch.tensor([4, 0], device=device)
    wide = made.forward(ids, ids, caches, metadata, PlainAttention(), rows)
    own = made.forward(ids, ids, caches, metadata, PlainAttention(), rows, logits_dtype=torch.bfloat16)
    assert (wide.dtype, own.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(own.float(), wide)
    everything = made.forward(ids, ids, caches, metadata, PlainAttention(), None)
    torch.testing.assert_close(everything[rows], wide, rtol=0, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_graph_holds_all_of_it_and_its_replay_takes_the_tokens_that_are_there_now(device: torch.device) -> None:
    class Still(CopyingAttention):
        """Attention that waits for nothing: what it sees is of no interest here."""

        def attend(self, query, key_cache, value_cache, metadata, scale, *, window=None):
            return query.contiguous()

    made = model(None, device, torch.bfloat16, **FAMILIES["qwen3"])
    assert isinstance(made.ops, FusedOps)
    config = made.config
    metadata = build_metadata([BatchRow([row], 1, 3) for row in range(4)], BLOCK_SIZE, device=device)
    caches = [
        (lambda both: (both[0], both[1]))(
            torch.zeros(2, 4, BLOCK_SIZE, config.num_kv_heads, config.head_dim, dtype=made.dtype, device=device)
        )
        for _ in range(config.num_layers)
    ]
    ids = torch.arange(4, dtype=torch.int32, device=device)
    positions = torch.full((4,), 2, dtype=torch.int32, device=device)

    def step() -> torch.Tensor:
        return made.forward(ids, positions, caches, metadata, Still(), None, logits_dtype=torch.bfloat16)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = step()
    graph.replay()
    before = held.clone()
    ids.copy_(torch.tensor([9, 8, 7, 6]))
    graph.replay()
    torch.testing.assert_close(held, step())
    assert (held - before).abs().max() > 1
