"""Dense layers: forward with bias and activation, and the two gradients by themselves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt

import torch
from tilesmith.kernels import linear

from . import CONTIGUOUS, FUSED, BackendCall, Call, Layer, Meta, Sum, Tensors, normal

DIRECTIONS = (FUSED, "input_grad", "weight_grad")


@dataclass(frozen=True)
class Dense(Layer):
    """``act(x wᵀ + bias)`` of ``x [M, I]`` and ``w [O, I]``."""

    M: int
    I: int  # noqa: E741 - the name of the contract
    O: int  # noqa: E741
    activation: str
    layouts: tuple[str, ...] = field(default=CONTIGUOUS, kw_only=True)

    operation = linear.OPERATION
    multiplies = "matmul"

    @property
    def directions(self) -> tuple[str, ...]:
        return DIRECTIONS

    @property
    def looped(self) -> tuple[str, ...]:
        return (FUSED,)

    def at_most(self, N: int) -> Dense:
        return replace(self, M=min(self.M, N))

    def tiny(self) -> Dense:
        return replace(self, M=min(self.M, 6), I=min(self.I, 40), O=min(self.O, 10))

    # ---- what it costs

    def bytes_moved(self, direction: str, itemsize: int) -> int:
        return (self.M * self.I + self.O * self.I + self.M * self.O) * itemsize

    def flops(self, direction: str) -> int:
        return 2 * self.M * self.I * self.O

    def sums(self, direction: str) -> Sum:
        terms = {FUSED: self.I + 1, "input_grad": self.O, "weight_grad": self.M}[direction]
        return Sum(terms, sqrt(terms))

    # ---- how it is called

    def operands(self, direction: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {
            "x": normal(generator, self.M, self.I),
            "w": normal(generator, self.O, self.I),
            "dy": normal(generator, self.M, self.O),
            "bias": normal(generator, self.O),
        }

    def ours(self, direction: str, tensors: Tensors, layout: str) -> Call:
        x, w, dy, bias = tensors.values()
        calls: dict[str, Call] = {
            FUSED: lambda: (linear.forward(x, w, bias, self.activation),),
            "input_grad": lambda: (linear.input_grad(dy, w),),
            "weight_grad": lambda: (linear.weight_grad(x, dy, False)[0],),
        }
        return calls[direction]

    def theirs(self, direction: str, tensors: Tensors) -> Call:
        x, w, dy, bias = tensors.values()

        def forward() -> tuple[torch.Tensor]:
            y = torch.nn.functional.linear(x, w, bias)
            return (y if self.activation == "none" else getattr(torch, self.activation)(y),)

        calls: dict[str, Call] = {
            FUSED: forward,
            "input_grad": lambda: (dy @ w,),
            "weight_grad": lambda: (dy.t() @ x,),
        }
        return calls[direction]

    def backend_call(self, direction: str, dtype: str, layout: str) -> BackendCall:
        tensor = Meta(dtype, layout)
        x, w, y, bias = tensor(self.M, self.I), tensor(self.O, self.I), tensor(self.M, self.O), tensor(self.O)
        if direction == FUSED:
            return BackendCall("forward", self.activation, [x, w, bias], [y])
        inputs, outputs = ([y, w], [x]) if direction == "input_grad" else ([x, y], [w, bias])
        return BackendCall(direction, "none", inputs, outputs)
