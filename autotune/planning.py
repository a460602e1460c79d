"""What is worth measuring, known without measuring: the space less what is refused, in the order that the model likes.

A plan is a list of rows in the cache. Whoever tunes the same key later begins with it, and leaves out what a compiler
found to spill or not to fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .rows import Row, is_stale, provenance, text_of
from .runner import Job
from .space import Config


@dataclass
class Plan:
    """The shortlist of one key.

    Attributes:
        ranked: configurations, most promising first, with their predicted seconds (0 without a cost).
        valid: how many there were before the list was cut.
        pruned: refused ones, by reason.
        refused: what a compiler said of some of the list, by their place in it.
        resources: what it needs of the others, by their place.
    """

    job: Job
    ranked: list[tuple[Config, float]]
    valid: int
    pruned: Counter[str]
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    resources: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def kept(self) -> list[tuple[Config, float]]:
        return [one for i, one in enumerate(self.ranked) if i not in self.refused]

    def rows(self) -> list[Row]:
        """For the cache."""
        rows = []
        for i, (config, predicted_s) in enumerate(self.ranked):
            status, reason = self.refused.get(i, ("ok", ""))
            rows.append(
                {
                    **provenance(self.job.tunable, self.job.filed),
                    "kind": "plan",
                    "config": dict(config),
                    "status": status,
                    "reason": reason,
                    "rank": i,
                    "predicted_us": float(f"{predicted_s * 1e6:.4g}"),
                    **({"resources": dict(self.resources[i])} if i in self.resources else {}),
                }
            )
        return rows


def plan_job(job: Job, most: int | None = None) -> Plan:
    """The configurations of a key that are worth a measurement, at most so many."""
    ranked = [
        (config, job.tunable.predicted(config, job.problem) or 0.0) for config in job.tunable.configs(job.problem)
    ]
    valid = len(ranked)
    ranked.sort(key=lambda one: one[1])
    return Plan(job, ranked[:most], valid, pruned(job))


def pruned(job: Job) -> Counter[str]:
    """Configurations of the space that the problem refuses, by reason; numbers in it are #, so that kinds add up."""
    reasons: Counter[str] = Counter()
    for config in job.tunable.every_config():
        reason = job.tunable.refusal(config, job.problem)
        if reason is not None:
            reasons[_kind_of(reason)] += 1
    return reasons


def _kind_of(reason: str) -> str:
    return " ".join("#" if any(c.isdigit() for c in word) else word for word in reason.split())


def by_plan(job: Job, rows: Sequence[Row], ranked: Sequence[Config]) -> tuple[list[Config], Counter[str]]:
    """The ranking that a plan in the cache gives: its list first, what it refused left out and counted by status."""
    planned: dict[str, Row] = {}
    for row in rows:
        if row["kind"] == "plan" and not is_stale(row, job.tunable):
            planned.setdefault(text_of(row["config"]), row)
    refused: Counter[str] = Counter()
    listed: list[tuple[int, Config]] = []
    rest = []
    for config in ranked:
        plan = planned.get(text_of(dict(config)))
        if plan is None:
            rest.append(config)
        elif plan["status"] == "ok":
            listed.append((plan.get("rank", 0), config))
        else:
            refused[f"planned: {plan['status']}"] += 1
    return [config for _, config in sorted(listed, key=lambda one: one[0])] + rest, refused
