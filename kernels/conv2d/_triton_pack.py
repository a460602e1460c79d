"""Copies into the order the product kernels read at full width: channels innermost, small groups side by side."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import divide


@triton.jit(do_not_specialize=["W", "pixels", "tiles_p", "tiles_c", "row_mul", "row_shift"])
def to_channels_last(
    x_ptr,
    y_ptr,
    W,
    C,
    pixels,
    tiles_p,
    tiles_c,
    row_mul,
    row_shift,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """``[N, C, H, W]`` of any strides into a dense ``[N, H, W, C]``, one image's ``BLOCK_P`` pixels by ``BLOCK_C``
    channels a program: read along pixels, turned through shared memory, written along channels.

    ``FLAT``: rows follow one another, so a pixel's address is its number times one stride.
    """
    pid = tl.program_id(0)
    p = pid % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    c = pid // tiles_p % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    n = pid // (tiles_p * tiles_c)
    p_ok, c_ok = p < pixels, c < C
    if WIDE:
        n, c, p = n.to(tl.int64), c.to(tl.int64), p.to(tl.int64)
    if FLAT:
        at = p * stride_w
    else:
        inside = tl.where(p_ok, p, 0)
        h = divide(inside, row_mul, row_shift).to(p.dtype)
        at = h * stride_h + (inside - h * W) * stride_w
    ok = p_ok[:, None] & c_ok[None, :]
    tile = tl.load(x_ptr + n * stride_n + at[:, None] + (c * stride_c)[None, :], mask=ok)
    tl.store(y_ptr + n * pixels * C + (p * C)[:, None] + c[None, :], tile, mask=ok)


@triton.jit(do_not_specialize=["elements", "row_mul", "row_shift", "c_mul", "c_shift"])
def pack_groups(
    w_ptr,
    packed_ptr,
    elements,
    row_mul,
    row_shift,
    c_mul,
    c_shift,
    stride_k,
    stride_c,
    stride_r,
    stride_s,
    C: tl.constexpr,
    RS: tl.constexpr,
    S: tl.constexpr,
    GROUP_OUT: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Filters ``[K, C, R, S]`` of groups of ``GROUP_OUT`` outputs and ``C`` inputs as dense ``[K, R, S, PACK·C]``: each
    filter beside zeros for the other groups of its pack."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = i < elements
    j = tl.where(ok, i, 0)
    k = divide(j, row_mul, row_shift)
    e = j - k * (RS * PACK * C)
    tap = divide(e, c_mul, c_shift)
    c = e - tap * (PACK * C)
    own = ok & (c // C == (k // GROUP_OUT) % PACK)
    at = k * stride_k + c % C * stride_c + tap // S * stride_r + tap % S * stride_s
    tl.store(packed_ptr + i, tl.load(w_ptr + tl.where(own, at, 0), mask=own, other=0.0), mask=ok)
