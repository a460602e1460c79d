"""Maxima of a block, and where they were.

Where a maximum was is found along with it. A first step takes the largest of each row of a window and a byte that says
which tap of the row it was, a second step the largest of the rows and its byte. Of equal values the first counts so:
only what is greater replaces what came before. Blocks with an infinite maximum or NaN go tap by tap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arrays import Array
from .._workspace import workspace
from ._numpy_index import places, windows_without_taps
from ._numpy_windows import Problem, at_every_position, is_whole_plane, padded, picked, reduced, runs, shifted
from ._problem import Pool2dProblem


def maxima(problem: Problem, x: Array, y: Array) -> None:
    """The maximum of each window of ``x [n, g, H, W, c]`` into ``y [n, g, P, Q, c]``."""
    if is_whole_plane(problem):
        pixels, best = _planes_as_rows(x, y)
        np.maximum.reduce(pixels, axis=1, out=best)
        return
    values = reduced(problem, np.maximum, _lowest(y.dtype), x, y)
    if values is not y:
        np.copyto(y, values)


def maxima_and_taps(problem: Problem, x: Array, y: Array, index: Array) -> None:
    """The same, and where each maximum was into ``index``, which is like ``y``.

    Extra memory: up to three blocks.
    """
    ordinary = at_every_position(problem, x.shape[4])
    if is_whole_plane(problem):
        taps = _of_whole_planes(problem, x, y)
    elif ordinary is not None:
        taps = _at_every_position(problem, ordinary, x, y)
    else:
        taps = _at_windows(problem, x, y)
    if not _all_plain(y):
        taps = _tap_by_tap(problem, x, y)
    without = windows_without_taps(problem)
    if without is not None:
        which, tap = without
        taps[:, :, which] = tap[:, None].astype(taps.dtype)
    if index.dtype == np.uint8:
        index[...] = taps
    else:
        offsets, corners = places(problem)
        np.take(offsets, taps, out=index, mode="clip")  # "raise" would buffer the output
        index += corners[..., None]


def _planes_as_rows(x: Array, y: Array) -> tuple[Array, Array]:
    """``x [n·g, H·W, c]`` and ``y [n·g, c]``, without an axis ``c`` of 1."""
    pixels, best = x.reshape(y.shape[0] * y.shape[1], -1, y.shape[4]), y.reshape(-1, y.shape[4])
    return (pixels[..., 0], best[..., 0]) if y.shape[4] == 1 else (pixels, best)


def _of_whole_planes(problem: Problem, x: Array, y: Array) -> Array:
    pixels, best = _planes_as_rows(x, y)
    if pixels.ndim == 2:
        taps = pixels.argmax(axis=1)
        best[...] = pixels.reshape(-1)[taps + np.arange(len(taps)) * problem.taps]
        return taps.reshape(y.shape)
    np.maximum.reduce(pixels, axis=1, out=best)
    # the first tap that is as large has the largest number if they fall
    falling = np.arange(problem.taps)[::-1].astype(_tap_dtype(problem))
    equal = workspace("pool2d equal", pixels.shape, np.dtype(np.bool_))
    np.equal(pixels, best[:, None], out=equal)
    numbers = _times(equal, falling[:, None])
    return (problem.taps - 1 - np.maximum.reduce(numbers, axis=1)).reshape(y.shape)


def _at_every_position(problem: Problem, ordinary: Pool2dProblem, x: Array, y: Array) -> Array:
    source = padded(ordinary, _lowest(y.dtype), x)
    kernel, dtype = ordinary.kernel, _tap_dtype(problem)
    across, down = ordinary.dilation[1] * source.shape[4], ordinary.dilation[0] * source[0, 0, 0].size
    best, both = (workspace(f"pool2d {name}", source.shape, y.dtype) for name in ("across", "both"))
    of_row, of_both = (workspace(f"pool2d tap {name}", source.shape, dtype) for name in ("across", "both"))

    taps = shifted(source.reshape(-1), kernel[1], across)
    size = taps[0].size
    best, of_row = best.reshape(-1)[:size], of_row.reshape(-1)[:size]
    _largest_of_row(list(enumerate(taps)), best, of_row)

    rows = shifted(best, kernel[0], down)
    size = rows[0].size
    numbers = [r * problem.kernel[1] for r in range(kernel[0])]
    _largest_of_rows(
        list(zip(numbers, rows, shifted(of_row, kernel[0], down), strict=True)),
        both.reshape(-1)[:size],
        of_both.reshape(-1)[:size],
    )
    np.copyto(y, picked(ordinary, both))
    return picked(ordinary, of_both)


def _at_windows(problem: Problem, x: Array, y: Array) -> Array:
    dtype = _tap_dtype(problem)
    shape = (*x.shape[:3], problem.Q, x.shape[4])
    best, of_row = workspace("pool2d across", shape, y.dtype), workspace("pool2d tap across", shape, dtype)
    taps = workspace("pool2d tap both", y.shape, dtype)
    met = [h for _, rows in runs(problem, 0) for _, h in rows]
    most_are_met = 2 * sum(len(range(*h.indices(problem.H))) for h in met) > problem.H
    for h in [slice(None)] if most_are_met else met:
        for windows, columns in runs(problem, 1):
            values = [(s, x[:, :, h, w]) for s, w in columns]
            _largest_of_row(values, best[:, :, h, windows], of_row[:, :, h, windows])
    for windows, rows in runs(problem, 0):
        candidates = [(r * problem.kernel[1], best[:, :, h], of_row[:, :, h]) for r, h in rows]
        _largest_of_rows(candidates, y[:, :, windows], taps[:, :, windows])
    return taps


def _largest_of_row(values: list[tuple[int, Array]], best: Array, taps: Array) -> None:
    """The largest of the values and the number of the first that is as large. Numbers rise by 1."""
    if len(values) < 2:
        best[...], taps[...] = (values[0][1], values[0][0]) if values else (_lowest(best.dtype), 0)
        return
    (number, so_far), *rest = values
    greater = workspace("pool2d greater", best.shape, np.dtype(np.bool_))
    for i, (_, value) in enumerate(rest, 1):
        np.greater(value, so_far, out=greater)
        so_far = np.maximum(so_far, value, out=best)
        if i == 1:
            taps[...] = greater
        else:
            np.maximum(taps, _times(greater, taps.dtype.type(i)), out=taps)  # the last that was greater is the largest
    if number:
        taps += taps.dtype.type(number)


def _largest_of_rows(rows: list[tuple[int, Array, Array]], best: Array, taps: Array) -> None:
    """The largest value and its number plus its tap in the row, of the first row that is as large.

    Numbers rise by more than a tap in the row can be: of the rows that were greater the last has the largest sum.
    """
    if len(rows) < 2:
        best[...] = rows[0][1] if rows else _lowest(best.dtype)
    if not rows:
        taps[...] = 0
        return
    (number, so_far, tap), *rest = rows
    np.add(tap, taps.dtype.type(number), out=taps)
    greater = workspace("pool2d greater", best.shape, np.dtype(np.bool_))
    sums = workspace("pool2d sums", best.shape, taps.dtype)
    for number, value, tap in rest:
        np.greater(value, so_far, out=greater)
        so_far = np.maximum(so_far, value, out=best)
        np.add(tap, taps.dtype.type(number), out=sums)
        sums *= greater.view(np.uint8)
        np.maximum(taps, sums, out=taps)


def _times(truths: Array, number: Any) -> Array:
    """``number`` where true, else 0; in place of the truths where a byte is enough."""
    numbers = truths.view(np.uint8).astype(number.dtype, copy=False)
    return np.multiply(numbers, number, out=numbers)


def _all_plain(y: Array) -> bool:
    """Whether no maximum is NaN, infinite, or what padding counts as: then nothing but greater and equal matters."""
    return bool(np.isfinite(y.sum()) if y.dtype.kind == "f" else y.min() > _lowest(y.dtype))


def _tap_by_tap(problem: Problem, x: Array, y: Array) -> Array:
    """Where nothing is greater than -inf the first tap inside the input counts, and of several NaNs the last."""
    taps = np.zeros(y.shape, _tap_dtype(problem))
    y[...] = _lowest(y.dtype)
    for down, rows in runs(problem, 0):
        for across, columns in runs(problem, 1):
            best, tap = y[:, :, down, across], taps[:, :, down, across]
            for r, h in rows:
                for s, w in columns:
                    value, number = x[:, :, h, w], tap.dtype.type(r * problem.kernel[1] + s)
                    if (r, s) == (rows[0][0], columns[0][0]):
                        tap[...] = number
                    np.copyto(tap, number, where=(value > best) | (value != value))  # nothing is greater than NaN
                    np.maximum(best, value, out=best)
    return taps


def _tap_dtype(problem: Problem) -> np.dtype[Any]:
    return np.min_scalar_type(problem.taps - 1)


def _lowest(dtype: np.dtype[Any]) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min
