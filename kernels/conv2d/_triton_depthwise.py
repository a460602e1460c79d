"""Depthwise convolution: every channel alone, so there is no matrix product, only bytes to move.

A program is a tile of pixels by channels, with whichever is innermost in memory along the lanes. Taps are unrolled;
what several taps read is read from device memory once and from the L1 cache after that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import activate, element_strides, kept, pixel_of, rounded
from ._triton_gemm import taps_of

_SIZES = ["H", "W", "P", "Q", "Y_H", "Y_W", "rows", "tiles_m", "tiles_c", "pad_h", "pad_w"]
_DIVISORS = ["plane_mul", "plane_shift", "row_mul", "row_shift"]


@triton.jit
def by_pixel(vector, PIXELS_INNER: tl.constexpr):
    """A vector over pixels as an axis of a tile: the last one where pixels are innermost in memory."""
    if PIXELS_INNER:
        return vector[None, :]
    else:
        return vector[:, None]


@triton.jit
def by_channel(vector, PIXELS_INNER: tl.constexpr):
    """A vector over channels as the other axis."""
    if PIXELS_INNER:
        return vector[:, None]
    else:
        return vector[None, :]


@triton.jit
def add_row(
    acc, j, tap_h, x_ptr, w_ptr, base, source, source_at, h0_2d, w0_2d, row_ok_2d, k, k_ok_2d, channels, H, W,
    first_h, taps_h, first_w, taps_w, sxc, sxh, sxw, stride_wk, stride_wr, stride_ws,
    TAP_H: tl.constexpr, TAP_W: tl.constexpr, STEP_H: tl.constexpr, STEP_W: tl.constexpr, MOST_W: tl.constexpr,
    TRANSPOSED: tl.constexpr, PIXELS_INNER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``acc`` and the products of one row of taps, of source channel ``source + j``."""
    h = h0_2d + tap_h * TAP_H
    for tap_w in tl.static_range(MOST_W):
        w = w0_2d + tap_w * TAP_W
        if TRANSPOSED:  # a phase has fewer taps than the phase that has most: the others end nowhere
            meets = (tap_h < taps_h) & (tap_w < taps_w)
            last_h, last_k = tl.where(meets, H, 0), tl.where(meets, channels, 0)
            filters = source + j
            r, s = first_h + tap_h * STEP_H, first_w + tap_w * STEP_W
        else:
            last_h, last_k = H, channels
            filters, r, s = k, tap_h, tap_w
        ok = row_ok_2d & (h >= 0) & (h < last_h) & (w >= 0) & (w < W)
        at = kept(base + (tap_h * TAP_H * sxh + tap_w * TAP_W * sxw), ok)
        x = tl.load(x_ptr + at + (source_at + j * sxc), mask=ok & k_ok_2d, other=0.0)
        f = tl.load(w_ptr + filters * stride_wk + r * stride_wr + s * stride_ws, mask=k < last_k, other=0.0)
        # where a tap lies outside there is no product: 0 times a filter's NaN would be one
        acc += tl.where(ok, x.to(ACC) * by_channel(f.to(ACC), PIXELS_INNER), 0.0)
    return acc


@triton.jit(do_not_specialize=_SIZES + _DIVISORS)
def depthwise(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    H,
    W,
    P,
    Q,
    Y_H,
    Y_W,
    channels,
    rows,
    tiles_m,
    tiles_c,
    pad_h,
    pad_w,
    plane_mul,
    plane_shift,
    row_mul,
    row_shift,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_wk,
    stride_wr,
    stride_ws,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_yw,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    PIXELS_INNER: tl.constexpr,
    X_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr,
    Y_INNER: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    C_ALIGN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Forward, and with ``TRANSPOSED`` the input's gradient over output phases as in :func:`correlate`.

    ``channels`` are those of the output. Forward, output channel ``k`` reads input channel ``k // MULTIPLIER``; the
    gradient of input channel ``c`` sums over its ``MULTIPLIER`` outputs.
    """
    channels = channels * C_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)

    pid = tl.program_id(0)
    if PIXELS_INNER:
        m = pid % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
        k = pid // tiles_m % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    else:
        k = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
        m = pid // tiles_c % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    phase = pid // (tiles_m * tiles_c)
    n, p, q, row_ok = pixel_of(m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift)
    if TRANSPOSED:
        phase_h, phase_w = phase // STRIDE_W, phase % STRIDE_W
        first_h, taps_h, origin_h = taps_of(phase_h, pad_h, R, STRIDE_H, DILATION_H, STEP_H)
        first_w, taps_w, origin_w = taps_of(phase_w, pad_w, S, STRIDE_W, DILATION_W, STEP_W)
        h0, w0 = p + origin_h, q + origin_w
        out_h, out_w = p * STRIDE_H + phase_h, q * STRIDE_W + phase_w
        row_ok = row_ok & (out_h < Y_H) & (out_w < Y_W)
        TAP_H: tl.constexpr = -(DILATION_H * STEP_H // STRIDE_H)
        TAP_W: tl.constexpr = -(DILATION_W * STEP_W // STRIDE_W)
        MOST_H: tl.constexpr = (R + STEP_H - 1) // STEP_H
        MOST_W: tl.constexpr = (S + STEP_W - 1) // STEP_W
        SUMMED: tl.constexpr = MULTIPLIER
        source = k * MULTIPLIER
    else:
        first_h, taps_h, first_w, taps_w = 0, R, 0, S
        h0, w0 = p * STRIDE_H - pad_h, q * STRIDE_W - pad_w
        out_h, out_w = p, q
        TAP_H: tl.constexpr = DILATION_H
        TAP_W: tl.constexpr = DILATION_W
        MOST_H: tl.constexpr = R
        MOST_W: tl.constexpr = S
        SUMMED: tl.constexpr = 1
        source = k if MULTIPLIER == 1 else k // MULTIPLIER
    k_ok = k < channels
    base = by_pixel(n * sxn + h0 * sxh + w0 * sxw, PIXELS_INNER)
    source_at = by_channel(source * sxc, PIXELS_INNER)
    row_ok_2d, k_ok_2d = by_pixel(row_ok, PIXELS_INNER), by_channel(k_ok, PIXELS_INNER)
    h0_2d, w0_2d = by_pixel(h0, PIXELS_INNER), by_pixel(w0, PIXELS_INNER)
    if PIXELS_INNER:
        acc = tl.zeros((BLOCK_C, BLOCK_M), ACC)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    if SUMMED == 1 and R * S <= 9:  # all loads in flight at once
        for tap_h in tl.static_range(MOST_H):
            acc = add_row(
                acc, 0, tap_h, x_ptr, w_ptr, base, source, source_at, h0_2d, w0_2d, row_ok_2d, k, k_ok_2d, channels,
                H, W, first_h, taps_h, first_w, taps_w, sxc, sxh, sxw, stride_wk, stride_wr, stride_ws,
                TAP_H, TAP_W, STEP_H, STEP_W, MOST_W, TRANSPOSED, PIXELS_INNER, ACC,
            )  # fmt: skip
    else:
        for i in range(SUMMED * MOST_H):
            j = i // MOST_H
            acc = add_row(
                acc, j, i % MOST_H, x_ptr, w_ptr, base, source, source_at, h0_2d, w0_2d, row_ok_2d, k, k_ok_2d,
                channels, H, W, first_h, taps_h, first_w, taps_w, sxc, sxh, sxw, stride_wk, stride_wr, stride_ws,
                TAP_H, TAP_W, STEP_H, STEP_W, MOST_W, TRANSPOSED, PIXELS_INNER, ACC,
            )  # fmt: skip
    if HAS_BIAS:
        bias = tl.load(bias_ptr + k, mask=k_ok, other=0.0).to(ACC)
        acc += by_channel(bias, PIXELS_INNER)
    acc = activate(acc, ACTIVATION)
    to = by_pixel(kept(n * syn + out_h * syh + out_w * syw, row_ok), PIXELS_INNER)
    tl.store(
        y_ptr + to + by_channel(k * syc, PIXELS_INNER), rounded(acc, y_ptr.dtype.element_ty), mask=row_ok_2d & k_ok_2d
    )


@triton.jit(do_not_specialize=[*_SIZES, *_DIVISORS, "blocks", "split"])
def depthwise_weight_grad(
    x_ptr,
    dy_ptr,
    slab_ptr,
    bias_ptr,
    H,
    W,
    P,
    Q,
    channels,
    rows,
    blocks,
    split,
    tiles_c,
    pad_h,
    pad_w,
    plane_mul,
    plane_shift,
    row_mul,
    row_shift,
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
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    TAPS: tl.constexpr,
    PIXELS_INNER: tl.constexpr,
    X_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr,
    Y_INNER: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    C_ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One slab of the gradient of ``BLOCK_C`` channels' filters: ``TAPS`` taps' sums are kept as tiles while ``x`` and
    ``dy`` pass once, and are added up along the pixels at the end.

    Slabs are ``[split, channels, R·S]``. ``TAPS`` is all of ``R·S`` unless that is more than fits in registers; then
    programs share the taps and each reads both tensors.
    """
    channels = channels * C_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)

    pid = tl.program_id(0)
    k = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    rest = pid // tiles_c
    slab = rest % split
    first_tap = rest // split * TAPS
    k_ok = k < channels
    source = k if MULTIPLIER == 1 else k // MULTIPLIER
    first = tl.cast(slab.to(tl.int64) * blocks // split, tl.int32)
    last = tl.cast((slab.to(tl.int64) + 1) * blocks // split, tl.int32)
    sums = ()
    for t in tl.static_range(TAPS):
        if PIXELS_INNER:
            sums = sums + (tl.zeros((BLOCK_C, BLOCK_M), ACC),)
        else:
            sums = sums + (tl.zeros((BLOCK_M, BLOCK_C), ACC),)
    if PIXELS_INNER:
        total = tl.zeros((BLOCK_C, BLOCK_M), ACC)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    for block in range(first, last):
        m = block * BLOCK_M + tl.arange(0, BLOCK_M)
        n, p, q, row_ok = pixel_of(m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift)
        h0, w0 = p * STRIDE_H - pad_h, q * STRIDE_W - pad_w
        dy_at = by_pixel(n * syn + p * syh + q * syw, PIXELS_INNER)
        row_ok_2d, k_ok_2d = by_pixel(row_ok, PIXELS_INNER), by_channel(k_ok, PIXELS_INNER)
        dy = tl.load(dy_ptr + dy_at + by_channel(k * syc, PIXELS_INNER), mask=row_ok_2d & k_ok_2d, other=0.0).to(ACC)
        if HAS_BIAS:
            total += dy
        base = by_pixel(n * sxn + h0 * sxh + w0 * sxw, PIXELS_INNER)
        source_at = by_channel(source * sxc, PIXELS_INNER)
        h0_2d, w0_2d = by_pixel(h0, PIXELS_INNER), by_pixel(w0, PIXELS_INNER)
        added = ()
        for t in tl.static_range(TAPS):
            tap = first_tap + t
            h = h0_2d + tap // S * DILATION_H
            w = w0_2d + tap % S * DILATION_W
            ok = row_ok_2d & (h >= 0) & (h < tl.where(tap < R * S, H, 0)) & (w >= 0) & (w < W)
            at = kept(base + (tap // S * DILATION_H * sxh + tap % S * DILATION_W * sxw), ok)
            x = tl.load(x_ptr + at + source_at, mask=ok & k_ok_2d, other=0.0).to(ACC)
            added = added + (sums[t] + tl.where(ok, x * dy, 0.0),)
        sums = added
    at = (slab * channels + k) * (R * S) + first_tap
    for t in tl.static_range(TAPS):
        value = tl.sum(sums[t], 1 if PIXELS_INNER else 0)
        tl.store(slab_ptr + at + t, value, mask=k < tl.where(first_tap + t < R * S, channels, 0))
    if HAS_BIAS and first_tap == 0:
        tl.store(bias_ptr + slab * channels + k, tl.sum(total, 1 if PIXELS_INNER else 0), mask=k_ok)
