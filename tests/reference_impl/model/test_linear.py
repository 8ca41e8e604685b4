"""Products that are written where the caller says have the bits of those that are not."""

from __future__ import annotations

import pytest
import torch

from reference_impl.attention.metadata import BatchRow, build_metadata
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.model.linear import Linear
from reference_impl.model.loader import LoadedModel

pytestmark = pytest.mark.usefixtures("one_thread")


def linear(*, bias: bool) -> Linear:
    made = Linear(48, {"first": 40, "second": 24}, bias=bias, dtype=torch.float32, device=torch.device("cpu"))
    draw = torch.Generator().manual_seed(1)
    for _, weight in made.weights():
        weight.copy_(torch.randn(weight.shape, generator=draw))
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_product_fills_the_rows_it_is_given_and_no_others(bias: bool, packed: bool) -> None:
    made = linear(bias=bias)
    if packed and not made.pack():
        pytest.skip("this torch packs nothing")
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(2))
    room = torch.full((8, 64), 7.0)
    found = made(x, room[:5])
    assert found.data_ptr() == room.data_ptr()
    assert torch.equal(room[:5], made(x))
    assert (room[5:] == 7.0).all()


def test_logits_come_out_in_the_memory_that_was_given(tiny: LoadedModel) -> None:
    model = tiny.transformer
    metadata = build_metadata([BatchRow([0, 1], 5, 5)], 4)
    places, rows = torch.arange(5), torch.tensor([1, 4])

    def logits(out: torch.Tensor | None) -> torch.Tensor:
        size = (2, 4, model.config.num_kv_heads, model.config.head_dim)
        caches = [(torch.zeros(size), torch.zeros(size)) for _ in range(model.config.num_layers)]
        return model.forward(places, places, caches, metadata, TorchAttention(), rows, logits_out=out)

    room = torch.zeros(2, model.config.vocab_size)
    assert logits(room).data_ptr() == room.data_ptr()
    assert torch.equal(room, logits(None))
