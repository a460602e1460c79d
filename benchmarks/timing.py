"""Timing several callables in one run so that noise hits all of them, one of them through pytest-benchmark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

BLOCK_SECONDS = 0.02  # calls of one side in a row before the other side's turn
MIN_BLOCK = 3
MAX_BLOCK = 200
MIN_BLOCKS = 5
MAX_BLOCKS = 30


def interleaved(
    benchmark: BenchmarkFixture,
    target: Callable[[], Any],
    others: Mapping[str, Callable[[], Any]],
    seconds: float,
) -> dict[str, float]:
    """Times ``target`` in pytest-benchmark's rounds, and ``others`` in between; returns all medians.

    The sides take turns in blocks of calls, each after a call that is not timed. Single calls in turn would time
    something else: the idle threads of one library's pool spin for milliseconds after a call, on cores that the other
    library needs (a 0.2 ms matrix product of ours right after one of torch's took 4 ms on two cores).

    Args:
        others: by name.
        seconds: about how long the whole takes.

    Returns:
        Median seconds a call by name, that of ``target`` under "tilesmith".
    """
    timer = benchmark._timer  # what its own rounds are timed with
    sides = [target, *others.values()]
    estimates = [_estimate(side, timer) for side in sides]
    block = min(MAX_BLOCK, max(MIN_BLOCK, math.ceil(BLOCK_SECONDS / max(estimates))))
    blocks = min(MAX_BLOCKS, max(MIN_BLOCKS, int(seconds / (sum(estimates) * (block + 1)))))
    times: dict[str, list[float]] = {name: [] for name in others}
    rounds_begun = 0

    def before_round() -> None:
        nonlocal rounds_begun
        if rounds_begun % block == 0:
            for name, other in others.items():
                other()
                times[name] += [_timed(other, timer) for _ in range(block)]
            target()
        rounds_begun += 1

    benchmark.pedantic(target, setup=before_round, rounds=block * blocks)
    if benchmark.stats is not None:  # not with --benchmark-disable
        times["tilesmith"] = benchmark.stats.stats.data
    return {name: statistics.median(values) for name, values in times.items()}


def synchronised(function: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The function, waiting until the device has done what it asked for."""
    if device.type != "cuda":
        return function

    def call() -> Any:
        result = function()
        torch.cuda.synchronize(device)
        return result

    return call


def _estimate(function: Callable[[], Any], timer: Callable[[], float]) -> float:
    """Seconds a call takes, once warm."""
    for _ in range(2):
        function()
    return max(1e-7, statistics.median(_timed(function, timer) for _ in range(5)))


def _timed(function: Callable[[], Any], timer: Callable[[], float]) -> float:
    start = timer()
    function()
    return timer() - start
