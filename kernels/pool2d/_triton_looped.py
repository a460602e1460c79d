"""Pooling forward over windows of any size, and over those of adaptive pooling, whose sizes differ.

Lanes walk down rows as in :mod:`._triton_windows`, a window each; a row of a window is read ``BLOCK_S`` columns at a
time, which is all that is unrolled. An index is found as there: the maximum of what was read first, then its tap.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import element_strides, rounded
from ._triton_lanes import (
    both,
    bounds_of,
    by_lane,
    channels_of,
    code_of,
    exact,
    first_inside,
    greater,
    inverse_length,
    lanes_of,
    last_nan,
)

_SIZES = ["H", "W", "P", "Q", "channels", "lanes", "across", "tiles_c", "bands", "divisor"]
_SHARES = ["whole_h", "rest_h", "mul_h", "shift_h", "whole_w", "rest_w", "mul_w", "shift_w"]
_DIVISORS = ["across_mul", "across_shift", "channel_mul", "channel_shift"]


@triton.jit(do_not_specialize=[*_SIZES, *_SHARES, *_DIVISORS])
def looped_windows(
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
    divisor,
    whole_h,
    rest_h,
    mul_h,
    shift_h,
    whole_w,
    rest_w,
    mul_w,
    shift_w,
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
    ADAPTIVE: tl.constexpr,
    LARGE: tl.constexpr,
    MEAN: tl.constexpr,
    COUNTED: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    WITH_INDEX: tl.constexpr,
    TAP_ROW: tl.constexpr,
    PLANAR: tl.constexpr,
    X_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr,
    Y_INNER: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    C_ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Maxima, with an index or without, or means. With ``ADAPTIVE`` windows are shares of the plane, at most ``R`` by
    ``S``, and ``STRIDE``, ``PAD`` and ``DILATION`` do not matter."""
    channels = channels * C_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    share_h, share_w = (whole_h, rest_h, mul_h, shift_h), (whole_w, rest_w, mul_w, shift_w)
    pid = tl.program_id(0)
    first = pid // tiles_c % bands * BLOCK_P
    last = min(first + BLOCK_P, P)
    j = pid // (tiles_c * bands) * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    n, c, q, ok = lanes_of(j, lanes, across, across_mul, across_shift, channels, channel_mul, channel_shift, PLANAR)
    inner_x, inner_y, inner_ok = channels_of(pid % tiles_c, channels, sxc, syc, PLANAR, BLOCK_C)
    if ADAPTIVE:
        start, stop = bounds_of(q, W, Q, share_w, S, STRIDE_W, PAD_W, ADAPTIVE, LARGE)
    else:
        start = q * STRIDE_W - PAD_W
        stop = tl.minimum(start + ((S - 1) * DILATION_W + 1), W)
    count = inverse_length(q, W, Q, share_w, S, STRIDE_W, PAD_W, ADAPTIVE, LARGE, INCLUDE_PAD, ACC)
    left, right = by_lane(start, PLANAR), by_lane(tl.where(ok, stop, 0), PLANAR)
    by_width = by_lane(count, PLANAR)
    at = by_lane(n * sxn + c * sxc + start * sxw, PLANAR) + inner_x
    to = by_lane(n * syn + c * syc + q * syw, PLANAR) + inner_y
    there = both(by_lane(ok, PLANAR), inner_ok, PLANAR)

    OTHER: tl.constexpr = 0.0 if MEAN else float("-inf")
    CODE: tl.constexpr = tl.int64 if WIDE and TAP_ROW == 0 else tl.int32
    width = W.to(CODE)
    seen = exact(tl.zeros(at.shape, x_ptr.dtype.element_ty))  # NaN once a maximum was
    for p in range(first, last):
        if ADAPTIVE:
            top, bottom = bounds_of(p, H, P, share_h, R, STRIDE_H, PAD_H, ADAPTIVE, LARGE)
        else:
            top = p * STRIDE_H - PAD_H
            bottom = min(top + ((R - 1) * DILATION_H + 1), H)
        if MEAN:
            total = tl.zeros(at.shape, ACC)
        else:
            total = exact(tl.full(at.shape, float("-inf"), x_ptr.dtype.element_ty))
        if WITH_INDEX:
            code = tl.zeros(at.shape, CODE) + code_of(
                first_inside(top, DILATION_H), first_inside(left, DILATION_W), width, DILATION_H, DILATION_W, TAP_ROW
            )
        for h in range(top + first_inside(top, DILATION_H) * DILATION_H, bottom, DILATION_H):
            lane = (x_ptr + h * sxh) + at
            for s in range(0, S, BLOCK_S):
                values = ()
                for u in tl.static_range(BLOCK_S):
                    w = left + (s + u) * DILATION_W
                    ok_w = both(w.to(tl.uint32) < right.to(tl.uint32), inner_ok, PLANAR)
                    values = values + (tl.load(lane + (s + u) * DILATION_W * sxw, mask=ok_w, other=OTHER),)
                if MEAN:
                    for u in tl.static_range(BLOCK_S):
                        total += values[u].to(ACC)
                else:
                    best = exact(values[0])
                    for u in tl.static_range(1, BLOCK_S):
                        best = greater(best, exact(values[u]))
                    if WITH_INDEX:
                        tap = tl.zeros(at.shape, tl.int32)
                        for u in tl.static_range(BLOCK_S - 1, -1, -1):
                            tap = tl.where(exact(values[u]) == best, u, tap)
                        number = code_of((h - top) // DILATION_H, s + tap, width, DILATION_H, DILATION_W, TAP_ROW)
                        code = tl.where(best > total, number, code)
                    total = greater(total, best)
        if MEAN:
            if COUNTED:
                by_height = inverse_length(p, H, P, share_h, R, STRIDE_H, PAD_H, ADAPTIVE, LARGE, INCLUDE_PAD, ACC)
                total = total * (by_height * by_width)
            else:
                total = total * (1 / divisor.to(ACC))
        tl.store(y_ptr + p * syh + to, rounded(total, y_ptr.dtype.element_ty), mask=there)
        if WITH_INDEX:
            if TAP_ROW == 0:
                code += top * width + left
            seen = greater(seen, total)
            tl.store(index_ptr + p * syh + to, code.to(index_ptr.dtype.element_ty), mask=there)

    if WITH_INDEX:
        if tl.max((seen != seen).to(tl.int32)) > 0:
            for p in range(first, last):
                if ADAPTIVE:
                    top, bottom = bounds_of(p, H, P, share_h, R, STRIDE_H, PAD_H, ADAPTIVE, LARGE)
                else:
                    top = p * STRIDE_H - PAD_H
                    bottom = H
                code = last_nan(
                    x_ptr, at, top, bottom, left, right, inner_ok, width, sxh, sxw,
                    R, S, DILATION_H, DILATION_W, TAP_ROW, PLANAR,
                )  # fmt: skip
                found = there & (code >= 0)
                if TAP_ROW == 0:
                    code += top * width + left
                tl.store(index_ptr + p * syh + to, code.to(index_ptr.dtype.element_ty), mask=found)
