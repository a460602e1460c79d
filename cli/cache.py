"""Commands that read and keep the autotuner's cache: explain coverage verify diff merge compact export clear."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from ..autotune import TARGETS, Recording, Tunable
from ..autotune.calls import Call
from ..autotune.lookup import MOST_DOUBLINGS, as_in_space, latest_choices, reload, tables
from ..autotune.report import (
    Regret,
    default_regret,
    differences,
    measured_times,
    model_error,
    model_regret,
    nearest_regret,
    statuses,
    write_table,
)
from ..autotune.resolve import Answer, look_up
from ..autotune.rows import Row, filed_of, identity, is_stale, text_of
from ..autotune.runner import InProcess, Isolated, Job, Runner
from ..autotune.store import Store
from ..autotune.tuner import jobs_of
from ..kernels._planning import GPU_BACKENDS, gpu_jobs
from ._console import folding, show
from ._shapes import LayerSpec, Sources
from .tune import AsJson, Inference, Model, Recorded, Shapes, Standard, _time, _words

Cache = Annotated[Path, typer.Argument(metavar="CACHE", help="A cache's directory, or one file of it.", exists=True)]
_STALE = "stale: other sources or another compiler wrote it"


# ---- explain


def explain(
    layer: Annotated[str, typer.Argument(metavar="LAYER", help='As in a program: "Conv2d(32, 64, 3, padding=1)".')],
    input_: Annotated[str, typer.Option("--input", metavar="N,C,H,W", help="Shape of the input.")],
    dtype: Annotated[str, typer.Option(help="Of the layer.")] = "float32",
    layout: Annotated[str, typer.Option(metavar="contiguous|channels_last", help="Of the input.")] = "contiguous",
    inference: Inference = False,
    arch: Annotated[
        str, typer.Option(metavar="|".join(TARGETS), help="Ask for this GPU, which need not be here.")
    ] = "",
    backend: Annotated[
        list[str] | None, typer.Option(metavar="triton|cupy", help="With --arch: only this; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say for one layer and shape which configuration each kernel runs with, and why that one."""
    try:
        shape = tuple(int(n) for n in input_.replace("x", ",").split(",") if n.strip())
    except ValueError:
        raise typer.BadParameter(f"--input {input_!r} must be whole numbers, such as 32,64,28,28") from None
    if arch and arch not in TARGETS:
        raise typer.BadParameter(f"--arch: {arch!r} is unknown, it must be one of {', '.join(TARGETS)}")
    calls = LayerSpec(layer, shape, dtype, layout, not inference).calls("cpu")
    jobs = gpu_jobs(calls.counts, arch, backend or GPU_BACKENDS)[0] if arch else jobs_of(calls)
    if not jobs:
        raise ValueError(f"{layer} asks for no configuration at this shape: none of its kernels has a choice")
    rows = tables().cache.rows()
    told = [_explained(job, look_up(job.tunable, job.problem), rows) for job in jobs]
    if as_json:
        print(json.dumps(told))
        return
    for one in told:
        print(f"{one['kernel']}  ({', '.join(f'{k} {v:g}' for k, v in one['sizes'].items())})")
        for name, value in one.items():
            if name not in ("kernel", "sizes", "exact") and value not in (None, [], {}):
                print(f"  {name.replace('_', ' '):<14} {_spelled(value)}")


def _spelled(value: Any) -> str:
    if isinstance(value, dict):
        return _words(value)
    if isinstance(value, list):
        return "; ".join(map(_spelled, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _explained(job: Job, answer: Answer, rows: list[Row]) -> dict[str, Any]:
    """Everything there is to say of one look-up, by name."""
    tunable, found = job.tunable, answer.found
    predicted_s = tunable.predicted(answer.config, job.problem)
    mine = measured_times(rows).get(job.filed, {})
    measured = mine.get(text_of(dict(answer.config)))
    told: dict[str, Any] = {
        "kernel": tunable.name,
        "sizes": dict(job.filed.sizes),
        "exact": json.loads(job.filed.exact),
        "rung": answer.rung,
        "configuration": dict(answer.config),
        "default": dict(job.kernels_default),
        "predicted_us": None if predicted_s is None else round(predicted_s * 1e6, 2),
        "measured_us": None if measured is None else measured["time_us"],
    }
    if found is not None:
        row = found.row
        told |= {
            "layer": found.layer,
            "doublings": round(found.doublings, 3),
            "nearest_is": row["key"]["sizes"] if found.doublings else None,
            "measured_us": told["measured_us"] or row["time_us"],
            "default_us": row.get("default_us"),
            "tied_with": [c for c in row.get("tied", []) if text_of(c) != text_of(row["config"])],
            "age": _age(row),
            "written_by": row.get("versions", {}),
            "stale": _STALE if found.stale else None,
        }
    elif (nearest := _nearest_beyond(job)) is not None:
        told["nearest_row"] = nearest
    told["others"] = _others(job, answer, mine)
    return told


def _nearest_beyond(job: Job) -> str:
    return tables().why_missing(job.tunable, job.problem).partition(": ")[2]


def _others(job: Job, answer: Answer, mine: dict[str, Row]) -> list[str]:
    """The next best that were measured for this key, with their times."""
    chosen = text_of(dict(answer.config))
    ranked = sorted((row["time_us"], text) for text, row in mine.items() if text != chosen)
    return [f"{_words(json.loads(text))} {time_us:g} us" for time_us, text in ranked[:3]]


def _age(row: Row) -> str:
    try:
        days = (datetime.now(UTC) - datetime.fromisoformat(row["written"])).total_seconds() / 86400
    except (KeyError, ValueError, TypeError):
        return "unknown"
    return f"{days:.1f} days" if days >= 0 else "written in the future: a clock jumped"


# ---- coverage


def coverage(
    model: Model = None,
    shapes: Shapes = None,
    standard: Standard = False,
    recorded: Recorded = False,
    inference: Inference = False,
    as_json: AsJson = False,
) -> None:
    """Say how good the cache is: which calls it answers from which rung, and how far off its guesses are."""
    cache = tables().cache
    rows = [row for store in (cache, *tables().shipped) for row in store.rows()]
    rungs: Counter[str] = Counter()
    if model or shapes or standard or recorded:
        for job in jobs_of(Sources(model, shapes, standard, recorded, not inference).gathered()):
            rungs[look_up(job.tunable, job.problem).rung] += job.weight
    nearest, without = nearest_regret(rows)
    regrets = {
        "model": model_regret(rows),
        f"nearest row, left out itself (within {MOST_DOUBLINGS:g} doublings)": nearest,
        "default instead of the choice": default_regret(rows),
    }
    by_kernel = Counter(row["key"]["tunable"] for row in latest_choices(rows))
    if as_json:
        told = {
            "rungs": dict(rungs),
            "choices": dict(by_kernel),
            "statuses": dict(statuses(rows)),
            "regret": {name: _regret_as_json(r) for name, r in regrets.items()},
            "without_neighbour": without,
            "model_error": error if math.isfinite(error := model_error(rows)) else None,
        }
        print(json.dumps(told))
        return
    if rungs:
        total = sum(rungs.values())
        shares = ", ".join(f"{n / total:.0%} {rung}" for rung, n in rungs.most_common())
        print(f"calls answered: {shares} (of {total})")
    print(f"{sum(by_kernel.values())} choices: {', '.join(f'{n} {name}' for name, n in sorted(by_kernel.items()))}")
    print(f"measured: {', '.join(f'{n} {status}' for status, n in sorted(statuses(rows).items())) or 'nothing'}")
    table = folding("guess", "keys", "typical regret", "worst", "at")
    for name, regret in regrets.items():
        at = "" if regret.at is None else f"{regret.at.tunable} {dict(regret.at.sizes)}"
        table.add_row(name, str(regret.keys), _percent(regret.typical), _percent(regret.worst), at)
    show(table)
    print(f"{without} keys have no measured neighbour near enough")
    if math.isfinite(error := model_error(rows)):
        print(f"the model's times are typically a factor {error:.2f} off, after scaling each kernel's as a whole")


def _regret_as_json(regret: Regret) -> dict[str, Any]:
    number = {"keys": regret.keys, "typical": regret.typical, "worst": regret.worst}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in number.items()}


def _percent(part: float) -> str:
    return "" if math.isnan(part) else f"{part:.1%}"


# ---- verify


def verify(
    share: Annotated[float, typer.Option(help="Of the choices, drawn at random.", min=0, max=1)] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    most_drift: Annotated[float, typer.Option(help="Of a time, beyond which a choice is reported.", min=0)] = 0.25,
    isolate: Annotated[bool, typer.Option("--isolate/--no-isolate", help="In a process that may crash.")] = True,
    as_json: AsJson = False,
) -> None:
    """Measure some choices of the cache again: are they still right, and still as fast. Exit code 1 where not."""
    choices = sorted((r for r in latest_choices(tables().cache.rows()) if r.get("call")), key=identity)
    drawn = random.Random(seed).sample(
        choices, min(len(choices), max(1, round(share * len(choices)))) if choices else 0
    )
    runner: Runner = Isolated() if isolate else InProcess()
    try:
        found = [_verified(row, runner, most_drift) for row in drawn]
    finally:
        runner.close()
    if as_json:
        print(json.dumps(found))
    else:
        table = folding("kernel", "configuration", "then", "now", "ratio", "")
        for one in found:
            ratio = f"{one['ratio']:.2f}" if one["ratio"] else ""
            now = _time(one["now_us"] / 1e6) if one["now_us"] else ""
            table.add_row(one["kernel"], _words(one["config"]), _time(one["then_us"] / 1e6), now, ratio, one["verdict"])
        show(table)
        print(f"{len(drawn)} of {len(choices)} choices measured again")
    if any(one["verdict"] != "ok" for one in found):
        raise typer.Exit(1)


def _verified(row: Row, runner: Runner, most_drift: float) -> dict[str, Any]:
    told = {"kernel": row["key"]["tunable"], "config": row["config"], "then_us": row["time_us"], "now_us": None}
    told |= {"ratio": None, "verdict": "ok"}
    job = _job_of(row)
    if job is None:
        return told | {"verdict": "stale: the kernel asks for another key now"}
    config = as_in_space(job.tunable, row["config"])
    if config is None:
        return told | {"verdict": "stale: no longer in the kernel's space"}
    (result,) = runner.measure(job, [config], "first", 15, math.inf)
    if result.status != "ok":
        return told | {"verdict": f"{result.status}: {result.reason}"}
    now_us = median(result.samples) * 1e6
    ratio = now_us / row["time_us"]
    verdict = "ok" if abs(ratio - 1) <= most_drift else f"drifted by {ratio - 1:+.0%}"
    return told | {"now_us": now_us, "ratio": ratio, "verdict": verdict}


def _job_of(row: Row) -> Job | None:
    """The job whose key the row is filed under, from the call that it holds."""
    wanted = filed_of(row)
    for job in jobs_of(Recording({Call.from_json(row["call"]): 1})):
        if job.filed == wanted:
            return job
    return None


# ---- files


def merge(
    sources: Annotated[
        list[Path], typer.Argument(metavar="CACHE...", help="Directories or files of other caches.", exists=True)
    ],
    into: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="The cache that takes them; this user's if not given.")
    ] = None,
) -> None:
    """Add the rows of other caches to one; rows that it has are not added twice."""
    target = Store(into) if into is not None else tables().cache
    added = sum(target.add(Store(source, writable=False).rows()) for source in sources)
    if added and not target.kept:
        raise OSError(f"{target.directory} cannot be written to: nothing was merged")
    target.close()
    reload()
    print(f"{added} rows added to {target.directory}, {len(target.rows())} in all")


def compact() -> None:
    """Make one file of the cache's journals, except those that a process still writes to."""
    files, rows = tables().cache.compact()
    reload()
    print(f"{files} files became one; {rows} rows" if files else f"nothing to do; {rows} rows")


def diff(before: Cache, after: Cache, as_json: AsJson = False) -> None:
    """List the keys whose choice differs between two caches, and what the second one gains."""
    changes = differences(Store(before, writable=False).rows(), Store(after, writable=False).rows())
    if as_json:
        told = [
            {**c.filed.as_json(), "before": c.before, "after": c.after, "gain": None if math.isnan(c.gain) else c.gain}
            for c in changes
        ]
        print(json.dumps(told))
        return
    table = folding("kernel", "sizes", "before", "after", "gain")
    for c in changes:
        sizes = " ".join(f"{n}={v:g}" for n, v in c.filed.sizes)
        gain = "" if math.isnan(c.gain) else f"{c.gain:.2f}"
        table.add_row(c.filed.tunable, sizes, _words(c.before or {}), _words(c.after or {}), gain)
    show(table)
    print(f"{len(changes)} keys differ")


def export(
    output: Annotated[
        Path, typer.Argument(metavar="FILE.jsonl", help="Read-only table to ship; TILESMITH_TABLES names it later.")
    ],
    kernel: Annotated[str, typer.Option(metavar="PREFIX", help="Only kernels whose name begins so.")] = "",
    stale: Annotated[bool, typer.Option("--stale", help="Also rows that other sources or compilers wrote.")] = False,
) -> None:
    """Write the choices of the cache into one file that can be shipped."""
    rows = [r for r in tables().cache.rows() if r["kind"] == "choice" and r["key"]["tunable"].startswith(kernel)]
    if not stale:
        known = _tunables(rows)
        rows = [r for r in rows if (t := known.get(r["key"]["tunable"])) is None or not is_stale(r, t)]
    print(f"{write_table(rows, output)} choices written to {output}")


def _tunables(rows: list[Row]) -> dict[str, Tunable]:
    """The kernels' tunables by name, as the calls in the rows ask for them."""
    found: dict[str, Tunable] = {}
    for row in rows:
        if row["key"]["tunable"] not in found and row.get("call") and row["call"]["module"].endswith("_numpy"):
            job = _job_of(row)
            if job is not None:
                found[job.tunable.name] = job.tunable
    return found


def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete this user's cache: journals, plans and recordings. Tables that ship stay."""
    cache = tables().cache
    if not yes and not typer.confirm(f"delete {len(cache.rows())} rows in {cache.directory}?"):
        raise typer.Exit(1)
    count = cache.clear()
    reload()
    print(f"{count} rows deleted from {cache.directory}")
    if left := len(cache.rows()):
        print(f"{left} rows stay: a process still writes to their files, or they are not this cache's own")
