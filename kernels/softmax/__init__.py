"""Softmax and log-softmax over one dimension: the contract every backend implements, the ops, and the dispatch.

A backend is a module with two functions that write into preallocated tensors (NumPy's: arrays). Their first argument is
the pair ``(dim, log)``:

- ``forward(what, x, y)``: ``y = exp(x - m) / Σ exp(x - m)`` with ``m = max x``, or its logarithm
- ``backward(what, dy, y, dx)``: ``dx = y (dy - Σ dy·y)``, or ``dx = dy - exp(y) Σ dy``
"""

from __future__ import annotations

from typing import Any

import torch

from .._arrays import empty_like, run
from .._ops import VmapRule, define, front
from ..backends import Operation

__all__ = ["OPERATION", "backward", "forward"]

OPERATION = Operation("softmax", __name__, {"triton": "._triton", "cupy": "._cupy", "numpy": "._numpy"})


def _forward(x: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    y = empty_like(x, x.dtype)
    if y.numel():
        run(OPERATION.implementation(x.device.type), "forward", (dim, log), (x,), (y,))
    return y


def _forward_fake(x: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    return empty_like(x, x.dtype)


def _backward(dy: torch.Tensor, y: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    dx = empty_like(y, y.dtype)
    if dx.numel():
        run(OPERATION.implementation(y.device.type), "backward", (dim, log), (dy, y), (dx,))
    return dx


def _backward_fake(dy: torch.Tensor, y: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    return empty_like(y, y.dtype)


def _next_dimension(op: Any) -> VmapRule:
    """vmap rule: the vmapped dimension goes first, so ``dim`` (never negative here) moves up by one."""

    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        *tensors, dim, log = args
        aligned = [front(t, d, info.batch_size) for t, d in zip(tensors, in_dims, strict=False)]
        return op(*aligned, dim + 1, log), 0

    return rule


forward = define("softmax_forward(Tensor x, int dim, bool log) -> Tensor", _forward, _forward_fake, _next_dimension)
backward = define(
    "softmax_backward(Tensor dy, Tensor y, int dim, bool log) -> Tensor", _backward, _backward_fake, _next_dimension
)
