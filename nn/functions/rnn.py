"""Gradients of a recurrent layer: one opaque op each way, and gradients of gradients through a plain walk in torch."""

from __future__ import annotations

from typing import Any

import torch

from ...kernels import rnn as kernels
from ._function import Function

Tensors = tuple[torch.Tensor, ...]


class Rnn(Function):
    """x, h0, c0, w_ih, w_hh, bias, bias_n, w_hr, lengths, reset, cell, save; see ``kernels.rnn`` for shapes."""

    @staticmethod
    def forward(  # named one by one: torch.compile takes the first of *args for a context
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
    ) -> Tensors:
        return kernels.forward(x, h0, c0, w_ih, w_hh, bias, bias_n, w_hr, lengths, reset, cell, save)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        *operands, ctx.cell, _ = inputs
        y, _, _, gates, cells = output
        ctx.mark_non_differentiable(gates, cells)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, y, gates, cells)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        *operands, y, gates, cells = ctx.saved_tensors
        h0, c0 = operands[1:3]
        needs = ctx.needs_input_grad
        outputs = (y, h0, c0)
        dy, dh_n, dc_n = (
            torch.zeros_like(o) if g is None and o is not None else g
            for g, o in zip(gradients[:3], outputs, strict=True)
        )
        results = RnnBackward.call(
            dy,
            dh_n,
            dc_n if ctx.cell == "lstm" else None,
            *operands,
            y,
            gates,
            cells,
            ctx.cell,
            needs[0],
            any(needs[3:8]),
        )
        wanted = [r if need else None for r, need in zip(results, needs, strict=False)]
        return *wanted, None, None, None, None


class RnnBackward(Function):
    """dy, dh_n, dc_n, the ten operands, y, gates, cells, cell, needs_x, needs_weights."""

    @staticmethod
    def forward(
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
    ) -> Tensors:
        operands = (x, h0, c0, w_ih, w_hh, bias, bias_n, w_hr, lengths, reset)
        return kernels.backward(dy, dh_n, dc_n, *operands, y, gates, cells, cell, needs_x, needs_weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        *tensors, _, _, _, ctx.cell, ctx.needs_x, ctx.needs_weights = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        # The gates that the forward kept are functions of the operands too, so the second derivative starts from the
        # operands again: the gradient of the plain walk, differentiated.
        *tensors, lengths, reset = ctx.saved_tensors
        present = [i for i, t in enumerate(tensors) if t is not None]
        wanted = [0] * ctx.needs_x + [1] + [2] * (tensors[5] is not None)
        wanted += [3 + i for i, t in enumerate(tensors[6:]) if t is not None] if ctx.needs_weights else []

        def first_derivative(*values: torch.Tensor) -> Tensors:
            given: list[Any] = [None] * len(tensors)
            for i, value in zip(present, values, strict=True):
                given[i] = value
            operands = [i for i in present if i >= 3]

            def walk(*inner: torch.Tensor) -> Tensors:
                all_operands: list[Any] = [None] * 8
                for i, value in zip(operands, inner, strict=True):
                    all_operands[i - 3] = value
                return plain(*[ctx.cell, *all_operands, lengths, reset])

            _, pullback, *_ = torch.func.vjp(walk, *(given[i] for i in operands))
            results = dict(zip(operands, pullback(tuple(g for g in given[:3] if g is not None)), strict=True))
            return tuple(results[3 + k] for k in wanted)

        _, pullback, *_ = torch.func.vjp(first_derivative, *(tensors[i] for i in present))
        second: list[Any] = [None] * 19
        for i, value in zip(present, pullback(tuple(gradients[k] for k in wanted)), strict=True):
            second[i] = value if ctx.needs_input_grad[i] else None
        return tuple(second)


class Stack(Function):
    """The parameters of two directions, ``[2, ...]``."""

    @staticmethod
    def forward(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return kernels.stack(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: Tensors, output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Tensors:
        return gradient[0], gradient[1]


def stack_directions(tensors: list[torch.Tensor]) -> torch.Tensor:
    """``[D, ...]`` of one tensor a direction."""
    if len(tensors) == 1:
        return tensors[0].unsqueeze(0)
    return torch.stack(tensors) if torch.compiler.is_compiling() else Stack.call(*tensors)


def plain(
    cell: str,
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
) -> Tensors:
    """The same function in torch's own differentiable operations, a step at a time: y, h_n and an LSTM's c_n."""
    T = x.shape[0]
    H = w_ih.shape[1] // kernels.CELLS[cell]
    alive = None if lengths is None else torch.arange(T, device=x.device)[:, None] < lengths
    if alive is not None and reset is not None:
        reset = reset & alive
    outputs, last = [], []
    for d in range(w_ih.shape[0]):
        from_input = torch.nn.functional.linear(x, w_ih[d], None if bias is None else bias[d])
        h, c = h0[d], None if c0 is None else c0[d]
        by_time: list[torch.Tensor] = [h] * T
        for t in range(T) if d == 0 else range(T - 1, -1, -1):
            restart = t if d == 0 else t + 1
            if reset is not None and restart < T:
                h = torch.where(reset[restart][:, None], 0, h)
                c = None if c is None else torch.where(reset[restart][:, None], 0, c)
            h_new, c_new = _step(cell, H, from_input[t], h @ w_hh[d].T, h, c, None if bias_n is None else bias_n[d])
            if w_hr is not None:
                h_new = h_new @ w_hr[d].T
            going = None if alive is None else alive[t][:, None]
            h = h_new if going is None else torch.where(going, h_new, h)
            if c is not None and c_new is not None:
                c = c_new if going is None else torch.where(going, c_new, c)
            by_time[t] = h if going is None else torch.where(going, h, 0)
        outputs.append(torch.stack(by_time))
        last.append((h,) if c is None else (h, c))
    return torch.cat(outputs, dim=2), *(torch.stack(states) for states in zip(*last, strict=True))


def _step(
    cell: str,
    H: int,
    from_input: torch.Tensor,
    from_state: torch.Tensor,
    h: torch.Tensor,
    c: torch.Tensor | None,
    bias_n: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if cell == "gru":
        r, z = (from_input + from_state)[:, : 2 * H].sigmoid().chunk(2, dim=1)
        hidden = from_state[:, 2 * H :] if bias_n is None else from_state[:, 2 * H :] + bias_n
        n = (from_input[:, 2 * H :] + r * hidden).tanh()
        return n + z * (h - n), None
    gates = from_input + from_state
    if c is None:
        return gates.tanh() if cell == "tanh" else gates.relu(), None
    i, f, g, o = gates.chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def rnn(
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
    activation_memory: str,
) -> Tensors:
    """One layer through time, in one direction or both: y, h_n and an LSTM's c_n; see ``kernels.rnn`` for shapes.

    What lies behind a sequence's end is never read into a result or a gradient. With ``activation_memory="recompute"``
    the gates are not kept between forward and backward.
    """
    if lengths is not None:
        behind = torch.arange(x.shape[0], device=x.device)[:, None] >= lengths
        x = x.masked_fill(behind[:, :, None], 0)
    operands = (x, h0, c0, w_ih, w_hh, bias, bias_n, w_hr)
    save = "gates" if activation_memory == "store" else "states"
    if not torch._C._are_functorch_transforms_active() and not (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    ):
        save = "nothing"
    y, h_n, c_n, _, _ = Rnn.call(*operands, lengths, reset, cell, save)
    return (y, h_n, c_n) if cell == "lstm" else (y, h_n)
