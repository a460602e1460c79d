"""Word2Vec pairs in NumPy, called with tensors: tables are read in their own memory, also those of half types."""

from __future__ import annotations

import torch

from .._arrays import Array, as_array
from . import _numpy_pairs as pairs
from ._problem import PairsProblem

ON_TENSORS = True
TUNABLES = pairs.TUNABLES


def _table(weight: torch.Tensor) -> Array:
    return weight.detach().view(torch.uint16).numpy() if weight.dtype is torch.bfloat16 else weight.numpy(force=True)


def forward(
    what: tuple[PairsProblem, bool],
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    labels: torch.Tensor,
    loss: torch.Tensor,
    residual: torch.Tensor,
) -> None:
    problem, mean = what
    ids = as_array(inputs), as_array(targets), as_array(labels.bool())
    pairs.forward(problem, _table(in_weight), _table(out_weight), *ids, mean, loss.numpy(), residual.numpy())


def backward(
    what: tuple[PairsProblem, bool, bool],
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    residual: torch.Tensor,
    grad_loss: torch.Tensor,
    needs_in: bool,
    needs_out: bool,
) -> tuple[pairs.Gradient | None, pairs.Gradient | None]:
    problem, mean, divide = what
    tables, ids = (_table(in_weight), _table(out_weight)), (as_array(inputs), as_array(targets))
    slopes = as_array(residual), as_array(grad_loss)
    return pairs.backward(problem, *tables, *ids, *slopes, mean, divide, needs_in, needs_out)


def gradients(
    what: tuple[PairsProblem, bool, bool],
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    residual: torch.Tensor,
    grad_loss: torch.Tensor,
    in_ids: torch.Tensor | None,
    in_rows: torch.Tensor | None,
    out_ids: torch.Tensor | None,
    out_rows: torch.Tensor | None,
) -> None:
    """:func:`backward` for whoever has made room for as many ids as there can be: -1 and zeros after the last."""
    needs = in_ids is not None, out_ids is not None
    found = backward(what, in_weight, out_weight, inputs, targets, residual, grad_loss, *needs)
    for gradient, ids, rows in zip(found, (in_ids, out_ids), (in_rows, out_rows), strict=True):
        if gradient is None or ids is None or rows is None:
            continue
        n = len(gradient[0])
        for target, values, filler in ((ids.numpy(), gradient[0], -1), (rows.numpy(), gradient[1], 0)):
            target[:n], target[n:] = values, filler
