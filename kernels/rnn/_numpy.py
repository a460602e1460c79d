"""Recurrent layers in NumPy: a product for the input of all steps, a walk through time, products for the weights.

Inside, the batch is the innermost dimension: a step is ``[G·H, P] @ [P, B]``, a gate is one run of memory, and every
pass over gates is contiguous. The biases are a column of the recurrent weights, met by a row of ones below the state.
Both directions take their steps together; what is kept is in the order of the steps: the second direction's last time
comes first.

A step's product is too small for BLAS to share between threads (handing over the results costs what it saves), and
just too large for the BLAS kernels that do without packing. It is cut into products of a few rows, 26 us instead of 38
for 32 sequences of 128 units, while a second thread prepares the input's product for the next block of steps.

Sigmoids are hyperbolic tangents, ``σ(a) = ½ + ½ tanh(a / 2)``, with the inner half put into the weights (a power of
two: no rounding), so that one call serves all gates. In the backward everything that does not wait for the next step
(the derivatives of the gates) is computed for a block of steps at a time, and the walk multiplies by it.

What is kept for the backward: ``gates [T, D, 4, H, B]``, an LSTM's in the order i, f, o, g (the sigmoids side by side),
a GRU's n, r, z and the state's part of n; ``cells [T, D, H, B]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from .. import _blas
from .._arrays import Array
from .._parallel import ahead, parallel_for, quiet
from .._workspace import workspace
from ._numpy_backward import TUNABLES, gradients
from ._numpy_layout import Masks, by_step, cut, in_walk_order, is_small, product_of_a_step, recurrent_weights, span
from ._problem import SAVED, RnnProblem, Weights

__all__ = ["TUNABLES", "forward", "gradients"]

# Multiplications of the input's product that are worth a hand-over to another thread, and hand-overs a walk.
_LEAST_AHEAD, _PIECES = 1 << 22, 5
_GROWTH = 1.7
# Sequences from which a product a step is as good as one of many steps.
_LEAST_BATCH = 8


def _projected(problem: RnnProblem, x: Array, weights: Weights) -> Iterator[tuple[int, int, Array]]:
    """What the input adds to the gates, ``[steps, D, G·H, B]``, with the first step and the last of each block.

    The product of all steps and directions, cut where a second thread can prepare the next block while the walk goes
    through this one. A walk of large steps keeps all threads busy by itself: it gets the product whole.
    """
    T, B, D, rows = problem.T, problem.B, problem.D, problem.G * problem.H
    w = in_walk_order(problem, weights.w_ih)
    w_cut = cut(w, B)
    work = D * rows * problem.I * B * T
    pieces = max(1, min(T, _PIECES, work // _LEAST_AHEAD)) if is_small(rows, problem.P + 1, B) else 1
    gx = workspace("rnn gates from the input", (T, D, rows, B), x.dtype)

    def block(first: int, stop: int) -> None:
        for d in range(D):
            inputs, target = x[span(problem, d, first, stop)], gx[first:stop, d]
            if B < _LEAST_BATCH:
                flat = np.ascontiguousarray(inputs).reshape((stop - first) * B, problem.I)
                target[...] = (flat @ w[d].T).reshape(stop - first, B, rows).transpose(0, 2, 1)
            else:
                target = target.reshape(stop - first, *w_cut.shape[1:3], B)
                np.matmul(w_cut[d], inputs.transpose(0, 2, 1)[:, None], target)

    if pieces == 1:
        parallel_for(T, block, bytes_moved=0, products=work)
        yield 0, T, gx
        return
    # each block longer than the last, as the walk takes longer than the product: nobody waits
    bounds = [round(T * (_GROWTH**i - 1) / (_GROWTH**pieces - 1)) for i in range(pieces + 1)]
    for first, stop in ahead(block, list(pairwise(bounds))):
        yield first, stop, gx[first:stop]


@quiet
def forward(
    problem: RnnProblem,
    x: Array,
    h0: Array,
    c0: Array | None,
    weights: Weights,
    lengths: Array | None,
    reset: Array | None,
    y: Array,
    h_n: Array,
    c_n: Array | None,
    gates: Array | None,
    cells: Array | None,
) -> None:
    """Walks through time; see the package for shapes. Extra memory: what the input adds to the gates, in blocks."""
    T, B, D, H, P = problem.T, problem.B, problem.D, problem.H, problem.P
    masks = Masks.of(problem, lengths, reset)
    walk = {"lstm": _lstm_forward, "gru": _gru_forward}.get(problem.cell, _rnn_forward)
    with _blas.one_thread():
        walk(
            problem,
            masks,
            x,
            weights,
            (h0.transpose(0, 2, 1), None if c0 is None else c0.transpose(0, 2, 1)),
            y.reshape(T, B, D, P).transpose(0, 2, 3, 1),
            (h_n.transpose(0, 2, 1), None if c_n is None else c_n.transpose(0, 2, 1)),
            None if gates is None else gates.reshape(T, D, SAVED[problem.cell], H, B),
            None if cells is None else cells.reshape(T, D, H, B),
        )
    if masks.ended is not None:
        np.copyto(y.reshape(T, B, D * P), 0, where=masks.ended[:, 0, 0, :, None])


def _with_ones(problem: RnnProblem, h0: Array) -> tuple[Array, Array]:
    """The state ``[D, 1, P + 1, B]`` with the row of ones that meets the biases, and ``[D, P, B]`` of it without."""
    state = np.ones((problem.D, 1, problem.P + 1, problem.B), h0.dtype)
    h = state[:, 0, :-1]
    np.copyto(h, h0)
    return state, h


def _lstm_forward(
    problem: RnnProblem,
    masks: Masks,
    x: Array,
    weights: Weights,
    start: tuple[Array, Any],
    y: Array,
    last: tuple[Array, Any],
    gates: Array | None,
    cells: Array | None,
) -> None:
    D, H, B = problem.D, problem.H, problem.B
    step_product, half = product_of_a_step(problem), x.dtype.type(0.5)
    multiply, add, tanh = np.multiply, np.add, np.tanh
    w = cut(recurrent_weights(problem, weights)[0], B)
    state, h = _with_ones(problem, start[0])
    c = np.array(start[1], order="C")
    product = np.empty((D, H, B), x.dtype)
    outputs = list(zip(by_step(problem, y), h, strict=True))
    # the gates are computed where they are kept, or all in one place
    places = np.empty((1, D, 4, H, B), x.dtype) if gates is None else gates
    memories = np.empty((2, D, H, B), x.dtype) if cells is None else cells
    places_cut = places.reshape(len(places), D, *w.shape[1:3], B)
    z, z_cut, (i, f, o, g) = places[0], places_cut[0], places[0].swapaxes(0, 1)
    for first, stop, gx in _projected(problem, x, weights):
        gx = gx.reshape(stop - first, D, 4, H, B)
        for step in range(first, stop):
            if gates is not None:
                z, z_cut, (i, f, o, g) = gates[step], places_cut[step], gates[step].swapaxes(0, 1)
            sigmoids, c_new = z[:, :3], memories[step % len(memories)]
            if masks.any_restarted[step] and masks.restarted is not None:
                np.copyto(h, 0, where=masks.restarted[step])
                c = np.where(masks.restarted[step], half.dtype.type(0), c)
            kept = h.copy() if masks.any_ended[step] else None
            step_product(w, state, z_cut)
            add(z, gx[step - first], z)
            tanh(z, z)
            multiply(sigmoids, half, sigmoids)
            add(sigmoids, half, sigmoids)
            multiply(c, f, c_new)
            multiply(i, g, product)
            add(c_new, product, c_new)
            tanh(c_new, product)
            if weights.w_hr is None:
                multiply(o, product, h)
            else:
                multiply(o, product, product)
                step_product(weights.w_hr, product, h)
            if kept is not None and masks.ended is not None:
                np.copyto(h, kept, where=masks.ended[step])
                np.copyto(c_new, c, where=masks.ended[step])
            c = c_new
            for output, of_direction in outputs:
                output[step] = of_direction
    np.copyto(last[0], h)
    np.copyto(last[1], c)


def _gru_forward(
    problem: RnnProblem,
    masks: Masks,
    x: Array,
    weights: Weights,
    start: tuple[Array, Any],
    y: Array,
    last: tuple[Array, Any],
    gates: Array | None,
    cells: Array | None,
) -> None:
    D, H, B = problem.D, problem.H, problem.B
    step_product, half = product_of_a_step(problem), x.dtype.type(0.5)
    multiply, add, subtract, tanh = np.multiply, np.add, np.subtract, np.tanh
    w, bias = recurrent_weights(problem, weights)
    w = cut(w, B)
    state, h = _with_ones(problem, start[0])
    z = np.empty((D, 3 * H, B), x.dtype)
    z_cut = z.reshape(D, *w.shape[1:3], B)
    sigmoids, hidden = z[:, : 2 * H], z[:, 2 * H :]  # hidden: what the state adds to the candidate
    r, update = z[:, :H], z[:, H : 2 * H]
    n = np.empty((D, H, B), x.dtype)
    outputs = list(zip(by_step(problem, y), h, strict=True))
    for first, stop, gx in _projected(problem, x, weights):
        for step in range(first, stop):
            from_input = gx[step - first]
            kept = _before(masks, step, h)
            step_product(w, state, z_cut)
            add(sigmoids, from_input[:, : 2 * H], sigmoids)
            tanh(sigmoids, sigmoids)
            multiply(sigmoids, half, sigmoids)
            add(sigmoids, half, sigmoids)
            multiply(r, hidden, n)
            add(n, from_input[:, 2 * H :], n)
            if bias is not None:
                add(n, bias, n)
            tanh(n, n)
            subtract(h, n, h)
            multiply(h, update, h)
            add(h, n, h)
            _hold(masks, step, h, kept)
            for output, of_direction in outputs:
                output[step] = of_direction
            if gates is not None:
                gates[step, :, 0] = n
                gates[step, :, 1:] = z.reshape(D, 3, H, B)
    np.copyto(last[0], h)


def _rnn_forward(
    problem: RnnProblem,
    masks: Masks,
    x: Array,
    weights: Weights,
    start: tuple[Array, Any],
    y: Array,
    last: tuple[Array, Any],
    gates: Array | None,
    cells: Array | None,
) -> None:
    w = cut(recurrent_weights(problem, weights)[0], problem.B)
    state, h = _with_ones(problem, start[0])
    z = np.empty((problem.D, problem.H, problem.B), x.dtype)
    z_cut = z.reshape(problem.D, *w.shape[1:3], problem.B)
    step_product, zero = product_of_a_step(problem), x.dtype.type(0)
    outputs = list(zip(by_step(problem, y), h, strict=True))
    for first, stop, gx in _projected(problem, x, weights):
        for step in range(first, stop):
            kept = _before(masks, step, h)
            step_product(w, state, z_cut)
            np.add(z, gx[step - first], z)
            if problem.cell == "tanh":
                np.tanh(z, h)
            else:
                np.maximum(z, zero, out=h)
            _hold(masks, step, h, kept)
            for output, of_direction in outputs:
                output[step] = of_direction
    np.copyto(last[0], h)


def _before(masks: Masks, step: int, h: Array) -> Array | None:
    """Starts sequences anew where the mask says so; returns the state that those which have ended must keep."""
    if masks.any_restarted[step] and masks.restarted is not None:
        np.copyto(h, 0, where=masks.restarted[step])
    return h.copy() if masks.any_ended[step] else None


def _hold(masks: Masks, step: int, h: Array, kept: Array | None) -> None:
    if kept is not None and masks.ended is not None:
        np.copyto(h, kept, where=masks.ended[step])
