"""The problems of the recurrent layers, for the same harness as every other op: layers as functions of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import tilesmith.nn as ours
import torch
from torch import nn as theirs

from .harness import Case

STEPS, BATCH, INPUTS, UNITS = 5, 3, 3, 4
LENGTHS = (2, 5, 3)
RESET = ((0, 1, 0), (0, 0, 0), (1, 0, 1), (1, 0, 0), (0, 1, 0))  # of ended sequences too: it must not matter


@dataclass(frozen=True)
class RnnCase(Case):
    """One layer as a function of its input, its states and its parameters; everything it returns, as one vector."""

    lengths: tuple[int, ...] | None = None
    reset: tuple[tuple[int, ...], ...] | None = None
    layer: str = ""  # which of the layers below
    # a half type rounds the saved output, gates and cells of each step and layer that a gradient passes
    half_roundings: float = 6

    def __str__(self) -> str:
        masks = ("-lengths" if self.lengths else "") + ("-reset" if self.reset else "")
        return super().__str__() + masks

    @property
    def gradient_scale(self) -> float:
        return 1.0  # gates shrink gradients, as activations do

    def ours(self, *tensors: Any) -> Any:
        masks: dict[str, Any] = {}
        if self.lengths is not None:
            masks["lengths"] = torch.tensor(self.lengths)
        if self.reset is not None:
            masks["reset"] = torch.tensor(self.reset, dtype=torch.bool)
        return flat(call(_OURS[self.layer], *tensors, **masks))

    def theirs(self, *tensors: Any) -> Any:
        layer = _THEIRS[self.layer]
        if self.lengths is None and self.reset is None:
            return flat(call(layer, *tensors))
        return flat(in_pieces(layer, self.lengths, self.reset, *tensors))


_OURS: dict[str, theirs.Module] = {}
_THEIRS: dict[str, theirs.Module] = {}


def call(layer: Any, x: torch.Tensor, *rest: torch.Tensor, **masks: Any) -> Any:
    """The layer with these states and parameters in the place of its own."""
    states = 2 if layer.mode == "LSTM" else 1
    parameters = dict(zip((name for name, _ in layer.named_parameters()), rest[states:], strict=True))
    hx = rest[:states] if states > 1 else rest[0]
    return torch.func.functional_call(layer, parameters, (x, hx), masks)


def flat(output: Any) -> torch.Tensor:
    y, states = output
    return torch.cat([t.flatten() for t in (y, *(states if isinstance(states, tuple) else (states,)))])


def in_pieces(
    layer: Any,
    lengths: tuple[int, ...] | None,
    reset: tuple[tuple[int, ...], ...] | None,
    x: torch.Tensor,
    *rest: torch.Tensor,
) -> Any:
    """What lengths and resets mean: torch's layer on each piece of each sequence by itself, put together again."""
    T, B, _ = x.shape
    states = 2 if layer.mode == "LSTM" else 1
    directions = 2 if layer.bidirectional else 1
    outputs, ends = [], []
    for b in range(B):
        length = T if lengths is None else lengths[b]
        starts = [t for t in range(length) if reset is not None and reset[t][b]]
        bounds = sorted({0, *starts, length})
        initial = [h[:, b : b + 1] for h in rest[:states]]
        pieces, end = [], [h.unflatten(0, (-1, directions)) for h in initial]
        for start, stop in pairwise(bounds):
            # forwards the first piece starts from what was given, backwards the last one does
            given = [start == 0 and 0 not in starts, stop == length][:directions]
            hx = [_where(given, h, torch.zeros_like(h), directions) for h in initial]
            y, last = call(layer, x[start:stop, b : b + 1], *hx, *rest[states:])
            pieces.append(y)
            # forwards the last piece ends the sequence, backwards the first one does
            ended = [True, start == 0][:directions]
            last = last if isinstance(last, tuple) else (last,)
            end = [
                _where(ended, h, e.flatten(0, 1), directions).unflatten(0, (-1, directions))
                for h, e in zip(last, end, strict=True)
            ]
        width = rest[0].shape[2] * directions
        outputs.append(torch.cat([*pieces, x.new_zeros(T - length, 1, width)]))
        ends.append([e.flatten(0, 1) for e in end])
    states_out = tuple(torch.cat(parts, dim=1) for parts in zip(*ends, strict=True))
    return torch.cat(outputs, dim=1), states_out if states > 1 else states_out[0]


def _where(chosen: list[bool], a: torch.Tensor, b: torch.Tensor, directions: int) -> torch.Tensor:
    """Of states ``[L·D, B, n]``: a direction's from ``a`` where it is chosen, else from ``b``."""
    pick = torch.tensor(chosen * (len(a) // directions), dtype=torch.bool)
    return torch.where(pick[:, None, None], a, b)


def rnn_case(
    op: str, lengths: Any = None, reset: Any = None, x: tuple[int, ...] = (STEPS, BATCH, INPUTS), **options: Any
) -> RnnCase:
    reference = getattr(theirs, op)(x[2], UNITS, **{k: v for k, v in options.items() if k != "activation_memory"})
    directions = 2 if options.get("bidirectional") else 1
    rows = reference.num_layers * directions
    states = [(rows, x[1], options.get("proj_size") or UNITS)] + [(rows, x[1], UNITS)] * (op == "LSTM")
    parameters = [tuple(p.shape) for p in reference.parameters()]
    reduction = math.prod(x[:2]) * (INPUTS + UNITS) * 4
    layer = f"{op}({x[2]}){sorted(options.items())}"
    _THEIRS[layer] = reference.double()
    _OURS[layer] = getattr(ours, op)(x[2], UNITS, **options)
    return RnnCase(op, (x, *states, *parameters), call, reduction, options, lengths=lengths, reset=reset, layer=layer)


RECURRENT = [
    rnn_case("LSTM"),
    rnn_case("LSTM", bidirectional=True, num_layers=2),
    rnn_case("LSTM", proj_size=2, bidirectional=True, activation_memory="recompute"),
    rnn_case("LSTM", proj_size=2, lengths=LENGTHS, num_layers=2),
    rnn_case("LSTM", bias=False, bidirectional=True, lengths=LENGTHS),
    rnn_case("LSTM", bidirectional=True, reset=RESET),
    rnn_case("LSTM", bidirectional=True, lengths=LENGTHS, reset=RESET, activation_memory="recompute"),
    rnn_case("LSTM", x=(4, 9, 3)),
    rnn_case("LSTM", x=(1, 1, 1)),
    rnn_case("LSTM", x=(3, 0, 2)),
    rnn_case("GRU"),
    rnn_case("GRU", bidirectional=True, num_layers=2, activation_memory="recompute"),
    rnn_case("GRU", bias=False, lengths=LENGTHS),
    rnn_case("GRU", bidirectional=True, lengths=LENGTHS, reset=RESET),
    rnn_case("RNN"),
    rnn_case("RNN", nonlinearity="relu", bidirectional=True, lengths=LENGTHS, reset=RESET),
    rnn_case("RNN", bias=False, num_layers=2, bidirectional=True),
]
