"""The host's blocks, and the arithmetic of the two ways to recover."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.contracts import OutOfBlocks
from reference_impl.memory.swap import HostPool, Recovery, SwapCost


def test_the_host_gives_blocks_and_takes_them_back() -> None:
    host = HostPool(4)
    assert host.put(1, 3) == [0, 1, 2]
    with pytest.raises(OutOfBlocks, match="2 blocks needed, 1 free"):
        host.put(2, 2)
    with pytest.raises(ValueError, match="request 1 is on the host already"):
        host.put(1, 1)
    assert host.blocks(1) == host.drop(1) == [0, 1, 2]
    assert host.num_free == 4
    host.check_invariants()
    with pytest.raises(KeyError):
        host.drop(1)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=40))
def test_no_host_block_is_in_two_places(calls: list[tuple[int, int]]) -> None:
    host, held = HostPool(9), dict[int, int]()
    for request, num_blocks in calls:
        if request in held:
            assert len(host.drop(request)) == held.pop(request)
        elif num_blocks <= host.num_free:
            assert len(host.put(request, num_blocks)) == num_blocks
            held[request] = num_blocks
        host.check_invariants()
        assert host.num_free == 9 - sum(held.values())


def cost(**more: Any) -> SwapCost:
    """A 13-billion-parameter model, 0.8 MB a token, on a 25 GB/s link; a prompt token takes 0.1 ms."""
    values: dict[str, Any] = {"bytes_per_block": 16 * 819_200, "link_bytes_per_s": 25e9, "per_copy_s": 20e-6}
    return SwapCost(**(values | {"recompute_s": lambda tokens: tokens * 1e-4} | more))


def test_a_swap_pays_for_every_copy_and_every_byte_twice() -> None:
    price = SwapCost(
        bytes_per_block=100, link_bytes_per_s=50.0, per_copy_s=0.5, recompute_s=lambda tokens: 1.0 * tokens
    )
    assert price.swap_s(3) == 2 * 3 * (0.5 + 2.0)
    assert price.cheaper(num_tokens=15, num_blocks=3) is Recovery.RECOMPUTE
    assert price.cheaper(num_tokens=16, num_blocks=3) is Recovery.SWAP


def test_small_blocks_make_a_swap_dear_and_leave_recomputing_as_it_was() -> None:
    # Kwon et al., figure 19: the same tokens in blocks of 1 to 256.
    tokens = 2_048
    prices = {size: cost(bytes_per_block=size * 819_200) for size in (1, 16, 256)}
    swaps = [price.swap_s(tokens // size) for size, price in prices.items()]
    assert swaps == sorted(swaps, reverse=True)
    assert swaps[0] - swaps[-1] == pytest.approx(2 * (tokens - tokens // 256) * 20e-6)
    assert prices[1].cheaper(tokens, tokens) is Recovery.RECOMPUTE
    assert prices[256].cheaper(tokens, tokens // 256) is Recovery.SWAP


@pytest.mark.parametrize(
    ("field", "value"),
    [("bytes_per_block", 0), ("link_bytes_per_s", 0.0), ("link_bytes_per_s", float("inf")), ("per_copy_s", -1e-6)],
)
def test_a_price_that_is_none_is_refused_by_its_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        cost(**{field: value})


def test_nothing_costs_nothing_and_less_than_nothing_is_refused() -> None:
    assert cost().cheaper(0, 0) is Recovery.RECOMPUTE
    with pytest.raises(ValueError, match="num_tokens and num_blocks must be at least 0, got -1 and 2"):
        cost().cheaper(-1, 2)
