"""Dense layers: the contract every backend implements, the ops, and the dispatch.

A backend is a module with three functions that write into preallocated arrays, on matrices ``x [M, I]``, ``w [O, I]``,
``y [M, O]`` (callers flatten leading dimensions into M):

- ``forward(x, w, bias, activation, y)``: ``y = act(x wᵀ + bias)``
- ``input_grad(dy, w, dx)``: ``dx = dy w``
- ``weight_grad(x, dy, dw, db)``: ``dw = dyᵀ x`` and (unless ``None``) ``db = Σ_m dy``
"""

from __future__ import annotations

from typing import Any

import torch

from .._arrays import as_array, compute_dtype, empty, rounded
from .._ops import VmapRule, define, front, one_by_one
from ..activation import check_activation
from ..backends import Operation

__all__ = ["OPERATION", "forward", "input_grad", "weight_grad"]

OPERATION = Operation("linear", __name__, {"numpy": "._numpy"})


def _forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    check_activation(activation)
    y = empty((x.shape[0], weight.shape[0]), compute_dtype(x.dtype), x.device)
    bias_array = None if bias is None else as_array(bias)
    OPERATION.implementation(x.device.type).forward(as_array(x), as_array(weight), bias_array, activation, y.numpy())
    return rounded(y, x.dtype)


def _forward_fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    return empty((x.shape[0], weight.shape[0]), x.dtype, x.device)


def _input_grad(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    dx = empty((dy.shape[0], weight.shape[1]), compute_dtype(dy.dtype), dy.device)
    OPERATION.implementation(dy.device.type).input_grad(as_array(dy), as_array(weight), dx.numpy())
    return rounded(dx, dy.dtype)


def _input_grad_fake(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return empty((dy.shape[0], weight.shape[1]), dy.dtype, dy.device)


def _weight_grad(x: torch.Tensor, dy: torch.Tensor, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = compute_dtype(x.dtype)
    dw = empty((dy.shape[1], x.shape[1]), dtype, x.device)
    db = empty((dy.shape[1] if bias else 0,), dtype, x.device)
    OPERATION.implementation(x.device.type).weight_grad(
        as_array(x), as_array(dy), dw.numpy(), db.numpy() if bias else None
    )
    return rounded(dw, x.dtype), rounded(db, x.dtype)


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
