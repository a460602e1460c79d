"""Dense layers in CUDA C++: those of convolution, see :mod:`._pointwise`."""

from __future__ import annotations

import torch

from ..conv2d import _cupy as convolution
from . import _pointwise

ON_TENSORS = True


def forward(activation: str, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor) -> None:
    """``y = act(x wᵀ + bias)``."""
    _pointwise.forward(convolution, activation, x, w, bias, y)


def input_grad(_: str, dy: torch.Tensor, w: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx = dy w``."""
    _pointwise.input_grad(convolution, dy, w, dx)


def weight_grad(_: str, x: torch.Tensor, dy: torch.Tensor, dw: torch.Tensor, db: torch.Tensor | None) -> None:
    """``dw = dyᵀ x`` and ``db = Σ_m dy``."""
    _pointwise.weight_grad(convolution, x, dy, dw, db)
