"""What the spaces of NumPy kernels have in common: how a loop is cut, which values do the same, what a loop costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import torch

from ..autotune import Config, Device, cpu
from . import _blas, _parallel
from ._division import blocks_of

KB = 1024
MB = 1024 * KB

# NumPy spends some 10 ns on an inner loop, however short: a cache moves so many bytes meanwhile.
LOOP_BYTES = 256

Problem = TypeVar("Problem")


def made_once(problem: type[Problem]) -> Callable[..., Problem]:
    """Makes problems from all their fields but the last, the device, which is this machine's CPU.

    Equal ones are made and hashed once: kernels of tens of microseconds ask at every call, and both together took 4 us.
    """
    new: Callable[..., Problem] = problem
    compute = problem.__hash__

    def kept_hash(self: Any) -> int:
        values = self.__dict__
        if "_hash" not in values:
            values["_hash"] = compute(self)
        kept: int = values["_hash"]
        return kept

    problem.__hash__ = kept_hash  # type: ignore[method-assign]

    @lru_cache(maxsize=4096)
    def made(threads: int, *fields: Any) -> Problem:
        return new(*fields, cpu())

    def make(*fields: Any) -> Problem:
        return made(torch.get_num_threads(), *fields)

    return make


def unit(itemsize: int) -> str:
    """What computes in a dtype of this size."""
    return "double" if itemsize == 8 else "fma"


def workers(n: int, bytes_moved: int, products: int, device: Device) -> int:
    """Threads that ``parallel_for`` takes for a loop over ``n`` items."""
    worthwhile = bytes_moved // _parallel.MIN_BYTES_PER_WORKER
    if products > _blas.ALONE:
        worthwhile = max(worthwhile, products // _parallel.MIN_PRODUCTS_PER_WORKER)
    return max(1, min(device.multiprocessors, worthwhile, n))


def share(n: int, size: int, workers: int) -> int:
    """Items of a block: ``size``, or a worker's whole range where that is less."""
    return min(max(1, size), blocks_of(n, workers))


def repeated(
    name: str, space: Mapping[str, tuple[Any, ...]], config: Config, effect: Callable[[Config], object]
) -> str | None:
    """Why a value of the parameter does nothing new: one before it in the space, where the default stands first, cuts
    the problem in the same way while the other parameters stay. ``None`` if none does."""
    value = config[name]
    mine = effect(config) if value != space[name][0] else None
    for other in space[name]:
        if other == value:
            return None
        if effect({**config, name: other}) == mine:
            return f"{name} {value} cuts this problem as {other} does"
    return None
