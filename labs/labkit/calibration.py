"""What the sampler of `workloads` reproduces: the quantiles of four public traces.

Owns: the numbers, with their source. Knows nothing of sampling. Each row of quantiles was computed once from the whole
trace (NumPy's linear interpolation, rounded to a token) at the percentages `PERCENT`; a test recomputes them wherever
the trace is at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

PERCENT = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 97, 98, 99, 99.5, 99.9, 100)


@dataclass(frozen=True)
class Calibration:
    """One trace in numbers: how many requests in how many seconds, and how long they are in tokens."""

    title: str
    source: str
    licence: str
    requests: int
    duration_s: float
    prompt_quantiles: tuple[int, ...]
    output_quantiles: tuple[int, ...]
    prompt_mean: float
    output_mean: float


def _knots(text: str) -> tuple[int, ...]:
    knots = tuple(int(number) for number in text.split())
    assert len(knots) == len(PERCENT), f"{len(knots)} quantiles for {len(PERCENT)} percentages"
    return knots


_AZURE = "Azure LLM inference trace 2023 (Patel et al., Splitwise, ISCA 2024), github.com/Azure/AzurePublicDataset"
_MOONCAKE = "Mooncake conversation trace (Qin et al., FAST 2025), github.com/kvcache-ai/Mooncake"
_SHAREGPT = "ShareGPT lengths, Llama 2 tokeniser, at most 8k tokens, github.com/project-etalon/etalon"

CALIBRATIONS: dict[str, Calibration] = {
    "azure_conv": Calibration(
        title="Azure 2023, conversation",
        source=_AZURE,
        licence="CC-BY-4.0",
        requests=19_366,
        duration_s=3_501.7,
        prompt_quantiles=_knots(
            "2 29 181 207 387 403 703 1020 1071 1130 1315 1876 2734 4083 4090 4098 4142 4831 6179 14050"
        ),
        output_quantiles=_knots("7 16 41 54 77 91 103 129 177 384 400 411 424 451 509 540 601 643 954 1000"),
        prompt_mean=1154.7,
        output_mean=211.1,
    ),
    "azure_code": Calibration(
        title="Azure 2023, code completion",
        source=_AZURE,
        licence="CC-BY-4.0",
        requests=8_819,
        duration_s=3_435.9,
        prompt_quantiles=_knots(
            "3 17 75 147 386 770 1075 1469 1909 2433 3192 3920 5188 7303 7435 7436 7436 7436 7437 7437"
        ),
        output_quantiles=_knots("6 6 6 7 8 9 11 13 16 20 29 39 55 90 128 171 251 359 825 1899"),
        prompt_mean=2047.8,
        output_mean=27.9,
    ),
    "mooncake_conversation": Calibration(
        title="Mooncake, conversation",
        source=_MOONCAKE,
        licence="Apache-2.0",
        requests=12_031,
        duration_s=3_537.0,
        prompt_quantiles=_knots(
            "891 894 901 964 1662 3263 4993 6909 9570 13196 17869 21464 "
            "27367 39550 52215 66449 85400 100810 121301 126195"
        ),
        output_quantiles=_knots("1 3 10 24 100 213 291 350 399 447 504 543 597 698 800 892 1119 1568 2000 2000"),
        prompt_mean=12035.1,
        output_mean=342.6,
    ),
    "sharegpt_8k": Calibration(
        title="ShareGPT, up to 8k tokens",
        source=_SHAREGPT,
        licence="Apache-2.0",
        requests=30_731,
        duration_s=0.0,
        prompt_quantiles=_knots(
            "1 12 29 74 382 777 1203 1730 2401 3235 4278 4918 5696 6563 6950 7164 7434 7622 7854 8141"
        ),
        output_quantiles=_knots("2 6 44 84 181 271 346 415 493 581 683 754 834 920 957 975 998 1009 1021 1024"),
        prompt_mean=2340.0,
        output_mean=438.7,
    ),
}
