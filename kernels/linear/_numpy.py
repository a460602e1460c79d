"""Dense layers in NumPy: three matrix products in blocks of rows, bias and activation while a block is in cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._arrays import Array
from .._parallel import parallel_for, quiet
from ..activation._numpy import apply

# Operand bytes of a block of rows. Smaller products are left to BLAS whole: 128x1600 by 1600x64 in three blocks took
# twice as long. The cut is made by the problem, so the bits do not depend on the number of threads.
_BLOCK_BYTES = 4 * 1024 * 1024


@quiet
def forward(x: Array, w: Array, bias: Array | None, activation: str, y: Array) -> None:
    """``y = act(x wᵀ + bias)``, ``2·M·I·O`` FLOPs. No memory beyond the output."""

    def block(m: slice) -> None:
        rows = y[m]
        np.matmul(x[m], w.T, out=rows)
        if bias is not None:
            rows += bias
        apply(activation, rows, rows)

    _over_rows(block, len(y), x.nbytes + y.nbytes)


@quiet
def input_grad(dy: Array, w: Array, dx: Array) -> None:
    """``dx = dy w``. No memory beyond the output."""
    _over_rows(lambda m: np.matmul(dy[m], w, out=dx[m]), len(dx), dx.nbytes + dy.nbytes)


@quiet
def weight_grad(x: Array, dy: Array, dw: Array, db: Array | None) -> None:
    """``dw = dyᵀ x`` and ``db = Σ_m dy``, in blocks of the weight's rows."""

    def block(o: slice) -> None:
        np.matmul(dy[:, o].T, x, out=dw[o])
        if db is not None:
            np.sum(dy[:, o], axis=0, out=db[o])

    _over_rows(block, len(dw), dw.nbytes + dy.nbytes)


def _over_rows(block: Callable[[slice], object], rows: int, bytes_moved: int) -> None:
    count = max(1, min(rows, bytes_moved // _BLOCK_BYTES))

    def run(start: int, stop: int) -> None:
        for i in range(start, stop):
            block(slice(rows * i // count, rows * (i + 1) // count))

    parallel_for(count, run, bytes_moved=bytes_moved, blas=True)
