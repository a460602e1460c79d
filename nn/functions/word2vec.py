"""Gradients of Word2Vec's pairs, dense or as sorted rows; gradients of gradients through the plain formula in torch."""

from __future__ import annotations

from typing import Any

import torch

from ...kernels import word2vec as kernels
from ...kernels._arrays import compute_dtype
from ._function import Function


class Word2VecPairs(Function):
    """in_weight, out_weight, inputs, targets, labels, mean, divide, sparse; see ``kernels.word2vec`` for shapes."""

    @staticmethod
    def forward(
        in_weight: torch.Tensor,
        out_weight: torch.Tensor,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        labels: torch.Tensor,
        mean: bool,
        divide: bool,
        sparse: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.pairs_forward(in_weight, out_weight, inputs, targets, labels, mean)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        *operands, ctx.mean, ctx.divide, ctx.sparse = inputs
        _, residual = output
        ctx.mark_non_differentiable(residual)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, residual)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor | None, _: None) -> tuple[Any, ...]:
        if grad_loss is None:
            return (None,) * 8
        needs_in, needs_out, *_rest = ctx.needs_input_grad
        d_in, d_out = Word2VecPairsBackward.call(
            grad_loss, *ctx.saved_tensors, ctx.mean, ctx.divide, ctx.sparse, needs_in, needs_out
        )
        return d_in if needs_in else None, d_out if needs_out else None, *(None,) * 6


class Word2VecPairsBackward(Function):
    """grad_loss, the five operands, residual, mean, divide, sparse, needs_in, needs_out."""

    @staticmethod
    def forward(
        grad_loss: torch.Tensor,
        in_weight: torch.Tensor,
        out_weight: torch.Tensor,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        labels: torch.Tensor,
        residual: torch.Tensor,
        mean: bool,
        divide: bool,
        sparse: bool,
        needs_in: bool,
        needs_out: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        operands = (grad_loss, in_weight, out_weight, inputs, targets, residual, mean, divide, needs_in, needs_out)
        if not sparse:
            return kernels.pairs_backward(*operands)
        in_ids, in_rows, out_ids, out_rows = kernels.pairs_backward_sparse(*operands)
        return (
            _sparse(in_ids, in_rows, in_weight) if needs_in else in_rows,
            _sparse(out_ids, out_rows, out_weight) if needs_out else out_rows,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        *tensors, _, ctx.mean, ctx.divide, ctx.sparse, ctx.needs_in, ctx.needs_out = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        if ctx.sparse:
            raise RuntimeError("sparse gradients have no derivative: use sparse=False for gradients of gradients")
        if ctx.divide != ctx.mean:
            raise RuntimeError(
                "grad='gensim' is not the derivative of the loss and has none itself: use grad='exact' for gradients "
                "of gradients"
            )
        # The residual is a function of the tables too: the second derivative starts from them again.
        grad_loss, in_weight, out_weight, inputs, targets, labels = ctx.saved_tensors
        wanted = [i for i, needed in enumerate((ctx.needs_in, ctx.needs_out)) if needed]

        def first_derivative(grad_loss: torch.Tensor, *tables: torch.Tensor) -> tuple[torch.Tensor, ...]:
            _, pullback, *_ = torch.func.vjp(lambda a, b: plain(a, b, inputs, targets, labels, ctx.mean), *tables)
            results = pullback(grad_loss)
            return tuple(results[i] for i in wanted)

        _, pullback, *_ = torch.func.vjp(first_derivative, grad_loss, in_weight, out_weight)
        second = pullback(tuple(gradients[i] for i in wanted))
        return *(g if need else None for g, need in zip(second, ctx.needs_input_grad, strict=False)), *(None,) * 9


def _sparse(ids: torch.Tensor, rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(ids[None], rows, like.shape, is_coalesced=True, check_invariants=False)


def plain(
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    labels: torch.Tensor,
    mean: bool,
) -> torch.Tensor:
    """The loss ``[B]`` in torch's own differentiable operations."""
    dtype = compute_dtype(in_weight.dtype)
    is_input, is_target = inputs >= 0, targets >= 0
    h = torch.where(is_input[:, :, None], in_weight[inputs.clamp(min=0)].to(dtype), 0).sum(1)
    if mean:
        h = h / is_input.sum(1).clamp(min=1)[:, None]
    v = torch.where(is_target[:, :, None], out_weight[targets.clamp(min=0)].to(dtype), 0)
    scores = (v @ h[:, :, None])[:, :, 0]
    met = is_target & is_input.any(1)[:, None]
    # 0 also on the way in: the derivative at an infinite or undefined score is no number, not even times 0
    right = torch.where(met, torch.where(labels.bool(), scores, -scores), 0)
    return torch.where(met, -torch.nn.functional.logsigmoid(right), 0).sum(1)


def word2vec_pairs(
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    labels: torch.Tensor,
    mean: bool,
    divide: bool,
    sparse: bool,
) -> torch.Tensor:
    """The loss of each row, ``[B]``, in float32 for half types; see ``kernels.word2vec`` for shapes.

    The gradient is the derivative where ``divide`` is ``mean``; with ``sparse`` it is sparse and coalesced.
    """
    loss, _ = Word2VecPairs.call(in_weight, out_weight, inputs, targets, labels, mean, divide, sparse)
    return loss
