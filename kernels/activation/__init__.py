"""ReLU, sigmoid and tanh: the contract every backend implements, the ops, and the dispatch.

A backend is a module with two functions that write into preallocated tensors (NumPy's: arrays):

- ``forward(kind, x, y)``: ``y = act(x)``; also in place, ``y is x``
- ``backward(kind, dy, y, dx)``: ``dx = dy · act'(x)``, told from the output: ``[y > 0]``, ``y (1 - y)``, ``1 - y²``
"""

from __future__ import annotations

import torch

from .._arrays import empty_like, run
from .._ops import define, elementwise
from ..backends import Operation

__all__ = ["ACTIVATIONS", "OPERATION", "backward", "check_activation", "forward"]

OPERATION = Operation("activation", __name__, {"triton": "._triton", "cupy": "._cupy", "numpy": "._numpy"})

ACTIVATIONS = ("none", "relu", "sigmoid", "tanh")


def check_activation(kind: str) -> str:
    """The name of an activation ("none" among them), checked.

    Raises:
        ValueError: it is none of those there are.
    """
    if kind not in ACTIVATIONS:
        raise ValueError(f"activation is {kind!r}, it must be one of {', '.join(map(repr, ACTIVATIONS))}")
    return kind


def _forward(x: torch.Tensor, kind: str) -> torch.Tensor:
    implementation = OPERATION.implementation(x.device.type)
    if not x.is_floating_point() and getattr(implementation, "ON_TENSORS", False):
        return x.clamp_min(0)  # ReLU is all that whole numbers have; our GPU kernels count in floating point
    y = empty_like(x, x.dtype)
    run(implementation, "forward", kind, (x,), (y,))
    return y


def _forward_fake(x: torch.Tensor, kind: str) -> torch.Tensor:
    return empty_like(x, x.dtype)


def _backward(dy: torch.Tensor, y: torch.Tensor, kind: str) -> torch.Tensor:
    dx = empty_like(y, y.dtype)
    run(OPERATION.implementation(y.device.type), "backward", kind, (dy, y), (dx,))
    return dx


def _backward_fake(dy: torch.Tensor, y: torch.Tensor, kind: str) -> torch.Tensor:
    return empty_like(y, y.dtype)


forward = define("activation_forward(Tensor x, str kind) -> Tensor", _forward, _forward_fake, elementwise)
backward = define(
    "activation_backward(Tensor dy, Tensor y, str kind) -> Tensor", _backward, _backward_fake, elementwise
)
