"""ReLU, sigmoid and tanh in CUDA C++: one pass over memory, 16 bytes a thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .._cuda import ELEMENTS, launch
from ._dense import in_the_order_of

ON_TENSORS = True

_SOURCE = Path(__file__).with_name("activation.cu")
_KINDS = {"relu": 1, "sigmoid": 2, "tanh": 3}
_THREADS = 256


def forward(kind: str, x: torch.Tensor, y: torch.Tensor) -> None:
    """``y = act(x)``."""
    (x,) = in_the_order_of(y, [x])
    _launch("activation_forward", [x, y], kind)


def backward(kind: str, dy: torch.Tensor, y: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx = dy · act'(x)`` from the output ``y``."""
    dy, y = in_the_order_of(dx, [dy, y])
    _launch("activation_backward", [dy, y, dx], kind)


def _launch(name: str, tensors: list[torch.Tensor], kind: str) -> None:
    n, dtype = tensors[0].numel(), tensors[0].dtype
    if not n:
        return
    aligned = all(t.data_ptr() % 16 == 0 for t in tensors) if not tensors[0].is_meta else True
    each = 16 // dtype.itemsize if aligned else 1
    blocks = -(-n // (_THREADS * each))
    macros: dict[str, int | str] = {"ELEMENT": ELEMENTS[dtype], "KIND": _KINDS[kind], "EACH": each}
    launch(_SOURCE, name, macros, (blocks,), (_THREADS,), (*tensors, np.int64(n)))
