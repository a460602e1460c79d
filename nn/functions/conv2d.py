"""Gradients of 2-D convolution with a fused activation.

Convolution, input gradient and weight gradient are each bilinear, and each one's gradients are the other two: three
functions close under differentiation of any order.
"""

from __future__ import annotations

from typing import Any

import torch

from ...kernels import conv2d as kernels
from ...kernels._arrays import is_channels_last
from ._function import Function
from .activation import activation_backward

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]


class Conv2d(Function):
    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: str,
        stride: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
    ) -> torch.Tensor:
        return kernels.forward(x, weight, bias, activation, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, weight, bias, ctx.activation, *ctx.window = inputs
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.has_bias = bias is not None
        ctx.x_shape, ctx.x_channels_last = x.shape, is_channels_last(x)
        ctx.w_shape, ctx.w_channels_last = weight.shape, is_channels_last(weight)
        ctx.save_for_backward(
            x if needs_weight else None,
            weight if needs_x else None,
            None if ctx.activation == "none" else output,
        )

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        x, weight, y = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        needs_bias = needs_bias and ctx.has_bias
        dz = dy if y is None else activation_backward(dy, y, ctx.activation)
        dx = dw = db = None
        if needs_x:
            dx = conv2d_input_grad(dz, weight, ctx.x_shape, ctx.x_channels_last, *ctx.window)
        if needs_weight:
            dw, db = conv2d_weight_grad(x, dz, ctx.w_shape, ctx.w_channels_last, needs_bias, *ctx.window)
        elif needs_bias:
            db = dz.sum((0, 2, 3))
        return dx, dw, db if needs_bias else None, None, None, None, None, None


class Conv2dInputGrad(Function):
    @staticmethod
    def forward(
        dy: torch.Tensor,
        weight: torch.Tensor,
        x_shape: tuple[int, ...],
        channels_last: bool,
        stride: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
    ) -> torch.Tensor:
        return kernels.input_grad(dy, weight, x_shape, channels_last, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        dy, weight, _, _, *ctx.window = inputs
        ctx.save_for_backward(dy, weight)

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor) -> tuple[Any, ...]:
        dy, weight = ctx.saved_tensors
        ddy = dw = None
        if ctx.needs_input_grad[0]:
            ddy = conv2d(ddx, weight, None, "none", *ctx.window)
        if ctx.needs_input_grad[1]:
            dw, _ = conv2d_weight_grad(ddx, dy, weight.shape, is_channels_last(weight), False, *ctx.window)
        return ddy, dw, None, None, None, None, None, None


class Conv2dWeightGrad(Function):
    @staticmethod
    def forward(
        x: torch.Tensor,
        dy: torch.Tensor,
        w_shape: tuple[int, ...],
        channels_last: bool,
        bias: bool,
        stride: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.weight_grad(x, dy, w_shape, channels_last, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, dy, _, _, ctx.bias, *ctx.window = inputs
        ctx.save_for_backward(x, dy)

    @staticmethod
    def backward(ctx: Any, ddw: torch.Tensor, ddb: torch.Tensor) -> tuple[Any, ...]:
        x, dy = ctx.saved_tensors
        dx = ddy = None
        if ctx.needs_input_grad[0]:
            dx = conv2d_input_grad(dy, ddw, x.shape, is_channels_last(x), *ctx.window)
        if ctx.needs_input_grad[1]:
            ddy = conv2d(x, ddw, ddb if ctx.bias else None, "none", *ctx.window)
        return dx, ddy, None, None, None, None, None, None, None


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> torch.Tensor:
    """``act(conv(x, weight) + bias)``: ``[N, C, H, W]``, ``[K, C / groups, R, S]``, ``[K]`` to ``[N, K, P, Q]``.

    ``padding`` is ``(top, bottom, left, right)``; ``activation`` "none", "relu", "sigmoid" or "tanh".
    """
    return Conv2d.call(x, weight, bias, activation, stride, padding, dilation, groups)


def conv2d_input_grad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    x_shape: tuple[int, ...],
    channels_last: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> torch.Tensor:
    """The gradient of a convolution's input, in the given memory format; differentiable in ``dy`` and ``weight``."""
    return Conv2dInputGrad.call(dy, weight, x_shape, channels_last, stride, padding, dilation, groups)


def conv2d_weight_grad(
    x: torch.Tensor,
    dy: torch.Tensor,
    w_shape: tuple[int, ...],
    channels_last: bool,
    bias: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of a convolution's weight and bias (empty without ``bias``); differentiable in ``x`` and ``dy``."""
    return Conv2dWeightGrad.call(x, dy, w_shape, channels_last, bias, stride, padding, dilation, groups)
