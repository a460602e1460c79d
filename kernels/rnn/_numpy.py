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
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np

from .. import _blas
from .._arrays import Array
from .._parallel import ahead, parallel_for, quiet
from ._problem import SAVED, RnnProblem, Weights

# Steps whose derivatives are prepared together: what they fill should stay in the L2 cache.
_BLOCK_BYTES = 512 * 1024
# Multiplications of a step (a direction) up to which it is cut into small products and stays in one thread.
_SMALL_STEP = 9 << 19
# Above this BLAS packs its operands, below it multiplies in place; and the rows such a product has best.
_UNPACKED, _ROWS = 1_000_000, range(32, 15, -1)
# Multiplications of the input's product that are worth a hand-over to another thread, and hand-overs a walk.
_LEAST_AHEAD, _PIECES = 1 << 22, 5
_GROWTH = 1.7
# Sequences from which a product a step is as good as one of many steps.
_LEAST_BATCH = 8


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


def _by_step(problem: RnnProblem, a: Array) -> list[Array]:
    """Of ``[T, D, ...]`` in time what each direction has, in the order of its steps: the second walks backwards."""
    return [a[:, 0], a[::-1, 1] if problem.D == 2 else a[:, 0]][: problem.D]


def _span(problem: RnnProblem, d: int, first: int, stop: int) -> slice:
    """The times of a direction's steps, in the order of the steps."""
    if d == 0:
        return slice(first, stop)
    T = problem.T
    return slice(T - 1 - first, T - 1 - stop if stop < T else None, -1)


def _in_walk_order(problem: RnnProblem, rows: Array) -> Array:
    """``[D, G·H, ...]`` of torch's order with an LSTM's o before its g, and sigmoids' rows halved: a copy."""
    H = problem.H
    rows = _gate_rows(problem, rows, of_state=True).copy()
    rows[:, : (problem.G - 1) * H] *= rows.dtype.type(0.5)
    return rows


def _recurrent_weights(problem: RnnProblem, weights: Weights) -> tuple[Array, Array | None]:
    """``[D, G·H, P + 1]`` in walk order, biases last; of a GRU also the candidate's own, ``[D, H, 1]``."""
    H = problem.H
    of_candidate = None
    w = np.empty((*weights.w_hh.shape[:2], problem.P + 1), weights.w_hh.dtype)
    w[:, :, :-1] = weights.w_hh
    w[:, :, -1] = 0 if weights.bias is None else weights.bias
    if problem.cell == "gru":
        of_candidate = None if weights.bias is None else weights.bias[:, 2 * H :, None]
        w[:, 2 * H :, -1] = 0 if weights.bias_n is None else weights.bias_n
    return _in_walk_order(problem, w), of_candidate


def _is_small(rows: int, inner: int, columns: int) -> bool:
    return rows * inner * columns <= _SMALL_STEP


def _cut(w: Array, columns: int) -> Array:
    """``[D, m, k]`` as ``[D, n, m / n, k]``: the left operand of products that BLAS need not pack."""
    D, m, k = w.shape
    rows = m
    if m * k * columns > _UNPACKED and _is_small(m, k, columns):
        rows = next((r for r in _ROWS if m % r == 0), m)
    return np.ascontiguousarray(w.reshape(D, m // rows, rows, k).swapaxes(2, 3)).swapaxes(2, 3)


def _projected(problem: RnnProblem, x: Array, weights: Weights) -> Iterator[tuple[int, int, Array]]:
    """What the input adds to the gates, ``[steps, D, G·H, B]``, with the first step and the last of each block.

    The product of all steps and directions, cut where a second thread can prepare the next block while the walk goes
    through this one. A walk of large steps keeps all threads busy by itself: it gets the product whole.
    """
    T, B, D, rows = problem.T, problem.B, problem.D, problem.G * problem.H
    w = _in_walk_order(problem, weights.w_ih)
    cut = _cut(w, B)
    work = D * rows * problem.I * B * T
    pieces = max(1, min(T, _PIECES, work // _LEAST_AHEAD)) if _is_small(rows, problem.P + 1, B) else 1
    # each block longer than the last, as the walk takes longer than the product: nobody waits
    bounds = [round(T * (_GROWTH**i - 1) / (_GROWTH**pieces - 1)) for i in range(pieces + 1)]
    gx = np.empty((T, D, rows, B), x.dtype)

    def block(first: int, stop: int) -> None:
        for d in range(D):
            inputs, target = x[_span(problem, d, first, stop)], gx[first:stop, d]
            if B < _LEAST_BATCH:
                flat = np.ascontiguousarray(inputs).reshape((stop - first) * B, problem.I)
                target[...] = (flat @ w[d].T).reshape(stop - first, B, rows).transpose(0, 2, 1)
            else:
                target = target.reshape(stop - first, *cut.shape[1:3], B)
                np.matmul(cut[d], inputs.transpose(0, 2, 1)[:, None], target)

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
    with _blas.threads_of_torch():
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
    matmul, multiply, add, tanh, half = np.matmul, np.multiply, np.add, np.tanh, x.dtype.type(0.5)
    w = _cut(_recurrent_weights(problem, weights)[0], B)
    state, h = _with_ones(problem, start[0])
    c = np.array(start[1], order="C")
    product = np.empty((D, H, B), x.dtype)
    outputs = list(zip(_by_step(problem, y), h, strict=True))
    # the gates are computed where they are kept, or all in one place
    places = np.empty((1, D, 4, H, B), x.dtype) if gates is None else gates
    memories = np.empty((2, D, H, B), x.dtype) if cells is None else cells
    cut = places.reshape(len(places), D, *w.shape[1:3], B)
    z, z_cut, (i, f, o, g) = places[0], cut[0], places[0].swapaxes(0, 1)
    for first, stop, gx in _projected(problem, x, weights):
        gx = gx.reshape(stop - first, D, 4, H, B)
        for step in range(first, stop):
            if gates is not None:
                z, z_cut, (i, f, o, g) = gates[step], cut[step], gates[step].swapaxes(0, 1)
            sigmoids, c_new = z[:, :3], memories[step % len(memories)]
            if masks.any_restarted[step] and masks.restarted is not None:
                np.copyto(h, 0, where=masks.restarted[step])
                c = np.where(masks.restarted[step], half.dtype.type(0), c)
            kept = h.copy() if masks.any_ended[step] else None
            matmul(w, state, z_cut)
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
                matmul(weights.w_hr, product, h)
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
    matmul, multiply, add, subtract, tanh, half = (
        np.matmul,
        np.multiply,
        np.add,
        np.subtract,
        np.tanh,
        x.dtype.type(0.5),
    )
    w, bias = _recurrent_weights(problem, weights)
    w = _cut(w, B)
    state, h = _with_ones(problem, start[0])
    z = np.empty((D, 3 * H, B), x.dtype)
    cut = z.reshape(D, *w.shape[1:3], B)
    sigmoids, hidden = z[:, : 2 * H], z[:, 2 * H :]  # hidden: what the state adds to the candidate
    r, update = z[:, :H], z[:, H : 2 * H]
    n = np.empty((D, H, B), x.dtype)
    outputs = list(zip(_by_step(problem, y), h, strict=True))
    for first, stop, gx in _projected(problem, x, weights):
        for step in range(first, stop):
            from_input = gx[step - first]
            kept = _before(masks, step, h)
            matmul(w, state, cut)
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
    w = _cut(_recurrent_weights(problem, weights)[0], problem.B)
    state, h = _with_ones(problem, start[0])
    z = np.empty((problem.D, problem.H, problem.B), x.dtype)
    cut = z.reshape(problem.D, *w.shape[1:3], problem.B)
    zero = x.dtype.type(0)
    outputs = list(zip(_by_step(problem, y), h, strict=True))
    for first, stop, gx in _projected(problem, x, weights):
        for step in range(first, stop):
            kept = _before(masks, step, h)
            np.matmul(w, state, cut)
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


@quiet
def backward(
    problem: RnnProblem,
    dy: Array,
    dh_n: Array,
    dc_n: Array | None,
    x: Array,
    h0: Array,
    c0: Array | None,
    weights: Weights,
    lengths: Array | None,
    reset: Array | None,
    y: Array,
    gates: Array | None,
    cells: Array | None,
    dx: Array | None,
    dh0: Array,
    dc0: Array | None,
    dweights: Weights | None,
) -> None:
    """The gradients of everything; without ``gates`` they are computed again, a block of steps at a time.

    Extra memory: the gradient of the gates of all steps and directions, twice (as the walk writes it and as the
    products read it), and the states one step back.
    """
    T, B, D, H, P = problem.T, problem.B, problem.D, problem.H, problem.P
    masks = Masks.of(problem, lengths, reset)
    h_before = _one_step_back(problem, y.reshape(T, B, D, P), h0, lengths, masks)
    memory = None
    if cells is not None and c0 is not None:
        memory = (cells.reshape(T, D, H, B), c0.transpose(0, 2, 1))
    kept = max(problem.G, SAVED[problem.cell])  # a GRU's candidate has two gradients: of its input, of its state's part
    dz = np.empty((T, D, kept, H, B), x.dtype)
    projection = (np.empty((T, D, P, B), x.dtype), np.empty((T, D, H, B), x.dtype)) if problem.projected else None
    with _blas.threads_of_torch():
        _walk_back(
            problem,
            masks,
            dy.reshape(T, B, D, P).transpose(0, 2, 3, 1),
            (dh_n.transpose(0, 2, 1), None if dc_n is None else dc_n.transpose(0, 2, 1)),
            x,
            weights,
            (y.reshape(T, B, D, P), h_before),
            None if gates is None else gates.reshape(T, D, SAVED[problem.cell], H, B),
            memory,
            dz,
            projection,
            (dh0.transpose(0, 2, 1), None if dc0 is None else dc0.transpose(0, 2, 1)),
        )
        _products(problem, x, weights, h_before, dz, projection, dx, dweights)


def _one_step_back(problem: RnnProblem, states: Array, first: Array, lengths: Array | None, masks: Masks) -> Array:
    """``[T, B, D, n]``: the state that each step started from; zeros behind a sequence's end."""
    before = np.empty_like(states)
    for d in range(problem.D):
        if d == 0:
            before[1:, :, d], before[:1, :, d] = states[:-1, :, d], first[d]
        else:
            before[:-1, :, d], before[-1:, :, d] = states[1:, :, d], first[d]
            if lengths is not None:
                b = np.flatnonzero(lengths > 0)
                before[lengths[b] - 1, b, d] = first[d][b]
        for mask in (masks.restarted, masks.ended):
            if mask is not None:
                before[:, :, d][mask[_span(problem, d, 0, problem.T), d, 0]] = 0
    return before


def _cells_before(memory: tuple[Array, Array], masks: Masks, first: int, stop: int) -> Array:
    """``[steps, D, H, B]``: the cells that these steps started from."""
    cells, c0 = memory
    restarted = None if masks.restarted is None else masks.restarted[first:stop]
    if first > 0 and (restarted is None or not restarted.any()):
        return cells[first - 1 : stop - 1]
    before = np.concatenate([cells[first - 1 : first] if first else c0[None], cells[first : stop - 1]])
    if restarted is not None:
        np.copyto(before, 0, where=restarted)
    return before


def _steps(problem: RnnProblem, itemsize: int) -> Iterator[tuple[int, int]]:
    """Blocks of steps, last one first."""
    step_bytes = problem.B * problem.D * (problem.G + 1) * problem.H * itemsize
    size = max(1, _BLOCK_BYTES // max(1, step_bytes))
    for stop in range(problem.T, 0, -size):
        yield max(0, stop - size), stop


def _batch_last(problem: RnnProblem, a: Array, first: int, stop: int) -> Array:
    """Of ``[T, B, D, n]`` what these steps have, ``[steps, D, n, B]``: a copy."""
    copy = np.empty((stop - first, problem.D, a.shape[3], problem.B), a.dtype)
    for d in range(problem.D):
        copy[:, d] = a[_span(problem, d, first, stop), :, d].transpose(0, 2, 1)
    return copy


def _walk_back(
    problem: RnnProblem,
    masks: Masks,
    dy: Array,
    dlast: tuple[Array, Any],
    x: Array,
    weights: Weights,
    hidden: tuple[Array, Array],
    gates: Array | None,
    memory: tuple[Array, Array] | None,
    dz: Array,
    projection: tuple[Array, Array] | None,
    dfirst: tuple[Array, Any],
) -> None:
    D, H, B = problem.D, problem.H, problem.B
    lstm, gru = problem.cell == "lstm", problem.cell == "gru"
    matmul, multiply, add = np.matmul, np.multiply, np.add
    dh, back = (np.array(dlast[0], order="C") for _ in range(2))
    dc = np.zeros((D, H, B), dz.dtype) if dlast[1] is None else np.array(dlast[1], order="C")
    product = np.empty((D, H, B), dz.dtype)
    dy_steps = _by_step(problem, dy)
    w = _cut(_gate_rows(problem, weights.w_hh, of_state=True).transpose(0, 2, 1), B)
    again = _Recompute(problem, x, weights, hidden[1]) if gates is None and problem.G > 1 else None
    for first, stop in _steps(problem, dz.itemsize):
        saved: Any = None if gates is None else gates[first:stop]
        if again is not None:
            saved = again.gates(first, stop)
        slopes: Any
        if memory is not None:
            slopes = _lstm_slopes(saved, memory[0][first:stop], _cells_before(memory, masks, first, stop))
            if projection is not None:
                multiply(saved[:, :, 2], np.tanh(memory[0][first:stop]), projection[1][first:stop])
        elif gru:
            slopes = _gru_slopes(saved, _batch_last(problem, hidden[1], first, stop))
        else:
            h = _batch_last(problem, hidden[0], first, stop)
            slopes = ((1 - h * h if problem.cell == "tanh" else (h > 0).astype(h.dtype))[:, :, None],)
        for step in range(stop - 1, first - 1, -1):
            s, row = step - first, dz[step]
            ended = masks.ended[step] if masks.ended is not None and masks.any_ended[step] else None
            kept = None if ended is None else (dh.copy(), dc.copy())
            for d, incoming in enumerate(dy_steps):
                add(dh[d], incoming[step], dh[d])
            through = dh
            if projection is not None:
                projection[0][step] = dh
                through = matmul(weights.w_hr.swapaxes(1, 2), dh)
            if lstm:
                k_c, k_gates, k_o, k_f = slopes
                multiply(through, k_c[s], product)
                add(dc, product, dc)
                multiply(through, k_o[s], row[:, 2])
                multiply(dc[:, None], k_gates[s, :, :2], row[:, :2])
                multiply(dc, k_gates[s, :, 2], row[:, 3])
                multiply(dc, k_f[s], dc)
            else:
                multiply(through[:, None], slopes[0][s], row)
            if ended is not None:
                np.copyto(row, 0, where=ended[:, None])
                if projection is not None:
                    np.copyto(projection[0][step], 0, where=ended)
            # a GRU's first kept gradient is the candidate's as the input has it; the state's part comes last
            of_state = row[:, 1:] if gru else row
            matmul(w, of_state.reshape(D, 1, w.shape[3], B), back.reshape(D, *w.shape[1:3], B))
            if gru:
                multiply(dh, slopes[1][s], product)
                add(back, product, back)
            if kept is not None:
                np.copyto(back, kept[0], where=ended)
                np.copyto(dc, kept[1], where=ended)
            if masks.any_restarted[step] and masks.restarted is not None:
                np.copyto(back, 0, where=masks.restarted[step])
                np.copyto(dc, 0, where=masks.restarted[step])
            dh, back = back, dh
    np.copyto(dfirst[0], dh)
    if dfirst[1] is not None:
        np.copyto(dfirst[1], dc)


def _gate_rows(problem: RnnProblem, rows: Array, of_state: bool) -> Array:
    """Rows of weights ``[D, G·H, n]`` in the order in which gradients of gates are kept.

    An LSTM's are i, f, o, g; a GRU's n, r, z for the input, and r, z and its state's part of n for the state.
    """
    H = problem.H
    if problem.cell == "lstm":
        return np.concatenate([rows[:, : 2 * H], rows[:, 3 * H :], rows[:, 2 * H : 3 * H]], axis=1)
    if problem.cell == "gru" and not of_state:
        return np.concatenate([rows[:, 2 * H :], rows[:, : 2 * H]], axis=1)
    return rows


def _from_gate_rows(problem: RnnProblem, kept: Array, target: Array, of_state: bool) -> None:
    """The inverse of ``_gate_rows``, into the target."""
    H = problem.H
    if problem.cell == "lstm":
        target[:, : 2 * H], target[:, 3 * H :], target[:, 2 * H : 3 * H] = np.split(kept, [2 * H, 3 * H], axis=1)
    elif problem.cell == "gru" and not of_state:
        target[:, 2 * H :], target[:, : 2 * H] = np.split(kept, [H], axis=1)
    else:
        np.copyto(target, kept)


class _Recompute:
    """The gates of a block of steps from what the forward kept anyway: the state before each step is known."""

    def __init__(self, problem: RnnProblem, x: Array, weights: Weights, h_before: Array) -> None:
        self.problem, self.x, self.h_before = problem, x, h_before
        self.w_ih = _in_walk_order(problem, weights.w_ih)
        self.w_hh, self.bias = _recurrent_weights(problem, weights)

    def gates(self, first: int, stop: int) -> Array:
        """``[steps, D, 4, H, B]`` in the order in which a forward keeps them."""
        saved = np.empty((stop - first, self.problem.D, 4, self.problem.H, self.problem.B), self.x.dtype)
        for d in range(self.problem.D):
            self._direction(d, _span(self.problem, d, first, stop), saved[:, d])
        return saved

    def _direction(self, d: int, times: slice, saved: Array) -> None:
        problem, n, half = self.problem, len(saved), saved.dtype.type(0.5)
        H, B = problem.H, problem.B
        inputs = np.ascontiguousarray(self.x[times]).reshape(n * B, problem.I)
        states = self.h_before[times, :, d].reshape(n * B, problem.P)
        from_input = self.w_ih[d] @ inputs.T
        z = self.w_hh[d][:, :-1] @ states.T
        z += self.w_hh[d][:, -1:]
        lstm = problem.cell == "lstm"
        summed = z if lstm else z[: 2 * H]
        summed += from_input[: len(summed)]
        np.tanh(summed, summed)
        sigmoids = z[: (problem.G - 1) * H]
        sigmoids *= half
        sigmoids += half
        if not lstm:
            candidate = from_input[2 * H :]
            candidate += z[:H] * z[2 * H :]
            if self.bias is not None:
                candidate += self.bias[d]
            np.tanh(candidate, candidate)
            z = np.concatenate([candidate, z])
        np.copyto(saved, z.reshape(4, H, n, B).transpose(2, 0, 1, 3))


def _lstm_slopes(gates: Array, c: Array, c_before: Array) -> tuple[Array, Array, Array, Array]:
    """Of ``c`` from ``h``; of the inputs of i, f, g from ``c``; of o's input from ``h``; of the last ``c`` from c."""
    i, f, o, g = (gates[:, :, k] for k in range(4))
    # σ' = σ(1 - σ) of i, f, o at once, then what each is multiplied by
    slopes = np.subtract(1, gates[:, :, :3])
    np.multiply(slopes, gates[:, :, :3], slopes)
    k_c = np.tanh(c)
    k_o = np.multiply(slopes[:, :, 2], k_c)
    np.multiply(k_c, k_c, k_c)
    np.subtract(1, k_c, k_c)
    np.multiply(k_c, o, k_c)
    of_i, of_f, of_g = (slopes[:, :, k] for k in range(3))
    np.multiply(of_i, g, of_i)
    np.multiply(of_f, c_before, of_f)
    np.multiply(g, g, of_g)
    np.subtract(1, of_g, of_g)
    np.multiply(of_g, i, of_g)
    return k_c, slopes, k_o, f


def _gru_slopes(gates: Array, h_before: Array) -> tuple[Array, Array]:
    """Of (n, r, z, n's part from the state) from ``h``; of the last ``h`` from ``h``."""
    n, r, z, from_state = (gates[:, :, k] for k in range(4))
    slopes = np.empty(gates.shape, gates.dtype)
    of_n, of_r, of_z, of_state = (slopes[:, :, k] for k in range(4))
    np.multiply(n, n, of_n)
    np.subtract(1, of_n, of_n)
    of_n *= 1 - z
    np.multiply(of_n, r, of_state)
    np.multiply(of_state, 1 - r, of_r)
    of_r *= from_state
    np.subtract(h_before, n, of_z)
    of_z *= z * (1 - z)
    return slopes, z


def _products(
    problem: RnnProblem,
    x: Array,
    weights: Weights,
    h_before: Array,
    dz: Array,
    projection: tuple[Array, Array] | None,
    dx: Array | None,
    dweights: Weights | None,
) -> None:
    """The gradients that are sums over all steps: a product or two each, behind the walk."""
    D, G, H, I, P = problem.D, problem.G, problem.H, problem.I, problem.P  # noqa: E741
    rows = problem.T * problem.B
    by_gate = _columns(dz.reshape(problem.T, D, dz.shape[2] * H, problem.B), in_time=True)
    # of the input's and of the state's part; both directions make one product with the input, unless a GRU's lie apart
    of_input, of_state = by_gate[:, : G * H], by_gate[:, -G * H :]
    if dx is not None:
        w_ih = _gate_rows(problem, weights.w_ih, of_state=False)
        np.matmul(of_input.reshape(D * G * H, rows).T, w_ih.reshape(-1, I), dx.reshape(rows, I))
    if dweights is None:
        return
    flat_x = np.ascontiguousarray(x).reshape(rows, I)
    dw_ih = np.matmul(of_input.reshape(D * G * H, rows), flat_x).reshape(D, G * H, I)
    _from_gate_rows(problem, dw_ih, dweights.w_ih, of_state=False)
    if dweights.bias is not None:
        _from_gate_rows(problem, of_input.sum(axis=2), dweights.bias, of_state=False)
    states = h_before.reshape(rows, D, P)
    for d in range(D):
        dw_hh = np.matmul(of_state[d], states[:, d])
        _from_gate_rows(problem, dw_hh[None], dweights.w_hh[d : d + 1], of_state=True)
    if dweights.bias_n is not None:
        np.sum(by_gate[:, -H:], axis=2, out=dweights.bias_n)
    if projection is not None and dweights.w_hr is not None:
        dh, m = (_columns(a, in_time=False) for a in projection)
        np.matmul(dh, m.transpose(0, 2, 1), dweights.w_hr)


def _columns(a: Array, in_time: bool) -> Array:
    """``[T, D, n, B]`` in the order of the steps as ``[D, n, T·B]``, the operand of a sum over all steps."""
    T, D, n, B = a.shape
    columns = np.empty((D, n, T, B), a.dtype)
    for d in range(D):
        steps = a[::-1, d] if d and in_time else a[:, d]
        _copy(columns[d], steps.transpose(1, 0, 2))
    return columns.reshape(D, n, T * B)


def _copy(target: Array, source: Array) -> None:
    def rows(start: int, stop: int) -> None:
        target[start:stop] = source[start:stop]

    parallel_for(len(target), rows, bytes_moved=2 * target.nbytes)
