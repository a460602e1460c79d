"""The search: how good and how steady it is, with how few measurements, on landscapes made up and recorded."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from tilesmith import autotune
from tilesmith.autotune.rows import Row, filed_of, text_of
from tilesmith.autotune.search import MOST_MEASUREMENTS, Measured, Outcome, search

NOISE = 0.03
RECORDED = Path(__file__).with_name("recorded_times.jsonl")


class Landscape:
    """Configurations with the times that they take and that a model predicts."""

    def __init__(
        self, configs: Sequence[autotune.Config], times: dict[str, float], predicted: dict[str, float]
    ) -> None:
        self.configs, self.times = configs, times
        self.ranked = sorted(configs, key=lambda c: predicted[text_of(c)])
        self.default = self.ranked[0]
        self.measured: list[str] = []

    def searched(self, noise: float, seed: int, **more: Any) -> Outcome:
        self.measured = []

        def measure(configs: Sequence[autotune.Config], rung: str, samples: int, _: float) -> list[Measured]:
            found = []
            for config in configs:
                text = text_of(config)
                self.measured.append(text)
                dice = random.Random(f"{seed} {text} {rung}")
                if not math.isfinite(self.times[text]):
                    found.append(Measured("incorrect"))
                    continue
                taken = sorted(self.times[text] * (1 + dice.gauss(0, noise)) for _ in range(samples))
                found.append(Measured("ok", taken[samples // 2]))
            return found

        return search(self.configs, self.default, self.ranked, measure, **more)

    def share_of_best(self, outcome: Outcome) -> float:
        return min(self.times.values()) / self.times[text_of(outcome.config)]


def landscapes(count: int, seed: int) -> Iterator[Landscape]:
    """Of one to four parameters: each value away from the best costs up to a third, some of it is roughness, and the
    model is up to 40 % off."""
    dice = random.Random(seed)
    for _ in range(count):
        space = {f"P{i}": tuple(range(dice.randint(2, 5))) for i in range(dice.randint(1, 4))}
        configs = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
        best = {p: dice.choice(values) for p, values in space.items()}
        slope = {p: dice.uniform(0.02, 0.35) for p in space}
        rough, off = dice.uniform(0, 0.08), dice.uniform(0.05, 0.4)
        smooth = {text_of(c): math.exp(sum(slope[p] * abs(c[p] - best[p]) for p in space)) for c in configs}
        times = {text: time * math.exp(dice.gauss(0, rough)) for text, time in smooth.items()}
        predicted = {text: time * math.exp(dice.gauss(0, off)) for text, time in smooth.items()}
        yield Landscape(configs, times, predicted)


def recorded() -> list[Landscape]:
    """Of NumPy kernels, measured exhaustively on a CPU."""
    keys: dict[Any, list[Row]] = {}
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        keys.setdefault(filed_of(row), []).append(row)
    return [
        Landscape(
            [row["config"] for row in rows],
            {text_of(row["config"]): row["time_us"] for row in rows},
            {text_of(row["config"]): row["predicted_us"] for row in rows},
        )
        for rows in keys.values()
        if len(rows) > 1
    ]


@pytest.mark.parametrize("which", ["made up", "recorded"])
def test_near_the_best_with_few_measurements_and_steadily(which: str) -> None:
    """97 % of the exhaustive best, at most 16 measurements a key, one winner in 95 % of repeated runs, 3 % noise."""
    found = list(landscapes(120, 1)) if which == "made up" else recorded()
    assert len(found) > 20
    shares, steadiness, defaults = [], [], []
    for landscape in found:
        picks: Counter[str] = Counter()
        for seed in range(20):
            outcome = landscape.searched(NOISE, seed)
            assert len(landscape.measured) <= MOST_MEASUREMENTS
            picks[text_of(outcome.config)] += 1
            shares.append(landscape.share_of_best(outcome))
        steadiness.append(picks.most_common(1)[0][1] / 20)
        defaults.append(min(landscape.times.values()) / landscape.times[text_of(landscape.default)])
    assert mean(shares) >= 0.97
    assert sorted(shares)[len(shares) // 10] >= 0.97
    assert mean(steadiness) >= 0.95
    assert mean(shares) > mean(defaults), "the search must be worth more than the model alone"


def test_without_noise_small_spaces_are_searched_to_the_end() -> None:
    for landscape in landscapes(60, 2):
        if len(landscape.configs) <= 12:
            outcome = landscape.searched(0.0, 0)
            assert landscape.share_of_best(outcome) >= 1 / 1.02 * 0.97


def test_what_fails_is_never_chosen() -> None:
    for i, landscape in enumerate(landscapes(60, 3)):
        dice = random.Random(i)
        for text in landscape.times:
            if dice.random() < 0.4:
                landscape.times[text] = math.inf
        outcome = landscape.searched(NOISE, 0)
        if outcome.times:
            assert math.isfinite(landscape.times[text_of(outcome.config)])
        else:
            assert outcome.config == landscape.default
        failed = [text for text, status in outcome.statuses.items() if status != "ok"]
        assert all(not math.isfinite(landscape.times[text]) for text in failed)
        assert all(text_of(c) not in failed for c in outcome.tied)


def test_ties_go_to_the_default_then_to_the_first_of_the_space() -> None:
    configs = [{"A": i} for i in range(6)]
    times = {text_of(c): 1.0 + 0.004 * i for i, c in enumerate(reversed(configs))}
    flat = Landscape(configs, times, {text_of(c): float(c["A"]) for c in configs})
    assert flat.searched(0.0, 0).config == flat.default == {"A": 0}
    slow = Landscape(configs, {**times, text_of({"A": 3}): 1.5}, {text_of(c): float(c["A"] != 3) for c in configs})
    assert slow.default == {"A": 3}
    outcome = slow.searched(0.0, 0)
    assert outcome.config == {"A": 2}, "the first of those within 2 % of the best among the finalists"
    assert outcome.tied[0] == outcome.config


def test_a_small_gain_does_not_replace_the_default() -> None:
    configs = [{"A": i} for i in range(3)]
    for gain, replaced in ((0.025, False), (0.04, True)):
        times = {text_of(c): 1.0 if c["A"] else 1 / (1 - gain) for c in configs}
        landscape = Landscape(configs, times, {text_of(c): float(c["A"]) for c in configs})
        outcome = landscape.searched(0.0, 0)
        assert (outcome.config != landscape.default) == replaced
        assert outcome.gain == pytest.approx(1 / (1 - gain) if replaced else 1.0)


def test_seeds_are_measured_right_behind_the_default() -> None:
    landscape = next(x for x in landscapes(50, 4) if len(x.configs) > 60)
    best = min(landscape.configs, key=lambda c: landscape.times[text_of(c)])
    landscape.searched(0.0, 0, seeds=[best])
    assert landscape.measured[:2] == [text_of(landscape.default), text_of(best)]


def test_the_least_number_of_measurements() -> None:
    for landscape in landscapes(20, 5):
        outcome = landscape.searched(0.0, 0, most=3)
        assert len(landscape.measured) <= 3
        assert landscape.share_of_best(outcome) > 0


def test_the_same_times_give_the_same_choice() -> None:
    for landscape in landscapes(20, 6):
        first = landscape.searched(NOISE, 7)
        order = list(landscape.measured)
        assert landscape.searched(NOISE, 7).config == first.config
        assert landscape.measured == order
