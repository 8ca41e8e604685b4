"""The search for the highest rate, and the paper's main comparison in kind."""

from __future__ import annotations

import pytest

from reference_impl.sim.capacity import PRECISION, TARGET_S, Row, comparison, conversations, highest, report, sustains

ALL = ("paged", "oracle", "contiguous")


@pytest.mark.parametrize("limit", [0.01, 0.24, 0.25, 1.0, 3.7, 100.0])
def test_the_search_finds_the_limit_from_below_within_its_precision(limit: float) -> None:
    trials: list[float] = []

    def sustains(rate: float) -> bool:
        trials.append(rate)
        return rate <= limit

    found = highest(sustains)
    assert limit / (1 + 2 * PRECISION) <= found <= limit
    assert len(trials) < 20


def test_a_search_without_a_limit_is_an_error_and_not_endless() -> None:
    with pytest.raises(ValueError, match="not even"):
        highest(lambda rate: False)
    with pytest.raises(ValueError, match="too few requests"):
        highest(lambda rate: True)


def test_the_conversations_are_those_that_the_setting_allows() -> None:
    rows = conversations(300)
    assert len(rows) == 300
    assert all(prompt <= 500 and prompt + new <= 2_048 and new >= 1 for prompt, new in rows)


def test_what_makes_no_sense_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="requests must be at least 1"):
        comparison(requests=0)
    with pytest.raises(ValueError, match="target must be above 0"):
        comparison(target_s=0.0)


def test_paging_sustains_more_than_knowing_every_length_and_much_more_than_reserving_the_longest() -> None:
    lengths = conversations(300)
    sustained = {name: [sustains(name, lengths, TARGET_S, 0, rate) for rate in (0.5, 1.4, 2.4)] for name in ALL}
    assert sustained == {
        "paged": [True, True, True],
        "oracle": [True, True, False],
        "contiguous": [True, False, False],
    }


@pytest.mark.long
def test_the_gains_lie_in_the_published_ranges() -> None:
    rates = {row.allocator: row.rate_per_s for row in comparison(600, allocators=ALL)}
    assert 1.7 <= rates["paged"] / rates["oracle"] <= 2.7
    assert 2.7 <= rates["paged"] / rates["contiguous"] <= 8


def test_the_report_shows_the_gain_of_paging_over_each_row() -> None:
    text = report([Row("paged", 3.0), Row("contiguous", 1.0)])
    assert "3.00" in text.splitlines()[2]
    assert "2.7 to 8" in text
