"""2-D convolution in NumPy: every direction is a matrix product over blocks of columns that fit the L2 cache.

A block is some images, some groups and some output rows. Its input is staged into a zero-padded buffer (or used where
it lies), each tap of the kernel becomes one row of a column matrix, and one product per group does the arithmetic. With
stride 1 a tap is a single shifted run over the whole padded plane: long copies, at the price of a few columns per row
that straddle two rows and are never written out. Depthwise convolution is the same with one channel a group: that took
half the time of multiplying and adding tap by tap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .._arrays import Array
from .._parallel import parallel_for, quiet
from ..activation._numpy import apply
from ._problem import Conv2dProblem

# Columns and products of a block together: half of a 2 MB L2 cache. Half or twice as much was 5 to 20 % slower.
_BLOCK_BYTES = 1024 * 1024
# Partial weight gradients that are summed at the end: enough for every core to have some, bounded in memory.
_MAX_SLABS = 16
_SLAB_BYTES = 32 * 1024 * 1024


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
    P: int
    Q: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int
    runs: bool  # taps as shifted runs over padded rows (stride 1 only), or exactly the columns that are needed

    @property
    def width(self) -> int:
        """Width of the staged input."""
        return (self.Q - 1) * self.stride[1] + (self.S - 1) * self.dilation[1] + 1

    @property
    def pitch(self) -> int:
        """Columns between the starts of two output rows."""
        return self.width if self.runs else self.Q

    def height(self, rows: int) -> int:
        """Height of the staged input of ``rows`` output rows."""
        return (rows - 1) * self.stride[0] + (self.R - 1) * self.dilation[0] + 1

    def columns(self, rows: int) -> int:
        """Columns of ``rows`` output rows of one image. The last run stops at the last output element."""
        return (rows - 1) * self.pitch + self.Q


@dataclass(frozen=True)
class _Block:
    images: slice
    groups: slice
    rows: slice

    @property
    def sizes(self) -> tuple[int, int, int]:
        images, groups, rows = (s.stop - s.start for s in (self.images, self.groups, self.rows))
        return images, groups, rows


def _blocks(g: _Geometry, itemsize: int) -> list[_Block]:
    """Cuts the output: groups first, then images, so that copies stay long; rows where one image is too much."""
    row_bytes = (g.C * g.R * g.S + g.K) * g.pitch * itemsize
    rows = max(1, min(g.P, _BLOCK_BYTES // row_bytes))
    groups = max(1, min(g.G, _BLOCK_BYTES // (row_bytes * rows)))
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
        size = int(np.prod(shape))
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, self._dtype)
        return buffer[:size].reshape(shape)


def _stage(g: _Geometry, source: Array, block: _Block, scratch: _Scratch) -> Array:
    """What a block reads of the source, with its padding: ``[images, channels, height, width]``, rows dense."""
    images, groups, rows = block.sizes
    channels = slice(block.groups.start * g.C, block.groups.stop * g.C)
    height, width = g.height(rows), g.width
    first = block.rows.start * g.stride[0] - g.top
    above, vertical = _overlap(first, height, source.shape[2])
    before, horizontal = _overlap(-g.left, width, source.shape[3])
    inside = source[block.images, channels, vertical, horizontal]
    if inside.shape[2:] == (height, width) and (not g.runs or _rows_are_dense(inside)):
        return inside
    staged = scratch.get("staged", images, groups * g.C, height, width)
    below, after = above + inside.shape[2], before + inside.shape[3]
    staged[:, :, :above] = 0
    staged[:, :, below:] = 0
    staged[:, :, above:below, :before] = 0
    staged[:, :, above:below, after:] = 0
    staged[:, :, above:below, before:after] = inside
    return staged


def _overlap(first: int, length: int, size: int) -> tuple[int, slice]:
    """Of ``length`` places from ``first`` on: how many lie before an axis, and the part of it that they meet."""
    start, stop = min(max(first, 0), size), min(max(first + length, 0), size)
    return min(max(-first, 0), length), slice(start, stop)


def _rows_are_dense(a: Array) -> bool:
    return a.strides[3] == a.itemsize and a.strides[2] == a.shape[3] * a.itemsize


def _columns(g: _Geometry, staged: Array, rows: int, scratch: _Scratch) -> Array:
    """The column matrix of each group, ``[groups, C·R·S, images·columns]``: one row a channel and tap."""
    images, channels = staged.shape[:2]
    length = g.columns(rows)
    if g.runs:
        planes = as_strided(
            staged, (images, channels, staged.shape[2] * staged.shape[3]), (*staged.strides[:2], staged.itemsize)
        )
        if g.R == g.S == images == 1:  # a 1x1 kernel needs no columns: the planes are them
            return planes.reshape(channels // g.C, g.C, length)
    columns = scratch.get("columns", channels, g.R, g.S, images, length)
    for r in range(g.R):
        for s in range(g.S):
            down, right = r * g.dilation[0], s * g.dilation[1]
            if g.runs:
                start = down * g.pitch + right
                np.copyto(columns[:, r, s], planes[:, :, start : start + length].swapaxes(0, 1))
            else:
                tap = staged[
                    :,
                    :,
                    down : down + (rows - 1) * g.stride[0] + 1 : g.stride[0],
                    right : right + (g.Q - 1) * g.stride[1] + 1 : g.stride[1],
                ]
                np.copyto(columns[:, r, s].reshape(channels, images, rows, g.Q), tap.swapaxes(0, 1))
    return columns.reshape(channels // g.C, g.C * g.R * g.S, images * length)


def _output_view(g: _Geometry, columns: Array, images: int, rows: int) -> Array:
    """``[outputs, images·columns]`` as ``[images, outputs, rows, Q]``, without the columns that straddle rows."""
    outputs, item = columns.shape[0], columns.itemsize
    length = g.columns(rows)
    strides = (length * item, images * length * item, g.pitch * item, item)
    return as_strided(columns, (images, outputs, rows, g.Q), strides)


def _correlate(g: _Geometry, source: Array, weights: Array, bias: Array | None, activation: str, target: Array) -> None:
    """``target = act(correlate(source, weights) + bias)`` with ``weights [G, K, C·R·S]``."""
    blocks = _blocks(g, target.itemsize)

    @quiet
    def run(start: int, stop: int) -> None:
        scratch = _Scratch(target.dtype)
        for block in blocks[start:stop]:
            images, groups, rows = block.sizes
            columns = _columns(g, _stage(g, source, block, scratch), rows, scratch)
            product = scratch.get("product", groups, g.K, columns.shape[2])
            np.matmul(weights[block.groups], columns, out=product)
            outputs = slice(block.groups.start * g.K, block.groups.stop * g.K)
            result = _output_view(g, product.reshape(groups * g.K, -1), images, rows)
            destination = target[block.images, outputs, block.rows]
            if bias is None:
                np.copyto(destination, result)
            else:
                np.add(result, bias[outputs, None, None], out=destination)
            apply(activation, destination, destination)

    parallel_for(len(blocks), run, bytes_moved=source.nbytes + target.nbytes, blas=True)


def forward(problem: Conv2dProblem, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """``y = act(conv(x, w) + bias)``. Extra memory: about 1 MB a thread."""
    top, _, left, _ = problem.padding
    g = _geometry(problem, problem.P, problem.Q, problem.stride, top, left)
    weights = w.reshape(g.G, g.K, g.C * g.R * g.S)
    _correlate(g, x, weights, bias, problem.activation, y)


def _geometry(
    problem: Conv2dProblem, P: int, Q: int, stride: tuple[int, int], top: int, left: int, runs: bool = True
) -> _Geometry:
    C, K = problem.C // problem.groups, problem.K // problem.groups
    R, S, runs = problem.R, problem.S, runs and stride == (1, 1)
    return _Geometry(problem.N, C, K, problem.groups, R, S, P, Q, stride, problem.dilation, top, left, runs)


def input_grad(problem: Conv2dProblem, dy: Array, w: Array, dx: Array) -> None:
    """The gradient of the input: for stride 1 a correlation of ``dy`` with the flipped kernel, else products whose
    columns are added back to where they came from (no multiplication is wasted on zeros between strides)."""
    G, K, C = problem.groups, problem.K // problem.groups, problem.C // problem.groups
    R, S = problem.R, problem.S
    grouped = w.reshape(G, K, C, R, S)
    top, _, left, _ = problem.padding
    if problem.stride == (1, 1):
        flipped = grouped[..., ::-1, ::-1].swapaxes(1, 2).reshape(G, C, K * R * S)
        down, right = problem.dilation[0] * (R - 1), problem.dilation[1] * (S - 1)
        g = _Geometry(
            problem.N, K, C, G, R, S, problem.H, problem.W, (1, 1), problem.dilation, down - top, right - left, True
        )
        _correlate(g, dy, flipped, None, "none", dx)
        return
    transposed = np.ascontiguousarray(grouped.reshape(G, K, C * R * S).swapaxes(1, 2))
    _scatter_columns(problem, dy, transposed, dx)


def _scatter_columns(problem: Conv2dProblem, dy: Array, weights: Array, dx: Array) -> None:
    """``dx`` as products ``weights [G, C·R·S, K] · dy``, each tap's row added to the elements it was taken from."""
    G, K, C = problem.groups, problem.K // problem.groups, problem.C // problem.groups
    R, S, P, Q = problem.R, problem.S, problem.P, problem.Q
    image_bytes = (C * R * S + K) * P * Q * dx.itemsize
    groups = max(1, min(G, _BLOCK_BYTES // image_bytes))
    images = max(1, min(problem.N, _BLOCK_BYTES // (image_bytes * groups)))
    everything = slice(0, P)
    blocks = [_Block(n, k, everything) for n in _cut(problem.N, images) for k in _cut(G, groups)]
    top, _, left, _ = problem.padding
    vertical = [_taps(r, problem.dilation[0], problem.stride[0], top, problem.H, P) for r in range(R)]
    horizontal = [_taps(s, problem.dilation[1], problem.stride[1], left, problem.W, Q) for s in range(S)]

    @quiet
    def run(start: int, stop: int) -> None:
        scratch = _Scratch(dx.dtype)
        for block in blocks[start:stop]:
            images, groups, _ = block.sizes
            gradient = scratch.get("gradient", groups * K, images, P, Q)
            np.copyto(gradient, dy[block.images, block.groups.start * K : block.groups.stop * K].swapaxes(0, 1))
            columns = scratch.get("columns", groups, C * R * S, images * P * Q)
            np.matmul(weights[block.groups], gradient.reshape(groups, K, -1), out=columns)
            taps = columns.reshape(groups * C, R, S, images, P, Q)
            target = dx[block.images, block.groups.start * C : block.groups.stop * C]
            target[...] = 0
            for r, (p, h) in enumerate(vertical):
                for s, (q, w) in enumerate(horizontal):
                    target[:, :, h, w] += taps[:, r, s, :, p, q].swapaxes(0, 1)

    parallel_for(len(blocks), run, bytes_moved=dy.nbytes + dx.nbytes, blas=True)


def _taps(tap: int, dilation: int, stride: int, padding: int, size: int, count: int) -> tuple[slice, slice]:
    """Along one axis, the windows whose ``tap`` lies inside the input, and the elements it meets there."""
    offset = tap * dilation - padding
    first = max(0, -(offset // stride))
    last = min(count, (size - 1 - offset) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    return slice(first, last), slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)


def weight_grad(problem: Conv2dProblem, x: Array, dy: Array, dw: Array, db: Array | None) -> None:
    """The gradients of weight and bias. Blocks are summed in slabs, slabs in order: the same bits for any thread count.

    Extra memory: the slabs, at most 32 MB or two weights.
    """
    top, _, left, _ = problem.padding
    runs = _geometry(problem, problem.P, problem.Q, problem.stride, top, left)
    _accumulate(runs, x, dy, dw, db)
    if runs.runs and not np.isfinite(dw).all():
        # Columns that straddle rows meet zeros of dy. Where one is infinite or NaN the product is NaN, and reaches taps
        # that never see that element: such a gradient is computed again from the needed columns alone.
        exact = _geometry(problem, problem.P, problem.Q, problem.stride, top, left, runs=False)
        _accumulate(exact, x, dy, dw, db)


def _accumulate(g: _Geometry, x: Array, dy: Array, dw: Array, db: Array | None) -> None:
    blocks = _blocks(g, dw.itemsize)
    slabs = max(1, min(len(blocks), _MAX_SLABS, max(2, _SLAB_BYTES // max(1, dw.nbytes))))
    partial = np.zeros((slabs, g.G, g.K, g.C * g.R * g.S), dw.dtype)
    partial_bias = np.zeros((slabs, g.G * g.K), dw.dtype)

    @quiet
    def run(start: int, stop: int) -> None:
        scratch = _Scratch(dw.dtype)
        for slab in range(start, stop):
            for block in blocks[len(blocks) * slab // slabs : len(blocks) * (slab + 1) // slabs]:
                images, groups, rows = block.sizes
                columns = _columns(g, _stage(g, x, block, scratch), rows, scratch)
                gradient = scratch.get("gradient", groups * g.K, columns.shape[2])
                outputs = slice(block.groups.start * g.K, block.groups.stop * g.K)
                if g.pitch != g.Q:
                    gradient[...] = 0
                np.copyto(_output_view(g, gradient, images, rows), dy[block.images, outputs, block.rows])
                product = scratch.get("product", groups, g.K, g.C * g.R * g.S)
                np.matmul(gradient.reshape(groups, g.K, -1), columns.swapaxes(1, 2), out=product)
                partial[slab, block.groups] += product
                if db is not None:
                    partial_bias[slab, outputs] += gradient.sum(axis=1)

    parallel_for(slabs, run, bytes_moved=x.nbytes + dy.nbytes, blas=True)
    np.copyto(dw, partial.sum(axis=0).reshape(dw.shape))
    if db is not None:
        partial_bias.sum(axis=0, out=db)
