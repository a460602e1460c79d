"""Pooling forward over windows of a few taps, all unrolled: maxima with and without an index, and means.

A program's lanes walk down the rows of windows (:mod:`._triton_lanes`); what two windows share is carried along. Means
and plain maxima are separable: along the row first, then over rows, of which the results are carried. An index wants
the values themselves: the maximum is found first, by packed instructions for half types, and then the first tap that
equals it, last tap first. NaN equals nothing; so where there was one, which is asked once a program, those windows are
searched again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import element_strides, rounded
from ._triton_lanes import (
    both,
    by_lane,
    channels_of,
    code_of,
    exact,
    first_inside,
    greater,
    inverse_count,
    lanes_of,
    last_nan,
    load_rows,
    row_exists,
    store_columns,
)

_SIZES = ["H", "W", "P", "Q", "channels", "lanes", "across", "tiles_c", "bands", "divisor"]
_DIVISORS = ["across_mul", "across_shift", "channel_mul", "channel_shift"]


@triton.jit
def along_rows(
    rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr, S: tl.constexpr, STRIDE_W: tl.constexpr, TAP_W: tl.constexpr,
    EACH: tl.constexpr, MEAN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum or maximum of what each of a lane's ``EACH`` windows sees of each row."""
    results = ()
    for r in tl.static_range(ROWS):
        for k in tl.static_range(EACH):
            value = rows[r * COLUMNS + k * STRIDE_W]
            if MEAN:
                total = value.to(ACC)
            else:
                total = exact(value)
            for s in tl.static_range(1, S):
                value = rows[r * COLUMNS + k * STRIDE_W + s * TAP_W]
                if MEAN:
                    total = total + value.to(ACC)
                else:
                    total = greater(total, exact(value))
            results = results + (total,)
    return results


@triton.jit(do_not_specialize=[*_SIZES, *_DIVISORS])
def windows(
    x_ptr,
    y_ptr,
    H,
    W,
    P,
    Q,
    channels,
    lanes,
    across,
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
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MEAN: tl.constexpr,
    COUNTED: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    CARRIED: tl.constexpr,
    LEFT: tl.constexpr,
    PIECE: tl.constexpr,
    RIGHT: tl.constexpr,
    EACH: tl.constexpr,
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
    """Maxima, or with ``MEAN`` means: sums over ``divisor``, or where ``COUNTED`` over what each window holds.

    A lane is ``EACH`` neighbouring windows, ``across`` lanes make a row. A program walks down ``BLOCK_P`` rows of
    windows, ``BLOCK_STEP`` at a time; ``CARRIED`` rows of a window are the next one's, too.
    """
    channels = channels * C_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    pid = tl.program_id(0)
    first = pid // tiles_c % bands * BLOCK_P
    j = pid // (tiles_c * bands) * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    n, c, place, ok = lanes_of(j, lanes, across, across_mul, across_shift, channels, channel_mul, channel_shift, PLANAR)
    inner_x, inner_y, inner_ok = channels_of(pid % tiles_c, channels, sxc, syc, PLANAR, BLOCK_C)
    to = by_lane(n * syn + c * syc + place * EACH * syw, PLANAR) + inner_y
    left = by_lane(tl.where(ok, place * (EACH * STRIDE_W) - PAD_W, W), PLANAR)
    lane_ok = by_lane(ok, PLANAR)
    if PIECE > 0:
        at = n * sxn + c * sxc + place * PIECE
    else:
        at = by_lane(n * sxn + c * sxc, PLANAR) + left * sxw + inner_x

    ADVANCE: tl.constexpr = R - CARRIED  # rows from one window to the next
    ROWS: tl.constexpr = 0 if CARRIED > 0 else R
    LAST: tl.constexpr = CARRIED + BLOCK_STEP * ADVANCE
    COLUMNS: tl.constexpr = LEFT + PIECE + RIGHT
    SPACING: tl.constexpr = 1 if PIECE > 0 else DILATION_W  # of loaded columns
    TAP_W: tl.constexpr = DILATION_W if PIECE > 0 else 1  # loaded columns from one tap to the next
    OTHER: tl.constexpr = 0.0 if MEAN else float("-inf")

    if COUNTED:
        by_width = ()
        for k in tl.static_range(EACH):
            by_width = by_width + (inverse_count(left + k * STRIDE_W, W, S, PAD_W, INCLUDE_PAD, ACC),)
    else:
        whole = 1 / divisor.to(ACC)
    columns = load_rows(
        x_ptr, first * STRIDE_H - PAD_H, at, left, lane_ok, inner_ok, H, W, sxh, sxw,
        0, CARRIED, ROWS, STRIDE_H, DILATION_H, LEFT, PIECE, RIGHT, SPACING, CHECKED, PLANAR, OTHER,
    )  # fmt: skip
    carried = along_rows(columns, CARRIED, COLUMNS, S, STRIDE_W, TAP_W, EACH, MEAN, ACC)
    for p in range(first, min(first + BLOCK_P, P), BLOCK_STEP):
        fresh = load_rows(
            x_ptr, p * STRIDE_H - PAD_H, at, left, lane_ok, inner_ok, H, W, sxh, sxw,
            CARRIED, LAST, ROWS, STRIDE_H, DILATION_H, LEFT, PIECE, RIGHT, SPACING, CHECKED, PLANAR, OTHER,
        )  # fmt: skip
        rows = carried + along_rows(fresh, LAST - CARRIED, COLUMNS, S, STRIDE_W, TAP_W, EACH, MEAN, ACC)
        for u in tl.static_range(BLOCK_STEP):
            if COUNTED:
                by_height = inverse_count((p + u) * STRIDE_H - PAD_H, H, R, PAD_H, INCLUDE_PAD, ACC)
            results = ()
            for k in tl.static_range(EACH):
                total = rows[u * ADVANCE * EACH + k]
                for r in tl.static_range(1, R):
                    if MEAN:
                        total = total + rows[(u * ADVANCE + r) * EACH + k]
                    else:
                        total = greater(total, rows[(u * ADVANCE + r) * EACH + k])
                if MEAN:
                    if COUNTED:
                        total = total * (by_height * by_width[k])
                    else:
                        total = total * whole
                results = results + (rounded(total, y_ptr.dtype.element_ty),)
            there = both(row_exists(lane_ok, left, p + u, P, BLOCK_STEP == 1), inner_ok, PLANAR)
            store_columns(y_ptr + (p + u) * syh, to, results, there, EACH)
        carried = ()
        for i in tl.static_range(BLOCK_STEP * ADVANCE * EACH, LAST * EACH):
            carried = carried + (rows[i],)


@triton.jit(do_not_specialize=[*_SIZES, *_DIVISORS])
def max_windows(
    x_ptr,
    y_ptr,
    index_ptr,
    H,
    W,
    P,
    Q,
    channels,
    lanes,
    across,
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
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    TAP_ROW: tl.constexpr,
    CARRIED: tl.constexpr,
    LEFT: tl.constexpr,
    PIECE: tl.constexpr,
    RIGHT: tl.constexpr,
    EACH: tl.constexpr,
    CHECKED: tl.constexpr,
    PLANAR: tl.constexpr,
    X_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr,
    Y_INNER: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    C_ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_STEP: tl.constexpr,
):
    """Maxima and where they were: tap ``r·TAP_ROW + s`` of the window, or with ``TAP_ROW`` 0 ``h·W + w`` of the plane.

    Lanes as in :func:`windows`.
    """
    channels = channels * C_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    pid = tl.program_id(0)
    first = pid // tiles_c % bands * BLOCK_P
    last = min(first + BLOCK_P, P)
    j = pid // (tiles_c * bands) * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    n, c, place, ok = lanes_of(j, lanes, across, across_mul, across_shift, channels, channel_mul, channel_shift, PLANAR)
    inner_x, inner_y, inner_ok = channels_of(pid % tiles_c, channels, sxc, syc, PLANAR, BLOCK_C)
    to = by_lane(n * syn + c * syc + place * EACH * syw, PLANAR) + inner_y
    left = by_lane(tl.where(ok, place * (EACH * STRIDE_W) - PAD_W, W), PLANAR)
    lane_ok = by_lane(ok, PLANAR)
    if PIECE > 0:
        at = n * sxn + c * sxc + place * PIECE
    else:
        at = by_lane(n * sxn + c * sxc, PLANAR) + left * sxw + inner_x

    ADVANCE: tl.constexpr = R - CARRIED
    ROWS: tl.constexpr = 0 if CARRIED > 0 else R
    LAST: tl.constexpr = CARRIED + BLOCK_STEP * ADVANCE
    COLUMNS: tl.constexpr = LEFT + PIECE + RIGHT
    SPACING: tl.constexpr = 1 if PIECE > 0 else DILATION_W
    TAP_W: tl.constexpr = DILATION_W if PIECE > 0 else 1
    OTHER: tl.constexpr = float("-inf")
    SKIPPED: tl.constexpr = LEFT if PIECE > 0 else 0  # columns from ``left`` to ``at``
    CODE: tl.constexpr = tl.int64 if WIDE and TAP_ROW == 0 else tl.int32
    width = W.to(CODE)

    carried = load_rows(
        x_ptr, first * STRIDE_H - PAD_H, at, left, lane_ok, inner_ok, H, W, sxh, sxw,
        0, CARRIED, ROWS, STRIDE_H, DILATION_H, LEFT, PIECE, RIGHT, SPACING, CHECKED, PLANAR, OTHER,
    )  # fmt: skip
    seen = exact(tl.zeros(at.shape, x_ptr.dtype.element_ty))  # NaN once a maximum was
    for p in range(first, last, BLOCK_STEP):
        rows = carried + load_rows(
            x_ptr, p * STRIDE_H - PAD_H, at, left, lane_ok, inner_ok, H, W, sxh, sxw,
            CARRIED, LAST, ROWS, STRIDE_H, DILATION_H, LEFT, PIECE, RIGHT, SPACING, CHECKED, PLANAR, OTHER,
        )  # fmt: skip
        for u in tl.static_range(BLOCK_STEP):
            top = (p + u) * STRIDE_H - PAD_H
            maxima = ()
            where = ()
            for k in tl.static_range(EACH):
                best = exact(rows[u * ADVANCE * COLUMNS + k * STRIDE_W])
                for t in tl.static_range(1, R * S):
                    value = rows[(u * ADVANCE + t // S) * COLUMNS + k * STRIDE_W + t % S * TAP_W]
                    best = greater(best, exact(value))
                code = tl.zeros(best.shape, CODE)
                for t in tl.static_range(R * S - 1, -1, -1):
                    value = rows[(u * ADVANCE + t // S) * COLUMNS + k * STRIDE_W + t % S * TAP_W]
                    number = code_of(t // S, t % S, width, DILATION_H, DILATION_W, TAP_ROW)
                    code = tl.where(exact(value) == best, number, code)
                if PAD_H > 0 or PAD_W > 0:  # what lies outside was taken for -inf
                    tap_h = first_inside(top, DILATION_H)
                    tap_w = first_inside(left + k * STRIDE_W, DILATION_W)
                    number = code_of(tap_h, tap_w, width, DILATION_H, DILATION_W, TAP_ROW)
                    code = tl.where(best == OTHER, number, code)
                if TAP_ROW == 0:
                    code += top * width + left + k * STRIDE_W
                seen = greater(seen, best)
                maxima = maxima + (rounded(best, y_ptr.dtype.element_ty),)
                where = where + (code.to(index_ptr.dtype.element_ty),)
            there = both(row_exists(lane_ok, left, p + u, P, BLOCK_STEP == 1), inner_ok, PLANAR)
            store_columns(y_ptr + (p + u) * syh, to, maxima, there, EACH)
            store_columns(index_ptr + (p + u) * syh, to, where, there, EACH)
        carried = ()
        for i in tl.static_range(BLOCK_STEP * ADVANCE * COLUMNS, LAST * COLUMNS):
            carried = carried + (rows[i],)

    if tl.max((seen != seen).to(tl.int32)) > 0:
        for p in range(first, last):
            top = p * STRIDE_H - PAD_H
            for k in tl.static_range(EACH):
                start = left + k * STRIDE_W
                code = last_nan(
                    x_ptr, at + (k * STRIDE_W - SKIPPED) * sxw, top, H, start, W, inner_ok, width, sxh, sxw,
                    R, S, DILATION_H, DILATION_W, TAP_ROW, PLANAR,
                )  # fmt: skip
                there = both(lane_ok, inner_ok, PLANAR) & (code >= 0)
                if TAP_ROW == 0:
                    code += top * width + start
                tl.store(index_ptr + p * syh + (to + k * syw), code.to(index_ptr.dtype.element_ty), mask=there)
