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
    """By exp(-2|z|); in float32 near 0 by the series, where 1 - exp would cancel."""
    size = tl.abs(z)
    e = tl.exp(-2 * size)
    y = (1 - e) / (1 + e)
    if z.dtype == tl.float32:
        square = z * z
        # x - x^3/3 + 2 x^5/15 - 17 x^7/315 + 62 x^9/2835: the next term is below 2e-8 of x for |x| < 0.25
        series = -0.33333333 + square * (0.13333333 + square * (-0.053968254 + square * 0.021869488))
        y = tl.where(size < 0.25, size + size * square * series, y)
    return tl.where(z < 0, -y, y)
