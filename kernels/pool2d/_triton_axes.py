"""The windows of a pooling problem, axis by axis, as the Triton kernels are told about them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd

from .._division import divisor
from ._problem import AdaptivePool2dProblem, Pool2dProblem, adaptive_bounds

_MOST_UNSIGNED = 46340  # whose square stays below 2^31


@dataclass(frozen=True)
class Axis:
    """``count`` windows along an axis of ``size`` elements, ``adaptive`` ones with ``kernel`` elements at most."""

    size: int
    count: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    adaptive: bool = False

    @property
    def reach(self) -> int:
        """Elements from a window's first to its last, both included."""
        return (self.kernel - 1) * self.dilation + 1

    def bounds(self, i: int) -> tuple[int, int]:
        """Where window ``i`` begins and where it ends, of the elements inside."""
        if self.adaptive:
            return i * self.size // self.count, -(-(i + 1) * self.size // self.count)
        start = i * self.stride - self.padding
        return max(start, 0), min(start + self.reach, self.size)

    @property
    def checked(self) -> bool:
        """Whether a window sticks out."""
        return self.padding > 0 or (self.count - 1) * self.stride + self.reach > self.size

    def counted(self, include_pad: bool) -> bool:
        """Whether windows hold different numbers of what counts."""
        if self.adaptive or not include_pad:
            return self.adaptive or self.checked
        return (self.count - 1) * self.stride + self.kernel > self.size + 2 * self.padding

    @property
    def carried(self) -> int:
        """Taps that a window shares with the next one."""
        if self.stride % self.dilation:
            return 0
        return max(0, self.kernel - self.stride // self.dilation)

    @property
    def touching(self) -> bool:
        """Whether windows lie beside each other, by an element's width at most in common."""
        return self.count <= self.size if self.adaptive else self.stride >= self.reach

    @property
    def period(self) -> int:
        """Every so many taps one meets the same place of a block of ``stride`` elements."""
        return self.stride // gcd(self.stride, self.dilation)

    @property
    def first_covering(self) -> int:
        """The first window that meets a block of ``stride`` elements, from the block's own number."""
        return -((self.reach - 1 - self.padding) // self.stride)

    @property
    def last_covering(self) -> int:
        """The last one."""
        return -(-self.padding // self.stride)

    @property
    def met(self) -> int:
        """Windows that meet a block of ``stride`` elements."""
        return self.last_covering - self.first_covering + 1

    @cached_property
    def covering(self) -> int:
        """Windows that one element is in, at most."""
        if not self.adaptive:
            return -(-self.reach // self.stride)
        return max(
            self.count - (self.size - 1 - h) * self.count // self.size - h * self.count // self.size
            for h in range(self.size)
        )

    @cached_property
    def least(self) -> int:
        """Elements of the smallest window."""
        return min(stop - start for start, stop in map(self.bounds, range(self.count)))

    @property
    def large(self) -> bool:
        """Whether a share of this axis cannot be told in 31 bits."""
        return self.adaptive and max(self.size, self.count) > _MOST_UNSIGNED

    @property
    def share(self) -> tuple[int, int, int, int]:
        """Of one window: whole elements, those left over, and how to divide by the number of windows."""
        return (*divmod(self.size, self.count), *divisor(self.count))

    @property
    def windows(self) -> tuple[int, int, int, int]:
        """Of one element: whole windows, those left over, and how to divide by the number of elements."""
        return (*divmod(self.count, self.size), *divisor(self.size))


@dataclass(frozen=True)
class Windows:
    """All windows of a problem.

    Attributes:
        tap_row: what a tap's number is made with: ``r·tap_row + s``.
        include_pad, override: of means: whether padding counts, and what to divide by instead (0: nothing else).
    """

    vertical: Axis
    horizontal: Axis
    tap_row: int
    include_pad: bool = True
    override: int = 0

    @property
    def axes(self) -> tuple[Axis, Axis]:
        return self.vertical, self.horizontal

    @property
    def adaptive(self) -> bool:
        return self.vertical.adaptive

    @property
    def taps(self) -> int:
        return self.vertical.kernel * self.horizontal.kernel

    @property
    def counted(self) -> bool:
        """Whether means are of different numbers of elements."""
        return not self.override and any(axis.counted(self.include_pad) for axis in self.axes)

    @property
    def divisor(self) -> int:
        return self.override or self.taps

    @property
    def checked(self) -> bool:
        return any(axis.checked for axis in self.axes)

    @property
    def whole(self) -> bool:
        """Whether there is one window, the plane."""
        return (
            all((axis.count, axis.kernel, axis.padding) == (1, axis.size, 0) for axis in self.axes) and self.undilated
        )

    @property
    def undilated(self) -> bool:
        return all(axis.dilation == 1 for axis in self.axes)


@lru_cache(maxsize=4096)
def windows_of(problem: Pool2dProblem | AdaptivePool2dProblem) -> Windows:
    """The windows of a problem; adaptive ones of one size and one distance are ordinary ones."""
    sizes, counts, kernel = (problem.H, problem.W), (problem.P, problem.Q), problem.kernel
    if isinstance(problem, Pool2dProblem):
        vertical, horizontal = (
            Axis(*values)
            for values in zip(sizes, counts, kernel, problem.stride, problem.padding, problem.dilation, strict=True)
        )
        return Windows(vertical, horizontal, kernel[1], problem.count_include_pad, problem.divisor_override)
    if all(size % count == 0 for size, count in zip(sizes, counts, strict=True)):
        vertical, horizontal = (
            Axis(size, count, size // count, size // count) for size, count in zip(sizes, counts, strict=True)
        )
    else:
        vertical, horizontal = (
            Axis(size, count, max(b - a for a, b in adaptive_bounds(size, count)), adaptive=True)
            for size, count in zip(sizes, counts, strict=True)
        )
    return Windows(vertical, horizontal, kernel[1])


def merged(windows: Windows) -> Windows:
    """The one window of a plane, whose rows follow each other, as one row. Taps and places keep their numbers."""
    size = windows.vertical.size * windows.horizontal.size
    return Windows(Axis(1, 1, 1), Axis(size, 1, size, size), size, windows.include_pad, windows.override)
