"""ReLU, sigmoid and tanh in NumPy, in cache-sized blocks over memory order."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import autotune
from .._arrays import Array, flat
from .._parallel import parallel_for, quiet
from . import _numpy_space as space

# Elements a block: three float32 operands stay within a 1 MB L2 cache.
_BLOCK = 64 * 1024


def _default(_: space.Elements | None) -> autotune.Config:
    return {"BLOCK": _BLOCK}


FORWARD, BACKWARD = (space.tunable(direction, _default) for direction in ("forward", "backward"))
TUNABLES = (FORWARD, BACKWARD)


@quiet
def forward(kind: str, x: Array, y: Array) -> None:
    """``y = act(x)``; NaN stays NaN. ``y`` may be ``x``. No memory beyond the output."""
    views = flat(x, y)
    if views is None:
        apply(kind, x, y)
        return
    source, target = views
    parallel_for(
        source.size,
        lambda start, stop: apply(kind, source[start:stop], target[start:stop]),
        bytes_moved=2 * y.nbytes,
        # the others are one pass: nothing to keep in cache
        block=_block(FORWARD, kind, 2, target) if kind == "sigmoid" else None,
    )


def _block(tunable: autotune.Tunable, kind: str, tensors: int, target: Array) -> int:
    if target.size <= space.LEAST_BLOCK:
        return _BLOCK
    problem = space.elements_of_a_call(kind, tensors, target.size, target.itemsize)
    size: int = autotune.resolve(tunable, problem)["BLOCK"]
    return size


def apply(kind: str, x: Array, y: Array) -> None:
    """One block of :func:`forward`, in this thread: also the epilogue of other kernels, which must be ``quiet``."""
    if kind == "relu":
        np.maximum(x, _zero(x), out=y)
    elif kind == "sigmoid":
        # exp(-x) overflows to inf below -88 (-709 in float64), and 1 / (1 + inf) is the right 0
        np.exp(np.negative(x, out=y), out=y)
        np.reciprocal(np.add(y, _one(y), out=y), out=y)
    elif kind == "tanh":
        np.tanh(x, out=y)
    elif y is not x:
        np.copyto(y, x)


@quiet
def backward(kind: str, dy: Array, y: Array, dx: Array) -> None:
    """``dx = dy · act'``, from the output ``y``. Extra memory: two blocks a thread."""
    views = flat(dy, y, dx)
    if views is None:
        derivative(kind, dy, y, dx)
        return
    gradient, output, target = views
    parallel_for(
        output.size,
        lambda start, stop: derivative(kind, gradient[start:stop], output[start:stop], target[start:stop]),
        bytes_moved=3 * dx.nbytes,
        block=_block(BACKWARD, kind, 3, target),
    )


def derivative(kind: str, dy: Array, y: Array, dx: Array) -> None:
    """One block of :func:`backward`, in this thread: also for other kernels, which must be ``quiet``."""
    if kind == "relu":
        # torch's rule: the gradient stops where y <= 0, so it passes where y is NaN. A product with a 0/1 mask would
        # turn an infinite gradient into NaN; all-ones/all-zeros bit masks do not, and take a third of np.where's time.
        bits = np.dtype(f"i{dx.itemsize}")
        keep = np.less_equal(y, _zero(y)).view(np.int8)
        keep -= 1
        np.bitwise_and(dy.view(bits), keep, out=dx.view(bits))
    elif kind == "sigmoid":
        slope = _one(y) - y
        slope *= y
        np.multiply(dy, slope, out=dx)
    elif kind == "tanh":
        slope = y * y
        np.subtract(_one(y), slope, out=slope)
        np.multiply(dy, slope, out=dx)
    else:
        np.copyto(dx, dy)


# Scalars of the arrays' own dtype: a Python number costs a conversion a call and would widen integer arrays.


def _zero(a: Array) -> Any:
    return a.dtype.type(0)


def _one(a: Array) -> Any:
    return a.dtype.type(1)
