"""Convolution and 2x2 pooling in CUDA C++: the product kernel pools in its epilogue, others have a pass behind them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ... import autotune
from ...autotune import Config, Cost, Device, Key, Tunable, fastest
from .._cuda import ELEMENTS, launch
from .._cuda_tensors import aligned, by, ints, longs, strides_of
from ..conv2d import _cupy as convolution
from ..conv2d._cupy import ACTIVATIONS, POOLS, images_of
from ._problem import ConvPool2dProblem

ON_TENSORS = True

_SOURCE = Path(__file__).with_name("windows.cu")
_PIXELS = 2**31 - 2**16  # what a launch counts: threads, of one window each at the worst
_OFFSETS = 2**31


@dataclass(frozen=True)
class Windows:
    """One pass over 2x2 windows.

    Attributes:
        threads: how many there are, each with ``unit`` windows.
        bytes_each: moved for one window.
        options: everything else that changes the machine code.
    """

    threads: int
    unit: int
    bytes_each: int
    itemsize: int
    options: tuple[object, ...]
    device: Device

    @property
    def key(self) -> Key:
        d = self.device
        exact = (self.itemsize, self.unit, *self.options, d.name, d.multiprocessors, d.shared_bytes)
        return Key(exact, {"threads": self.threads})


def _cost(config: Config, problem: Windows) -> Cost:
    threads = config["THREADS"]
    return Cost(
        blocks=-(-problem.threads // threads),
        flops=threads * problem.unit * 16,
        unit="double" if problem.itemsize == 8 else "fma",
        bytes=threads * problem.unit * problem.bytes_each,
        threads=threads,
        registers=40 + 4 * problem.unit,
    )


WINDOWS: Tunable = Tunable(
    "cupy.conv_pool2d.windows",
    {"THREADS": (256, 128, 512)},
    default=lru_cache(maxsize=4096)(lambda problem: fastest(WINDOWS, problem, problem.device)),
    reasons={"THREADS": "a block: 256 fill a multiprocessor eight times over; 128 and 512 differ in what is left idle"},
    key=lambda problem: problem.key,
    cost=_cost,
)
TUNABLES = (WINDOWS,)


def forward(
    problem: ConvPool2dProblem,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    code: torch.Tensor | None,
) -> None:
    """2x2 ``pool`` of ``act(conv(x, w) + bias)``. Extra memory: for depthwise convolutions their output."""
    p = problem.convolution
    if not p.depthwise:
        convolution.forward_pooled(p, problem.pool, x, w, bias, y, code)
        return
    layout = torch.contiguous_format if y.is_contiguous() else torch.channels_last
    z = torch.empty((p.N, p.K, p.P, p.Q), dtype=y.dtype, device=y.device, memory_format=layout)
    convolution.forward(p, x, w, bias, z)
    for part, images in images_of(p, problem.windows, _PIXELS):
        _pool(replace(problem, convolution=part), z[images], y[images], None if code is None else code[images])


def backward(
    problem: ConvPool2dProblem, dy: torch.Tensor, y: torch.Tensor | None, code: torch.Tensor | None, dz: torch.Tensor
) -> None:
    """The gradient of ``conv(x, w) + bias``."""
    p = problem.convolution
    if y is not None and code is not None and code.stride() != y.stride():
        code = torch.empty_like(y, dtype=torch.uint8).copy_(code)
    for part, images in images_of(p, problem.windows, _PIXELS):
        y_part, code_part = (None if t is None else t[images] for t in (y, code))
        _unpool(replace(problem, convolution=part), dy[images], y_part, code_part, dz[images])


def _pool(problem: ConvPool2dProblem, z: torch.Tensor, y: torch.Tensor, code: torch.Tensor | None) -> None:
    size = (problem.P, problem.Q)
    along_columns = y.stride(1) != 1
    unit, paired = _unit(problem, along_columns, [z], [y])
    arguments = (*longs(*z.stride(), *y.stride()),)
    bytes_each = 5 * y.element_size() + (code is not None)
    activation = problem.convolution.activation
    _launch(
        "pool", problem, (z, y, code), size, (), arguments, unit, paired, True, along_columns, activation, bytes_each
    )


def _unpool(
    problem: ConvPool2dProblem,
    dy: torch.Tensor,
    y: torch.Tensor | None,
    code: torch.Tensor | None,
    dz: torch.Tensor,
) -> None:
    H, W = dz.shape[2:]
    size = (-(-H // 2), -(-W // 2))
    along_columns = dz.stride(1) != 1
    saved = [t for t in (y, code) if t is not None]
    unit, paired = _unit(problem, along_columns, [dz], saved)
    packed = unit == 1 or aligned(dy, unit, 3 if along_columns else 1)
    whole = ints(problem.P, problem.Q, H, W)
    arguments = longs(*dy.stride(), *(saved[0] if saved else dy).stride(), *dz.stride())
    bytes_each = (5 + (y is not None)) * dz.element_size() + (code is not None)
    activation = problem.convolution.activation if y is not None else "none"
    tensors = (dy, y, code, dz)
    _launch(
        "unpool", problem, tensors, size, whole, arguments, unit, paired, packed, along_columns, activation, bytes_each
    )


def _unit(
    problem: ConvPool2dProblem, along_columns: bool, planes: list[torch.Tensor], pooled: list[torch.Tensor]
) -> tuple[int, bool]:
    """Windows a thread, and whether pairs of columns are moved at once."""
    p = problem.convolution
    vector = 16 // planes[0].element_size()
    if not along_columns:
        ok = p.K % vector == 0 and all(aligned(t, vector) for t in (*planes, *pooled))
        return (vector, False) if ok else (1, False)
    for unit in dict.fromkeys((vector // 2, 1)):
        rows = p.Q % (2 * unit) == 0 and all(aligned(t, 2 * unit, 3) for t in planes)
        if rows and all(unit == 1 or aligned(t, unit, 3) for t in pooled):
            return unit, True
    return 1, False


def _launch(
    name: str,
    problem: ConvPool2dProblem,
    tensors: tuple[torch.Tensor | None, ...],
    size: tuple[int, int],
    sizes: tuple[Any, ...],
    strides: tuple[Any, ...],
    unit: int,
    paired: bool,
    packed: bool,
    along_columns: bool,
    activation: str,
    bytes_each: int,
) -> None:
    p, (P, Q) = problem.convolution, size
    first = tensors[0]
    assert first is not None
    units = -(-(Q if along_columns else p.K) // unit)
    lines = p.N * P * (p.K if along_columns else Q)
    has_code = (tensors[2] if name == "unpool" else tensors[-1]) is not None
    present = [t for t in tensors if t is not None]
    reach = max(sum(size * step for size, step in zip(t.shape, strides_of(t), strict=True)) for t in present)
    index = "long long" if reach >= _OFFSETS else "int"
    options = (problem.pool, activation, has_code, along_columns, paired, packed, index, name)
    windows = Windows(units * lines, unit, bytes_each, first.element_size(), options, autotune.device_of(first))
    config = autotune.resolve(WINDOWS, windows)
    image, line = (p.K * P, P) if along_columns else (P * Q, Q)
    launch(
        _SOURCE,
        name,
        {
            "ELEMENT": ELEMENTS[first.dtype],
            "INDEX": index,
            "POOL": POOLS[problem.pool],
            "ACTIVATION": ACTIVATIONS[activation],
            "CODE": int(has_code),
            "UNIT": unit,
            "ALONG_COLUMNS": int(along_columns),
            "PAIRED": int(paired),
            "PACKED": int(packed),
        },
        (-(-units * lines // config["THREADS"]),),
        (config["THREADS"],),
        (
            *tensors, *ints(units * lines, units, p.K, P, Q), *sizes, by(units), by(image),
            by(line), *strides,
        ),
        tunable=WINDOWS,
        problem=windows,
        config=config,
    )  # fmt: skip
