"""From gradings of one kernel to the width of bands: three spreads from edge to edge, whatever a grading ended in."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autograder import noise, noise_command
from autograder.cli import main
from autograder.course import Course
from autograder.noise import Grading, bands_of, gradings, lines, record, spreads

ROOT = Path(__file__).parents[2]
LAB = "lab4_paged_attention"
BANDS = {"equal": (0.3, 0.5, 0.65, 0.75)}


def graded(*shares: float | None, seeds: tuple[int, ...] = ()) -> list[Grading]:
    """Gradings of one group; None is one that the machine was too restless for."""
    return [
        Grading(seed, {} if share is None else {"equal": share}, {"equal": "INCONCLUSIVE"} if share is None else {})
        for seed, share in zip(seeds or [1] * len(shares), shares, strict=True)
    ]


def test_one_seed_is_tried_again_and_others_once_each() -> None:
    said: list[Grading] = []
    found = gradings(lambda seed: Grading(seed, {}, {}), 3, 2, said.append)
    seeds = [grading.seed for grading in found]
    assert said == found
    assert len(set(seeds[:3])) == 1
    assert len(set(seeds[2:])) == 3


def test_bands_must_be_three_spreads_wide() -> None:
    (spread,) = spreads(graded(0.60, 0.63), BANDS)
    assert spread.of_all == pytest.approx(0.05)
    assert spread.step == pytest.approx(0.75 / 0.65 - 1)
    assert spread.wide_enough is True
    (spread,) = spreads(graded(0.60, 0.64), BANDS)
    assert spread.step_due == pytest.approx(0.2)
    assert spread.wide_enough is False
    assert "TOO NARROW" in "\n".join(lines([spread]))


def test_the_luck_of_the_draw_is_told_from_the_noise_of_the_machine() -> None:
    (spread,) = spreads(graded(0.600, 0.606, 0.63, seeds=(1, 1, 2)), BANDS)
    assert spread.of_one_seed == pytest.approx(0.01)
    assert spread.of_all == pytest.approx(0.05)
    assert "spread 1.00% with one seed, 5.00% over all draws: steps of 15.0% or more" in lines([spread])[1]


def test_a_grading_without_a_time_is_no_grading() -> None:
    (spread,) = spreads(graded(None, 0.6, None, 0.606), BANDS)
    assert (len(spread.shares), spread.of_all) == (2, pytest.approx(0.01))
    (spread,) = spreads(graded(None, 0.6), BANDS)
    assert (spread.of_all, spread.wide_enough) == (None, None)
    assert "too few to tell a spread" in lines([spread])[0]


def test_the_bands_are_those_of_the_hidden_tests() -> None:
    lab = Course.open(ROOT).lab(LAB)
    assert bands_of(noise.timed_tests(lab)) == {
        "bandwidth_equal": (0.3, 0.5, 0.65, 0.75),
        "bandwidth_unequal": (0.1, 0.3, 0.45, 0.6),
    }
    # The name of each is what it asks for.
    for test in noise.timed_tests(lab):
        percent = int(test.name.split("_")[-2])
        share = percent / 100
        for reached, passes in ((share, True), (share * 0.999, False)):
            timing = SimpleNamespace(share=reached)
            subject = SimpleNamespace(timed=lambda cases, seed, along, timing=timing: [timing])
            try:
                test.run(make=lambda subject=subject: subject, seed=3)
            except AssertionError:
                assert not passes
            else:
                assert passes


def test_the_record_is_plain_and_whole(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel.py"
    kernel.write_text("x = 1\n")
    found = graded(0.600, 0.606)
    told: Any = json.loads(json.dumps(record(LAB, kernel, "1.0-x", found, spreads(found, BANDS))))
    assert told["submission"] == "kernel.py"
    assert [grading["shares"]["equal"] for grading in told["gradings"]] == [0.600, 0.606]
    assert told["groups"][0]["wide_enough"] is True


@pytest.fixture
def with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_command, "choose", lambda lab, device: device)
    monkeypatch.setattr(noise_command.tiers, "choose", lambda wanted: "none")


@pytest.mark.usefixtures("with_a_gpu")
def test_the_command_prints_each_grading_and_fails_on_narrow_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel, out = tmp_path / "kernel.py", tmp_path / "noise.json"
    kernel.write_text("x = 1\n")
    for unequal, code in ((0.301, 0), (0.36, 1)):
        shares = iter((0.3, 0.3, unequal))

        def once(seed: int, shares: Any = shares) -> Grading:
            return Grading(seed, {"bandwidth_equal": 0.6, "bandwidth_unequal": next(shares)}, {})

        monkeypatch.setattr(noise, "grader", lambda *args, once=once: once)
        command = ["noise", LAB, str(kernel), "--times", "2", "--draws", "1", "--json", str(out)]
        assert main(["--root", str(ROOT), *command]) == code
        printed = capsys.readouterr().out
        assert printed.count("bandwidth_equal 0.6000; bandwidth_unequal 0.3") == 3
        assert len(json.loads(out.read_text())["gradings"]) == 3


def test_the_command_needs_a_gpu_and_sensible_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autograder.runners.devices.here", lambda: ("cpu",))
    assert main(["--root", str(ROOT), "noise", LAB, "x.py"]) == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert main(["--root", str(ROOT), "noise", LAB, "x.py", "--times", "0"]) == 1
    assert "--times must be at least 1" in capsys.readouterr().err
