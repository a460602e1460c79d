"""2x2 windows that do not overlap, with what stands around them here: pooling with codes, and its gradient.

A tile is windows by channels where channels are innermost in memory, else rows of windows by columns: either way what
lies side by side in memory is the tile's last axis. A plane's odd last row or column is in no window: its gradient is
0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import divide, element_strides, kept, pixel_of, pooled, rounded

_SIZES = ["P", "Q", "rows", "tiles_m", "tiles_c", "plane_mul", "plane_shift", "row_mul", "row_shift"]


@triton.jit
def row_of_windows(r, rows, channels, P, plane_mul, plane_shift, row_mul, row_shift):
    """Image, channel and row of windows of row number ``r`` of ``rows = N·channels·P``, and whether there is one."""
    ok = r < rows
    inside = tl.where(ok, r, 0)
    n = divide(inside, plane_mul, plane_shift)
    rest = inside - n * (channels * P)
    c = divide(rest, row_mul, row_shift)
    return n, c, rest - c * P, ok


@triton.jit
def before_activation(dy, y_ptr, at, ok, ACTIVATION: tl.constexpr, ACC: tl.constexpr):
    """The gradient before an activation, told from its output, as a torch's ReLU lets it pass where that is NaN."""
    if ACTIVATION == "none":
        return dy
    else:
        y = tl.load(y_ptr + at, mask=ok, other=0.0).to(ACC)
        if ACTIVATION == "relu":
            return tl.where(y <= 0, 0.0, dy)
        elif ACTIVATION == "sigmoid":
            return dy * (y * (1 - y))
        else:
            return dy * (1 - y * y)


@triton.jit
def share_of(dy, code, TAP: tl.constexpr, POOL: tl.constexpr, CODE: tl.constexpr):
    """What one tap gets of its window's gradient."""
    if POOL == "max":
        return tl.where(code == TAP, dy, 0.0)
    elif CODE:
        return tl.where((code >> TAP) & 1 != 0, dy * 0.25, 0.0)
    else:
        return dy * 0.25


@triton.jit
def load_code(code_ptr, at, ok, CODE: tl.constexpr):
    if CODE:
        return tl.load(code_ptr + at, mask=ok, other=0).to(tl.int32)
    else:
        return 0


@triton.jit(do_not_specialize=_SIZES)
def pool_pixels(
    z_ptr, y_ptr, code_ptr, channels, P, Q, rows, tiles_c, plane_mul, plane_shift, row_mul, row_shift,
    stride_zn, stride_zc, stride_zh, stride_zw, stride_yn, stride_yc, stride_yh, stride_yw,
    Z_INNER: tl.constexpr, Z_ALIGN: tl.constexpr, Y_INNER: tl.constexpr, Y_ALIGN: tl.constexpr, C_ALIGN: tl.constexpr,
    POOL: tl.constexpr, CODE: tl.constexpr, ACTIVATION: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``[BLOCK_M windows, BLOCK_C channels]`` of the pooled output."""
    szn, szc, szh, szw = element_strides(stride_zn, stride_zc, stride_zh, stride_zw, Z_INNER, Z_ALIGN, WIDE)
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    pid = tl.program_id(0)
    c = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m = pid // tiles_c * BLOCK_M + tl.arange(0, BLOCK_M)
    n, p, q, ok = pixel_of(m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift)
    both = ok[:, None] & (c < channels * C_ALIGN)[None, :]
    at = kept(n * szn + 2 * p * szh + 2 * q * szw, ok)[:, None] + (c * szc)[None, :]
    a = tl.load(z_ptr + at, mask=both, other=0.0).to(ACC)
    b = tl.load(z_ptr + (at + szw), mask=both, other=0.0).to(ACC)
    c_ = tl.load(z_ptr + (at + szh), mask=both, other=0.0).to(ACC)
    d = tl.load(z_ptr + (at + (szh + szw)), mask=both, other=0.0).to(ACC)
    value, code = pooled(a, b, c_, d, POOL, ACTIVATION)
    to = kept(n * syn + p * syh + q * syw, ok)[:, None] + (c * syc)[None, :]
    tl.store(y_ptr + to, rounded(value, y_ptr.dtype.element_ty), mask=both)
    if CODE:
        tl.store(code_ptr + to, code.to(tl.uint8), mask=both)


@triton.jit(do_not_specialize=_SIZES)
def pool_rows(
    z_ptr, y_ptr, code_ptr, channels, P, Q, rows, tiles_q, plane_mul, plane_shift, row_mul, row_shift,
    stride_zn, stride_zc, stride_zh, stride_yn, stride_yc, stride_yh,
    Z_ALIGN: tl.constexpr, Y_ALIGN: tl.constexpr, Q_ALIGN: tl.constexpr, POOL: tl.constexpr, CODE: tl.constexpr,
    ACTIVATION: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """``[BLOCK_M rows of windows, BLOCK_Q columns]`` of the pooled output, columns innermost in memory."""
    Q = Q * Q_ALIGN
    szn, szc, szh, _ = element_strides(stride_zn, stride_zc, stride_zh, 1, "w", Z_ALIGN, WIDE)
    syn, syc, syh, _ = element_strides(stride_yn, stride_yc, stride_yh, 1, "w", Y_ALIGN, WIDE)
    pid = tl.program_id(0)
    r = pid // tiles_q * BLOCK_M + tl.arange(0, BLOCK_M)
    n, c, p, ok = row_of_windows(r, rows, channels, P, plane_mul, plane_shift, row_mul, row_shift)
    w = pid % tiles_q * (2 * BLOCK_Q) + tl.arange(0, 2 * BLOCK_Q)
    at = kept(n * szn + c * szc + 2 * p * szh, ok)[:, None] + w[None, :]
    both = ok[:, None] & (w < 2 * Q)[None, :]
    top = tl.load(z_ptr + at, mask=both, other=0.0).to(ACC)
    bottom = tl.load(z_ptr + (at + szh), mask=both, other=0.0).to(ACC)
    a, b = tl.split(tl.reshape(top, (BLOCK_M, BLOCK_Q, 2)))
    c_, d = tl.split(tl.reshape(bottom, (BLOCK_M, BLOCK_Q, 2)))
    value, code = pooled(a, b, c_, d, POOL, ACTIVATION)
    q = pid % tiles_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    to = kept(n * syn + c * syc + p * syh, ok)[:, None] + q[None, :]
    whole = ok[:, None] & (q < Q)[None, :]
    tl.store(y_ptr + to, rounded(value, y_ptr.dtype.element_ty), mask=whole)
    if CODE:
        tl.store(code_ptr + to, code.to(tl.uint8), mask=whole)


@triton.jit(do_not_specialize=[*_SIZES, "H", "W", "whole_p", "whole_q"])
def unpool_pixels(
    dy_ptr, y_ptr, code_ptr, dz_ptr, channels, P, Q, whole_p, whole_q, H, W, rows, tiles_c,
    plane_mul, plane_shift, row_mul, row_shift,
    stride_yn, stride_yc, stride_yh, stride_yw, stride_gn, stride_gc, stride_gh, stride_gw,
    stride_zn, stride_zc, stride_zh, stride_zw,
    Y_INNER: tl.constexpr, Y_ALIGN: tl.constexpr, G_INNER: tl.constexpr, G_ALIGN: tl.constexpr, Z_INNER: tl.constexpr,
    Z_ALIGN: tl.constexpr, C_ALIGN: tl.constexpr, POOL: tl.constexpr, CODE: tl.constexpr, ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradients of ``BLOCK_M`` windows' taps, of ``BLOCK_C`` channels. ``P x Q`` windows cover the plane ``H x W``,
    of which ``whole_p x whole_q`` are whole. Strides: ``y`` those of ``y`` and its code, ``g`` those of ``dy``."""
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    sgn, sgc, sgh, sgw = element_strides(stride_gn, stride_gc, stride_gh, stride_gw, G_INNER, G_ALIGN, WIDE)
    szn, szc, szh, szw = element_strides(stride_zn, stride_zc, stride_zh, stride_zw, Z_INNER, Z_ALIGN, WIDE)
    pid = tl.program_id(0)
    c = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m = pid // tiles_c * BLOCK_M + tl.arange(0, BLOCK_M)
    n, p, q, ok = pixel_of(m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift)
    whole = ok & (p < whole_p) & (q < whole_q)
    c_ok = (c < channels * C_ALIGN)[None, :]
    both = whole[:, None] & c_ok
    dy_at = kept(n * sgn + p * sgh + q * sgw, whole)[:, None] + (c * sgc)[None, :]
    at = kept(n * syn + p * syh + q * syw, whole)[:, None] + (c * syc)[None, :]
    dy = tl.load(dy_ptr + dy_at, mask=both, other=0.0).to(ACC)
    dy = before_activation(dy, y_ptr, at, both, ACTIVATION, ACC)
    code = load_code(code_ptr, at, both, CODE)
    for tap in tl.static_range(4):
        h, w = 2 * p + tap // 2, 2 * q + tap % 2
        inside = ok & (h < H) & (w < W)
        to = kept(n * szn + h * szh + w * szw, inside)[:, None] + (c * szc)[None, :]
        share = share_of(dy, code, tap, POOL, CODE)
        tl.store(dz_ptr + to, rounded(share, dz_ptr.dtype.element_ty), mask=inside[:, None] & c_ok)


@triton.jit(do_not_specialize=[*_SIZES, "H", "whole_p"])
def unpool_rows(
    dy_ptr, y_ptr, code_ptr, dz_ptr, channels, P, whole_p, whole_q, H, W, rows, tiles_q,
    plane_mul, plane_shift, row_mul, row_shift, stride_yn, stride_yc, stride_yh, stride_yw,
    stride_gn, stride_gc, stride_gh, stride_gw, stride_zn, stride_zc, stride_zh,
    Y_INNER: tl.constexpr, Y_ALIGN: tl.constexpr, G_INNER: tl.constexpr, G_ALIGN: tl.constexpr, Z_ALIGN: tl.constexpr,
    Q_ALIGN: tl.constexpr, W_ALIGN: tl.constexpr, POOL: tl.constexpr, CODE: tl.constexpr, ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """The gradients of the taps of ``BLOCK_M`` rows of windows, ``BLOCK_Q`` columns; columns innermost in memory."""
    W, whole_q = W * W_ALIGN, whole_q * Q_ALIGN
    syn, syc, syh, syw = element_strides(stride_yn, stride_yc, stride_yh, stride_yw, Y_INNER, Y_ALIGN, WIDE)
    sgn, sgc, sgh, sgw = element_strides(stride_gn, stride_gc, stride_gh, stride_gw, G_INNER, G_ALIGN, WIDE)
    szn, szc, szh, _ = element_strides(stride_zn, stride_zc, stride_zh, 1, "w", Z_ALIGN, WIDE)
    pid = tl.program_id(0)
    r = pid // tiles_q * BLOCK_M + tl.arange(0, BLOCK_M)
    n, c, p, ok = row_of_windows(r, rows, channels, P, plane_mul, plane_shift, row_mul, row_shift)
    q = pid % tiles_q * BLOCK_Q + tl.arange(0, BLOCK_Q)
    whole = ok & (p < whole_p)
    both = whole[:, None] & (q < whole_q)[None, :]
    dy_at = kept(n * sgn + c * sgc + p * sgh, whole)[:, None] + (q * sgw)[None, :]
    at = kept(n * syn + c * syc + p * syh, whole)[:, None] + (q * syw)[None, :]
    dy = tl.load(dy_ptr + dy_at, mask=both, other=0.0).to(ACC)
    dy = before_activation(dy, y_ptr, at, both, ACTIVATION, ACC)
    code = load_code(code_ptr, at, both, CODE)
    w = pid % tiles_q * (2 * BLOCK_Q) + tl.arange(0, 2 * BLOCK_Q)
    for i in tl.static_range(2):
        left = share_of(dy, code, 2 * i, POOL, CODE)
        right = share_of(dy, code, 2 * i + 1, POOL, CODE)
        row = tl.reshape(tl.join(left, right), (BLOCK_M, 2 * BLOCK_Q))
        inside = ok & (2 * p + i < H)
        to = kept(n * szn + c * szc + (2 * p + i) * szh, inside)[:, None] + w[None, :]
        tl.store(dz_ptr + to, rounded(row, dz_ptr.dtype.element_ty), mask=inside[:, None] & (w < W)[None, :])
