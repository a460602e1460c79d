"""Dense layers in NumPy: three matrix products, with bias and activation applied to the output while it is in cache."""

from __future__ import annotations

import numpy as np

from .._arrays import Array
from .._parallel import parallel_for, quiet
from ..activation._numpy import apply

# Bytes of output that the epilogue touches at a time: bias and activation then find it in a 1 MB L2 cache.
_EPILOGUE_BYTES = 256 * 1024


@quiet
def forward(x: Array, w: Array, bias: Array | None, activation: str, y: Array) -> None:
    """``y = act(x wᵀ + bias)``, ``2·M·I·O`` FLOPs. No memory beyond the output."""
    np.matmul(x, w.T, out=y)
    if bias is None and activation == "none":
        return

    def epilogue(start: int, stop: int) -> None:
        rows = y[start:stop]
        if bias is not None:
            rows += bias
        apply(activation, rows, rows)

    row_bytes = max(1, y.shape[1] * y.itemsize)
    parallel_for(len(y), epilogue, bytes_moved=2 * y.nbytes, block=_EPILOGUE_BYTES // row_bytes)


@quiet
def input_grad(dy: Array, w: Array, dx: Array) -> None:
    """``dx = dy w``."""
    np.matmul(dy, w, out=dx)


@quiet
def weight_grad(x: Array, dy: Array, dw: Array, db: Array | None) -> None:
    """``dw = dyᵀ x`` and ``db = Σ_m dy``."""
    np.matmul(dy.T, x, out=dw)
    if db is not None:
        np.sum(dy, axis=0, out=db)
