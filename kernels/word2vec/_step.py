"""What a training step hands over: rows to be added to both tables."""

from __future__ import annotations

from dataclasses import dataclass

from .._arrays import Array

INPUT_MASS = 3  # of a pair of skip-gram in its input row, which moves for the positive and for K negatives


@dataclass(frozen=True)
class Rows:
    """What a step adds to one table: at rows ``ids [n]`` the ``gradients [n, d]`` times the learning rate; and the
    ``mass [n]``, how many pairs are in each as the cap counts them."""

    ids: Array
    gradients: Array
    mass: Array


@dataclass(frozen=True)
class Step:
    """Rows for both tables, and if they were asked for the summed loss and the number of pairs it is of."""

    inputs: Rows
    outputs: Rows
    loss: float
    pairs: float
