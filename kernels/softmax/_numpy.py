"""Softmax and log-softmax in NumPy, stable for any finite input, in cache-sized blocks of independent slices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ... import autotune
from .._arrays import Array
from .._parallel import parallel_for, quiet
from . import _numpy_space as space

_BLOCK_BYTES = 256 * 1024  # a block and its exponentials stay within a 1 MB L2 cache


def _default(_: space.Blocks) -> autotune.Config:
    return {"BLOCK_BYTES": _BLOCK_BYTES}


FORWARD, BACKWARD = (space.tunable(direction, _default) for direction in ("forward", "backward"))
TUNABLES = (FORWARD, BACKWARD)


@quiet
def forward(what: tuple[int, bool], x: Array, y: Array) -> None:
    """As in the contract. A slice that is all -inf, or holds +inf or NaN, gives NaN as in torch."""
    dim, log = what

    def block(x: Array, y: Array) -> None:
        np.subtract(x, x.max(axis=dim, keepdims=True), out=y)
        if log:
            y -= np.log(np.exp(y).sum(axis=dim, keepdims=True))
        else:
            np.exp(y, out=y)
            y /= y.sum(axis=dim, keepdims=True)

    _over_slices(FORWARD, block, what, x, y)


@quiet
def backward(what: tuple[int, bool], dy: Array, y: Array, dx: Array) -> None:
    """As in the contract. Extra memory: a block a thread."""
    dim, log = what

    def block(dy: Array, y: Array, dx: Array) -> None:
        if log:
            np.exp(y, out=dx)
            dx *= dy.sum(axis=dim, keepdims=True)
            np.subtract(dy, dx, out=dx)
        else:
            np.multiply(dy, y, out=dx)
            np.subtract(dy, dx.sum(axis=dim, keepdims=True), out=dx)
            dx *= y

    _over_slices(BACKWARD, block, what, dy, y, dx)


def _over_slices(tunable: autotune.Tunable, block: Callable[..., None], what: tuple[int, bool], *arrays: Array) -> None:
    """Runs ``block`` on ranges along the longest dimension other than ``dim``: the slices in them are independent."""
    dim, log = what
    output = arrays[-1]
    shape = output.shape
    others = [d for d in range(len(shape)) if d != dim]
    if not others:
        block(*arrays)
        return
    axis = max(others, key=lambda d: shape[d])
    item_bytes = output.nbytes // shape[axis]
    block_bytes = _BLOCK_BYTES
    if output.nbytes > space.LEAST_BLOCK_BYTES and shape[axis] > 1:
        itemsize = output.itemsize
        inner = output.strides[dim] // itemsize if shape[dim] > 1 else 1
        neighbours = output.strides[axis] == itemsize
        reads = len(arrays) - 1
        problem = space.blocks_of_a_call(log, reads, shape[axis], item_bytes, shape[dim], inner, neighbours, itemsize)
        block_bytes = autotune.resolve(tunable, problem)["BLOCK_BYTES"]

    def run(start: int, stop: int) -> None:
        cut = tuple(slice(start, stop) if d == axis else slice(None) for d in range(len(shape)))
        block(*(a[cut] for a in arrays))

    parallel_for(
        shape[axis], run, bytes_moved=len(arrays) * output.nbytes, block=max(1, block_bytes // max(1, item_bytes))
    )
