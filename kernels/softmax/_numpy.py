"""Softmax and log-softmax in NumPy, stable for any finite input, in cache-sized blocks of independent slices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._arrays import Array
from .._parallel import parallel_for, quiet

_BLOCK_BYTES = 256 * 1024  # a block and its exponentials stay within a 1 MB L2 cache


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

    _over_slices(block, dim, x, y)


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

    _over_slices(block, dim, dy, y, dx)


def _over_slices(block: Callable[..., None], dim: int, *arrays: Array) -> None:
    """Runs ``block`` on ranges along the longest dimension other than ``dim``: the slices in them are independent."""
    shape = arrays[0].shape
    others = [d for d in range(len(shape)) if d != dim]
    if not others:
        block(*arrays)
        return
    axis = max(others, key=lambda d: shape[d])
    item_bytes = arrays[-1].nbytes // shape[axis]

    def run(start: int, stop: int) -> None:
        cut = tuple(slice(start, stop) if d == axis else slice(None) for d in range(len(shape)))
        block(*(a[cut] for a in arrays))

    parallel_for(
        shape[axis], run, bytes_moved=len(arrays) * arrays[-1].nbytes, block=max(1, _BLOCK_BYTES // max(1, item_bytes))
    )
