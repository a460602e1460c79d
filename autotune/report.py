"""What a cache knows and how good it is: coverage, the regret of the guesses, differences, tables to ship."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .lookup import MOST_DOUBLINGS, latest_choices
from .rows import Filed, Row, distance, filed_of, text_of
from .space import Config


@dataclass(frozen=True)
class Regret:
    """How much slower than the best that was measured a guess is: 0.03 is 3 %.

    Attributes:
        keys: that could be judged.
        typical: the geometric mean, less 1.
        worst: of all keys, and the key it was at.
    """

    keys: int
    typical: float
    worst: float
    at: Filed | None

    @classmethod
    def of(cls, ratios: Mapping[Filed, float]) -> Regret:
        if not ratios:
            return cls(0, math.nan, math.nan, None)
        at = max(ratios, key=lambda place: ratios[place])
        logs = [math.log(r) for r in ratios.values()]
        return cls(len(ratios), math.exp(sum(logs) / len(logs)) - 1, ratios[at] - 1, at)


def measured_times(rows: Iterable[Row]) -> dict[Filed, dict[str, Row]]:
    """Of each key the last "ok" row of each configuration: a finalist's is the one with more samples."""
    found: dict[Filed, dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == "time" and row["status"] == "ok":
            mine = found.setdefault(filed_of(row), {})
            text = text_of(row["config"])
            if text not in mine or row.get("samples", 1) >= mine[text].get("samples", 1):
                mine[text] = row
    return found


def model_regret(rows: Iterable[Row]) -> Regret:
    """Of the configuration that the analytic model put first among those that were measured."""
    ratios = {}
    for place, mine in measured_times(rows).items():
        predicted = {text: row.get("predicted_us", 0) for text, row in mine.items()}
        if len(mine) > 1 and min(predicted.values()) > 0:
            guess = min(mine, key=lambda text: (predicted[text], text))
            ratios[place] = mine[guess]["time_us"] / min(row["time_us"] for row in mine.values())
    return Regret.of(ratios)


def nearest_regret(rows: Iterable[Row]) -> tuple[Regret, int]:
    """Of the nearest other key's choice, as if a key had never been measured; and how many keys had no other near
    enough, or one whose choice was not measured here."""
    rows = list(rows)
    times = measured_times(rows)
    choices = {filed_of(row): row for row in latest_choices(rows)}
    ratios: dict[Filed, float] = {}
    without = 0
    for place in choices:
        others = [(distance(place, other), text_of(row["config"])) for other, row in choices.items()
                  if other != place and other.family == place.family]  # fmt: skip
        mine = times.get(place, {})
        near = next((text for far, text in sorted(others) if far <= MOST_DOUBLINGS and text in mine), None)
        if near is None:
            without += 1
        else:
            ratios[place] = mine[near]["time_us"] / min(row["time_us"] for row in mine.values())
    return Regret.of(ratios), without


def default_regret(rows: Iterable[Row]) -> Regret:
    """Of the default, over the choice that was made instead."""
    return Regret.of(
        {filed_of(r): max(1.0, r["default_us"] / r["time_us"]) for r in latest_choices(rows) if r.get("default_us")}
    )


def model_error(rows: Iterable[Row]) -> float:
    """Median of measured over predicted time, as a factor away from the family's own median: 1 is a perfect ranking
    and scale, whatever the unit."""
    factors: dict[Any, list[float]] = {}
    for place, mine in measured_times(rows).items():
        for row in mine.values():
            if row.get("predicted_us", 0) > 0:
                factors.setdefault(place.family, []).append(row["time_us"] / row["predicted_us"])
    spread = [max(f / median(fs), median(fs) / f) for fs in factors.values() for f in fs]
    return median(spread) if spread else math.nan


@dataclass(frozen=True)
class Change:
    """A key whose choice differs between two caches.

    Attributes:
        before, after: configurations; ``None`` where one has none.
        gain: time of ``before`` over that of ``after``, both as the second cache measured them, else as each did.
    """

    filed: Filed
    before: Config | None
    after: Config | None
    gain: float


def differences(before: Iterable[Row], after: Iterable[Row]) -> list[Change]:
    """Keys whose choice is another, gained or lost between two sets of rows."""
    after = list(after)
    old = {filed_of(row): row for row in latest_choices(before)}
    new = {filed_of(row): row for row in latest_choices(after)}
    times = measured_times(after)
    changes = []
    for place in sorted(old.keys() | new.keys(), key=lambda p: (p.tunable, p.exact, p.sizes)):
        a, b = old.get(place), new.get(place)
        if a is not None and b is not None and text_of(a["config"]) == text_of(b["config"]):
            continue
        gain = math.nan
        if a is not None and b is not None:
            again = times.get(place, {}).get(text_of(a["config"]))
            gain = (again or a)["time_us"] / b["time_us"]
        changes.append(Change(place, a and a["config"], b and b["config"], gain))
    return changes


def shipped(rows: Iterable[Row]) -> list[Row]:
    """What a table needs: the choice of each key, without what was only of use here."""
    kept = []
    for row in latest_choices(rows):
        slim = {k: v for k, v in row.items() if k not in ("pruned", "failed")}
        kept.append(slim)
    return sorted(kept, key=lambda row: (row["key"]["tunable"], text_of(row["key"])))


def write_table(rows: Iterable[Row], path: Path) -> int:
    """Writes :func:`shipped` rows to a file of their own; how many there were."""
    kept = shipped(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text("".join(text_of(row) + "\n" for row in kept), encoding="utf-8")
    draft.replace(path)
    return len(kept)


def statuses(rows: Iterable[Row]) -> Counter[str]:
    """How many configurations came to what."""
    return Counter(row["status"] for row in rows if row["kind"] == "time")
