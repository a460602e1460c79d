"""How the pooling kernels see memory: lanes of columns, walked down row by row.

A lane is a place along a row: of one image where channels are innermost (a tile is lanes by channels), of one plane
where columns are (a tile is lanes, each of a few neighbouring windows). A program keeps its lanes and walks down some
rows, so that whatever concerns rows is a scalar, whatever concerns columns is computed once, and rows that two windows
share are kept in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import INTERPRETED, divide


@triton.jit
def lanes_of(j, count, across, across_mul, across_shift, channels, channel_mul, channel_shift, PLANAR: tl.constexpr):
    """Image, channel (planar: of the lane's plane, else 0) and place along the row of lane ``j`` of ``count``, and
    whether there is such a lane; where not, those of lane 0. A row has ``across`` lanes."""
    ok = j < count
    inside = tl.where(ok, j, 0)
    line = divide(inside, across_mul, across_shift)
    place = inside - line * across
    if PLANAR:
        n = divide(line, channel_mul, channel_shift)
        c = line - n * channels
    else:
        n = line
        c = tl.zeros_like(line)
    return n, c, place, ok


@triton.jit
def by_lane(vector, PLANAR: tl.constexpr):
    """A vector over lanes as it is, or as the first axis of a tile with channels."""
    if PLANAR:
        return vector
    else:
        return vector[:, None]


@triton.jit
def channels_of(tile, channels, stride_x, stride_y, PLANAR: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offsets of a tile's channels in two tensors, and which of them exist; planar, a lane's plane says it all."""
    if PLANAR:
        return 0, 0, True
    else:
        c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
        return (c * stride_x)[None, :], (c * stride_y)[None, :], (c < channels)[None, :]


@triton.jit
def both(a, b, PLANAR: tl.constexpr):
    """A mask of lanes and one of channels, which planar tiles do not have."""
    if PLANAR:
        return a
    else:
        return a & b


@triton.jit
def exact(value):
    """The value in a type that compares and keeps it: its own. The interpreter takes bfloat16 for an integer."""
    if INTERPRETED:
        if value.dtype == tl.bfloat16:
            value = value.to(tl.float32)
    return value


@triton.jit
def greater(a, b):
    """The greater one, NaN if one of them is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def code_of(r, s, width, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, TAP_ROW: tl.constexpr):
    """A tap's number, or with ``TAP_ROW`` 0 how far it lies from its window's corner in the plane."""
    if TAP_ROW == 0:
        return r * DILATION_H * width + s * DILATION_W
    else:
        return r * TAP_ROW + s


@triton.jit
def first_inside(start, DILATION: tl.constexpr):
    """The first tap that does not lie before the plane."""
    return (tl.maximum(-start, 0) + (DILATION - 1)) // DILATION


@triton.jit
def last_nan(
    x_ptr, at, top, bottom, left, right, inner_ok, width, sxh, sxw,
    R: tl.constexpr, S: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, TAP_ROW: tl.constexpr,
    PLANAR: tl.constexpr,
):  # fmt: skip
    """The code of the last NaN in each lane's window, which goes from row ``top`` and column ``left`` to ``bottom`` and
    ``right``, ends not included; -1 where there is none. ``at`` is the offset of column ``left`` in any row."""
    code = tl.full(at.shape, -1, width.dtype)
    for tap in range(R * S):
        r, s = tap // S, tap % S
        h, w = top + r * DILATION_H, left + s * DILATION_W
        there = (w >= 0) & (w < tl.where((h >= 0) & (h < bottom), right, 0))
        value = tl.load(x_ptr + (at + h * sxh + s * DILATION_W * sxw), mask=both(there, inner_ok, PLANAR), other=0.0)
        value = exact(value)
        code = tl.where(value != value, code_of(r, s, width, DILATION_H, DILATION_W, TAP_ROW), code)
    return code


@triton.jit
def inverse_count(start, size, K: tl.constexpr, PAD: tl.constexpr, INCLUDE_PAD: tl.constexpr, ACC: tl.constexpr):
    """One over the rows (or columns) that count for the windows that start at ``start``."""
    stop = tl.minimum(start + K, size + PAD)
    if not INCLUDE_PAD:
        start, stop = tl.maximum(start, 0), tl.minimum(stop, size)
    return 1 / tl.maximum(stop - start, 1).to(ACC)


@triton.jit
def floor_share(i, count, share, LARGE: tl.constexpr):
    """``floor(i·size / count)``: where window ``i`` of ``count`` begins on an axis of ``size``. The ``share`` of one
    window is ``size // count``, what is left over, and how to divide by ``count``."""
    whole, rest, mul, shift = share
    if LARGE:  # the product passes 31 bits
        return i * whole + (i.to(tl.int64) * rest // count).to(tl.int32)
    else:
        return i * whole + divide(i * rest, mul, shift)


@triton.jit
def start_of(p, count, share, STRIDE: tl.constexpr, PAD: tl.constexpr, ADAPTIVE: tl.constexpr, LARGE: tl.constexpr):
    """Where window ``p`` begins on its axis, also before it."""
    if ADAPTIVE:
        return floor_share(p, count, share, LARGE)
    else:
        return p * STRIDE - PAD


@triton.jit
def bounds_of(
    p, size, count, share,
    K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, ADAPTIVE: tl.constexpr, LARGE: tl.constexpr,
):  # fmt: skip
    """Where window ``p`` begins on its axis and where it ends, which is behind its last element, of those inside."""
    start = start_of(p, count, share, STRIDE, PAD, ADAPTIVE, LARGE)
    if ADAPTIVE:
        return start, size - floor_share(tl.maximum(count - 1 - p, 0), count, share, LARGE)
    else:
        return tl.maximum(start, 0), tl.minimum(start + K, size)


@triton.jit
def inverse_length(
    p, size, count, share,
    K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, ADAPTIVE: tl.constexpr, LARGE: tl.constexpr,
    INCLUDE_PAD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One over the rows (or columns) that count for window ``p``."""
    if ADAPTIVE:
        start, stop = bounds_of(p, size, count, share, K, STRIDE, PAD, ADAPTIVE, LARGE)
        return 1 / tl.maximum(stop - start, 1).to(ACC)
    else:
        return inverse_count(p * STRIDE - PAD, size, K, PAD, INCLUDE_PAD, ACC)


@triton.jit
def split_columns(piece, COLUMNS: tl.constexpr):
    """The columns of a piece ``[lanes, COLUMNS]`` (2, 4 or 8), each a vector over lanes: registers get other names."""
    LANES: tl.constexpr = piece.shape[0]
    even, odd = tl.split(tl.reshape(piece, (LANES, COLUMNS // 2, 2)))
    if COLUMNS == 2:
        return tl.reshape(even, (LANES,)), tl.reshape(odd, (LANES,))
    elif COLUMNS == 4:
        c0, c2 = tl.split(even)
        c1, c3 = tl.split(odd)
        return c0, c1, c2, c3
    else:
        c04, c26 = tl.split(tl.reshape(even, (LANES, 2, 2)))
        c15, c37 = tl.split(tl.reshape(odd, (LANES, 2, 2)))
        c0, c4 = tl.split(c04)
        c2, c6 = tl.split(c26)
        c1, c5 = tl.split(c15)
        c3, c7 = tl.split(c37)
        return c0, c1, c2, c3, c4, c5, c6, c7


@triton.jit
def joined_columns(columns, COLUMNS: tl.constexpr):
    """The inverse of :func:`split_columns`."""
    LANES: tl.constexpr = columns[0].shape[0]
    if COLUMNS == 2:
        piece = tl.join(columns[0], columns[1])
    elif COLUMNS == 4:
        piece = tl.join(tl.join(columns[0], columns[2]), tl.join(columns[1], columns[3]))
    else:
        even = tl.join(tl.join(columns[0], columns[4]), tl.join(columns[2], columns[6]))
        odd = tl.join(tl.join(columns[1], columns[5]), tl.join(columns[3], columns[7]))
        piece = tl.join(even, odd)
    return tl.reshape(piece, (LANES, COLUMNS))


@triton.jit
def load_row(
    x_ptr, h, at, left, ok, inner_ok, H, W, sxh, sxw,
    LEFT: tl.constexpr, PIECE: tl.constexpr, RIGHT: tl.constexpr, SPACING: tl.constexpr, CHECKED: tl.constexpr,
    PLANAR: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """What the lanes' windows see of row ``h``, a tuple of columns: ``LEFT`` single ones from column ``left`` on,
    ``SPACING`` apart; then ``PIECE`` as one vector, and ``RIGHT`` single ones behind it. ``OTHER`` outside the plane.

    ``at`` is the offset, in any row, of the vector if there is one, else of column ``left``. What lies outside, at most
    a window further, is found out by one unsigned comparison.
    """
    if CHECKED:
        inside = h.to(tl.uint32) < H.to(tl.uint32)
        limit = tl.where(inside, W, 0).to(tl.uint32)
        lane = (x_ptr + tl.where(inside, h, 0) * sxh) + at
    else:
        limit = W.to(tl.uint32)
        lane = (x_ptr + h * sxh) + at
    columns = ()
    for k in tl.static_range(LEFT):
        there = ok
        if CHECKED:
            there = (left + k * SPACING).to(tl.uint32) < limit
        there = both(there, inner_ok, PLANAR)
        if PIECE > 0:
            columns = columns + (tl.load(lane + (k - LEFT), mask=there, other=OTHER),)
        else:
            columns = columns + (tl.load(lane + k * SPACING * sxw, mask=there, other=OTHER),)
    if PIECE > 0:
        there = ok
        if CHECKED:
            there = (left + LEFT).to(tl.uint32) < limit
        piece = lane[:, None] + tl.arange(0, PIECE)[None, :]
        columns = columns + split_columns(tl.load(piece, mask=there[:, None], other=OTHER), PIECE)
        for k in tl.static_range(PIECE, PIECE + RIGHT):
            there = (left + (LEFT + k)).to(tl.uint32) < limit
            columns = columns + (tl.load(lane + k, mask=there, other=OTHER),)
    return columns


@triton.jit
def load_rows(
    x_ptr, top, at, left, ok, inner_ok, H, W, sxh, sxw,
    FIRST: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, STRIDE_H: tl.constexpr, DILATION_H: tl.constexpr,
    LEFT: tl.constexpr, PIECE: tl.constexpr, RIGHT: tl.constexpr, SPACING: tl.constexpr, CHECKED: tl.constexpr,
    PLANAR: tl.constexpr, OTHER: tl.constexpr,
):  # fmt: skip
    """The columns of rows ``FIRST`` to ``LAST`` of the windows that start at row ``top``, one row after the other.

    Windows that share rows have them once, ``DILATION_H`` apart; others have ``ROWS`` each.
    """
    rows = ()
    for i in tl.static_range(FIRST, LAST):
        if ROWS == 0:
            h = top + i * DILATION_H
        else:
            h = top + (i // ROWS * STRIDE_H + i % ROWS * DILATION_H)
        rows = rows + load_row(
            x_ptr, h, at, left, ok, inner_ok, H, W, sxh, sxw,
            LEFT, PIECE, RIGHT, SPACING, CHECKED, PLANAR, OTHER,
        )  # fmt: skip
    return rows


@triton.jit
def row_exists(ok, left, p, P, ALWAYS: tl.constexpr):
    """``ok`` in row ``p`` if there is such a row, else nowhere. ``left`` is any number of each lane's, at most ``P`` or
    so: what a scalar says must be asked of vectors."""
    if ALWAYS:
        return ok
    else:
        return ok & (left < tl.where(p < P, 0x7FFFFFFF, -0x7FFFFFFF))


@triton.jit
def store_columns(y_ptr, at, columns, ok, COLUMNS: tl.constexpr):
    """Stores a tuple of neighbouring columns as one vector."""
    if COLUMNS == 1:
        tl.store(y_ptr + at, columns[0], mask=ok)
    else:
        piece = at[:, None] + tl.arange(0, COLUMNS)[None, :]
        tl.store(y_ptr + piece, joined_columns(columns, COLUMNS), mask=ok[:, None])
