"""Other projects' kernels: each is asked what the batch is, and what goes wrong with one is its own result.

Stand-ins with the peers' signatures answer by definition, from the arguments alone: what an adapter says wrongly is a
wrong answer here. The real ones are held against the oracle before each timing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_impl.attention import reference
from reference_impl.bench import kernel_cases, peers
from reference_impl.bench.cases import NotHere
from reference_impl.bench.kernel_cases import Batch, DecodeCase, draw

pytestmark = pytest.mark.usefixtures("one_thread")

UNEQUAL = (5, 70, 33, 1, 16)
CASES = [
    DecodeCase("grouped", UNEQUAL, 8, 2, 64, 16, torch.float32),
    DecodeCase("one query a KV head", UNEQUAL, 2, 2, 64, 16, torch.float32),
    DecodeCase("window", UNEQUAL, 4, 2, 64, 8, torch.float32, window=20),
]
UNIFIED = "vllm.v1.attention.ops.triton_unified_attention"


def drawn(case: DecodeCase, monkeypatch: pytest.MonkeyPatch) -> Batch:
    monkeypatch.setattr(kernel_cases, "REPLICA_BYTES", 1)
    return draw(case, torch.Generator().manual_seed(3))


class Planned:
    """What both of FlashInfer's wrappers have in common: a plan of blocks in a row, and where each sequence begins."""

    made: dict[str, Any]

    def answers(self, query: Tensor, caches: tuple[Tensor, Tensor], out: Tensor, lengths: list[int]) -> None:
        starts, indices = self.made["starts"].tolist(), self.made["indices"].tolist()
        for place, tokens in enumerate(lengths):
            blocks = indices[starts[place] : starts[place + 1]]
            size = self.made["block_size"]
            assert len(blocks) == -(-tokens // size)
            left = self.made.get("window_left", -1)
            kept = min(tokens, left + 1) if left >= 0 else tokens
            rows = [cache[blocks].flatten(0, 1)[tokens - kept : tokens] for cache in caches]
            out[place] = reference.attention(query[place][None], rows[0], rows[1], self.made["scale"]).out[0]


class Wrapper(Planned):
    tensor_cores: bool

    def __init__(self, workspace: Tensor, layout: str, use_tensor_cores: bool) -> None:
        assert workspace.dtype == torch.uint8
        assert not workspace.any()
        assert layout == "NHD"
        Wrapper.tensor_cores = use_tensor_cores

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        window_left: int,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        sm_scale: float,
    ) -> None:
        assert {tensor.dtype for tensor in (indptr, indices, last_page_len)} == {torch.int32}
        self.last = last_page_len
        self.made = {"starts": indptr, "indices": indices, "block_size": page_size, "scale": sm_scale}
        self.made["window_left"] = window_left

    def run(self, query: Tensor, caches: tuple[Tensor, Tensor], *, out: Tensor) -> None:
        blocks = self.made["starts"].diff()
        lengths = (blocks - 1) * self.made["block_size"] + self.last
        self.answers(query, caches, out, lengths.tolist())


class Persistent(Planned):
    def __init__(self, kv_layout: str, device: str) -> None:
        assert kv_layout == "NHD"

    def plan(
        self,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        kv_len_arr: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int,
        page_size: int,
        *,
        sm_scale: float,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        assert qo_indptr.tolist() == list(range(len(kv_len_arr) + 1))
        self.lengths = kv_len_arr.tolist()
        self.made = {"starts": kv_indptr, "indices": kv_indices, "block_size": page_size, "scale": sm_scale}

    def run(self, query: Tensor, caches: tuple[Tensor, Tensor], *, out: Tensor, lse: Tensor) -> None:
        assert lse.shape == query.shape[:2]
        self.answers(query, caches, out, self.lengths)


def unified_attention(*, q: Tensor, k: Tensor, v: Tensor, out: Tensor, **options: Any) -> None:
    """vLLM's, in words: whole blocks of a table, up to a length, behind a window's left edge."""
    assert bool((options["block_table"] >= 0).all()), "it looks up what stands behind a sequence's last block"
    assert options["softmax_segm_max"].shape[0] >= options["seq_threshold_3D"]
    left = options["window_size"][0]
    for place, tokens in enumerate(options["seqused_k"].tolist()):
        kept = min(tokens, left + 1) if left >= 0 else tokens
        rows = [cache[options["block_table"][place].long()].flatten(0, 1)[tokens - kept : tokens] for cache in (k, v)]
        out[place] = reference.attention(q[place][None], rows[0], rows[1], options["softmax_scale"]).out[0]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    flashinfer, vllm, unified = ModuleType("flashinfer"), ModuleType("vllm"), ModuleType(UNIFIED)
    flashinfer.__dict__.update(
        BatchDecodeWithPagedKVCacheWrapper=Wrapper, BatchAttention=Persistent, __version__="0.6.13"
    )
    unified.__dict__["unified_attention"] = unified_attention
    monkeypatch.setitem(sys.modules, "flashinfer", flashinfer)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, UNIFIED, unified)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", [peers.FLASHINFER, peers.PERSISTENT, peers.VLLM])
def test_a_peer_is_told_the_batch_as_it_is(case: DecodeCase, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = drawn(case, monkeypatch)
    if name == peers.PERSISTENT and case.window is not None:
        with pytest.raises(NotHere, match="it knows no window"):
            peers.contenders(batch)[name]()
        return
    calls = peers.contenders(batch)[name]()
    assert len(calls) == len(batch.replicas) >= 2
    for call, data in zip(calls, batch.replicas, strict=True):
        caches = (data.key_cache, data.value_cache, batch.block_tables, batch.context_lens)
        want = reference.paged_decode(data.query, *caches, batch.scale, window=case.window)
        assert call() is data.out
        torch.testing.assert_close(data.out.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("installed")
def test_tensor_cores_are_asked_for_where_queries_share_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    for case, wanted in zip(CASES, (True, False, False), strict=True):
        peers.contenders(drawn(case, monkeypatch))[peers.FLASHINFER]()
        assert Wrapper.tensor_cores is wanted


@pytest.mark.usefixtures("installed")
def test_a_head_size_that_a_peer_has_no_kernel_for_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = drawn(DecodeCase("odd", (5,), 2, 2, 96, 16, torch.float32), monkeypatch)
    for name in (peers.FLASHINFER, peers.PERSISTENT):
        with pytest.raises(NotHere, match="not 96"):
            peers.contenders(batch)[name]()


def test_a_cache_of_another_type_than_the_queries_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = drawn(CASES[0], monkeypatch)
    object.__setattr__(batch.replicas[0], "query", batch.replicas[0].query.to(torch.bfloat16))
    for prepare in peers.contenders(batch).values():
        with pytest.raises(NotHere, match=r"the cache is torch\.float32"):
            prepare()


def test_a_peer_that_is_not_installed_is_a_reason_and_so_is_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flashinfer", "vllm", UNIFIED):
        monkeypatch.setitem(sys.modules, name, None)
    for prepare in peers.contenders(drawn(CASES[0], monkeypatch)).values():
        with pytest.raises(NotHere, match="not installed"):
            prepare()
    assert all(said.startswith("not installed") for said in peers.versions().values())


@pytest.mark.usefixtures("installed")
def test_versions_are_those_that_the_projects_give() -> None:
    assert peers.versions() == {"flashinfer": "0.6.13", "vllm": "unknown"}


def test_the_best_peer_is_the_fastest_that_was_timed_and_a_tie_is_met() -> None:
    results = {"ours": {"median_us": 10.0}, "a": {"median_us": 12.0}, "b": {"median_us": 10.0}, "c": {"skipped": "x"}}
    assert peers.best(results, "ours", ("a", "c")) == {"name": "a", "times": 1.2, "met": True}
    assert peers.best(results, "ours", ("a", "b", "c")) == {"name": "b", "times": 1.0, "met": True}
    assert peers.best(results | {"b": {"median_us": 9.9}}, "ours", ("a", "b")) == {
        "name": "b",
        "times": 0.99,
        "met": False,
    }
    assert peers.best(results, "ours", ("c", "not asked")) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotHere("it knows no window"), "it knows no window"),
        (
            RuntimeError("\nBuffer overflow in /opt/x/scheduler.cuh:12\nmore"),
            "RuntimeError: Buffer overflow in (path):12",
        ),
        (ValueError("a" * 900), "ValueError: " + "a" * 148),
        (RuntimeError(), "RuntimeError: "),
    ],
)
def test_of_an_error_its_first_line_is_kept_without_any_folder(error: Exception, said: str) -> None:
    assert peers.told(error) == said
