"""What launchers tell CUDA kernels about tensors and sizes: NumPy scalars of the right width, strides, alignment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ._division import divisor


def ints(*values: int) -> tuple[Any, ...]:
    return tuple(map(np.int32, values))


def longs(*values: int) -> tuple[Any, ...]:
    return tuple(map(np.int64, values))


def by(d: int) -> Any:
    """What ``Divisor`` needs to divide by ``d``: ``n·m >> (31 + s)`` is exact for ``m = ceil(2^(31 + s) / d)``."""
    multiplier, shift = divisor(d)
    return np.uint64(shift << 32 | multiplier)


def divisors(*values: int) -> tuple[Any, ...]:
    """:func:`by` of each."""
    return tuple(map(by, values))


def strides_of(tensor: torch.Tensor) -> list[int]:
    """Strides, 0 where there is one element: those numbers mean nothing."""
    return [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def aligned(tensor: torch.Tensor, count: int, dim: int = 1) -> bool:
    """Whether ``count`` neighbours along ``dim`` can be moved at once, wherever the others are."""
    strides = strides_of(tensor)
    step = strides.pop(dim)
    address = tensor.storage_offset() * tensor.element_size() if tensor.is_meta else tensor.data_ptr()
    return step == 1 and all(s % count == 0 for s in strides) and address % (count * tensor.element_size()) == 0
