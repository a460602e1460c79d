"""Dense layers: the contract every backend implements, the ops, and the dispatch.

A backend is a module with three functions that write into preallocated tensors (NumPy's: arrays), on matrices
``x [M, I]``, ``w [O, I]``, ``y [M, O]`` (callers flatten leading dimensions into M). Their first argument is the name
of an activation, "none" for gradients:

- ``forward(activation, x, w, bias, y)``: ``y = act(x wᵀ + bias)``
- ``input_grad("none", dy, w, dx)``: ``dx = dy w``
- ``weight_grad("none", x, dy, dw, db)``: ``dw = dyᵀ x`` and (unless ``None``) ``db = Σ_m dy``

Inputs may have any strides, also 0; outputs are contiguous. Sizes may be 0, and then sums are of nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arrays import empty, run
from .._ops import VmapRule, define, front, one_by_one
from ..activation import check_activation
from ..backends import Operation

__all__ = ["OPERATION", "forward", "input_grad", "weight_grad"]

OPERATION = Operation("linear", __name__, {"triton": "._triton", "cupy": "._cupy", "numpy": "._numpy"})


def _forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    check_activation(activation)
    y = empty((x.shape[0], weight.shape[0]), x.dtype, x.device)
    run(OPERATION.implementation(x.device.type), "forward", activation, (x, weight, bias), (y,))
    return y


def _forward_fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    return empty((x.shape[0], weight.shape[0]), x.dtype, x.device)


def _input_grad(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    dx = empty((dy.shape[0], weight.shape[1]), dy.dtype, dy.device)
    run(OPERATION.implementation(dy.device.type), "input_grad", "none", (dy, weight), (dx,))
    return dx


def _input_grad_fake(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return empty((dy.shape[0], weight.shape[1]), dy.dtype, dy.device)


def _weight_grad(x: torch.Tensor, dy: torch.Tensor, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    dw = empty((dy.shape[1], x.shape[1]), x.dtype, x.device)
    db = empty((dy.shape[1] if bias else 0,), x.dtype, x.device)
    run(OPERATION.implementation(x.device.type), "weight_grad", "none", (x, dy), (dw, db if bias else None))
    return dw, db


def _weight_grad_fake(x: torch.Tensor, dy: torch.Tensor, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        empty((dy.shape[1], x.shape[1]), x.dtype, x.device),
        empty((dy.shape[1] if bias else 0,), x.dtype, x.device),
    )


def _shared_weight(op: Any) -> VmapRule:
    """vmap rule: rows of all examples make one matrix while they share the weight; else one product an example."""
    separate = one_by_one(op)

    def rule(info: Any, in_dims: Any, x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> tuple[Any, Any]:
        if any(d is not None for d in in_dims[1:]):
            return separate(info, in_dims, x, weight, *rest)
        examples = front(x, in_dims[0], info.batch_size)
        return op(examples.flatten(0, 1), weight, *rest).unflatten(0, examples.shape[:2]), 0

    return rule


forward = define(
    "linear_forward(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor",
    _forward,
    _forward_fake,
    _shared_weight,
)
input_grad = define(
    "linear_input_grad(Tensor dy, Tensor weight) -> Tensor", _input_grad, _input_grad_fake, _shared_weight
)
weight_grad = define(
    "linear_weight_grad(Tensor x, Tensor dy, bool bias) -> (Tensor, Tensor)",
    _weight_grad,
    _weight_grad_fake,
    one_by_one,
)
