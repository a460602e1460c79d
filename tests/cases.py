"""The problems each op is tested on. Small, odd sizes: every edge is near."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .harness import Case

ACTIVATIONS = {None: lambda x: x, "relu": F.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def conv2d_oracle(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str | None = None,
) -> torch.Tensor:
    """torch's convolution, with our extensions written out: explicit zeros, then the activation."""
    pair = stride if isinstance(stride, tuple) else (stride, stride)
    spread = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    if padding == "same" and max(pair) > 1:
        sides = []
        for size, kernel, s, d in zip(x.shape[-2:], weight.shape[-2:], pair, spread, strict=True):
            missing = max((-(-size // s) - 1) * s + (kernel - 1) * d + 1 - size, 0)
            sides.append((missing // 2, missing - missing // 2))
        padding = tuple(sides)
    if isinstance(padding, tuple) and isinstance(padding[0], tuple):
        (top, bottom), (left, right) = padding
        x, padding = F.pad(x, (left, right, top, bottom)), 0
    return ACTIVATIONS[activation](F.conv2d(x, weight, bias, stride, padding, dilation, groups))


def _conv(x: tuple[int, ...], w: tuple[int, ...], bias: bool = True, **options: Any) -> Case:
    """N·P·Q terms make a weight's gradient, C·R·S an output."""
    images = x[0] if len(x) == 4 else 1
    reduction = max(images * x[-1] * x[-2], w[1] * w[2] * w[3], w[0] * w[2] * w[3])
    return Case("conv2d", (x, w, (w[0],) if bias else None), conv2d_oracle, reduction, options)


CONV2D = [
    _conv((2, 3, 9, 8), (4, 3, 3, 3)),
    _conv((2, 1, 12, 12), (5, 1, 3, 3), activation="relu"),
    _conv((2, 3, 9, 8), (4, 3, 3, 3), bias=False, padding=1),
    _conv((2, 3, 9, 10), (4, 3, 3, 2), stride=2, padding=(1, 0), activation="tanh"),
    _conv((1, 3, 11, 10), (4, 3, 3, 3), stride=(3, 2), dilation=(2, 1), padding=2),
    _conv((2, 4, 7, 9), (6, 2, 3, 3), groups=2, padding=1, activation="sigmoid"),
    _conv((2, 6, 8, 7), (6, 1, 3, 3), groups=6, padding=1),
    _conv((2, 3, 8, 7), (6, 1, 3, 5), groups=3, padding=(1, 2), stride=2),
    _conv((2, 4, 9, 9), (8, 1, 2, 3), groups=4, dilation=2, activation="relu"),
    _conv((2, 5, 6, 7), (3, 5, 1, 1)),
    _conv((2, 5, 7, 7), (4, 5, 1, 1), stride=2),
    _conv((2, 4, 6, 7), (4, 2, 1, 1), groups=2, padding=1),
    _conv((2, 3, 8, 8), (4, 3, 2, 2), stride=2),
    _conv((2, 2, 10, 10), (3, 2, 2, 2), stride=4),
    _conv((2, 2, 8, 9), (3, 2, 3, 4), padding="same"),
    _conv((2, 2, 8, 9), (3, 2, 3, 4), padding="same", stride=(2, 3)),
    _conv((2, 2, 8, 9), (3, 2, 3, 3), padding="valid"),
    _conv((2, 2, 5, 6), (3, 2, 3, 3), padding=((0, 2), (1, 3)), stride=2),
    _conv((1, 2, 3, 3), (3, 2, 5, 5), padding=2),
    _conv((2, 2, 4, 4), (3, 2, 4, 4)),
    _conv((1, 1, 1, 1), (1, 1, 1, 1)),
    _conv((2, 1, 1, 1), (4, 1, 3, 3), padding=1),
    _conv((1, 2, 3, 4), (2, 2, 1, 2), padding=(5, 4)),
    _conv((3, 6, 7), (4, 3, 3, 3), padding=1),
    _conv((0, 3, 6, 7), (4, 3, 3, 3), activation="relu"),
]


def _pool(op: str, x: tuple[int, ...], *args: Any, **options: Any) -> Case:
    names = ("output_size",) if op.startswith("adaptive") else ("kernel_size", "stride", "padding")
    options = {**dict(zip(names, args, strict=False)), **options}
    return Case(op, (x,), getattr(F, op), 64, options)


POOL2D = [
    _pool("max_pool2d", (2, 3, 8, 10), 2),
    _pool("max_pool2d", (2, 3, 9, 11), 2),
    _pool("max_pool2d", (2, 3, 9, 8), 3, 2, 1),
    _pool("max_pool2d", (2, 3, 9, 8), (3, 2), (1, 2), (1, 0), ceil_mode=True),
    _pool("max_pool2d", (1, 2, 12, 11), 3, 2, 1, dilation=2),
    _pool("max_pool2d", (2, 2, 7, 7), 2, 3, ceil_mode=True),
    _pool("max_pool2d", (2, 2, 5, 6), (5, 6)),
    _pool("max_pool2d", (3, 7, 6), 2, 1),
    _pool("max_pool2d", (2, 2, 7, 7), 1, 2),
    _pool("max_pool2d", (0, 3, 8, 8), 2),
    _pool("avg_pool2d", (2, 3, 8, 10), 2),
    _pool("avg_pool2d", (2, 3, 9, 11), 2),
    _pool("avg_pool2d", (2, 3, 9, 8), 3, 2, 1),
    _pool("avg_pool2d", (2, 3, 9, 8), 3, 2, 1, count_include_pad=False),
    _pool("avg_pool2d", (2, 3, 10, 8), (3, 4), (2, 3), (1, 2), ceil_mode=True),
    _pool("avg_pool2d", (2, 3, 10, 8), (3, 4), (2, 3), (1, 2), ceil_mode=True, count_include_pad=False),
    _pool("avg_pool2d", (2, 3, 7, 7), 3, 2, 1, ceil_mode=True, divisor_override=5),
    _pool("avg_pool2d", (2, 2, 7, 7), 2, 3),
    _pool("avg_pool2d", (3, 7, 6), 2, 1),
    _pool("avg_pool2d", (0, 3, 8, 8), 2),
    _pool("adaptive_max_pool2d", (2, 3, 8, 9), 1),
    _pool("adaptive_max_pool2d", (2, 3, 8, 9), (4, 3)),
    _pool("adaptive_max_pool2d", (2, 3, 8, 9), (3, 5)),
    _pool("adaptive_max_pool2d", (2, 3, 3, 4), (5, 7)),
    _pool("adaptive_max_pool2d", (3, 7, 6), (None, 2)),
    _pool("adaptive_max_pool2d", (0, 3, 7, 6), 2),
    _pool("adaptive_avg_pool2d", (2, 3, 8, 9), 1),
    _pool("adaptive_avg_pool2d", (2, 3, 8, 9), (4, 3)),
    _pool("adaptive_avg_pool2d", (2, 3, 8, 9), (3, 5)),
    _pool("adaptive_avg_pool2d", (2, 3, 3, 4), (5, 7)),
    _pool("adaptive_avg_pool2d", (3, 7, 6), (None, 2)),
    _pool("adaptive_avg_pool2d", (0, 3, 7, 6), 2),
]


def conv_pool2d_oracle(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = "relu",
    pool: str = "max",
    **options: Any,
) -> torch.Tensor:
    """torch's layers, one after another."""
    z = conv2d_oracle(x, weight, bias, activation=activation, **options)
    return F.max_pool2d(z, 2) if pool == "max" else F.avg_pool2d(z, 2)


def conv_pool(x: tuple[int, ...], w: tuple[int, ...], bias: bool = True, **options: Any) -> Case:
    case = _conv(x, w, bias, **options)
    return Case("conv_pool2d", case.shapes, conv_pool2d_oracle, case.reduction, {"activation": "relu"} | options)


CONV_POOL2D = [
    conv_pool((2, 1, 14, 12), (8, 1, 3, 3)),
    conv_pool((2, 3, 9, 8), (4, 3, 3, 3), bias=False, padding=1, activation="tanh"),
    conv_pool((1, 4, 9, 7), (5, 4, 3, 3), stride=2, padding=1, activation=None),
    conv_pool((2, 6, 6, 8), (4, 6, 1, 1), pool="avg"),
    conv_pool((2, 3, 10, 9), (5, 3, 3, 2), pool="avg", activation=None, dilation=2, padding=1),
    conv_pool((2, 6, 8, 7), (12, 1, 3, 3), groups=6, padding=1, activation="sigmoid"),
    conv_pool((3, 6, 7), (4, 3, 3, 3), padding="same"),
    conv_pool((0, 3, 8, 8), (4, 3, 3, 3)),
]


def linear_oracle(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None
) -> torch.Tensor:
    return ACTIVATIONS[activation](F.linear(x, weight, bias))


LINEAR = [
    Case("linear", ((5, 7), (4, 7), (4,)), linear_oracle, 7),
    Case("linear", ((5, 7), (4, 7), None), linear_oracle, 7),
    Case("linear", ((2, 3, 7), (4, 7), (4,)), linear_oracle, 7, {"activation": "relu"}),
    Case("linear", ((5, 7), (4, 7), (4,)), linear_oracle, 7, {"activation": "sigmoid"}),
    Case("linear", ((5, 7), (4, 7), (4,)), linear_oracle, 7, {"activation": "tanh"}),
    Case("linear", ((7,), (4, 7), (4,)), linear_oracle, 7),
    Case("linear", ((3, 7), (7,), None), linear_oracle, 7),
    Case("linear", ((0, 7), (4, 7), (4,)), linear_oracle, 7),
    Case("linear", ((1, 300), (200, 300), (200,)), linear_oracle, 300),
]

ELEMENTWISE = [
    Case(op, (shape,), getattr(F if op == "relu" else torch, op))
    for op in ("relu", "sigmoid", "tanh")
    for shape in ((2, 3, 5, 4), (7,), (), (0, 3))
]

SOFTMAX = [
    Case(op, (shape,), getattr(F, op), shape[dim] if shape else 1, {"dim": dim})
    for op in ("softmax", "log_softmax")
    for shape, dim in (((5, 7), 1), ((5, 7), 0), ((2, 3, 4, 5), 1), ((2, 3, 4, 5), -1), ((7,), 0), ((), 0), ((0, 3), 1))
]

CASES = CONV2D + CONV_POOL2D + POOL2D + LINEAR + ELEMENTWISE + SOFTMAX
