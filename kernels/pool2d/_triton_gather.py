"""The gradient of pooling with windows of any size, and of adaptive pooling: every element asks the windows it is in.

Lanes are columns of ``dx`` (planar: pieces of rows) and walk down its rows. Rows that begin with the same window follow
each other: its part of ``dy`` is read once and kept for all of them, and whatever other windows a row is in are read
for that row. Sums are made in the order of the windows; nothing is added in memory.

An axis with windows comes as its share of them (``floor_share`` of a window's number is where it begins) and, the other
way round, as the windows' share of it (``floor_share`` of an element's number is its first window).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import element_strides, rounded
from ._triton_lanes import floor_share, inverse_length, lanes_of, start_of

_SIZES = ["H", "W", "P", "Q", "channels", "lanes", "across", "tiles_c", "bands", "divisor"]
_SHARES = ["whole_h", "rest_h", "mul_h", "shift_h", "whole_w", "rest_w", "mul_w", "shift_w"]
_WINDOWS = ["windows_h", "left_h", "times_h", "over_h", "windows_w", "left_w", "times_w", "over_w"]
_DIVISORS = ["across_mul", "across_shift", "channel_mul", "channel_shift"]


@triton.jit
def windows_of(
    h, size, count, windows,
    K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr, ADAPTIVE: tl.constexpr,
    LARGE: tl.constexpr,
):  # fmt: skip
    """The first and the last window that element ``h`` of an axis may be in; none where the last one is less."""
    if ADAPTIVE:
        first = floor_share(h, size, windows, LARGE)
        last = count - 1 - floor_share(size - 1 - h, size, windows, LARGE)
    else:
        first = (tl.maximum(h + (PAD - (K - 1) * DILATION), 0) + (STRIDE - 1)) // STRIDE
        last = tl.minimum((h + PAD) // STRIDE, count - 1)
    return first, last


@triton.jit
def begins_with(
    p, size, count, share,
    K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr, ADAPTIVE: tl.constexpr,
    LARGE: tl.constexpr,
):  # fmt: skip
    """The first element of an axis whose first window is ``p`` or a later one."""
    if ADAPTIVE:
        return size - floor_share(tl.maximum(count - p, 0), count, share, LARGE)
    else:
        return tl.where(p > 0, (p - 1) * STRIDE + ((K - 1) * DILATION + 1 - PAD), 0)


@triton.jit
def tap_of(distance, step, DILATION: tl.constexpr):
    """What the tap ``distance`` elements from its window's start adds to a tap's number; where there is no tap, more
    than any number."""
    if DILATION == 1:
        return distance * step
    else:
        return tl.where(distance % DILATION == 0, distance // DILATION * step, 1 << 20)


@triton.jit
def number_of_row(
    h, p, P, W, share,
    STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr, ADAPTIVE: tl.constexpr, LARGE: tl.constexpr,
    TAP_ROW: tl.constexpr,
):  # fmt: skip
    """The part of an index that row ``h`` makes, in a window of row ``p``."""
    if TAP_ROW == 0:
        return W.to(tl.int64) * h
    else:
        return tap_of(h - start_of(p, P, share, STRIDE, PAD, ADAPTIVE, LARGE), TAP_ROW, DILATION)


@triton.jit
def tile_of(
    pid, lanes, across, tiles_c, bands, across_mul, across_shift, channels, channel_mul, channel_shift, W,
    PLANAR: tl.constexpr, EACH: tl.constexpr, WHOLE: tl.constexpr, BLOCK_LANES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program's tile ``[lanes, EACH columns]``, or where channels are innermost ``[lanes, channels]``: images,
    channels, columns, and which elements exist, as two masks: columns', which may still be a vector, and channels'."""
    j = pid // (tiles_c * bands) * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    n, c, place, ok = lanes_of(j, lanes, across, across_mul, across_shift, channels, channel_mul, channel_shift, PLANAR)
    if PLANAR:
        w = place[:, None] * EACH + tl.arange(0, EACH)[None, :]
        if WHOLE:
            return n[:, None], c[:, None], w, ok[:, None], ok[:, None]
        else:
            return n[:, None], c[:, None], w, ok[:, None] & (w < W), ok[:, None]
    else:
        c = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
        return n[:, None], c[None, :], place[:, None], ok[:, None], (c < channels)[None, :]


@triton.jit
def load_window(
    dy_ptr, index_ptr, p, q, q_last, at_y, at_i, w, inner_ok, P, Q, syh, sih, share,
    STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr, ADAPTIVE: tl.constexpr, LARGE: tl.constexpr,
    TAP_ROW: tl.constexpr,
):  # fmt: skip
    """``dy`` of window ``p, q`` of each column, and its index less what the column makes of it: to be compared with
    :func:`number_of_row`."""
    there = (q <= tl.where(p < P, q_last, -1)) & inner_ok
    value = tl.load(dy_ptr + p * syh + at_y, mask=there, other=0.0)
    index = tl.load(index_ptr + p * sih + at_i, mask=there, other=0)
    if TAP_ROW == 0:
        return value, index - w
    else:
        start = start_of(q, Q, share, STRIDE, PAD, ADAPTIVE, LARGE)
        return value, index.to(tl.int32) - tap_of(w - start, 1, DILATION)


@triton.jit(do_not_specialize=[*_SIZES[:-1], *_SHARES, *_WINDOWS, *_DIVISORS])
def max_gather_windows(
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
    tiles_c,
    bands,
    whole_h,
    rest_h,
    mul_h,
    shift_h,
    whole_w,
    rest_w,
    mul_w,
    shift_w,
    windows_h,
    left_h,
    times_h,
    over_h,
    windows_w,
    left_w,
    times_w,
    over_w,
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
    ADAPTIVE: tl.constexpr,
    LARGE: tl.constexpr,
    TAP_ROW: tl.constexpr,
    COVERING_H: tl.constexpr,
    COVERING_W: tl.constexpr,
    EACH: tl.constexpr,
    WHOLE: tl.constexpr,
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
):
    """``dx`` from ``dy`` and from where the maxima were: a tap's number, or with ``TAP_ROW`` 0 a place in the plane.

    An element is in ``COVERING_H`` by ``COVERING_W`` windows at most; of a row of them up to two are kept.
    """
    channels = channels * C_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    sin, sic, sih, siw = element_strides(stride_in, stride_ic, stride_ih, stride_iw, I_INNER, I_ALIGN, WIDE)
    share_h, share_w = (whole_h, rest_h, mul_h, shift_h), (whole_w, rest_w, mul_w, shift_w)
    windows_of_h, windows_of_w = (windows_h, left_h, times_h, over_h), (windows_w, left_w, times_w, over_w)
    pid = tl.program_id(0)
    h_first = pid // tiles_c % bands * BLOCK_P
    h_last = min(h_first + BLOCK_P, H)
    n, c, w, ok, inner_ok = tile_of(
        pid, lanes, across, tiles_c, bands, across_mul, across_shift, channels, channel_mul, channel_shift, W,
        PLANAR, EACH, WHOLE, BLOCK_LANES, BLOCK_C,
    )  # fmt: skip
    q_first, q_last = windows_of(w, W, Q, windows_of_w, S, STRIDE_W, PAD_W, DILATION_W, ADAPTIVE, LARGE)
    q_last = tl.where(ok, q_last, -1)
    to = n * sxn + w * sxw + c * sxc
    at_y = n * syn + q_first * syw + c * syc
    at_i = n * sin + q_first * siw + c * sic
    there = ok & inner_ok
    KEPT: tl.constexpr = COVERING_W if COVERING_W <= 2 else 0

    p_first, _ = windows_of(h_first, H, P, windows_of_h, R, STRIDE_H, PAD_H, DILATION_H, ADAPTIVE, LARGE)
    p_last, _ = windows_of(h_last - 1, H, P, windows_of_h, R, STRIDE_H, PAD_H, DILATION_H, ADAPTIVE, LARGE)
    for p in range(p_first, p_last + 1):
        values = ()
        numbers = ()
        for b in tl.static_range(KEPT):
            value, number = load_window(
                dy_ptr, index_ptr, p, q_first + b, q_last, at_y + b * syw, at_i + b * siw, w, inner_ok, P, Q, syh, sih,
                share_w, STRIDE_W, PAD_W, DILATION_W, ADAPTIVE, LARGE, TAP_ROW,
            )  # fmt: skip
            values = values + (value.to(ACC),)
            numbers = numbers + (number,)
        begin = begins_with(p, H, P, share_h, R, STRIDE_H, PAD_H, DILATION_H, ADAPTIVE, LARGE)
        end = begins_with(p + 1, H, P, share_h, R, STRIDE_H, PAD_H, DILATION_H, ADAPTIVE, LARGE)
        for h in range(max(begin, h_first), min(end, h_last)):
            total = tl.zeros(to.shape, ACC)
            if KEPT > 0:
                wanted = number_of_row(h, p, P, W, share_h, STRIDE_H, PAD_H, DILATION_H, ADAPTIVE, LARGE, TAP_ROW)
                for b in tl.static_range(KEPT):
                    total = tl.where(numbers[b] == wanted, total + values[b], total)
            if COVERING_H > 1 or KEPT == 0:
                _, last = windows_of(h, H, P, windows_of_h, R, STRIDE_H, PAD_H, DILATION_H, ADAPTIVE, LARGE)
                for other in range(p + (1 if KEPT > 0 else 0), last + 1):
                    wanted_of_other = number_of_row(
                        h, other, P, W, share_h, STRIDE_H, PAD_H, DILATION_H, ADAPTIVE, LARGE, TAP_ROW
                    )
                    for k in range(COVERING_W):
                        value_of_other, number_of_other = load_window(
                            dy_ptr, index_ptr, other, q_first + k, q_last, at_y + k * syw, at_i + k * siw, w, inner_ok,
                            P, Q, syh, sih, share_w, STRIDE_W, PAD_W, DILATION_W, ADAPTIVE, LARGE, TAP_ROW,
                        )  # fmt: skip
                        total = tl.where(number_of_other == wanted_of_other, total + value_of_other.to(ACC), total)
            tl.store(dx_ptr + h * sxh + to, rounded(total, dx_ptr.dtype.element_ty), mask=there)


@triton.jit
def row_share(
    dy_ptr, p, q_first, q_last, at, inner_ok, H, W, P, Q, syh, syw, divisor, share_h, share_w, by_width,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr,
    PAD_W: tl.constexpr, ADAPTIVE: tl.constexpr, LARGE: tl.constexpr, COUNTED: tl.constexpr, INCLUDE_PAD: tl.constexpr,
    COVERING_W: tl.constexpr, KEPT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What window row ``p`` gives to each column. Of ``KEPT`` windows the shares of a row are known, ``by_width``."""
    total = tl.zeros(at.shape, ACC)
    last = tl.where(p < P, q_last, -1)
    for k in tl.static_range(KEPT):
        there = (q_first + k <= last) & inner_ok
        value = tl.load(dy_ptr + p * syh + (at + k * syw), mask=there, other=0.0).to(ACC)
        if COUNTED:
            total += value * by_width[k]
        else:
            total += value
    if KEPT == 0:
        for b in range(COVERING_W):
            q = q_first + b
            there = (q <= last) & inner_ok
            value = tl.load(dy_ptr + p * syh + (at + b * syw), mask=there, other=0.0).to(ACC)
            if COUNTED:
                value *= inverse_length(q, W, Q, share_w, S, STRIDE_W, PAD_W, ADAPTIVE, LARGE, INCLUDE_PAD, ACC)
            total += value
    if COUNTED:
        return total * inverse_length(p, H, P, share_h, R, STRIDE_H, PAD_H, ADAPTIVE, LARGE, INCLUDE_PAD, ACC)
    else:
        return total * (1 / divisor.to(ACC))


@triton.jit(do_not_specialize=[*_SIZES, *_SHARES, *_WINDOWS, *_DIVISORS])
def mean_gather_windows(
    dy_ptr,
    dx_ptr,
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
    whole_h,
    rest_h,
    mul_h,
    shift_h,
    whole_w,
    rest_w,
    mul_w,
    shift_w,
    windows_h,
    left_h,
    times_h,
    over_h,
    windows_w,
    left_w,
    times_w,
    over_w,
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
    ADAPTIVE: tl.constexpr,
    LARGE: tl.constexpr,
    COUNTED: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    COVERING_H: tl.constexpr,
    COVERING_W: tl.constexpr,
    EACH: tl.constexpr,
    WHOLE: tl.constexpr,
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
):
    """``dx`` from ``dy`` of means. What a row of windows gives to a column does not depend on the row of ``dx``."""
    channels = channels * C_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    share_h, share_w = (whole_h, rest_h, mul_h, shift_h), (whole_w, rest_w, mul_w, shift_w)
    windows_of_h, windows_of_w = (windows_h, left_h, times_h, over_h), (windows_w, left_w, times_w, over_w)
    pid = tl.program_id(0)
    h_first = pid // tiles_c % bands * BLOCK_P
    h_last = min(h_first + BLOCK_P, H)
    n, c, w, ok, inner_ok = tile_of(
        pid, lanes, across, tiles_c, bands, across_mul, across_shift, channels, channel_mul, channel_shift, W,
        PLANAR, EACH, WHOLE, BLOCK_LANES, BLOCK_C,
    )  # fmt: skip
    q_first, q_last = windows_of(w, W, Q, windows_of_w, S, STRIDE_W, PAD_W, 1, ADAPTIVE, LARGE)
    q_last = tl.where(ok, q_last, -1)
    to = n * sxn + w * sxw + c * sxc
    at = n * syn + q_first * syw + c * syc
    there = ok & inner_ok

    KEPT: tl.constexpr = COVERING_W if COVERING_W <= 2 else 0
    by_width = ()
    for k in tl.static_range(KEPT):
        by_width = by_width + (
            inverse_length(q_first + k, W, Q, share_w, S, STRIDE_W, PAD_W, ADAPTIVE, LARGE, INCLUDE_PAD, ACC),
        )

    p_first, _ = windows_of(h_first, H, P, windows_of_h, R, STRIDE_H, PAD_H, 1, ADAPTIVE, LARGE)
    p_last, _ = windows_of(h_last - 1, H, P, windows_of_h, R, STRIDE_H, PAD_H, 1, ADAPTIVE, LARGE)
    for p in range(p_first, p_last + 1):
        kept = row_share(
            dy_ptr, p, q_first, q_last, at, inner_ok, H, W, P, Q, syh, syw, divisor, share_h, share_w, by_width,
            R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, ADAPTIVE, LARGE, COUNTED, INCLUDE_PAD, COVERING_W, KEPT, ACC,
        )  # fmt: skip
        begin = begins_with(p, H, P, share_h, R, STRIDE_H, PAD_H, 1, ADAPTIVE, LARGE)
        end = begins_with(p + 1, H, P, share_h, R, STRIDE_H, PAD_H, 1, ADAPTIVE, LARGE)
        for h in range(max(begin, h_first), min(end, h_last)):
            total = kept
            _, last = windows_of(h, H, P, windows_of_h, R, STRIDE_H, PAD_H, 1, ADAPTIVE, LARGE)
            if not ADAPTIVE and STRIDE_H > R:  # some rows are in no window
                total = tl.where(p <= last, kept, 0.0)
            if COVERING_H > 1:
                for other in range(p + 1, last + 1):
                    total += row_share(
                        dy_ptr, other, q_first, q_last, at, inner_ok, H, W, P, Q, syh, syw, divisor, share_h, share_w,
                        by_width, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, ADAPTIVE, LARGE, COUNTED, INCLUDE_PAD,
                        COVERING_W, KEPT, ACC,
                    )  # fmt: skip
            tl.store(dx_ptr + h * sxh + to, rounded(total, dx_ptr.dtype.element_ty), mask=there)
