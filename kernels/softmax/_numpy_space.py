"""What the NumPy kernels of softmax may be run with: how large a block of slices is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...autotune import Config, Cost, Device, Key, Tunable
from .._division import blocks_of
from .._numpy_tuning import KB, LOOP_BYTES, MB, made_once, repeated, share, unit, workers

SPACE = {"BLOCK_BYTES": (256 * KB, 512 * KB, 128 * KB, 1 * MB, 64 * KB, 2 * MB)}
LEAST_BLOCK_BYTES = min(SPACE["BLOCK_BYTES"])

_PASSES = 8  # over a block: in and out of five or six calls
_CALLS = 6
_FLOPS = 30  # of an element, most of them the exponential's


@dataclass(frozen=True)
class Blocks:
    """``count`` independent items of ``item_bytes``, cut along a dimension that slices do not have.

    Attributes:
        reads: arrays that are read.
        length: of a slice, whose elements lie ``inner`` apart.
        neighbours: whether the dimension that is cut lies innermost in memory: then a block's rows are short.
    """

    log: bool
    reads: int
    count: int
    item_bytes: int
    length: int
    inner: int
    neighbours: bool
    itemsize: int
    device: Device

    @property
    def workers(self) -> int:
        return workers(self.count, (self.reads + 1) * self.count * self.item_bytes, 0, self.device)


blocks_of_a_call = made_once(Blocks)


def _items(config: Config, problem: Blocks) -> int:
    return share(problem.count, config["BLOCK_BYTES"] // problem.item_bytes, problem.workers)


def _refusal(config: Config, problem: Blocks) -> str | None:
    return repeated("BLOCK_BYTES", SPACE, config, lambda other: _items(other, problem))


def _key(problem: Blocks) -> Key:
    d, layout = problem.device, (problem.inner == 1, problem.neighbours)
    return Key(
        (*layout, problem.log, problem.reads, problem.itemsize, d.name, d.multiprocessors),
        {
            "bytes": problem.count * problem.item_bytes,
            "item_bytes": problem.item_bytes,
            "length": problem.length,
        },
    )


def _cost(config: Config, problem: Blocks) -> Cost:
    items = _items(config, problem)
    block_bytes = items * problem.item_bytes
    elements = block_bytes // problem.itemsize
    run = problem.length if problem.inner == 1 else items if problem.neighbours else problem.inner
    return Cost(
        blocks=blocks_of(problem.count, items),
        flops=elements * _FLOPS,
        unit=unit(problem.itemsize),
        bytes=_PASSES * block_bytes + _CALLS * elements / run * LOOP_BYTES,
        steps=_CALLS,
        shared=(problem.reads + 1) * block_bytes,
        threads=problem.workers,
    )


def tunable(direction: str, default: Callable[[Blocks], Config]) -> Tunable:
    return Tunable(
        f"numpy.softmax.{direction}",
        SPACE,
        default=default,
        refusal=_refusal,
        reasons={
            "BLOCK_BYTES": "of one array's slices that are read and written by some six calls in turn: 64 KiB to 2 MiB "
            "by powers of two, from where calls are felt to where two arrays fill no second-level cache"
        },
        key=_key,
        cost=_cost,
    )
