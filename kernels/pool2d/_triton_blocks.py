"""The gradient of pooling with windows of a few taps, all unrolled.

``dx`` is cut into blocks of ``STRIDE_H`` by ``STRIDE_W`` elements. Which taps of which windows meet an element depends
on its place in the block only, so everything about taps is known at compile time. Lanes are places along a row of
blocks and walk down (:mod:`._triton_lanes`); a row of windows is read once and carried to the next rows of blocks that
it meets. Each element is written once, also where no window meets it; nothing is added in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import element_strides, rounded
from ._triton_lanes import both, by_lane, channels_of, inverse_count, lanes_of, load_rows, row_exists, store_columns

_SIZES = ["H", "W", "P", "Q", "channels", "lanes", "across", "rows", "tiles_c", "bands", "divisor"]
_DIVISORS = ["across_mul", "across_shift", "channel_mul", "channel_shift"]


@triton.jit(do_not_specialize=[*_SIZES[:-1], *_DIVISORS])
def max_blocks(
    dy_ptr,
    index_ptr,
    dx_ptr,
    H,
    W,
    P,
    Q,
    channels,
    lanes,
    across,
    rows,
    tiles_c,
    bands,
    across_mul,
    across_shift,
    channel_mul,
    channel_shift,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_yw,
    stride_in,
    stride_ic,
    stride_ih,
    stride_iw,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PERIOD_H: tl.constexpr,
    PERIOD_W: tl.constexpr,
    TAP_ROW: tl.constexpr,
    LEFT: tl.constexpr,
    PIECE: tl.constexpr,
    RIGHT: tl.constexpr,
    EACH: tl.constexpr,
    JOINED: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    CHECKED: tl.constexpr,
    PLANAR: tl.constexpr,
    X_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr,
    Y_INNER: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    I_INNER: tl.constexpr,
    I_ALIGN: tl.constexpr,
    C_ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_STEP: tl.constexpr,
):
    """``dx`` from ``dy`` and from where the maxima were: a tap's number, or with ``TAP_ROW`` 0 a place in the plane.

    A lane is ``EACH`` neighbouring blocks, of which ``across`` lanes make one of ``rows`` rows. It reads ``LEFT``,
    ``PIECE`` and ``RIGHT`` columns of windows. Every ``PERIOD``-th tap meets the same place in its block. Rows of lanes
    are vectors of ``dx`` where they are ``JOINED``.
    """
    channels = channels * C_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    sin, sic, sih, siw = element_strides(stride_in, stride_ic, stride_ih, stride_iw, I_INNER, I_ALIGN, WIDE)
    pid = tl.program_id(0)
    first = pid // tiles_c % bands * BLOCK_P
    j = pid // (tiles_c * bands) * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    n, c, place, ok = lanes_of(j, lanes, across, across_mul, across_shift, channels, channel_mul, channel_shift, PLANAR)
    inner_x, inner_y, inner_ok = channels_of(pid % tiles_c, channels, sxc, syc, PLANAR, BLOCK_C)
    inner_x, inner_i, inner_ok = channels_of(pid % tiles_c, channels, sxc, sic, PLANAR, BLOCK_C)

    # the first and the last row and column of windows that meet a block, from the block's own number
    A_MIN: tl.constexpr = -(((R - 1) * DILATION_H - PAD_H) // STRIDE_H)
    CARRIED: tl.constexpr = -(-PAD_H // STRIDE_H) - A_MIN
    B_MIN: tl.constexpr = -(((S - 1) * DILATION_W - PAD_W) // STRIDE_W)
    COLUMNS: tl.constexpr = LEFT + PIECE + RIGHT
    LAST: tl.constexpr = CARRIED + BLOCK_STEP

    lane_ok = by_lane(ok, PLANAR)
    left = by_lane(tl.where(ok, place * EACH + B_MIN, Q), PLANAR)
    w0 = by_lane(place * (EACH * STRIDE_W), PLANAR)
    to = by_lane(n * sxn + c * sxc, PLANAR) + w0 * sxw + inner_x
    if PIECE > 0:
        at_y = n * syn + c * syc + place * EACH
        at_i = n * sin + c * sic + place * EACH
    else:
        at_y = by_lane(n * syn + c * syc, PLANAR) + left * syw + inner_y
        at_i = by_lane(n * sin + c * sic, PLANAR) + left * siw + inner_i

    carried_y = load_rows(
        dy_ptr, first + A_MIN, at_y, left, lane_ok, inner_ok, P, Q, syh, syw,
        0, CARRIED, 0, 1, 1, LEFT, PIECE, RIGHT, 1, CHECKED, PLANAR, 0,
    )  # fmt: skip
    carried_i = load_rows(
        index_ptr, first + A_MIN, at_i, left, lane_ok, inner_ok, P, Q, sih, siw,
        0, CARRIED, 0, 1, 1, LEFT, PIECE, RIGHT, 1, CHECKED, PLANAR, 0,
    )  # fmt: skip
    for i in range(first, min(first + BLOCK_P, rows), BLOCK_STEP):
        dy = carried_y + load_rows(
            dy_ptr, i + A_MIN, at_y, left, lane_ok, inner_ok, P, Q, syh, syw,
            CARRIED, LAST, 0, 1, 1, LEFT, PIECE, RIGHT, 1, CHECKED, PLANAR, 0,
        )  # fmt: skip
        index = carried_i + load_rows(
            index_ptr, i + A_MIN, at_i, left, lane_ok, inner_ok, P, Q, sih, siw,
            CARRIED, LAST, 0, 1, 1, LEFT, PIECE, RIGHT, 1, CHECKED, PLANAR, 0,
        )  # fmt: skip
        for u in tl.static_range(BLOCK_STEP):
            for phase_h in tl.static_range(STRIDE_H):
                h = (i + u) * STRIDE_H + phase_h
                columns = ()
                for k in tl.static_range(EACH):
                    for phase_w in tl.static_range(STRIDE_W):
                        total = tl.zeros(at_y.shape, ACC)
                        for r in tl.static_range(R):
                            if (r * DILATION_H - PAD_H) % STRIDE_H == phase_h:
                                for s in tl.static_range(S):
                                    if (s * DILATION_W - PAD_W) % STRIDE_W == phase_w:
                                        # the window's place among those loaded: rows above each other, then columns
                                        value = dy[
                                            (u - (r * DILATION_H - PAD_H) // STRIDE_H - A_MIN) * COLUMNS
                                            + (k - (s * DILATION_W - PAD_W) // STRIDE_W - B_MIN)
                                        ]
                                        where = index[
                                            (u - (r * DILATION_H - PAD_H) // STRIDE_H - A_MIN) * COLUMNS
                                            + (k - (s * DILATION_W - PAD_W) // STRIDE_W - B_MIN)
                                        ]
                                        if TAP_ROW == 0:
                                            hit = where == W.to(tl.int64) * h + (w0 + (k * STRIDE_W + phase_w))
                                        else:
                                            hit = where == r * TAP_ROW + s
                                        if r >= PERIOD_H or s >= PERIOD_W:
                                            total = tl.where(hit, total + value.to(ACC), total)
                                        else:  # the first of its phase
                                            total = tl.where(hit, value.to(ACC), 0.0)
                        columns = columns + (rounded(total, dx_ptr.dtype.element_ty),)
                there = row_exists(lane_ok, left, h, H, ALL_ROWS)
                store_block_row(
                    dx_ptr + h * sxh, to, columns, w0, W, sxw, there, inner_ok, EACH * STRIDE_W, JOINED, PLANAR
                )
        carried_y = ()
        carried_i = ()
        for i_carried in tl.static_range(BLOCK_STEP * COLUMNS, LAST * COLUMNS):
            carried_y = carried_y + (dy[i_carried],)
            carried_i = carried_i + (index[i_carried],)


@triton.jit
def store_block_row(
    dx_ptr, to, columns, w0, W, sxw, ok, inner_ok,
    COLUMNS: tl.constexpr, JOINED: tl.constexpr, PLANAR: tl.constexpr,
):  # fmt: skip
    """Stores one row of the lanes' blocks, as one vector where that is ``JOINED``, else column by column."""
    if JOINED:
        store_columns(dx_ptr, to, columns, ok, COLUMNS)
    else:
        for k in tl.static_range(COLUMNS):
            there = both(ok & (w0 + k < W), inner_ok, PLANAR)
            tl.store(dx_ptr + (to + k * sxw), columns[k], mask=there)


@triton.jit
def along_blocks(
    rows, first, H, by_width, whole,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr, COUNTED: tl.constexpr,
    INCLUDE_PAD: tl.constexpr, EACH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of each row of windows, from row ``first`` on: what each column of the lanes' blocks gets of it, a tuple."""
    B_MIN: tl.constexpr = -((S - 1 - PAD_W) // STRIDE_W)
    shares = ()
    for r in tl.static_range(ROWS):
        if COUNTED:
            by_height = inverse_count((first + r) * STRIDE_H - PAD_H, H, R, PAD_H, INCLUDE_PAD, ACC)
        for k in tl.static_range(EACH):
            for phase_w in tl.static_range(STRIDE_W):
                total = tl.zeros(rows[0].shape, ACC)
                for s in tl.static_range(S):
                    if (s - PAD_W) % STRIDE_W == phase_w:
                        value = rows[r * COLUMNS + (k - (s - PAD_W) // STRIDE_W - B_MIN)].to(ACC)
                        if COUNTED:
                            value = value * (by_height * by_width[k - (s - PAD_W) // STRIDE_W - B_MIN])
                        else:
                            value = value * whole
                        if s >= STRIDE_W:
                            total = total + value
                        else:
                            total = value
                shares = shares + (total,)
    return shares


@triton.jit(do_not_specialize=[*_SIZES, *_DIVISORS])
def mean_blocks(
    dy_ptr,
    dx_ptr,
    H,
    W,
    P,
    Q,
    channels,
    lanes,
    across,
    rows,
    tiles_c,
    bands,
    divisor,
    across_mul,
    across_shift,
    channel_mul,
    channel_shift,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_yw,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    COUNTED: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    LEFT: tl.constexpr,
    PIECE: tl.constexpr,
    RIGHT: tl.constexpr,
    EACH: tl.constexpr,
    JOINED: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    CHECKED: tl.constexpr,
    PLANAR: tl.constexpr,
    X_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr,
    Y_INNER: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    C_ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_STEP: tl.constexpr,
):
    """``dx`` from ``dy`` of means: each window's share, ``1 / divisor`` or where ``COUNTED`` of what the window holds.

    Lanes as in :func:`max_blocks`. Sums along rows of windows are what is carried.
    """
    channels = channels * C_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    pid = tl.program_id(0)
    first = pid // tiles_c % bands * BLOCK_P
    j = pid // (tiles_c * bands) * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    n, c, place, ok = lanes_of(j, lanes, across, across_mul, across_shift, channels, channel_mul, channel_shift, PLANAR)
    inner_x, inner_y, inner_ok = channels_of(pid % tiles_c, channels, sxc, syc, PLANAR, BLOCK_C)

    A_MIN: tl.constexpr = -((R - 1 - PAD_H) // STRIDE_H)
    CARRIED: tl.constexpr = -(-PAD_H // STRIDE_H) - A_MIN
    B_MIN: tl.constexpr = -((S - 1 - PAD_W) // STRIDE_W)
    COLUMNS: tl.constexpr = LEFT + PIECE + RIGHT
    LAST: tl.constexpr = CARRIED + BLOCK_STEP
    ACROSS: tl.constexpr = EACH * STRIDE_W  # columns of a lane's blocks

    lane_ok = by_lane(ok, PLANAR)
    left = by_lane(tl.where(ok, place * EACH + B_MIN, Q), PLANAR)
    w0 = by_lane(place * ACROSS, PLANAR)
    to = by_lane(n * sxn + c * sxc, PLANAR) + w0 * sxw + inner_x
    if PIECE > 0:
        at = n * syn + c * syc + place * EACH
    else:
        at = by_lane(n * syn + c * syc, PLANAR) + left * syw + inner_y
    whole = 1 / divisor.to(ACC)
    by_width = ()
    if COUNTED:
        for k in tl.static_range(COLUMNS):
            by_width = by_width + (inverse_count((left + k) * STRIDE_W - PAD_W, W, S, PAD_W, INCLUDE_PAD, ACC),)

    above = load_rows(
        dy_ptr, first + A_MIN, at, left, lane_ok, inner_ok, P, Q, syh, syw,
        0, CARRIED, 0, 1, 1, LEFT, PIECE, RIGHT, 1, CHECKED, PLANAR, 0,
    )  # fmt: skip
    carried = along_blocks(
        above, first + A_MIN, H, by_width, whole,
        CARRIED, COLUMNS, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, COUNTED, INCLUDE_PAD, EACH, ACC,
    )  # fmt: skip
    for i in range(first, min(first + BLOCK_P, rows), BLOCK_STEP):
        dy = load_rows(
            dy_ptr, i + A_MIN, at, left, lane_ok, inner_ok, P, Q, syh, syw,
            CARRIED, LAST, 0, 1, 1, LEFT, PIECE, RIGHT, 1, CHECKED, PLANAR, 0,
        )  # fmt: skip
        shares = carried + along_blocks(
            dy, i + A_MIN + CARRIED, H, by_width, whole,
            BLOCK_STEP, COLUMNS, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, COUNTED, INCLUDE_PAD, EACH, ACC,
        )  # fmt: skip
        for u in tl.static_range(BLOCK_STEP):
            for phase_h in tl.static_range(STRIDE_H):
                h = (i + u) * STRIDE_H + phase_h
                columns = ()
                for k in tl.static_range(ACROSS):
                    total = tl.zeros(at.shape, ACC)
                    for r in tl.static_range(R):
                        if (r - PAD_H) % STRIDE_H == phase_h:
                            share = shares[(u - (r - PAD_H) // STRIDE_H - A_MIN) * ACROSS + k]
                            if r >= STRIDE_H:
                                total = total + share
                            else:
                                total = share
                    columns = columns + (rounded(total, dx_ptr.dtype.element_ty),)
                there = row_exists(lane_ok, left, h, H, ALL_ROWS)
                store_block_row(
                    dx_ptr + h * sxh, to, columns, w0, W, sxw, there, inner_ok, EACH * STRIDE_W, JOINED, PLANAR
                )
        carried = ()
        for i_carried in tl.static_range(BLOCK_STEP * ACROSS, LAST * ACROSS):
            carried = carried + (shares[i_carried],)
