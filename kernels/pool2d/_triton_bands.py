"""Pooling forward over windows so large that lanes walk along memory within them: bands of rows, and whole planes.

A program reduces some windows that lie beside each other, of some planes (planar) or channels. It reads their rows into
one tile of columns, adding or comparing column by column; at the end it reduces the tile's columns, window by window.
Where there are few windows their rows are cut into parts, which a second kernel reduces in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import divide, element_strides, pixel_of, rounded, widened
from ._triton_lanes import bounds_of, greater, inverse_length, start_of

_SIZES = ["H", "W", "P", "Q", "channels", "planes", "tiles", "groups", "parts", "divisor"]
_SHARES = ["whole_h", "rest_h", "mul_h", "shift_h", "whole_w", "rest_w", "mul_w", "shift_w"]
_PLACES = ["P", "Q", "plane_mul", "plane_shift", "row_mul", "row_shift", "channel_mul", "channel_shift"]


@triton.jit(do_not_specialize=[*_SIZES, *_SHARES, "channel_mul", "channel_shift"])
def bands(
    x_ptr,
    y_ptr,
    index_ptr,
    H,
    W,
    P,
    Q,
    channels,
    planes,
    tiles,
    groups,
    parts,
    divisor,
    whole_h,
    rest_h,
    mul_h,
    shift_h,
    whole_w,
    rest_w,
    mul_w,
    shift_w,
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
    stride_part,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
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
    W_ALIGN: tl.constexpr,
    VECTOR: tl.constexpr,
    GROUP: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    CODE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_STEP: tl.constexpr,
):
    """``GROUP`` windows beside each other, whose columns fit a tile; with ``GROUP`` 1 a window of any width, whose
    columns are folded onto a tile. Programs are tiles of planes (or channels, image by image), then groups, then rows
    of windows, then ``parts`` of those windows' rows. Results of part ``i`` go to ``y_ptr + i·stride_part``.
    """
    channels = channels * C_ALIGN
    W = W * W_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    share_h, share_w = (whole_h, rest_h, mul_h, shift_h), (whole_w, rest_w, mul_w, shift_w)
    pid = tl.program_id(0)
    if PLANAR:  # neighbours in memory next to each other: the windows of a plane, or channels
        group, rest = pid % groups, pid // groups
        p, rest = rest % P, rest // P
        tile, part = rest % tiles, rest // tiles
    else:
        tile, rest = pid % tiles, pid // tiles
        group, rest = rest % groups, rest // groups
        p, rest = rest % P, rest // P
        part, image = rest % parts, rest // parts
    if PLANAR:
        k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        ok = k < planes
        inside = tl.where(ok, k, 0)
        n = divide(inside, channel_mul, channel_shift)
        c = inside - n * channels
    else:
        c = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        ok = c < channels
        n = image
    base = n * sxn + c * sxc
    to = n * syn + c * syc + p * syh + part * stride_part

    top, bottom = bounds_of(p, H, P, share_h, R, STRIDE_H, PAD_H, ADAPTIVE, LARGE)
    q0 = group * GROUP
    last_q = tl.minimum(q0 + GROUP, Q) - 1
    begin, _ = bounds_of(q0, W, Q, share_w, S, STRIDE_W, PAD_W, ADAPTIVE, LARGE)
    _, end = bounds_of(last_q, W, Q, share_w, S, STRIDE_W, PAD_W, ADAPTIVE, LARGE)
    origin = begin // VECTOR * VECTOR
    across = tl.minimum((end + (VECTOR - 1)) // VECTOR * VECTOR, W)
    chunks = (end - origin + (BLOCK_W - 1)) // BLOCK_W if GROUP == 1 else 1
    steps = (bottom - top) * chunks
    first = tl.cast(part.to(tl.int64) * steps // parts, tl.int32)
    last = tl.cast((part.to(tl.int64) + 1) * steps // parts, tl.int32)
    row, chunk = first // chunks, first % chunks
    column = tl.arange(0, BLOCK_W)

    BEYOND: tl.constexpr = 0x7FFFFFFF if CODE == tl.int32 else 1 << 62  # all codes
    OTHER: tl.constexpr = 0.0 if MEAN else float("-inf")
    total = tl.full((BLOCK_K, BLOCK_W), OTHER, ACC)
    if WITH_INDEX:  # row and column of the value that is the greatest so far
        total_h = tl.zeros((BLOCK_K, BLOCK_W), tl.int32) + row
        total_w = tl.zeros((BLOCK_K, BLOCK_W), tl.int32) + (origin + chunk * BLOCK_W + column)[None, :]
    for step in range(first, last, BLOCK_STEP):
        for u in tl.static_range(BLOCK_STEP):
            w = origin + chunk * BLOCK_W + column
            value = tl.load(
                (x_ptr + (top + row) * sxh) + (base[:, None] + (w * sxw)[None, :]),
                mask=ok[:, None] & (w < tl.where(step + u < last, across, 0))[None, :],
                other=OTHER,
            ).to(ACC)  # [BLOCK_K, BLOCK_W]
            if GROUP == 1:
                value = tl.where(((w >= begin) & (w < end))[None, :], value, OTHER)
            if MEAN:
                total += value
            else:
                if WITH_INDEX:
                    better = (value > total) | (value != value)
                    total_h = tl.where(better, row, total_h)
                    if GROUP == 1:
                        total_w = tl.where(better, w[None, :], total_w)
                total = greater(total, value)
            if GROUP == 1:
                chunk += 1
                row += tl.where(chunk == chunks, 1, 0)
                chunk = tl.where(chunk == chunks, 0, chunk)
            else:
                row += 1

    if GROUP == 1:
        if WITH_INDEX:
            places = total_w
    else:
        places = (origin + column)[None, :]
    if not MEAN:
        nan = total != total
        number = tl.where(nan, float("-inf"), total)
    if WITH_INDEX:
        if TAP_ROW == 0:
            codes = (top + total_h).to(CODE) * W + places
        else:  # from the window's own corner, which may lie outside
            codes = (top - start_of(p, P, share_h, STRIDE_H, PAD_H, ADAPTIVE, LARGE) + total_h) * TAP_ROW + places
    for u in tl.static_range(GROUP):
        q = q0 + u
        left, right = bounds_of(q, W, Q, share_w, S, STRIDE_W, PAD_W, ADAPTIVE, LARGE)
        there = ok & (tl.arange(0, BLOCK_K) < tl.where(q < Q, BLOCK_K, 0))
        if GROUP > 1 or WITH_INDEX:
            within = (places >= left) & (places < right)
        if MEAN:
            if GROUP > 1:
                result = tl.sum(tl.where(within, total, 0.0), 1)
            else:
                result = tl.sum(total, 1)
            if COUNTED:
                by_height = inverse_length(p, H, P, share_h, R, STRIDE_H, PAD_H, ADAPTIVE, LARGE, INCLUDE_PAD, ACC)
                by_width = inverse_length(q, W, Q, share_w, S, STRIDE_W, PAD_W, ADAPTIVE, LARGE, INCLUDE_PAD, ACC)
                result = result * (by_height * by_width)
            else:
                result = result * (1 / divisor.to(ACC))
        else:
            if GROUP > 1 or WITH_INDEX:
                result = tl.max(tl.where(within, number, float("-inf")), 1)
            else:
                result = tl.max(number, 1)
            if WITH_INDEX:
                first_code = tl.min(tl.where(within & (number == result[:, None]), codes, BEYOND), 1)
                if TAP_ROW > 0:
                    first_code -= start_of(q, Q, share_w, STRIDE_W, PAD_W, ADAPTIVE, LARGE)
                tl.store(index_ptr + (to + q * syw), first_code.to(index_ptr.dtype.element_ty), mask=there)
        tl.store(y_ptr + (to + q * syw), rounded(result, y_ptr.dtype.element_ty), mask=there)

    if not MEAN:
        if tl.max(nan.to(tl.int32)) > 0:
            for i in range(GROUP):
                q_of_nan = q0 + i
                from_w, to_w = bounds_of(q_of_nan, W, Q, share_w, S, STRIDE_W, PAD_W, ADAPTIVE, LARGE)
                found = ok & (tl.arange(0, BLOCK_K) < tl.where(q_of_nan < Q, BLOCK_K, 0))
                if WITH_INDEX:
                    last_code = tl.max(tl.where(nan & (places >= from_w) & (places < to_w), codes, -1), 1)
                    found = found & (last_code >= 0)
                    if TAP_ROW > 0:
                        last_code -= start_of(q_of_nan, Q, share_w, STRIDE_W, PAD_W, ADAPTIVE, LARGE)
                    at = to + q_of_nan * syw
                    tl.store(index_ptr + at, last_code.to(index_ptr.dtype.element_ty), mask=found)
                elif GROUP > 1:
                    some = tl.max(tl.where(nan & (places >= from_w) & (places < to_w), 1, 0), 1)
                    found = found & (some > 0)
                else:
                    found = found & (tl.max(nan.to(tl.int32), 1) > 0)
                nothing = tl.full((BLOCK_K,), float("nan"), ACC)
                tl.store(y_ptr + (to + q_of_nan * syw), nothing.to(y_ptr.dtype.element_ty), mask=found)


@triton.jit(do_not_specialize=["outputs", "parts", "channels", *_PLACES])
def combine_parts(
    part_ptr,
    code_ptr,
    y_ptr,
    index_ptr,
    outputs,
    parts,
    channels,
    P,
    Q,
    plane_mul,
    plane_shift,
    row_mul,
    row_shift,
    channel_mul,
    channel_shift,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_yw,
    MEAN: tl.constexpr,
    WITH_INDEX: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums or maxima of ``[parts, outputs]``, part by part; outputs are in the order N, C, P, Q."""
    syn, syc, syh, syw = stride_yn, stride_yc, stride_yh, stride_yw
    if WIDE:
        syn, syc, syh, syw = widened(syn, syc, syh, syw)
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    plane, p, q, ok = pixel_of(o, outputs, P, Q, plane_mul, plane_shift, row_mul, row_shift)
    n = divide(plane, channel_mul, channel_shift)
    at = n * syn + (plane - n * channels) * syc + p * syh + q * syw
    total = tl.load(part_ptr + o, mask=ok, other=0.0)
    if WITH_INDEX:
        code = tl.load(code_ptr + o, mask=ok, other=0)
    for i in range(1, parts):
        value = tl.load(part_ptr + i * outputs + o, mask=ok, other=0.0)
        if MEAN:
            total += value
        else:
            if WITH_INDEX:
                other = tl.load(code_ptr + i * outputs + o, mask=ok, other=0)
                code = tl.where((value > total) | (value != value), other, code)
            total = greater(total, value)
    tl.store(y_ptr + at, rounded(total, y_ptr.dtype.element_ty), mask=ok)
    if WITH_INDEX:
        tl.store(index_ptr + at, code.to(index_ptr.dtype.element_ty), mask=ok)
