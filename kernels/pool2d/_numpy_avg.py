"""Means of a block, and each element's share of the windows that cover it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .._arrays import Array
from .._workspace import workspace
from ._numpy_windows import PLANS, Problem, as_ordinary, is_whole_plane, reduced, runs
from ._problem import AdaptivePool2dProblem, Pool2dProblem, adaptive_bounds

# Multiply-adds of a plane's windows as one matrix product, up to which it beats NumPy's loops over the short rows.
# Adaptive windows of different sizes take many more of those.
_MOST_PRODUCTS = 1024
_MOST_UNEVEN_PRODUCTS = 8192


def means(problem: Problem, x: Array, y: Array) -> None:
    """The mean of each window of ``x [n, g, H, W, c]`` into ``y [n, g, P, Q, c]``: sums, then one division."""
    areas = divisors(problem, y.dtype)
    windows = cover(problem, x.shape[4], y.dtype)
    if is_whole_plane(problem):
        _sum_planes(x, y)
        sums = y
    elif windows is not None:
        sums = (x.reshape(-1, len(windows)) @ windows).reshape(y.shape)
        if not np.isfinite(sums.sum()):  # NaN may have met a 0 of a window that does not hold it
            sums = reduced(problem, np.add, 0, x, y)
    else:
        sums = reduced(problem, np.add, 0, x, y)
    np.divide(sums, areas, out=y)


def _sum_planes(x: Array, y: Array) -> None:
    if x.shape[4] == 1:
        np.einsum("ij->i", x.reshape(y.size, -1), out=y.reshape(-1))  # a third of the time of np.add.reduce
    else:
        pixels = x.reshape(len(x), -1, x.shape[4])
        np.matmul(np.ones(pixels.shape[1], x.dtype), pixels, out=y.reshape(len(x), -1))


def shares(problem: Problem, dy: Array, dx: Array) -> None:
    """Each element's sum of the windows that cover it, each divided by its area: the transpose of :func:`means`."""
    areas = divisors(problem, dx.dtype)
    windows = cover(problem, dx.shape[4], dx.dtype)
    ordinary = as_ordinary(problem)
    if is_whole_plane(problem):
        np.copyto(dx, dy / areas)
        return
    if windows is not None:
        share = (dy / areas).reshape(-1, windows.shape[1])
        np.matmul(share, windows.T, out=dx.reshape(-1, len(windows)))
        if np.isfinite(share.sum()):
            return
    if ordinary is not None:
        _spread(ordinary, areas, dy, dx)
    else:
        _spread_unevenly(problem, dy / areas, dx)


def _spread(problem: Pool2dProblem, areas: Array, dy: Array, dx: Array) -> None:
    """Along the rows, then down the columns. What a tap meets first is written, what it meets again is added to.

    Extra memory: a row of ``dx`` for each row of windows.
    """
    kernel, stride, left = problem.kernel[1], problem.stride[1], problem.padding[1]
    n, g, _, _, c = dx.shape
    beyond = -(-kernel // stride) - 1  # windows behind the last one of a row that it reaches into
    share = workspace("pool2d share", (n, g, problem.P, problem.Q + beyond, c), dx.dtype)
    np.divide(dy, areas, out=share[:, :, :, : problem.Q])
    share[:, :, :, problem.Q :] = 0
    rows = workspace("pool2d rows", (*share.shape[:3], share.shape[3] * stride, c), dx.dtype)
    share, cells = share.reshape(-1, c), rows.reshape(-1, stride, c)
    cells[:, kernel:] = 0
    for tap in range(min(stride, kernel)):
        cells[:, tap] = share
    for tap in range(stride, kernel):
        window, column = divmod(tap, stride)
        cells[window:, column] += share[:-window]  # a row's last ones meet the zeros before the next row

    width = min(problem.W, rows.shape[3] - left)
    inside = rows[:, :, :, left : left + width]
    dx[:, :, :, width:] = 0
    kernel, stride, top = problem.kernel[0], problem.stride[0], problem.padding[0]
    untouched = max(0, problem.P * stride - top) if kernel >= stride else 0
    dx[:, :, untouched:] = 0
    for tap in range(kernel):
        windows, met = _met(problem, tap)
        if tap < stride:
            dx[:, :, met, :width] = inside[:, :, windows]
        else:
            dx[:, :, met, :width] += inside[:, :, windows]


def _met(problem: Pool2dProblem, tap: int) -> tuple[slice, slice]:
    """The windows whose row ``tap`` is inside the input, and which rows of it those are."""
    stride, offset = problem.stride[0], tap - problem.padding[0]
    first = max(0, -(offset // stride))
    stop = max(first, min(problem.P, (problem.H - 1 - offset) // stride + 1))
    start = first * stride + offset
    return slice(first, stop), slice(start, start + (stop - first) * stride, stride)


def _spread_unevenly(problem: Problem, share: Array, dx: Array) -> None:
    rows = workspace("pool2d rows", (*share.shape[:3], *dx.shape[3:]), dx.dtype)
    rows[...] = 0
    for windows, columns in runs(problem, 1):
        for _, met in columns:
            rows[:, :, :, met] += share[:, :, :, windows]
    dx[...] = 0
    for windows, taken in runs(problem, 0):
        for _, met in taken:
            dx[:, :, met] += rows[:, :, windows]


def products(problem: Problem) -> int:
    """Multiplications in matrix products, all together: at most."""
    by_product = is_whole_plane(problem) or _few_products(problem)
    return by_product * problem.N * problem.C * problem.H * problem.W * problem.P * problem.Q


def is_product(problem: Problem, channels: int) -> bool:
    """Whether the windows of a plane are one matrix product."""
    return channels == 1 and _few_products(problem)


def _few_products(problem: Problem) -> bool:
    products_a_plane = problem.H * problem.W * problem.P * problem.Q
    return products_a_plane <= (_MOST_UNEVEN_PRODUCTS if as_ordinary(problem) is None else _MOST_PRODUCTS)


@lru_cache(maxsize=PLANS)
def cover(problem: Problem, channels: int, dtype: np.dtype[Any]) -> Array | None:
    """``[H·W, P·Q]`` of ones where a window covers an element, for planes that are worth a product each."""
    if not is_product(problem, channels):
        return None
    return np.kron(*(_band(problem, axis, dtype) for axis in (0, 1)))


def _band(problem: Problem, axis: int, dtype: np.dtype[Any]) -> Array:
    size, count = ((problem.H, problem.P), (problem.W, problem.Q))[axis]
    band = np.zeros((size, count), dtype)
    for windows, taps in runs(problem, axis):
        for _, met in taps:
            band[met, windows][np.diag_indices(windows.stop - windows.start)] = 1
    return band


@lru_cache(maxsize=PLANS)
def divisors(problem: Problem, dtype: np.dtype[Any]) -> Array:
    """What each window's sum is divided by: ``[P, Q, 1]``, or one number for all."""
    if isinstance(problem, AdaptivePool2dProblem):
        axes = adaptive_bounds(problem.H, problem.P), adaptive_bounds(problem.W, problem.Q)
        counts = [np.array([stop - start for start, stop in bounds]) for bounds in axes]
    else:
        counts = [_counts(problem, axis) for axis in (0, 1)]
    areas = np.multiply.outer(*counts).astype(dtype)[..., None]
    if not isinstance(problem, AdaptivePool2dProblem) and problem.divisor_override:
        areas[...] = problem.divisor_override
    return areas.flat[0] if areas.size and (areas == areas.flat[0]).all() else areas


def _counts(problem: Pool2dProblem, axis: int) -> Array:
    """Elements that each window along an axis counts."""
    size, count = ((problem.H, problem.P), (problem.W, problem.Q))[axis]
    start = np.arange(count) * problem.stride[axis] - problem.padding[axis]
    stop = np.minimum(start + problem.kernel[axis], size + problem.padding[axis])
    if not problem.count_include_pad:
        start, stop = np.maximum(start, 0), np.minimum(stop, size)
    return stop - start
