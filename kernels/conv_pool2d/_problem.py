"""What a convolution with the pooling behind it is: the convolution, and how 2x2 outputs become one."""

from __future__ import annotations

from dataclasses import dataclass

from ..conv2d import Conv2dProblem


@dataclass(frozen=True)
class ConvPool2dProblem:
    """``y[n, k, p, q] = pool of z[n, k, 2p + i, 2q + j]`` over ``i, j`` in {0, 1}, of ``z = act(conv(x, w) + b)``.

    ``pool`` is "max" or "avg". An odd last row or column of ``z`` is in no window and is not computed.
    """

    convolution: Conv2dProblem
    pool: str

    @property
    def P(self) -> int:
        return self.convolution.P // 2

    @property
    def Q(self) -> int:
        return self.convolution.Q // 2

    @property
    def windows(self) -> int:
        """That cover the planes of one image, the broken ones at odd edges included."""
        p = self.convolution
        return p.K * -(-p.P // 2) * -(-p.Q // 2)

    def bytes_moved(self, itemsize: int, with_code: bool) -> int:
        """The fewest bytes the forward can move: input and weight once, the pooled output (and a byte each) once."""
        p = self.convolution
        x, w = p.N * p.C * p.H * p.W, p.K * (p.C // p.groups) * p.R * p.S
        return (x + w) * itemsize + p.N * p.K * self.P * self.Q * (itemsize + with_code)
