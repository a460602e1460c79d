"""Convolution and 2x2 pooling in NumPy, a block of images at a time: no whole output of the convolution is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ... import autotune
from .._arrays import Array
from .._parallel import quiet
from ..activation._numpy import derivative
from ..conv2d import _numpy as convolution
from ..pool2d import Pool2dProblem
from ..pool2d import _numpy as pooling
from . import _numpy_space as space
from ._problem import ConvPool2dProblem

_BLOCK_BYTES = 8 * 1024 * 1024  # of the convolution's output


def _default(_: space.Images) -> autotune.Config:
    return {"BLOCK_BYTES": _BLOCK_BYTES}


FORWARD = space.tunable(_default)
TUNABLES = (FORWARD,)


def forward(problem: ConvPool2dProblem, x: Array, w: Array, bias: Array | None, y: Array, code: Array | None) -> None:
    """As in the contract. Extra memory: a block of the convolution's output."""
    p = problem.convolution
    channels_last = not y.flags.c_contiguous
    image_bytes = p.K * p.P * p.Q * y.itemsize
    block_bytes = _BLOCK_BYTES
    if p.N > 1 and p.N * image_bytes > space.LEAST_BLOCK_BYTES:
        images = space.Images(problem, channels_last, code is not None, y.itemsize, autotune.cpu())
        block_bytes = autotune.resolve(FORWARD, images)["BLOCK_BYTES"]
    each = max(1, block_bytes // image_bytes)
    for first in range(0, p.N, each):
        part = slice(first, min(first + each, p.N))
        count = part.stop - first
        shape = (count, p.P, p.Q, p.K) if channels_last else (count, p.K, p.P, p.Q)
        z = np.empty(shape, y.dtype)
        z = z.transpose(0, 3, 1, 2) if channels_last else z
        convolution.forward(replace(p, N=count), x[part], w, bias, z)
        window = _window(problem, count)
        if problem.pool == "max":
            pooling.max_forward(window, z, y[part], None if code is None else code[part])
            continue
        pooling.avg_forward(window, z, y[part])
        if code is not None:
            bits = code[part]
            bits[...] = 0
            for tap in range(4):  # ReLU's gradient stops where its output is <= 0: it passes where that is NaN
                bits |= (~(_tap(z, tap, problem) <= 0)).view(np.uint8) << np.uint8(tap)


@quiet
def backward(problem: ConvPool2dProblem, dy: Array, y: Array | None, code: Array | None, dz: Array) -> None:
    """As in the contract. Extra memory: one array like ``dy``."""
    window = _window(problem, problem.convolution.N)
    activation = problem.convolution.activation
    if problem.pool == "max":
        assert code is not None
        if y is not None:
            before = np.empty_like(dy)
            derivative(activation, dy, y, before)
            dy = before
        pooling.max_backward(window, dy, code, dz)
        return
    if code is None:
        pooling.avg_backward(window, dy, dz)
        return
    dz[...] = 0
    share = dy * dy.dtype.type(0.25)
    for tap in range(4):
        np.copyto(_tap(dz, tap, problem), share, where=(code >> np.uint8(tap) & np.uint8(1)).view(bool))


def _tap(z: Array, tap: int, problem: ConvPool2dProblem) -> Array:
    """The elements of all windows that lie at one tap."""
    return z[:, :, tap // 2 : 2 * problem.P : 2, tap % 2 : 2 * problem.Q : 2]


def _window(problem: ConvPool2dProblem, images: int) -> Pool2dProblem:
    p = problem.convolution
    return Pool2dProblem(images, p.K, p.P, p.Q, (2, 2), (2, 2), (0, 0))
