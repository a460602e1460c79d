"""Tuning: which keys there are, one search for each, every measurement kept as it is made, one choice at the end.

A tune that was killed goes on where it was: rows that it left answer in the place of measurements. Several ranks share
the keys and end with the same rows.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import quantiles
from threading import Lock

from . import lookup
from .bench import Bench
from .calls import Call, Recording
from .lookup import Tables, as_in_space, last_choices, latest_choices
from .planning import by_plan, pruned
from .resolve import forget
from .rows import Filed, Row, distance, filed, filed_of, is_stale, provenance, same, text_of
from .runner import Isolated, Job, Result, Runner
from .search import Measured, Outcome, search
from .space import Config

_SEEDS = 3


@dataclass
class Summary:
    """What became of one key.

    Attributes:
        how: "tuned", "known" (a fresh choice was there), "left" (the budget ended first) or "failed".
        tried, reused: measurements made now, and answered by rows of an earlier tune.
        pruned: configurations of the space that were refused without a measurement, by reason.
        failed: configurations that were measured and are not "ok", by status.
    """

    job: Job
    how: str
    config: Config
    gain: float = 1.0
    default_s: float = math.nan
    time_s: float = math.nan
    tried: int = 0
    reused: int = 0
    pruned: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    tied: int = 0


Progress = Callable[[int, int, "Summary | None"], None]  # keys done, keys in all, what the last one came to


def jobs_of(calls: Iterable[Call] | Recording) -> list[Job]:
    """One job a key that the calls ask for, those first whose calls take the most time in all. Makes each call."""
    counts: Mapping[Call, int] = calls.counts if isinstance(calls, Recording) else Counter(calls)
    found: dict[Filed, Job] = {}
    for call, count in counts.items():
        try:
            bench = Bench(call)
            asked = bench.asks()
        except Exception as error:
            warnings.warn(f"{call.words()} is left out, it cannot be made here: {error}", stacklevel=2)
            continue
        start = time.perf_counter()
        if asked:
            bench.asks()
        call_s = time.perf_counter() - start
        for tunable, problem in asked.values():
            if tunable.key is None:
                continue
            place = filed(tunable, problem)
            known = found.get(place)
            weight = count + (known.weight if known else 0)
            first = known.call if known else call
            found[place] = Job(tunable, problem, place, tunable.default(problem), first, weight, call_s)
    return sorted(found.values(), key=lambda job: (-job.weight * job.call_s, text_of(job.filed.as_json())))


def tune_jobs(
    jobs: Sequence[Job],
    runners: Sequence[Runner] | Runner | None = None,
    tables: Tables | None = None,
    *,
    budget_s: float = math.inf,
    force: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> list[Summary]:
    """Tunes each job whose key has no fresh choice, and writes what it finds into the cache of ``tables``.

    Args:
        runners: who measures; several work side by side, a key each. A worker process by default.
        budget_s: seconds after which no further key is begun.
        force: also those that have one.
        resume: measurements that a tune left behind which was killed count.
        progress: is told after each key, and once before the first.
    """
    tables = tables or lookup.tables()
    tables.reload()
    if runners is None:
        runners = [Isolated()]
    elif not isinstance(runners, Sequence):
        runners = [runners]
    rows = tables.cache.rows()
    ends = time.monotonic() + budget_s
    summaries: dict[int, Summary] = {}
    waiting = iter(enumerate(jobs))
    lock = Lock()
    if progress:
        progress(0, len(jobs), None)

    def work(runner: Runner) -> None:
        while True:
            with lock:
                number, job = next(waiting, (-1, None))
            if job is None:
                return
            late = time.monotonic() >= ends
            summary = (
                Summary(job, "left", job.kernels_default) if late else _tune(job, runner, tables, rows, force, resume)
            )
            with lock:
                summaries[number] = summary
                if progress:
                    progress(len(summaries), len(jobs), summary)

    try:
        if len(runners) == 1:
            work(runners[0])
        else:
            with ThreadPoolExecutor(len(runners)) as pool:
                list(pool.map(work, runners))
    finally:
        for runner in runners:
            runner.close()
        tables.reload()
        forget()
    return [summaries[i] for i in sorted(summaries)]


def _tune(job: Job, runner: Runner, tables: Tables, rows: list[Row], force: bool, resume: bool) -> Summary:
    mine = [row for row in tuple(rows) if row["kind"] != "call" and filed_of(row) == job.filed]
    own = sorted(last_choices(mine), key=lambda row: -row.get("generation", 0))
    for choice in own:
        config = as_in_space(job.tunable, choice["config"])
        fresh = config is not None and not is_stale(choice, job.tunable)
        if config is not None and fresh and not force and job.tunable.refusal(config, job.problem) is None:
            return _known(job, choice, config)
    generation = 1 + (own[0].get("generation", 0) if own else 0)
    earlier = {
        (row["rung"], text_of(row["config"])): row
        for row in mine
        if resume and row["kind"] == "time" and row.get("generation") == generation and not is_stale(row, job.tunable)
    }
    summary = Summary(job, "tuned", job.kernels_default)
    measurable = runner.configs(job)
    space = list(job.tunable.configs(job.problem)) if measurable is None else measurable
    summary.pruned = pruned(job)
    predicted = {text_of(c): _predicted(job, c) for c in space}

    def keep(*made: Row) -> None:
        tables.cache.append(*made)
        rows.extend(made)

    def standard() -> Config | None:
        """What others are compared with: the default, until it turns out not to run; then the first that does."""
        own = earlier.get(("first", text_of(dict(default))))
        if own is None or own["status"] == "ok":
            return default
        return next((row["config"] for row in earlier.values() if row["status"] == "ok"), None)

    def measure(configs: Sequence[Config], rung: str, samples: int, give_up_s: float) -> list[Measured]:
        missing = [c for c in configs if (rung, text_of(dict(c))) not in earlier]
        summary.reused += len(configs) - len(missing)
        summary.tried += len(missing)
        results = runner.measure(replace(job, default=standard()), missing, rung, samples, give_up_s) if missing else []
        made = [
            _time_row(job, config, rung, result, generation, predicted[text_of(dict(config))])
            for config, result in zip(missing, results, strict=True)
        ]
        if made:
            keep(*made)
            earlier.update({(rung, text_of(row["config"])): row for row in made})
        found = [earlier[rung, text_of(dict(c))] for c in configs]
        for config, row in zip(configs, found, strict=True):
            if row["status"] != "ok":
                summary.reasons[text_of(dict(config))] = f"{row['status']}: {row['reason']}"
        return [Measured(r["status"], r["time_us"] / 1e6 if r["status"] == "ok" else math.inf) for r in found]

    ranked, refused = by_plan(job, mine, sorted(space, key=lambda c: predicted[text_of(c)]))
    summary.pruned += refused
    kept = {text_of(c) for c in ranked}
    space = [c for c in space if text_of(c) in kept]
    if not space:
        summary.how = "failed"
        return summary
    default = job.kernels_default if any(same(job.kernels_default, c) for c in space) else ranked[0]
    outcome = search(space, default, ranked, measure, seeds=_seeds(job, own, tables, space))
    summary.failed = Counter(status for status in outcome.statuses.values() if status != "ok")
    if not math.isfinite(outcome.time_s):
        summary.how = "failed"
        return summary
    summary.config, summary.gain, summary.tied = outcome.config, outcome.gain, len(outcome.tied)
    summary.default_s, summary.time_s = outcome.default_s, outcome.time_s
    keep(_choice_row(job, outcome, summary, generation, predicted))
    return summary


def _known(job: Job, choice: Row, config: Config) -> Summary:
    default_s = choice.get("default_us", math.nan) / 1e6
    time_s = choice["time_us"] / 1e6
    return Summary(job, "known", config, default_s / time_s, default_s, time_s, tied=len(choice.get("tied", [])))


def _seeds(job: Job, own: Sequence[Row], tables: Tables, space: Sequence[Config]) -> list[Config]:
    """What was best for this key before, and for its nearest neighbours in tables that ship. Not those in the cache:
    what a tune finds must not depend on what else it has found by then, or one that was killed would end otherwise."""
    shipped = [row for store in tables.shipped for row in latest_choices(store.rows())]
    family = [row for row in shipped if filed_of(row).family == job.filed.family]
    family.sort(key=lambda row: (distance(filed_of(row), job.filed), text_of(row["config"])))
    texts = {text_of(c): c for c in space}
    return [texts[text] for row in (*own[:1], *family[:_SEEDS]) if (text := text_of(row["config"])) in texts]


def _predicted(job: Job, config: Config) -> float:
    return job.tunable.predicted(config, job.problem) or 0.0


def _time_row(job: Job, config: Config, rung: str, result: Result, generation: int, predicted_s: float) -> Row:
    row: Row = {
        **provenance(job.tunable, job.filed),
        "kind": "time",
        "config": dict(config),
        "status": result.status,
        "reason": result.reason,
        "rung": rung,
        "generation": generation,
        "predicted_us": _us(predicted_s),
        "protocol": result.protocol,
        "drift": round(result.drift, 4),
    }
    if result.status == "ok":
        low, *_, high = quantiles(result.samples, n=10) if len(result.samples) > 1 else (result.time_s, result.time_s)
        row |= {"time_us": _us(result.time_s), "low_us": _us(low), "high_us": _us(high), "samples": len(result.samples)}
    return row


def _choice_row(job: Job, outcome: Outcome, summary: Summary, generation: int, predicted: Mapping[str, float]) -> Row:
    row: Row = {
        **provenance(job.tunable, job.filed),
        "kind": "choice",
        "config": dict(outcome.config),
        "default": dict(job.kernels_default),
        "time_us": _us(outcome.time_s),
        "predicted_us": _us(predicted[text_of(dict(outcome.config))]),
        "tied": [dict(c) for c in outcome.tied],
        "tried": len(outcome.statuses),
        "pruned": dict(summary.pruned),
        "failed": dict(summary.failed),
        "generation": generation,
        "weight": job.weight,
        "call": None if job.call is None else job.call.as_json(),
    }
    if math.isfinite(outcome.default_s):
        row["default_us"] = _us(outcome.default_s)
    return row


def _us(time_s: float) -> float:
    return float(f"{time_s * 1e6:.4g}") if math.isfinite(time_s) else 0.0


def geometric_gain(summaries: Iterable[Summary]) -> float:
    """Of keys that have a choice: the geometric mean of default over choice, each key weighing as often as called."""
    pairs = [(s.job.weight, math.log(s.gain)) for s in summaries if s.how in ("tuned", "known") and s.gain > 0]
    total = sum(weight for weight, _ in pairs)
    return math.exp(sum(weight * log for weight, log in pairs) / total) if total else 1.0
