"""Convolution, bias, activation and 2x2 pooling in one pass: the contract of the backends, the ops, and the dispatch.

What the convolution gives is never stored. Of each 2x2 window a training keeps the pooled value and one byte, the
``code``: for maxima the tap of the maximum (0 to 3, row by row), for averages behind a ReLU one bit a tap that the
gradient passes. Behind an average with no activation nothing needs to be kept; an average of sigmoids would need all
four values, so there is no such op.

A backend is a module with two functions that write into preallocated tensors (NumPy's: arrays):

- ``forward(problem, x, w, bias, y, code)``: ``code`` (uint8, laid out like ``y``) may be ``None``
- ``backward(problem, dy, y, code, dz)``: the gradient of ``conv(x, w) + bias``, which is what the convolution's own
  gradients take; ``y`` and ``code`` are ``None`` where they are not needed

Values are those of the layers one after another, bit for bit: what is pooled has been rounded (NumPy, which computes
half types in float32, rounds once). Of equal values the first counts, of NaNs the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from .._arrays import empty, empty_like, is_channels_last, run
from .._ops import define, one_by_one
from ..backends import Operation
from ..conv2d import Conv2dProblem, make_problem
from ._problem import ConvPool2dProblem

__all__ = ["OPERATION", "ConvPool2dProblem", "backward", "forward", "needs_code", "needs_output"]

OPERATION = Operation("conv_pool2d", __name__, {"triton": "._triton", "cupy": "._cupy", "numpy": "._numpy"})

POOLS = ("max", "avg")


def needs_code(pool: str, activation: str) -> bool:
    """Whether a backward needs the byte of each window."""
    return pool == "max" or activation == "relu"


def needs_output(pool: str, activation: str) -> bool:
    """Whether a backward needs the pooled value: of a maximum it tells the activation's slope."""
    return pool == "max" and activation != "none"


def fill_inputs(function: str, problem: ConvPool2dProblem, inputs: Sequence[torch.Tensor | None]) -> None:
    """Makes the codes among the tuner's inputs what a forward could have left."""
    if function == "backward" and inputs[2] is not None:
        code = torch.randint(
            0, 4 if problem.pool == "max" else 16, inputs[2].shape, generator=torch.Generator().manual_seed(1)
        )
        inputs[2].copy_(code)


def make_pooled_problem(convolution: Conv2dProblem, pool: str) -> ConvPool2dProblem:
    """The problem of pooling the outputs of ``convolution``.

    Raises:
        ValueError: there is no such pooling, or not with this activation.
        RuntimeError: the output has no 2x2 window.
    """
    if pool not in POOLS:
        raise ValueError(f"pool is {pool!r}, it must be one of {', '.join(map(repr, POOLS))}")
    if pool == "avg" and convolution.activation not in ("none", "relu"):
        raise ValueError(f"pool='avg' goes with no activation or with 'relu', not with {convolution.activation!r}")
    problem = ConvPool2dProblem(convolution, pool)
    if problem.P < 1 or problem.Q < 1:
        raise RuntimeError(
            f"Given input size: ({convolution.K}x{convolution.P}x{convolution.Q}). "
            f"Calculated output size: ({convolution.K}x{problem.P}x{problem.Q}). Output size is too small"
        )
    return problem


def _make(
    x_shape: Any, w_shape: Any, window: tuple[Any, Any, Any, int], activation: str, pool: str
) -> ConvPool2dProblem:
    return make_pooled_problem(make_problem(x_shape, w_shape, *window, activation), pool)


_problem: Any = lru_cache(maxsize=4096)(_make)  # hot path, as in conv2d


def _outputs(
    problem: ConvPool2dProblem, x: torch.Tensor, weight: torch.Tensor, with_code: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    p = problem.convolution
    channels_last = is_channels_last(x) or is_channels_last(weight)
    y = empty((p.N, p.K, problem.P, problem.Q), x.dtype, x.device, channels_last)
    if not (with_code and needs_code(problem.pool, p.activation)):
        return y, empty((0,), torch.uint8, x.device)
    return y, empty_like(y, torch.uint8)


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    pool: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    with_code: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    window = (tuple(stride), tuple(padding), tuple(dilation), groups)
    problem = _problem(x.shape, weight.shape, window, activation, pool)
    y, code = _outputs(problem, x, weight, with_code)
    if y.numel():
        outputs = (y, code if code.numel() else None)
        run(OPERATION.implementation(x.device.type), "forward", problem, (x, weight, bias), outputs)
    return y, code


def _forward_fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    pool: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    with_code: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    problem = _make(x.shape, weight.shape, (stride, padding, dilation, groups), activation, pool)
    return _outputs(problem, x, weight, with_code)


def _backward(
    dy: torch.Tensor,
    y: torch.Tensor | None,
    code: torch.Tensor | None,
    activation: str,
    pool: str,
    z_shape: list[int],
    channels_last: bool,
) -> torch.Tensor:
    N, K, P, Q = z_shape
    # only the outputs of the convolution matter here: any convolution that has them will do
    pointwise = Conv2dProblem(N, 1, P, Q, K, 1, 1, (1, 1), (0, 0, 0, 0), (1, 1), 1, activation)
    problem = ConvPool2dProblem(pointwise, pool)
    dz = empty(z_shape, dy.dtype, dy.device, channels_last)
    if dz.numel():
        run(OPERATION.implementation(dy.device.type), "backward", problem, (dy, y, code), (dz,))
    return dz


def _backward_fake(
    dy: torch.Tensor,
    y: torch.Tensor | None,
    code: torch.Tensor | None,
    activation: str,
    pool: str,
    z_shape: list[int],
    channels_last: bool,
) -> torch.Tensor:
    return empty(z_shape, dy.dtype, dy.device, channels_last)


forward = define(
    "conv_pool2d_forward(Tensor x, Tensor weight, Tensor? bias, str activation, str pool, int[] stride, int[] padding,"
    " int[] dilation, SymInt groups, bool with_code) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    one_by_one,
)
backward = define(
    "conv_pool2d_backward(Tensor dy, Tensor? y, Tensor? code, str activation, str pool, SymInt[] z_shape,"
    " bool channels_last) -> Tensor",
    _backward,
    _backward_fake,
    one_by_one,
)
