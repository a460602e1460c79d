"""Planning for GPUs that are not there: what a recorded call would ask on one, and what the compiler says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from .. import autotune
from ..autotune.calls import Call, TensorSpec, operation_of
from ..autotune.planning import Plan
from ..autotune.resolve import watched
from ..autotune.rows import Filed, filed
from ..autotune.runner import Job
from . import _arrays, _compile
from ._recording import record

GPU_BACKENDS = ("triton", "cupy")


def on_backend(call: Call, backend: str, device: str) -> Call | None:
    """The same call of another backend, with tensors on another device; ``None`` if the op has no such backend."""
    operation = operation_of(call.module)
    if operation is None or backend not in operation.backends:
        return None
    module = operation.module_of(backend)
    inputs, outputs = (
        tuple(None if t is None else replace(t, device=device) for t in side) for side in (call.inputs, call.outputs)
    )
    return replace(call, module=module, inputs=inputs, outputs=outputs)


def gpu_jobs(
    counts: Mapping[Call, int], arch: str, backends: Sequence[str] = GPU_BACKENDS
) -> tuple[list[Job], list[str]]:
    """One job a key that the calls would ask for on a GPU, most called first; and sentences on calls that cannot run.

    Args:
        counts: calls and how often each is made.
        arch: one of ``autotune.TARGETS``.
    """
    jobs: dict[Filed, Job] = {}
    refused = []
    for call, count in counts.items():
        for backend in backends:
            there = on_backend(call, backend, "cuda")
            if there is None:
                continue
            try:
                asked = _asked(there, arch)
            except (NotImplementedError, ValueError) as error:
                refused.append(f"{there.words()}: {error}")
                continue
            for tunable, problem in asked:
                if tunable.key is not None:
                    place = filed(tunable, problem)
                    known = jobs.get(place)
                    weight = count + (known.weight if known else 0)
                    call_of = known.call if known else there
                    jobs[place] = Job(tunable, problem, place, tunable.default(problem), call_of, weight)
    return sorted(jobs.values(), key=lambda job: (-job.weight, str(job.filed))), refused


def _asked(call: Call, arch: str) -> list[tuple[autotune.Tunable, Any]]:
    asked: dict[str, tuple[autotune.Tunable, Any]] = {}

    def note(tunable: autotune.Tunable, problem: Any, _: autotune.Config) -> None:
        asked[tunable.name] = tunable, problem

    with autotune.target(arch), watched(note), record():
        made_launches(call)
    return list(asked.values())


def made_launches(call: Call) -> None:
    """Makes the launches of a call on tensors without elements."""
    inputs, outputs = ([None if t is None else _meta(t) for t in side] for side in (call.inputs, call.outputs))
    _arrays.run(call.implementation, call.function, call.problem, inputs, outputs)


def pinned_launches(call: Call, name: str, config: tuple[tuple[str, Any], ...]) -> None:
    """What a worker of the compiling rig records: one configuration of one kernel of a call."""
    with autotune.pin(name, dict(config)):
        made_launches(call)


def _meta(spec: TensorSpec) -> torch.Tensor:
    """Aligned as the recorded one was."""
    storage = torch.empty(spec.misaligned + max(spec.span, 1), dtype=spec.torch_dtype, device="meta")
    return storage.as_strided(spec.shape, spec.strides, spec.misaligned)


def compile_plans(plans: Sequence[Plan], arch: str, workers: int = 2, told: Callable[[], None] = lambda: None) -> None:
    """Compiles every configuration on the lists and strikes those that spill, do not fit or do not compile.

    Args:
        told: is called after each.
    """
    places = [(plan, i) for plan in plans for i in range(len(plan.ranked))]
    calls = [
        _compile.Call(
            f"{__name__}:{pinned_launches.__name__}", (plan.job.call, plan.job.tunable.name, _items(plan, i)), arch
        )
        for plan, i in places
    ]
    wanted: list[tuple[_compile.Call, int, _compile.Build]] = []
    whose: list[tuple[Plan, int, _compile.Recorded]] = []
    for (plan, i), call, found in zip(places, calls, _compile.recorded(calls, workers), strict=True):
        if isinstance(found, _compile.Failure):
            plan.refused[i] = "compile", found.reason
            told()
            continue
        mine = [n for n, one in enumerate(found) if one.space is not None and one.space.name == plan.job.tunable.name]
        if not mine:
            told()
        for number in mine[:1]:
            wanted.append((call, number, found[number].build))
            whose.append((plan, i, found[number]))

    def judge(place: int, answer: _compile.Resources | _compile.Failure) -> None:
        plan, i, one = whose[place]
        faults = _compile.faults(one.build, answer, one.tensor_cores)
        if isinstance(answer, _compile.Failure):
            plan.refused[i] = "compile", answer.reason
        else:
            plan.resources[i] = {k: v for k, v in asdict(answer).items() if v and k != "tensor_core"}
            if faults:
                spilled = answer.spill_bytes or answer.local_accesses
                plan.refused[i] = "spill" if spilled else "resources", "; ".join(faults)
        told()

    _compile.compiled(wanted, workers, told=judge)


def _items(plan: Plan, i: int) -> tuple[tuple[str, Any], ...]:
    return tuple(plan.ranked[i][0].items())
