"""Softmax and log-softmax in Triton.

A program owns a tile: some slices by some elements of each. Where slices are rows of memory their elements lie along
the lanes; where they are columns (channels of an image, dimension 0 of a matrix) neighbouring slices do. Either way
lanes read neighbours, 16 bytes a thread where sizes allow.

- Slices that fit a tile: each tensor is read once and the result written once (:func:`softmax_whole`).
- Longer ones: a pass that keeps what is needed of the elements seen so far, the largest and ``Σ exp(x - largest)``, and
  a pass that writes (:func:`softmax_looped`). Few long slices are cut into parts, for which the two passes are two
  launches; the parts' numbers are put together in one fixed order.

A tensor in another order than the output's is copied into it first.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl

from ... import autotune
from ...autotune import Tunable
from .. import _triton_tensors
from .._division import divisor
from .._triton import launch
from .._triton_math import divide, kept, rounded
from .._triton_tensors import alignment
from ..activation._dense import in_the_order_of
from . import _triton_space as space
from ._slices import Slices, Softmax, flat

ON_TENSORS = True
TUNABLES = space.TUNABLES

_SIZES = ["slices", "length", "inner", "inner_mul", "inner_shift"]


# ---- where a tile's elements lie


@triton.jit
def by_slice(vector, COLUMNS: tl.constexpr):
    """A vector over slices as an axis of a tile: the last one where neighbouring slices are neighbours in memory."""
    if COLUMNS:
        return vector[None, :]
    else:
        return vector[:, None]


@triton.jit
def by_element(vector, COLUMNS: tl.constexpr):
    """A vector over a slice's elements as the other axis."""
    if COLUMNS:
        return vector[:, None]
    else:
        return vector[None, :]


@triton.jit
def sizes(slices, length, inner, COLUMNS: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr):
    """The sizes in elements. The innermost was passed in units of ``ALIGN``, so that Triton knows what divides it."""
    if WIDE:  # before they are multiplied: 2^31 elements are passed as 2^27
        slices, length, inner = tl.cast(slices, tl.int64), tl.cast(length, tl.int64), tl.cast(inner, tl.int64)
    if COLUMNS:
        slices, inner = slices * ALIGN, inner * ALIGN
    else:
        length = length * ALIGN
    return slices, length, inner


@triton.jit
def slice_places(
    block, slices, length, inner, inner_mul, inner_shift,
    COLUMNS: tl.constexpr, PLANES: tl.constexpr, ALIGN: tl.constexpr, WIDE: tl.constexpr, BLOCK_SLICES: tl.constexpr,
):  # fmt: skip
    """Numbers of a program's slices, which of them there are, and the offset of the first element of each.

    ``PLANES``: there are several ``[length, inner]``, one behind the other.
    """
    if WIDE:
        block = block.to(tl.int64)
    s = block * BLOCK_SLICES + tl.arange(0, BLOCK_SLICES)
    ok = s < slices
    if PLANES:
        outer = divide(tl.where(ok, s, 0), inner_mul, inner_shift).to(s.dtype)
        # slices beyond a multiple of ALIGN are never in two planes, which is more than Triton can tell
        first = tl.max_contiguous(tl.multiple_of(s + outer * ((length - 1) * inner), ALIGN), ALIGN)
    elif COLUMNS:
        first = s
    else:
        first = kept(s, ok) * length
    return s, ok, first


@triton.jit
def offsets(first, ok, start, length, inner, COLUMNS: tl.constexpr, BLOCK_LENGTH: tl.constexpr):
    """Offsets of a tile's elements, the slices' elements from ``start`` on, and which of them there are."""
    element = start + tl.arange(0, BLOCK_LENGTH)
    inside = element < length
    step = kept(element, inside) * inner if COLUMNS else element
    return by_slice(first, COLUMNS) + by_element(step, COLUMNS), by_slice(ok, COLUMNS) & by_element(inside, COLUMNS)


@triton.jit
def part_offsets(s, ok, p, parts, slices, COLUMNS: tl.constexpr, BLOCK_LENGTH: tl.constexpr):
    """The same in ``[parts, slices]``, from part ``p`` on."""
    part = p + tl.arange(0, BLOCK_LENGTH)
    inside = part < parts
    at = by_slice(kept(s, ok), COLUMNS) + by_element(kept(part, inside) * slices, COLUMNS)
    return at, by_slice(ok, COLUMNS) & by_element(inside, COLUMNS)


# ---- forward


@triton.jit
def with_more(x, largest, total):
    """Each lane's largest number and ``Σ exp(number - largest)``, with one number more. NaN stays in the sum.

    One exponential, of a number that is not positive: either the sum shrinks and 1 is added, or a term below 1 is.
    """
    above = x > largest
    e = tl.exp(-tl.abs(x - largest))
    return tl.where(above, x, largest), tl.where(above, total * e + 1, total + e)


@triton.jit
def with_part(part_largest, part_total, largest, total):
    """The same with the numbers of a part more."""
    top = tl.maximum(part_largest, largest)
    return top, total * tl.exp(largest - top) + part_total * tl.exp(part_largest - top)


@triton.jit
def put_together(largest, total, COLUMNS: tl.constexpr):
    """The largest number and the sum of each slice, from those of its lanes. An infinity makes the sum NaN."""
    AXIS: tl.constexpr = 0 if COLUMNS else 1
    of_slice = tl.max(largest, AXIS)
    return of_slice, tl.sum(total * tl.exp(largest - by_slice(of_slice, COLUMNS)), AXIS)


@triton.jit(do_not_specialize=_SIZES)
def softmax_whole(
    x_ptr,
    y_ptr,
    slices,
    length,
    inner,
    inner_mul,
    inner_shift,
    LOG: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLANES: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_SLICES: tl.constexpr,
    BLOCK_LENGTH: tl.constexpr,
):
    """``y = exp(x - max x) / Σ exp(x - max x)`` of slices that are no longer than the tile, or its logarithm."""
    slices, length, inner = sizes(slices, length, inner, COLUMNS, ALIGN, WIDE)
    _, ok, first = slice_places(
        tl.program_id(0), slices, length, inner, inner_mul, inner_shift, COLUMNS, PLANES, ALIGN, WIDE, BLOCK_SLICES
    )
    at, there = offsets(first, ok, 0, length, inner, COLUMNS, BLOCK_LENGTH)
    AXIS: tl.constexpr = 0 if COLUMNS else 1
    x = tl.load(x_ptr + at, mask=there, other=float("-inf")).to(ACC)
    below = x - by_slice(tl.max(x, AXIS), COLUMNS)
    e = tl.exp(below)
    total = tl.sum(e, AXIS)
    if LOG:
        y = below - by_slice(tl.log(total), COLUMNS)
    else:
        y = e * by_slice(1 / total, COLUMNS)
    tl.store(y_ptr + at, rounded(y, y_ptr.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=[*_SIZES, "parts", "steps"])
def softmax_looped(
    x_ptr,
    y_ptr,
    largest_ptr,
    total_ptr,
    slices,
    length,
    inner,
    inner_mul,
    inner_shift,
    parts,
    steps,
    LOWEST: tl.constexpr,
    READS: tl.constexpr,
    WRITES: tl.constexpr,
    LOG: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLANES: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_SLICES: tl.constexpr,
    BLOCK_LENGTH: tl.constexpr,
):
    """The same of slices of any length, each cut into ``parts`` of ``steps`` tiles.

    ``READS``: the first pass, whose result goes to ``[parts, slices]`` unless this launch also ``WRITES``: the second
    pass, which without the first puts that together.

    The largest number so far starts with ``LOWEST``, the lowest finite one, so that -inf is below it: a slice of
    nothing else has the sum 0 in the end, and NaN as its result.
    """
    slices, length, inner = sizes(slices, length, inner, COLUMNS, ALIGN, WIDE)
    part = tl.program_id(0) % parts
    s, ok, first = slice_places(
        tl.program_id(0) // parts, slices, length, inner, inner_mul, inner_shift, COLUMNS, PLANES, ALIGN, WIDE,
        BLOCK_SLICES,
    )  # fmt: skip
    each = tl.cast(steps, length.dtype) * BLOCK_LENGTH
    begin = part.to(length.dtype) * each
    end = tl.minimum(begin + each, length)
    if COLUMNS:
        total = tl.zeros((BLOCK_LENGTH, BLOCK_SLICES), ACC)
    else:
        total = tl.zeros((BLOCK_SLICES, BLOCK_LENGTH), ACC)
    largest = total + LOWEST
    if READS:
        for start in range(begin, end, BLOCK_LENGTH):
            at, there = offsets(first, ok, start, length, inner, COLUMNS, BLOCK_LENGTH)
            x = tl.load(x_ptr + at, mask=there, other=float("-inf")).to(ACC)
            largest, total = with_more(x, largest, total)
    else:
        for p in range(0, parts, BLOCK_LENGTH):
            at, there = part_offsets(s, ok, p, parts, slices, COLUMNS, BLOCK_LENGTH)
            largest, total = with_part(
                tl.load(largest_ptr + at, mask=there, other=LOWEST), tl.load(total_ptr + at, mask=there, other=0.0),
                largest, total,
            )  # fmt: skip
    top, total = put_together(largest, total, COLUMNS)
    if WRITES:
        top = by_slice(top, COLUMNS)
        if LOG:
            shift = by_slice(tl.log(total), COLUMNS)
        else:
            scale = by_slice(1 / total, COLUMNS)
        for start in range(begin, end, BLOCK_LENGTH):
            at, there = offsets(first, ok, start, length, inner, COLUMNS, BLOCK_LENGTH)
            below = tl.load(x_ptr + at, mask=there, other=0.0).to(ACC) - top
            if LOG:
                y = below - shift
            else:
                y = tl.exp(below) * scale
            tl.store(y_ptr + at, rounded(y, y_ptr.dtype.element_ty), mask=there)
    else:
        at = part * slices + s
        tl.store(largest_ptr + at, top, mask=ok)
        tl.store(total_ptr + at, total, mask=ok)


# ---- backward


@triton.jit
def summed(dy, y, LOG: tl.constexpr):
    """What the sum over a slice is made of: ``dy``, or ``dy · y``."""
    if LOG:
        return dy
    else:
        return dy * y


@triton.jit
def gradient(dy, y, total, LOG: tl.constexpr):
    """``dx = dy - exp(y) Σ dy``, or ``dx = y (dy - Σ dy·y)``."""
    if LOG:
        return dy - tl.exp(y) * total
    else:
        return y * (dy - total)


@triton.jit(do_not_specialize=_SIZES)
def gradient_whole(
    dy_ptr,
    y_ptr,
    dx_ptr,
    slices,
    length,
    inner,
    inner_mul,
    inner_shift,
    LOG: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLANES: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_SLICES: tl.constexpr,
    BLOCK_LENGTH: tl.constexpr,
):
    """The gradient of slices that are no longer than the tile, from the output ``y`` and its gradient."""
    slices, length, inner = sizes(slices, length, inner, COLUMNS, ALIGN, WIDE)
    _, ok, first = slice_places(
        tl.program_id(0), slices, length, inner, inner_mul, inner_shift, COLUMNS, PLANES, ALIGN, WIDE, BLOCK_SLICES
    )
    at, there = offsets(first, ok, 0, length, inner, COLUMNS, BLOCK_LENGTH)
    AXIS: tl.constexpr = 0 if COLUMNS else 1
    dy = tl.load(dy_ptr + at, mask=there, other=0.0).to(ACC)
    y = tl.load(y_ptr + at, mask=there, other=0.0).to(ACC)
    dx = gradient(dy, y, by_slice(tl.sum(summed(dy, y, LOG), AXIS), COLUMNS), LOG)
    tl.store(dx_ptr + at, rounded(dx, dx_ptr.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=[*_SIZES, "parts", "steps"])
def gradient_looped(
    dy_ptr,
    y_ptr,
    dx_ptr,
    total_ptr,
    slices,
    length,
    inner,
    inner_mul,
    inner_shift,
    parts,
    steps,
    READS: tl.constexpr,
    WRITES: tl.constexpr,
    LOG: tl.constexpr,
    COLUMNS: tl.constexpr,
    PLANES: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_SLICES: tl.constexpr,
    BLOCK_LENGTH: tl.constexpr,
):
    """The gradient of slices of any length, in passes as in :func:`softmax_looped`."""
    slices, length, inner = sizes(slices, length, inner, COLUMNS, ALIGN, WIDE)
    part = tl.program_id(0) % parts
    s, ok, first = slice_places(
        tl.program_id(0) // parts, slices, length, inner, inner_mul, inner_shift, COLUMNS, PLANES, ALIGN, WIDE,
        BLOCK_SLICES,
    )  # fmt: skip
    each = tl.cast(steps, length.dtype) * BLOCK_LENGTH
    begin = part.to(length.dtype) * each
    end = tl.minimum(begin + each, length)
    if COLUMNS:
        total = tl.zeros((BLOCK_LENGTH, BLOCK_SLICES), ACC)
    else:
        total = tl.zeros((BLOCK_SLICES, BLOCK_LENGTH), ACC)
    if READS:
        for start in range(begin, end, BLOCK_LENGTH):
            at, there = offsets(first, ok, start, length, inner, COLUMNS, BLOCK_LENGTH)
            dy = tl.load(dy_ptr + at, mask=there, other=0.0).to(ACC)
            if LOG:
                total += dy
            else:
                total += dy * tl.load(y_ptr + at, mask=there, other=0.0).to(ACC)
    else:
        for p in range(0, parts, BLOCK_LENGTH):
            at, there = part_offsets(s, ok, p, parts, slices, COLUMNS, BLOCK_LENGTH)
            total += tl.load(total_ptr + at, mask=there, other=0.0)
    of_slice = tl.sum(total, 0 if COLUMNS else 1)
    if WRITES:
        of_slice = by_slice(of_slice, COLUMNS)
        for start in range(begin, end, BLOCK_LENGTH):
            at, there = offsets(first, ok, start, length, inner, COLUMNS, BLOCK_LENGTH)
            dy = tl.load(dy_ptr + at, mask=there, other=0.0).to(ACC)
            y = tl.load(y_ptr + at, mask=there, other=0.0).to(ACC)
            dx = gradient(dy, y, of_slice, LOG)
            tl.store(dx_ptr + at, rounded(dx, dx_ptr.dtype.element_ty), mask=there)
    else:
        tl.store(total_ptr + part * slices + s, of_slice, mask=ok)


# ---- launches


def forward(what: tuple[int, bool], x: torch.Tensor, y: torch.Tensor) -> None:
    """``y = exp(x - max x) / Σ exp(x - max x)`` along a dimension, or its logarithm."""
    (x,) = in_the_order_of(y, [x])
    _run(space.FORWARD, (softmax_whole, softmax_looped), ("largest_ptr", "total_ptr"), what, {"x_ptr": x, "y_ptr": y})


def backward(what: tuple[int, bool], dy: torch.Tensor, y: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx`` from the output ``y`` and its gradient."""
    dy, y = in_the_order_of(dx, [dy, y])
    tensors = {"dy_ptr": dy, "y_ptr": y, "dx_ptr": dx}
    _run(space.BACKWARD, (gradient_whole, gradient_looped), ("total_ptr",), what, tensors)


def _run(
    tunables: dict[bool, Tunable],
    kernels: tuple[Any, Any],
    statistics: tuple[str, ...],
    what: tuple[int, bool],
    tensors: dict[str, torch.Tensor],
) -> None:
    """One direction: a launch, or two where slices are cut into parts. ``statistics`` name the numbers of a part."""
    dim, log = what
    *_, out = tensors.values()
    whole, looped = kernels
    accumulator = torch.float64 if out.dtype is torch.float64 else torch.float32
    slices = Slices.of(out, dim)
    views = {name: flat(tensor) for name, tensor in tensors.items()}
    for part, place in slices.chunks(_triton_tensors.LIMIT):
        columns = part.inner > 1
        tunable = tunables[columns]
        align = alignment(part.inner if columns else part.length)
        itemsize = out.element_size()
        problem = Softmax(
            part.count, part.length, part.inner, len(tensors) - 1, log, itemsize, gcd(align, 16 // itemsize), False,
            autotune.device_of(out),
        )  # fmt: skip
        config = autotune.resolve(tunable, problem)
        tile = space.tile(config, problem)
        cut = space.parts(config, problem, tile)
        inner_mul, inner_shift = divisor(part.inner)
        args: dict[str, Any] = {
            **{name: view[place] for name, view in views.items()},
            "slices": part.count // align if columns else part.count,
            "length": part.length if columns else part.length // align,
            "inner": part.inner // align if columns else 1,
            "inner_mul": inner_mul,
            "inner_shift": inner_shift,
            "LOG": log,
            "COLUMNS": columns,
            "PLANES": columns and part.outer > 1,
            "ALIGN": align,
            "WIDE": part.count * part.length + cut.count * tile.elements >= _triton_tensors.LIMIT,
            "ACC": tl.float64 if accumulator is torch.float64 else tl.float32,
            "BLOCK_SLICES": tile.slices,
            "BLOCK_LENGTH": tile.length,
        }
        notes: dict[str, Any] = {"tunable": tunable, "problem": problem, "config": config}
        blocks, warps = -(-part.count // tile.slices), config["num_warps"]
        if tile.length >= part.length:
            launch(whole, (blocks,), args, warps, **notes)
            continue
        for name in statistics:
            args[name] = (
                None if cut.count == 1 else torch.empty((cut.count, part.count), dtype=accumulator, device=out.device)
            )
        args |= {"parts": cut.count, "steps": cut.steps, "maxnreg": _REGISTERS[warps]}
        if looped is softmax_looped:
            args["LOWEST"] = torch.finfo(accumulator).min
        for passes in _ONE_LAUNCH if cut.count == 1 else _TWO_LAUNCHES:
            launch(looped, (blocks * cut.count,), {**args, **passes}, warps, **notes)


# An option of the launch. Without it the assembler may choose fewer registers than it needs, for more blocks at a time,
# and spill.
_REGISTERS = {2: 128, 4: 128, 8: 128, 16: 128, 32: 64}
_ONE_LAUNCH = ({"READS": True, "WRITES": True},)
_TWO_LAUNCHES = ({"READS": True, "WRITES": False}, {"READS": False, "WRITES": True})
