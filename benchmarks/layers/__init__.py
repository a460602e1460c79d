"""Kinds of layers that are compared with torch's: what each is, the least time it can take, how it is called.

One file a kind, all with the methods of :class:`Layer`; ``benchmarks/standard.py`` lists the layers themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from tilesmith.autotune import Device
from tilesmith.kernels import _arrays
from tilesmith.kernels.backends import Operation

IMAGES = ("NCHW", "channels_last")
CONTIGUOUS = ("contiguous",)  # where there is no choice

FUSED = "forward fused"  # with bias and activation, beside torch's layer and activation one after the other

_ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_UNIT = {"float64": "double", "float32": "tf32", "float16": "half", "bfloat16": "half"}
_UNIT_WITHOUT_TENSOR_CORES = {"float64": "double", "float32": "fma", "float16": "fma", "bfloat16": "fma"}

Tensors = Mapping[str, torch.Tensor]
Results = tuple[torch.Tensor, ...]
Call = Callable[[], Results]


@dataclass(frozen=True)
class Target:
    """What we mean to reach.

    Attributes:
        ratio: times as fast as torch in the same layout (below 1: how much slower we may be).
        of_floor: the least time that can be, over ours.
    """

    directions: tuple[str, ...]
    layouts: tuple[str, ...]
    dtypes: tuple[str, ...]
    ratio: float | None = None
    of_floor: float | None = None

    def covers(self, direction: str, layout: str, dtype: str) -> bool:
        return direction in self.directions and layout in self.layouts and dtype in self.dtypes


@dataclass(frozen=True)
class Sum:
    """How far a result may be from the exact one.

    Attributes:
        terms: of the longest sum in it.
        size: of the result where operands are normal numbers: what is lost on the way is measured by that.
    """

    terms: int
    size: float


@dataclass(frozen=True)
class BackendCall:
    """A call of a backend's function: ``function(problem, *inputs, *outputs)``."""

    function: str
    problem: Any
    inputs: Sequence[torch.Tensor | None]
    outputs: Sequence[torch.Tensor | None]


@dataclass(frozen=True)
class Layer(ABC):
    """One layer of some kind. A kind's own fields are its sizes.

    Attributes:
        dtypes: that it is timed in.
        why: what it is in the set for.
        targets: what we mean to reach; the first that covers a row holds for it.
        layouts: of all tensors, that it is timed in.
        untimed: directions that are compiled for the table of kernels and not timed.
    """

    name: str
    dtypes: tuple[str, ...]
    why: str
    targets: tuple[Target, ...]
    layouts: tuple[str, ...] = field(default=IMAGES, kw_only=True)
    untimed: tuple[str, ...] = field(default=(), kw_only=True)

    operation: ClassVar[Operation]
    multiplies: ClassVar[str] = ""  # whose float32 setting its products follow: "convolution", "matmul", or nothing's

    # ---- what it is

    @property
    @abstractmethod
    def directions(self) -> tuple[str, ...]:
        """Those that are timed."""

    @property
    def looped(self) -> tuple[str, ...]:
        """Directions of which it matters what the host needs for a call."""
        return ()

    @property
    def compiled(self) -> tuple[str, ...]:
        """Directions in the table of kernels."""
        return (*self.directions, *self.untimed)

    @property
    def sizes(self) -> dict[str, Any]:
        """What sets it apart from others of its kind, as plain data."""
        common = {each.name for each in fields(Layer)}
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in common}

    @abstractmethod
    def at_most(self, N: int) -> Layer:
        """The same with no more than so many images or rows."""

    @abstractmethod
    def tiny(self) -> Layer:
        """Something small of its kind, for a CPU."""

    def target(self, direction: str, layout: str, dtype: str) -> Target | None:
        """What is meant to be reached there, or ``None`` where nothing was set."""
        return next((t for t in self.targets if layout in self.layouts and t.covers(direction, layout, dtype)), None)

    # ---- what it costs

    @abstractmethod
    def bytes_moved(self, direction: str, itemsize: int) -> int:
        """The fewest bytes: each operand read once, the result written once."""

    def flops(self, direction: str) -> int:
        """Multiplications and additions of products; 0 where nothing is multiplied."""
        return 0

    @property
    def on_tensor_cores(self) -> bool:
        """Whether its products can be."""
        return True

    def floor_seconds(self, direction: str, dtype: str, device: Device, tf32: bool = True) -> float:
        """No kernel is faster: the larger of bytes over bandwidth and FLOPs over peak.

        Rates are the maker's, as ``device`` has them (an H200: 4.8 TB/s, 989 TFLOP/s half, 495 TF32, 66.9 without
        tensor cores). Nobody reaches all of them: about 0.88 of the bandwidth and 0.8 of the matrix rate is what is
        seen.

        Args:
            tf32: whether float32 may be multiplied on tensor cores.
        """
        without = not self.on_tensor_cores or (dtype == "float32" and not tf32)
        unit = (_UNIT_WITHOUT_TENSOR_CORES if without else _UNIT)[dtype]
        moved = self.bytes_moved(direction, _ITEMSIZE[dtype])
        return max(moved / device.bytes_per_second, self.flops(direction) / device.flops(unit))

    @abstractmethod
    def sums(self, direction: str) -> Sum | None:
        """What the error's bound is made of; ``None`` where the operands are such that the result is exact."""

    # ---- how it is called

    @abstractmethod
    def operands(self, direction: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Random float32 tensors on the generator's device, which are then rounded to the row's dtype."""

    @abstractmethod
    def ours(self, direction: str, tensors: Tensors, layout: str) -> Call:
        """The call that is checked and timed. It is made, as it is called, where a backend was asked for."""

    @abstractmethod
    def theirs(self, direction: str, tensors: Tensors) -> Call:
        """torch's own, as a user without us would call it."""

    def expected(self, direction: str, tensors: Tensors) -> Results:
        """The right results, from tensors of a higher precision."""
        return self.theirs(direction, tensors)()

    @abstractmethod
    def backend_call(self, direction: str, dtype: str, layout: str) -> BackendCall:
        """One direction's call of a backend, on tensors without memory."""


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The tensor in a memory format; with one channel too, where ``contiguous()`` would leave the strides alone."""
    if layout == "channels_last" and tensor.dim() == 4:
        return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)
    return tensor


class Meta:
    """Makes tensors of a dtype and a layout, without memory."""

    def __init__(self, dtype: str, layout: str) -> None:
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._layout = layout

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        channels_last = len(shape) == 4 and self._layout == "channels_last"
        return _arrays.empty(shape, dtype or self._dtype, torch.device("meta"), channels_last)


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=generator, device=generator.device)


def whole(generator: torch.Generator, most: int, *shape: int) -> torch.Tensor:
    """Whole numbers from ``-most`` to ``most``, whose products and sums are exact in any order and any dtype."""
    device = generator.device
    return torch.randint(-most, most + 1, shape, generator=generator, device=device, dtype=torch.float32)


def gradients(y: torch.Tensor, wanted: Sequence[torch.Tensor], dy: torch.Tensor) -> Call:
    """The backward of what made ``y``, again and again."""
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)
