"""The weight's gradient: a product over all pixels, split into slabs that are summed in order.

Rows are output channels, columns are taps and input channels, and the reduction runs over ``N·P·Q`` pixels. That is
long and the result is small, so the pixels are cut into ``split`` ranges, each with a slab of its own; a second kernel
adds the slabs in order: the same bits on every run. The bias's gradient comes from the same tiles of ``dy``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import divide, element_strides, kept, multiply, pixel_of, rounded

_SIZES = ["H", "W", "P", "Q", "rows", "images", "pad_h", "pad_w", "blocks", "split", "tiles_k", "tiles_c"]
_DIVISORS = ["plane_mul", "plane_shift", "row_mul", "row_shift"]


@triton.jit
def accumulate(
    x_ptr,
    dy_ptr,
    first,
    last,
    rows,
    H,
    W,
    P,
    Q,
    pixel_blocks,
    pad_h,
    pad_w,
    plane_mul,
    plane_shift,
    row_mul,
    row_shift,
    sxn,
    sxh,
    sxw,
    syn,
    syh,
    syw,
    k_at,
    k_ok,
    column_at,
    column_h,
    column_w,
    column_ok,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    FLAT: tl.constexpr,
    PLANAR: tl.constexpr,
    CHECKED: tl.constexpr,
    BIAS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Blocks ``first`` to ``last`` of pixels: products ``[BLOCK_M, BLOCK_N]`` and the sums of ``dy`` ``[BLOCK_M]``."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    total = tl.zeros((BLOCK_M,), ACC)
    for block in range(first, last):
        if PLANAR:  # blocks of consecutive pixels that end with their image
            n, p = block // pixel_blocks, 0
            q = block % pixel_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
            ok = q < rows
        else:
            m = block * BLOCK_K + tl.arange(0, BLOCK_K)
            n, p, q, ok = pixel_of(m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift)
        dy_at = n * syn + p * syh + q * syw
        dy = tl.load(dy_ptr + dy_at[:, None] + k_at[None, :], mask=ok[:, None] & k_ok[None, :], other=0.0)
        h, w = p * STRIDE_H - pad_h, q * STRIDE_W - pad_w
        if FLAT:  # columns at different taps: an address and a mask for each element
            at_h, at_w = h[:, None] + column_h[None, :], w[:, None] + column_w[None, :]
            x_ok = ok[:, None] & column_ok[None, :]
            x_at = (n * sxn + h * sxh + w * sxw)[:, None] + (column_h * sxh + column_w * sxw + column_at)[None, :]
            if CHECKED:
                inside = (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
                x_ok = x_ok & inside
                x_at = kept(x_at, inside)
        else:  # one tap: an address and a mask for each pixel
            h, w = h + column_h, w + column_w
            row_at = n * sxn + h * sxh + w * sxw
            row_ok = ok
            if CHECKED:
                row_ok = ok & (h >= 0) & (h < H) & (w >= 0) & (w < W)
                row_at = kept(row_at, row_ok)
            x_ok = row_ok[:, None] & column_ok[None, :]
            x_at = row_at[:, None] + column_at[None, :]
        x = tl.load(x_ptr + x_at, mask=x_ok, other=0.0)  # [BLOCK_K, BLOCK_N]
        acc = multiply(tl.trans(dy), x, acc, PRECISION, ACC)
        if BIAS:
            total += tl.sum(dy.to(ACC), 0)
    return acc, total


@triton.jit(do_not_specialize=_SIZES + _DIVISORS)
def weight_grad(
    x_ptr,
    dy_ptr,
    slab_ptr,
    bias_ptr,
    H,
    W,
    P,
    Q,
    C,
    K,
    groups,
    rows,
    blocks,
    split,
    images,
    tiles_k,
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
    FLAT: tl.constexpr,
    PLANAR: tl.constexpr,
    CHECKED: tl.constexpr,
    X_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr,
    Y_INNER: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    ROW_ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of one slab: ``BLOCK_M`` output channels by ``BLOCK_N`` columns over its range of pixel blocks.

    Columns are input channels at one tap, or with ``FLAT`` (few channels) taps and channels as they come, channels
    fastest. Slabs are ``[split, groups·K, R·S·C]``, bias slabs ``[split, groups·K]``.
    """
    C = C * C_ALIGN
    K = K * K_ALIGN
    rows = rows * ROW_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)

    pid = tl.program_id(0)
    tile_k = pid % tiles_k
    column_tile = pid // tiles_k % tiles_c
    rest = pid // (tiles_k * tiles_c)
    slab, group = rest % split, rest // split
    k = tile_k * BLOCK_M + tl.arange(0, BLOCK_M)
    k_ok = k < K
    if FLAT:
        e = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        column_ok = e < R * S * C
        c, tap = e % C, e // C
        column_h, column_w = tap // S * DILATION_H, tap % S * DILATION_W  # [BLOCK_N]
    else:
        tiles_of_tap = tl.cdiv(C, BLOCK_N)
        tap = column_tile // tiles_of_tap
        c = column_tile % tiles_of_tap * BLOCK_N + tl.arange(0, BLOCK_N)
        column_ok = c < C
        column_h, column_w = tap // S * DILATION_H, tap % S * DILATION_W  # of the whole tile
        e = tap * C + c
    column_at = (group * C + c) * sxc
    k_at = (group * K + k) * syc
    first = tl.cast(slab.to(tl.int64) * blocks // split, tl.int32)
    last = tl.cast((slab.to(tl.int64) + 1) * blocks // split, tl.int32)
    pixel_blocks = tl.cdiv(rows, BLOCK_K)
    if HAS_BIAS:
        with_bias = column_tile == 0
    else:
        with_bias = False
    if with_bias:
        acc, total = accumulate(
            x_ptr, dy_ptr, first, last, rows, H, W, P, Q, pixel_blocks, pad_h, pad_w,
            plane_mul, plane_shift, row_mul, row_shift, sxn, sxh, sxw, syn, syh, syw,
            k_at, k_ok, column_at, column_h, column_w, column_ok,
            STRIDE_H, STRIDE_W, FLAT, PLANAR, CHECKED, True, ACC, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.store(bias_ptr + (slab * groups + group) * K + k, total, mask=k_ok)
    else:
        acc, total = accumulate(
            x_ptr, dy_ptr, first, last, rows, H, W, P, Q, pixel_blocks, pad_h, pad_w,
            plane_mul, plane_shift, row_mul, row_shift, sxn, sxh, sxw, syn, syh, syw,
            k_at, k_ok, column_at, column_h, column_w, column_ok,
            STRIDE_H, STRIDE_W, FLAT, PLANAR, CHECKED, False, ACC, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    row = (slab * groups + group) * K + k  # the slabs of one call have fewer than 2^31 elements
    at = row[:, None] * (R * S * C) + e[None, :]
    tl.store(slab_ptr + at, acc, mask=k_ok[:, None] & column_ok[None, :])


@triton.jit(do_not_specialize=["K", "slab_size", "slabs", "weights", "row_mul", "row_shift", "c_mul", "c_shift"])
def sum_slabs(
    slab_ptr,
    bias_slab_ptr,
    dw_ptr,
    db_ptr,
    slabs,
    slab_size,
    weights,
    K,
    row_mul,
    row_shift,
    c_mul,
    c_shift,
    stride_wk,
    stride_wc,
    stride_wr,
    stride_ws,
    C,
    RS: tl.constexpr,
    S: tl.constexpr,
    GROUP_OUT: tl.constexpr,
    PACK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``dw`` and ``db`` as the sums of their slabs, in order. Weights are taken as ``[K, R, S, C]``, channels fastest.

    ``PACK`` groups of ``GROUP_OUT`` outputs share the rows of a slab, ``[R, S, PACK·C]``; of these a weight's own group
    is taken. The last programs sum the bias.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weight_blocks = tl.cdiv(weights, BLOCK)
    if tl.program_id(0) < weight_blocks:
        ok = i < weights
        j = tl.where(ok, i, 0)
        k = divide(j, row_mul, row_shift)
        e = j - k * (RS * C)
        tap = divide(e, c_mul, c_shift)
        c = e - tap * C
        at = (k * RS + tap) * (PACK * C) + (k // GROUP_OUT) % PACK * C + c
        total = tl.zeros((BLOCK,), slab_ptr.dtype.element_ty)
        for slab in range(slabs):
            total += tl.load(slab_ptr + tl.cast(slab, tl.int64) * slab_size + at, mask=ok, other=0.0)
        to = k * stride_wk + c * stride_wc + tap // S * stride_wr + tap % S * stride_ws
        tl.store(dw_ptr + to, rounded(total, dw_ptr.dtype.element_ty), mask=ok)
    elif HAS_BIAS:
        k = i - weight_blocks * BLOCK
        ok = k < K
        total = tl.zeros((BLOCK,), bias_slab_ptr.dtype.element_ty)
        for slab in range(slabs):
            total += tl.load(bias_slab_ptr + slab * K + k, mask=ok, other=0.0)
        tl.store(db_ptr + k, rounded(total, db_ptr.dtype.element_ty), mask=ok)
