"""The tensors behind the blocks: whole blocks move, in all layers, and every source is read first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference_impl.engine.kv_cache import KVCache, heads_outermost
from reference_impl.model.config import ModelConfig

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=10,
    hidden_size=8,
    intermediate_size=8,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_context_tokens=32,
)
DEVICE, HOST = 5, 3


def cache(**options: object) -> KVCache:
    made: KVCache = KVCache(CONFIG, DEVICE, 2, num_host_blocks=HOST, **options)  # type: ignore[arg-type]
    return made


def write(kv: KVCache, block: int, mark: int) -> None:
    """Every number of a block says which mark, layer and half it is of."""
    for layer, halves in enumerate(kv.layers):
        for half, tensor in enumerate(halves):
            tensor[block] = mark * 100 + layer * 10 + half


def mark_of(kv: KVCache, block: int) -> int:
    """The mark of a block, which all of its numbers must share."""
    marks = set()
    for layer, halves in enumerate(kv.layers):
        for half, tensor in enumerate(halves):
            marks |= set(((tensor[block] - layer * 10 - half) / 100).flatten().tolist())
    assert len(marks) == 1, f"block {block} is a mixture of {marks}"
    return int(marks.pop())


@pytest.mark.parametrize("heads_first", [True, False])
def test_a_layer_is_what_attention_asks_for(heads_first: bool) -> None:
    kv = cache(dtype=torch.bfloat16, heads_first=heads_first)
    assert len(kv.layers) == 3
    for key, value in kv.layers:
        assert key.shape == value.shape == (5, 2, 2, 4)
        assert key.dtype == torch.bfloat16
        in_memory: Tensor = key.permute(2, 0, 1, 3) if heads_first else key
        assert in_memory.is_contiguous()


def test_on_a_cpu_heads_are_outermost() -> None:
    key: Tensor = cache().layers[0][0]
    assert key.permute(2, 0, 1, 3).is_contiguous(), "else attention copies an operand in every product"


@pytest.mark.parametrize(
    ("device", "head_bytes", "outermost"),
    [("cuda", 256, False), ("cuda", 128, False), ("cuda", 192, True), ("cpu", 256, True)],
)
def test_on_a_gpu_heads_lie_side_by_side_if_their_rows_are_whole_cache_lines(
    device: str, head_bytes: int, outermost: bool
) -> None:
    assert heads_outermost(head_bytes, torch.device(device)) == outermost


def test_its_bytes_are_those_of_its_blocks() -> None:
    kv = cache()
    one = 2 * CONFIG.kv_bytes_per_token(4)
    assert (kv.block_bytes, kv.num_bytes, kv.num_host_bytes) == (one, DEVICE * one, HOST * one)


moves = st.one_of(
    st.tuples(st.just("copy"), st.dictionaries(st.integers(0, DEVICE - 1), st.integers(0, DEVICE - 1))),
    st.tuples(st.just("swap_out"), st.dictionaries(st.integers(0, HOST - 1), st.integers(0, DEVICE - 1))),
    st.tuples(st.just("swap_in"), st.dictionaries(st.integers(0, DEVICE - 1), st.integers(0, HOST - 1))),
)


@given(calls=st.lists(moves, max_size=8), heads_first=st.booleans())
@settings(max_examples=100, deadline=None)
def test_after_any_moves_every_block_holds_what_a_list_of_marks_says(
    calls: list[tuple[str, dict[int, int]]], heads_first: bool
) -> None:
    kv = cache(heads_first=heads_first)
    device, host = list(range(1, DEVICE + 1)), [0] * HOST
    for block, mark in enumerate(device):
        write(kv, block, mark)
    sides = {"copy": (device, device), "swap_out": (device, host), "swap_in": (host, device)}
    for name, source_of in calls:
        read, written = sides[name]
        getattr(kv, name)([(source, target) for target, source in source_of.items()])
        for target, mark in [(target, read[source]) for target, source in source_of.items()]:
            written[target] = mark
    kv.swap_out([])
    # A block on the host was never written: its numbers are 0, which is no mark.
    assert [mark_of(kv, block) if mark else 0 for block, mark in enumerate(device)] == device


def test_blocks_that_change_places_do_not_overwrite_each_other() -> None:
    kv = cache()
    for block in range(DEVICE):
        write(kv, block, block + 1)
    kv.copy([(0, 1), (1, 0), (1, 2)])
    assert [mark_of(kv, block) for block in range(DEVICE)] == [2, 1, 2, 4, 5]


def test_unwritten_slots_are_zero_and_with_poison_nan() -> None:
    assert all(tensor.eq(0).all() for layer in cache().layers for tensor in layer)
    assert all(tensor.isnan().all() for layer in cache(poison=True).layers for tensor in layer)


@pytest.mark.parametrize(
    ("move", "pairs", "said"),
    [
        ("copy", [(0, 1), (5, 2)], "source 5 is no block of the device, which has 5"),
        ("copy", [(0, -1)], "destination -1 is no block of the device, which has 5"),
        ("swap_out", [(0, 3)], "destination 3 is no block of the host, which has 3"),
        ("swap_in", [(3, 0)], "source 3 is no block of the host, which has 3"),
        ("copy", [(0, 1), (2, 1)], "a block stands twice among the destinations"),
    ],
)
def test_a_move_that_cannot_be_is_refused_and_nothing_is_moved(
    move: str, pairs: list[tuple[int, int]], said: str
) -> None:
    kv = cache()
    for block in range(DEVICE):
        write(kv, block, block + 1)
    with pytest.raises(ValueError, match=said):
        getattr(kv, move)(pairs)
    assert [mark_of(kv, block) for block in range(DEVICE)] == [1, 2, 3, 4, 5]


def test_a_device_without_the_memory_is_an_error_that_names_the_bytes() -> None:
    with pytest.raises(ValueError, match=r"cpu has no \d+ bytes for 1000000000000000 blocks of 2 tokens: ask for less"):
        KVCache(CONFIG, 10**15, 2)
    with pytest.raises(ValueError, match="num_host_blocks must be at least 0, got -1"):
        KVCache(CONFIG, 1, 2, num_host_blocks=-1)
