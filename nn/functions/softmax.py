"""Gradients of softmax and log-softmax."""

from __future__ import annotations

from typing import Any

import torch

from ...kernels import softmax as kernels
from ._function import Function


class Softmax(Function):
    @staticmethod
    def forward(x: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
        return kernels.forward(x, dim, log)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, ctx.dim, ctx.log = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        (y,) = ctx.saved_tensors
        return SoftmaxBackward.call(dy, y, ctx.dim, ctx.log), None, None


class SoftmaxBackward(Function):
    """``dx`` as a function of ``dy`` and of the output ``y``, differentiable in both."""

    @staticmethod
    def forward(dy: torch.Tensor, y: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
        return kernels.backward(dy, y, dim, log)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        dy, y, ctx.dim, ctx.log = inputs
        ctx.save_for_backward(dy, y)

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor) -> tuple[Any, ...]:
        dy, y = ctx.saved_tensors
        dim = ctx.dim
        ddy = d_output = None
        if ctx.log:  # dx = dy - exp(y) Σ dy
            p = y.exp()
            if ctx.needs_input_grad[0]:
                ddy = ddx - (ddx * p).sum(dim, keepdim=True)
            if ctx.needs_input_grad[1]:
                d_output = -ddx * p * dy.sum(dim, keepdim=True)
        else:  # dx = y (dy - Σ dy·y), its own transpose in dy
            if ctx.needs_input_grad[0]:
                ddy = SoftmaxBackward.call(ddx, y, dim, False)
            if ctx.needs_input_grad[1]:
                d_output = ddx * (dy - (dy * y).sum(dim, keepdim=True)) - dy * (ddx * y).sum(dim, keepdim=True)
        return ddy, d_output, None, None


def softmax(x: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    """Softmax of ``x`` along ``dim`` (0 to ``x.ndim - 1``), or its logarithm. Shape, dtype and format are kept."""
    return Softmax.call(x, dim, log)
