"""What is timed: the shapes of the tutorial's network and of a few well-known ones, as a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from tilesmith import nn as tsnn
from tilesmith.kernels import conv2d, pool2d, rnn
from tilesmith.nn import functional

from .layers import IMAGES, laid_out
from .layers.fused import FusedBlock

INDEX_BYTES = 1  # of ours, a window: its maximum's tap; torch keeps eight, its place in the plane


@dataclass(frozen=True)
class Case:
    """One call of one op, float32.

    Attributes:
        op: the function's name in ``tilesmith.nn.functional`` and in ``torch.nn.functional``.
        shapes: of its tensor arguments, in order; ``None`` for an argument left out.
        options: its other arguments.
        layout: "NCHW" or "channels_last" for images and filters, "-" where there is no choice.
        first_layer: the input needs no gradient.
    """

    op: str
    shapes: tuple[tuple[int, ...] | None, ...]
    options: dict[str, Any] = field(default_factory=dict)
    layout: str = "-"
    first_layer: bool = False

    @property
    def directions(self) -> tuple[str, ...]:
        """ "forward" is the one of training; max pooling's "inference" makes no indices."""
        return ("inference", "forward", "backward") if "max_pool" in self.op else ("forward", "backward")

    def words(self, direction: str) -> str:
        """Shapes and options for a table, as ``128x32x13x13 * 64x32x3x3 relu``."""
        spelled = {
            "kernel_size": "window {}",
            "stride": "stride {}",
            "padding": "pad {}",
            "groups": "groups {}",
            "output_size": "to {0}x{0}",
            "activation": "{}",
            "pool": "{}pool 2",
            "units": "units {}",
            "bidirectional": "bidirectional",
        }
        x, *weights = ("x".join(map(str, shape)) for shape in self.shapes[:2] if shape)
        operands = " * ".join([x, *weights])
        options = [spelled[name].format(value) for name, value in self.options.items() if name in spelled]
        return " ".join([operands, *options, *(["no dx"] if self.first_layer and direction == "backward" else [])])

    @property
    def reduction(self) -> int:
        """The largest number of terms in a sum of any direction: errors may grow with its square root."""
        x, *rest = self.shapes
        assert x is not None
        if rest and rest[0]:
            return max(math.prod(x) // x[1], math.prod(rest[0][1:]))
        if self.op in ("softmax", "log_softmax"):
            return x[self.options["dim"]]
        return math.prod(x[2:]) if "pool" in self.op else 1

    def inputs(self, device: torch.device) -> list[torch.Tensor | None]:
        """Random tensors in the case's layout, the same ones on each call."""
        generator = torch.Generator().manual_seed(0)
        tensors: list[torch.Tensor | None] = []
        for position, shape in enumerate(self.shapes):
            if shape is None:
                tensors.append(None)
                continue
            values = self.values(shape, generator).to(device)
            needs_grad = position > 0 or not self.first_layer
            tensors.append(laid_out(values, self.layout).requires_grad_(needs_grad))
        return tensors

    def values(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Normal numbers; multiples of 1/8 where products are summed.

        Their sums are exact in any order and also from TF32 operands. With rounding, two right results can differ in
        the sign of an output near 0, and behind a ReLU then in a whole term of a gradient.
        """
        if len(self.shapes) > 1:
            return torch.randint(-16, 17, shape, generator=generator) / 8
        return torch.randn(shape, generator=generator)

    def ours(self, *tensors: torch.Tensor | None) -> torch.Tensor:
        y: torch.Tensor = getattr(functional, self.op)(*tensors, **self.options)
        return y

    def theirs(self, *tensors: torch.Tensor | None) -> torch.Tensor:
        options = dict(self.options)
        activation = options.pop("activation", None)
        y: torch.Tensor = getattr(torch.nn.functional, self.op)(*tensors, **options)
        return getattr(torch, activation)(y) if activation else y

    def parameters(self, mine: bool, device: torch.device) -> list[torch.Tensor]:
        """What is differentiated besides the inputs."""
        return []

    def work(self, direction: str) -> tuple[int, int]:
        """FLOPs (0 where they are not counted) and the least bytes that ours moves, in float32."""
        itemsize = 4
        x, *rest = self.shapes
        assert x is not None
        products = 1 if direction != "backward" or self.first_layer else 2  # the weight's gradient, and the input's
        if self.op == "conv2d":
            assert rest[0] is not None
            padding = (self.options.get("padding", 0),) * 4
            conv = conv2d.make_problem(x, rest[0], (1, 1), padding, (1, 1), self.options.get("groups", 1))
            return products * conv.flops, products * conv.bytes_moved(itemsize)
        if self.op == "linear":
            assert rest[0] is not None
            (M, I), O = x, rest[0][0]  # noqa: E741 - the names of the contract
            return products * 2 * M * I * O, products * (M * I + O * I + M * O) * itemsize
        if "pool" in self.op:
            index_bytes = INDEX_BYTES if "max" in self.op and direction != "inference" else 0
            return 0, self.pool_problem(x).bytes_moved(itemsize, index_bytes)
        operands = 3 if direction == "backward" else 2
        return 0, operands * math.prod(x) * itemsize

    def pool_problem(self, x: tuple[int, ...]) -> pool2d.Pool2dProblem | pool2d.AdaptivePool2dProblem:
        if self.op.startswith("adaptive"):
            return pool2d.make_adaptive_problem(x, (self.options["output_size"],) * 2)
        kernel, padding = self.options["kernel_size"], self.options.get("padding", 0)
        stride = self.options.get("stride", kernel)
        return pool2d.make_problem(x, (kernel, kernel, stride, stride, padding, padding, 1, 1))


@dataclass(frozen=True)
class FusedCase(Case):
    """Convolution, activation and 2x2 pooling in one pass, beside torch's three calls."""

    def theirs(self, *tensors: torch.Tensor | None) -> torch.Tensor:
        x, weight, bias = tensors
        assert x is not None
        assert weight is not None
        a = getattr(torch, self.options["activation"])(torch.nn.functional.conv2d(x, weight, bias))
        y: torch.Tensor = getattr(torch.nn.functional, f"{self.options['pool']}_pool2d")(a, 2)
        return y

    def work(self, direction: str) -> tuple[int, int]:
        x, w, _ = self.shapes
        assert x is not None
        assert w is not None
        (N, C, H, W), (K, _, R, S) = x, w
        options = self.options["activation"], self.options["pool"], self.first_layer
        block = FusedBlock("", ("float32",), "", (), N, C, H, W, K, R, S, 0, 1, *options)
        return block.flops(direction), block.bytes_moved(direction, 4)


@dataclass(frozen=True)
class RecurrentCase(Case):
    """One call of a recurrent layer: op is the layer's name, the options are its units and its directions."""

    @property
    def directions(self) -> tuple[str, ...]:
        """ "inference" keeps nothing for a backward; "training" is forward and backward."""
        return ("inference", "forward", "training")

    @property
    def problem(self) -> rnn.RnnProblem:
        assert self.shapes[0] is not None
        T, B, width = self.shapes[0]
        units = self.options["units"]
        cell = {"RNN": "tanh"}.get(self.op, self.op.lower())
        return rnn.RnnProblem(cell, T, B, 2 if self.options.get("bidirectional") else 1, width, units, units)

    @property
    def reduction(self) -> int:
        """A weight's gradient sums over all steps; the values in it have passed the gates of many steps."""
        return self.problem.T * self.problem.B * 4

    def ours(self, *tensors: torch.Tensor | None) -> torch.Tensor:
        return self._run(True, tensors[0])

    def theirs(self, *tensors: torch.Tensor | None) -> torch.Tensor:
        return self._run(False, tensors[0])

    def _run(self, mine: bool, x: torch.Tensor | None) -> torch.Tensor:
        assert x is not None
        y: torch.Tensor = self._layer(mine, x.device)(x)[0]
        return y

    def parameters(self, mine: bool, device: torch.device) -> list[torch.Tensor]:
        return list(self._layer(mine, device).parameters())

    def _layer(self, mine: bool, device: torch.device) -> torch.nn.Module:
        p = self.problem
        return _recurrent_layer(self.op, mine, p.I, p.H, p.D == 2, str(device))

    def work(self, direction: str) -> tuple[int, int]:
        """The least bytes: input, output and weights once, and their gradients."""
        p, itemsize = self.problem, 4
        passes = 3 if direction == "training" else 1
        once = p.T * p.B * (p.I + p.D * p.P) + p.D * p.G * p.H * (p.I + p.P)
        return passes * p.flops, (2 if direction == "training" else 1) * once * itemsize


@cache
def _recurrent_layer(
    name: str, mine: bool, inputs: int, units: int, bidirectional: bool, device: str
) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer: torch.nn.Module = getattr(tsnn if mine else torch.nn, name)(inputs, units, bidirectional=bidirectional)
    return layer.to(device)


def _images(op: str, *shapes: tuple[int, ...] | None, first_layer: bool = False, **options: Any) -> list[Case]:
    kind = FusedCase if op == "conv_pool2d" else Case
    return [kind(op, shapes, options, layout, first_layer) for layout in IMAGES]


def _pools(op: Callable[[str], str], x: tuple[int, ...], **options: Any) -> list[Case]:
    return [case for kind in ("max", "avg") for case in _images(op(kind), x, **options)]


def _pool(kind: str) -> str:
    return f"{kind}_pool2d"


def _adaptive(kind: str) -> str:
    return f"adaptive_{kind}_pool2d"


CASES = [
    # the tutorial's network at batch 128
    *_images("conv2d", (128, 1, 28, 28), (32, 1, 3, 3), (32,), first_layer=True, activation="relu"),
    *_images("conv2d", (128, 1, 28, 28), (32, 1, 3, 3), (32,)),
    *_images("conv2d", (128, 32, 13, 13), (64, 32, 3, 3), (64,), activation="relu"),
    # the same with its pooling in one pass
    *_images("conv_pool2d", (128, 1, 28, 28), (32, 1, 3, 3), (32,), first_layer=True, activation="relu", pool="max"),
    *_images("conv_pool2d", (128, 32, 13, 13), (64, 32, 3, 3), (64,), activation="relu", pool="max"),
    # ResNet-50's 3x3, and a depthwise layer as in MobileNetV2
    *_images("conv2d", (16, 64, 56, 56), (64, 64, 3, 3), None, padding=1),
    *_images("conv2d", (16, 144, 28, 28), (144, 1, 3, 3), None, padding=1, groups=144),
    *_pools(_pool, (128, 32, 26, 26), kernel_size=2),
    *_pools(_pool, (128, 64, 11, 11), kernel_size=2),
    *_pools(_pool, (16, 64, 56, 56), kernel_size=3, stride=2, padding=1),
    *_pools(_adaptive, (64, 512, 7, 7), output_size=1),
    *_pools(_adaptive, (64, 512, 7, 7), output_size=3),
    Case("linear", ((128, 1600), (64, 1600), (64,)), {"activation": "relu"}),
    Case("linear", ((128, 64), (10, 64), (10,))),
    Case("relu", ((128, 32, 26, 26),)),
    Case("sigmoid", ((128, 32, 26, 26),)),
    Case("tanh", ((128, 32, 26, 26),)),
    Case("softmax", ((128, 10),), {"dim": 1}),
    Case("softmax", ((128, 1000),), {"dim": 1}),
    Case("log_softmax", ((128, 10),), {"dim": 1}),
    Case("log_softmax", ((128, 1000),), {"dim": 1}),
    # T=100, B=32, I=H=128
    *(
        RecurrentCase(layer, ((100, 32, 128),), {"units": 128, **({"bidirectional": True} if both else {})})
        for layer in ("LSTM", "GRU", "RNN")
        for both in (False, True)
    ),
]
