"""Tuning a model, or whatever runs inside a block: recording its calls, measuring them, sharing the work of ranks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import calls as _calls
from . import lookup
from .calls import Call, Recording, record
from .lookup import Tables
from .resolve import current_mode, forget, look_up
from .resolve import mode as looking_up
from .rows import Row, text_of
from .runner import InProcess, Job, Runner
from .tuner import Progress, Summary, jobs_of, tune_jobs


def recorded(model: Callable[..., Any], *example: Any, training: bool = True) -> Recording:
    """The calls of kernels that ``model(*example)`` makes, forward and, in training, backward.

    Gradients that the model's parameters had are kept, and so are its buffers (the running statistics of batch norm
    among them) and the state of torch's random numbers. The backward is that of the sum of all floating outputs.
    """
    modules: list[Any] = list(model.modules()) if hasattr(model, "modules") else []
    gradients = [(p, p.grad) for module in modules for p in module.parameters(recurse=False)]
    buffers = [(m, name, b, b.detach().clone()) for m in modules for name, b in m._buffers.items() if b is not None]
    for p, _ in gradients:
        p.grad = None
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with record() as recording, torch.set_grad_enabled(training), torch.random.fork_rng(devices):
            outputs = [t for t in _tensors(model(*example)) if t.is_floating_point()]
            wanted = [t for t in outputs if t.requires_grad]
            if training and wanted:
                torch.autograd.backward([t.sum() for t in wanted])
    finally:
        for p, gradient in gradients:
            p.grad = gradient
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)
    return recording


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif hasattr(value, "data") and isinstance(value.data, torch.Tensor):  # a PackedSequence
        yield value.data


def tune(
    model: Callable[..., Any],
    *example: Any,
    training: bool = True,
    budget_s: float = math.inf,
    force: bool = False,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> list[Summary]:
    """Tunes every kernel that ``model(*example)`` uses, and its backward in training, for this machine.

    What is measured goes into the cache (``TILESMITH_CACHE``) as it is measured; keys with a fresh choice are left
    alone. Under ``torch.distributed`` the ranks share the keys and end with the same rows.

    Args:
        model: a module or any other callable.
        example: what it is called with; sizes, dtypes and memory formats are what is tuned for.
        budget_s: seconds after which no further key is begun.
        force: also keys that have a fresh choice.
        runner: who measures; by default a worker process, which may crash or hang.
        progress: is told after each key.

    Returns:
        What became of each key, the ones called most often first.
    """
    return tune_calls(
        recorded(model, *example, training=training), budget_s=budget_s, force=force, runner=runner, progress=progress
    )


def tune_calls(
    calls: Iterable[Call] | Recording,
    *,
    budget_s: float = math.inf,
    force: bool = False,
    runner: Runner | None = None,
    tables: Tables | None = None,
    progress: Progress | None = None,
) -> list[Summary]:
    """As :func:`tune`, for calls that were recorded."""
    mine = share(jobs_of(calls))
    summaries = tune_jobs(mine, runner, tables, budget_s=budget_s, force=force, progress=progress)
    if ranks() > 1:
        exchange(tables)
    return summaries


# ---- modes that tune


@contextmanager
def mode(name: str) -> Iterator[None]:
    """What a look-up may do inside the ``with`` block, in the whole process.

    ``TILESMITH_AUTOTUNE``, read at import, sets it from outside.

    Args:
        name: "off": pinned configurations and defaults only. "lookup", which is the rule: the ladder, and nothing is
            ever measured. "tune_on_miss": a call whose kernels have no fresh row is tuned first, in this process.
            "force": every call is tuned anew, once. "require": :class:`NotTuned` is raised where only the nearest
            problem's row or a guess would answer. While a CUDA graph is captured nothing is measured.

    Raises:
        ValueError: no such mode.
    """
    with looking_up(name):
        if name not in ("tune_on_miss", "force"):
            yield
            return
        tuning = _Tuning(force=name == "force")
        with _calls.before_each(tuning):
            yield


def tune_always(name: str) -> None:
    """Has calls tuned before they are made from now on, as the environment says."""
    _calls.start_before_each(_Tuning(force=name == "force"))


class _Tuning:
    """Tunes each call the first time it comes by. While a CUDA graph is captured, and inside a block whose mode is
    another, calls only look up."""

    def __init__(self, force: bool) -> None:
        self._mode = "force" if force else "tune_on_miss"
        self._seen: set[Call] = set()
        self._said = False

    def __call__(self, call: Call) -> None:
        if current_mode() != self._mode or call in self._seen or _capturing(call):
            return
        self._seen.add(call)
        force = self._mode == "force"
        try:
            jobs = [job for job in jobs_of([call]) if force or look_up(job.tunable, job.problem).is_guess]
            if jobs:
                tune_jobs(jobs, InProcess(), force=force)
        except Exception as error:  # the call itself needs no tuning
            if not self._said:
                warnings.warn(f"{call.words()} could not be tuned: {error}", stacklevel=2)
            self._said = True


def _capturing(call: Call) -> bool:
    return call.device == "cuda" and torch.cuda.is_current_stream_capturing()


# ---- ranks


def ranks() -> int:
    """Of the default process group; 1 without one."""
    return torch.distributed.get_world_size() if _distributed() else 1


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def share(jobs: list[Job]) -> list[Job]:
    """This rank's part of the jobs: every so-manieth in an order that is the same on all, whatever each measured."""
    if ranks() == 1:
        return jobs
    names = sorted(text_of(job.filed.as_json()) for job in jobs)
    mine = set(names[torch.distributed.get_rank() :: ranks()])
    return [job for job in jobs if text_of(job.filed.as_json()) in mine]


def exchange(tables: Tables | None = None) -> None:
    """Gives every rank the rows of all; those that a rank's cache lacks are written there."""
    tables = tables or lookup.tables()
    mine = tables.cache.rows()
    gathered: list[list[Row]] = [[] for _ in range(ranks())]
    torch.distributed.all_gather_object(gathered, mine)
    for rows in gathered:
        tables.cache.add(rows)
    tables.reload()
    forget()


def digest() -> str:
    """Equal on two processes whose look-ups answer alike: of every choice that they may use."""
    return lookup.tables().digest()


def check_ranks() -> None:
    """Checks that every rank looks up what rank 0 does. A collective call.

    Raises:
        RuntimeError: on each rank that differs; names the first row in which it does.
    """
    if ranks() == 1:
        return
    mine = lookup.tables().lines()
    standard: list[Any] = [mine]
    torch.distributed.broadcast_object_list(standard, src=0)
    theirs = standard[0]
    differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if differing:
        name = differing[0]
        how = "has" if name not in theirs else "lacks" if name not in mine else "has another"
        raise RuntimeError(
            f"rank {torch.distributed.get_rank()} {how} row [{name}] than rank 0 does ({len(differing)} rows differ): "
            "its kernels would run with other configurations; give all ranks one cache, or tune() together"
        )
