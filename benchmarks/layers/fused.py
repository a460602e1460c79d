"""Convolution, activation and 2x2 pooling in one pass, beside torch's three layers one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from tilesmith.kernels import conv2d, conv_pool2d
from tilesmith.nn import functional

from . import BackendCall, Call, Layer, Meta, Results, Tensors, gradients, whole


@dataclass(frozen=True)
class FusedBlock(Layer):
    """Both sides are called as a user calls them, the backward (of input, weight and bias) through autograd.

    Operands are small whole numbers, so that everything is exact: where two outputs of the convolution round to the
    same, every right implementation finds the same maximum, and the gradient flows to the same place.

    Attributes:
        pool: "max" or "avg".
        first: the input needs no gradient.
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    padding: int
    groups: int
    activation: str
    pool: str
    first: bool

    operation = conv_pool2d.OPERATION
    multiplies = "convolution"

    @property
    def problem(self) -> conv_pool2d.ConvPool2dProblem:
        convolution = conv2d.make_problem(
            (self.N, self.C, self.H, self.W),
            (self.K, self.C // self.groups, self.R, self.S),
            (1, 1),
            (self.padding,) * 4,
            (1, 1),
            self.groups,
            self.activation,
        )
        return conv_pool2d.ConvPool2dProblem(convolution, self.pool)

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "backward")

    @property
    def looped(self) -> tuple[str, ...]:
        return self.directions

    def at_most(self, N: int) -> FusedBlock:
        return replace(self, N=min(self.N, N))

    def tiny(self) -> FusedBlock:
        """With an odd number of rows and columns to pool."""
        groups = min(self.groups, 4)
        C, K = (min(c // self.groups, 8) * groups for c in (self.C, self.K))
        size = self.R + 4 - 2 * self.padding
        return replace(self, N=2, C=C, K=K, H=size, W=size, groups=groups)

    # ---- what it costs

    @property
    def _keeps_code(self) -> bool:
        return conv_pool2d.needs_code(self.pool, self.activation)

    def bytes_moved(self, direction: str, itemsize: int) -> int:
        """Forward as in a training. Backward as if it were one pass too: what was kept, input, weight, gradients."""
        problem, p = self.problem, self.problem.convolution
        if direction == "forward":
            return problem.bytes_moved(itemsize, self._keeps_code)
        x, w = p.N * p.C * p.H * p.W, p.K * (p.C // p.groups) * p.R * p.S
        windows = p.N * p.K * problem.P * problem.Q
        kept = itemsize * conv_pool2d.needs_output(self.pool, self.activation) + self._keeps_code
        read_and_written = (x + w) * (1 if self.first else 2)  # x and dw; w and dx
        return windows * (itemsize + kept) + read_and_written * itemsize

    def flops(self, direction: str) -> int:
        """Of outputs that are in a window. A gradient's products with what no maximum sent there count too."""
        problem, p = self.problem, self.problem.convolution
        products = 1 if direction == "forward" or self.first else 2
        return products * p.flops * 4 * problem.P * problem.Q // (p.P * p.Q)

    @property
    def on_tensor_cores(self) -> bool:
        return not self.problem.convolution.depthwise

    def sums(self, direction: str) -> None:
        return None

    # ---- how it is called

    def operands(self, direction: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        problem, p = self.problem, self.problem.convolution
        return {
            "x": whole(generator, 1, p.N, p.C, p.H, p.W),
            "w": whole(generator, 1, p.K, p.C // p.groups, p.R, p.S),
            "bias": whole(generator, 3, p.K),
            "dy": 4 * whole(generator, 2, p.N, p.K, problem.P, problem.Q),  # an average gives each tap a quarter
        }

    def ours(self, direction: str, tensors: Tensors, layout: str) -> Call:
        return self._call(self._in_one_pass, direction, tensors)

    def theirs(self, direction: str, tensors: Tensors) -> Call:
        return self._call(self._one_after_another, direction, tensors)

    def expected(self, direction: str, tensors: Tensors) -> Results:
        """Without cuDNN, whose fast transforms are not exact for whole numbers."""
        before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return super().expected(direction, tensors)
        finally:
            torch.backends.cudnn.enabled = before

    def _call(self, block: Callable[..., torch.Tensor], direction: str, tensors: Tensors) -> Call:
        x, w, bias, dy = (tensor.detach() for tensor in tensors.values())
        wanted = [w, bias] if self.first else [x, w, bias]
        for tensor in wanted:
            tensor.requires_grad_()
        if direction == "forward":
            return lambda: (block(x, w, bias),)
        return gradients(block(x, w, bias), wanted, dy)

    def _in_one_pass(self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.conv_pool2d(
            x, w, bias, 1, self.padding, 1, self.groups, activation=self.activation, pool=self.pool
        )

    def _one_after_another(self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        z = torch.conv2d(x, w, bias, 1, self.padding, 1, self.groups)
        y: torch.Tensor = getattr(torch.nn.functional, f"{self.pool}_pool2d")(getattr(torch, self.activation)(z), 2)
        return y

    def backend_call(self, direction: str, dtype: str, layout: str) -> BackendCall:
        """The backward is the pooling's part of it, behind which convolution's gradients come."""
        problem, p, tensor = self.problem, self.problem.convolution, Meta(dtype, layout)
        pooled = (p.N, p.K, problem.P, problem.Q)
        y, code = tensor(*pooled), tensor(*pooled, dtype=torch.uint8) if self._keeps_code else None
        if direction == "backward":
            kept = y if conv_pool2d.needs_output(self.pool, self.activation) else None
            return BackendCall(direction, problem, [tensor(*pooled), kept, code], [tensor(p.N, p.K, p.P, p.Q)])
        x, w, bias = tensor(p.N, p.C, p.H, p.W), tensor(p.K, p.C // p.groups, p.R, p.S), tensor(p.K)
        return BackendCall("forward", problem, [x, w, bias], [y, code if direction == "forward" else None])
