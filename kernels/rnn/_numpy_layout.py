"""How the NumPy walk lays things out: masks and arrays in the order of its steps, weights packed for its products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from .._arrays import Array
from .._parallel import matmul
from ._problem import RnnProblem, Weights

# Multiplications of a step (a direction) up to which it is cut into small products and stays in one thread.
_SMALL_STEP = 9 << 19
# Above this BLAS packs its operands, below it multiplies in place; and the rows such a product has best.
_UNPACKED, _ROWS = 1_000_000, range(32, 15, -1)


@dataclass(frozen=True)
class Masks:
    """Which sequences a step leaves alone, and which it starts anew: ``[T, D, 1, B]`` in the order of the steps.

    ``None`` where there is nothing to mask; ``any_...[step]`` spare most steps the masks.
    """

    ended: Array | None
    restarted: Array | None
    any_ended: list[bool]
    any_restarted: list[bool]

    @staticmethod
    def of(problem: RnnProblem, lengths: Array | None, reset: Array | None) -> Masks:
        ended: Array | None = None
        restarted: Array | None = None
        any_ended = any_restarted = [False] * problem.T
        if lengths is not None:
            over = np.arange(problem.T)[:, None] >= lengths
            ended = np.stack([over, over[::-1]][: problem.D], axis=1)[:, :, None]
            any_ended = _any(ended)
        if reset is not None:
            if lengths is not None:
                reset = reset & ~over
            # backwards in time a new sequence starts one step later: behind the step that is its first
            later = np.zeros_like(reset)
            later[:-1] = reset[1:]
            restarted = np.stack([reset, later[::-1]][: problem.D], axis=1)[:, :, None]
            any_restarted = _any(restarted)
        return Masks(ended, restarted, any_ended, any_restarted)


def _any(mask: Array) -> list[bool]:
    return cast(list[bool], mask.any(axis=(1, 2, 3)).tolist())


def by_step(problem: RnnProblem, a: Array) -> list[Array]:
    """Of ``[T, D, ...]`` in time what each direction has, in the order of its steps: the second walks backwards."""
    return [a[:, 0], a[::-1, 1] if problem.D == 2 else a[:, 0]][: problem.D]


def span(problem: RnnProblem, d: int, first: int, stop: int) -> slice:
    """The times of a direction's steps, in the order of the steps."""
    if d == 0:
        return slice(first, stop)
    T = problem.T
    return slice(T - 1 - first, T - 1 - stop if stop < T else None, -1)


def in_walk_order(problem: RnnProblem, rows: Array) -> Array:
    """``[D, G·H, ...]`` of torch's order with an LSTM's o before its g, and sigmoids' rows halved: a copy."""
    H = problem.H
    rows = gate_rows(problem, rows, of_state=True).copy()
    rows[:, : (problem.G - 1) * H] *= rows.dtype.type(0.5)
    return rows


def recurrent_weights(problem: RnnProblem, weights: Weights) -> tuple[Array, Array | None]:
    """``[D, G·H, P + 1]`` in walk order, biases last; of a GRU also the candidate's own, ``[D, H, 1]``."""
    H = problem.H
    of_candidate = None
    w = np.empty((*weights.w_hh.shape[:2], problem.P + 1), weights.w_hh.dtype)
    w[:, :, :-1] = weights.w_hh
    w[:, :, -1] = 0 if weights.bias is None else weights.bias
    if problem.cell == "gru":
        of_candidate = None if weights.bias is None else weights.bias[:, 2 * H :, None]
        w[:, 2 * H :, -1] = 0 if weights.bias_n is None else weights.bias_n
    return in_walk_order(problem, w), of_candidate


def is_small(rows: int, inner: int, columns: int) -> bool:
    return rows * inner * columns <= _SMALL_STEP


def product_of_a_step(problem: RnnProblem) -> Callable[..., Array]:
    """``f(w, state, out)``: in this thread, or on several where a step is large enough to share."""
    return np.matmul if is_small(problem.G * problem.H, problem.P + 1, problem.B) else matmul


def cut(w: Array, columns: int) -> Array:
    """``[D, m, k]`` as ``[D, n, m / n, k]``: the left operand of products that BLAS need not pack."""
    D, m, k = w.shape
    rows = m
    if m * k * columns > _UNPACKED and is_small(m, k, columns):
        rows = next((r for r in _ROWS if m % r == 0), m)
    return np.ascontiguousarray(w.reshape(D, m // rows, rows, k).swapaxes(2, 3)).swapaxes(2, 3)


def gate_rows(problem: RnnProblem, rows: Array, of_state: bool) -> Array:
    """Rows of weights ``[D, G·H, n]`` in the order in which gradients of gates are kept.

    An LSTM's are i, f, o, g; a GRU's n, r, z for the input, and r, z and its state's part of n for the state.
    """
    H = problem.H
    if problem.cell == "lstm":
        return np.concatenate([rows[:, : 2 * H], rows[:, 3 * H :], rows[:, 2 * H : 3 * H]], axis=1)
    if problem.cell == "gru" and not of_state:
        return np.concatenate([rows[:, 2 * H :], rows[:, : 2 * H]], axis=1)
    return rows


def from_gate_rows(problem: RnnProblem, kept: Array, target: Array, of_state: bool) -> None:
    """The inverse of ``gate_rows``, into the target."""
    H = problem.H
    if problem.cell == "lstm":
        target[:, : 2 * H], target[:, 3 * H :], target[:, 2 * H : 3 * H] = np.split(kept, [2 * H, 3 * H], axis=1)
    elif problem.cell == "gru" and not of_state:
        target[:, 2 * H :], target[:, : 2 * H] = np.split(kept, [H], axis=1)
    else:
        np.copyto(target, kept)
