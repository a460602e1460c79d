"""Gradients of convolution, bias, activation and 2x2 pooling in one pass.

The pooling's part of the backward writes the gradient of ``conv(x, weight) + bias``; from there on it is convolution's.
"""

from __future__ import annotations

from typing import Any

import torch

from ...kernels import conv_pool2d as kernels
from ...kernels._arrays import is_channels_last
from ...kernels.conv2d._problem import output_size
from ._function import Function, differentiated
from .conv2d import Padding, Pair, conv2d_input_grad, conv2d_weight_grad


class ConvPool2d(Function):
    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: str,
        pool: str,
        stride: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.forward(x, weight, bias, activation, pool, stride, padding, dilation, groups, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, weight, bias, ctx.activation, ctx.pool, *ctx.window = inputs
        y, code = output
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.mark_non_differentiable(code)
        ctx.set_materialize_grads(False)
        ctx.has_bias = bias is not None
        ctx.x_shape, ctx.x_channels_last = x.shape, is_channels_last(x)
        ctx.w_shape, ctx.w_channels_last = weight.shape, is_channels_last(weight)
        ctx.y_channels_last = ctx.x_channels_last or ctx.w_channels_last
        ctx.save_for_backward(
            x if needs_weight else None,
            weight if needs_x else None,
            y if kernels.needs_output(ctx.pool, ctx.activation) else None,
            code if kernels.needs_code(ctx.pool, ctx.activation) else None,
        )

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None, _: Any) -> tuple[Any, ...]:
        if dy is None:
            return (None,) * 9
        x, weight, y, code = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        needs_bias = needs_bias and ctx.has_bias
        z_shape = _convolution_shape(ctx.x_shape, ctx.w_shape, *ctx.window)
        dz = ConvPool2dBackward.call(dy, y, code, ctx.activation, ctx.pool, z_shape, ctx.y_channels_last)
        dx = dw = db = None
        if needs_x:
            dx = conv2d_input_grad(dz, weight, ctx.x_shape, ctx.x_channels_last, *ctx.window)
        if needs_weight:
            dw, db = conv2d_weight_grad(x, dz, ctx.w_shape, ctx.w_channels_last, needs_bias, *ctx.window)
        elif needs_bias:
            db = dz.sum((0, 2, 3))
        return dx, dw, db if needs_bias else None, None, None, None, None, None, None


def _convolution_shape(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> tuple[int, int, int, int]:
    """``[N, K, P, Q]`` of the convolution, in arithmetic that a compiler can trace."""
    (N, _, H, W), (K, _, R, S) = x_shape, w_shape
    top, bottom, left, right = padding
    P = output_size(H, R, stride[0], top + bottom, dilation[0])
    return N, K, P, output_size(W, S, stride[1], left + right, dilation[1])


class ConvPool2dBackward(Function):
    """The gradient of ``conv(x, weight) + bias`` as a function of ``dy`` and of the pooled output ``y``."""

    @staticmethod
    def forward(
        dy: torch.Tensor,
        y: torch.Tensor | None,
        code: torch.Tensor | None,
        activation: str,
        pool: str,
        z_shape: tuple[int, ...],
        channels_last: bool,
    ) -> torch.Tensor:
        return kernels.backward(dy, y, code, activation, pool, z_shape, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        dy, y, code, ctx.activation, ctx.pool, *_ = inputs
        ctx.save_for_backward(dy if ctx.activation in ("sigmoid", "tanh") else None, y, code)

    @staticmethod
    def backward(ctx: Any, ddz: torch.Tensor) -> tuple[Any, ...]:
        dy, y, code = ctx.saved_tensors
        gathered = _gathered(ddz, code, ctx.pool)
        if y is None:
            return gathered, None, None, None, None, None, None
        d_output = None
        if ctx.activation == "relu":  # whose slope does not change with y
            ddy = torch.where(y <= 0, 0, gathered)
        elif ctx.activation == "sigmoid":
            ddy = gathered * (y * (1 - y))
            d_output = gathered * dy * (1 - 2 * y) if ctx.needs_input_grad[1] else None
        else:
            ddy = gathered * (1 - y * y)
            d_output = -2 * gathered * dy * y if ctx.needs_input_grad[1] else None
        return ddy, d_output, None, None, None, None, None


def _gathered(ddz: torch.Tensor, code: torch.Tensor | None, pool: str) -> torch.Tensor:
    """What of ``ddz`` each pooled value is made of: the transpose of the scattering, in torch's own ops."""
    P, Q = ddz.shape[2] // 2, ddz.shape[3] // 2
    windows = ddz[:, :, : 2 * P, : 2 * Q].unflatten(3, (Q, 2)).unflatten(2, (P, 2))  # [N, K, P, 2, Q, 2]
    windows = windows.movedim(3, 4).flatten(4, 5)  # [N, K, P, Q, 4]
    if pool == "max":
        assert code is not None
        return windows.gather(4, code.long()[..., None])[..., 0]
    if code is not None:
        taps = torch.arange(4, device=code.device, dtype=torch.uint8)
        windows = torch.where((code[..., None] >> taps & 1).bool(), windows, 0)
    return windows.sum(4) / 4


def conv_pool2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    pool: str,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> torch.Tensor:
    """2x2 ``pool`` ("max" or "avg") of ``act(conv(x, weight) + bias)``; arguments as for ``conv2d``."""
    if not differentiated(x, weight, bias):
        return kernels.forward(x, weight, bias, activation, pool, stride, padding, dilation, groups, False)[0]
    return ConvPool2d.call(x, weight, bias, activation, pool, stride, padding, dilation, groups)[0]
