"""Softmax and log-softmax in CUDA C++: what the kernels of ``softmax.cu`` may be run with, and how they are launched.

Slices that fit the registers of a block, or its shared memory, are read once; longer ones in two passes, and few long
ones in parts, with a launch for each pass. A tensor in another order than the output's is copied into it first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import autotune
from ...autotune import Config, Cost, Tunable, fastest
from .._cuda import ELEMENTS, launch
from .._division import blocks_of, power_of_two
from ..activation._dense import common_alignment, in_the_order_of
from ._slices import Parts, Slices, Softmax, flat, parts_of

ON_TENSORS = True

_SOURCE = Path(__file__).with_name("softmax.cu")
_OFFSETS = 2**31
_SHORT_ROW = 256  # bytes below which vectors that neighbours share are too many of all


# ---- spaces


@dataclass(frozen=True)
class Block:
    """How the threads of a block share its slices: ``team`` threads of ``units`` units each at a time.

    Attributes:
        slices: of the block.
        steps: how often a thread takes ``units`` units; 1 where they are all of its slices.
    """

    team: int
    units: int
    slices: int
    steps: int


def _units(problem: Softmax) -> int:
    """Of a slice, at most."""
    if problem.inner > 1:
        return problem.length
    return blocks_of(problem.length + (problem.vector - 1 if problem.shared_ends else 0), problem.vector)


def block(config: Config, problem: Softmax) -> Block:
    """Rows: teams no larger than a row needs. Columns: as told."""
    units, threads = _units(problem), config["THREADS"]
    if problem.inner == 1:
        team = min(threads, power_of_two(blocks_of(units, config["UNITS"])))
        slices = threads // team
    else:
        team = config["TEAM"]
        slices = threads // team * problem.vector
    at_once = min(config["UNITS"], blocks_of(units, team))
    return Block(team, at_once, slices, blocks_of(units, team * at_once))


def parts(config: Config, problem: Softmax, of: Block) -> Parts:
    return Parts(1, of.steps) if config["CACHED"] else parts_of(problem, of.steps, of.slices, config["BLOCKS"])


def _cache_bytes(config: Config, problem: Softmax, of: Block) -> int:
    """Shared memory in which a block's slices wait for the second pass."""
    return of.steps * of.units * config["THREADS"] * problem.vector * problem.itemsize * problem.reads


def _shared(config: Config, problem: Softmax, of: Block) -> int:
    together = config["THREADS"] * problem.vector * 2 if problem.inner > 1 and of.team > 1 else 64
    return together * problem.accumulator_bytes + (_cache_bytes(config, problem, of) if config["CACHED"] else 0)


def _held(of: Block, problem: Softmax) -> int:
    """Registers a thread for the elements it has read; the compiler makes halves floats at once."""
    return of.units * problem.vector * problem.accumulator_bytes // 4 * problem.reads


def _refusal(config: Config, problem: Softmax) -> str | None:
    of, threads, cached = block(config, problem), config["THREADS"], config["CACHED"]
    if config["UNITS"] > _UNITS[0] and config["UNITS"] >= 2 * of.units:
        return f"{config['UNITS']} units a thread are more than slices have"
    held = _held(of, problem)
    if held > _MOST_HELD[problem.itemsize][threads]:
        return f"{held} registers a thread for elements spill"
    if threads > 128 and of.slices > 2 * max(problem.slices, problem.vector):
        return f"{of.slices} slices are more than all {problem.slices}"
    if config["BLOCKS"] != _BLOCKS[0]:
        if of.steps == 1 or cached:
            return "slices that are read once are not cut"
        if blocks_of(problem.slices, of.slices) >= 4 * problem.device.multiprocessors:
            return "slices that fill the GPU are not cut"
    if cached:
        if _units(problem) <= _UNITS[0] * (threads if problem.inner == 1 else of.team):
            return f"slices of {_UNITS[0]} units a thread fit registers"
        shared = _shared(config, problem, of)
        if shared > problem.device.shared_bytes:
            return f"{shared} bytes of shared memory, {problem.device.name} has {problem.device.shared_bytes}"
    return None


def _columns_refusal(config: Config, problem: Softmax) -> str | None:
    team, teams = config["TEAM"], config["THREADS"] // config["TEAM"]
    if team > power_of_two(problem.length):
        return f"{team} threads for {problem.length} elements"
    if teams > power_of_two(blocks_of(problem.slices, problem.vector)) and team < min(
        _TEAMS[-1], power_of_two(problem.length)
    ):
        return f"{teams} times {problem.vector} slices are more than all {problem.slices}"
    return _refusal(config, problem)


def _waits(config: Config, problem: Softmax, of: Block, cut: Parts) -> float:
    """Loads that wait for one another, as if stores took part in the waiting."""
    if of.steps == 1:
        return 0.0
    reads = problem.reads * (1 if config["CACHED"] else 2)
    return cut.steps * reads / problem.reads * (reads + 1) / reads + cut.count // of.team


def _cost(config: Config, problem: Softmax) -> Cost:
    of, threads = block(config, problem), config["THREADS"]
    cut = parts(config, problem, of)
    passes = 1 if of.steps == 1 else 2
    elements = min(of.slices, problem.slices) * problem.length / cut.count
    # instructions go by lanes: those beyond a slice's end, and those of a slice that is not there, take their share
    lanes = threads * of.units * cut.steps * problem.vector
    # neighbouring threads read runs that are short for the memory's lines, unless rows lie behind each other
    run = of.slices if problem.inner > 1 else of.team * problem.vector
    lines = 1.0 if problem.inner == 1 and of.units == 1 else 1 + 8 / (run * problem.itemsize)
    # to put together what threads of a team know: shuffles, or a walk over shared memory
    walk = 2 * 4 * of.team * of.slices / threads if problem.inner > 1 else 40
    cost = Cost(
        blocks=blocks_of(problem.slices, of.slices) * cut.count,
        # the largest number is known before any exponential, and none of them is kept
        flops=lanes * problem.flops(2 if problem.reads == 1 else passes) + 2 * threads * (60 + walk),
        unit=problem.unit,
        bytes=elements * problem.itemsize * (problem.reads + 1) * lines,
        shared_traffic=2 * elements * problem.itemsize * problem.reads if config["CACHED"] else 0,
        steps=_waits(config, problem, of, cut),
        shared=_shared(config, problem, of),
        threads=threads,
        registers=min(255, 24 + _held(of, problem) * 7 // 4 + (4 * problem.vector if problem.inner > 1 else 0)),
        extra_bytes=4 * cut.count * problem.slices * problem.accumulator_bytes if cut.count > 1 else 0,
        extra_launches=int(cut.count > 1),
    )
    return problem.with_second_reads(cost, elements) if passes == 2 and not config["CACHED"] else cost


# Registers for elements with which nothing spills, by bytes of an element and number of threads; found by compiling
_MOST_HELD = {
    2: {1024: 16, 512: 32, 256: 64, 128: 64},
    4: {1024: 32, 512: 64, 256: 96, 128: 96},
    8: {1024: 8, 512: 16, 256: 32, 128: 32},
}
_UNITS = (4, 8, 2, 1, 16)
_TEAMS = (1, 2, 4, 8, 16, 32, 64)
_BLOCKS = (2, 4, 1)
_REASONS = {
    "THREADS": "128 and 256 for short slices; 512 and 1024 have the registers for the longest that are read once",
    "UNITS": "accesses of 16 bytes a thread has on the way, and keeps where they are all: what its registers hold",
    "CACHED": "1: longer slices wait in shared memory for the second pass; 0: they are read again",
    "BLOCKS": "blocks a multiprocessor, from which the number of parts follows where slices are few and long",
}


def _rows(name: str) -> Tunable:
    tunable = Tunable(
        name,
        {"THREADS": (128, 256, 512, 1024), "UNITS": _UNITS, "CACHED": (0, 1), "BLOCKS": _BLOCKS},
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_refusal,
        reasons=_REASONS,
        key=lambda problem: problem.key,
        cost=_cost,
    )
    return tunable


def _columns(name: str) -> Tunable:
    tunable = Tunable(
        name,
        {"THREADS": (128, 256), "UNITS": (4, 8, 16, 24), "TEAM": _TEAMS, "CACHED": (0, 1), "BLOCKS": _BLOCKS},
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_columns_refusal,
        reasons={
            **_REASONS,
            "TEAM": "threads that share a column: 1 needs no barrier, more hold longer columns or fill the GPU",
        },
        key=lambda problem: problem.key,
        cost=_cost,
    )
    return tunable


FORWARD = {False: _rows("cupy.softmax.rows"), True: _columns("cupy.softmax.columns")}
BACKWARD = {False: _rows("cupy.softmax.rows_backward"), True: _columns("cupy.softmax.columns_backward")}
TUNABLES = (*FORWARD.values(), *BACKWARD.values())


# ---- launches


def forward(what: tuple[int, bool], x: torch.Tensor, y: torch.Tensor) -> None:
    """``y = exp(x - max x) / Σ exp(x - max x)`` along a dimension, or its logarithm."""
    (x,) = in_the_order_of(y, [x])
    _run("softmax_forward", FORWARD, 2, what, [x, y])


def backward(what: tuple[int, bool], dy: torch.Tensor, y: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx`` from the output ``y`` and its gradient."""
    dy, y = in_the_order_of(dx, [dy, y])
    _run("softmax_backward", BACKWARD, 1, what, [dy, y, dx])


def _run(
    name: str, tunables: dict[bool, Tunable], numbers: int, what: tuple[int, bool], tensors: list[torch.Tensor]
) -> None:
    """One direction: a launch, or two where slices are cut into parts, which keep so many ``numbers`` of a slice."""
    dim, log = what
    out = tensors[-1]
    slices = Slices.of(out, dim)
    columns, itemsize = slices.inner > 1, out.element_size()
    vector, shared_ends = _vector(slices, tensors)
    problem = Softmax(
        slices.count, slices.length, slices.inner, len(tensors) - 1, log, itemsize, vector, shared_ends,
        autotune.device_of(out),
    )  # fmt: skip
    tunable = tunables[columns]
    config = autotune.resolve(tunable, problem)
    of = block(config, problem)
    cut = parts(config, problem, of)
    # a thread forms offsets of units beyond its slices' ends, and a team numbers of slices beyond the last
    margin = (of.team * of.units + vector) * (slices.inner if columns else vector) + of.slices
    index = "long long" if out.numel() + margin >= _OFFSETS else "int"
    accumulator = torch.float64 if out.dtype is torch.float64 else torch.float32
    statistics = None
    if cut.count > 1:
        statistics = torch.empty((cut.count, numbers, slices.count), dtype=accumulator, device=out.device)
    as_index: Any = np.int64 if index == "long long" else np.int32
    sizes = [as_index(size) for size in (slices.count, slices.length, slices.inner)]
    for reads, writes in ((1, 1),) if cut.count == 1 else ((1, 0), (0, 1)):
        launch(
            _SOURCE,
            name,
            {
                "ELEMENT": ELEMENTS[out.dtype],
                "INDEX": index,
                "LOG": int(log),
                "COLUMNS": int(columns),
                "UNIT": vector,
                "UNITS": of.units,
                "TEAM": of.team,
                "THREADS": config["THREADS"],
                "WHOLE": int(of.steps == 1),
                "CACHED": config["CACHED"],
                "READS": reads,
                "WRITES": writes,
                "SHARED_ENDS": int(shared_ends),
            },
            (blocks_of(slices.count, of.slices) * cut.count,),
            (config["THREADS"],),
            (
                *map(flat, tensors),
                statistics,
                *sizes,
                np.int32(cut.count),
                as_index(cut.steps * of.team * of.units),
            ),
            _cache_bytes(config, problem, of) if config["CACHED"] else 0,
            tunable=tunable,
            problem=problem,
            config=config,
        )


def _vector(slices: Slices, tensors: list[torch.Tensor]) -> tuple[int, bool]:
    """Elements that one access brings, and whether rows share vectors with their neighbours for it."""
    itemsize = tensors[0].element_size()
    aligned = common_alignment(tensors)
    run = (slices.length if slices.inner == 1 else slices.inner) * itemsize
    exact = gcd(aligned, run)
    if slices.inner == 1 and aligned == 16 and exact < 16 and run >= _SHORT_ROW:
        return 16 // itemsize, True
    return exact // itemsize, False
