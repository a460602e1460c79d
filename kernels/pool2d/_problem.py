"""What one 2-D pooling is: windows, divisors, bytes. Known without running anything, checked once a shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


def pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Number of windows along one axis. In ``ceil_mode`` the last one must start inside input or left padding."""
    reach = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return reach // stride + 1
    count = -(-reach // stride) + 1
    if (count - 1) * stride >= size + padding:
        count -= 1
    return count


@dataclass(frozen=True)
class Pool2dProblem:
    """Windows of ``kernel`` taps, ``dilation`` apart, every ``stride`` elements of ``x [N, C, H, W]``.

    ``padding`` is ``(height, width)``, the same on both sides, at most half of the kernel. ``count_include_pad`` and
    ``divisor_override`` (0: none) matter to average pooling only, ``dilation`` to max pooling only.
    """

    N: int
    C: int
    H: int
    W: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int = 0

    @cached_property
    def P(self) -> int:
        return pooled_size(self.H, self.kernel[0], self.stride[0], self.padding[0], self.dilation[0], self.ceil_mode)

    @cached_property
    def Q(self) -> int:
        return pooled_size(self.W, self.kernel[1], self.stride[1], self.padding[1], self.dilation[1], self.ceil_mode)

    @property
    def taps(self) -> int:
        """Of a window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def overlapping(self) -> bool:
        """Whether two windows can cover one input element."""
        return any((k - 1) * d >= s for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True))

    def bytes_moved(self, itemsize: int, index_itemsize: int = 0) -> int:
        """The fewest bytes one direction can move: the input once, the output (and its index) once."""
        return self.N * self.C * (self.H * self.W * itemsize + self.P * self.Q * (itemsize + index_itemsize))


@dataclass(frozen=True)
class AdaptivePool2dProblem:
    """``x [N, C, H, W]`` cut into ``P × Q`` windows; window ``p`` covers ``floor(p·H/P)`` to ``ceil((p+1)·H/P)``.

    Neighbouring windows overlap by at most one row where ``P`` does not divide ``H`` and ``P <= H``.
    """

    N: int
    C: int
    H: int
    W: int
    P: int
    Q: int

    @cached_property
    def kernel(self) -> tuple[int, int]:
        """Height and width that no window exceeds: what a tap's number is made with."""
        return (self.H + 2 * self.P - 2) // max(self.P, 1), (self.W + 2 * self.Q - 2) // max(self.Q, 1)

    @property
    def taps(self) -> int:
        """At most, of a window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def overlapping(self) -> bool:
        return self.H % self.P != 0 or self.W % self.Q != 0

    def bytes_moved(self, itemsize: int, index_itemsize: int = 0) -> int:
        """The fewest bytes one direction can move: the input once, the output (and its index) once."""
        return self.N * self.C * (self.H * self.W * itemsize + self.P * self.Q * (itemsize + index_itemsize))


def adaptive_bounds(size: int, windows: int) -> list[tuple[int, int]]:
    """``[start, stop)`` of each window along one axis of ``size`` elements (torch's definition)."""
    return [(i * size // windows, -(-(i + 1) * size // windows)) for i in range(windows)]
