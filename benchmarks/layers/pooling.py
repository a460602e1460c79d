"""Pooling. Maxima are taken forward by value only ("inference"), and with the byte a window that a training keeps."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from tilesmith.kernels import pool2d
from tilesmith.nn import functional

from . import BackendCall, Call, Layer, Meta, Sum, Tensors, gradients, normal, whole

MAX_DIRECTIONS = ("inference", "forward", "backward")
AVG_DIRECTIONS = ("forward", "backward")

_DISTINCT = 16  # rows and columns within which no value of a plane comes twice


@dataclass(frozen=True)
class _Pooling(Layer):
    """Both sides are called as a user calls them, the backward through autograd.

    Operands of maxima are such that everything is exact: no window has a value twice, gradients are whole numbers. So
    a wrong index shows in the gradient.

    Attributes:
        kind: "max" or "avg".
    """

    kind: str
    N: int
    C: int
    H: int
    W: int

    operation = pool2d.OPERATION

    @property
    @abstractmethod
    def problem(self) -> pool2d.Pool2dProblem | pool2d.AdaptivePool2dProblem: ...

    @property
    @abstractmethod
    def prefix(self) -> str:
        """Of the functions' names."""

    @abstractmethod
    def pooled(self, library: Any, x: torch.Tensor) -> torch.Tensor:
        """By the functions of ``torch.nn.functional`` or of ours."""

    @abstractmethod
    def shares(self) -> Sum:
        """Of averages: how many windows see one element, and how large its gradient is."""

    @property
    def directions(self) -> tuple[str, ...]:
        return MAX_DIRECTIONS if self.kind == "max" else AVG_DIRECTIONS

    # ---- what it costs

    def bytes_moved(self, direction: str, itemsize: int) -> int:
        """The index is a byte a window."""
        return self.problem.bytes_moved(itemsize, int(self.kind == "max" and direction != "inference"))

    def sums(self, direction: str) -> Sum | None:
        if self.kind == "max":
            return None
        taps = self.problem.taps
        return Sum(taps, 1 / sqrt(taps)) if direction == "forward" else self.shares()

    # ---- how it is called

    def operands(self, direction: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        p = self.problem
        shapes = {"x": (p.N, p.C, p.H, p.W)}
        if direction == "backward":
            shapes["dy"] = (p.N, p.C, p.P, p.Q)
        if self.kind == "avg":
            return {name: normal(generator, *shape) for name, shape in shapes.items()}
        return {
            name: distinct(generator, *shape) if name == "x" else whole(generator, 8, *shape)
            for name, shape in shapes.items()
        }

    def ours(self, direction: str, tensors: Tensors, layout: str) -> Call:
        return self._call(functional, direction, tensors)

    def theirs(self, direction: str, tensors: Tensors) -> Call:
        return self._call(torch.nn.functional, direction, tensors)

    def _call(self, library: Any, direction: str, tensors: Tensors) -> Call:
        x = tensors["x"].detach()
        if direction == "inference" or (self.kind == "avg" and direction == "forward"):
            return lambda: (self.pooled(library, x),)
        x.requires_grad_()
        if direction == "forward":
            return lambda: (self.pooled(library, x),)
        return gradients(self.pooled(library, x), [x], tensors["dy"])

    def backend_call(self, direction: str, dtype: str, layout: str) -> BackendCall:
        p, tensor = self.problem, Meta(dtype, layout)
        x, y = tensor(p.N, p.C, p.H, p.W), tensor(p.N, p.C, p.P, p.Q)
        if self.kind == "avg":
            inputs, outputs = (x, y) if direction == "forward" else (y, x)
            return BackendCall(f"{self.prefix}avg_{direction}", p, [inputs], [outputs])
        index = tensor(p.N, p.C, p.P, p.Q, dtype=torch.uint8 if p.taps <= 256 else torch.int64)
        return {
            "inference": BackendCall(f"{self.prefix}max_forward", p, [x], [y, None]),
            "forward": BackendCall(f"{self.prefix}max_forward", p, [x], [y, index]),
            "backward": BackendCall("max_backward", p, [y, index], [x]),
            "gather": BackendCall("max_gather", p, [x, index], [y]),
        }[direction]


@dataclass(frozen=True)
class Pooling(_Pooling):
    """Windows of ``kernel`` rows and columns, ``stride`` apart."""

    kernel: int
    stride: int
    padding: int

    prefix = ""

    @property
    def problem(self) -> pool2d.Pool2dProblem:
        window = (self.kernel, self.kernel, self.stride, self.stride, self.padding, self.padding, 1, 1)
        return pool2d.make_problem((self.N, self.C, self.H, self.W), window)

    def pooled(self, library: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = getattr(library, f"{self.kind}_pool2d")(x, self.kernel, self.stride, self.padding)
        return y

    def shares(self) -> Sum:
        windows = (-(-self.kernel // self.stride)) ** 2
        return Sum(windows, sqrt(windows) / self.kernel**2)

    def at_most(self, N: int) -> Pooling:
        return replace(self, N=min(self.N, N))

    def tiny(self) -> Pooling:
        size = min(self.H, self.kernel + 3 * self.stride + 1)
        return replace(self, N=2, C=min(self.C, 8), H=size, W=size)


@dataclass(frozen=True)
class AdaptivePooling(_Pooling):
    """``windows`` in each direction, of whatever size that takes."""

    windows: int

    prefix = "adaptive_"

    @property
    def problem(self) -> pool2d.AdaptivePool2dProblem:
        return pool2d.make_adaptive_problem((self.N, self.C, self.H, self.W), (self.windows, self.windows))

    def pooled(self, library: Any, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = getattr(library, f"adaptive_{self.kind}_pool2d")(x, self.windows)
        return y

    def shares(self) -> Sum:
        p = self.problem
        windows = 1 + p.overlapping
        return Sum(windows**2, windows * p.P * p.Q / (p.H * p.W))

    def at_most(self, N: int) -> AdaptivePooling:
        return replace(self, N=min(self.N, N))

    def tiny(self) -> AdaptivePooling:
        """As divisible as it was."""
        size = 2 * self.windows + self.H % self.windows
        return replace(self, N=2, C=min(self.C, 8), H=size, W=size)


def distinct(generator: torch.Generator, N: int, C: int, H: int, W: int) -> torch.Tensor:
    """Whole numbers from -128 to 127, exact in each dtype; no window of 16 by 16 has one twice.

    The places of such a window are numbered, and each plane takes these numbers in an order of its own.
    """
    device = generator.device
    h, w = (torch.arange(size, device=device, dtype=torch.int32) % _DISTINCT for size in (H, W))
    number = h[:, None] * _DISTINCT + w
    factor, offset = (
        torch.randint(_DISTINCT**2, (N, C, 1, 1), generator=generator, device=device, dtype=torch.int32)
        for _ in range(2)
    )
    return ((number * (factor | 1) + offset) % _DISTINCT**2 - _DISTINCT**2 // 2).float()
