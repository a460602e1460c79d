"""Where maxima were, as taps, in their planes and in a block; gradients that go there, and that come from there."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeGuard

import numpy as np

from .._arrays import Array
from .._workspace import workspace
from ._numpy_windows import PLANS, Problem, runs
from ._problem import AdaptivePool2dProblem, Pool2dProblem, adaptive_bounds

# Going over all windows once a tap beats scattering up to so many taps and from so many channels side by side on.
_FEW_TAPS = 8
_MANY_CHANNELS = 32


@lru_cache(maxsize=PLANS)
def places(problem: Problem) -> tuple[Array, Array]:
    """``h·W + w`` of each tap from its window's corner, and ``[P, Q]`` of each corner from the plane's start."""
    r, s = np.divmod(np.arange(problem.taps, dtype=np.int64), problem.kernel[1])
    if isinstance(problem, AdaptivePool2dProblem):
        bounds = adaptive_bounds(problem.H, problem.P), adaptive_bounds(problem.W, problem.Q)
        top, left = (np.array([start for start, _ in axis], np.int64) for axis in bounds)
    else:
        r, s = r * problem.dilation[0], s * problem.dilation[1]
        top, left = (
            np.arange(count, dtype=np.int64) * stride - padding
            for count, stride, padding in zip((problem.P, problem.Q), problem.stride, problem.padding, strict=True)
        )
    return r * problem.W + s, np.add.outer(top * problem.W, left)


@lru_cache(maxsize=PLANS)
def windows_without_taps(problem: Problem) -> tuple[Array, Array] | None:
    """``[P, Q]``, which windows have no tap inside the plane, and the tap that they name: the first that is not before
    it. ``None`` where there are none: only taps that lie apart can all miss.

    They name a place outside, as in torch; nothing is read or added there (torch's CPU does).
    """
    if isinstance(problem, AdaptivePool2dProblem) or problem.dilation == (1, 1):
        return None
    missing, first = [], []
    for count, size, kernel, stride, padding, dilation in zip(
        (problem.P, problem.Q), (problem.H, problem.W), problem.kernel, problem.stride, problem.padding,
        problem.dilation, strict=True,
    ):  # fmt: skip
        start = np.arange(count) * stride - padding
        at = start[:, None] + np.arange(kernel) * dilation
        missing.append(~((at >= 0) & (at < size)).any(axis=1))
        first.append(np.minimum(np.maximum(-(start // dilation), 0), kernel - 1))
    which = np.logical_or.outer(*missing)
    if not which.any():
        return None
    return which, np.add.outer(first[0] * problem.kernel[1], first[1])[which]


class Indices:
    """Where maxima are in a block ``[n, g, H, W, c]``, flat, told from taps or from indices in a plane.

    Extra memory: an index a window of a block for all threads, and one for each.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._bases = np.empty(0, np.int64)

    def __call__(self, index: Array) -> Array:
        where, c = index.reshape(-1), index.shape[4]
        found = workspace("pool2d places", where.shape, np.dtype(np.int64))
        if index.dtype == np.uint8:
            np.take(places(self._problem)[0] * c, where, out=found, mode="clip")
        else:
            np.multiply(where, c, out=found)
        bases = self._bases
        if bases.size < where.size:
            bases = self._bases = self._of_windows(index)  # other threads may do the same meanwhile
        found += bases[: where.size]
        return found

    def _of_windows(self, index: Array) -> Array:
        """Written out once a call: added as a broadcast, the short rows of a plane cost more than the additions."""
        (n, g, _, _, c), problem = index.shape, self._problem
        starts = np.arange(n * g, dtype=np.int64) * (problem.H * problem.W)
        corners = places(problem)[1].reshape(-1) * (index.dtype == np.uint8)
        return np.add.outer(np.add.outer(starts, corners) * c, np.arange(c)).reshape(-1)


def scatter(problem: Problem, indices: Indices, dy: Array, index: Array, dx: Array) -> None:
    """``dx.flat[index] += dy`` in each plane of ``dx [n, g, H, W, c]``, windows in order."""
    if tiles_of_few_taps(problem, index.shape[4], index.itemsize):
        _write_by_tap(problem, dy, index, dx)
        return
    to = indices(index)
    without = windows_without_taps(problem)
    if without is not None:
        dy = dy.copy()
        dy[:, :, without[0]] = 0
        np.clip(to, 0, dx.size - 1, out=to)
    target, gradient = dx.reshape(-1), dy.reshape(-1)
    target.fill(0)
    if problem.overlapping:
        # one-dimensional, aligned and of one dtype, this takes 1 ns an element; phases of windows that do not overlap
        # took three times as long
        np.add.at(target, to, gradient)
    else:
        target[to] = gradient


def gather(problem: Problem, indices: Indices, ddx: Array, index: Array, ddy: Array) -> None:
    """``ddy = ddx.flat[index]`` in each plane: the derivative of :func:`scatter`."""
    np.take(ddx.reshape(-1), indices(index), out=ddy.reshape(-1), mode="clip")
    without = windows_without_taps(problem)
    if without is not None:
        ddy[:, :, without[0]] = 0


def tiles_of_few_taps(problem: Problem, channels: int, index_bytes: int) -> TypeGuard[Pool2dProblem]:
    """Whether each tap's elements are written at once; an index of one byte is a tap."""
    return (
        isinstance(problem, Pool2dProblem)
        and problem.kernel == problem.stride
        and problem.dilation == (1, 1)
        and problem.taps <= _FEW_TAPS
        and index_bytes == 1
        and channels >= _MANY_CHANNELS
    )


def _write_by_tap(problem: Pool2dProblem, dy: Array, taps: Array, dx: Array) -> None:
    """Each tap's elements get ``dy`` where it was the maximum, else 0: faster than scattering to many channels."""
    bits = np.dtype(f"i{dx.itemsize}")  # times 0 or 1 as integers: 0 * inf would be NaN
    dy, dx = dy.view(bits), dx.view(bits)
    dx[:, :, max(0, problem.P * problem.stride[0] - problem.padding[0]) :] = 0
    dx[:, :, :, max(0, problem.Q * problem.stride[1] - problem.padding[1]) :] = 0
    for down, rows in runs(problem, 0):
        for across, columns in runs(problem, 1):
            share, tap = dy[:, :, down, across], taps[:, :, down, across]
            chosen = workspace("pool2d greater", tap.shape, np.dtype(np.bool_))
            for r, h in rows:
                for s, w in columns:
                    np.equal(tap, np.uint8(r * problem.kernel[1] + s), out=chosen)
                    np.multiply(share, chosen, out=dx[:, :, h, w])
