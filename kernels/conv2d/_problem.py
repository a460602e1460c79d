"""What one 2-D convolution is: sizes, FLOPs, bytes. Known without running anything, checked once a shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=False)
class Conv2dProblem:
    """``y[n, k, p, q] = act(b[k] + sum_{c, r, s} x[n, c, p·stride + r·dilation - pad, ...] · w[k, c, r, s])``.

    ``x`` is ``[N, C, H, W]``, ``w`` is ``[K, C / groups, R, S]``, ``y`` is ``[N, K, P, Q]``. It is a correlation, as
    in every deep-learning library. ``padding`` is ``(top, bottom, left, right)``, in elements. ``precision`` is how the
    GPU kernels multiply float32 ("ieee", "tf32" or "tf32x3"); empty, it is what is set for convolutions.
    """

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str = "none"
    precision: str = ""

    @cached_property
    def P(self) -> int:
        return output_size(self.H, self.R, self.stride[0], self.padding[0] + self.padding[1], self.dilation[0])

    @cached_property
    def Q(self) -> int:
        return output_size(self.W, self.S, self.stride[1], self.padding[2] + self.padding[3], self.dilation[1])

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.C

    @property
    def flops(self) -> int:
        """Multiplications and additions of one direction (forward, input gradient and weight gradient are equal)."""
        return 2 * self.N * self.K * self.P * self.Q * (self.C // self.groups) * self.R * self.S

    def bytes_moved(self, itemsize: int) -> int:
        """The fewest bytes one direction can move: each operand read once, the result written once."""
        x = self.N * self.C * self.H * self.W
        w = self.K * (self.C // self.groups) * self.R * self.S
        y = self.N * self.K * self.P * self.Q
        return (x + w + y) * itemsize


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Number of places a dilated window of ``kernel`` taps fits into ``size + padding`` elements.

    May be 0 or negative: the window does not fit.
    """
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1
