"""Convolutions: forward, with and without bias and activation, and the two gradients by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt

import torch
from tilesmith.kernels import conv2d

from . import FUSED, BackendCall, Call, Layer, Meta, Sum, Tensors, normal

DIRECTIONS = ("forward", "input_grad", "weight_grad")


@dataclass(frozen=True)
class Convolution(Layer):
    """Sizes as in :class:`Conv2dProblem`, the other figures the same for height and width.

    Attributes:
        activation: what follows it with a bias, in the fused row; "none" where there is no such row.
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: int
    padding: int
    dilation: int
    groups: int
    activation: str

    operation = conv2d.OPERATION
    multiplies = "convolution"

    @property
    def problem(self) -> conv2d.Conv2dProblem:
        """The problem with its activation."""
        return conv2d.make_problem(
            (self.N, self.C, self.H, self.W),
            (self.K, self.C // self.groups, self.R, self.S),
            (self.stride, self.stride),
            (self.padding,) * 4,
            (self.dilation, self.dilation),
            self.groups,
            self.activation,
        )

    @property
    def directions(self) -> tuple[str, ...]:
        return DIRECTIONS if self.activation == "none" else (FUSED, *DIRECTIONS)

    @property
    def looped(self) -> tuple[str, ...]:
        return (FUSED,)

    @property
    def compiled(self) -> tuple[str, ...]:
        return (*DIRECTIONS, *self.untimed)

    def at_most(self, N: int) -> Convolution:
        return replace(self, N=min(self.N, N))

    def tiny(self) -> Convolution:
        """Few images, few groups, few channels where there is one group."""
        groups = min(self.groups, 4)
        C, K = (min(c // self.groups, 8) * groups for c in (self.C, self.K))
        size = min(self.H, self.dilation * (self.R - 1) + self.stride + 2)
        return replace(self, N=2, C=C, K=K, H=size, W=size, groups=groups)

    # ---- what it costs

    def bytes_moved(self, direction: str, itemsize: int) -> int:
        """Of ``x``, forward and for the weight's gradient, only what some tap touches: a 1x1 of stride 2 needs a
        quarter."""
        p = self.problem
        moved = p.bytes_moved(itemsize)
        if direction != "input_grad":  # which fills all of dx, with zeros where no tap was
            rows = _touched(p.H, p.P, p.R, p.stride[0], p.padding[0], p.dilation[0])
            columns = _touched(p.W, p.Q, p.S, p.stride[1], p.padding[2], p.dilation[1])
            moved -= p.N * p.C * (p.H * p.W - rows * columns) * itemsize
        return moved

    def flops(self, direction: str) -> int:
        """Products with padding count, as everybody counts them: where there is much of it (ASPP), skipping them
        could beat the floor."""
        return self.problem.flops

    @property
    def on_tensor_cores(self) -> bool:
        return not self.problem.depthwise

    def sums(self, direction: str) -> Sum:
        p = self.problem
        terms = (p.K if direction == "input_grad" else p.C) // p.groups * p.R * p.S
        if direction == "weight_grad":
            terms = p.N * p.P * p.Q
        return Sum(terms, sqrt(terms))

    # ---- how it is called

    def operands(self, direction: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        p = self.problem
        return {
            "x": normal(generator, p.N, p.C, p.H, p.W),
            "w": normal(generator, p.K, p.C // p.groups, p.R, p.S),
            "dy": normal(generator, p.N, p.K, p.P, p.Q),
            "bias": normal(generator, p.K),
        }

    def ours(self, direction: str, tensors: Tensors, layout: str) -> Call:
        p, (x, w, dy, bias) = self.problem, tensors.values()
        window = list(p.stride), list(p.padding), list(p.dilation), p.groups
        x_shape, w_shape, channels_last = list(x.shape), list(w.shape), layout == "channels_last"
        calls: dict[str, Call] = {
            "forward": lambda: (conv2d.forward(x, w, None, "none", *window),),
            FUSED: lambda: (conv2d.forward(x, w, bias, p.activation, *window),),
            "input_grad": lambda: (conv2d.input_grad(dy, w, x_shape, channels_last, *window),),
            "weight_grad": lambda: (conv2d.weight_grad(x, dy, w_shape, channels_last, False, *window)[0],),
        }
        return calls[direction]

    def theirs(self, direction: str, tensors: Tensors) -> Call:
        """The two gradients one at a time, which is what the masks are for."""
        p, (x, w, dy, bias) = self.problem, tensors.values()
        sizes = list(p.stride), list(p.padding[::2]), list(p.dilation)
        backward: Callable[..., tuple[torch.Tensor, ...]] = torch.ops.aten.convolution_backward

        def gradient(place: int) -> tuple[torch.Tensor]:
            mask = [place == 0, place == 1, False]
            return (backward(dy, x, w, None, *sizes, False, [0, 0], p.groups, mask)[place],)

        calls: dict[str, Call] = {
            "forward": lambda: (torch.conv2d(x, w, None, *sizes, p.groups),),
            FUSED: lambda: (getattr(torch, p.activation)(torch.conv2d(x, w, bias, *sizes, p.groups)),),
            "input_grad": lambda: gradient(0),
            "weight_grad": lambda: gradient(1),
        }
        return calls[direction]

    def backend_call(self, direction: str, dtype: str, layout: str) -> BackendCall:
        p, tensor = self.problem, Meta(dtype, layout)
        x, w = tensor(p.N, p.C, p.H, p.W), tensor(p.K, p.C // p.groups, p.R, p.S)
        y, bias = tensor(p.N, p.K, p.P, p.Q), tensor(p.K)
        if direction == "forward":
            return BackendCall(direction, p, [x, w, bias], [y])
        inputs, outputs = ([y, w], [x]) if direction == "input_grad" else ([x, y], [w, bias])
        return BackendCall(direction, replace(p, activation="none"), inputs, outputs)


def _touched(size: int, places: int, taps: int, stride: int, padding: int, dilation: int) -> int:
    """How many of ``size`` rows (or columns) some tap reads."""
    read = {place * stride + tap * dilation - padding for place in range(places) for tap in range(taps)}
    return sum(0 <= index < size for index in read)
