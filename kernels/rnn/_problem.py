"""What one recurrent layer is: sizes, FLOPs, bytes. Known without running anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CELLS = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4}  # gates a unit
SAVED = {"tanh": 0, "relu": 0, "gru": 4, "lstm": 4}  # what a backward wants to know of a unit, besides the states


@dataclass(frozen=True)
class RnnProblem:
    """A layer of ``H`` units over ``T`` steps of ``B`` sequences, in ``D`` directions.

    ``I`` is the width of the input, ``P`` that of the output and of the recurrence: ``H``, or an LSTM's projection.
    """

    cell: str
    T: int
    B: int
    D: int
    I: int  # noqa: E741  the field's own name
    H: int
    P: int

    @property
    def G(self) -> int:
        """Gates a unit."""
        return CELLS[self.cell]

    @property
    def projected(self) -> bool:
        return self.P != self.H

    @property
    def flops(self) -> int:
        """Of the matrix products of one forward; the backward does twice as many."""
        per_step = self.G * self.H * (self.I + self.P) + (self.H * self.P if self.projected else 0)
        return 2 * self.T * self.B * self.D * per_step

    def activation_bytes(self, itemsize: int, store: bool = True) -> int:
        """What the forward keeps for the backward, besides its input, output and weights."""
        cells = self.H if self.cell == "lstm" else 0
        gates = SAVED[self.cell] * self.H if store else 0
        return self.T * self.B * self.D * (cells + gates) * itemsize


@dataclass(frozen=True)
class Weights:
    """The parameters of a layer as arrays, directions stacked; see the package for shapes."""

    w_ih: Any
    w_hh: Any
    bias: Any
    bias_n: Any
    w_hr: Any
