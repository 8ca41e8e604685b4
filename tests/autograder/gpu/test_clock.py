"""What the grader's clock says of a kernel: the same at every grading, and what the engine's own benchmark says."""

# Everything below needs Triton and a GPU.
# ruff: noqa: E402
from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU, and torch finds none here", allow_module_level=True)

from autograder.gpu import clock
from autograder.gpu.stand import Stand
from autograder.gpu.subject import FromHere, played
from autograder.gpu.timed import TimedCase, Timing
from autograder.judge.remote import TestEnded
from autograder.judge.verdicts import Verdict
from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.work_list import WorkList
from reference_impl.bench import device_clock, textbook_decode
from reference_impl.bench.kernel_cases import DecodeCase, draw

UNEQUAL = TimedCase((9000, *(200 + 37 * n for n in range(40))), 32, 8, 128, 16, "float16")
EQUAL = TimedCase((2048,) * 48, 32, 8, 128, 16, "float16")
TABLES_SEED = 11


def timed(case: TimedCase, plan: Any) -> Timing:
    with Stand() as stand:
        stand.prove(lambda: None)
        return stand.time(plan, case, TABLES_SEED)


def recorded(case: TimedCase, function: Any) -> Any:
    """The plan, as data, of another's function on a case."""
    source = FromHere(SimpleNamespace(paged_attention=function))
    from autograder.gpu.subject import call_of

    return source.record("paged_attention", *call_of(case, TABLES_SEED))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("case", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_a_replayed_reference_takes_the_time_that_the_engines_benchmark_gives_it(case: TimedCase) -> None:
    data, _ = clock.recorded_reference(case, *case.tables(TABLES_SEED))
    found = timed(case, data)
    generator = torch.Generator("cuda")
    generator.seed()
    shape = DecodeCase("", case.lengths, case.heads, case.kv_heads, case.head_dim, case.block_size, case.torch_dtype)
    batch = draw(shape, generator)
    first = batch.replicas[0]
    work = WorkList(len(case.lengths), case.heads, case.kv_heads, case.head_dim, case.torch_dtype, first.query.device)
    work.refresh(batch.context_lens)
    own_us = 1e6 * device_clock.replay_s(
        [
            partial(paged_decode, r.query, r.key_cache, r.value_cache, batch.block_tables, batch.context_lens,
                    batch.scale, r.out, work=work)
            for r in batch.replicas
        ]
    )  # fmt: skip
    print(f"replayed {found.student_us:.1f} us, beside it {found.before_us:.1f} and {found.after_us:.1f}; {own_us:.1f}")
    assert found.wrong == ""
    assert abs(found.student_us / own_us - 1) < 0.03
    assert abs(found.before_us / own_us - 1) < 0.03


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("case", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_five_gradings_of_a_kernel_differ_by_less_than_3_percent(case: TimedCase) -> None:
    data = recorded(case, textbook_decode.textbook_decode)
    times_us = [timed(case, data).student_us for _ in range(5)]
    print("five gradings, us: " + " ".join(f"{us:.1f}" for us in times_us))
    assert max(times_us) / min(times_us) < 1.03


def test_a_kernel_that_is_fast_and_wrong_has_no_time() -> None:
    def copies_the_query(query: Any, keys: Any, values: Any, tables: Any, lens: Any, scale: float, out: Any) -> None:
        out.copy_(query)

    with Stand() as stand:
        stand.prove(lambda: None)
        functions = played(FromHere(SimpleNamespace(paged_attention=copies_the_query)), stand, ("paged_attention",))()
        with pytest.raises(TestEnded) as ended:
            functions.timed((UNEQUAL,), TABLES_SEED)
    assert ended.value.verdict is Verdict.WRONG
    assert ended.value.message == "an output that was timed: the answer is wrong by far more than rounding"


def test_a_timed_case_is_drawn_anew_and_the_same_from_a_seed() -> None:
    one, other = UNEQUAL.tables(5), UNEQUAL.tables(6)
    assert torch.equal(UNEQUAL.tables(5)[0], one[0])
    assert not torch.equal(one[0], other[0])
    used = one[0][one[0] >= 0]
    assert sorted(used.tolist()) == list(range(UNEQUAL.num_blocks))
    assert TimedCase.from_json(UNEQUAL.to_json()) == UNEQUAL
