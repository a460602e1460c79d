"""How GPU kernels see a tensor, as slices along one dimension, and what the tuner knows of a launch over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ...autotune import Cost, Device, Key
from ...autotune.model import resident
from .._division import blocks_of


@dataclass(frozen=True)
class Slices:
    """A tensor that is dense in some order, as a contiguous ``[outer, length, inner]``: what lies outside and inside of
    the softmax dimension is one dimension each.

    Slice ``s = o · inner + i`` has ``length`` elements, ``inner`` apart, the first at ``o · length · inner + i``. It is
    a row of memory where ``inner`` is 1, else a column.
    """

    outer: int
    length: int
    inner: int

    @classmethod
    def of(cls, tensor: torch.Tensor, dim: int) -> Slices:
        """``tensor`` has at least one element; it may have no dimension."""
        length = tensor.shape[dim] if tensor.dim() else 1
        inner = tensor.stride(dim) if length > 1 else 1
        return cls(tensor.numel() // (length * inner), length, inner)

    @property
    def count(self) -> int:
        return self.outer * self.inner

    def chunks(self, most: int) -> Iterator[tuple[Slices, slice]]:
        """Parts of ``outer`` with fewer than ``most`` slices each, if one has so few, and where they lie in memory."""
        each = max(1, (most - 1) // self.inner)
        for first in range(0, self.outer, each):
            outer = min(each, self.outer - first)
            start = first * self.length * self.inner
            yield Slices(outer, self.length, self.inner), slice(start, start + outer * self.length * self.inner)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """All elements of a dense tensor in the order of memory, as a view."""
    return tensor.as_strided((tensor.numel(),), (1,))


# Instructions for an element, the special functions beside the others: with one exponential, and with two passes
_FORWARD = (10, 18)
_BACKWARD = (6, 10)
_BACKWARD_OF_LOG = (10, 14)
_IN_DOUBLE = 5  # times as many
_L2_BYTES = 40e6
_L2_SHARE = 0.5  # what a read costs that L2 answers, of one from device memory


@dataclass(frozen=True)
class Softmax:
    """One direction over ``slices`` slices of ``length`` elements that lie ``inner`` apart.

    Attributes:
        reads: tensors that are read: ``x``, or ``dy`` and ``y``.
        vector: elements that one access brings.
        shared_ends: rows start in the middle of a vector, which they share with their neighbours.
    """

    slices: int
    length: int
    inner: int
    reads: int
    log: bool
    itemsize: int
    vector: int
    shared_ends: bool
    device: Device

    @property
    def unit(self) -> str:
        return "double" if self.itemsize == 8 else "fma"

    @property
    def accumulator_bytes(self) -> int:
        return max(4, self.itemsize)

    def flops(self, passes: int) -> float:
        """Of an element; addresses and bounds of a vector are shared by its elements."""
        effort = (_FORWARD if self.reads == 1 else _BACKWARD_OF_LOG if self.log else _BACKWARD)[passes - 1]
        return 2 * (effort * (_IN_DOUBLE if self.itemsize == 8 else 1) + (self.reads + 1) * (1 + 4 / self.vector))

    def with_second_reads(self, cost: Cost, elements: float) -> Cost:
        """The cost of two passes, from that of one: a block reads its ``elements`` again, from L2 if that has room for
        those of all blocks at a time. The first pass of a logarithm's gradient reads ``dy`` alone."""
        beside = min(cost.blocks, resident(cost, self.device) * self.device.multiprocessors)
        near = beside * elements * self.itemsize * self.reads < _L2_BYTES
        again = elements * self.itemsize * (1 if self.log else self.reads)
        return replace(cost, bytes=cost.bytes + again * (_L2_SHARE if near else 1))

    @property
    def key(self) -> Key:
        d = self.device
        kind = (self.inner > 1, self.reads, self.log, self.itemsize, self.vector, self.shared_ends)
        exact = (*kind, d.name, d.multiprocessors, d.shared_bytes)
        return Key(exact, {"slices": self.slices, "length": self.length, "inner": self.inner})


@dataclass(frozen=True)
class Parts:
    """Into how many parts slices are cut, and of how many steps of a block each is."""

    count: int
    steps: int


def parts_of(problem: Softmax, steps: int, slices_each: int, blocks: int) -> Parts:
    """Parts for ``blocks`` blocks a multiprocessor, where blocks of ``slices_each`` slices, ``steps`` steps long, are
    fewer than that."""
    wanted = problem.device.multiprocessors * blocks // blocks_of(problem.slices, slices_each)
    each = blocks_of(steps, max(1, min(wanted, steps)))
    return Parts(blocks_of(steps, each), each)
