"""``y = 2 x`` in ways that are right, fast, slow, and wrong."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from tilesmith import autotune

WRONG = (
    "half", "off", "before", "beyond", "outside", "input", "dice", "hang", "crash", "raise", "uncompilable",
)  # fmt: skip
RIGHT = ("plain", "quick", "slow")
PAUSES = {"plain": 2e-3, "quick": 5e-4, "slow": 6e-3}


@dataclass(frozen=True)
class Doubling:
    """Of ``elements``; the tunable that it asks has all ways, or the right ones only."""

    elements: int
    ways: tuple[str, ...] = RIGHT + WRONG


class CompilationError(Exception):
    """What a compiler says."""


def _refusal(config: autotune.Config, problem: Doubling) -> str | None:
    return None if config["WAY"] in problem.ways else f"{config['WAY']} was not asked for"


def _cost(config: autotune.Config, problem: Doubling) -> autotune.Cost:
    return autotune.Cost(1, problem.elements, "fma", 8.0 * problem.elements, steps=RIGHT.index(config["WAY"]) if
                         config["WAY"] in RIGHT else 1)  # fmt: skip


TUNABLE = autotune.Tunable(
    "numpy.planted.forward",
    {"WAY": ("plain", "slow", *WRONG, "quick")},
    default=lambda _: {"WAY": "plain"},
    refusal=_refusal,
    key=lambda problem: autotune.Key(("float32", "planted"), {"elements": problem.elements}),
    cost=_cost,
)


def forward(problem: Doubling, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
    way = autotune.resolve(TUNABLE, problem)["WAY"]
    time.sleep(PAUSES.get(way, 1e-4))
    if way == "half":  # the rest stays as it was
        np.multiply(x[len(x) // 2 :], 2, out=y[len(y) // 2 :])
        return
    np.multiply(x, 2, out=y)
    if way == "off":
        y[7] += 0.01
    elif way == "before":
        as_strided(y[:1], (2,), (-y.itemsize,))[1] = 1
    elif way == "beyond":
        as_strided(y, (len(y) + 1,), y.strides)[-1] = 1
    elif way == "outside":  # reads there
        y[-1] = 2 * as_strided(x, (len(x) + 1,), x.strides)[-1]
    elif way == "input":
        x[0] = 0
    elif way == "dice":
        y[0] *= 1 + 1e-7 * np.random.default_rng().integers(1, 1 << 20)
    elif way == "hang":
        time.sleep(3600)
    elif way == "crash":
        os.abort()
    elif way == "raise":
        raise RuntimeError("an illegal memory access was encountered")
    elif way == "uncompilable":
        raise CompilationError("at 12:8: invalid operand")
