"""The cut of a batch into shares: every token once, equal shares, and nothing that the host must wait for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from reference_impl.attention.work_list import GRAIN_TOKENS, Tuning, WorkList, rows_of, tuning_for

pytestmark = pytest.mark.usefixtures("one_thread")

TUNING = Tuning(tile_tokens=32, num_warps=4, num_stages=2, resident=1)


def cut(
    lengths: list[int],
    device: torch.device,
    *,
    window: int | None = None,
    programs: int,
    tuning: Tuning = TUNING,
    first: int = 0,
):  # type: ignore[no-untyped-def]
    work = WorkList(len(lengths), 2, 1, 32, torch.float32, device, window=window, programs=programs, tuning=tuning)
    work.refresh(torch.tensor(lengths, dtype=torch.int32, device=device), first_token=first).check_invariants()
    return work


def grains(length: int, window: int | None, first: int) -> int:
    """By counting."""
    low = first if window is None else max(first, length - window)
    return max(1, len({token // GRAIN_TOKENS for token in range(low, length)}))


@given(
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=300),
    window=st.none() | st.integers(1, 100),
    programs=st.integers(1, 80),
    first=st.just(0) | st.integers(0, 300),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shares_cover_every_grain_once_and_differ_by_one_at_most(
    device: torch.device, lengths: list[int], window: int | None, programs: int, first: int
) -> None:
    work = cut(lengths, device, window=window, programs=programs, first=first)
    counts = [grains(length, window, first) for length in lengths]
    assert [b - a for a, b in zip(work.ends.tolist()[:-1], work.ends.tolist()[1:], strict=True)] == counts
    sizes = [stop - start for start, stop, *_ in work.cuts.tolist() if stop > start]
    assert sum(sizes) == sum(counts)
    assert max(sizes) - min(sizes) <= 1
    # As many shares as there are programs, unless that would leave them less than a tile or lengths are all one.
    most = min(programs, -(-sum(counts) // 2))
    assert most * 15 <= len(sizes) * 16 if len(set(counts)) == 1 else len(sizes) == most


def test_with_little_to_read_shares_are_few(device: torch.device) -> None:
    sizes = [stop - start for start, stop, *_ in cut([70], device, programs=50).cuts.tolist()]
    assert [size for size in sizes if size] == [1, 2, 2]


@pytest.mark.parametrize(("batch", "programs", "shares"), [(64, 33, 32), (64, 66, 64), (8, 33, 32), (256, 33, 32)])
def test_sequences_of_one_length_are_left_whole_or_cut_alike(
    device: torch.device, batch: int, programs: int, shares: int
) -> None:
    work = cut([640] * batch, device, programs=programs)
    cuts = [row for row in work.cuts.tolist() if row[0] < row[1]]
    assert len(cuts) == shares
    whole = shares <= batch
    assert all(grain == begin for grain, _, begin, *_ in cuts) == whole
    # One length that is not, and every program is needed.
    uneven = cut([640] * (batch - 1) + [600], device, programs=programs)
    assert len([row for row in uneven.cuts.tolist() if row[0] < row[1]]) == programs


def test_sequences_of_one_length_are_cut_where_whole_ones_would_leave_programs_idle(device: torch.device) -> None:
    work = cut([640] * 20, device, programs=33)
    assert len([row for row in work.cuts.tolist() if row[0] < row[1]]) == 33


def test_one_long_sequence_among_many_short_ones_is_read_by_many(device: torch.device) -> None:
    work = cut([16_000] + [16] * 20, device, programs=10)
    assert [sequence for *_, sequence in (row[:5] for row in work.cuts.tolist())] == [0] * 10


def test_the_batch_may_be_larger_than_what_a_program_compares_at_once(device: torch.device) -> None:
    work = cut([17] * 1000, device, programs=100)
    assert work.ends[-1] == 2000
    assert [row[4] for row in work.cuts.tolist()] == [10 * share for share in range(100)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 3, "kv_heads": 2}, "3 heads over 2"),
        ({"head_dim": 257}, "head_dim 257"),
        ({"kv_heads": 0}, "kv_heads must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"programs": 0}, "programs must be at least 1, got 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_their_value(change: dict[str, int], said: str) -> None:
    sizes = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 32} | change
    with pytest.raises(ValueError, match=said):
        WorkList(**sizes, dtype=torch.float32, device=torch.device("cpu"))  # type: ignore[arg-type]


def test_lengths_of_another_batch_or_type_are_refused(device: torch.device) -> None:
    work = cut([5, 6], device, programs=2)
    for wrong in (torch.zeros(3, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="need one int32 for each of 2 sequences"):
            work.refresh(wrong.to(device))


def test_invariants_notice_a_cut_that_leaves_tokens_out(device: torch.device) -> None:
    work = cut([100, 100], device, programs=4)
    work.cuts[1, 0] += 1
    with pytest.raises(AssertionError, match="share 1 begins at grain"):
        work.check_invariants()


def test_invariants_notice_a_span_that_leaves_out_a_share(device: torch.device) -> None:
    work = cut([100, 20, 100], device, programs=4)
    work.check_invariants()
    work.spans[2, 0] += 1
    with pytest.raises(AssertionError, match=r"sequence 2 is in shares \[2, 3\], its span says \[3, 3\]"):
        work.check_invariants()


@pytest.mark.parametrize("head_dim", [1, 32, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tuning_keeps_a_tile_within_shared_memory_and_registers(head_dim: int, dtype: torch.dtype) -> None:
    tuning = tuning_for(head_dim, dtype)
    assert tuning.tile_tokens % GRAIN_TOKENS == 0
    dims = max(16, 1 << (head_dim - 1).bit_length())
    assert 2 * tuning.tile_tokens * dims * dtype.itemsize <= 32 * 1024
    assert rows_of(128, head_dim) * dims <= 8192
