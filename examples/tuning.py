"""Plans and tunes the kernels that a network needs on this machine, before it is trained."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tilesmith import autotune
from tilesmith.autotune import lookup
from tilesmith.autotune.lookup import Tables
from tilesmith.autotune.planning import plan_job
from tilesmith.autotune.runner import InProcess
from tilesmith.autotune.store import Store
from tilesmith.autotune.tuner import Summary, geometric_gain, jobs_of, tune_jobs

_BUDGET_S = 40.0


def tune_first(
    console: Console, network: torch.nn.Module, steps: torch.Tensor, evaluation: torch.Tensor, cache: Path
) -> dict[str, Any]:
    """Tunes for a training step and for an evaluation, into a cache that look-ups of this process use from then on.

    Returns:
        What there is to say of it, for people and for metrics.json.
    """
    lookup.use(Tables(Store(cache)))
    start = time.perf_counter()
    calls = autotune.Recording()
    calls.counts.update(autotune.recorded(network, steps).counts)
    calls.counts.update(autotune.recorded(network, evaluation, training=False).counts)
    jobs = jobs_of(calls)
    plans = [plan_job(job) for job in jobs]
    pruned = sum(sum(plan.pruned.values()) for plan in plans)
    console.print(
        f"Tuning: {len(calls)} calls ask for {len(jobs)} configurations; "
        f"{sum(plan.valid for plan in plans)} are worth a look, {pruned} do the same or cannot run"
    )
    columns = (TextColumn("tuning"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(jobs))
        summaries = tune_jobs(
            jobs, InProcess(), budget_s=_BUDGET_S, progress=lambda done, _, __: progress.update(task, completed=done)
        )
    seconds = time.perf_counter() - start
    _print(console, summaries, seconds, cache)
    return {
        "seconds": seconds,
        "keys": len(summaries),
        "how": dict(Counter(s.how for s in summaries)),
        "gain": geometric_gain(summaries),
    }


def _print(console: Console, summaries: Sequence[Summary], seconds: float, cache: Path) -> None:
    changed = [s for s in summaries if dict(s.config) != dict(s.job.kernels_default)]
    for s in changed:
        config = ", ".join(
            f"{name} {value}" for name, value in s.config.items() if value != s.job.kernels_default[name]
        )
        console.print(f"  {s.job.tunable.name:<28}{s.gain:>6.2f}x  {config}")
    hows = ", ".join(f"{n} {how}" for how, n in sorted(Counter(s.how for s in summaries).items()))
    console.print(
        f"  {hows} in {seconds:.0f} s; {len(changed)} kernels leave their default, all keys together gain "
        f"{geometric_gain(summaries):.2f}x; cache in {cache}",
        soft_wrap=True,
    )
    console.print()
