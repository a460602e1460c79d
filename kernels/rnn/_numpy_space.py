"""What the backward walk of NumPy may be run with: how many steps' derivatives are prepared together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...autotune import Config, Cost, Device, Key, Tunable
from .._division import blocks_of
from .._numpy_tuning import KB, MB, repeated, unit
from ._problem import RnnProblem

SPACE = {"BLOCK_BYTES": (512 * KB, 1 * MB, 256 * KB, 2 * MB, 128 * KB, 4 * MB)}
LEAST_BLOCK_BYTES = min(SPACE["BLOCK_BYTES"])

_CALLS = {"tanh": 4, "relu": 4, "gru": 14, "lstm": 18}  # of NumPy that prepare a block
_CALLS_TO_COMPUTE_AGAIN = 20


@dataclass(frozen=True)
class Walk:
    """The steps of a layer. ``stored``: the forward kept the gates, else each block computes its own again."""

    problem: RnnProblem
    stored: bool
    itemsize: int
    device: Device

    @property
    def step_bytes(self) -> int:
        return bytes_of_a_step(self.problem, self.itemsize)


def bytes_of_a_step(problem: RnnProblem, itemsize: int) -> int:
    """That a block holds of every step in it."""
    return max(1, problem.B * problem.D * (problem.G + 1) * problem.H * itemsize)


def _steps(config: Config, walk: Walk) -> int:
    return min(walk.problem.T, max(1, config["BLOCK_BYTES"] // walk.step_bytes))


def _refusal(config: Config, walk: Walk) -> str | None:
    return repeated("BLOCK_BYTES", SPACE, config, lambda other: _steps(other, walk))


def _key(walk: Walk) -> Key:
    p, d = walk.problem, walk.device
    exact = (p.cell, p.D, p.projected, walk.stored, walk.itemsize, d.name, d.multiprocessors)
    return Key(exact, {"steps": p.T, "step_bytes": walk.step_bytes, "inputs": max(1, p.I)})


def _cost(config: Config, walk: Walk) -> Cost:
    p = walk.problem
    steps = _steps(config, walk)
    block_bytes = steps * walk.step_bytes
    calls = _CALLS[p.cell] + (0 if walk.stored else _CALLS_TO_COMPUTE_AGAIN)
    again = 0 if walk.stored else 2 * steps * p.B * p.D * p.G * p.H * (p.I + p.P)
    return Cost(
        blocks=blocks_of(p.T, steps),
        flops=again + steps * p.B * p.D * p.G * p.H * 8,
        unit=unit(walk.itemsize),
        # prepared by calls that each go over a gate or so of all steps, then read once by the walk
        bytes=block_bytes * (1 + 3 * calls / (p.G + 1)),
        steps=calls,
        shared=2 * block_bytes,
        threads=1,
    )


def tunable(default: Callable[[Walk], Config]) -> Tunable:
    return Tunable(
        "numpy.rnn.backward",
        SPACE,
        default=default,
        refusal=_refusal,
        reasons={
            "BLOCK_BYTES": "of derivatives that a few calls prepare before the walk goes over their steps: 128 KiB to "
            "4 MiB by powers of two, as the walk should find them in the second-level cache"
        },
        key=_key,
        cost=_cost,
    )
