"""ReLU, sigmoid and tanh in Triton: one pass over memory, in whatever order the tensors are dense in."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .._triton import launch
from .._triton_math import activate, rounded
from ._dense import in_the_order_of

ON_TENSORS = True

_BLOCK = 1024  # 8 elements a thread: one 16-byte access of a half type
_LIMIT = 2**31


@triton.jit
def activation_forward(x_ptr, y_ptr, n, KIND: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """``y = act(x)`` of ``BLOCK`` elements, in float32 for half types."""
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    i = pid * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    if x.dtype == tl.float16 or x.dtype == tl.bfloat16:
        y = activate(x.to(tl.float32), KIND)
    else:
        y = activate(x, KIND)
    tl.store(y_ptr + i, rounded(y, y_ptr.dtype.element_ty), mask=i < n)


@triton.jit
def activation_backward(dy_ptr, y_ptr, dx_ptr, n, KIND: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """``dx = dy · act'``, told from the output ``y``."""
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    i = pid * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(dy_ptr + i, mask=i < n)
    y = tl.load(y_ptr + i, mask=i < n)
    if y.dtype == tl.float16 or y.dtype == tl.bfloat16:
        dy, y = dy.to(tl.float32), y.to(tl.float32)
    if KIND == "relu":
        dx = tl.where(y > 0, dy, 0.0)
    elif KIND == "sigmoid":
        dx = dy * (y * (1 - y))
    else:
        dx = dy * (1 - y * y)
    tl.store(dx_ptr + i, rounded(dx, dx_ptr.dtype.element_ty), mask=i < n)


def forward(kind: str, x: torch.Tensor, y: torch.Tensor) -> None:
    """``y = act(x)``."""
    (x,) = in_the_order_of(y, [x])
    _launch(activation_forward, {"x_ptr": x, "y_ptr": y}, y.numel(), kind)


def backward(kind: str, dy: torch.Tensor, y: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx = dy · act'(x)`` from the output ``y``."""
    dy, y = in_the_order_of(dx, [dy, y])
    _launch(activation_backward, {"dy_ptr": dy, "y_ptr": y, "dx_ptr": dx}, dx.numel(), kind)


def _launch(kernel: object, tensors: dict[str, torch.Tensor], n: int, kind: str) -> None:
    if n:
        launch(
            kernel, (-(-n // _BLOCK),), {**tensors, "n": n, "KIND": kind, "WIDE": n + _BLOCK >= _LIMIT, "BLOCK": _BLOCK}
        )
