"""Device functions that several Triton kernels share: division, activations, addresses."""

from __future__ import annotations

import os

import triton
import triton.language as tl

# Triton's interpreter multiplies the bits of bfloat16 as integers, and cuts off where it should round.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "") == "1")


@triton.jit
def divide(n, multiplier, shift):
    """``n // d`` for ``0 <= n < 2^31``, by what ``divisor(d)`` of ``_division.py`` gives: a high product."""
    high = tl.umulhi(n.to(tl.uint32) * 2, multiplier.to(tl.uint32))
    return (high >> shift.to(tl.uint32)).to(tl.int32)


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """``acc + a @ b`` on tensor cores, accumulated in ``ACC``."""
    if INTERPRETED:
        a, b = a.to(ACC), b.to(ACC)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def rounded(value, ELEMENT: tl.constexpr):
    """The value in a tensor's element type, rounded to the nearest, of two to the even one."""
    if INTERPRETED:
        if ELEMENT == tl.bfloat16:
            bits = tl.where(value == value, value, 0.0).to(tl.uint32, bitcast=True)
            up = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
            value = tl.where(value == value, up, value)
    return value.to(ELEMENT)


@triton.jit
def kept(offset, ok):
    """The offset where ``ok``, else 0, so that a masked lane forms no wild address. A product: a selection would make
    Triton forget what divides the offset, and load element by element."""
    return offset * ok.to(offset.dtype)


@triton.jit
def scaled(stride, NAME: tl.constexpr, INNER: tl.constexpr, ALIGN: tl.constexpr):
    """A stride that was passed in units of ``ALIGN`` elements, unless it is the innermost dimension's.

    Triton knows of an argument only whether 16 divides it; so it learns what else does, and loads 8 channels at once.
    """
    if NAME == INNER:
        return stride
    else:
        return stride * ALIGN


@triton.jit
def element_strides(n, c, h, w, INNER: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr):
    """A tensor's strides in elements, from those in units of ``ALIGN``; 64-bit ones make 64-bit offsets."""
    if WIDE:  # before they are multiplied: a stride of 2^31 elements is passed as 2^27
        n, c, h, w = widened(n, c, h, w)
    return n * ALIGN, scaled(c, "c", INNER, ALIGN), h * ALIGN, scaled(w, "w", INNER, ALIGN)


@triton.jit
def pixel_of(m, rows, P, Q, plane_mul, plane_shift, row_mul, row_shift):
    """Image, row and column of pixel number ``m`` of ``rows = N·P·Q``, and whether there is such a pixel."""
    ok = m < rows
    inside = tl.where(ok, m, 0)
    n = divide(inside, plane_mul, plane_shift)
    pixel = inside - n * (P * Q)
    p = divide(pixel, row_mul, row_shift)
    return n, p, pixel - p * Q, ok


@triton.jit
def best_of(value, code, other, CODE: tl.constexpr):
    """The larger of two values, and the code of the one that was taken: of equal ones the first, of NaNs the last."""
    later = (other > value) | (other != other)
    return tl.where(later, other, value), tl.where(later, CODE, code)


@triton.jit
def pooled(a, b, c, d, POOL: tl.constexpr, ACTIVATION: tl.constexpr):
    """A 2x2 window's maximum or mean, and what a backward needs to know of it: the tap of the maximum, or behind a ReLU
    one bit for each tap that its gradient passes (which is not stopped where a value is NaN)."""
    if POOL == "max":
        code = tl.zeros(a.shape, tl.int32)
        value, code = best_of(a, code, b, 1)
        value, code = best_of(value, code, c, 2)
        value, code = best_of(value, code, d, 3)
    else:
        value = (a + b + c + d) * 0.25
        code = tl.zeros(a.shape, tl.int32)
        if ACTIVATION == "relu":
            code += tl.where(a <= 0, 0, 1) + tl.where(b <= 0, 0, 2) + tl.where(c <= 0, 0, 4) + tl.where(d <= 0, 0, 8)
    return value, code


@triton.jit
def widened(a, b, c, d):
    """Four strides as 64-bit numbers: offsets made with them are, and reach past 2^31 elements."""
    return tl.cast(a, tl.int64), tl.cast(b, tl.int64), tl.cast(c, tl.int64), tl.cast(d, tl.int64)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """relu (NaN stays NaN), sigmoid or tanh of a tile in the accumulator's dtype."""
    if ACTIVATION == "relu":
        z = tl.where(z > 0, z, tl.where(z == z, 0.0, z))
    elif ACTIVATION == "sigmoid":
        # exp of a negative number only: nothing overflows
        e = tl.exp(-tl.abs(z))
        z = tl.where(z >= 0, 1 / (1 + e), e / (1 + e))
    elif ACTIVATION == "tanh":
        z = _tanh(z)
    return z


@triton.jit
def _tanh(z):
    """By exp(-2|z|); near 0, where 1 - exp would cancel, by the series or in float64 by the continued fraction."""
    size = tl.abs(z)
    e = tl.exp(-2 * size)
    y = (1 - e) / (1 + e)
    if z.dtype == tl.float32:
        square = z * z
        # x - x^3/3 + 2 x^5/15 - 17 x^7/315 + 62 x^9/2835: the next term is below 2e-8 of x for |x| < 0.25
        series = -0.33333333 + square * (0.13333333 + square * (-0.053968254 + square * 0.021869488))
        y = tl.where(size < 0.25, size + size * square * series, y)
    elif z.dtype == tl.float64:
        # x / (1 + x^2 / (3 + x^2 / (5 + ...))): seven terms of it are exact to 1e-17 for |x| < 0.25
        square = z * z
        below = 9 + square / (11 + square / 13)
        below = 1 + square / (3 + square / (5 + square / (7 + square / below)))
        y = tl.where(size < 0.25, size / below, y)
    return tl.where(z < 0, -y, tl.where(z == 0, z, y))  # zeros keep their sign
