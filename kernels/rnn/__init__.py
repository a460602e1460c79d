"""Recurrent layers (RNN, GRU, LSTM): the contract every backend implements, the ops, and the dispatch.

One op walks one layer through time, in one direction or both. In it the input of all steps and directions is one matrix
product, the walk itself waits for nothing but the step before, and the gradients of the weights are products behind the
walk: sums in a fixed order, no atomics. Padded sequences and packed ones (which are padded first) run the same op.

A backend is a module with two functions that write into preallocated arrays:

- ``forward(problem, x, h0, c0, weights, lengths, reset, y, h_n, c_n, gates, cells)``
- ``gradients(problem, dy, dh_n, dc_n, x, h0, c0, *weights, lengths, reset, y, gates, cells, dx, dh0, dc0, *dweights)``

with, for T steps, B sequences, D directions, I inputs, H units, P outputs (H, or an LSTM's projection), G gates:

- ``x [T, B, I]``; ``y [T, B, D·P]``, zero behind a sequence's end; ``h0``, ``h_n [D, B, P]``; ``c0``, ``c_n [D, B, H]``
- ``weights``, gates in torch's order (i, f, g, o or r, z, n): ``w_ih [D, G·H, I]``, ``w_hh [D, G·H, P]``,
  ``w_hr [D, P, H]``, ``bias [D, G·H]`` (torch's two added; without the state's part of a GRU's candidate, which is
  ``bias_n [D, H]``)
- ``lengths [B]`` int64 or ``None``: a sequence's steps; the caller has zeroed ``x`` behind them
- ``reset [T, B]`` bool or ``None``: the sequence starts anew, from zeros, at this step
- ``gates`` (``T·B·D·4·H`` elements) and ``cells`` (``T·B·D·H``), flat: what a backward wants to know, of an LSTM
  i, f, g, o and c, of a GRU n, r, z and the state's part of n. Without ``gates`` it computes them again from ``x``,
  ``y`` and ``cells``: the state before each step is known by then, so they are products over all steps, no new walk.

The order inside ``gates`` and ``cells`` is the backend's own, and so is that of its packed weights. A GPU kernel has
units major and gates minor, ``[T, D, B, H, 4]`` and ``[H, 4]`` for a column of the weights: a thread reads the four
gates of its unit as 16 bytes of float32. NumPy has the batch innermost, ``[T, D, 4, H, B]``: a gate is a run of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .._arrays import as_array, compute_dtype, empty, rounded, run
from .._ops import define, one_by_one
from ..backends import Operation
from ._problem import CELLS, SAVED, RnnProblem, Weights

__all__ = ["CELLS", "OPERATION", "RnnProblem", "backward", "forward", "make_problem", "stack"]

OPERATION = Operation("rnn", __name__, {"numpy": "._numpy"})


def make_problem(cell: str, x: torch.Tensor, w_ih: torch.Tensor, w_hh: torch.Tensor) -> RnnProblem:
    """The problem that ``x [T, B, I]`` and the stacked weights make."""
    T, B, width = x.shape
    D, rows, _ = w_ih.shape
    return RnnProblem(cell, T, B, D, width, rows // CELLS[cell], w_hh.shape[2])


def fill_inputs(function: str, problem: RnnProblem, inputs: Sequence[torch.Tensor | None]) -> None:
    """Makes the tuner's inputs of a backward ones that a forward could have left: gates between 0 and 1, weights that
    keep gradients in bounds, whole sequences of which none starts anew."""
    generator = torch.Generator().manual_seed(1)
    for tensor in inputs:
        if tensor is not None and tensor.dtype is torch.bool:
            tensor.zero_()
        elif tensor is not None and tensor.dtype is torch.int64:
            tensor.fill_(problem.T)
    if function == "gradients":
        w_ih, w_hh, gates = inputs[6], inputs[7], inputs[-2]
        for weights in (w_ih, w_hh):
            assert weights is not None
            weights.mul_(0.5 / problem.H**0.5)
        if gates is not None:
            gates.copy_(torch.rand(gates.shape, generator=generator))


def _check_lengths(problem: RnnProblem, lengths: torch.Tensor | None) -> None:
    if lengths is not None and lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= problem.T:
        raise RuntimeError(
            f"lengths must be between 0 and the input's {problem.T} steps, but lengths is {lengths.tolist()}"
        )


def _maybe(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else as_array(tensor)


def _weights(
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    bias: torch.Tensor | None,
    bias_n: torch.Tensor | None,
    w_hr: torch.Tensor | None,
) -> Weights:
    return Weights(as_array(w_ih), as_array(w_hh), _maybe(bias), _maybe(bias_n), _maybe(w_hr))


def _outputs(problem: RnnProblem, dtype: torch.dtype, device: torch.device, save: str) -> list[torch.Tensor]:
    """y, h_n, c_n, gates, cells; empty where the cell or the mode has none."""
    T, B, D, H, P = problem.T, problem.B, problem.D, problem.H, problem.P
    lstm = problem.cell == "lstm"
    kept = SAVED[problem.cell] if save == "gates" else 0
    shapes: list[tuple[int, ...]] = [
        (T, B, D * P),
        (D, B, P),
        (D, B, H) if lstm else (0,),
        (T * B * D * kept * H,),
        (T * B * D * H if lstm and save != "nothing" else 0,),
    ]
    return [empty(shape, dtype, device) for shape in shapes]


def _forward(
    x: torch.Tensor,
    h0: torch.Tensor,
    c0: torch.Tensor | None,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    bias: torch.Tensor | None,
    bias_n: torch.Tensor | None,
    w_hr: torch.Tensor | None,
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    cell: str,
    save: str,
) -> tuple[torch.Tensor, ...]:
    problem = make_problem(cell, x, w_ih, w_hh)
    _check_lengths(problem, lengths)
    outputs = _outputs(problem, compute_dtype(x.dtype), x.device, save)
    y, h_n, c_n, gates, cells = (t.numpy() for t in outputs)
    lstm = cell == "lstm"
    OPERATION.implementation(x.device.type).forward(
        problem,
        as_array(x),
        as_array(h0),
        _maybe(c0),
        _weights(w_ih, w_hh, bias, bias_n, w_hr),
        _maybe(lengths),
        _maybe(reset),
        y,
        h_n,
        c_n if lstm else None,
        gates if save == "gates" and SAVED[cell] else None,
        cells if save != "nothing" and lstm else None,
    )
    return tuple(rounded(t, x.dtype) for t in outputs)


def _forward_fake(
    x: torch.Tensor,
    h0: torch.Tensor,
    c0: torch.Tensor | None,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    bias: torch.Tensor | None,
    bias_n: torch.Tensor | None,
    w_hr: torch.Tensor | None,
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    cell: str,
    save: str,
) -> tuple[torch.Tensor, ...]:
    return tuple(_outputs(make_problem(cell, x, w_ih, w_hh), x.dtype, x.device, save))


def _gradients(
    x: torch.Tensor,
    h0: torch.Tensor,
    c0: torch.Tensor | None,
    parameters: list[torch.Tensor | None],
    needs_x: bool,
    needs_weights: bool,
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    """dx, dh0, dc0, and one for each of the five parameters; empty where it is not wanted or does not exist."""
    wanted = [x if needs_x else None, h0, c0, *(p if needs_weights else None for p in parameters)]
    return [empty((0,) if t is None else t.shape, dtype, x.device) for t in wanted]


def _backward(
    dy: torch.Tensor,
    dh_n: torch.Tensor,
    dc_n: torch.Tensor | None,
    x: torch.Tensor,
    h0: torch.Tensor,
    c0: torch.Tensor | None,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    bias: torch.Tensor | None,
    bias_n: torch.Tensor | None,
    w_hr: torch.Tensor | None,
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    y: torch.Tensor,
    gates: torch.Tensor,
    cells: torch.Tensor,
    cell: str,
    needs_x: bool,
    needs_weights: bool,
) -> tuple[torch.Tensor, ...]:
    problem = make_problem(cell, x, w_ih, w_hh)
    parameters = [w_ih, w_hh, bias, bias_n, w_hr]
    results = _gradients(x, h0, c0, parameters, needs_x, needs_weights, x.dtype)
    exists = [needs_x, True, c0 is not None, *(needs_weights and p is not None for p in parameters)]
    lstm = cell == "lstm"
    run(
        OPERATION.implementation(x.device.type),
        "gradients",
        problem,
        (
            dy, dh_n, dc_n if lstm else None, x, h0, c0, *parameters, lengths, reset,
            y, gates if gates.numel() else None, cells if lstm else None,
        ),
        [result if there else None for result, there in zip(results, exists, strict=True)],
    )  # fmt: skip
    return tuple(results)


def _backward_fake(
    dy: torch.Tensor,
    dh_n: torch.Tensor,
    dc_n: torch.Tensor | None,
    x: torch.Tensor,
    h0: torch.Tensor,
    c0: torch.Tensor | None,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    bias: torch.Tensor | None,
    bias_n: torch.Tensor | None,
    w_hr: torch.Tensor | None,
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    y: torch.Tensor,
    gates: torch.Tensor,
    cells: torch.Tensor,
    cell: str,
    needs_x: bool,
    needs_weights: bool,
) -> tuple[torch.Tensor, ...]:
    return tuple(_gradients(x, h0, c0, [w_ih, w_hh, bias, bias_n, w_hr], needs_x, needs_weights, x.dtype))


def _stack(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    stacked = empty((2, *a.shape), a.dtype, a.device)
    if a.device.type == "cpu" and a.dtype not in (torch.float16, torch.bfloat16):
        for target, source in zip(stacked.numpy(), (a, b), strict=True):
            np.copyto(target, as_array(source))
        return stacked
    return torch.stack((a, b), out=stacked)


_OPERANDS = (
    "Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? bias, Tensor? bias_n, Tensor? w_hr, "
    "Tensor? lengths, Tensor? reset"
)
forward = define(
    f"rnn_forward({_OPERANDS}, str cell, str save) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    one_by_one,
)
backward = define(
    f"rnn_backward(Tensor dy, Tensor dh_n, Tensor? dc_n, {_OPERANDS}, Tensor y, Tensor gates, Tensor cells, str cell, "
    "bool needs_x, bool needs_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    one_by_one,
)
# torch.stack, without torch's threads: on a CPU these wait in a loop for some milliseconds for more to do, on the core
# that the walk wants for its own second thread.
stack = define("rnn_stack(Tensor a, Tensor b) -> Tensor", _stack, lambda a, b: a.new_empty(2, *a.shape), one_by_one)
