"""Gradients of max, average and adaptive pooling.

Average pooling is linear: its gradient is its transpose, and the gradient of that is average pooling again. Max pooling
is linear once the index of each maximum is fixed: scatter and gather are each other's transposes.
"""

from __future__ import annotations

from typing import Any

import torch

from ...kernels import pool2d as kernels
from ...kernels._arrays import is_channels_last
from ._function import Function, differentiated

Window = tuple[int, ...]  # kernel, stride, padding, dilation, each (height, width); empty: adaptive


class MaxPool2d(Function):
    @staticmethod
    def forward(x: torch.Tensor, window: Window, ceil_mode: bool, index: str) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.max_forward(x, window, ceil_mode, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        x, ctx.window, ctx.ceil_mode, _ = inputs
        _save_index(ctx, x, output[1])

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, _: Any) -> tuple[Any, ...]:
        return _scatter(ctx, dy, ctx.window, ctx.ceil_mode), None, None, None


class AdaptiveMaxPool2d(Function):
    @staticmethod
    def forward(x: torch.Tensor, output_size: tuple[int, int], index: str) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.adaptive_max_forward(x, output_size, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        _save_index(ctx, inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, _: Any) -> tuple[Any, ...]:
        return _scatter(ctx, dy, (), False), None, None


def _save_index(ctx: Any, x: torch.Tensor, index: torch.Tensor) -> None:
    ctx.mark_non_differentiable(index)
    ctx.set_materialize_grads(False)  # else a zero gradient as large as the index is made for it
    ctx.x_shape, ctx.x_channels_last = x.shape, is_channels_last(x)
    ctx.save_for_backward(index)


def _scatter(ctx: Any, dy: torch.Tensor | None, window: Window, ceil_mode: bool) -> torch.Tensor | None:
    if dy is None:
        return None
    (index,) = ctx.saved_tensors
    return MaxPool2dBackward.call(dy, index, ctx.x_shape, window, ceil_mode, ctx.x_channels_last)


class MaxPool2dBackward(Function):
    """``dx.flat[index] += dy``, plane by plane."""

    @staticmethod
    def forward(
        dy: torch.Tensor,
        index: torch.Tensor,
        x_shape: tuple[int, ...],
        window: Window,
        ceil_mode: bool,
        channels_last: bool,
    ) -> torch.Tensor:
        return kernels.max_backward(dy, index, x_shape, window, ceil_mode, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, index, _, ctx.window, ctx.ceil_mode, _ = inputs
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor) -> tuple[Any, ...]:
        (index,) = ctx.saved_tensors
        return MaxPool2dGather.call(ddx, index, ctx.window, ctx.ceil_mode), None, None, None, None, None


class MaxPool2dGather(Function):
    """``ddy = ddx.flat[index]``, plane by plane."""

    @staticmethod
    def forward(ddx: torch.Tensor, index: torch.Tensor, window: Window, ceil_mode: bool) -> torch.Tensor:
        return kernels.max_gather(ddx, index, window, ceil_mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ddx, index, ctx.window, ctx.ceil_mode = inputs
        ctx.x_shape, ctx.x_channels_last = ddx.shape, is_channels_last(ddx)
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        return _scatter(ctx, dy, ctx.window, ctx.ceil_mode), None, None, None


class AvgPool2d(Function):
    @staticmethod
    def forward(
        x: torch.Tensor, window: Window, ceil_mode: bool, count_include_pad: bool, divisor_override: int
    ) -> torch.Tensor:
        return kernels.avg_forward(x, window, ceil_mode, count_include_pad, divisor_override)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, *ctx.options = inputs
        ctx.x_shape, ctx.x_channels_last = x.shape, is_channels_last(x)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        return AvgPool2dBackward.call(dy, ctx.x_shape, *ctx.options, ctx.x_channels_last), None, None, None, None


class AvgPool2dBackward(Function):
    @staticmethod
    def forward(
        dy: torch.Tensor,
        x_shape: tuple[int, ...],
        window: Window,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int,
        channels_last: bool,
    ) -> torch.Tensor:
        return kernels.avg_backward(dy, x_shape, window, ceil_mode, count_include_pad, divisor_override, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, _, *ctx.options, _ = inputs

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor) -> tuple[Any, ...]:
        return AvgPool2d.call(ddx, *ctx.options), None, None, None, None, None, None


class AdaptiveAvgPool2d(Function):
    @staticmethod
    def forward(x: torch.Tensor, output_size: tuple[int, int]) -> torch.Tensor:
        return kernels.adaptive_avg_forward(x, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x = inputs[0]
        ctx.x_shape, ctx.x_channels_last = x.shape, is_channels_last(x)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        return AdaptiveAvgPool2dBackward.call(dy, ctx.x_shape, ctx.x_channels_last), None


class AdaptiveAvgPool2dBackward(Function):
    @staticmethod
    def forward(dy: torch.Tensor, x_shape: tuple[int, ...], channels_last: bool) -> torch.Tensor:
        return kernels.adaptive_avg_backward(dy, x_shape, channels_last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.output_size = tuple(inputs[0].shape[2:])

    @staticmethod
    def backward(ctx: Any, ddx: torch.Tensor) -> tuple[Any, ...]:
        return AdaptiveAvgPool2d.call(ddx, ctx.output_size), None, None


def max_pool2d(x: torch.Tensor, window: Window, ceil_mode: bool, with_index: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The maximum of each window and its index in the plane (int64; something else or empty unless asked for)."""
    index = _index(x, with_index)
    if index == "none":
        return kernels.max_forward(x, window, ceil_mode, index)
    return MaxPool2d.call(x, window, ceil_mode, index)


def adaptive_max_pool2d(
    x: torch.Tensor, output_size: tuple[int, int], with_index: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`max_pool2d`, of ``output_size`` windows."""
    index = _index(x, with_index)
    if index == "none":
        return kernels.adaptive_max_forward(x, output_size, index)
    return AdaptiveMaxPool2d.call(x, output_size, index)


def _index(x: torch.Tensor, wanted: bool) -> str:
    """What to keep of where the maxima were: torch's index if wanted, else a byte each where a backward may ask."""
    if wanted:
        return "plane"
    return "tap" if differentiated(x) else "none"


def avg_pool2d(
    x: torch.Tensor, window: Window, ceil_mode: bool, count_include_pad: bool, divisor_override: int
) -> torch.Tensor:
    """The mean of each window; ``divisor_override`` 0 stands for none. ``x`` is [N, C, H, W]."""
    return AvgPool2d.call(x, window, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool2d(x: torch.Tensor, output_size: tuple[int, int]) -> torch.Tensor:
    """The mean of each of ``output_size`` windows. ``x`` is [N, C, H, W]."""
    return AdaptiveAvgPool2d.call(x, output_size)
