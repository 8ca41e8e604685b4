"""The engine on a GPU, with our kernels, graphs and overlapping steps: the tokens of torch's reference on a CPU.

float32 on both sides, the same random weights. The tiny models' logits hardly ever tie, so tokens are compared as they
are. bfloat16 is held against float32 in logits.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.engine import build, decode_graphs
from reference_impl.engine.build import build_engine
from reference_impl.engine.decode_graphs import graph_sizes
from reference_impl.engine.generate import Ask, Told, generate
from reference_impl.engine.graphs import StepGraphs
from reference_impl.engine.options import EngineSettings
from reference_impl.engine.outputs import FinishReason
from reference_impl.engine.pipelined import PipelinedEngine
from reference_impl.engine.runner import Runner
from reference_impl.model.byte_tokenizer import ByteTokenizer
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampler import Choice, Wish
from reference_impl.model.sampling import Sampled, SamplingParams
from reference_impl.model.tiny import RandomCheckpoint, tiny_config
from reference_impl.model.weights import load_weights
from tests.reference_impl.engine.driving import blocks_in_use
from tests.reference_impl.engine.faults import Faults, heard_through, once
from tests.reference_impl.engine.same_tokens import WAYS

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch finds none here")

MODELS = {
    "llama": tiny_config(),
    "qwen3": tiny_config(architecture="qwen3", qk_norm=True, num_heads=8, num_kv_heads=2, head_dim=32),
    "qwen2": tiny_config(architecture="qwen2", attention_bias=True, tied_embeddings=True, num_kv_heads=4),
    "mistral": tiny_config(architecture="mistral", sliding_window=24, num_kv_heads=1),
}
PARTS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "no graphs": {"cuda_graphs": "off"},
    "one step after the other": {"overlap": "off"},
    "neither": {"cuda_graphs": "off", "overlap": "off"},
    "torch's attention": {"attention": "torch"},
}


def model(name: str, device: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    config = MODELS[name]
    weights = load_weights(RandomCheckpoint(config), dtype=dtype, device=torch.device(device))
    return LoadedModel(name, config, weights, ByteTokenizer(), frozenset({257}))


def asks(temperature: float, n: int = 1) -> list[Ask]:
    """Prompts of 2 to 150 tokens; every third begins like the first."""
    params = SamplingParams(max_tokens=20, temperature=temperature, seed=5, n=n, ignore_eos=True)
    return [
        Ask([(place * 7 + (number if number % 3 else 0)) % 256 for place in range(2 + 4 * number)], params)
        for number in range(38)
    ]


def answers(loaded: LoadedModel, wanted: list[Ask], **parts: Any) -> list[list[Told]]:
    """On a device: tokens and text of every answer, and not a block in use afterwards."""
    device = loaded.transformer.device.type
    memory = 3_000 * loaded.config.kv_bytes_per_token(4)
    settings = EngineSettings(loaded.name, device=device, kv_memory_bytes=memory, max_running=24, debug=True)
    engine = build_engine(replace(settings, **parts), loaded=loaded).engine
    replies, _ = generate(engine, wanted)
    assert not [reply.refused for reply in replies if reply.refused]
    assert blocks_in_use(engine) == 0
    return [reply.answers for reply in replies]


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_the_reference_on_a_cpu(name: str, parts: dict[str, Any]) -> None:
    wanted = asks(0.0)
    assert answers(model(name, "cuda"), wanted, **parts) == answers(model(name, "cpu"), wanted)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in WAYS if "somebody" not in name])
def test_chunks_preemption_swaps_hits_forks_and_every_allocator_change_no_token(name: str) -> None:
    way = WAYS[name]
    wanted = asks(0.0, way.n) * (1 + way.twice)
    settings = {"max_context_tokens": 180, **way.settings}
    if way.times_longest:
        settings["kv_memory_bytes"] = int(way.times_longest * 12) * 16 * MODELS["qwen3"].kv_bytes_per_token(4)
    expected = answers(model("qwen3", "cpu"), asks(0.0))
    found = answers(model("qwen3", "cuda"), wanted, **settings)[-len(expected) :]
    assert [[told.token_ids for told in reply] for reply in found] == [
        [reply[0].token_ids] * way.n for reply in expected
    ]


@on_gpu
@pytest.mark.gpu
def test_sampled_tokens_come_again_with_their_seed_whatever_runs_beside_them() -> None:
    """A batch of another size adds up in another order: the boundary between two tokens moves by a millionth of all.

    Of the 1,520 draws one in a thousand has a number that close to one of 257 boundaries.
    """
    wanted = asks(1.0, n=2)
    loaded = model("qwen3", "cuda")
    whole = answers(loaded, wanted)
    assert whole == answers(loaded, wanted), "the same batches give the same bits"
    alone = answers(loaded, wanted, cuda_graphs="off", overlap="off", max_running=3)
    for others in (alone, answers(model("qwen3", "cpu"), wanted)):
        pairs = zip(chain.from_iterable(whole), chain.from_iterable(others), strict=True)
        assert sum(ours != theirs for ours, theirs in pairs) <= 5


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("overlap", ["off", "on"])
def test_no_step_is_launched_kernel_by_kernel_while_its_prompts_fit_a_graph(
    overlap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks, hits and prompts that come while others decode; then steps that are larger than every graph."""
    wanted = asks(0.0)
    expected = answers(model("qwen3", "cpu"), wanted)
    launched: list[int] = []
    launch = Runner._launch

    def counted(runner: Runner, batch: Any, chosen: Tensor | None) -> Tensor:
        launched.append(len(batch.token_ids))
        return launch(runner, batch, chosen)

    monkeypatch.setattr(Runner, "_launch", counted)
    parts = {"prefix_cache": "hash", "overlap": overlap}
    assert answers(model("qwen3", "cuda"), wanted, max_tokens_per_step=100, **parts) == expected
    assert not launched
    launched.clear()
    long = [Ask([*each] * 5, wanted[0].params) for each in (range(256), range(255, -1, -1))]
    told = answers(model("qwen3", "cuda"), long, max_tokens_per_step=2_600, **parts)
    assert launched == [2 * 5 * 256]
    assert told == answers(model("qwen3", "cpu"), long)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of kernels that are compiled from now on, whatever this process has compiled before."""
    import triton

    from reference_impl.attention import cascade_decode, paged_decode, paged_prefill, work_list
    from reference_impl.model import draw, fused, fused_heads

    modules = (cascade_decode, paged_decode, paged_prefill, work_list, draw, fused, fused_heads)
    found: list[str] = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **about: found.append(about["fn"].name))
    made = [kernel for module in modules for kernel in vars(module).values()]
    for kernel in (kernel for kernel in made if isinstance(kernel, triton.JITFunction)):
        monkeypatch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))
    return found


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_a_step_that_no_graph_holds_waits_for_no_compiler(
    name: str, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once took 5.6 s in the middle of everybody's answers, and the first draw 1.2 s of the first request's."""
    loaded = model(name, "cuda")
    memory = 3_000 * loaded.config.kv_bytes_per_token(4)
    settings = EngineSettings(name, device="cuda", kv_memory_bytes=memory, max_running=23)
    engine = build_engine(settings, loaded=loaded).engine
    for kernel in ("_paged_decode", "_paged_prefill", "_cut", "_turn_heads", "_weigh", "_choose"):
        assert any(kernel in other for other in compiled), f"{kernel} is compiled when an engine is built"
    compiled.clear()
    monkeypatch.setattr(StepGraphs, "of", lambda graphs, batch: None)
    # Many numbers of decodes beside prompts of many lengths, so that what is sent lies in many places.
    generate(engine, asks(1.0))
    assert not compiled


class Dictated:
    """Chooses the same tokens whatever the logits, and keeps these: (prompt's length, place) -> logits."""

    def __init__(self) -> None:
        self.logits: dict[tuple[int, int], Tensor] = {}

    def begin(self, logits: Tensor, wishes: Sequence[Wish]) -> Choice:
        places = [(len(wish.prompt), len(wish.made) + wish.awaited) for wish in wishes]
        self.logits |= zip(places, logits.float().cpu(), strict=True)
        chosen = [Sampled((31 * prompt + 7 * place) % 256) for prompt, place in places]
        return Choice(torch.tensor([one.token for one in chosen], device=logits.device), lambda: chosen)


def dictated_logits(loaded: LoadedModel, wanted: list[Ask], **parts: Any) -> dict[tuple[int, int], Tensor]:
    device, dtype = loaded.transformer.device.type, str(loaded.transformer.dtype).removeprefix("torch.")
    memory = 3_000 * loaded.config.kv_bytes_per_token(4)
    settings = EngineSettings(loaded.name, device=device, dtype=dtype, kv_memory_bytes=memory, max_running=24)
    engine = build_engine(replace(settings, **parts), loaded=loaded).engine
    dictated = Dictated()
    engine._sampler = dictated  # type: ignore[assignment]
    generate(engine, wanted)
    return dictated.logits


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_keeps_the_logits_of_float32_within_its_precision(name: str) -> None:
    """Eight bits of every operand are kept, so each product is off by 0.2 % and two layers by some per cent at most."""
    wanted = asks(0.0)
    exact = dictated_logits(model(name, "cpu"), wanted)
    parts = {"max_tokens_per_step": 64, "prefix_cache": "hash"}
    found = dictated_logits(model(name, "cuda", torch.bfloat16), wanted, **parts)
    assert found.keys() == exact.keys()
    errors = [float((found[place] - exact[place]).norm() / exact[place].norm()) for place in exact]
    assert max(errors) < 0.06
    assert sum(errors) / len(errors) < 0.025


@on_gpu
@pytest.mark.gpu
def test_a_gpu_gets_kernels_graphs_and_overlap_unless_told_otherwise() -> None:
    loaded = model("llama", "cuda")
    settings = EngineSettings("llama", device="cuda", kv_memory_bytes=2**20, max_running=5)
    built = build_engine(settings, loaded=loaded)
    assert type(built.engine) is PipelinedEngine
    assert built.engine.runner.graphs is not None
    assert built.engine.runner.graphs.decodes.sizes == [1, 2, 4, 5]
    off = build_engine(replace(settings, cuda_graphs="off"), loaded=loaded)
    assert off.engine.runner.graphs is None


@on_gpu
@pytest.mark.gpu
def test_what_graphs_keep_is_measured_and_left_free() -> None:
    """What other processes let go of meanwhile, as tests that run beside this one do, is in the measure too."""
    loaded = model("llama", "cuda")
    settings = EngineSettings("llama", device="cuda", max_running=40)
    profiles = (build_engine(settings, loaded=loaded).profile for _ in range(8))
    profile = next(profile for profile in profiles if profile.graph_bytes)
    assert "CUDA graphs" in profile.lines()[1]


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 3])
def test_a_prefix_that_is_read_once_changes_no_token(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that begin alike, behind a prefix cache, and answers that fork; prompts come and go meanwhile."""
    from reference_impl.attention import triton_attention

    system = [place * 11 % 256 for place in range(70)]
    wanted = [Ask(system + ask.prompt[: 1 + 3 * number], ask.params) for number, ask in enumerate(asks(0.0, n)[:12])]
    calls: list[int] = []
    cascade_decode = triton_attention.cascade_decode

    def counted(*args: Any, **options: Any) -> None:
        calls.append(args[4])
        cascade_decode(*args, **options)

    monkeypatch.setattr(triton_attention, "cascade_decode", counted)
    monkeypatch.setattr(build, "PAYS_BYTES", 1)
    monkeypatch.setattr(decode_graphs, "PREFIX_STEPS", 2)
    # The first prompt fills its step, so that all others find its blocks.
    parts = {"cascade": "auto", "prefix_cache": "hash", "max_tokens_per_step": 71}
    expected = answers(model("qwen3", "cpu"), wanted, prefix_cache="hash")
    assert answers(model("qwen3", "cuda"), wanted, **parts) == expected
    assert max(calls) >= 64, "four blocks of 16 tokens begin every prompt"
    before = len(calls)
    assert answers(model("qwen3", "cuda"), wanted, **{**parts, "cascade": "off"}) == expected
    assert len(calls) == before


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("most", [2, 6, 24])
def test_a_graph_for_a_prefix_waits_for_no_compiler(
    most: int, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is captured in a step of somebody's, and its kernels are others for other numbers of sequences."""
    monkeypatch.setattr(build, "PAYS_BYTES", 1)
    loaded = model("qwen3", "cuda")
    memory = 3_000 * loaded.config.kv_bytes_per_token(4)
    parts = {"cascade": "auto", "prefix_cache": "hash", "kv_memory_bytes": memory}
    engine = build_engine(EngineSettings("qwen3", device="cuda", max_running=24, **parts), loaded=loaded).engine
    assert any("_prefix_pieces" in other for other in compiled)
    compiled.clear()
    system, one = [place * 11 % 256 for place in range(70)], asks(1.0)[0]
    generate(engine, [Ask([*system, 1], one.params)])
    generate(engine, [Ask([*system, number], one.params) for number in range(most)])
    assert engine.runner.graphs is not None
    assert {prefix for _, prefix in engine.runner.graphs.decodes._prefixed} == {64}
    assert not compiled


@on_gpu
@pytest.mark.gpu
def test_a_second_gpu_is_where_the_kernels_of_its_engine_go() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second GPU")
    wanted = asks(0.0)
    assert answers(model("qwen3", "cuda:1"), wanted) == answers(model("qwen3", "cpu"), wanted)
    assert torch.cuda.current_device() == 0


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("overlap", ["off", "on"])
def test_a_step_without_memory_ends_its_own_requests_and_the_next_ones_are_answered(overlap: str) -> None:
    loaded = model("qwen3", "cuda")
    settings = EngineSettings("qwen3", device="cuda", kv_memory_bytes=2**22, max_running=8, overlap=overlap, debug=True)
    engine = build_engine(settings, loaded=loaded).engine
    Faults(engine, once("before", 6), lambda: torch.empty(2**44, device="cuda"))
    requests = [engine.add(ask.prompt, ask.params) for ask in asks(0.0)]
    told, errors = heard_through(engine)
    assert [type(error) for error in errors] == [torch.OutOfMemoryError]
    expected = answers(model("qwen3", "cpu"), asks(0.0))
    failed = [told[request, 0].finish is FinishReason.ERROR for request in requests]
    assert failed == [True] * 8 + [False] * 30
    for request, (whole,) in zip(requests, expected, strict=True):
        tokens = told[request, 0].token_ids
        assert tokens == whole.token_ids[: len(tokens)]
    assert engine.broken is None
    assert blocks_in_use(engine) == 0


LOST = """
import torch
from tests.reference_impl.engine.faults import Faults, heard_through, once
from tests.reference_impl.engine.test_gpu_engine import EngineSettings, asks, build_engine, model
settings = EngineSettings("llama", device="cuda", kv_memory_bytes=2**22)
engine = build_engine(settings, loaded=model("llama", "cuda")).engine
beyond = torch.tensor([9], device="cuda")
Faults(engine, once("before", 3), lambda: torch.zeros(4, device="cuda")[beyond])
requests = [engine.add(ask.prompt, ask.params) for ask in asks(0.0)[:5]]
told, errors = heard_through(engine)
ends = {told[request, 0].finish.name for request in requests}
print(len(errors), engine.broken is not None, ends, engine.has_work, flush=True)
"""


@on_gpu
@pytest.mark.gpu
def test_a_gpu_that_is_lost_breaks_the_engine_and_everybody_has_an_end() -> None:
    """In a process of its own, which cannot use the GPU any more afterwards."""
    run = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout == "1 True {'ERROR'} False\n", run.stderr[-2_000:]


@on_gpu
@pytest.mark.gpu
def test_graphs_of_all_sizes_keep_logits_once() -> None:
    """Of 258 words 40 rows take 41 kB in float32; one piece for each of the 8 sizes would take three times as much."""
    loaded = model("llama", "cuda")
    runner = build_engine(EngineSettings("llama", device="cuda", kv_memory_bytes=2**20, max_running=40), loaded=loaded)
    graphs = runner.engine.runner.graphs
    assert graphs is not None
    kept = {
        tensor.data_ptr(): tuple(tensor.shape)
        for part in (graphs.decodes, graphs.prompts)
        for tensor in vars(part).values()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }
    assert list(kept.values()) == [(40, 258)]


def test_every_batch_has_a_graph_that_is_at_most_seven_rows_too_large() -> None:
    for most in (1, 3, 8, 9, 24, 256):
        sizes = graph_sizes(most)
        assert sizes[-1] == most
        for rows in range(1, most + 1):
            assert 0 <= next(size for size in sizes if size >= rows) - rows <= 7


def test_without_a_gpu_graphs_are_refused_with_the_device() -> None:
    loaded = model("llama", "cpu")
    with pytest.raises(ValueError, match="a CUDA graph needs an NVIDIA GPU, this model is on cpu"):
        StepGraphs(loaded.transformer, TorchAttention(), [], max_rows=4, max_tokens=64, max_context_tokens=64)
    for settings, said in (
        ({"cuda_graphs": "on"}, "cuda_graphs on needs attention triton on an NVIDIA GPU"),
        ({"attention": "triton"}, "attention triton runs on an NVIDIA GPU, this model is on cpu: take torch"),
        ({"cuda_graphs": "maybe"}, "cuda_graphs must be auto, on, off, got 'maybe'"),
        ({"cascade": "on"}, "cascade must be auto, off, got 'on'"),
    ):
        with pytest.raises(ValueError, match=said):
            build_engine(EngineSettings("llama", **settings), loaded=loaded)  # type: ignore[arg-type]
