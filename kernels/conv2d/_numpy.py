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

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ... import autotune
from .._arrays import Array
from .._parallel import parallel_for, quiet
from ..activation._numpy import apply
from . import _numpy_space as space
from ._numpy_space import PIXEL_CHANNELS, Block, Geometry, is_channels_last, rows_are_dense
from ._problem import Conv2dProblem

# Columns and products of a block together: a 2 MB L2 cache. Half as much was up to 15 % slower (more, smaller calls), a
# quarter up to 40 %.
_BLOCK_BYTES = 2 * 1024 * 1024
# Partial weight gradients that are summed at the end: enough for every core to have some.
_MAX_SLABS = 16


def _default(_: space.Blocks | None) -> autotune.Config:
    return {"BLOCK_BYTES": _BLOCK_BYTES, "COLUMNS": "auto"}


def _weight_grad_default(_: space.Blocks | None) -> autotune.Config:
    return {"BLOCK_BYTES": _BLOCK_BYTES, "COLUMNS": "auto", "SLABS": _MAX_SLABS}


FORWARD, INPUT_GRAD = (space.tunable(direction, _default) for direction in ("forward", "input_grad"))
WEIGHT_GRAD = space.weight_grad(_weight_grad_default)
TUNABLES = (FORWARD, INPUT_GRAD, WEIGHT_GRAD)


def _config(tunable: autotune.Tunable, blocks: space.Blocks) -> autotune.Config:
    """Asked for once a call, and not where there is but one block."""
    return tunable.default(None) if blocks.is_one else autotune.resolve(tunable, blocks)


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


def _stage(g: Geometry, source: Array, block: Block, scratch: _Scratch) -> Array:
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


def _columns(g: Geometry, source: Array, block: Block, scratch: _Scratch) -> Array:
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


def _run_columns(g: Geometry, source: Array, block: Block, scratch: _Scratch) -> Array:
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


def _matrix(g: Geometry, outputs: Array, scratch: _Scratch, name: str) -> tuple[Array, Array | None]:
    """The matrix ``[groups, K, images·rows·pitch]`` that belongs to a block of outputs ``[images, groups·K, rows, Q]``.

    Either the block itself, where its memory is such a matrix, or a buffer in the memory order of the block or the
    columns; then comes also the part of the buffer that corresponds to the block.
    """
    images, channels, rows, _ = outputs.shape
    groups, size = channels // g.K, images * rows * g.pitch
    channels_last = (g.layout == "pixels" or is_channels_last(outputs)) and g.K >= PIXEL_CHANNELS
    if g.pitch == g.Q:
        if channels_last and outputs.transpose(0, 2, 3, 1).flags.c_contiguous:
            return outputs.transpose(0, 2, 3, 1).reshape(size, groups, g.K).transpose(1, 2, 0), None
        if images == 1 and rows_are_dense(outputs) and g.layout != "pixels":
            return outputs[0].reshape(groups, g.K, size), None
    buffer = scratch.planes(name, channels_last, images, channels, rows, g.pitch)
    if channels_last:
        matrix = buffer.transpose(0, 2, 3, 1).reshape(size, groups, g.K).transpose(1, 2, 0)
    else:
        matrix = buffer.swapaxes(0, 1).reshape(groups, g.K, size)
    return matrix, buffer[..., : g.Q]


def _channel_windows(g: Geometry, source: Array, block: Block, scratch: _Scratch) -> Array:
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


def _gradient(g: Geometry, dy: Array, block: Block, scratch: _Scratch) -> Array:
    """The outputs' gradient as a matrix ``[groups, K, images·rows·pitch]``, zero in columns that straddle rows."""
    outputs = dy[block.images, block.channels(g.K), block.rows]
    matrix, view = _matrix(g, outputs, scratch, "gradient")
    if view is not None:
        if g.pitch != g.Q:
            matrix[...] = 0
        np.copyto(view, outputs)
    return matrix


def _matrix_weights(g: Geometry, weights: Array) -> Array:
    """``[G, K, C, R, S]`` as ``[G, K, taps]``, with the taps in the order of the columns."""
    weights = weights.transpose((0, 1, 3, 4, 2) if g.layout == "pixels" else (0, 1, 4, 3, 2))
    return np.ascontiguousarray(weights).reshape(g.G, g.K, g.taps)


def _multiply(g: Geometry, weights: Array, columns: Array, target: Array, scratch: _Scratch) -> Array | None:
    """The products of a block: written into ``target``, or in a buffer of which the part that belongs there returns."""
    images, channels = target.shape[:2]
    if g.pitch == g.Q and rows_are_dense(target) and g.layout != "pixels":  # one product an image
        by_image = columns.reshape(channels // g.K, g.taps, images, -1).transpose(2, 0, 1, 3)
        np.matmul(weights, by_image, out=target.reshape(images, channels // g.K, g.K, -1))
        return None
    product, result = _matrix(g, target, scratch, "product")
    np.matmul(weights, columns, out=product)
    return result


def _row_weights(g: Geometry, weights: Array) -> Array:
    """``[G, 1, 1, R, S]`` as ``[R, S, pixels, run]``: repeated for each pixel of an output row."""
    by_tap = weights.reshape(g.G, g.R, g.S).transpose(1, 2, 0)[:, :, None]
    return np.ascontiguousarray(np.broadcast_to(by_tap, (g.R, g.S, g.Q, g.G))).reshape(g.R, g.S, *g.pixels_and_run)


def _correlate(
    tunable: autotune.Tunable,
    of: space.Blocks,
    source: Array,
    weights: Array,
    bias: Array | None,
    activation: str,
    target: Array,
) -> None:
    """``target = act(correlate(source, weights [G, K, C, R, S]) + bias)``."""
    config = _config(tunable, of)
    g = space.with_columns(of.g, config["COLUMNS"])
    blocks = space.cut_output(g, target.itemsize, 1, config["BLOCK_BYTES"])
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
    """``y = act(conv(x, w) + bias)``. Extra memory: about one and a half blocks a thread."""
    of = space.blocks_of("forward", problem, x, y)
    g = of.g
    _correlate(FORWARD, of, x, w.reshape(g.G, g.K, g.C, g.R, g.S), bias, problem.activation, y)


def input_grad(problem: Conv2dProblem, dy: Array, w: Array, dx: Array) -> None:
    """The gradient of the input: for stride 1 a correlation of ``dy`` with the flipped kernel. Else, and where the
    input has fewer channels than the output, products whose columns are added back to where they came from (no
    multiplication is wasted on zeros between strides, and fewer elements are moved)."""
    G = problem.groups
    grouped = w.reshape(G, problem.K // G, problem.C // G, problem.R, problem.S)
    if problem.stride != (1, 1) or problem.C < problem.K:
        _scatter(space.blocks_of("scatter", problem, dx, dy), dy, grouped, dx)
        return
    of = space.blocks_of("gradient", problem, dy, dx)
    _correlate(INPUT_GRAD, of, dy, grouped[..., ::-1, ::-1].swapaxes(1, 2), None, "none", dx)


def _scatter(of: space.Blocks, dy: Array, weights: Array, dx: Array) -> None:
    """``dx`` as products ``weights [G, K, C, R, S] · dy``, each tap's row added to the elements it was taken from."""
    config = _config(INPUT_GRAD, of)
    g = space.with_columns(of.g, config["COLUMNS"])
    blocks = space.cut_output(g, dx.itemsize, g.P, config["BLOCK_BYTES"])
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
    """The gradients of weight and bias. Blocks are summed in slabs, slabs in order: for one configuration the same
    bits for any thread count.

    Extra memory: the slabs, at most 32 MB or two weights.
    """
    of = space.blocks_of("weight_grad", problem, x, dy)
    config = _config(WEIGHT_GRAD, of)
    g = space.with_columns(of.g, config["COLUMNS"])
    _accumulate(g, config, x, dy, dw, db)
    if g.pitch != g.Q and not np.isfinite(dw).all():
        # Columns that straddle rows meet zeros of dy. Where one is infinite or NaN the product is NaN, and reaches taps
        # that never see that element: such a gradient is computed again from the needed columns alone.
        _accumulate(replace(g, layout="windows"), config, x, dy, dw, db)


def _accumulate(g: Geometry, config: autotune.Config, x: Array, dy: Array, dw: Array, db: Array | None) -> None:
    blocks = space.cut_output(g, dw.itemsize, 1, config["BLOCK_BYTES"])
    slabs = space.slabs_of(g, dw.itemsize, len(blocks), config["SLABS"])
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
