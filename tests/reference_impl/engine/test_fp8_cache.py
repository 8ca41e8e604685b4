"""An engine whose keys and values have 8 bits: fewer bytes, blocks moved as ever, logits nearly as they were.

Tokens are dictated, so that a logit that is a little off does not become another text.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_impl.attention.fp8 import FP8, KVScales, as_bytes
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.cli import main
from reference_impl.engine.build import build_engine
from reference_impl.engine.generate import Ask, generate
from reference_impl.engine.kv_cache import KVCache
from reference_impl.engine.kv_scales import ROOM, find_scales, scale_for
from reference_impl.engine.memory_profile import profile_memory
from reference_impl.engine.options import EngineSettings
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampling import SamplingParams
from tests.reference_impl.engine.same_tokens import LAB4, WAYS
from tests.reference_impl.engine.test_gpu_engine import MODELS, Dictated, dictated_logits, model, on_gpu

pytestmark = pytest.mark.usefixtures("one_thread")

NEW_TOKENS = 12
SOME_WAYS = (
    "prompts in chunks of 48",
    "preempted and computed again",
    "preempted and swapped",
    "prefixes found by hash",
    "three answers that share blocks",
    "three answers, swapped",
    "blocks of 7",
    "contiguous",
)
Logits = dict[tuple[int, int], Tensor]


def asks(n: int = 1) -> list[Ask]:
    """Prompts of 3 to 111 tokens; every third begins like the first. The answers of one request are alike."""
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, n=n, ignore_eos=True)
    return [
        Ask([(place * 7 + (number if number % 3 else 0)) % 256 for place in range(3 + 12 * number)], params)
        for number in range(10)
    ]


def errors(found: Logits, exact: Logits) -> list[float]:
    """Of each row of logits, relative."""
    assert found.keys() == exact.keys()
    return [float((found[place] - exact[place]).norm() / exact[place].norm()) for place in exact]


@pytest.fixture(scope="module")
def loaded(one_thread: None) -> LoadedModel:
    return model("qwen3", "cpu")


@pytest.fixture(scope="module")
def narrow(loaded: LoadedModel) -> Logits:
    return dictated_logits(loaded, asks(), kv_cache_dtype="fp8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_takes_one_byte_for_each_number_so_that_more_tokens_fit_in_the_same_memory(dtype: torch.dtype) -> None:
    """As the profile says, which everything else in the engine is told."""
    made = model("llama", "cpu", dtype)
    wide, narrow = (
        build_engine(
            EngineSettings("llama", dtype=str(dtype)[6:], kv_memory_bytes=2**18, kv_cache_dtype=kind), loaded=made
        )
        for kind in ("auto", "fp8")
    )
    assert narrow.profile.bytes_per_token == made.config.kv_bytes_per_token(1)
    assert wide.profile.bytes_per_token == dtype.itemsize * narrow.profile.bytes_per_token
    assert narrow.profile.kv_tokens == dtype.itemsize * wide.profile.kv_tokens
    assert narrow.engine.runner.cache.num_bytes == narrow.profile.kv_bytes <= 2**18
    assert {key.dtype for key, *_ in narrow.engine.runner.cache.layers} == {FP8}


def test_logits_are_off_by_some_per_cent_and_not_more(loaded: LoadedModel, narrow: Logits) -> None:
    """Three bits behind the leading one: a number is off by 1/17 at most, by 2.3 % in the mean.

    Sums over tokens are less: 3 % in the mean of all logits here, and 12 % where the softmax is sharp.
    """
    off = errors(narrow, dictated_logits(loaded, asks()))
    assert max(off) < 0.15
    assert 0.005 < sum(off) / len(off) < 0.045, "if it is 0, nothing was kept in 8 bits"


@pytest.mark.parametrize("name", SOME_WAYS)
def test_however_blocks_are_moved_shared_or_found_again_the_logits_stay(
    loaded: LoadedModel, narrow: Logits, name: str
) -> None:
    """Within what one number that is rounded the other way can do."""
    way = WAYS[name]
    settings: dict[str, Any] = {"max_context_tokens": 126, "max_running": 24, **way.settings}
    times = 30.0 if not way.times_longest else way.times_longest
    settings["kv_memory_bytes"] = math.ceil(times * 8) * 16 * loaded.config.kv_bytes_per_token(1)
    engine = build_engine(EngineSettings("qwen3", kv_cache_dtype="fp8", debug=True, **settings), loaded=loaded).engine
    engine._sampler = dictated = Dictated()  # type: ignore[assignment]
    for _ in range(1 + way.twice):
        replies, _ = generate(engine, asks(way.n))
        assert not [reply.refused for reply in replies if reply.refused]
    counters = engine.scheduler.counters
    assert counters.preemptions > 0 or not ("preempted" in name or "swapped" in name)
    assert counters.swaps_in > 0 or way.settings.get("recovery") != "swap"
    assert counters.reused_tokens > 0 or not way.twice
    assert counters.forks > 0 or way.n == 1
    assert max(errors(dictated.logits, narrow)) < 0.03


def test_lab_4_is_refused_in_one_line_and_so_is_a_type_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", "--model", "tiny", "--prompt", "a", "--kv-cache-dtype", "fp8"]
    assert main([*given, "--attention", LAB4]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("engine generate: kv_cache_dtype fp8 needs attention of ours: lab 4 (")
    assert "\n" not in said
    with pytest.raises(ValueError, match="kv_cache_dtype must be auto, fp8, got 'int4'"):
        build_engine(EngineSettings("tiny", kv_cache_dtype="int4"))


def test_the_command_line_serves_it(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["generate", "--model", "tiny", "--prompt", "a", "--max-tokens", "3", "--kv-memory", "1MiB"]
    assert main([*given, "--kv-cache-dtype", "fp8"]) == 0
    wide = 2**20 // profile_memory(model("llama", "cpu"), block_size=16, budget_bytes=2**20).bytes_per_token
    shown = capsys.readouterr()
    assert f"{4 * wide // 16 * 16:,} tokens" in shown.out + shown.err


@pytest.mark.parametrize("largest", [1e-3, 1.0, 448 / ROOM, 500.0, 7e4])
def test_a_scale_is_the_smallest_power_of_two_that_leaves_the_room(largest: float) -> None:
    (scale,) = scale_for(torch.tensor([largest])).tolist()
    assert math.log2(scale).is_integer()
    assert ROOM * largest / scale <= 448 < ROOM * largest / (scale / 2)


def test_a_head_that_gives_nothing_has_a_scale_and_a_layer_without_numbers_none(loaded: LoadedModel) -> None:
    assert scale_for(torch.zeros(2)).tolist() == [1.0, 1.0]
    broken = model("llama", "cpu")
    broken.transformer.layers[1].attention_norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="layer 1 gives keys or values that are no numbers"):
        find_scales(broken.transformer)


def test_scales_are_the_same_for_every_engine_and_one_for_each_layer_and_head(loaded: LoadedModel) -> None:
    first, second = find_scales(loaded.transformer), find_scales(loaded.transformer)
    config = loaded.config
    assert len(first) == config.num_layers
    for one, other in zip(first, second, strict=True):
        assert one.k.shape == one.v.shape == (config.num_kv_heads,)
        assert torch.equal(one.k, other.k)
        assert torch.equal(one.v, other.v)


def test_a_cache_takes_one_scale_for_each_layer_and_its_blank_slots_are_nan_with_poison(loaded: LoadedModel) -> None:
    ones = KVScales(*torch.ones(2, loaded.config.num_kv_heads))
    with pytest.raises(ValueError, match="1 scales for 2 layers: need one for each"):
        KVCache(loaded.config, 3, 2, scales=[ones])
    blank = KVCache(loaded.config, 3, 2, num_host_blocks=2, scales=[ones] * 2, poison=True)
    assert all((as_bytes(half) & 0x7F == 0x7F).all() for key, value, *_ in blank.layers for half in (key, value))
    assert blank.num_host_bytes == 2 * blank.block_bytes == 2 * 2 * loaded.config.kv_bytes_per_token(1)


def test_the_largest_step_is_measured_with_a_cache_of_its_type(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    store = TorchAttention.store_kv

    def watched(self: TorchAttention, key: Tensor, value: Tensor, cache: Tensor, *rest: Any, **more: Any) -> None:
        seen.append(cache.dtype)
        store(self, key, value, cache, *rest, **more)

    monkeypatch.setattr(TorchAttention, "store_kv", watched)
    scales = find_scales(loaded.transformer)
    seen.clear()
    profile_memory(loaded, block_size=16, share=0.01, max_tokens_per_step=8, max_running=1, kv_scales=scales)
    assert set(seen) == {FP8}


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("parts", [{}, {"cuda_graphs": "off"}, {"attention": "torch"}], ids=["graphs", "none", "torch"])
@pytest.mark.parametrize("name", MODELS)
def test_a_gpus_kernels_give_the_logits_of_torch_on_a_cpu(name: str, parts: dict[str, str]) -> None:
    """Within what some numbers that are rounded the other way can do."""
    expected = dictated_logits(model(name, "cpu"), asks(), kv_cache_dtype="fp8")
    off = errors(dictated_logits(model(name, "cuda"), asks(), kv_cache_dtype="fp8", **parts), expected)
    assert max(off) < 0.1
    assert sum(off) / len(off) < 0.005


@on_gpu
@pytest.mark.gpu
def test_in_bfloat16_it_is_nearly_as_good_as_in_float32() -> None:
    exact = dictated_logits(model("qwen3", "cpu"), asks())
    off = errors(dictated_logits(model("qwen3", "cuda", torch.bfloat16), asks(), kv_cache_dtype="fp8"), exact)
    assert max(off) < 0.2
    assert sum(off) / len(off) < 0.06
