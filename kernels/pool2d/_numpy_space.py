"""What the NumPy kernels of pooling may be run with: how large a block is, and what NumPy copies into its buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ...autotune import Config, Cost, Device, Key, Tunable
from .._division import blocks_of
from .._numpy_tuning import KB, LOOP_BYTES, MB, made_once, repeated, share, unit, workers
from ._numpy_avg import is_product, products
from ._numpy_index import tiles_of_few_taps
from ._numpy_windows import Problem, as_ordinary, at_every_position, is_whole_plane

SPACE = {
    "BLOCK_BYTES": (2 * MB, 1 * MB, 512 * KB, 4 * MB, 256 * KB, 128 * KB, 64 * KB),
    "BUFFER": (1024, 256, 8192),
}
LEAST_BLOCK_BYTES = min(SPACE["BLOCK_BYTES"])


@dataclass(frozen=True)
class Blocks:
    """One direction over ``count`` planes or images.

    Attributes:
        channels: side by side in memory.
        index_bytes: of one index, 0 without.
    """

    direction: str
    problem: Problem
    count: int
    channels: int
    itemsize: int
    index_bytes: int
    device: Device

    @cached_property
    def item_bytes(self) -> int:
        """Of a plane or an image, in the largest array."""
        p = self.problem
        largest = max(p.H * p.W * self.itemsize, p.P * p.Q * max(self.itemsize, self.index_bytes))
        return p.N * p.C * largest // self.count

    @property
    def products(self) -> int:
        """Multiplications in matrix products."""
        return products(self.problem) if self.direction.startswith("avg") else 0

    @cached_property
    def workers(self) -> int:
        bytes_moved = self.problem.bytes_moved(self.itemsize, self.index_bytes)
        return workers(self.count, bytes_moved, self.products, self.device)

    @property
    def method(self) -> str:
        """What is done to a block: the kernels' own choice, by shapes alone."""
        problem, average = self.problem, self.direction.startswith("avg")
        if self.direction in ("max_backward", "max_gather"):
            few = tiles_of_few_taps(problem, self.channels, self.index_bytes)
            return "taps" if few and self.direction == "max_backward" else "indices"
        if is_whole_plane(problem):
            return "planes"
        if average and is_product(problem, self.channels):
            return "product"
        if self.direction == "avg_backward":
            return "uneven" if as_ordinary(problem) is None else "spread"
        return "windows" if at_every_position(problem, self.channels) is None else "positions"

    @property
    def row(self) -> int:
        """Elements side by side that a tap meets at a row of windows."""
        ordinary = as_ordinary(self.problem)
        neighbours = self.channels == 1 or (ordinary is not None and ordinary.stride[1] == 1)
        return self.channels * (self.problem.Q if neighbours else 1)


blocks_of_a_call = made_once(Blocks)

_BY_ROWS = ("windows", "spread", "uneven", "taps")


def _items(config: Config, blocks: Blocks) -> int:
    """Planes or images of a block. Those of products are cut by sizes alone."""
    workers = 1 if blocks.products else blocks.workers
    return share(blocks.count, config["BLOCK_BYTES"] // blocks.item_bytes, workers)


def _is_copied(config: Config, blocks: Blocks) -> bool:
    return 3 * blocks.row < config["BUFFER"]


def _refusal(config: Config, blocks: Blocks) -> str | None:
    if config["BUFFER"] != SPACE["BUFFER"][0]:
        if blocks.method not in _BY_ROWS:
            return f"NumPy buffers nothing: of {blocks.method} there are long runs, not rows"
        if not _is_copied({"BUFFER": max(config["BUFFER"], SPACE["BUFFER"][0])}, blocks):
            return f"rows of {blocks.row} elements are copied into no buffer of {config['BUFFER']}"
    return repeated("BLOCK_BYTES", SPACE, config, lambda other: _items(other, blocks))


def _key(blocks: Blocks) -> Key:
    d, ordinary, method = blocks.device, as_ordinary(blocks.problem), blocks.method
    window: tuple[object, ...] = ()
    if ordinary is not None and method != "planes":
        window = (ordinary.kernel, ordinary.stride, ordinary.dilation, any(ordinary.padding))
    layout = blocks.channels > 1, blocks.itemsize, blocks.index_bytes
    return Key(
        (method, *window, *layout, d.name, d.multiprocessors),
        {"bytes": blocks.count * blocks.item_bytes, "item_bytes": blocks.item_bytes, "row": blocks.row},
    )


def _calls_and_part(blocks: Blocks) -> tuple[int, float]:
    """NumPy calls of a block, and what part of it each of them goes over."""
    problem, method = blocks.problem, blocks.method
    steps = sum(problem.kernel)
    if method == "taps":
        return 2 * problem.taps, 1 / problem.taps
    if method == "uneven":
        return 2 * (problem.P + problem.Q), 1 / max(1, min(problem.P, problem.Q))
    if method == "spread":
        return steps + 4, 1.0
    if method in ("positions", "windows"):
        outputs = problem.P * problem.Q / (problem.H * problem.W)
        part = 1.0 if method == "positions" else min(1.0, outputs**0.5)
        return steps * (3 if blocks.index_bytes else 1), part
    return (6 if method == "indices" else 4), 1.0


def _cost(config: Config, blocks: Blocks) -> Cost:
    items = _items(config, blocks)
    block_bytes = items * blocks.item_bytes
    calls, part = _calls_and_part(blocks)
    moved = 3.0 * calls * part * block_bytes  # two operands and a result
    elements = calls * part * block_bytes / blocks.itemsize
    if blocks.method in _BY_ROWS:
        copied = _is_copied(config, blocks)
        moved = moved * (2 if copied else 1) + LOOP_BYTES * elements / (config["BUFFER"] if copied else blocks.row)
    return Cost(
        blocks=blocks_of(blocks.count, items),
        flops=elements + 2 * blocks.products * items / blocks.count,
        unit=unit(blocks.itemsize),
        bytes=moved,
        steps=calls,
        shared=2 * block_bytes,
        threads=blocks.workers,
    )


def tunable(direction: str, default: Callable[[Blocks], Config]) -> Tunable:
    return Tunable(
        f"numpy.pool2d.{direction}",
        SPACE,
        default=default,
        refusal=_refusal,
        reasons={
            "BLOCK_BYTES": "of the larger array, which with the smaller one and two or three workspaces should stay in "
            "a cache, but of which each costs the same calls: 64 KiB to 4 MiB by powers of two",
            "BUFFER": "elements of NumPy's buffers, into which it copies rows shorter than a third of them: 8192 is "
            "NumPy's own, with 1024 only short rows are copied, with 256 only very short ones",
        },
        key=_key,
        cost=_cost,
    )
