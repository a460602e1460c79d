"""Recurrent layers in NumPy, backward: a walk from the last step to the first, then the products for the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ... import autotune
from .. import _blas
from .._arrays import Array
from .._parallel import matmul, parallel_for, quiet
from .._workspace import workspace
from . import _numpy_space as space
from ._numpy_layout import (
    Masks,
    by_step,
    cut,
    from_gate_rows,
    gate_rows,
    in_walk_order,
    product_of_a_step,
    recurrent_weights,
    span,
)
from ._problem import SAVED, RnnProblem, Weights

# Steps whose derivatives are prepared together: what they fill should stay in the L2 cache.
_BLOCK_BYTES = 512 * 1024


def _default(_: space.Walk) -> autotune.Config:
    return {"BLOCK_BYTES": _BLOCK_BYTES}


BACKWARD = space.tunable(_default)
TUNABLES = (BACKWARD,)


@quiet
def gradients(
    problem: RnnProblem,
    dy: Array,
    dh_n: Array,
    dc_n: Array | None,
    x: Array,
    h0: Array,
    c0: Array | None,
    w_ih: Array,
    w_hh: Array,
    bias: Array | None,
    bias_n: Array | None,
    w_hr: Array | None,
    lengths: Array | None,
    reset: Array | None,
    y: Array,
    gates: Array | None,
    cells: Array | None,
    dx: Array | None,
    dh0: Array,
    dc0: Array | None,
    dw_ih: Array | None,
    dw_hh: Array | None,
    dbias: Array | None,
    dbias_n: Array | None,
    dw_hr: Array | None,
) -> None:
    """The gradients of everything; without ``gates`` they are computed again, a block of steps at a time.

    Extra memory: the gradient of the gates of all steps and directions, twice (as the walk writes it and as the
    products read it), and the states one step back.
    """
    weights = Weights(w_ih, w_hh, bias, bias_n, w_hr)
    T, B, D, H, P = problem.T, problem.B, problem.D, problem.H, problem.P
    masks = Masks.of(problem, lengths, reset)
    h_before = _one_step_back(problem, y.reshape(T, B, D, P), h0, lengths, masks)
    memory = None
    if cells is not None and c0 is not None:
        memory = (cells.reshape(T, D, H, B), c0.transpose(0, 2, 1))
    kept = max(problem.G, SAVED[problem.cell])  # a GRU's candidate has two gradients: of its input, of its state's part
    dz = workspace("rnn gradient of the gates", (T, D, kept, H, B), x.dtype)
    projection = (np.empty((T, D, P, B), x.dtype), np.empty((T, D, H, B), x.dtype)) if problem.projected else None
    with _blas.one_thread():
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
        dweights = None if dw_ih is None else Weights(dw_ih, dw_hh, dbias, dbias_n, dw_hr)
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
                before[:, :, d][mask[span(problem, d, 0, problem.T), d, 0]] = 0
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


def _steps(problem: RnnProblem, itemsize: int, stored: bool) -> Iterator[tuple[int, int]]:
    """Blocks of steps, last one first."""
    step_bytes = space.bytes_of_a_step(problem, itemsize)
    block_bytes = _BLOCK_BYTES
    if problem.T > 1 and problem.T * step_bytes > space.LEAST_BLOCK_BYTES:
        walk = space.Walk(problem, stored, itemsize, autotune.cpu())
        block_bytes = autotune.resolve(BACKWARD, walk)["BLOCK_BYTES"]
    size = max(1, block_bytes // step_bytes)
    for stop in range(problem.T, 0, -size):
        yield max(0, stop - size), stop


def _batch_last(problem: RnnProblem, a: Array, first: int, stop: int) -> Array:
    """Of ``[T, B, D, n]`` what these steps have, ``[steps, D, n, B]``: a copy."""
    copy = np.empty((stop - first, problem.D, a.shape[3], problem.B), a.dtype)
    for d in range(problem.D):
        copy[:, d] = a[span(problem, d, first, stop), :, d].transpose(0, 2, 1)
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
    multiply, add, step_product = np.multiply, np.add, product_of_a_step(problem)
    dh, back = (np.array(dlast[0], order="C") for _ in range(2))
    dc = np.zeros((D, H, B), dz.dtype) if dlast[1] is None else np.array(dlast[1], order="C")
    product, of_output = (np.empty((D, H, B), dz.dtype) for _ in range(2))
    dy_steps = by_step(problem, dy)
    w = cut(gate_rows(problem, weights.w_hh, of_state=True).transpose(0, 2, 1), B)
    again = _Recompute(problem, x, weights, hidden[1]) if gates is None and problem.G > 1 else None
    for first, stop in _steps(problem, dz.itemsize, again is None):
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
                through = step_product(weights.w_hr.swapaxes(1, 2), dh, of_output)
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
            step_product(w, of_state.reshape(D, 1, w.shape[3], B), back.reshape(D, *w.shape[1:3], B))
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


class _Recompute:
    """The gates of a block of steps from what the forward kept anyway: the state before each step is known."""

    def __init__(self, problem: RnnProblem, x: Array, weights: Weights, h_before: Array) -> None:
        self.problem, self.x, self.h_before = problem, x, h_before
        self.w_ih = in_walk_order(problem, weights.w_ih)
        self.w_hh, self.bias = recurrent_weights(problem, weights)

    def gates(self, first: int, stop: int) -> Array:
        """``[steps, D, 4, H, B]`` in the order in which a forward keeps them."""
        saved = np.empty((stop - first, self.problem.D, 4, self.problem.H, self.problem.B), self.x.dtype)
        for d in range(self.problem.D):
            self._direction(d, span(self.problem, d, first, stop), saved[:, d])
        return saved

    def _direction(self, d: int, times: slice, saved: Array) -> None:
        problem, n, half = self.problem, len(saved), saved.dtype.type(0.5)
        H, B = problem.H, problem.B
        inputs = np.ascontiguousarray(self.x[times]).reshape(n * B, problem.I)
        states = self.h_before[times, :, d].reshape(n * B, problem.P)
        from_input, z = (np.empty((len(w), n * B), saved.dtype) for w in (self.w_ih[d], self.w_hh[d]))
        matmul(self.w_ih[d], inputs.T, from_input)
        matmul(self.w_hh[d][:, :-1], states.T, z)
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
    by_gate = _columns(
        "gradient of the gates by gate", dz.reshape(problem.T, D, dz.shape[2] * H, problem.B), in_time=True
    )
    # of the input's and of the state's part; both directions make one product with the input, unless a GRU's lie apart
    of_input, of_state = by_gate[:, : G * H], by_gate[:, -G * H :]
    if dx is not None:
        w_ih = gate_rows(problem, weights.w_ih, of_state=False)
        matmul(of_input.reshape(D * G * H, rows).T, w_ih.reshape(-1, I), dx.reshape(rows, I))
    if dweights is None:
        return
    flat_x = np.ascontiguousarray(x).reshape(rows, I)
    dw_ih = np.empty((D, G * H, I), x.dtype)
    matmul(of_input.reshape(D * G * H, rows), flat_x, dw_ih.reshape(D * G * H, I))
    from_gate_rows(problem, dw_ih, dweights.w_ih, of_state=False)
    if dweights.bias is not None:
        from_gate_rows(problem, of_input.sum(axis=2), dweights.bias, of_state=False)
    states = h_before.reshape(rows, D, P)
    dw_hh = matmul(of_state, states.transpose(1, 0, 2), np.empty_like(dweights.w_hh))
    from_gate_rows(problem, dw_hh, dweights.w_hh, of_state=True)
    if dweights.bias_n is not None:
        np.sum(by_gate[:, -H:], axis=2, out=dweights.bias_n)
    if projection is not None and dweights.w_hr is not None:
        dh, m = (_columns(f"projection {i}", a, in_time=False) for i, a in enumerate(projection))
        matmul(dh, m.transpose(0, 2, 1), dweights.w_hr)


def _columns(name: str, a: Array, in_time: bool) -> Array:
    """``[T, D, n, B]`` in the order of the steps as ``[D, n, T·B]``, the operand of a sum over all steps."""
    T, D, n, B = a.shape
    columns = workspace(f"rnn {name}", (D, n, T, B), a.dtype)
    for d in range(D):
        steps = a[::-1, d] if d and in_time else a[:, d]
        _copy(columns[d], steps.transpose(1, 0, 2))
    return columns.reshape(D, n, T * B)


def _copy(target: Array, source: Array) -> None:
    def rows(start: int, stop: int) -> None:
        target[start:stop] = source[start:stop]

    parallel_for(len(target), rows, bytes_moved=2 * target.nbytes)
