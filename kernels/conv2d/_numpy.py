"""2-D convolution in NumPy: every direction is a matrix product over blocks of columns that fit the L2 cache.

A block is some images, some groups and some output rows. Each tap of the kernel becomes rows of a column matrix, and
one product per group does the arithmetic. The matrix lies in memory as its source does:

- runs (NCHW, stride 1): a tap is one shifted run over a whole plane, read where it lies. The runs are long, at the
  price of a few columns that straddle two output rows and are never written out.
- pixels (channels-last with enough channels, and NCHW where a tenth of the columns would straddle): a pixel's window is
  a few runs of its channels, without extra columns. 13x13 planes took 5 to 15 % less time so, 56x56 up to 8 % more.
- windows: everything else, element by element along the output rows.

Depthwise convolution has no product to make. Its source is staged in channels-last order, and windows are weighted and
summed where they lie, one ``einsum`` a block with output rows of all channels as runs: 1.3 times as fast as columns
in NCHW, 2.6 times in channels-last memory (one thread).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .._arrays import Array
from .._parallel import parallel_for, quiet
from ..activation._numpy import apply
from ._problem import Conv2dProblem

# Columns and products of a block together: a 2 MB L2 cache. Half as much was up to 15 % slower (more, smaller calls), a
# quarter up to 40 %.
_BLOCK_BYTES = 2 * 1024 * 1024
# Partial weight gradients that are summed at the end: enough for every core to have some, bounded in memory.
_MAX_SLABS = 16
_SLAB_BYTES = 32 * 1024 * 1024
# Bytes of a block per byte of its output where windows are summed in place: source, product, result, and as much again.
_CHANNELS_FACTOR = 3
# Channels a group from which on a pixel's channels are a run worth copying.
_PIXEL_CHANNELS = 8


@dataclass(frozen=True)
class _Geometry:
    """A correlation of a source ``[N, C, H, W]`` with ``R x S`` taps into ``[N, K, P, Q]``: forward, or the input's
    gradient as one (then padding may be negative: it crops)."""

    N: int
    C: int  # channels a group
    K: int  # outputs a group
    G: int
    R: int
    S: int
    H: int
    W: int
    P: int
    Q: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int
    layout: str  # of columns: "runs", "pixels" or "windows"; or "channels", which has none
    staged: bool  # the source is copied into a padded buffer first

    @property
    def width(self) -> int:
        """Width of the staged source."""
        return (self.Q - 1) * self.stride[1] + (self.S - 1) * self.dilation[1] + 1

    @property
    def pitch(self) -> int:
        """Columns between the starts of two output rows."""
        return self.Q if self.layout != "runs" else self.width if self.staged else self.W

    def height(self, rows: int) -> int:
        """Height of the staged source of ``rows`` output rows."""
        return (rows - 1) * self.stride[0] + (self.R - 1) * self.dilation[0] + 1

    @property
    def pixels_and_run(self) -> tuple[int, int]:
        """How an output row of all channels, ``Q·G`` elements in channels-last memory, is cut into runs."""
        return (1, self.Q * self.G) if self.stride[1] == 1 else (self.Q, self.G)

    @property
    def taps(self) -> int:
        return self.C * self.R * self.S


def _geometry(
    problem: Conv2dProblem,
    source: Array,
    channels: tuple[int, int],
    size: tuple[int, int],
    stride: tuple[int, int],
    top: int,
    left: int,
) -> _Geometry:
    """The correlation of ``source`` into planes of ``size``, with its columns laid out as the source lies in memory."""
    C, K, G = channels[0] // problem.groups, channels[1] // problem.groups, problem.groups
    N, _, H, W = source.shape
    R, S = problem.R, problem.S
    straddling = stride == (1, 1) and size[1] < 0.9 * W  # of runs, a tenth and more would be dropped
    if C >= _PIXEL_CHANNELS and (_is_channels_last(source) or straddling):
        layout = "pixels"
    elif C == K == 1 and G >= _PIXEL_CHANNELS:
        layout = "channels"
    else:
        # fewer rows of columns than of outputs: copying rows of them is less than dropping columns of outputs
        layout = "runs" if stride == (1, 1) and C * R * S >= K else "windows"
    g = _Geometry(N, C, K, G, R, S, H, W, *size, stride, problem.dilation, top, left, layout, staged=True)
    if layout == "runs":
        in_place = g.Q <= W and _rows_are_dense(source)
    else:
        in_place = top == left == 0 and g.height(g.P) <= H and g.width <= W
        in_place = in_place and (layout == "windows" or _is_channels_last(source))
    return replace(g, staged=not in_place)


def _is_channels_last(a: Array) -> bool:
    return a.strides[1] == a.itemsize and a.shape[1] > 1


def _rows_are_dense(a: Array) -> bool:
    return a.strides[3] == a.itemsize and a.strides[2] == a.shape[3] * a.itemsize


class _Block(NamedTuple):
    images: slice
    groups: slice
    rows: slice

    @property
    def sizes(self) -> tuple[int, int, int]:
        images, groups, rows = (s.stop - s.start for s in self)
        return images, groups, rows

    def channels(self, per_group: int) -> slice:
        return slice(self.groups.start * per_group, self.groups.stop * per_group)


def _blocks(g: _Geometry, itemsize: int, rows: int) -> list[_Block]:
    """Cuts the output: groups first, then images, so that copies stay long; down to ``rows`` where an image is too
    much."""
    row_bytes = (g.taps + g.K) * g.pitch * itemsize
    rows = max(min(rows, g.P), min(g.P, _BLOCK_BYTES // row_bytes))
    groups = max(1, min(g.G, _BLOCK_BYTES // (row_bytes * rows)))
    if g.layout == "channels":  # all of them make the longest runs
        groups, row_bytes = g.G, _CHANNELS_FACTOR * g.G * g.pitch * itemsize
        rows = max(1, min(g.P, _BLOCK_BYTES // row_bytes))
    images = max(1, min(g.N, _BLOCK_BYTES // (row_bytes * rows * groups)))
    return [_Block(n, k, p) for n in _cut(g.N, images) for k in _cut(g.G, groups) for p in _cut(g.P, rows)]


def _cut(n: int, size: int) -> Iterator[slice]:
    """Ranges of about ``size`` that cover ``range(n)`` and are as even as can be."""
    count = -(-n // size)
    return (slice(n * i // count, n * (i + 1) // count) for i in range(count))


class _Scratch:
    """Buffers of one worker, grown when a block needs more: allocating them anew would fault in every page again."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._buffers: dict[str, Array] = {}

    def get(self, name: str, *shape: int) -> Array:
        size = prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.zeros(size, self._dtype)
        return buffer[:size].reshape(shape)

    def planes(self, name: str, channels_last: bool, images: int, channels: int, height: int, width: int) -> Array:
        """``[images, channels, height, width]``, in memory either in the order (C, N, H, W) or (N, H, W, C)."""
        if channels_last:
            return self.get(name, images, height, width, channels).transpose(0, 3, 1, 2)
        return self.get(name, channels, images, height, width).swapaxes(0, 1)


def _overlap(first: int, length: int, size: int) -> tuple[slice, slice]:
    """Of ``length`` places from ``first`` on, those that lie on an axis of ``size``, and where on the axis."""
    start, stop = min(max(first, 0), size), max(min(first + length, size), 0)
    start = min(start, stop)
    before = min(max(-first, 0), length)
    return slice(before, before + stop - start), slice(start, stop)


def _stage(g: _Geometry, source: Array, block: _Block, scratch: _Scratch) -> Array:
    """What a block reads of the source, ``[images, channels, height, width]``, with its padding."""
    images, groups, rows = block.sizes
    channels = block.channels(g.C)
    height, width = g.height(rows), g.width
    first = block.rows.start * g.stride[0] - g.top
    if not g.staged:
        return source[block.images, channels, first : first + height, :width]
    vertical, inside_h = _overlap(first, height, g.H)
    horizontal, inside_w = _overlap(-g.left, width, g.W)
    staged = scratch.planes("staged", g.layout in ("pixels", "channels"), images, groups * g.C, height, width)
    staged[:, :, : vertical.start] = 0
    staged[:, :, vertical.stop :] = 0
    staged[:, :, vertical, : horizontal.start] = 0
    staged[:, :, vertical, horizontal.stop :] = 0
    staged[:, :, vertical, horizontal] = source[block.images, channels, inside_h, inside_w]
    return staged


def _columns(g: _Geometry, source: Array, block: _Block, scratch: _Scratch) -> Array:
    """The column matrix of each group of a block, ``[groups, taps, images·rows·pitch]``.

    Taps are in the order (S, R, C), of pixels (R, S, C): see `_matrix_weights`.
    """
    images, groups, rows = block.sizes
    size = images * rows * g.pitch
    if g.layout == "runs":
        return _run_columns(g, source, block, scratch)
    staged = _stage(g, source, block, scratch)
    n, c, h, w = staged.strides
    down, right = h * g.dilation[0], w * g.dilation[1]
    windows = as_strided(
        staged,
        (images, groups, g.C, g.R, g.S, rows, g.Q),
        (n, c * g.C, c, down, right, h * g.stride[0], w * g.stride[1]),
    )
    if g.layout == "pixels":
        columns = scratch.get("columns", images, rows, g.Q, groups, g.R, g.S, g.C)
        np.copyto(columns, windows.transpose(0, 5, 6, 1, 3, 4, 2))
        return columns.reshape(size, groups, g.taps).transpose(1, 2, 0)
    columns = scratch.get("columns", groups, g.S, g.R, g.C, images, rows, g.Q)
    np.copyto(columns, windows.transpose(1, 4, 3, 2, 0, 5, 6))
    return columns.reshape(groups, g.taps, size)


def _run_columns(g: _Geometry, source: Array, block: _Block, scratch: _Scratch) -> Array:
    """:func:`_columns` as shifted planes, with zeros where a shift leaves its row or plane."""
    images, groups, rows = block.sizes
    first, left = block.rows.start - g.top, g.left
    if g.staged:
        planes, first, left = _stage(g, source, block, scratch), 0, 0
    else:
        planes = source[block.images, block.channels(g.C)]
    size, length = planes.shape[2] * planes.shape[3], rows * g.pitch
    n, c, _, item = planes.strides
    planes = as_strided(planes, (groups, g.C, images, size), (c * g.C, c, n, item))
    if g.R == g.S == images == 1 and left == 0 and first >= 0 and first * g.pitch + length <= size:
        inside = slice(first * g.pitch, first * g.pitch + length)
        return planes[..., inside].reshape(groups, g.C, length)  # a 1x1 kernel: the planes are the columns
    columns = scratch.get("columns", groups, g.S, g.R, g.C, images, length)
    by_row = columns.reshape(groups, g.S, g.R, g.C, images, rows, g.pitch)
    needed = length - g.pitch + g.Q  # what lies behind may stay stale: no output depends on it
    down, right = g.dilation[0] * g.pitch, g.dilation[1]
    start = first * g.pitch - left
    in_rows = left == 0 and (g.staged or g.width <= g.W)
    if in_rows and start >= 0 and start + (g.R - 1) * down + (g.S - 1) * right + needed <= size:
        # nothing leaves its row or plane: all taps in one copy
        shape = (groups, g.S, g.R, g.C, images, needed)
        shifted = as_strided(planes[..., start:], shape, (c * g.C, right * item, down * item, c, n, item))
        np.copyto(columns[..., :needed], shifted)
        return columns.reshape(groups, g.taps, images * length)
    for s in range(g.S):
        shift = s * g.dilation[1] - left
        for r in range(g.R):
            tap = columns[:, s, r]
            covered, inside = _overlap((first + r * g.dilation[0]) * g.pitch + shift, length, size)
            np.copyto(tap[..., covered], planes[..., inside])
            if covered.start > 0:
                tap[..., : covered.start] = 0
            if covered.stop < needed:
                tap[..., covered.stop :] = 0
        in_row, _ = _overlap(shift, g.Q, g.W + g.width * g.staged)
        if in_row.start > 0:
            by_row[:, s, ..., : in_row.start] = 0
        if in_row.stop < g.Q:
            by_row[:, s, ..., in_row.stop : g.Q] = 0
    return columns.reshape(groups, g.taps, images * length)


def _matrix(g: _Geometry, outputs: Array, scratch: _Scratch, name: str) -> tuple[Array, Array | None]:
    """The matrix ``[groups, K, images·rows·pitch]`` that belongs to a block of outputs ``[images, groups·K, rows, Q]``.

    Either the block itself, where its memory is such a matrix, or a buffer in the memory order of the block or the
    columns; then comes also the part of the buffer that corresponds to the block.
    """
    images, channels, rows, _ = outputs.shape
    groups, size = channels // g.K, images * rows * g.pitch
    channels_last = (g.layout == "pixels" or _is_channels_last(outputs)) and g.K >= _PIXEL_CHANNELS
    if g.pitch == g.Q:
        if channels_last and outputs.transpose(0, 2, 3, 1).flags.c_contiguous:
            return outputs.transpose(0, 2, 3, 1).reshape(size, groups, g.K).transpose(1, 2, 0), None
        if images == 1 and _rows_are_dense(outputs) and g.layout != "pixels":
            return outputs[0].reshape(groups, g.K, size), None
    buffer = scratch.planes(name, channels_last, images, channels, rows, g.pitch)
    if channels_last:
        matrix = buffer.transpose(0, 2, 3, 1).reshape(size, groups, g.K).transpose(1, 2, 0)
    else:
        matrix = buffer.swapaxes(0, 1).reshape(groups, g.K, size)
    return matrix, buffer[..., : g.Q]


def _channel_windows(g: _Geometry, source: Array, block: _Block, scratch: _Scratch) -> Array:
    """The windows of every pixel, ``[images, rows, R, S, pixels, run]``, as a view of the staged source.

    A run is a whole row of pixels with their channels where they are neighbours, else one pixel's channels.
    """
    images, _, rows = block.sizes
    staged = _stage(g, source, block, scratch).transpose(0, 2, 3, 1)
    n, h, w, c = staged.strides
    return as_strided(
        staged,
        (images, rows, g.R, g.S, *g.pixels_and_run),
        (n, h * g.stride[0], h * g.dilation[0], w * g.dilation[1], w * g.stride[1], c),
    )


def _gradient(g: _Geometry, dy: Array, block: _Block, scratch: _Scratch) -> Array:
    """The outputs' gradient as a matrix ``[groups, K, images·rows·pitch]``, zero in columns that straddle rows."""
    outputs = dy[block.images, block.channels(g.K), block.rows]
    matrix, view = _matrix(g, outputs, scratch, "gradient")
    if view is not None:
        if g.pitch != g.Q:
            matrix[...] = 0
        np.copyto(view, outputs)
    return matrix


def _matrix_weights(g: _Geometry, weights: Array) -> Array:
    """``[G, K, C, R, S]`` as ``[G, K, taps]``, with the taps in the order of the columns."""
    weights = weights.transpose((0, 1, 3, 4, 2) if g.layout == "pixels" else (0, 1, 4, 3, 2))
    return np.ascontiguousarray(weights).reshape(g.G, g.K, g.taps)


def _multiply(g: _Geometry, weights: Array, columns: Array, target: Array, scratch: _Scratch) -> Array | None:
    """The products of a block: written into ``target``, or in a buffer of which the part that belongs there returns."""
    images, channels = target.shape[:2]
    if g.pitch == g.Q and _rows_are_dense(target) and g.layout != "pixels":  # one product an image
        by_image = columns.reshape(channels // g.K, g.taps, images, -1).transpose(2, 0, 1, 3)
        np.matmul(weights, by_image, out=target.reshape(images, channels // g.K, g.K, -1))
        return None
    product, result = _matrix(g, target, scratch, "product")
    np.matmul(weights, columns, out=product)
    return result


def _row_weights(g: _Geometry, weights: Array) -> Array:
    """``[G, 1, 1, R, S]`` as ``[R, S, pixels, run]``: repeated for each pixel of an output row."""
    by_tap = weights.reshape(g.G, g.R, g.S).transpose(1, 2, 0)[:, :, None]
    return np.ascontiguousarray(np.broadcast_to(by_tap, (g.R, g.S, g.Q, g.G))).reshape(g.R, g.S, *g.pixels_and_run)


def _correlate(g: _Geometry, source: Array, weights: Array, bias: Array | None, activation: str, target: Array) -> None:
    """``target = act(correlate(source, weights [G, K, C, R, S]) + bias)``."""
    blocks = _blocks(g, target.itemsize, rows=1)
    factors = _row_weights(g, weights) if g.layout == "channels" else _matrix_weights(g, weights)

    @quiet
    def run(start: int, stop: int) -> None:
        scratch = _Scratch(target.dtype)
        for block in blocks[start:stop]:
            outputs = block.channels(g.K)
            destination = target[block.images, outputs, block.rows]
            result: Array | None
            if g.layout == "channels":
                result = scratch.planes("product", True, *destination.shape)
                product = result.transpose(0, 2, 3, 1).reshape(*block.sizes[::2], *g.pixels_and_run)
                np.einsum("nprsqc,rsqc->npqc", _channel_windows(g, source, block, scratch), factors, out=product)
            else:
                result = _multiply(g, factors[block.groups], _columns(g, source, block, scratch), destination, scratch)
            if bias is not None:
                np.add(destination if result is None else result, bias[outputs, None, None], out=destination)
            elif result is not None:
                np.copyto(destination, result)
            apply(activation, destination, destination)

    parallel_for(len(blocks), run, bytes_moved=source.nbytes + target.nbytes, products=target.size * g.taps)


def forward(problem: Conv2dProblem, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """``y = act(conv(x, w) + bias)``. Extra memory: about 3 MB a thread."""
    g = _forward_geometry(problem, x)
    _correlate(g, x, w.reshape(g.G, g.K, g.C, g.R, g.S), bias, problem.activation, y)


def _forward_geometry(problem: Conv2dProblem, x: Array) -> _Geometry:
    top, _, left, _ = problem.padding
    return _geometry(problem, x, (problem.C, problem.K), (problem.P, problem.Q), problem.stride, top, left)


def input_grad(problem: Conv2dProblem, dy: Array, w: Array, dx: Array) -> None:
    """The gradient of the input: for stride 1 a correlation of ``dy`` with the flipped kernel. Else, and where the
    input has fewer channels than the output, products whose columns are added back to where they came from (no
    multiplication is wasted on zeros between strides, and fewer elements are moved)."""
    G = problem.groups
    grouped = w.reshape(G, problem.K // G, problem.C // G, problem.R, problem.S)
    if problem.stride != (1, 1) or problem.C < problem.K:
        _scatter(_forward_geometry(problem, dx), dy, grouped, dx)
        return
    top, _, left, _ = problem.padding
    down, right = problem.dilation[0] * (problem.R - 1), problem.dilation[1] * (problem.S - 1)
    channels, size = (problem.K, problem.C), (problem.H, problem.W)
    g = _geometry(problem, dy, channels, size, (1, 1), down - top, right - left)
    _correlate(g, dy, grouped[..., ::-1, ::-1].swapaxes(1, 2), None, "none", dx)


def _scatter(g: _Geometry, dy: Array, weights: Array, dx: Array) -> None:
    """``dx`` as products ``weights [G, K, C, R, S] · dy``, each tap's row added to the elements it was taken from."""
    if g.layout == "channels" or not _is_channels_last(dx):
        g = replace(g, layout="runs" if g.stride == (1, 1) and g.taps >= g.K else "windows")
    g = replace(g, staged=True)
    blocks = _blocks(g, dx.itemsize, rows=g.P)
    matrix_weights = np.ascontiguousarray(_matrix_weights(g, weights).swapaxes(1, 2))
    vertical = [_meeting(r * g.dilation[0] - g.top, g.stride[0], g.H, g.P) for r in range(g.R)]
    horizontal = [_meeting(s * g.dilation[1] - g.left, g.stride[1], g.W, g.Q) for s in range(g.S)]

    def add_windows(taps: Array, target: Array) -> None:
        target[...] = 0
        grouped = target.reshape(*taps.shape[2:5], *target.shape[2:])
        for r, (p, h) in enumerate(vertical):
            for s, (q, w) in enumerate(horizontal):
                grouped[..., h, w] += taps[r, s, ..., p, q]

    def add_runs(taps: Array, target: Array, scratch: _Scratch) -> None:
        images, channels = target.shape[:2]
        height, length = g.height(g.P), g.P * g.pitch
        # one more row: the columns behind the last output element are zeros that go there
        padded = scratch.planes("staged", False, images, channels, height + 1, g.width)
        padded[...] = 0
        planes = padded.swapaxes(0, 1).reshape(channels, images, -1)
        for r in range(g.R):
            for s in range(g.S):
                first = r * g.dilation[0] * g.pitch + s * g.dilation[1]
                tap = taps[r, s].transpose(1, 2, 0, 3, 4)
                planes[..., first : first + length] += tap.reshape(channels, images, length)
        np.copyto(target, padded[:, :, g.top : g.top + g.H, g.left : g.left + g.W])

    @quiet
    def run(start: int, stop: int) -> None:
        scratch = _Scratch(dx.dtype)
        for block in blocks[start:stop]:
            images, groups, _ = block.sizes
            size = images * g.P * g.pitch
            gradient = _gradient(g, dy, block, scratch)
            target = dx[block.images, block.channels(g.C)]
            if g.layout == "pixels":
                columns = scratch.get("columns", images, g.P, g.Q, groups, g.R, g.S, g.C)
                product = columns.reshape(size, groups, g.taps).transpose(1, 2, 0)
                taps = columns.transpose(4, 5, 0, 3, 6, 1, 2)
            else:
                columns = scratch.get("columns", groups, g.S, g.R, g.C, images, g.P, g.pitch)
                product = columns.reshape(groups, g.taps, size)
                taps = columns.transpose(2, 1, 4, 0, 3, 5, 6)
            np.matmul(matrix_weights[block.groups], gradient, out=product)
            if g.layout == "runs":
                add_runs(taps, target, scratch)
            else:
                add_windows(taps, target)

    parallel_for(len(blocks), run, bytes_moved=dy.nbytes + dx.nbytes, products=dy.size * g.taps)


def _meeting(offset: int, stride: int, size: int, count: int) -> tuple[slice, slice]:
    """Along one axis, the windows whose tap at ``offset`` lies inside the input, and the elements it meets there."""
    first = max(0, -(offset // stride))
    last = min(count, (size - 1 - offset) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    return slice(first, last), slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)


def weight_grad(problem: Conv2dProblem, x: Array, dy: Array, dw: Array, db: Array | None) -> None:
    """The gradients of weight and bias. Blocks are summed in slabs, slabs in order: the same bits for any thread count.

    Extra memory: the slabs, at most 32 MB or two weights.
    """
    g = _forward_geometry(problem, x)
    _accumulate(g, x, dy, dw, db)
    if g.pitch != g.Q and not np.isfinite(dw).all():
        # Columns that straddle rows meet zeros of dy. Where one is infinite or NaN the product is NaN, and reaches taps
        # that never see that element: such a gradient is computed again from the needed columns alone.
        _accumulate(replace(g, layout="windows", staged=True), x, dy, dw, db)


def _accumulate(g: _Geometry, x: Array, dy: Array, dw: Array, db: Array | None) -> None:
    blocks = _blocks(g, dw.itemsize, rows=1)
    slabs = max(1, min(len(blocks), _MAX_SLABS, max(2, _SLAB_BYTES // max(1, dw.nbytes))))
    partial = np.zeros((slabs, g.G, g.taps, g.K), dw.dtype)
    partial_bias = np.zeros((slabs, g.G, g.K), dw.dtype)

    @quiet
    def run(start: int, stop: int) -> None:
        scratch = _Scratch(dw.dtype)
        for slab in range(start, stop):
            for block in blocks[len(blocks) * slab // slabs : len(blocks) * (slab + 1) // slabs]:
                if g.layout == "channels":
                    gradient = scratch.get("gradient", *block.sizes[::2], *g.pixels_and_run)
                    by_pixel = gradient.reshape(*block.sizes[::2], g.Q, g.G)
                    np.copyto(by_pixel, dy[block.images, :, block.rows].transpose(0, 2, 3, 1))
                    windows = _channel_windows(g, x, block, scratch)
                    by_run = np.einsum("nprsqc,npqc->rsqc", windows, gradient)
                    sums = by_run.reshape(g.R, g.S, g.Q, g.G).sum(axis=2)
                    partial[slab] += sums.transpose(2, 1, 0).reshape(g.G, g.taps, 1)
                    if db is not None:
                        partial_bias[slab, :, 0] += by_pixel.sum(axis=(0, 1)).sum(axis=0)
                    continue
                columns = _columns(g, x, block, scratch)
                gradient = _gradient(g, dy, block, scratch)
                # taps by outputs: the BLAS does 140 GFLOP/s this way round and 95 the other
                partial[slab, block.groups] += columns @ gradient.swapaxes(1, 2)
                if db is not None:
                    partial_bias[slab, block.groups] += gradient.sum(axis=2)

    parallel_for(slabs, run, bytes_moved=x.nbytes + dy.nbytes, products=dy.size * g.taps)
    total = partial.sum(axis=0)
    if g.layout == "pixels":
        total = total.reshape(g.G, g.R, g.S, g.C, g.K).transpose(0, 4, 3, 1, 2)
    else:
        total = total.reshape(g.G, g.S, g.R, g.C, g.K).transpose(0, 4, 3, 2, 1)
    np.copyto(dw.reshape(g.G, g.K, g.C, g.R, g.S), total)
    if db is not None:
        partial_bias.reshape(slabs, -1).sum(axis=0, out=db)
