"""Writes ``autotune/portfolios.json``: of each GPU kernel the few configurations that defaults are chosen among.

    python -m benchmarks.portfolios              # writes the file, and prints what the short lists cost
    python -m benchmarks.portfolios --check      # prints what they cost on layers that they were not made from

The analytic model is asked about every configuration for every problem that the standard layers, and random variations
of them, pose to a kernel on each GPU. A list grows by whatever lowers the predicted times most, until it is within a
fraction of a percent of the whole space or long enough. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from tilesmith import autotune
from tilesmith.autotune.portfolio import ASKED, PATH, kind_of, point_of, portfolio, reread
from tilesmith.autotune.resolve import watched
from tilesmith.kernels._arrays import Array
from tilesmith.kernels._recording import record

from .kernel_table import BACKENDS, Case, launch
from .layers import Layer
from .layers.activation import Activation
from .layers.convolution import Convolution
from .layers.dense import Dense
from .layers.fused import FusedBlock
from .layers.pooling import AdaptivePooling, Pooling
from .layers.softmax import Softmax
from .standard import LAYERS, UNTIMED

LONGEST = 8
_GOOD_MEAN, _GOOD_WORST = 1.001, 1.02  # of the predicted time with the whole space
_VARIATIONS = 6  # of each standard layer
_STANDARD = 4.0  # what a problem of a standard layer weighs
# Configurations that spill registers in a standard layer, as `make kernel-table` found: of a kernel and a kind of
# problem. They are in the space for whoever measures them.
_SPILL: dict[tuple[str, str], tuple[dict[str, int], ...]] = {
    ("triton.conv2d.input_grad", "half 2 sm_100"): (
        {"BLOCK_M": 128, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 4},
    ),
    ("triton.conv2d.input_grad", "tf32 4 sm_100"): ({"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8},),
    ("triton.conv2d.weight_grad", "half 2 sm_80"): (
        {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4},
        {"BLOCK_M": 128, "BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 8},
    ),
}
_NUMBERS = (
    ("bfloat16", None),
    ("float16", None),
    ("float32", "ieee"),
    ("float32", "tf32"),
    ("float32", "tf32x3"),
    ("float64", None),
)

Problems = dict[str, tuple[autotune.Tunable, dict[Any, None]]]


@dataclass(frozen=True)
class Loss:
    """How much longer the best of a list takes than the best of the space, by the model, over some problems."""

    problems: int
    mean: float
    worst: float
    unserved: int

    def __str__(self) -> str:
        unserved = f", {self.unserved} not served" if self.unserved else ""
        return f"{self.problems} problems: mean +{self.mean - 1:.2%}, worst +{self.worst - 1:.1%}{unserved}"


def varied(layer: Layer, draw: random.Random) -> Layer | None:
    """The layer with other sizes, up to eight times as large or small; ``None`` where they make no sense."""

    def scaled(size: int, least: int = 1, most: float = 8.0) -> int:
        return max(least, round(size * most ** draw.uniform(-1, 1)))

    def channels(size: int) -> int:
        return max(1, int(size * 2.0 ** draw.randint(-2, 2)))

    sizes: dict[str, Any]
    if isinstance(layer, Convolution | FusedBlock):
        groups = layer.groups
        if groups == 1:
            c, k = channels(layer.C) if layer.C > 3 else layer.C, channels(layer.K)
        elif groups == layer.C:
            c = k = groups = channels(layer.C)
        else:
            groups = max(2, channels(groups))
            c = k = layer.C // layer.groups * groups
        least = 8 + (layer.R - 1) * getattr(layer, "dilation", 1)
        height = scaled(layer.H, least, 3.0)
        sizes = {"N": scaled(layer.N), "C": c, "K": k, "groups": groups, "H": height, "W": height}
    elif isinstance(layer, Pooling | AdaptivePooling):
        height = scaled(layer.H, 8, 3.0)
        sizes = {"N": scaled(layer.N), "C": channels(layer.C), "H": height, "W": height}
    elif isinstance(layer, Dense):
        sizes = {"M": scaled(layer.M), "I": scaled(layer.I), "O": scaled(layer.O)}
    elif isinstance(layer, Softmax | Activation):
        sizes = {"shape": tuple(scaled(size, 1, 4.0) for size in layer.shape)}
    else:
        return None
    changed: Layer = replace(layer, **sizes)
    return changed


def layers(seed: int, variations: int = _VARIATIONS) -> Iterator[Layer]:
    draw = random.Random(seed)
    for layer in (*LAYERS, *UNTIMED):
        yield from filter(None, (varied(layer, draw) for _ in range(variations)))


def problems_of(wanted: Iterable[Layer], targets: Iterable[str] = tuple(autotune.TARGETS)) -> Problems:
    """Each kernel and the problems that these layers pose to it, in every dtype and layout."""
    found: Problems = {}

    def note(tunable: autotune.Tunable, problem: Any, _: autotune.Config) -> None:
        if tunable.cost is not None:
            found.setdefault(tunable.name, (tunable, {}))[1][problem] = None

    cases = [
        Case(backend, direction, layer, dtype, layout, way)
        for layer in wanted
        for backend, direction, (dtype, way), layout in product(BACKENDS, layer.compiled, _NUMBERS, layer.layouts)
        if (way is not None) <= bool(layer.multiplies) or way == "ieee"
    ]
    for target, case in product(targets, cases):
        with autotune.target(target), autotune.mode("off"), watched(note), record():
            try:
                launch(case)
            except (NotImplementedError, ValueError, RuntimeError):
                continue  # a random layer may pose what no kernel does
    return found


def predicted(tunable: autotune.Tunable, problems: Sequence[Any]) -> Array:
    """Seconds by problem and configuration of the space; infinite where it cannot run."""
    assert tunable.cost is not None
    configs = list(tunable.every_config())
    times = np.full((len(problems), len(configs)), np.inf)
    for row, problem in zip(times, problems, strict=True):
        for i, config in enumerate(configs):
            if tunable.refusal(config, problem) is None:
                row[i] = autotune.seconds(tunable.cost(config, problem), problem.device)
    return times


def shortest_good(times: Array, weights: Array) -> list[int]:
    """Columns that together come near the best of each row: greedily, by the mean square of the slowdown, as the worst
    rows are felt."""
    slowdown = np.minimum(times / times.min(axis=1, keepdims=True), 10.0)
    chosen: list[int] = []
    best = np.full(len(times), 10.0)
    while len(chosen) < LONGEST:
        squares = weights @ np.minimum(best[:, None], slowdown) ** 2
        one = int(np.argmin(squares))
        if one in chosen:
            break
        chosen.append(one)
        best = np.minimum(best, slowdown[:, one])
        if best.mean() <= _GOOD_MEAN and best.max() <= _GOOD_WORST:
            break
    return chosen


def without_spills(times: Array, tunable: autotune.Tunable, kind: str) -> Array:
    """Infinite also where a configuration is known to spill, as long as another one can run the problem."""
    spilling = _SPILL.get((tunable.name, kind), ())
    columns = [
        i for i, config in enumerate(tunable.every_config()) if any(one.items() <= config.items() for one in spilling)
    ]
    without = times.copy()
    without[:, columns] = np.inf
    return np.where(np.isfinite(without).any(axis=1, keepdims=True), without, times)


def centres_of(times: Array, chosen: Sequence[int], points: Array) -> Array:
    """Of each column the mean of the rows' points where it is the best of those; where it never is, of the rows that
    it can run."""
    of = times[:, list(chosen)]
    best = of.argmin(axis=1)
    return np.array(
        [
            points[mine].mean(axis=0) if (mine := best == i).any() else points[np.isfinite(of[:, i])].mean(axis=0)
            for i in range(len(chosen))
        ]
    )


def loss(tunable: autotune.Tunable, problems: Sequence[Any], times: Array) -> Loss:
    """Of what the written lists propose; times are those of the whole space."""
    places = {tuple(config.values()): i for i, config in enumerate(tunable.every_config())}
    ratio = np.full(len(times), np.inf)
    for i, problem in enumerate(problems):
        proposed = [places[tuple(config.values())] for config in portfolio(tunable, problem)]
        asked = [j for j in proposed if np.isfinite(times[i, j])][:ASKED]
        if asked:
            ratio[i] = times[i, asked].min() / times[i].min()
    served = ratio[np.isfinite(ratio)]
    if not len(served):
        return Loss(len(times), 1.0, 1.0, len(times))
    return Loss(len(times), float(served.mean()), float(served.max()), len(ratio) - len(served))


def by_kind(tunable: autotune.Tunable, problems: Iterable[Any]) -> dict[str, list[Any]]:
    """Those that anything can run."""
    kinds = defaultdict(list)
    for problem in problems:
        if next(tunable.configs(problem), None) is not None:
            kinds[kind_of(problem)].append(problem)
    return dict(sorted(kinds.items()))


def made(standard: Problems, others: Problems) -> dict[str, Any]:
    """What the file says of each kernel."""
    kernels: dict[str, Any] = {}
    for name, (tunable, mine) in sorted({**others, **standard}.items()):
        known = standard.get(name, (tunable, {}))[1]
        kinds, configs = {}, list(tunable.every_config())
        for kind, problems in by_kind(tunable, {**mine, **others.get(name, (tunable, {}))[1]}).items():
            times = without_spills(predicted(tunable, problems), tunable, kind)
            assert tunable.key is not None
            points = np.array([point_of(tunable.key(problem).sizes) for problem in problems])
            chosen = shortest_good(times, np.array([_STANDARD if p in known else 1.0 for p in problems]))
            centres = centres_of(times, chosen, points).round(1)
            kinds[kind] = [
                [list(configs[i].values()), centre.tolist()] for i, centre in zip(chosen, centres, strict=True)
            ]
        kernels[name] = {"parameters": list(tunable.space), "kinds": kinds}
    return kernels


def checked(found: Problems) -> dict[str, Loss]:
    """What the written lists cost on problems; those of a kind without a list count as not served."""
    return {
        name: together(loss(tunable, mine, predicted(tunable, mine)) for mine in by_kind(tunable, problems).values())
        for name, (tunable, problems) in sorted(found.items())
    }


def together(losses: Iterable[Loss]) -> Loss:
    each = list(losses)
    served = sum(one.problems - one.unserved for one in each)
    mean = sum(one.mean * (one.problems - one.unserved) for one in each) / served if served else 1.0
    worst = max((one.worst for one in each), default=1.0)
    return Loss(sum(one.problems for one in each), mean, worst, sum(one.unserved for one in each))


def _say(losses: Mapping[str, Loss]) -> None:
    for name, one in losses.items():
        print(f"{name:50s} {one}")
    print(f"{'all':50s} {together(losses.values())}")


def text_of(kernels: Mapping[str, Any]) -> str:
    """The file: a line a list."""
    lines = []
    for name, one in kernels.items():
        kinds = ",\n".join(f"   {json.dumps(kind)}: {json.dumps(rows)}" for kind, rows in one["kinds"].items())
        parameters = json.dumps(one["parameters"])
        lines.append(f'  {json.dumps(name)}: {{"parameters": {parameters}, "kinds": {{\n{kinds}}}}}')
    return '{"written by": "make portfolios", "kernels": {\n' + ",\n".join(lines) + "\n}}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="short lists of configurations for each GPU kernel")
    parser.add_argument("--check", action="store_true", help="only say what the lists cost, on layers of their own")
    if not parser.parse_args().check:
        kernels = made(problems_of((*LAYERS, *UNTIMED)), problems_of(layers(seed=0)))
        PATH.write_text(text_of(kernels), encoding="utf-8")
        reread()
    _say(checked(problems_of(layers(seed=1, variations=2))))


if __name__ == "__main__":
    main()
