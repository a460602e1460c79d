"""A few configurations of each GPU kernel that together serve almost any problem: what a default is chosen among.

Asking the analytic model about a whole space takes milliseconds, which a first call would wait for. The short lists
are made ahead, from the same model (`make portfolios`): up to eight configurations for a kind of problem, each with
the mean of the sizes, in doublings, for which the model prefers it. The nearest to a problem are asked about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .space import Config, Tunable

PATH = Path(__file__).with_name("portfolios.json")
ASKED = 3  # configurations of a list that the model is asked about


@dataclass(frozen=True)
class _List:
    configs: list[Config]
    centres: Any  # [configs, sizes]


def kind_of(problem: Any) -> str:
    """What problems share a list: the unit that computes, the size of an element, the GPU's architecture."""
    unit = getattr(problem, "math", None) or getattr(problem, "unit", None)
    device = getattr(problem, "device", None)
    parts = (unit, getattr(problem, "itemsize", None), getattr(device, "arch", None))
    return " ".join(str(part) for part in parts if part is not None)


def point_of(sizes: Mapping[str, float]) -> list[float]:
    """Sizes of a key as a point, in doublings."""
    return [math.log2(max(sizes[name], 1e-9)) for name in sorted(sizes)]


def portfolio(tunable: Tunable, problem: Any) -> Iterator[Config]:
    """The list for a problem, the most promising first; empty where there is none. Some of it may not be able to run
    the problem."""
    if tunable.key is None:
        return
    found = _lists(tunable).get(kind_of(problem))
    if found is None:
        return
    point = point_of(tunable.key(problem).sizes)
    if len(point) != found.centres.shape[1]:
        return
    for i in ((found.centres - point) ** 2).sum(axis=1).argsort(kind="stable"):
        yield found.configs[i]


@cache
def _lists(tunable: Tunable) -> dict[str, _List]:
    written = _file().get(tunable.name)
    if written is None or written["parameters"] != list(tunable.space):
        return {}
    lists = {}
    for kind, rows in written["kinds"].items():
        configs: list[Config] = [dict(zip(tunable.space, values, strict=True)) for values, _ in rows]
        kept = [i for i, c in enumerate(configs) if all(v in tunable.space[name] for name, v in c.items())]
        if kept:
            lists[kind] = _List([configs[i] for i in kept], np.array([rows[i][1] for i in kept], float))
    return lists


@cache
def _file() -> dict[str, Any]:
    kernels: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))["kernels"]
    return kernels


def reread() -> None:
    """The file has changed."""
    _file.cache_clear()
    _lists.cache_clear()
