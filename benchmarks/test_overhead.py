"""What a call costs besides the NumPy function that does the work: tiny inputs, gradients enabled. CPU only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tilesmith import nn
from tilesmith.kernels import activation, conv2d, linear, pool2d, softmax
from tilesmith.kernels.backends import Operation

from .load import Load
from .report import Report
from .timing import interleaved

SECONDS = 0.5  # an op, all four ways of calling together

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tiny:
    """One op called four ways on inputs so small that the call is what takes the time.

    Attributes:
        op: the function's name in both functionals; ``shapes`` and ``options`` are its arguments.
        module: makes the layer that takes the first input.
        operation: whose NumPy backend ``bare`` calls.
        bare: calls the backend's function on the inputs, as arrays, and an output made by ``np.empty``.
    """

    op: str
    shapes: tuple[tuple[int, ...], ...]
    module: Callable[[], torch.nn.Module]
    operation: Operation
    bare: Callable[..., None]
    options: dict[str, Any] = field(default_factory=dict)


X = (1, 2, 4, 4)
_CONV = conv2d.make_problem(X, (2, 2, 3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1)
_POOL = pool2d.make_problem(X, (2, 2, 2, 2, 0, 0, 1, 1))
_GLOBAL = pool2d.make_adaptive_problem(X, (1, 1))


def _conv2d(numpy: Any, x: Array, w: Array, bias: Array) -> None:
    numpy.forward(_CONV, x, w, bias, np.empty((1, 2, 2, 2), x.dtype))


def _max_pool2d(numpy: Any, x: Array) -> None:
    numpy.max_forward(_POOL, x, np.empty((1, 2, 2, 2), x.dtype), np.empty((1, 2, 2, 2), np.int64))


def _avg_pool2d(numpy: Any, x: Array) -> None:
    numpy.avg_forward(_POOL, x, np.empty((1, 2, 2, 2), x.dtype))


def _adaptive_avg_pool2d(numpy: Any, x: Array) -> None:
    numpy.adaptive_avg_forward(_GLOBAL, x, np.empty((1, 2, 1, 1), x.dtype))


def _linear(numpy: Any, x: Array, w: Array, bias: Array) -> None:
    numpy.forward("none", x, w, bias, np.empty((2, 4), x.dtype))


def _relu(numpy: Any, x: Array) -> None:
    numpy.forward("relu", x, np.empty(x.shape, x.dtype))


def _softmax(numpy: Any, x: Array) -> None:
    numpy.forward((1, False), x, np.empty(x.shape, x.dtype))


OPS = [
    Tiny("conv2d", (X, (2, 2, 3, 3), (2,)), lambda: nn.Conv2d(2, 2, 3), conv2d.OPERATION, _conv2d),
    Tiny("max_pool2d", (X,), lambda: nn.MaxPool2d(2), pool2d.OPERATION, _max_pool2d, {"kernel_size": 2}),
    Tiny("avg_pool2d", (X,), lambda: nn.AvgPool2d(2), pool2d.OPERATION, _avg_pool2d, {"kernel_size": 2}),
    Tiny(
        "adaptive_avg_pool2d",
        (X,),
        lambda: nn.AdaptiveAvgPool2d(1),
        pool2d.OPERATION,
        _adaptive_avg_pool2d,
        {"output_size": 1},
    ),
    Tiny("linear", ((2, 4), (4, 4), (4,)), lambda: nn.Linear(4, 4), linear.OPERATION, _linear),
    Tiny("relu", (X,), nn.ReLU, activation.OPERATION, _relu),
    Tiny("softmax", ((2, 4),), lambda: nn.Softmax(1), softmax.OPERATION, _softmax, {"dim": 1}),
]


@pytest.mark.parametrize("tiny", [pytest.param(tiny, id=tiny.op) for tiny in OPS])
@pytest.mark.benchmark(group="dispatch overhead", disable_gc=True)
def test_overhead(tiny: Tiny, benchmark: BenchmarkFixture, facts: dict[str, Any], report: Report, load: Load) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator, requires_grad=True) for shape in tiny.shapes]
    arrays = [tensor.detach().numpy() for tensor in tensors]
    numpy = tiny.operation.implementation("cpu")
    ours, theirs = getattr(nn.functional, tiny.op), getattr(torch.nn.functional, tiny.op)
    layer = tiny.module()
    torch.testing.assert_close(ours(*tensors, **tiny.options), theirs(*tensors, **tiny.options))

    medians = interleaved(
        benchmark,
        lambda: ours(*tensors, **tiny.options),
        {
            "bare": lambda: tiny.bare(numpy, *arrays),
            "module": lambda: layer(tensors[0]),
            "torch": lambda: theirs(*tensors, **tiny.options),
        },
        SECONDS,
    )
    if not benchmark.enabled:
        return
    share_elsewhere = load.share
    medians["functional"] = medians.pop("tilesmith")
    medians["overhead"] = medians["functional"] - medians["bare"]
    benchmark.extra_info.update(
        facts,
        share_elsewhere=share_elsewhere,
        **{f"{name}_median": value for name, value in medians.items()},
    )
    us = {name: f"{value * 1e6:.1f}" for name, value in medians.items()}
    us["overhead"] = report.trusted(us["overhead"], share_elsewhere)
    columns = ("bare", "functional", "overhead", "module", "torch")
    report.overhead.rows.append((tiny.op, "x".join(map(str, tiny.shapes[0])), *(us[name] for name in columns)))
