"""A dense layer as a 1x1 convolution of images of one pixel: the GPU backends have one product, tuned once.

Rows of ``x [M, I]`` are images; ``x`` that is stored by columns is one image of ``M`` pixels, which convolution reads
as it is. float32 is multiplied as torch is set to for matrix products, not for convolutions.
"""

from __future__ import annotations

from types import ModuleType

import torch

from .. import activation as activations
from .._arrays import run
from .._precision import matmul_precision
from ..conv2d import Conv2dProblem


def forward(
    convolution: ModuleType,
    activation: str,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
) -> None:
    """``y = act(x wᵀ + bias)`` by the ``forward`` of a convolution backend."""
    if not x.shape[1]:  # a sum of nothing, which no convolution is
        y.zero_() if bias is None else y.copy_(bias)
        if activation != "none":
            run(activations.OPERATION.implementation(y.device.type), "forward", activation, (y,), (y,))
        return
    by_columns = _by_columns(x)
    problem = _problem(x, w, by_columns, activation)
    convolution.forward(problem, _images(x, by_columns), _filters(w), bias, _images(y, by_columns))


def input_grad(convolution: ModuleType, dy: torch.Tensor, w: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx = dy w``."""
    by_columns = _by_columns(dy)
    problem = _problem(dx, w, by_columns)
    convolution.input_grad(problem, _images(dy, by_columns), _filters(w), _images(dx, by_columns))


def weight_grad(
    convolution: ModuleType, x: torch.Tensor, dy: torch.Tensor, dw: torch.Tensor, db: torch.Tensor | None
) -> None:
    """``dw = dyᵀ x`` and ``db = Σ_m dy``."""
    if not x.shape[1]:
        if db is not None:
            db.copy_(dy.sum(0))
        return
    by_columns = _by_columns(x) and _by_columns(dy)
    problem = _problem(x, dw, by_columns)
    convolution.weight_grad(problem, _images(x, by_columns), _images(dy, by_columns), _filters(dw), db)


def _by_columns(matrix: torch.Tensor) -> bool:
    return matrix.stride(0) == 1 and matrix.stride(1) != 1


def _problem(x: torch.Tensor, w: torch.Tensor, by_columns: bool, activation: str = "none") -> Conv2dProblem:
    (M, inputs), outputs = x.shape, w.shape[0]
    images, pixels = (1, M) if by_columns else (M, 1)
    return Conv2dProblem(
        images, inputs, 1, pixels, outputs, 1, 1, (1, 1), (0, 0, 0, 0), (1, 1), 1, activation, matmul_precision()
    )


def _images(matrix: torch.Tensor, by_columns: bool) -> torch.Tensor:
    """``[M, I]`` as ``[M, I, 1, 1]``, or as ``[1, I, 1, M]``."""
    return matrix.t()[None, :, None] if by_columns else matrix[:, :, None, None]


def _filters(w: torch.Tensor) -> torch.Tensor:
    return w[:, :, None, None]
