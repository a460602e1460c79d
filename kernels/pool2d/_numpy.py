"""2-D pooling in NumPy, by blocks of images that fit the L2 cache.

Maxima take one pass a tap: a strided view of the input against a range of the output, so that no padded copy is made.
Means are separable: rows are added, then one small matrix product per row adds columns. Backwards of maxima scatter
through flat indices, in the order of the windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from .._arrays import Array
from .._parallel import parallel_for
from ._problem import AdaptivePool2dProblem, Pool2dProblem, adaptive_bounds

# Input of a block: with its output it stays in a 2 MB L2 cache. Half as much was 10 to 20 % slower on two threads: each
# call of NumPy ends in waiting for the interpreter lock.
_BLOCK_BYTES = 1024 * 1024
_LONGEST_BAND = 64  # columns of a row that a product may add: its work per output grows with the row
_MOST_PLANE_WORK = 8192  # multiply-adds a plane of average pooling as one product: about 0.15 us
_PLANS = 256  # problems whose slices and small matrices are kept: making them took longer than tiny inputs do
_MOST_COVERED = 16  # windows of a plane that one product may compute

AxisTaps = list[tuple[slice, slice]]
Tap = tuple[int, slice, slice, tuple[Any, ...]]  # its number, rows and columns of the input, windows
Window = tuple[int, int, slice, slice]  # its place in the output, its rows and columns of the input
Problem = Pool2dProblem | AdaptivePool2dProblem


def max_forward(problem: Pool2dProblem, x: Array, y: Array, index: Array | None) -> None:
    """The maximum of each window; ``index`` may be ``None``. Extra memory: a byte or two an output of a block."""
    taps, first_tap, offsets, corners = _max_plan(problem)
    first = first_tap if index is not None else None
    # an unpadded first tap starts every window: copied, it saves a comparison with -inf
    first_everywhere = problem.padding == (0, 0)

    def block(n: slice) -> None:
        source, best = x[n], y[n]
        code = None if first is None else np.empty_like(best, dtype=first.dtype)
        if first_everywhere:
            np.copyto(best, source[:, :, taps[0][1], taps[0][2]])
        else:
            best[...] = _lowest(y.dtype)
        if code is not None:
            code[...] = first
        for t, rows, columns, windows in taps[1:] if first_everywhere else taps:
            value, so_far = source[:, :, rows, columns], best[windows]
            if code is not None:
                # the number of a tap rises along the taps, so the last one that was greater is the largest of them
                number = np.greater(value, so_far).view(np.uint8).astype(code.dtype, copy=False)
                number *= code.dtype.type(t)
                np.maximum(code[windows], number, out=code[windows])
            np.maximum(so_far, value, out=so_far)
        if code is not None and index is not None:
            if best.dtype.kind == "f" and np.isnan(best.max()):
                _last_nan(taps, source, code)
            np.take(offsets, code, out=index[n], mode="clip")  # "raise" would buffer the output
            index[n] += corners

    _over_images(block, x, y)


@lru_cache(maxsize=_PLANS)
def _max_plan(problem: Pool2dProblem) -> tuple[list[Tap], Array, Array, Array]:
    return list(_taps(problem)), _first_tap(problem), *_index_tables(problem)


def _last_nan(taps: list[Tap], source: Array, code: Array) -> None:
    """Of several NaNs in a window the last one counts, and it counts more than any number."""
    for t, rows, columns, windows in taps:
        np.copyto(code[windows], code.dtype.type(t), where=np.isnan(source[:, :, rows, columns]))


def _index_tables(problem: Pool2dProblem) -> tuple[Array, Array]:
    """``h * W + w`` of each tap from its window's corner, and of each corner from the plane's start."""
    taps, starts = [], []
    for axis, count in ((0, problem.P), (1, problem.Q)):
        taps.append(np.arange(problem.kernel[axis], dtype=np.int64) * problem.dilation[axis])
        starts.append(np.arange(count, dtype=np.int64) * problem.stride[axis] - problem.padding[axis])
    offsets = np.add.outer(taps[0] * problem.W, taps[1]).ravel()
    return offsets, np.add.outer(starts[0] * problem.W, starts[1])


def _taps(problem: Pool2dProblem) -> Iterator[Tap]:
    """Each tap's number, the rows and columns of the input it meets, and the windows that it meets them for."""
    vertical = _axis_taps(problem, 0, problem.H, problem.P)
    horizontal = _axis_taps(problem, 1, problem.W, problem.Q)
    for r, (p, rows) in enumerate(vertical):
        for s, (q, columns) in enumerate(horizontal):
            yield r * problem.kernel[1] + s, rows, columns, (..., p, q)


def _axis_taps(problem: Pool2dProblem, axis: int, size: int, count: int) -> AxisTaps:
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


def max_backward(problem: Problem, dy: Array, index: Array, dx: Array) -> None:
    """``dx.flat[index] += dy`` in each plane, windows in order. Extra memory: two indices a block."""
    order = (0, 1, 2, 3) if dx.flags.c_contiguous else (0, 2, 3, 1)  # of memory
    step = 1 if dx.flags.c_contiguous else problem.C
    images = _images_per_block(dx)
    bases = _bases(problem, images, dx.flags.c_contiguous)

    def run(start: int, stop: int) -> None:
        where = np.empty_like(bases)  # one for all blocks: the pages of a fresh one cost more than the additions
        for first in range(start, stop, images):
            n = slice(first, min(first + images, stop))
            places = where[: n.stop - n.start]
            if step == 1:
                np.add(index[n], bases[: len(places)], out=places)
            else:
                np.multiply(index[n].transpose(order), step, out=places)
                places += bases[: len(places)]
            target, gradient = dx[n].transpose(order).reshape(-1), dy[n].transpose(order).reshape(-1)
            target.fill(0)
            if problem.overlapping:
                # one-dimensional, aligned and of one dtype, this takes 1.4 ns an element; phases of windows that do not
                # overlap took three times as long
                np.add.at(target, places.reshape(-1), gradient)
            else:
                target[places.reshape(-1)] = gradient

    parallel_for(problem.N, run, bytes_moved=dx.nbytes + dy.nbytes)


def _bases(problem: Problem, images: int, contiguous: bool) -> Array:
    """What turns an index in a plane into one into a block of images, in memory order. Written out once a call: added
    as a broadcast, the short rows of a plane cost more than the additions."""
    image, channel = np.arange(images, dtype=np.int64), np.arange(problem.C, dtype=np.int64)
    area, P, Q = problem.H * problem.W, problem.P, problem.Q
    if contiguous:
        planes = np.add.outer(image * problem.C, channel) * area
        return np.repeat(planes, P * Q).reshape(images, problem.C, P, Q)
    pixels = np.repeat(image * (area * problem.C), P * Q)
    return np.add.outer(pixels, channel).reshape(images, P, Q, problem.C)


def max_gather(problem: Problem, ddx: Array, index: Array, ddy: Array) -> None:
    """``ddy = ddx.flat[index]`` in each plane: the derivative of :func:`max_backward`."""
    planes = ddx.reshape(problem.N * problem.C, -1)
    np.copyto(ddy, np.take_along_axis(planes, index.reshape(len(planes), -1), axis=1).reshape(index.shape))


def avg_forward(problem: Pool2dProblem, x: Array, y: Array) -> None:
    """The mean of each window: rows added, then columns, then one division. Extra memory: the rows of a block."""
    vertical, horizontal, cover, band, divisors = _avg_plan(problem, x.dtype)

    def block(n: slice) -> None:
        source, total = x[n], y[n]
        if cover is not None and source.flags.c_contiguous:
            sums = source.reshape(-1, problem.H * problem.W) @ cover
        elif band is not None and _last_axis_is_dense(source):
            rows = np.empty((*source.shape[:2], problem.P, problem.W), source.dtype)
            _sum_rows(source, vertical, rows)
            sums = rows.reshape(-1, problem.W) @ band
        else:
            sums = None
        # the products multiply what a window does not cover by 0: NaN where that is not finite
        if sums is not None and np.isfinite(sums.sum()):
            np.divide(sums.reshape(total.shape), divisors, out=total)
        else:
            _sum_taps(source, vertical, horizontal, total)
            total /= divisors

    _over_images(block, x, y, 0 if band is None else x.size * problem.Q)


@lru_cache(maxsize=_PLANS)
def _avg_plan(
    problem: Pool2dProblem, dtype: np.dtype[Any]
) -> tuple[AxisTaps, AxisTaps, Array | None, Array | None, Array]:
    return (
        _axis_taps(problem, 0, problem.H, problem.P),
        _axis_taps(problem, 1, problem.W, problem.Q),
        _plane_band(problem, dtype),
        _row_band(problem, dtype),
        _divisors(problem, dtype),
    )


def _sum_rows(source: Array, vertical: AxisTaps, rows: Array) -> None:
    if all(p == slice(0, rows.shape[2]) for p, _ in vertical):
        np.copyto(rows, source[:, :, vertical[0][1]])
        rest = vertical[1:]
    else:
        rows[...] = 0
        rest = vertical
    for p, h in rest:
        rows[:, :, p] += source[:, :, h]


def _sum_taps(source: Array, vertical: AxisTaps, horizontal: AxisTaps, total: Array) -> None:
    total[...] = 0
    for p, h in vertical:
        for q, w in horizontal:
            total[:, :, p, q] += source[:, :, h, w]


def avg_backward(problem: Pool2dProblem, dy: Array, dx: Array) -> None:
    """Each element's share of the windows that cover it: the transpose of :func:`avg_forward`, in its two steps."""
    vertical, horizontal, cover, band, divisors = _avg_plan(problem, dx.dtype)

    def block(n: slice) -> None:
        target = dx[n]
        by_rows = band is not None and _last_axis_is_dense(target)
        share = np.divide(dy[n], divisors, order="C" if by_rows else "K")  # in the order that is read next
        if cover is not None and target.flags.c_contiguous:
            np.matmul(share.reshape(-1, problem.P * problem.Q), cover.T, out=target.reshape(-1, len(cover)))
            if np.isfinite(share.sum()):
                return
        elif band is not None and by_rows:
            rows = share.reshape(-1, problem.Q) @ band.T
            if np.isfinite(rows.sum()):
                _spread_rows(rows.reshape(*share.shape[:3], problem.W), vertical, target)
                return
        target[...] = 0
        for p, h in vertical:
            for q, w in horizontal:
                target[:, :, h, w] += share[:, :, p, q]

    _over_images(block, dx, dy, 0 if band is None else dx.size * problem.Q)


def _spread_rows(rows: Array, vertical: AxisTaps, target: Array) -> None:
    target[...] = 0
    for p, h in vertical:
        target[:, :, h] += rows[:, :, p]


def _row_band(problem: Pool2dProblem, dtype: np.dtype[Any]) -> Array | None:
    """``[W, Q]`` of ones where window ``q`` covers column ``w``; ``None`` where rows are so long that adding taps is
    faster than a product whose work grows with the row."""
    if problem.W > _LONGEST_BAND:
        return None
    return _band(problem, 1, problem.W, problem.Q, dtype)


def _plane_band(problem: Pool2dProblem, dtype: np.dtype[Any]) -> Array | None:
    """``[H·W, P·Q]`` of ones where a window covers an element, for planes so small that one product over the whole
    plane is faster than a call of NumPy's inner loop for each of its short rows."""
    if problem.W > _LONGEST_BAND or problem.H * problem.W * problem.P * problem.Q > _MOST_PLANE_WORK:
        return None
    vertical, horizontal = (
        _band(problem, axis, size, count, dtype)
        for axis, size, count in ((0, problem.H, problem.P), (1, problem.W, problem.Q))
    )
    return np.kron(vertical, horizontal)


def _band(problem: Pool2dProblem, axis: int, size: int, count: int, dtype: np.dtype[Any]) -> Array:
    band = np.zeros((size, count), dtype)
    for q, w in _axis_taps(problem, axis, size, count):
        band[np.arange(size)[w], np.arange(count)[q]] += 1
    return band


def _last_axis_is_dense(a: Array) -> bool:
    return a.strides[3] == a.itemsize


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
    windows, uniform = _adaptive_max_plan(problem)
    if uniform is not None and uniform.kernel != (problem.H, problem.W):
        max_forward(uniform, x, y, index)
        return

    def block(n: slice) -> None:
        for p, q, h, w in windows:
            values = x[n, :, h, w].reshape(n.stop - n.start, problem.C, -1)
            if index is None:
                values.max(axis=2, out=y[n, :, p, q])
                continue
            place = values.argmax(axis=2)[..., None]
            best = np.take_along_axis(values, place, axis=2)[..., 0]
            if np.isnan(best.max()):  # argmax finds the first NaN; torch's index is the last one's
                last = values.shape[2] - 1 - np.isnan(values)[..., ::-1].argmax(axis=2)
                place[..., 0] = np.where(np.isnan(best), last, place[..., 0])
            y[n, :, p, q] = best
            down, right = np.divmod(place[..., 0], w.stop - w.start)
            index[n, :, p, q] = (down + h.start) * problem.W + right + w.start

    _over_images(block, x, y)


@lru_cache(maxsize=_PLANS)
def _adaptive_max_plan(problem: AdaptivePool2dProblem) -> tuple[list[Window], Pool2dProblem | None]:
    return list(_windows(problem)), _uniform(problem)


def _uniform(problem: AdaptivePool2dProblem) -> Pool2dProblem | None:
    """The ordinary pooling with the same windows, where they all have one size and one distance."""
    kernel, stride = [], []
    for size, count in ((problem.H, problem.P), (problem.W, problem.Q)):
        bounds = adaptive_bounds(size, count)
        lengths, steps = {b - a for a, b in bounds}, {b[0] - a[0] for a, b in pairwise(bounds)} or {size}
        if len(lengths) > 1 or len(steps) > 1 or steps == {0}:
            return None
        kernel.append(lengths.pop())
        stride.append(steps.pop())
    kernels, strides = (kernel[0], kernel[1]), (stride[0], stride[1])
    return Pool2dProblem(problem.N, problem.C, problem.H, problem.W, kernels, strides, (0, 0))


def adaptive_avg_forward(problem: AdaptivePool2dProblem, x: Array, y: Array) -> None:
    """The mean of each adaptive window: one product per plane with the windows as a matrix where planes are small."""
    windows, cover, areas = _adaptive_avg_plan(problem, x.dtype)

    def block(n: slice) -> None:
        source, total = x[n], y[n]
        if cover is not None and source.flags.c_contiguous:
            sums = source.reshape(-1, problem.H * problem.W) @ cover
            if np.isfinite(sums.sum()):  # else NaN may have met a 0 of a window that does not hold it
                np.divide(sums.reshape(total.shape), areas, out=total)
                return
        for p, q, h, w in windows:
            source[:, :, h, w].sum(axis=(2, 3), out=total[:, :, p, q])
        total /= areas

    _over_images(block, x, y, 0 if cover is None else cover.shape[1] * x.size)


@lru_cache(maxsize=_PLANS)
def _adaptive_avg_plan(
    problem: AdaptivePool2dProblem, dtype: np.dtype[Any]
) -> tuple[list[Window], Array | None, Array]:
    return list(_windows(problem)), _cover(problem, dtype), _areas(problem, dtype)


def adaptive_avg_backward(problem: AdaptivePool2dProblem, dy: Array, dx: Array) -> None:
    """Each element's share of the windows that cover it, windows in order."""
    windows, cover, areas = _adaptive_avg_plan(problem, dx.dtype)

    def block(n: slice) -> None:
        target = dx[n]
        share = np.divide(dy[n], areas, order="C" if target.flags.c_contiguous else "K")
        if problem.P == problem.Q == 1:
            np.copyto(target, share)
            return
        if cover is not None and target.flags.c_contiguous:
            spread = share.reshape(-1, problem.P * problem.Q) @ cover.T
            if np.isfinite(spread.sum()):
                np.copyto(target, spread.reshape(target.shape))
                return
        target[...] = 0
        for p, q, h, w in windows:
            target[:, :, h, w] += share[:, :, p, q, None, None]

    _over_images(block, dx, dy, 0 if cover is None else cover.shape[1] * dx.size)


def _cover(problem: AdaptivePool2dProblem, dtype: np.dtype[Any]) -> Array | None:
    """``[H·W, P·Q]`` of ones where a window holds an element; ``None`` where that is more work than adding."""
    if problem.P * problem.Q > _MOST_COVERED:
        return None
    cover = np.zeros((problem.H, problem.W, problem.P, problem.Q), dtype)
    for p, q, h, w in _windows(problem):
        cover[h, w, p, q] = 1
    return cover.reshape(problem.H * problem.W, -1)


def _areas(problem: AdaptivePool2dProblem, dtype: np.dtype[Any]) -> Array:
    sizes = [[b - a for a, b in adaptive_bounds(n, m)] for n, m in ((problem.H, problem.P), (problem.W, problem.Q))]
    return np.multiply.outer(sizes[0], sizes[1]).astype(dtype)


def _windows(problem: AdaptivePool2dProblem) -> Iterator[Window]:
    for p, (top, bottom) in enumerate(adaptive_bounds(problem.H, problem.P)):
        for q, (left, right) in enumerate(adaptive_bounds(problem.W, problem.Q)):
            yield p, q, slice(top, bottom), slice(left, right)


def _over_images(block: Callable[[slice], None], large: Array, small: Array, products: int = 0) -> None:
    """Runs ``block`` on ranges of images, several threads at a time."""
    parallel_for(
        large.shape[0],
        lambda start, stop: block(slice(start, stop)),
        bytes_moved=large.nbytes + small.nbytes,
        block=_images_per_block(large),
        products=products,
    )


def _images_per_block(large: Array) -> int:
    images = large.shape[0]
    image_bytes = max(1, large.nbytes // max(1, images))
    return max(1, min(images, _BLOCK_BYTES // image_bytes))
