"""Convolution as an implicit matrix product, and its input gradient as the same product over output phases.

Rows are pixels, columns are output channels, and the reduction runs over taps and input channels; the matrix of windows
is never built: each tile is gathered from the source as the loop reaches its tap.

Both directions are one correlation. Output row ``i`` of a phase lies at ``i·out_step + phase`` and reads the source at
``i·in_step + origin + j·tap_step`` for its taps ``first + j·step``:

- forward: one phase, ``in_step = stride``, ``origin = -padding``, ``tap_step = dilation``, all taps;
- input gradient: ``stride`` phases an axis, ``in_step = 1``, and only the taps ``r`` for which
  ``phase + padding - r·dilation`` is a multiple of the stride: no product is made with a zero between strides.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import activate, element_strides, kept, multiply, pixel_of, pooled, rounded, scaled

_SIZES = [
    "H",
    "W",
    "Y_H",
    "Y_W",
    "P",
    "Q",
    "rows",
    "pad_h",
    "pad_w",
    "plane_mul",
    "plane_shift",
    "row_mul",
    "row_shift",
    "images",
    "tiles_m",
    "tiles_n",
]


@triton.jit
def taps_of(phase, pad, TAPS: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr):
    """Of one axis of the input gradient: the first tap that meets a phase, how many do, where the first one reads."""
    first = TAPS
    for t in tl.static_range(TAPS):
        tap = TAPS - 1 - t
        first = tl.where((phase + pad - tap * DILATION) % STRIDE == 0, tap, first)
    count = (TAPS - first + STEP - 1) // STEP
    origin = (phase + pad - first * DILATION) // STRIDE
    return first, count, origin


@triton.jit
def finite(tile):
    """Whether every element is neither NaN nor infinite."""
    return tl.max(tl.max((tile - tile != 0).to(tl.int32), 1), 0) == 0


@triton.jit
def tile_of(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Row and column of a tile; ``GROUP_M`` rows of tiles are walked together so that both operands stay in L2."""
    width = GROUP_M * tiles_n
    first = pid // width * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    return first + pid % width % height, pid % width // height


@triton.jit
def row_of(m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift, POOL: tl.constexpr):
    """Image, row and column of output ``m``, and whether there is one. With ``POOL`` four outputs in a row are a 2x2
    window, and ``P`` and ``Q`` count windows."""
    if POOL == "none":
        return pixel_of(m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift)
    else:
        n, p, q, ok = pixel_of(m // 4, rows // 4, P, Q, plane_mul, plane_shift, row_mul, row_shift)
        return n, 2 * p + m % 4 // 2, 2 * q + m % 2, ok


@triton.jit
def finished(acc, bias_ptr, channel, k_ok, ELEMENT: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr):
    """``act(acc + bias)``, rounded once."""
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=k_ok, other=0.0).to(acc.dtype)
        acc += bias[None, :]
    return rounded(activate(acc, ACTIVATION), ELEMENT)


@triton.jit
def store_tile(value, y_ptr, rows_at, row_ok, channels_at, k_ok, PIXELS_INNER: tl.constexpr):
    """Writes ``[rows, channels]``; where pixels are innermost in memory the tile is turned first."""
    if PIXELS_INNER:
        at = rows_at[None, :] + channels_at[:, None]  # [BLOCK_N, rows]
        tl.store(y_ptr + at, tl.trans(value), mask=row_ok[None, :] & k_ok[:, None])
    else:
        at = rows_at[:, None] + channels_at[None, :]  # [rows, BLOCK_N]
        tl.store(y_ptr + at, value, mask=row_ok[:, None] & k_ok[None, :])


@triton.jit
def store_pooled(
    value, y_ptr, code_ptr, tile_m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift, syn, syh, syw, channels_at,
    k_ok, POOL: tl.constexpr, CODE: tl.constexpr, ACTIVATION: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PIXELS_INNER: tl.constexpr,
):  # fmt: skip
    """Pools each four rows of a finished tile, and writes them and (``CODE``) their codes."""
    windows = tl.reshape(value.to(ACC), (BLOCK_M // 4, 2, 2, BLOCK_N))
    left, right = tl.split(tl.permute(windows, (0, 1, 3, 2)))  # [BLOCK_M // 4, 2, BLOCK_N]
    a, c = tl.split(tl.permute(left, (0, 2, 1)))
    b, d = tl.split(tl.permute(right, (0, 2, 1)))
    result, code = pooled(a, b, c, d, POOL, ACTIVATION)
    m = tile_m * (BLOCK_M // 4) + tl.arange(0, BLOCK_M // 4)
    n, p, q, row_ok = pixel_of(m, rows // 4, P, Q, plane_mul, plane_shift, row_mul, row_shift)
    rows_at = kept(n * syn + p * syh + q * syw, row_ok)
    store_tile(rounded(result, y_ptr.dtype.element_ty), y_ptr, rows_at, row_ok, channels_at, k_ok, PIXELS_INNER)
    if CODE:
        store_tile(code.to(tl.uint8), code_ptr, rows_at, row_ok, channels_at, k_ok, PIXELS_INNER)


@triton.jit
def reduce_taps(
    x_ptr,
    w_ptr,
    base,
    h0,
    w0,
    row_ok,
    w_at,
    k_ok,
    H,
    W,
    C,
    sxc,
    sxh,
    sxw,
    swi,
    swr,
    sws,
    taps_h,
    taps_w,
    only_group,
    TAP_H: tl.constexpr,
    TAP_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_C: tl.constexpr,
    GROUP_IN: tl.constexpr,
    CHECKED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sum over taps and channels of one tile, ``[BLOCK_M, BLOCK_N]``; channel blocks outside, taps inside.

    ``GROUP_IN > 0`` takes the channels of one group of the pack alone.
    """
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    taps = taps_h * taps_w
    for i in range(taps * tl.cdiv(C, BLOCK_K)):
        tap = i % taps
        tap_h = tap // taps_w
        tap_w = tap % taps_w
        c = i // taps * BLOCK_K + tl.arange(0, BLOCK_K)
        row_at = base + (tap_h * TAP_H * sxh + tap_w * TAP_W * sxw)  # [BLOCK_M]
        if CHECKED:
            h = h0 + tap_h * TAP_H
            w = w0 + tap_w * TAP_W
            ok = row_ok & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            row_at = kept(row_at, ok)
        else:
            ok = row_ok
        w_row = w_at + (tap_h * STEP_H * swr + tap_w * STEP_W * sws)  # [BLOCK_N]
        if EVEN_C and GROUP_IN == 0:
            a = tl.load(x_ptr + (row_at[:, None] + c[None, :] * sxc), mask=ok[:, None], other=0.0)
            b = tl.load(w_ptr + (w_row[None, :] + c[:, None] * swi), mask=k_ok[None, :], other=0.0)
        else:
            c_ok = c < C
            if GROUP_IN > 0:
                c_ok = c_ok & (c // GROUP_IN == only_group)
            a = tl.load(x_ptr + (row_at[:, None] + c[None, :] * sxc), mask=ok[:, None] & c_ok[None, :], other=0.0)
            b = tl.load(w_ptr + (w_row[None, :] + c[:, None] * swi), mask=k_ok[None, :] & c_ok[:, None], other=0.0)
        acc = multiply(a, b, acc, PRECISION, ACC)
    return acc


@triton.jit(do_not_specialize=_SIZES)
def correlate(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    code_ptr,
    H,
    W,
    C,
    K,
    P,
    Q,
    Y_H,
    Y_W,
    rows,
    images,
    tiles_m,
    tiles_n,
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
    stride_wg,
    stride_wo,
    stride_wi,
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
    PLANAR: tl.constexpr,
    CHECKED: tl.constexpr,
    GROUP_IN: tl.constexpr,
    GROUP_OUT: tl.constexpr,
    X_INNER: tl.constexpr,
    X_ALIGN: tl.constexpr,
    W_INNER: tl.constexpr,
    W_ALIGN: tl.constexpr,
    Y_INNER: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    C_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    ROW_ALIGN: tl.constexpr,
    EVEN_C: tl.constexpr,
    ACTIVATION: tl.constexpr,
    POOL: tl.constexpr,
    CODE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One tile of the output, ``BLOCK_M`` pixels of a phase by ``BLOCK_N`` channels of a group.

    ``C`` and ``K`` are channels a group (in units of ``C_ALIGN`` and ``K_ALIGN``), ``P`` and ``Q`` a phase's rows and
    columns, ``rows = N·P·Q``. ``PLANAR``: rows are consecutive pixels of one image, and images a program axis. With
    ``POOL`` ("max" or "avg") 2x2 windows of outputs are written as one, ``rows`` is four times their number.
    """
    C = C * C_ALIGN
    K = K * K_ALIGN
    rows = rows * ROW_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, X_INNER, X_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    swo, swi = scaled(stride_wo, "o", W_INNER, W_ALIGN), scaled(stride_wi, "i", W_INNER, W_ALIGN)
    swr, sws = stride_wr * W_ALIGN, stride_ws * W_ALIGN

    tiles = tiles_m * tiles_n
    tile_m, tile_n = tile_of(tl.program_id(0) % tiles, tiles_m, tiles_n, GROUP_M)
    outer = tl.program_id(0) // tiles
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k_ok = k < K
    phase_h = 0
    phase_w = 0
    if PLANAR:
        group = outer // images
        row_ok = m < rows
        n, p, q = outer % images, 0, m
    else:
        if TRANSPOSED:
            phases: tl.constexpr = STRIDE_H * STRIDE_W
            phase_h = outer % phases // STRIDE_W
            phase_w = outer % STRIDE_W
            group = outer // phases
        else:
            group = outer
        n, p, q, row_ok = row_of(m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift, POOL)

    if TRANSPOSED:
        tap_h, taps_h, origin_h = taps_of(phase_h, pad_h, R, STRIDE_H, DILATION_H, STEP_H)
        tap_w, taps_w, origin_w = taps_of(phase_w, pad_w, S, STRIDE_W, DILATION_W, STEP_W)
        h0, w0 = p + origin_h, q + origin_w  # [BLOCK_M]
        out_h, out_w = p * STRIDE_H + phase_h, q * STRIDE_W + phase_w
        row_ok = row_ok & (out_h < Y_H) & (out_w < Y_W)
        TAP_H: tl.constexpr = -(DILATION_H * STEP_H // STRIDE_H)
        TAP_W: tl.constexpr = -(DILATION_W * STEP_W // STRIDE_W)
    else:
        tap_h, taps_h, tap_w, taps_w = 0, R, 0, S
        h0, w0 = p * STRIDE_H - pad_h, q * STRIDE_W - pad_w
        out_h, out_w = p, q
        TAP_H: tl.constexpr = DILATION_H
        TAP_W: tl.constexpr = DILATION_W

    base = n * sxn + h0 * sxh + w0 * sxw + group * C * sxc  # may be negative: the first taps lie in the padding
    w_row = group * stride_wg * W_ALIGN + k * swo + tap_h * swr + tap_w * sws
    acc = reduce_taps(
        x_ptr,
        w_ptr,
        base,
        h0,
        w0,
        row_ok,
        w_row,
        k_ok,
        H,
        W,
        C,
        sxc,
        sxh,
        sxw,
        swi,
        swr,
        sws,
        taps_h,
        taps_w,
        0,
        TAP_H,
        TAP_W,
        STEP_H if TRANSPOSED else 1,
        STEP_W if TRANSPOSED else 1,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_C,
        0,
        CHECKED,
        ACC,
        PRECISION,
    )
    if GROUP_IN > 0 and not finite(acc):
        # A pack holds several groups, with zeros between them: a NaN or an infinity times such a zero would reach the
        # other groups. Tiles that hold one are computed again, group by group.
        for g in range(C // GROUP_IN):
            alone = reduce_taps(
                x_ptr,
                w_ptr,
                base,
                h0,
                w0,
                row_ok,
                w_row,
                k_ok,
                H,
                W,
                C,
                sxc,
                sxh,
                sxw,
                swi,
                swr,
                sws,
                taps_h,
                taps_w,
                g,
                TAP_H,
                TAP_W,
                STEP_H if TRANSPOSED else 1,
                STEP_W if TRANSPOSED else 1,
                BLOCK_M,
                BLOCK_N,
                BLOCK_K,
                EVEN_C,
                GROUP_IN,
                CHECKED,
                ACC,
                PRECISION,
            )
            acc = tl.where((k // GROUP_OUT == g)[None, :], alone, acc)
    channel = group * K + k
    value = finished(acc, bias_ptr, channel, k_ok, y_ptr.dtype.element_ty, ACTIVATION, HAS_BIAS)
    if POOL == "none":
        rows_at = n * syn + out_h * syh + out_w * syw
        rows_at = rows_at if PLANAR else kept(rows_at, row_ok)
        store_tile(value, y_ptr, rows_at, row_ok, channel * syc, k_ok, Y_INNER == "w" and not PLANAR)
    else:
        store_pooled(
            value, y_ptr, code_ptr, tile_m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift, syn, syh, syw,
            channel * syc, k_ok, POOL, CODE, ACTIVATION, ACC, BLOCK_M, BLOCK_N, Y_INNER == "w",
        )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def correlate_flat(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    code_ptr,
    H,
    W,
    K,
    P,
    Q,
    rows,
    tiles_m,
    tiles_n,
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
    stride_wg,
    stride_wo,
    stride_wi,
    stride_wr,
    stride_ws,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_yw,
    C: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    Y_INNER: tl.constexpr,
    Y_ALIGN: tl.constexpr,
    K_ALIGN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    POOL: tl.constexpr,
    CODE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """:func:`correlate` for few channels: taps and channels are one flat reduction, so no product is padded to 16
    channels. The source is gathered element by element; what is read R·S times lies in the L1 cache."""
    K = K * K_ALIGN
    sxn, sxc, sxh, sxw = element_strides(stride_xn, stride_xc, stride_xh, stride_xw, "", 1, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    tiles = tiles_m * tiles_n
    tile_m, tile_n = tile_of(tl.program_id(0) % tiles, tiles_m, tiles_n, GROUP_M)
    group = tl.program_id(0) // tiles
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k_ok = k < K
    n, p, q, row_ok = row_of(m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift, POOL)
    h0, w0 = p * STRIDE_H - pad_h, q * STRIDE_W - pad_w
    base = n * sxn + h0 * sxh + w0 * sxw + group * C * sxc
    filters = group * stride_wg + k * stride_wo
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for i in range(tl.cdiv(R * S * C, BLOCK_K)):
        e = i * BLOCK_K + tl.arange(0, BLOCK_K)  # (r, s, c), channels fastest
        e_ok = e < R * S * C
        c, tap = e % C, e // C
        h, w = tap // S * DILATION_H, tap % S * DILATION_W
        at_h, at_w = h0[:, None] + h[None, :], w0[:, None] + w[None, :]
        ok = row_ok[:, None] & e_ok[None, :] & (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
        x_at = base[:, None] + (h * sxh + w * sxw + c * sxc)[None, :]
        a = tl.load(x_ptr + tl.where(ok, x_at, 0), mask=ok, other=0.0)  # [BLOCK_M, BLOCK_K]
        w_ok = e_ok[:, None] & k_ok[None, :]
        inner = tap // S * stride_wr + tap % S * stride_ws + c * stride_wi
        b = tl.load(w_ptr + tl.where(w_ok, inner[:, None] + filters[None, :], 0), mask=w_ok, other=0.0)
        acc = multiply(a, b, acc, PRECISION, ACC)
    channel = group * K + k
    value = finished(acc, bias_ptr, channel, k_ok, y_ptr.dtype.element_ty, ACTIVATION, HAS_BIAS)
    if POOL == "none":
        rows_at = kept(n * syn + p * syh + q * syw, row_ok)
        store_tile(value, y_ptr, rows_at, row_ok, channel * syc, k_ok, Y_INNER == "w")
    else:
        store_pooled(
            value, y_ptr, code_ptr, tile_m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift, syn, syh, syw,
            channel * syc, k_ok, POOL, CODE, ACTIVATION, ACC, BLOCK_M, BLOCK_N, Y_INNER == "w",
        )  # fmt: skip
