"""Dense layers in NumPy: three matrix products in pieces, bias and activation while a piece is in cache."""

from __future__ import annotations

import numpy as np

from .._arrays import Array
from .._parallel import matmul, over_products, quiet
from ..activation._numpy import apply

_PIECE_BYTES = 4 * 1024 * 1024


@quiet
def forward(activation: str, x: Array, w: Array, bias: Array | None, y: Array) -> None:
    """``y = act(x wᵀ + bias)``, ``2·M·I·O`` FLOPs. No memory beyond the output."""

    def piece(m: slice, o: slice) -> None:
        outputs = y[m, o]
        np.matmul(x[m], w[o].T, out=outputs)
        if bias is not None:
            outputs += bias[o]
        apply(activation, outputs, outputs)

    over_products(piece, x.shape[0], x.shape[1], len(w), bytes_a_piece=_PIECE_BYTES)


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
