"""``tilesmith plan``, ``record`` and ``tune``: what to measure, what a program needs, and measuring it."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..autotune import TARGETS, Recording, record
from ..autotune.lookup import tables
from ..autotune.planning import Plan, plan_job
from ..autotune.resolve import look_up
from ..autotune.rows import Row
from ..autotune.runner import Isolated, Job, Replay, Runner
from ..autotune.search import MOST_MEASUREMENTS
from ..autotune.store import Store
from ..autotune.tuner import Summary, geometric_gain, jobs_of, tune_jobs
from ..autotune.tuning import exchange, share
from ..kernels._planning import GPU_BACKENDS, compile_plans, gpu_jobs, on_backend
from ._console import folding, show
from ._shapes import Sources

Model = Annotated[
    str | None,
    typer.Option(metavar="MODULE:CALLABLE", help="Called without arguments it returns (model, example input, ...)."),
]
Shapes = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Lines of JSON: what record wrote, or {"layer": "Conv2d(3, 8, 3)", "input": [1, 3, 32, 32]}.',
        exists=True,
        dir_okay=False,
    ),
]
Standard = Annotated[bool, typer.Option("--standard", help="Layers of well-known networks.")]
Recorded = Annotated[bool, typer.Option("--recorded", help="What the command record left in the cache.")]
Inference = Annotated[bool, typer.Option("--inference", help="Only forwards, without gradients.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def plan(
    model: Model = None,
    shapes: Shapes = None,
    standard: Standard = False,
    recorded: Recorded = False,
    inference: Inference = False,
    arch: Annotated[
        list[str] | None,
        typer.Option(metavar="|".join(TARGETS), help="Plan for this GPU, which need not be here; may be repeated."),
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(metavar="triton|cupy", help="Only kernels of this backend; may be repeated.")
    ] = None,
    most: Annotated[int, typer.Option(help="Configurations a key on the shortlist.", min=1)] = 8,
    jobs: Annotated[int, typer.Option(help="Compilers at the same time.", min=1)] = os.cpu_count() or 1,
    compiling: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Strike what spills or does not fit.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Write shortlists of what is worth measuring into the cache; for a GPU, what its compiler accepts."""
    for one in arch or []:
        if one not in TARGETS:
            raise typer.BadParameter(f"--arch: {one!r} is unknown, it must be one of {', '.join(TARGETS)}")
    calls = Sources(model, shapes, standard, recorded, not inference).gathered()
    plans: list[Plan] = []
    sentences: list[str] = []
    for one in arch or [""]:
        if one:
            found, refused = gpu_jobs(calls.counts, one, backend or GPU_BACKENDS)
            sentences += refused
        else:
            found = jobs_of(calls)
        mine = [plan_job(job, most) for job in found]
        if one and compiling:
            _compiled(mine, one, jobs)
        plans += mine
    cache = tables().cache
    for one_plan in plans:
        for row in one_plan.rows():
            cache.append(row)
    if as_json:
        print(json.dumps({"plans": [_plan_as_json(p) for p in plans], "refused": sentences}))
        return
    _print_plans(plans)
    for sentence in sentences:
        print(f"not planned: {sentence}")
    print(f"{len(plans)} keys planned, written to {cache.directory}")


def _compiled(plans: Sequence[Plan], arch: str, jobs: int) -> None:
    with _bar("configurations") as progress:
        task = progress.add_task(f"compile for {arch}", total=sum(len(p.ranked) for p in plans), best="")
        compile_plans(plans, arch, jobs, told=lambda: progress.advance(task))


def _plan_as_json(plan: Plan) -> dict[str, Any]:
    return {
        **plan.job.filed.as_json(),
        "valid": plan.valid,
        "pruned": dict(plan.pruned),
        "shortlist": [{"config": dict(c), "predicted_us": round(s * 1e6, 3)} for c, s in plan.kept],
        "refused": [
            {"config": dict(plan.ranked[i][0]), "status": status, "reason": why}
            for i, (status, why) in plan.refused.items()
        ],
    }


def _print_plans(plans: Sequence[Plan]) -> None:
    table = folding("kernel", "sizes", "valid", "pruned", "refused by the compiler", "first choice", "predicted")
    for plan in plans:
        first = plan.kept[0] if plan.kept else None
        table.add_row(
            plan.job.tunable.name,
            _sizes(plan.job),
            str(plan.valid),
            str(sum(plan.pruned.values())),
            _counts(Counter(status for status, _ in plan.refused.values())),
            "" if first is None else _words(first[0]),
            "" if first is None or not first[1] else _time(first[1]),
        )
    show(table)


def record_(
    command: Annotated[list[str], typer.Argument(metavar="SCRIPT [ARGS]...", help="A Python script, or -m MODULE.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write them there, not into the cache.")
    ] = None,
) -> None:
    """Run a script and take down every call of a kernel that it makes: what to tune for."""
    before, code = sys.argv, 0
    with record() as recording:
        try:
            if command[0] == "-m":
                sys.argv = command[1:]
                sys.path.insert(0, os.getcwd())
                runpy.run_module(command[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = command
                sys.path.insert(0, str(Path(command[0]).resolve().parent))
                runpy.run_path(command[0], run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        finally:  # also what a script made that failed or was interrupted
            sys.argv = before
            sys.path.pop(0)
            _keep(recording, output)
    if code:
        print(f"warning: the script ended with {code}", file=sys.stderr)
        raise typer.Exit(code)


def _keep(recording: Recording, output: Path | None) -> None:
    if output is not None:
        recording.save(output)
    else:
        at = datetime.now(UTC).isoformat()  # two recordings of the same calls are two
        for row in recording.rows():
            tables().cache.append({**row, "written": at})
    where = output or tables().cache.directory
    print(f"{len(recording)} different calls of {sum(recording.counts.values())}, written to {where}")


def tune(
    model: Model = None,
    shapes: Shapes = None,
    standard: Standard = False,
    recorded: Recorded = False,
    inference: Inference = False,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="Begin no further key after this long: 90s, 10m, 2h.")
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on where a tune that was killed stopped.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Measure also keys that have a fresh choice.")] = False,
    gpus: Annotated[str, typer.Option(metavar="0,1", help="Share the keys among these GPUs.")] = "",
    backend: Annotated[
        list[str] | None, typer.Option(metavar="triton|cupy", help="On a GPU, these backends; may be repeated.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Compilers at the same time, on a GPU.", min=1)] = os.cpu_count() or 1,
    arch: Annotated[
        list[str] | None,
        typer.Option(metavar="|".join(TARGETS), help="Measure nothing: plan for this GPU, as the command plan does."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="That one measurement may take.", min=0.1)] = 60.0,
    isolate: Annotated[
        bool, typer.Option("--isolate/--no-isolate", help="Measure in a process that may crash or hang.")
    ] = True,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="CACHE", help="Ask recorded rows instead of a device: a file or directory.", exists=True),
    ] = None,
    noise: Annotated[float, typer.Option(help="Of a replay, as a part of each time.", min=0)] = 0.0,
    pause: Annotated[float, typer.Option(help="Seconds that a replayed measurement takes.", min=0)] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Measure the kernels that a model or a list of shapes needs and keep what is best: makes the cache ahead."""
    budget_s = _seconds(budget)
    if arch:
        plan(model, shapes, standard, recorded, inference, arch, backend, MOST_MEASUREMENTS, jobs, True, as_json)
        return
    _join_ranks()
    device = "cuda" if torch.cuda.is_available() and replay is None else "cpu"
    sources = Sources(model, shapes, standard, recorded, not inference, device)
    calls = sources.gathered()
    if device == "cuda":
        calls = _on_backends(calls, backend or GPU_BACKENDS)
    found = share(jobs_of(calls))
    named: list[int | None] = [int(g) for g in gpus.split(",") if g.strip()]
    cards = named or [None]
    if gpus and not isolate:
        raise typer.BadParameter("--gpus needs a process for each card: leave --no-isolate out")
    if len({torch.cuda.get_device_name(card) for card in named if device == "cuda"}) > 1:
        raise typer.BadParameter(f"--gpus {gpus}: the cards are not alike, tune for each by itself")
    runners: list[Runner] = []
    for card in cards:
        if replay is not None:
            runners.append(Replay(Store(replay, writable=False).rows(), noise, pause_s=pause))
        else:
            runners.append(_runner(isolate, card, seconds))
    if device == "cuda":
        _plan_first(found, jobs)
    began = time.monotonic()
    with _bar("keys") as progress:
        task = progress.add_task("tune", total=len(found), best="")
        done: list[Summary] = []

        def told(_: int, __: int, summary: Summary | None) -> None:
            if summary is not None:
                done.append(summary)
                progress.update(task, completed=len(done), best=f"{geometric_gain(done):.2f}x so far")

        summaries = tune_jobs(found, runners, budget_s=budget_s, force=force, resume=resume, progress=told)
    if torch.distributed.is_initialized():
        exchange()
    if as_json:
        print(json.dumps({"keys": [_as_json(s) for s in summaries], "gain": geometric_gain(summaries)}))
    else:
        for words in sources.words:
            print(words)
        _print_summaries(summaries)
        took = time.monotonic() - began
        print(
            f"{_counts(Counter(s.how for s in summaries))} of {len(summaries)} keys in {took:.0f} s; "
            f"gain {geometric_gain(summaries):.2f}x over the defaults; cache: {tables().cache.directory}"
        )
    if any(s.how == "failed" for s in summaries):
        raise typer.Exit(1)


def _runner(isolate: bool, card: int | None, seconds: float) -> Runner:
    from ..autotune.runner import InProcess

    return Isolated(card, seconds) if isolate else InProcess()


def _on_backends(calls: Recording, backends: Sequence[str]) -> Recording:
    found = Recording()
    for call, count in calls.counts.items():
        for name in backends:
            there = on_backend(call, name, call.device)
            if there is not None:
                found.counts[there] += count
    return found


def _plan_first(found: Sequence[Job], jobs: int) -> None:
    """Strikes what would spill before anything of it is measured."""
    major, minor = torch.cuda.get_device_capability()
    arch = f"sm_{major}{minor}"
    if arch in TARGETS:
        new = [job for job in found if look_up(job.tunable, job.problem).is_guess]
        plans = [plan_job(job, MOST_MEASUREMENTS) for job in new]
        _compiled(plans, arch, jobs)
        for one in plans:
            for row in one.rows():
                tables().cache.append(row)


def _join_ranks() -> None:
    """Under torchrun the ranks share one tune."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def _seconds(text: str) -> float:
    if not text:
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None:
        raise typer.BadParameter(f"--budget {text!r} must look like 90s, 10m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


# ---- what people see


def _bar(what: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[best]}"),
        console=Console(stderr=True),
        transient=True,
    )


def _print_summaries(summaries: Sequence[Summary]) -> None:
    table = folding(
        "kernel", "sizes", "calls", "default", "best", "gain", "configuration", "tried", "pruned", "failed", ""
    )
    for s in summaries:
        table.add_row(
            s.job.tunable.name,
            _sizes(s.job),
            str(s.job.weight),
            _time(s.default_s),
            _time(s.time_s),
            f"{s.gain:.2f}" if s.how in ("tuned", "known") else "",
            _words(s.config),
            f"{s.tried}" + (f" + {s.reused} known" if s.reused else ""),
            str(sum(s.pruned.values())),
            _counts(s.failed),
            s.how,
        )
    show(table)
    for s in summaries:
        for config, why in s.reasons.items():
            print(f"{s.job.tunable.name} {config}: {why}")


def _as_json(s: Summary) -> Row:
    return {
        **s.job.filed.as_json(),
        "how": s.how,
        "config": dict(s.config),
        "default": dict(s.job.kernels_default),
        "default_us": s.default_s * 1e6 if math.isfinite(s.default_s) else None,
        "time_us": s.time_s * 1e6 if math.isfinite(s.time_s) else None,
        "gain": s.gain,
        "calls": s.job.weight,
        "tried": s.tried,
        "reused": s.reused,
        "pruned": dict(s.pruned),
        "failed": dict(s.failed),
        "reasons": s.reasons,
    }


def _sizes(job: Job) -> str:
    return " ".join(f"{name}={value:g}" for name, value in job.filed.sizes)


def _words(config: Any) -> str:
    return " ".join(f"{k}={v}" for k, v in config.items())


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))


def _time(seconds: float) -> str:
    if math.isnan(seconds) or math.isinf(seconds):
        return ""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
