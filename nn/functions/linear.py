"""Gradients of the dense layer with a fused activation: the same triangle of bilinear functions as convolution."""

from __future__ import annotations

from typing import Any

import torch

from ...kernels import linear as kernels
from ._function import Function
from .activation import activation_backward


class Linear(Function):
    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
        return kernels.forward(x, weight, bias, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, weight, bias, ctx.activation = inputs
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.has_bias = bias is not None
        ctx.save_for_backward(
            x if needs_weight else None,
            weight if needs_x else None,
            None if ctx.activation == "none" else output,
        )

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        x, weight, y = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        needs_bias = needs_bias and ctx.has_bias
        dz = dy if y is None else activation_backward(dy, y, ctx.activation)
        dx = dw = db = None
        if needs_x:
            dx = linear_input_grad(dz, weight)
        if needs_weight:
            dw, db = linear_weight_grad(x, dz, needs_bias)
        elif needs_bias:
            db = dz.sum(0)
        return dx, dw, db if needs_bias else None, None


class LinearInputGrad(Function):
    @staticmethod
    def forward(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return kernels.input_grad(dy, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor) -> tuple[Any, ...]:
        dy, weight = ctx.saved_tensors
        ddy = linear(ddx, weight, None, "none") if ctx.needs_input_grad[0] else None
        dw = linear_weight_grad(ddx, dy, False)[0] if ctx.needs_input_grad[1] else None
        return ddy, dw


class LinearWeightGrad(Function):
    @staticmethod
    def forward(x: torch.Tensor, dy: torch.Tensor, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.weight_grad(x, dy, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, dy, ctx.bias = inputs
        ctx.save_for_backward(x, dy)

    @staticmethod
    def backward(ctx: Any, ddw: torch.Tensor, ddb: torch.Tensor) -> tuple[Any, ...]:
        x, dy = ctx.saved_tensors
        dx = linear_input_grad(dy, ddw) if ctx.needs_input_grad[0] else None
        ddy = linear(x, ddw, ddb if ctx.bias else None, "none") if ctx.needs_input_grad[1] else None
        return dx, ddy, None


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    """``act(x weightᵀ + bias)``: ``[M, I]``, ``[O, I]``, ``[O]`` to ``[M, O]``."""
    return Linear.call(x, weight, bias, activation)


def linear_input_grad(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient of a dense layer's input; differentiable in ``dy`` and ``weight``."""
    return LinearInputGrad.call(dy, weight)


def linear_weight_grad(x: torch.Tensor, dy: torch.Tensor, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of a dense layer's weight and bias (empty without ``bias``); differentiable in ``x`` and ``dy``."""
    return LinearWeightGrad.call(x, dy, bias)
