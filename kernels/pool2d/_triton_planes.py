"""Two small kernels: the gradient of windows that are whole planes, and the derivative of a maximum's gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import divide, element_strides, kept, rounded
from ._triton_lanes import both, by_lane, channels_of, lanes_of, start_of

_SIZES = ["H", "W", "P", "Q", "channels", "lanes", "across", "tiles_c", "bands"]
_SHARES = ["whole_h", "rest_h", "mul_h", "shift_h", "whole_w", "rest_w", "mul_w", "shift_w"]
_DIVISORS = ["across_mul", "across_shift", "channel_mul", "channel_shift"]


@triton.jit(do_not_specialize=["elements", "size", "divisor", "plane_mul", "plane_shift"])
def spread_planes(
    dy_ptr, index_ptr, dx_ptr, elements, size, divisor, plane_mul, plane_shift,
    ALIGN: tl.constexpr, MEAN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``dx`` where one window is the whole plane, of ``size`` elements in a row: ``dy`` and ``index`` are one number a
    plane."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = e < elements * ALIGN
    plane = divide(tl.where(ok, e, 0), plane_mul, plane_shift)
    value = tl.load(dy_ptr + plane, mask=ok, other=0.0).to(ACC)
    if MEAN:
        value = value * (1 / divisor.to(ACC))
    else:
        value = tl.where(tl.load(index_ptr + plane, mask=ok, other=0) == e - plane * size, value, 0.0)
    tl.store(dx_ptr + e, rounded(value, dx_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=[*_SIZES, *_SHARES, *_DIVISORS])
def pick(
    ddx_ptr,
    index_ptr,
    ddy_ptr,
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
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    LARGE: tl.constexpr,
    TAP_ROW: tl.constexpr,
    PLANAR: tl.constexpr,
    X_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr,
    Y_INNER: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    I_INNER: tl.constexpr,
    I_ALIGN: tl.constexpr,
    C_ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """``ddy = ddx`` at the index of each window; 0 where an index is none of the plane. Lanes are windows."""
    channels = channels * C_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    sin, sic, sih, siw = element_strides(stride_in, stride_ic, stride_ih, stride_iw, I_INNER, I_ALIGN, WIDE)
    share_h, share_w = (whole_h, rest_h, mul_h, shift_h), (whole_w, rest_w, mul_w, shift_w)
    pid = tl.program_id(0)
    first = pid // tiles_c % bands * BLOCK_P
    j = pid // (tiles_c * bands) * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    n, c, q, ok = lanes_of(j, lanes, across, across_mul, across_shift, channels, channel_mul, channel_shift, PLANAR)
    inner_x, inner_y, inner_ok = channels_of(pid % tiles_c, channels, sxc, syc, PLANAR, BLOCK_C)
    inner_x, inner_i, inner_ok = channels_of(pid % tiles_c, channels, sxc, sic, PLANAR, BLOCK_C)
    base = by_lane(n * sxn + c * sxc, PLANAR) + inner_x
    to = by_lane(n * syn + c * syc + q * syw, PLANAR) + inner_y
    at = by_lane(n * sin + c * sic + q * siw, PLANAR) + inner_i
    left = by_lane(start_of(q, Q, share_w, STRIDE_W, PAD_W, ADAPTIVE, LARGE), PLANAR)
    there = both(by_lane(ok, PLANAR), inner_ok, PLANAR)
    for p in range(first, min(first + BLOCK_P, P)):
        index = tl.load(index_ptr + p * sih + at, mask=there, other=0)
        if TAP_ROW == 0:
            h = index // W
            w = index - h * W
        else:
            top = start_of(p, P, share_h, STRIDE_H, PAD_H, ADAPTIVE, LARGE)
            r = index.to(tl.int32) // TAP_ROW
            h = top + r * DILATION_H
            w = left + (index.to(tl.int32) - r * TAP_ROW) * DILATION_W
        inside = (h >= 0) & (h < H) & (w >= 0) & (w < W) & there
        value = tl.load(ddx_ptr + (base + kept(h * sxh + w * sxw, inside)), mask=inside, other=0.0)
        tl.store(ddy_ptr + p * syh + to, value, mask=there)
