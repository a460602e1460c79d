"""What elementwise kernels need of their tensors, one common order in memory, and what the tuner knows of a launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch

from ...autotune import Device, Key


def in_the_order_of(out: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors with the strides of ``out``, which is dense; those that have others are copied."""
    return [t if _same_order(t, out) else torch.empty_like(out).copy_(t) for t in tensors]


def _same_order(tensor: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether both lie alike in memory; the stride of a single element means nothing."""
    strides = zip(tensor.shape, tensor.stride(), out.stride(), strict=True)
    return all(size == 1 or mine == its for size, mine, its in strides)


def common_alignment(tensors: Sequence[torch.Tensor]) -> int:
    """Of how many bytes, 16 at most, all addresses are multiples. Memory without an address starts at 0."""
    return gcd(16, *(t.storage_offset() * t.element_size() if t.is_meta else t.data_ptr() for t in tensors))


# Instructions that an element costs beside its loads and stores: a special function counts for eight.
_EFFORT = {"relu": 2, "sigmoid": 32, "tanh": 40}
_EFFORT_BACKWARD = {"relu": 2, "sigmoid": 3, "tanh": 3}


@dataclass(frozen=True)
class Elementwise:
    """One launch over ``count`` elements of ``tensors`` tensors, the output among them.

    Attributes:
        vector: elements that one access brings, for the addresses at hand.
    """

    kind: str
    count: int
    tensors: int
    itemsize: int
    vector: int
    device: Device

    @property
    def unit(self) -> str:
        return "double" if self.itemsize == 8 else "fma"

    @property
    def flops(self) -> float:
        """Of an element; conversions, addresses and bounds of a vector are shared by its elements."""
        effort = _EFFORT[self.kind] if self.tensors == 2 else _EFFORT_BACKWARD[self.kind]
        return 2.0 * (effort + self.tensors * (1 + 4 / self.vector))

    @property
    def key(self) -> Key:
        d = self.device
        exact = (self.kind, self.tensors, self.itemsize, self.vector, d.name, d.multiprocessors)
        return Key(exact, {"count": self.count})
