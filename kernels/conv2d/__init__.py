"""2-D convolution: the contract every backend implements, the ops, and the dispatch.

A backend is a module with three functions, each of which writes into preallocated tensors (NumPy's: arrays):

- ``forward(problem, x, w, bias, y)``: ``y = act(conv(x, w) + bias)``
- ``input_grad(problem, dy, w, dx)``: the gradient of the input, with the activation already undone
- ``weight_grad(problem, x, dy, dw, db)``: the gradients of weight and (unless ``None``) bias

All tensors of a call have one dtype. Inputs may have any strides, also 0; outputs are dense in one of the two memory
formats. Sizes may be 0, and then the gradients are sums of nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch

from .._arrays import empty, is_channels_last, run
from .._ops import define, front
from ..activation import check_activation
from ..backends import Operation, requested
from ._problem import Conv2dProblem

__all__ = ["OPERATION", "Conv2dProblem", "forward", "input_grad", "make_problem", "weight_grad"]

OPERATION = Operation("conv2d", __name__, {"triton": "._triton", "cupy": "._cupy", "numpy": "._numpy"})


def make_problem(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = "none",
) -> Conv2dProblem:
    """The problem these shapes and options make.

    Args:
        x_shape: ``[N, C, H, W]``.
        w_shape: ``[K, C / groups, R, S]``.
        stride, dilation: ``(height, width)``.
        padding: ``(top, bottom, left, right)``.

    Raises:
        RuntimeError: they do not fit together (torch's exception type and, in the main, its words).
    """
    if len(w_shape) != 4:
        raise RuntimeError(f"weight must have 4 dimensions [K, C / groups, R, S], but its size is {list(w_shape)}")
    N, C, H, W = x_shape
    K, C_group, R, S = w_shape
    for name, values in (("stride", stride), ("dilation", dilation)):
        if min(values) <= 0:
            raise RuntimeError(f"non-positive {name} is not supported: {name} is {tuple(values)}")
    if min(padding) < 0:
        raise RuntimeError(f"negative padding is not supported: padding is {tuple(padding)}")
    if groups <= 0:
        raise RuntimeError(f"non-positive groups is not supported: groups is {groups}")
    if groups > K or K % groups != 0:
        raise RuntimeError(
            f"Given groups={groups}, expected weight to be at least {groups} at dimension 0 and divisible by it, "
            f"but got weight of size {list(w_shape)} instead"
        )
    if groups * C_group != C:
        raise RuntimeError(
            f"Given groups={groups}, weight of size {list(w_shape)}, expected input{list(x_shape)} "
            f"to have {groups * C_group} channels, but got {C} channels instead"
        )
    if min(C, R, S) <= 0:
        raise RuntimeError(f"weight of size {list(w_shape)} has no taps: channels and kernel must not be zero")
    check_activation(activation)
    top, bottom, left, right = padding
    if H + top + bottom < dilation[0] * (R - 1) + 1 or W + left + right < dilation[1] * (S - 1) + 1:
        raise RuntimeError(
            f"Calculated padded input size per channel: ({H + top + bottom} x {W + left + right}). "
            f"Kernel size: ({dilation[0] * (R - 1) + 1} x {dilation[1] * (S - 1) + 1}). "
            "Kernel size can't be greater than actual input size"
        )
    steps, taps = (stride[0], stride[1]), (dilation[0], dilation[1])
    return Conv2dProblem(N, C, H, W, K, R, S, steps, (top, bottom, left, right), taps, groups, activation)


_problem: Any = lru_cache(maxsize=4096)(make_problem)  # hot path: a lookup costs 0.5 us, the checks 5 us


# The largest depthwise kernel that Triton's kernels take by themselves: from 5x5 on they read each input from the L1
# cache R·S times, where the CUDA kernels keep a row of inputs in registers.
_LARGEST_TRITON_DEPTHWISE = 9


def _implementation(problem: Conv2dProblem, tensor: torch.Tensor) -> ModuleType:
    """The backend of a call: the one asked for, else the first that serves; large depthwise kernels prefer CuPy's."""
    device = tensor.device.type
    if (
        device == "cuda"
        and problem.depthwise
        and problem.R * problem.S > _LARGEST_TRITON_DEPTHWISE
        and requested() is None
        and OPERATION.refusal("cupy", device) is None
    ):
        return OPERATION.named("cupy")
    return OPERATION.implementation(device)


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    problem = _problem(x.shape, weight.shape, tuple(stride), tuple(padding), tuple(dilation), groups, activation)
    channels_last = is_channels_last(x) or is_channels_last(weight)
    y = empty((problem.N, problem.K, problem.P, problem.Q), x.dtype, x.device, channels_last)
    run(_implementation(problem, x), "forward", problem, (x, weight, bias), (y,))
    return y


def _forward_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    problem = make_problem(x.shape, weight.shape, stride, padding, dilation, groups, activation)
    channels_last = is_channels_last(x) or is_channels_last(weight)
    return empty((problem.N, problem.K, problem.P, problem.Q), x.dtype, x.device, channels_last)


def _input_grad(
    dy: torch.Tensor,
    weight: torch.Tensor,
    x_shape: list[int],
    channels_last: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    problem = _problem(tuple(x_shape), weight.shape, tuple(stride), tuple(padding), tuple(dilation), groups)
    dx = empty(x_shape, dy.dtype, dy.device, channels_last)
    run(_implementation(problem, dy), "input_grad", problem, (dy, weight), (dx,))
    return dx


def _input_grad_fake(
    dy: torch.Tensor,
    weight: torch.Tensor,
    x_shape: list[int],
    channels_last: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    return empty(x_shape, dy.dtype, dy.device, channels_last)


def _weight_grad(
    x: torch.Tensor,
    dy: torch.Tensor,
    w_shape: list[int],
    channels_last: bool,
    bias: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    problem = _problem(x.shape, tuple(w_shape), tuple(stride), tuple(padding), tuple(dilation), groups)
    dw = empty(w_shape, x.dtype, x.device, channels_last)
    db = empty((problem.K if bias else 0,), x.dtype, x.device)
    run(_implementation(problem, x), "weight_grad", problem, (x, dy), (dw, db if bias else None))
    return dw, db


def _weight_grad_fake(
    x: torch.Tensor,
    dy: torch.Tensor,
    w_shape: list[int],
    channels_last: bool,
    bias: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty(w_shape, x.dtype, x.device, channels_last), empty((w_shape[0] if bias else 0,), x.dtype, x.device)


# vmap: where only images are vmapped they join N; where weights are, each example becomes its own set of groups.


def _join_channels(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """[N, C, ...] per example to [N, B·C, ...]."""
    return front(tensor, dim, size).movedim(0, 1).flatten(1, 2)


def _forward_vmap(
    info: Any, in_dims: Any, x: Any, weight: Any, bias: Any, activation: str, *window: Any
) -> tuple[Any, Any]:
    size = info.batch_size
    if in_dims[1] is None and in_dims[2] is None:
        examples = front(x, in_dims[0], size)
        y = forward(examples.flatten(0, 1), weight, bias, activation, *window)
        return y.unflatten(0, examples.shape[:2]), 0
    *sizes, groups = window
    y = forward(
        _join_channels(x, in_dims[0], size),
        front(weight, in_dims[1], size).flatten(0, 1),
        None if bias is None else front(bias, in_dims[2], size).flatten(0, 1),
        activation,
        *sizes,
        groups * size,
    )
    return y.unflatten(1, (size, -1)), 1


def _input_grad_vmap(
    info: Any, in_dims: Any, dy: Any, weight: Any, x_shape: Any, channels_last: bool, *window: Any
) -> tuple[Any, Any]:
    size = info.batch_size
    N, C, H, W = x_shape
    if in_dims[1] is None:
        stacked = front(dy, in_dims[0], size).flatten(0, 1)
        dx = input_grad(stacked, weight, [size * N, C, H, W], channels_last, *window)
        return dx.unflatten(0, (size, N)), 0
    *sizes, groups = window
    dx = input_grad(
        _join_channels(dy, in_dims[0], size),
        front(weight, in_dims[1], size).flatten(0, 1),
        [N, size * C, H, W],
        channels_last,
        *sizes,
        groups * size,
    )
    return dx.unflatten(1, (size, C)), 1


def _weight_grad_vmap(
    info: Any, in_dims: Any, x: Any, dy: Any, w_shape: Any, channels_last: bool, bias: bool, *window: Any
) -> tuple[Any, Any]:
    size = info.batch_size
    K, *rest = w_shape
    *sizes, groups = window
    dw, db = weight_grad(
        _join_channels(x, in_dims[0], size),
        _join_channels(dy, in_dims[1], size),
        [size * K, *rest],
        channels_last,
        bias,
        *sizes,
        groups * size,
    )
    return (dw.unflatten(0, (size, K)), db.unflatten(0, (size, K if bias else 0))), (0, 0)


_WINDOW = "int[] stride, int[] padding, int[] dilation, SymInt groups"
forward = define(
    f"conv2d_forward(Tensor x, Tensor weight, Tensor? bias, str activation, {_WINDOW}) -> Tensor",
    _forward,
    _forward_fake,
    lambda _: _forward_vmap,
)
input_grad = define(
    f"conv2d_input_grad(Tensor dy, Tensor weight, SymInt[] x_shape, bool channels_last, {_WINDOW}) -> Tensor",
    _input_grad,
    _input_grad_fake,
    lambda _: _input_grad_vmap,
)
weight_grad = define(
    f"conv2d_weight_grad(Tensor x, Tensor dy, SymInt[] w_shape, bool channels_last, bool bias, {_WINDOW})"
    " -> (Tensor, Tensor)",
    _weight_grad,
    _weight_grad_fake,
    lambda _: _weight_grad_vmap,
)
