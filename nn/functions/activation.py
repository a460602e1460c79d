"""Gradients of ReLU, sigmoid and tanh."""

from __future__ import annotations

from typing import Any

import torch

from ...kernels import activation as kernels
from ._function import Function


class Activation(Function):
    @staticmethod
    def forward(x: torch.Tensor, kind: str) -> torch.Tensor:
        return kernels.forward(x, kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.kind = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        (y,) = ctx.saved_tensors
        return activation_backward(dy, y, ctx.kind), None


class ActivationBackward(Function):
    """``dx = dy · act'`` as a function of ``dy`` and of the output ``y``, differentiable in both."""

    @staticmethod
    def forward(dy: torch.Tensor, y: torch.Tensor, kind: str) -> torch.Tensor:
        return kernels.backward(dy, y, kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        dy, y, ctx.kind = inputs
        ctx.save_for_backward(dy, y)

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor) -> tuple[Any, ...]:
        dy, y = ctx.saved_tensors
        ddy = activation_backward(ddx, y, ctx.kind) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1] or ctx.kind == "relu":  # the slope of ReLU does not change with y
            return ddy, None, None
        slope = 1 - 2 * y if ctx.kind == "sigmoid" else -2 * y
        return ddy, ddx * dy * slope, None


def activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    """``kind(x)``, elementwise: "relu", "sigmoid" or "tanh". Shape, dtype and memory format are kept."""
    return Activation.call(x, kind)


def activation_backward(dy: torch.Tensor, y: torch.Tensor, kind: str) -> torch.Tensor:
    """The gradient of the input of an activation from that of its output ``y``; differentiable in both."""
    return ActivationBackward.call(dy, y, kind)
