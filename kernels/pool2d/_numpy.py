"""2-D pooling in NumPy, a block that fits the L2 cache at a time, on several threads.

What happens to a block is in ``_numpy_max``, ``_numpy_index`` and ``_numpy_avg``; windows are taken apart in
``_numpy_windows``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ... import autotune
from .._arrays import Array
from .._parallel import parallel_for
from . import _numpy_avg as average
from . import _numpy_max as maximum
from . import _numpy_space as space
from ._numpy_index import Indices, gather, scatter
from ._numpy_windows import Problem, in_memory_order
from ._problem import AdaptivePool2dProblem, Pool2dProblem

# Of the larger array in a block. A quarter of it would stay in an L2 cache, but each block costs some 20 us of calls in
# which no other thread gets on: beside an L3 cache of 32 MB, 512 KB took 1.2 to 2.2 times as long on two threads.
_BLOCK_BYTES = 2 * 1024 * 1024

# Elements of NumPy's buffers while we run. Rows shorter than a third of a buffer are copied into one, to make long
# loops of short ones. With the usual 8192 a maximum over rows of 512 took 2 times as long, over rows of 64 1.4 times.
_BUFFER = 1024


def _default(_: space.Blocks | None) -> autotune.Config:
    return {"BLOCK_BYTES": _BLOCK_BYTES, "BUFFER": _BUFFER}


_DIRECTIONS = ("max_forward", "max_backward", "max_gather", "avg_forward", "avg_backward")
_TUNABLE = {direction: space.tunable(direction, _default) for direction in _DIRECTIONS}
TUNABLES = tuple(_TUNABLE.values())


def max_forward(problem: Pool2dProblem, x: Array, y: Array, index: Array | None) -> None:
    """The maximum of each window, and where it was unless ``index`` is ``None``."""
    _maxima(problem, x, y, index)


def adaptive_max_forward(problem: AdaptivePool2dProblem, x: Array, y: Array, index: Array | None) -> None:
    """The maximum of each adaptive window, and where it was unless ``index`` is ``None``."""
    _maxima(problem, x, y, index)


def _maxima(problem: Problem, x: Array, y: Array, index: Array | None) -> None:
    if index is None:
        _over_blocks("max_forward", problem, lambda y, x: maximum.maxima(problem, x, y), y, x)
        return
    _over_blocks(
        "max_forward",
        problem,
        lambda y, index, x: maximum.maxima_and_taps(problem, x, y, index),
        y,
        index,
        x,
        index_bytes=index.itemsize,
    )


def max_backward(problem: Problem, dy: Array, index: Array, dx: Array) -> None:
    """``dx.flat[index] += dy`` in each plane, windows in order."""
    indices = Indices(problem)
    _over_blocks(
        "max_backward",
        problem,
        lambda dx, dy, index: scatter(problem, indices, dy, index, dx),
        dx,
        dy,
        index,
        index_bytes=index.itemsize,
    )


def max_gather(problem: Problem, ddx: Array, index: Array, ddy: Array) -> None:
    """``ddy = ddx.flat[index]`` in each plane: the derivative of :func:`max_backward`."""
    indices = Indices(problem)
    _over_blocks(
        "max_gather",
        problem,
        lambda ddy, ddx, index: gather(problem, indices, ddx, index, ddy),
        ddy,
        ddx,
        index,
        index_bytes=index.itemsize,
    )


def avg_forward(problem: Pool2dProblem, x: Array, y: Array) -> None:
    """The mean of each window."""
    _means(problem, x, y)


def adaptive_avg_forward(problem: AdaptivePool2dProblem, x: Array, y: Array) -> None:
    """The mean of each adaptive window."""
    _means(problem, x, y)


def _means(problem: Problem, x: Array, y: Array) -> None:
    products = average.products(problem)
    _over_blocks("avg_forward", problem, lambda y, x: average.means(problem, x, y), y, x, products=products)


def avg_backward(problem: Pool2dProblem, dy: Array, dx: Array) -> None:
    """Each element's share of the windows that cover it."""
    _shares(problem, dy, dx)


def adaptive_avg_backward(problem: AdaptivePool2dProblem, dy: Array, dx: Array) -> None:
    """Each element's share of the adaptive windows that cover it."""
    _shares(problem, dy, dx)


def _shares(problem: Problem, dy: Array, dx: Array) -> None:
    products = average.products(problem)
    _over_blocks("avg_backward", problem, lambda dx, dy: average.shares(problem, dy, dx), dx, dy, products=products)


def _over_blocks(
    direction: str,
    problem: Problem,
    run: Callable[..., None],
    output: Array,
    *others: Array,
    products: int = 0,
    index_bytes: int = 0,
) -> None:
    """Runs it on blocks ``[n, g, h, w, c]`` of all arrays, several threads at a time."""
    arrays = in_memory_order(output, *others)
    count, channels = arrays[0].shape[0], arrays[0].shape[4]
    largest = max(array.nbytes for array in arrays)
    config = _default(None)
    if count > 1 and largest > space.LEAST_BLOCK_BYTES:
        blocks = space.blocks_of_a_call(direction, problem, count, channels, output.itemsize, index_bytes)
        config = autotune.resolve(_TUNABLE[direction], blocks)
    buffer = config["BUFFER"]
    size = max(1, config["BLOCK_BYTES"] * count // largest)

    def block(start: int, stop: int) -> None:
        before = np.setbufsize(buffer)
        try:
            run(*(array[start:stop] for array in arrays))
        finally:
            np.setbufsize(before)

    def numbered(i: int, _: int) -> None:
        block(i * size, min(count, (i + 1) * size))

    bytes_moved = sum(array.nbytes for array in arrays)
    if products:  # whose bits in a row depend on where it stands: sizes decide that, not the number of threads
        parallel_for(-(-count // size), numbered, bytes_moved=bytes_moved, block=1, products=products)
    else:
        parallel_for(count, block, bytes_moved=bytes_moved, block=size)
