"""Word2Vec: the contracts every backend implements, and the dispatch. Training steps over text, then pairs of ids.

A step takes N tokens of running text, in order, already thinned out, and everything random about them as an input: how
far each window reaches, and the negatives. It computes the rows to be added from the weights before it, and
:func:`apply` adds them, in a fixed order. So a step can be checked against float64 number by number, its result does
not depend on the number of threads, and several processes can share one by gathering their rows before they are
applied.

- **Positives are a band**: the token at i is centre, those at i - r to i + r of its sentence are its contexts, where r
  is its ``reach``. No list of pairs is made. Windows do not cross the ends of a step.
- **Negatives are a pool** of S words that a slice of G tokens shares. Each pair meets each of them with weight K / S:
  in expectation what K fresh negatives a pair give, for S / G rows a token instead of K a pair. A pool's word that is
  the position's own token does not count.
- **The cap**: a row that more than ``cap`` pairs of one step update takes their sum scaled down to ``cap`` of them.
  Updates of one step do not see each other; without the cap those of the most frequent words add up and diverge. Rows
  bring their ``mass``, the pairs as the cap counts them. An output row counts one for a pair, K / S for a pool's pair.
  A context's row in skip-gram counts 3 for a pair, as it moves for the positive and for the negatives, or for a path.
  In CBOW it counts what the hidden vector moves by if all rows of its window move alike: 1 a window, times its size for
  a sum, divided by it if the gradient is; 3 times that with hierarchical softmax.

In skip-gram the input vector of each context predicts the output vector of the centre, as word2vec.c and gensim have
it; in CBOW the window's sum or mean does. Sigmoids are exact, and no pair is skipped for a large score.

A backend is a module with

- ``skipgram_negative(problem, w_in, w_out, tokens, sentences, reach, pool, with_loss) -> Step``
- ``cbow_negative(problem, w_in, w_out, tokens, sentences, reach, pool, mean, divide, with_loss) -> Step``
- ``skipgram_hierarchical(problem, w_in, w_nodes, tokens, sentences, reach, paths, codes, with_loss) -> Step``
- ``cbow_hierarchical(problem, w_in, w_nodes, tokens, sentences, reach, paths, codes, mean, divide, with_loss) -> Step``
- ``apply(table, rows, rate, cap, masses)``

with ``w_in``, ``w_out [V, d]``, ``w_nodes [V - 1, d]`` float32 (float64 for checks); ``tokens``, ``sentences [N]``
int32; ``reach [N]`` int8 or int32, 0 to w; ``pool [ceil(N / G), S]`` int32; ``paths [V, L]`` int32, ``codes [V, L]``
bool. The draws (``_random.py``) are the same bits everywhere: Philox4x32-10 by position, integer thresholds, integer
alias tables.

**Pairs** are what ``nn.SkipGram`` and ``nn.CBOW`` are made of, for training loops that make their own batches: row b's
h is the sum or mean of the rows ``inputs[b]`` of one table, and it meets the rows ``targets[b]`` of the other.
Skip-gram has one input a row, CBOW a window's; the targets are the true words and the negatives, or the nodes of a
path. A backend is a module with three functions that take tensors:

- ``forward((problem, mean), w_in, w_out, inputs, targets, labels, loss, residual)`` writes for the scores s = h · v
  ``loss [B] = Σ_m softplus(-s where labelled, else s)`` and ``residual [B, M] = label - sigmoid(s)``
- ``backward((problem, mean, divide), w_in, w_out, inputs, targets, residual, grad_loss, needs_in, needs_out)`` returns
  for each table ``(ids, rows)`` or ``None``: the ids that occur, int64, sorted and each once, and the gradients of
  their rows, summed in a fixed order. ``divide``: an input's gradient is that of h divided by the number of inputs,
  which is the derivative of the mean; word2vec.c and gensim divide with the sum, and not with the mean.
- ``gradients(..., in_ids, in_rows, out_ids, out_rows)``: the same, written, for the tuner

with ``w_in [V, d]``, ``w_out [U, d]``; ``inputs [B, C]``, ``targets [B, M]`` int32 or int64, -1 where there is nothing;
``labels [B, M]`` bool or int8; all of any strides. A row whose inputs are all -1 has no loss and no gradient; what is
-1 is never read into a result. Half types come as they are: only the rows that are gathered are widened, and everything
else is float32. Between forward and backward only ``residual`` is kept; the rows are gathered again.

Mikolov et al. 2013, arXiv:1301.3781 and arXiv:1310.4546; shared negatives: Ji et al. 2016, arXiv:1604.04661.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...autotune import watch
from .._arrays import compute_dtype, empty, rounded, run
from .._ops import VmapRule, define, one_by_one
from ..backends import Operation
from ._problem import MODELS, PairsProblem, Word2VecProblem
from ._random import AliasTable, Stream, draws, kept_and_reach, negatives, philox, thresholds
from ._step import INPUT_MASS, Rows, Step

__all__ = [
    "INPUT_MASS",
    "MODELS",
    "OPERATION",
    "PAIRS",
    "AliasTable",
    "PairsProblem",
    "Rows",
    "Step",
    "Stream",
    "Word2VecProblem",
    "check_ids",
    "draws",
    "kept_and_reach",
    "negatives",
    "pairs_backward",
    "pairs_backward_sparse",
    "pairs_forward",
    "philox",
    "thresholds",
]

OPERATION = Operation("word2vec", __name__, {"numpy": "._numpy"})
PAIRS = Operation("word2vec pairs", __name__, {"numpy": "._numpy_tensors"})

_IDS = (torch.int32, torch.int64)


def check_ids(name: str, ids: torch.Tensor, rows: int, least: int = -1) -> None:
    """Raises ``IndexError`` if one of the ids, on the CPU, is not in ``least`` to ``rows - 1``."""
    array = ids.numpy(force=True)
    if array.size and not (least <= array.min() and array.max() < rows):
        position = np.argwhere((array < least) | (array >= rows))[0].tolist()
        raise IndexError(
            f"{name}{position} is {array[tuple(position)]}, it must be in {max(least, 0)} to {rows - 1}"
            + (" (or -1 for nothing)" if least < 0 else "")
        )


def _pairs_problem(
    in_weight: torch.Tensor, out_weight: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor
) -> PairsProblem:
    for name, table in (("in_weight", in_weight), ("out_weight", out_weight)):
        if table.dim() != 2 or table.shape[0] == 0 or table.shape[1] == 0:
            raise RuntimeError(f"{name} is of shape {list(table.shape)}, it must be [rows, d] and not empty")
    if in_weight.shape[1] != out_weight.shape[1] or in_weight.dtype is not out_weight.dtype:
        raise RuntimeError(
            f"in_weight is {in_weight.dtype} of shape {list(in_weight.shape)} and out_weight {out_weight.dtype} of "
            f"shape {list(out_weight.shape)}, they must have the same dtype and the same number of columns"
        )
    for name, ids in (("inputs", inputs), ("targets", targets)):
        if ids.dtype not in _IDS:
            raise RuntimeError(f"{name} is {ids.dtype}, it must be int32 or int64")
        if ids.dim() != 2:
            raise RuntimeError(f"{name} is of shape {list(ids.shape)}, it must be 2-dimensional")
    if inputs.shape[0] != targets.shape[0]:
        raise RuntimeError(f"inputs has {inputs.shape[0]} rows and targets {targets.shape[0]}, they must have as many")
    (V, d), U, (B, C), M = in_weight.shape, out_weight.shape[0], inputs.shape, targets.shape[1]
    return PairsProblem(V, U, B, C, M, d)


def _check_labels(targets: torch.Tensor, labels: torch.Tensor) -> None:
    if labels.dtype not in (torch.bool, torch.int8):
        raise RuntimeError(f"labels is {labels.dtype}, it must be bool or int8")
    if labels.shape != targets.shape:
        raise RuntimeError(
            f"labels is of shape {list(labels.shape)}, it must be that of targets, {list(targets.shape)}"
        )


def fill_inputs(function: str, what: tuple[PairsProblem, ...], inputs: Sequence[torch.Tensor | None]) -> None:
    """Makes ids among the tuner's inputs such as text has: the r-th word is met in proportion to 1 / r."""
    problem, generator = what[0], torch.Generator().manual_seed(1)
    for ids, rows in zip(inputs[2:4], (problem.V, problem.U), strict=True):
        assert ids is not None
        drawn = torch.rand(ids.shape, generator=generator, dtype=torch.float64)
        ids.copy_((rows**drawn).long().clamp_(max=rows) - 1)
    labels = inputs[4]
    if function == "forward" and labels is not None:
        labels.zero_()[:, :1] = 1


def _pairs_forward(
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    labels: torch.Tensor,
    mean: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    problem = _pairs_problem(in_weight, out_weight, inputs, targets)
    implementation = PAIRS.implementation(in_weight.device.type)
    if in_weight.is_cpu:  # elsewhere looking at them would wait for the device
        check_ids("inputs", inputs, problem.V)
        check_ids("targets", targets, problem.U)
    loss, residual = _pairs_forward_fake(in_weight, out_weight, inputs, targets, labels, mean)
    operands = (in_weight, out_weight, inputs, targets, labels)
    run(implementation, "forward", (problem, mean), operands, (loss, residual))
    return loss, residual


def _pairs_forward_fake(
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    labels: torch.Tensor,
    mean: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    _pairs_problem(in_weight, out_weight, inputs, targets)
    _check_labels(targets, labels)
    dtype, device = compute_dtype(in_weight.dtype), in_weight.device
    return empty(targets.shape[:1], dtype, device), empty(targets.shape, dtype, device)


def _pairs_backward_sparse(
    grad_loss: torch.Tensor,
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    residual: torch.Tensor,
    mean: bool,
    divide: bool,
    needs_in: bool,
    needs_out: bool,
) -> tuple[torch.Tensor, ...]:
    implementation = PAIRS.implementation(in_weight.device.type)
    what = _pairs_problem(in_weight, out_weight, inputs, targets), mean, divide
    operands = (in_weight, out_weight, inputs, targets, residual, grad_loss)
    if watch.told is not None:
        room = [_room(*side) for side in ((needs_in, in_weight, inputs), (needs_out, out_weight, targets))]
        watch.told(implementation, "gradients", what, operands, [*room[0], *room[1]])
    both = implementation.backward(what, *operands, needs_in, needs_out)
    results: list[torch.Tensor] = []
    for weight, found in zip((in_weight, out_weight), both, strict=True):
        if found is None:
            results += [inputs.new_empty(0, dtype=torch.int64), weight.new_empty(0)]
        else:
            ids, rows = found
            results += [torch.from_numpy(ids), rounded(torch.from_numpy(rows), weight.dtype)]
    return tuple(results)


def _room(needed: bool, weight: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """For as many ids, and rows of a gradient, as there can be."""
    if not needed:
        return None, None
    n = min(len(weight), ids.numel())
    return torch.empty(n, dtype=torch.int64), torch.empty(n, weight.shape[1], dtype=compute_dtype(weight.dtype))


def _pairs_backward_sparse_fake(
    grad_loss: torch.Tensor,
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    residual: torch.Tensor,
    mean: bool,
    divide: bool,
    needs_in: bool,
    needs_out: bool,
) -> tuple[torch.Tensor, ...]:
    results: list[torch.Tensor] = []
    for weight, needed in ((in_weight, needs_in), (out_weight, needs_out)):
        n = torch.library.get_ctx().new_dynamic_size() if needed else 0
        shape = (n, weight.shape[1]) if needed else (0,)
        results += [inputs.new_empty(n, dtype=torch.int64), weight.new_empty(shape)]
    return tuple(results)


def _pairs_backward(
    grad_loss: torch.Tensor,
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    residual: torch.Tensor,
    mean: bool,
    divide: bool,
    needs_in: bool,
    needs_out: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    operands = (grad_loss, in_weight, out_weight, inputs, targets, residual, mean, divide, needs_in, needs_out)
    in_ids, in_rows, out_ids, out_rows = _pairs_backward_sparse(*operands)
    d_in = torch.zeros_like(in_weight, memory_format=torch.contiguous_format) if needs_in else in_rows
    d_out = torch.zeros_like(out_weight, memory_format=torch.contiguous_format) if needs_out else out_rows
    return (
        d_in.index_copy_(0, in_ids, in_rows) if needs_in else d_in,
        d_out.index_copy_(0, out_ids, out_rows) if needs_out else d_out,
    )


def _pairs_backward_fake(
    grad_loss: torch.Tensor,
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    residual: torch.Tensor,
    mean: bool,
    divide: bool,
    needs_in: bool,
    needs_out: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    d_in, d_out = (
        empty(weight.shape if needed else (0,), weight.dtype, weight.device)
        for weight, needed in ((in_weight, needs_in), (out_weight, needs_out))
    )
    return d_in, d_out


def _no_vmap(op: Any) -> VmapRule:
    def rule(info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
        raise RuntimeError("sparse gradients of Word2Vec cannot be vmapped: each example has its own number of rows")

    return rule


pairs_forward = define(
    "word2vec_pairs_forward(Tensor in_weight, Tensor out_weight, Tensor inputs, Tensor targets, Tensor labels, "
    "bool mean) -> (Tensor, Tensor)",
    _pairs_forward,
    _pairs_forward_fake,
    one_by_one,
)
_GRADIENT_OPERANDS = (
    "Tensor grad_loss, Tensor in_weight, Tensor out_weight, Tensor inputs, Tensor targets, Tensor residual, bool mean, "
    "bool divide, bool needs_in, bool needs_out"
)
pairs_backward = define(
    f"word2vec_pairs_backward({_GRADIENT_OPERANDS}) -> (Tensor, Tensor)",
    _pairs_backward,
    _pairs_backward_fake,
    one_by_one,
)
pairs_backward_sparse = define(
    f"word2vec_pairs_backward_sparse({_GRADIENT_OPERANDS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _pairs_backward_sparse,
    _pairs_backward_sparse_fake,
    _no_vmap,
)
