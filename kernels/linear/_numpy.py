"""Dense layers in NumPy: three matrix products in pieces, bias and activation while a piece is in cache."""

from __future__ import annotations

import numpy as np

from ... import autotune
from .._arrays import Array
from .._parallel import matmul, over_products, quiet
from ..activation._numpy import apply
from . import _numpy_space as space

_PIECE_BYTES = 4 * 1024 * 1024


def _default(_: space.Product) -> autotune.Config:
    return {"PIECE_BYTES": _PIECE_BYTES}


FORWARD = space.tunable(_default)
TUNABLES = (FORWARD,)

_CALLS = {"none": 0, "relu": 1, "tanh": 1, "sigmoid": 4}  # of NumPy, for an activation


@quiet
def forward(activation: str, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """``y = act(x wᵀ + bias)``, ``2·M·I·O`` FLOPs. No memory beyond the output."""

    def piece(m: slice, o: slice) -> None:
        outputs = y[m, o]
        np.matmul(x[m], w[o].T, out=outputs)
        if bias is not None:
            outputs += bias[o]
        apply(activation, outputs, outputs)

    sizes = x.shape[0], x.shape[1], len(w)
    piece_bytes = _PIECE_BYTES
    if space.is_cut(*sizes):
        passes = (bias is not None) + _CALLS[activation]
        by_columns = x.strides[1] > x.strides[0], w.strides[1] > w.strides[0]
        problem = space.Product(*sizes, passes, by_columns, y.itemsize, autotune.cpu())
        piece_bytes = autotune.resolve(FORWARD, problem)["PIECE_BYTES"]
    over_products(piece, *sizes, bytes_a_piece=piece_bytes)


@quiet
def input_grad(_: str, dy: Array, w: Array, dx: Array) -> None:
    """``dx = dy w``. No memory beyond the output."""
    matmul(dy, w, dx)


@quiet
def weight_grad(_: str, x: Array, dy: Array, dw: Array, db: Array | None) -> None:
    """``dw = dyᵀ x`` and ``db = Σ_m dy``. No memory beyond the outputs."""
    matmul(dy.T, x, dw)
    if db is not None:
        np.sum(dy, axis=0, out=db)
