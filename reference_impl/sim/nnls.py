"""Least squares with no negative coefficient: what a sum of times needs, for no work takes less than no time.

Owns: the active-set method, for a handful of columns. Knows nothing of what the columns mean.
Source: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nnls(matrix: Array, target: Array) -> Array:
    """The x >= 0 that makes |matrix @ x - target| least; one of them where columns depend on each other.

    matrix: (rows, columns), target: (rows,). Columns may differ by many orders of magnitude: each is scaled first.
    Raises: ValueError on other shapes, no rows, or numbers that are not finite. Cost: a few least squares a column.
    """
    if matrix.ndim != 2 or target.shape != (matrix.shape[0],) or not target.size:
        raise ValueError(f"need a matrix and as many targets as it has rows, got {matrix.shape} and {target.shape}")
    if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
        raise ValueError("the matrix and the targets must be finite")
    lengths = np.linalg.norm(matrix, axis=0)
    scale = np.where(lengths > 0, lengths, 1.0)
    scaled = matrix / scale
    return _active_set(scaled, target) / scale


def _active_set(matrix: Array, target: Array) -> Array:
    columns = matrix.shape[1]
    x = np.zeros(columns)
    used = np.zeros(columns, dtype=bool)
    tolerance = 1e-12 * max(1.0, float(np.abs(matrix.T @ target).max()))
    # Each round adds the column that helps most; a bound on the rounds ends any cycling by rounding.
    for _ in range(3 * columns + 10):
        gradient = matrix.T @ (target - matrix @ x)
        gradient[used] = -np.inf
        best = int(gradient.argmax())
        if used.all() or gradient[best] <= tolerance:
            break
        used[best] = True
        x = _feasible(matrix, target, x, used)
    return x


def _feasible(matrix: Array, target: Array, x: Array, used: NDArray[np.bool_]) -> Array:
    """The least squares over the used columns, giving up those that would go below 0 on the way there."""
    while True:
        goal = np.zeros_like(x)
        goal[used] = np.linalg.lstsq(matrix[:, used], target, rcond=None)[0]
        below = used & (goal <= 0)
        if not below.any():
            return goal
        steps = x[below] / (x[below] - goal[below])
        step = float(steps.min()) if steps.size else 0.0
        x = x + step * (goal - x)
        used &= ~(below & (x <= 1e-15))
        x[~used] = 0.0
        if step == 0.0:
            used &= ~below
