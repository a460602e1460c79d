"""Two levels of chunking for NumPy kernels: one range a worker thread, one cache-sized block a step.

NumPy releases the interpreter lock inside a ufunc, a copy or a matrix product, so plain threads run them side by side.
The number of workers is torch's intra-op thread count, which is what a PyTorch user already sets.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from . import _blas
from ._arrays import Array

# Decorator of NumPy kernels: an overflow or an invalid operation is a result (inf, NaN), as in torch, not a warning.
quiet = np.errstate(all="ignore")

# Handing a range to a worker costs 50 to 100 us (condition variables, the interpreter lock); below this much traffic it
# does not pay.
MIN_BYTES_PER_WORKER = 1024 * 1024
# The same for matrix products, in multiplications (one core does 40 to 50 a nanosecond in float32).
MIN_PRODUCTS_PER_WORKER = 20 << 20
_LEAST_SIDE = 128  # of a piece of a product: below it, packing the other operand once a piece is felt

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    global _pool, _pool_size
    _pool, _pool_size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork (DataLoader workers)


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < count:
        _pool = ThreadPoolExecutor(count, thread_name_prefix="tilesmith", initializer=_blas.stay_alone)
        _pool_size = count
    return _pool


def parallel_for(
    n: int, body: Callable[[int, int], None], *, bytes_moved: int, block: int | None = None, products: int = 0
) -> None:
    """Calls ``body(start, stop)`` over ranges that cover ``range(n)`` exactly once, on several threads.

    Args:
        n: number of independent items (usually images or planes).
        body: must write only what belongs to its range, so that the result does not depend on the split.
        bytes_moved: memory traffic of the whole loop in bytes; decides how many threads are worth their start.
        block: items a call of ``body`` gets at most; ``None`` gives each worker its range in one call.
        products: multiplications of the matrix products in ``body``, all together. Each product then runs in the thread
            that asks for it (see ``_blas``).
    """
    if n <= 0:
        return
    if products > _blas.ALONE:
        with _blas.one_thread():
            pieces = max(bytes_moved // MIN_BYTES_PER_WORKER, products // MIN_PRODUCTS_PER_WORKER)
            parallel_for(n, body, bytes_moved=pieces * MIN_BYTES_PER_WORKER, block=block)
        return
    worthwhile = min(bytes_moved // MIN_BYTES_PER_WORKER, n)
    size = n if block is None else max(1, min(block, n))

    @quiet  # NumPy's error state is each thread's own
    def run(start: int, stop: int) -> None:
        for first in range(start, stop, size):
            body(first, min(first + size, stop))

    workers = min(_blas.torch_threads(), worthwhile)
    if workers <= 1:
        run(0, n)
        return
    bounds = [n * i // workers for i in range(workers + 1)]
    futures = [_workers(workers - 1).submit(run, bounds[i], bounds[i + 1]) for i in range(1, workers)]
    try:
        run(bounds[0], bounds[1])
    finally:
        # also when our own part failed: no thread may go on writing into buffers that the caller gets back
        errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error


def over_products(
    body: Callable[[slice, slice], object], m: int, k: int, n: int, batch: int = 1, bytes_a_piece: int | None = None
) -> None:
    """Calls ``body(rows, columns)`` over pieces of a product ``[m, k] @ [k, n]``, on several threads where that pays.

    The longer side is cut, as BLAS packs the other operand once a piece. Sizes decide where, not the number of threads:
    nor do the bits depend on it.

    Args:
        batch: products of this size in one.
        bytes_a_piece: cut also where operands and result in float32 are larger, as ``body`` goes over them again.
    """
    products = batch * m * k * n
    pieces = min(products // MIN_PRODUCTS_PER_WORKER, max(m, n) // _LEAST_SIDE)
    if bytes_a_piece is not None:
        pieces = max(pieces, 4 * batch * max(m, n) * (k + min(m, n)) // bytes_a_piece)
    pieces = max(1, min(pieces, max(m, n)))

    def run(start: int, stop: int) -> None:
        for i in range(start, stop):
            piece = slice(max(m, n) * i // pieces, max(m, n) * (i + 1) // pieces)
            body(*((piece, slice(0, n)) if m >= n else (slice(0, m), piece)))

    parallel_for(pieces, run, bytes_moved=0, products=products)


def matmul(a: Array, b: Array, out: Array) -> Array:
    """``a [..., m, k] @ b [..., k, n]`` into ``out [..., m, n]``, on threads of our own."""

    def piece(rows: slice, columns: slice) -> None:
        np.matmul(a[..., rows, :], b[..., columns], out[..., rows, columns])

    over_products(piece, a.shape[-2], a.shape[-1], b.shape[-1], math.prod(out.shape[:-2]))
    return out


def ahead(body: Callable[[int, int], None], ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """``body(*range)`` of each range in turn; other threads run ahead of whoever waits for the ranges.

    Matrix products run in the thread that asks for them meanwhile. With one range, or one thread for torch, there is no
    other thread: the ranges and so the bits are the same.
    """
    if len(ranges) == 1:
        body(*ranges[0])
        yield ranges[0]
        return
    with _blas.one_thread():
        futures = []
        if _blas.torch_threads() > 1:
            pool = _workers(1)
            futures = [pool.submit(quiet(body), *bounds) for bounds in ranges[1:]]
        try:
            for i, bounds in enumerate(ranges):
                if i == 0 or not futures:
                    body(*bounds)
                else:
                    futures[i - 1].result()
                yield bounds
        finally:
            for future in futures:  # whoever waits may have failed: no thread may go on writing without them
                if not future.cancel():
                    future.exception()
