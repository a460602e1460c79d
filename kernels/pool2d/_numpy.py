"""2-D pooling in NumPy: one pass a tap over the windows that have it inside the input, image by image.

A tap is a strided view of the input and a range of the output, so that no padded copy is made. Backwards of maxima
scatter through flat indices; windows that overlap are scattered in phases that do not, so the order is fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._arrays import Array
from .._parallel import parallel_for, quiet
from ._problem import AdaptivePool2dProblem, Pool2dProblem, adaptive_bounds

_BLOCK_BYTES = 512 * 1024  # input of a block: with its output and index it stays in a 2 MB L2 cache


def max_forward(problem: Pool2dProblem, x: Array, y: Array, index: Array | None) -> None:
    """The maximum of each window; ``index`` may be ``None``. Extra memory: a byte or two an output of a block."""
    taps = list(_taps(problem))
    first = _first_tap(problem) if index is not None else None

    def block(n: slice) -> None:
        source, best = x[n], y[n]
        best[...] = _lowest(y.dtype)
        if index is None or first is None:
            for _, rows, columns, windows in taps:
                np.maximum(best[windows], source[:, :, rows, columns], out=best[windows])
            return
        # the code of a tap rises along the taps, so the last tap that was greater is the maximum of the codes
        code = np.empty_like(best, dtype=first.dtype)
        code[...] = first
        for t, rows, columns, windows in taps:
            value = source[:, :, rows, columns]
            greater = np.greater(value, best[windows]).view(np.uint8).astype(first.dtype, copy=False)
            np.maximum(best[windows], value, out=best[windows])
            greater *= first.dtype.type(t)
            np.maximum(code[windows], greater, out=code[windows])
        if best.dtype.kind == "f":
            _last_nan(taps, source, best, code)
        _index_of(problem, code, index[n])

    _over_images(block, x, y)


def _last_nan(taps: list[Any], source: Array, best: Array, code: Array) -> None:
    """Where the maximum is NaN, the last NaN of the window is the one that counts."""
    if not np.isnan(best).any():
        return
    for t, rows, columns, windows in taps:
        np.copyto(code[windows], code.dtype.type(t), where=np.isnan(source[:, :, rows, columns]))


def _index_of(problem: Pool2dProblem, code: Array, index: Array) -> None:
    """``h * W + w`` from the number of the tap in its window."""
    (kernel_h, kernel_w), (stride_h, stride_w) = problem.kernel, problem.stride
    (pad_h, pad_w), (dilation_h, dilation_w) = problem.padding, problem.dilation
    offsets = np.add.outer(
        np.arange(kernel_h, dtype=np.int64) * dilation_h * problem.W, np.arange(kernel_w) * dilation_w
    )
    corners = np.add.outer(
        (np.arange(problem.P, dtype=np.int64) * stride_h - pad_h) * problem.W,
        np.arange(problem.Q) * stride_w - pad_w,
    )
    np.add(np.take(offsets.ravel(), code), corners, out=index)


def _taps(problem: Pool2dProblem) -> Iterator[tuple[int, slice, slice, tuple[Any, ...]]]:
    """Each tap's number, the rows and columns of the input it meets, and the windows that it meets them for."""
    vertical = _axis_taps(problem, 0, problem.H, problem.P)
    horizontal = _axis_taps(problem, 1, problem.W, problem.Q)
    for r, (p, rows) in enumerate(vertical):
        for s, (q, columns) in enumerate(horizontal):
            yield r * problem.kernel[1] + s, rows, columns, (..., p, q)


def _axis_taps(problem: Pool2dProblem, axis: int, size: int, count: int) -> list[tuple[slice, slice]]:
    stride = problem.stride[axis]
    taps = []
    for tap in range(problem.kernel[axis]):
        offset = tap * problem.dilation[axis] - problem.padding[axis]
        first = max(0, -(offset // stride))
        stop = max(first, min(count, (size - 1 - offset) // stride + 1))
        start = first * stride + offset
        taps.append(
            (
                slice(first, stop),
                slice(start, start + (stop - first - 1) * stride + 1 if stop > first else start, stride),
            )
        )
    return taps


def _first_tap(problem: Pool2dProblem) -> Array:
    """``[P, Q]``: the number of each window's first tap inside the input: where nothing is greater than -inf."""
    firsts = []
    for axis, count in ((0, problem.P), (1, problem.Q)):
        start = np.arange(count) * problem.stride[axis] - problem.padding[axis]
        firsts.append(np.maximum(0, -(start // problem.dilation[axis])))
    taps = problem.kernel[0] * problem.kernel[1]
    return np.add.outer(firsts[0] * problem.kernel[1], firsts[1]).astype(np.uint8 if taps <= 256 else np.int64)


def _lowest(dtype: np.dtype[Any]) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def max_backward(problem: Pool2dProblem | AdaptivePool2dProblem, dy: Array, index: Array, dx: Array) -> None:
    """``dx.flat[index] += dy`` in each plane, in the order of the windows. Extra memory: an index a block."""
    add = problem.overlapping

    def block(n: slice) -> None:
        target, where, gradient = _flat(problem, dx, index, dy, n)
        target[...] = 0
        if add:
            np.add.at(target, where, gradient)
        else:
            target[where] = gradient

    _over_images(block, dx, dy)


def max_gather(problem: Pool2dProblem | AdaptivePool2dProblem, ddx: Array, index: Array, ddy: Array) -> None:
    """``ddy = ddx.flat[index]`` in each plane: the derivative of :func:`max_backward`."""
    planes = np.ascontiguousarray(ddx).reshape(problem.N * problem.C, -1)
    np.copyto(ddy, np.take_along_axis(planes, index.reshape(len(planes), -1), axis=1).reshape(index.shape))


def _flat(
    problem: Pool2dProblem | AdaptivePool2dProblem, dx: Array, index: Array, dy: Array, n: slice
) -> tuple[Array, Array, Array]:
    """Some images of ``dx`` in memory order, the places in it that ``index`` means, and ``dy`` in the same order."""
    images, area = n.stop - n.start, problem.H * problem.W
    if dx.flags.c_contiguous:
        target = dx[n].reshape(-1)
        base = np.arange(images * problem.C, dtype=np.int64).reshape(images, problem.C, 1, 1) * area
        where = index[n] + base
        return target, where.reshape(-1), dy[n].reshape(-1)
    target = dx[n].transpose(0, 2, 3, 1).reshape(-1)
    base = np.arange(images, dtype=np.int64).reshape(images, 1, 1, 1) * area
    where = (index[n].transpose(0, 2, 3, 1) + base) * problem.C + np.arange(problem.C)
    return target, where.reshape(-1), dy[n].transpose(0, 2, 3, 1).reshape(-1)


def avg_forward(problem: Pool2dProblem, x: Array, y: Array) -> None:
    """The mean of each window: a sum of taps, then one division. No memory beyond the output."""
    taps, divisors = list(_taps(problem)), _divisors(problem, y.dtype)

    def block(n: slice) -> None:
        source, total = x[n], y[n]
        total[...] = 0
        for _, rows, columns, windows in taps:
            total[windows] += source[:, :, rows, columns]
        total /= divisors

    _over_images(block, x, y)


def avg_backward(problem: Pool2dProblem, dy: Array, dx: Array) -> None:
    """Each element's share of the windows that cover it. Extra memory: the output of a block."""
    taps, divisors = list(_taps(problem)), _divisors(problem, dx.dtype)

    def block(n: slice) -> None:
        share, target = dy[n] / divisors, dx[n]
        target[...] = 0
        for _, rows, columns, windows in taps:
            target[:, :, rows, columns] += share[windows]

    _over_images(block, dx, dy)


def _divisors(problem: Pool2dProblem, dtype: np.dtype[Any]) -> Array:
    """``[P, Q]``: what each window's sum is divided by."""
    if problem.divisor_override:
        return np.full((problem.P, problem.Q), problem.divisor_override, dtype)
    counts = []
    for axis, size, count in ((0, problem.H, problem.P), (1, problem.W, problem.Q)):
        start = np.arange(count) * problem.stride[axis] - problem.padding[axis]
        stop = np.minimum(start + problem.kernel[axis], size + problem.padding[axis])
        if not problem.count_include_pad:
            start, stop = np.maximum(start, 0), np.minimum(stop, size)
        counts.append(stop - start)
    return np.multiply.outer(counts[0], counts[1]).astype(dtype)


def adaptive_max_forward(problem: AdaptivePool2dProblem, x: Array, y: Array, index: Array | None) -> None:
    """The maximum of each adaptive window. Extra memory: a window of a block."""
    windows = list(_windows(problem))

    def block(n: slice) -> None:
        source = x[n]
        for p, q, h, w in windows:
            values = source[:, :, h, w]
            flat = values.reshape(*values.shape[:2], -1)
            flat.max(axis=2, out=y[n, :, p, q])
            if index is not None:
                place = _last_nan_or_first_maximum(flat)
                width = w.stop - w.start
                index[n, :, p, q] = (place // width + h.start) * problem.W + place % width + w.start

    _over_images(block, x, y)


def _last_nan_or_first_maximum(values: Array) -> Array:
    place = values.argmax(axis=2)
    nan = np.isnan(values)
    if nan.any():
        last = values.shape[2] - 1 - nan[..., ::-1].argmax(axis=2)
        place = np.where(nan.any(axis=2), last, place)
    return place


def adaptive_avg_forward(problem: AdaptivePool2dProblem, x: Array, y: Array) -> None:
    """The mean of each adaptive window. No memory beyond the output."""
    windows = list(_windows(problem))

    def block(n: slice) -> None:
        for p, q, h, w in windows:
            x[n, :, h, w].mean(axis=(2, 3), out=y[n, :, p, q])

    _over_images(block, x, y)


def adaptive_avg_backward(problem: AdaptivePool2dProblem, dy: Array, dx: Array) -> None:
    """Each element's share of the windows that cover it, windows in order."""
    windows = list(_windows(problem))

    def block(n: slice) -> None:
        target = dx[n]
        target[...] = 0
        for p, q, h, w in windows:
            share = dy[n, :, p, q] / dx.dtype.type((h.stop - h.start) * (w.stop - w.start))
            target[:, :, h, w] += share[:, :, None, None]

    _over_images(block, dx, dy)


def _windows(problem: AdaptivePool2dProblem) -> Iterator[tuple[int, int, slice, slice]]:
    for p, (top, bottom) in enumerate(adaptive_bounds(problem.H, problem.P)):
        for q, (left, right) in enumerate(adaptive_bounds(problem.W, problem.Q)):
            yield p, q, slice(top, bottom), slice(left, right)


def _over_images(block: Any, large: Array, small: Array) -> None:
    """Runs ``block`` on ranges of images, several threads at a time."""
    images = large.shape[0]
    image_bytes = max(1, large.nbytes // max(1, images))
    parallel_for(
        images,
        quiet(lambda start, stop: block(slice(start, stop))),
        bytes_moved=large.nbytes + small.nbytes,
        block=max(1, _BLOCK_BYTES // image_bytes),
    )
