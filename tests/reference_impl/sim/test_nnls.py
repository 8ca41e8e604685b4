"""Least squares without negative coefficients, against all subsets of the columns."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.sim.nnls import nnls


def by_trying_every_subset(matrix: np.ndarray, target: np.ndarray) -> float:
    """The least squared residual of any subset of columns whose own least squares has no negative coefficient."""
    best = float(target @ target)
    columns = range(matrix.shape[1])
    for chosen in chain.from_iterable(combinations(columns, size) for size in range(1, len(columns) + 1)):
        part = matrix[:, list(chosen)]
        x = np.linalg.lstsq(part, target, rcond=None)[0]
        if (x >= 0).all():
            best = min(best, float(((target - part @ x) ** 2).sum()))
    return best


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 12))
def test_no_subset_of_columns_does_better(seed: int, columns: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    # Columns as different in size as seconds and FLOPs.
    matrix = rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-6, 6, columns)
    target = rng.normal(size=rows)
    x = nnls(matrix, target)
    assert (x >= 0).all()
    assert float(((target - matrix @ x) ** 2).sum()) <= by_trying_every_subset(matrix, target) + 1e-9


def test_what_is_a_sum_of_columns_is_found_exactly() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.random((40, 4))
    truth = np.array([0.5, 0.0, 2.0, 1e-3])
    assert nnls(matrix, matrix @ truth) == pytest.approx(truth, abs=1e-10)


def test_a_column_of_nothing_and_equal_columns_are_no_error() -> None:
    matrix = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    x = nnls(matrix, np.array([3.0, 6.0]))
    assert matrix @ x == pytest.approx([3.0, 6.0])
    assert x[2] == 0


@pytest.mark.parametrize(
    ("matrix", "target"),
    [(np.zeros((2, 2)), np.zeros(3)), (np.zeros((0, 2)), np.zeros(0)), (np.array([[np.nan]]), np.zeros(1))],
)
def test_what_cannot_be_fitted_is_refused(matrix: np.ndarray, target: np.ndarray) -> None:
    with pytest.raises(ValueError, match="matrix"):
        nnls(matrix, target)
