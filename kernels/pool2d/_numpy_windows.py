"""What maxima and means have in common: windows as two steps, along the rows and down the columns.

NumPy's time is in its inner loops: some 10 ns for each, however short. Either a step goes window by window, a tap
at a time, which is right where many channels lie side by side. Or it computes a value for every position of the block,
as one long loop over memory, and the windows are picked out at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from .._arrays import Array
from .._workspace import workspace
from ._problem import AdaptivePool2dProblem, Pool2dProblem, adaptive_bounds

PLANS = 256  # problems whose slices and small tables are kept: making them took longer than tiny inputs do

_FEW_CHANNELS = 16  # side by side: below it, every position
_MOST_POSITIONS = 6  # for each window that is picked out

Problem = Pool2dProblem | AdaptivePool2dProblem
Run = tuple[slice, list[tuple[int, slice]]]  # windows next to each other; each tap's number and elements


def in_memory_order(output: Array, *others: Array) -> list[Array]:
    """Arrays ``[N, C, h, w]`` as views ``[n, g, h, w, c]`` with the axes in the order of the output's memory.

    ``c`` is 1 for NCHW and all the channels for channels_last, where ``g`` is 1: so one text serves both. Planes that
    lie one behind the other all become ``n``: then a block may be part of an image.
    """
    arrays = (output, *others)
    dense, also_channels_last = output.flags.c_contiguous, output.transpose(0, 2, 3, 1).flags.c_contiguous
    if not dense or (also_channels_last and others[0].strides[1] < others[0].strides[3]):
        return [array.transpose(0, 2, 3, 1)[:, None] for array in arrays]
    if all(array.flags.c_contiguous for array in arrays):
        return [array.reshape(-1, 1, *array.shape[2:], 1) for array in arrays]
    return [array[..., None] for array in arrays]


def is_whole_plane(problem: Problem) -> bool:
    """Whether there is one window, and it is the plane."""
    plain = isinstance(problem, AdaptivePool2dProblem) or (problem.padding, problem.dilation) == ((0, 0), (1, 1))
    return plain and (problem.P, problem.Q, *problem.kernel) == (1, 1, problem.H, problem.W)


@lru_cache(maxsize=PLANS)
def as_ordinary(problem: Problem) -> Pool2dProblem | None:
    """The ordinary pooling with the same windows; ``None`` where adaptive ones differ in size or distance."""
    if isinstance(problem, Pool2dProblem):
        return problem
    kernel, stride = [], []
    for size, count in ((problem.H, problem.P), (problem.W, problem.Q)):
        bounds = adaptive_bounds(size, count)
        lengths = {stop - start for start, stop in bounds}
        distances = {b[0] - a[0] for a, b in pairwise(bounds)} or {size}
        if len(lengths) > 1 or len(distances) > 1 or distances == {0}:
            return None
        kernel.append(lengths.pop())
        stride.append(distances.pop())
    N, C, H, W = problem.N, problem.C, problem.H, problem.W
    return Pool2dProblem(N, C, H, W, (kernel[0], kernel[1]), (stride[0], stride[1]), (0, 0))


@lru_cache(maxsize=PLANS)
def runs(problem: Problem, axis: int) -> list[Run]:
    """The windows along an axis, without what is outside the input, as few strided slices."""
    size, count = ((problem.H, problem.P), (problem.W, problem.Q))[axis]
    windows: list[list[tuple[int, int]]]
    if isinstance(problem, AdaptivePool2dProblem):
        windows = [list(enumerate(range(start, stop))) for start, stop in adaptive_bounds(size, count)]
    else:
        starts = [window * problem.stride[axis] - problem.padding[axis] for window in range(count)]
        reach = [(tap, tap * problem.dilation[axis]) for tap in range(problem.kernel[axis])]
        windows = [[(tap, start + d) for tap, d in reach if 0 <= start + d < size] for start in starts]
    found: list[Run] = []
    first = 0
    while first < count:
        stop, distance = first + 1, 1
        if stop < count and windows[first] and windows[stop]:
            distance = windows[stop][0][1] - windows[first][0][1]
        while distance > 0 and stop < count and windows[stop] == [(t, e + distance) for t, e in windows[stop - 1]]:
            stop += 1
        length = (stop - first - 1) * distance + 1
        found.append((slice(first, stop), [(t, slice(e, e + length, max(1, distance))) for t, e in windows[first]]))
        first = stop
    return found


def at_every_position(problem: Problem, channels: int) -> Pool2dProblem | None:
    """The ordinary problem whose windows are best picked out of every position; ``None`` where they are not."""
    ordinary = as_ordinary(problem)
    if ordinary is None or channels >= _FEW_CHANNELS:
        return None
    rows, columns = _spans(ordinary)
    return ordinary if rows * columns <= _MOST_POSITIONS * problem.P * problem.Q else None


@lru_cache(maxsize=PLANS)
def _spans(problem: Pool2dProblem) -> tuple[int, int]:
    """Rows and columns of what all windows of a plane cover, padding included, or of the plane where that is more."""
    spans = [
        (count - 1) * stride + (kernel - 1) * dilation + 1
        for count, stride, kernel, dilation in zip(
            (problem.P, problem.Q), problem.stride, problem.kernel, problem.dilation, strict=True
        )
    ]
    return max(spans[0], problem.H + problem.padding[0]), max(spans[1], problem.W + problem.padding[1])


def padded(problem: Pool2dProblem, neutral: Any, x: Array) -> Array:
    """``x [n, g, H, W, c]``, dense and with ``neutral`` around it as far as windows reach."""
    top, left = problem.padding
    shape = (*x.shape[:2], *_spans(problem), x.shape[4])
    if shape == x.shape and x.flags.c_contiguous:
        return x
    source = workspace("pool2d padded", shape, x.dtype)
    bottom, right = top + problem.H, left + problem.W
    source[:, :, :top], source[:, :, bottom:] = neutral, neutral
    source[:, :, top:bottom, :left], source[:, :, top:bottom, right:] = neutral, neutral
    source[:, :, top:bottom, left:right] = x
    return source


def shifted(line: Array, count: int, step: int) -> list[Array]:
    """What ``count`` taps, ``step`` elements of memory apart, meet from every position where all of them exist."""
    size = line.size - (count - 1) * step
    return [line[tap * step : tap * step + size] for tap in range(count)]


def picked(problem: Pool2dProblem, values: Array) -> Array:
    """Of ``values`` at every position ``[n, g, h, w, c]`` those where windows start: ``[n, g, P, Q, c]``."""
    down, across = problem.stride
    return values[:, :, : (problem.P - 1) * down + 1 : down, : (problem.Q - 1) * across + 1 : across]


def reduced(problem: Problem, operation: np.ufunc, neutral: Any, x: Array, y: Array) -> Array:
    """``operation`` over each window of ``x [n, g, H, W, c]``, in ``y [n, g, P, Q, c]`` or a view of a workspace.

    Extra memory: up to three blocks.
    """
    ordinary = at_every_position(problem, x.shape[4])
    if ordinary is not None:
        source = padded(ordinary, neutral, x)
        across, both = (workspace(f"pool2d {name}", source.shape, y.dtype) for name in ("across", "both"))
        pixel = source.shape[4]
        taps = shifted(source.reshape(-1), ordinary.kernel[1], ordinary.dilation[1] * pixel)
        line = _fold(operation, neutral, taps, across.reshape(-1)[: taps[0].size])
        taps = shifted(line, ordinary.kernel[0], ordinary.dilation[0] * source.shape[3] * pixel)
        _fold(operation, neutral, taps, both.reshape(-1)[: taps[0].size])
        return picked(ordinary, both)
    # down the columns first: there the inner loops are whole rows
    down = workspace("pool2d down", (*x.shape[:2], problem.P, *x.shape[3:]), y.dtype)
    for windows, rows in runs(problem, 0):
        _fold(operation, neutral, [x[:, :, h] for _, h in rows], down[:, :, windows])
    for windows, columns in runs(problem, 1):
        _fold(operation, neutral, [down[:, :, :, w] for _, w in columns], y[:, :, :, windows])
    return y


def _fold(operation: np.ufunc, neutral: Any, values: Sequence[Array], out: Array) -> Array:
    if len(values) < 2:
        out[...] = values[0] if values else neutral
    for i, value in enumerate(values[1:]):
        operation(out if i else values[0], value, out=out)
    return out
