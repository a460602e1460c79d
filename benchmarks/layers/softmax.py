"""Softmax and log-softmax over one dimension, and their gradients from the output."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod, sqrt

import torch
from tilesmith.kernels import softmax

from . import CONTIGUOUS, BackendCall, Call, Layer, Meta, Sum, Tensors, normal


@dataclass(frozen=True)
class Softmax(Layer):
    """Over dimension ``dim`` of a tensor of ``shape``; ``log`` for its logarithm."""

    shape: tuple[int, ...]
    dim: int
    log: bool
    layouts: tuple[str, ...] = field(default=CONTIGUOUS, kw_only=True)

    operation = softmax.OPERATION

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "backward")

    def at_most(self, N: int) -> Softmax:
        return self._with(min(self.shape[0], N), *self.shape[1:])

    def tiny(self) -> Softmax:
        return self._with(*(min(size, 12) for size in self.shape))

    def _with(self, *shape: int) -> Softmax:
        return replace(self, shape=shape)

    def bytes_moved(self, direction: str, itemsize: int) -> int:
        return prod(self.shape) * (2 if direction == "forward" else 3) * itemsize

    def sums(self, direction: str) -> Sum:
        """Probabilities have the size of ``1 / length``; the largest of normal numbers' is some ten times that."""
        length = self.shape[self.dim]
        return Sum(length, 1.0 if self.log else min(1.0, 10 / length) / sqrt(length))

    def operands(self, direction: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = normal(generator, *self.shape)
        if direction == "forward":
            return {"x": x}
        y = (torch.log_softmax if self.log else torch.softmax)(x, self.dim)
        return {"dy": normal(generator, *self.shape), "y": y}

    def ours(self, direction: str, tensors: Tensors, layout: str) -> Call:
        if direction == "forward":
            (x,) = tensors.values()
            return lambda: (softmax.forward(x, self.dim, self.log),)
        dy, y = tensors.values()
        return lambda: (softmax.backward(dy, y, self.dim, self.log),)

    def theirs(self, direction: str, tensors: Tensors) -> Call:
        if direction == "forward":
            (x,) = tensors.values()
            forward = torch.log_softmax if self.log else torch.softmax
            return lambda: (forward(x, self.dim),)
        dy, y = tensors.values()
        aten = torch.ops.aten
        backward = aten._log_softmax_backward_data if self.log else aten._softmax_backward_data
        return lambda: (backward(dy, y, self.dim, y.dtype),)

    def backend_call(self, direction: str, dtype: str, layout: str) -> BackendCall:
        tensor = Meta(dtype, layout)
        inputs = [tensor(*self.shape) for _ in range(1 if direction == "forward" else 2)]
        return BackendCall(direction, (self.dim, self.log), inputs, [tensor(*self.shape)])
