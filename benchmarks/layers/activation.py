"""Activations by themselves, and their gradients from the output."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

import torch
from tilesmith.kernels import activation

from . import CONTIGUOUS, BackendCall, Call, Layer, Meta, Sum, Tensors, normal


@dataclass(frozen=True)
class Activation(Layer):
    """``kind`` ("relu", "tanh") of each element of a tensor of ``shape``."""

    kind: str
    shape: tuple[int, ...]
    layouts: tuple[str, ...] = field(default=CONTIGUOUS, kw_only=True)

    operation = activation.OPERATION

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "backward")

    def at_most(self, N: int) -> Activation:
        return self._with(min(self.shape[0], N), *self.shape[1:])

    def tiny(self) -> Activation:
        return self._with(*(min(size, 9) for size in self.shape))

    def _with(self, *shape: int) -> Activation:
        return replace(self, shape=shape)

    def bytes_moved(self, direction: str, itemsize: int) -> int:
        return prod(self.shape) * (2 if direction == "forward" else 3) * itemsize

    def sums(self, direction: str) -> Sum | None:
        return None if self.kind == "relu" else Sum(1, 1.0)

    def operands(self, direction: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = normal(generator, *self.shape)
        if direction == "forward":
            return {"x": x}
        return {"dy": normal(generator, *self.shape), "y": getattr(torch, self.kind)(x)}

    def ours(self, direction: str, tensors: Tensors, layout: str) -> Call:
        if direction == "forward":
            (x,) = tensors.values()
            return lambda: (activation.forward(x, self.kind),)
        dy, y = tensors.values()
        return lambda: (activation.backward(dy, y, self.kind),)

    def theirs(self, direction: str, tensors: Tensors) -> Call:
        if direction == "forward":
            (x,) = tensors.values()
            return lambda: (getattr(torch, self.kind)(x),)
        dy, y = tensors.values()
        if self.kind == "relu":
            return lambda: (torch.ops.aten.threshold_backward(dy, y, 0),)
        return lambda: (torch.ops.aten.tanh_backward(dy, y),)

    def backend_call(self, direction: str, dtype: str, layout: str) -> BackendCall:
        tensor = Meta(dtype, layout)
        inputs = [tensor(*self.shape) for _ in range(1 if direction == "forward" else 2)]
        return BackendCall(direction, self.kind, inputs, [tensor(*self.shape)])
