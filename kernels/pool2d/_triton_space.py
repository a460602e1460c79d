"""What the Triton kernels of pooling may be run with: spaces, constraints, keys, costs, defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from ...autotune import Config, Cost, Device, Key, Tunable, fastest
from .._division import blocks_of, power_of_two
from ._triton_axes import Axis

_LEAST_TILE = 256  # elements of a tile of channels
_LINE_BYTES = 64  # of neighbours in memory, the least that a tile takes
_MOST_REGISTERS, _MOST_BAND_REGISTERS = 80, 76  # by the estimates below, with which nothing spills: found by compiling
_L2_SHARE = 0.25  # of what lies in L2 a program reads at about four times the rate of device memory


# ---- lanes that walk down rows


@dataclass(frozen=True)
class Walk:
    """One launch of a kernel whose lanes walk down rows.

    All figures are of a lane, and of one channel where ``channels`` counts more than one.

    Attributes:
        lanes: along one row, over all images (planar: planes).
        rows: steps of the walk.
        channels: of a lane; 1 where the tile is planar.
        loads: accesses a step, each of as many channels as fit 16 bytes.
        effort: other instructions a step.
        bytes: moved between device memory and the multiprocessor a step.
        shared_bytes: of rows that the program above read, too: read again before the first step.
        held: registers, all the time.
        fresh: registers for what a step loads and computes.
        itemsize: of an element.
        bytewise: whether an index of single bytes lies beside: more than one vector a thread would lie across it.
        options: everything else that changes the machine code.
        waits: how often a step waits for what it reads.
    """

    lanes: int
    rows: int
    channels: int
    planar: bool
    loads: float
    effort: float
    bytes: float
    shared_bytes: float
    held: float
    fresh: float
    itemsize: int
    bytewise: bool
    options: tuple[object, ...]
    device: Device
    waits: float = 1.0

    @property
    def vector(self) -> int:
        """Channels of 16 bytes, if as many lie side by side."""
        return gcd(16 // self.itemsize, self.channels)

    @property
    def key(self) -> Key:
        d = self.device
        sizes = {"lanes": self.lanes, "rows": self.rows, "channels": self.channels}
        exact = (self.planar, self.itemsize, *self.options, d.name, d.multiprocessors, d.shared_bytes)
        return Key(exact, sizes)


def _elements(config: Config) -> int:
    """Of a tile, a thread."""
    return config["BLOCK_LANES"] * config["BLOCK_C"] // (32 * config["num_warps"])


def _at_once(config: Config) -> int:
    """Rows that a step takes; kernels that take one do not name it."""
    return int(config.get("BLOCK_STEP", 1))


def _registers(config: Config, problem: Walk) -> float:
    return 32 + (problem.held + problem.fresh * _at_once(config)) * _elements(config)


def _walk_refusal(config: Config, problem: Walk) -> str | None:
    each, lanes, channels = _elements(config), config["BLOCK_LANES"], config["BLOCK_C"]
    if each < 1:
        return "fewer elements than threads"
    if not problem.planar:
        if lanes * channels < _LEAST_TILE and lanes < problem.lanes:
            return f"{lanes * channels} elements are too few for a program"
        if channels < problem.channels and channels * problem.itemsize < _LINE_BYTES:
            return f"{channels} channels are less than {_LINE_BYTES} bytes of memory"
        if each < min(problem.vector, power_of_two(problem.channels)):
            return f"{each} elements a thread are less than 16 bytes"
        if problem.bytewise and each > max(1, problem.vector):
            return f"{each} elements a thread are more than 16 bytes, and their indices lie differently"
    least = each == max(1, problem.vector) and _at_once(config) == 1
    if _registers(config, problem) > _MOST_REGISTERS and not least:
        return f"{each} elements a thread take {_registers(config, problem):.0f} registers"
    if not problem.planar and channels > max(8, power_of_two(problem.channels)):
        return f"BLOCK_C={channels} is more than all {problem.channels} channels"
    if lanes > max(64, power_of_two(problem.lanes)):
        return f"BLOCK_LANES={lanes} is more than all {problem.lanes} lanes"
    if config["BLOCK_P"] > max(1, power_of_two(problem.rows)):
        return f"BLOCK_P={config['BLOCK_P']} is more than all {problem.rows} rows"
    if _at_once(config) > config["BLOCK_P"]:
        return "more rows at a time than there are"
    return None


def _walk_cost(config: Config, problem: Walk) -> Cost:
    threads = 32 * config["num_warps"]
    rows = min(config["BLOCK_P"], problem.rows)
    blocks = (
        blocks_of(problem.lanes, config["BLOCK_LANES"])
        * blocks_of(problem.channels, config["BLOCK_C"])
        * blocks_of(problem.rows, config["BLOCK_P"])
    )
    tile = config["BLOCK_LANES"] * config["BLOCK_C"]
    # an address, a mask and the access itself, shared by the channels that one access brings
    vector = 1 if problem.planar else max(1, min(problem.vector, _elements(config)))
    instructions = tile * rows * (problem.loads * 5 / vector + problem.effort) + 120 * threads
    used = min(config["BLOCK_LANES"], problem.lanes) * min(config["BLOCK_C"], problem.channels)
    shared = problem.shared_bytes * _L2_SHARE if rows < problem.rows else 0.0
    return Cost(
        blocks=blocks,
        flops=2 * instructions,
        unit="double" if problem.itemsize == 8 else "fma",
        bytes=used * (rows * problem.bytes + shared),
        # every access passes the L1 cache, which is what shared memory is made of; a single column takes 4 bytes of it
        shared_traffic=tile * rows * problem.loads * (4 if problem.planar else problem.itemsize),
        steps=blocks_of(rows, _at_once(config)) * problem.waits + (problem.shared_bytes > 0),
        threads=threads,
        registers=min(255, int(_registers(config, problem))),
    )


_WALK_REASONS = {
    "BLOCK_LANES": "planar: one to four a thread; else as many as make 16 bytes of channels a thread",
    "BLOCK_C": "channels, where they are innermost: 64 of a half type are a line of memory",
    "BLOCK_P": "rows that a program walks down: many read the rows between two programs less often, few make more "
    "programs",
    "BLOCK_STEP": "rows at a time: more of them bring more bytes before anything waits",
    "num_warps": "2 to 8: few threads make more programs of small planes, many share more of each line",
}


def _walk(name: str, planar: bool, steps: tuple[int, ...] = ()) -> Tunable:
    space: Mapping[str, tuple[int, ...]] = {
        "BLOCK_LANES": (128, 64, 256, 512) if planar else (16, 8, 32, 64, 4, 128),
        "BLOCK_C": (1,) if planar else (64, 32, 128, 16, 8),
        "BLOCK_P": (8, 4, 16, 32, 2, 1),
        **({"BLOCK_STEP": steps} if steps else {}),
        "num_warps": (4, 2, 8),
    }
    tunable = Tunable(
        f"triton.pool2d.{name}.{'planar' if planar else 'channels_last'}",
        space,
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_walk_refusal,
        reasons={parameter: reason for parameter, reason in _WALK_REASONS.items() if parameter in space},
        key=lambda problem: problem.key,
        cost=_walk_cost,
    )
    return tunable


# by whether the tile is planar
FORWARD = {planar: _walk("forward", planar, (1, 2, 4)) for planar in (False, True)}
LOOPED = {planar: _walk("looped", planar) for planar in (False, True)}
BLOCKS = {planar: _walk("backward", planar, (1, 2, 4)) for planar in (False, True)}
GATHER = {planar: _walk("gather_backward", planar) for planar in (False, True)}
PICK = {planar: _walk("pick", planar) for planar in (False, True)}


# ---- bands of rows


@dataclass(frozen=True)
class Bands:
    """One launch of the kernel that reduces large windows.

    Attributes:
        keys: planes where planar, else channels of each of ``images``.
        vector: columns that one access can bring.
        index_bytes: of an index that is wanted, else 0.
        options: everything else that changes the machine code.
    """

    keys: int
    images: int
    vertical: Axis
    horizontal: Axis
    planar: bool
    vector: int
    mean: bool
    index_bytes: int
    itemsize: int
    options: tuple[object, ...]
    device: Device

    @property
    def key(self) -> Key:
        d = self.device
        sizes = {
            "keys": self.keys * self.images,
            "height": self.vertical.size,
            "width": self.horizontal.size,
            "windows": self.vertical.count * self.horizontal.count,
        }
        exact = (self.planar, self.itemsize, *self.options, d.name, d.multiprocessors, d.shared_bytes)
        return Key(exact, sizes)


_MOST_GROUP = 16  # windows whose columns one tile holds, each reduced by code of its own


@lru_cache(maxsize=4096)
def _group(axis: Axis, vector: int, columns: int) -> int:
    """Windows beside each other, as many as fit so many columns wherever a group begins."""
    for group in range(min(axis.count, _MOST_GROUP), 1, -1):
        widths = (
            axis.bounds(min(first + group, axis.count) - 1)[1] - axis.bounds(first)[0] // vector * vector
            for first in range(0, axis.count, group)
        )
        if max(widths) <= columns:
            return group
    return 1


def group_of(config: Config, problem: Bands) -> int:
    """Windows that a program reduces."""
    return _group(problem.horizontal, problem.vector, config["BLOCK_W"])


def _steps(config: Config, problem: Bands, width: int) -> int:
    """Tiles that make one row of windows ``width`` wide."""
    return blocks_of(width, config["BLOCK_W"]) if group_of(config, problem) == 1 else 1


def parts_of(config: Config, problem: Bands) -> int:
    """Into how many parts windows are cut: for ``BLOCKS`` blocks a multiprocessor, of a few steps each."""
    programs = _programs(config, problem)
    least = problem.vertical.least * _steps(config, problem, problem.horizontal.least)
    wanted = problem.device.multiprocessors * config["BLOCKS"] // programs
    return max(1, min(wanted, least // (2 * config["BLOCK_STEP"])))


def _programs(config: Config, problem: Bands) -> int:
    return (
        blocks_of(problem.keys, config["BLOCK_K"])
        * problem.images
        * problem.vertical.count
        * blocks_of(problem.horizontal.count, group_of(config, problem))
    )


def _tile_elements(config: Config) -> int:
    return config["BLOCK_K"] * config["BLOCK_W"] // (32 * config["num_warps"])


def _band_registers(config: Config, problem: Bands) -> float:
    held = (3 if problem.itemsize == 8 else 1) + (2 if problem.index_bytes else 0)
    return 36 + _tile_elements(config) * (held + config["BLOCK_STEP"] * max(0.5, problem.itemsize / 4))


def _band_refusal(config: Config, problem: Bands) -> str | None:
    each, keys, columns = _tile_elements(config), config["BLOCK_K"], config["BLOCK_W"]
    if each < 1:
        return "fewer elements than threads"
    if each < (problem.vector if problem.planar else gcd(16 // problem.itemsize, problem.keys)):
        return f"{each} elements a thread are less than one access"
    if each > 4 and problem.itemsize == 8:
        return f"{each} elements of 8 bytes a thread spill"
    if each > 1 and _band_registers(config, problem) > _MOST_BAND_REGISTERS:
        return f"{each} elements a thread take {_band_registers(config, problem):.0f} registers"
    if keys > max(16, power_of_two(problem.keys)):
        return f"BLOCK_K={keys} is more than all {problem.keys}"
    if not problem.planar and keys < problem.keys and keys * problem.itemsize < _LINE_BYTES:
        return f"{keys} channels are less than {_LINE_BYTES} bytes of memory"
    if columns > max(16, 2 * power_of_two(problem.horizontal.size)):
        return f"BLOCK_W={columns} is more than all {problem.horizontal.size} columns"
    return None


def _band_cost(config: Config, problem: Bands) -> Cost:
    threads, parts, group = 32 * config["num_warps"], parts_of(config, problem), group_of(config, problem)
    rows, width = problem.vertical.kernel, problem.horizontal.kernel
    steps = rows * _steps(config, problem, width) / parts
    tile = config["BLOCK_K"] * config["BLOCK_W"]
    vector = problem.vector if problem.planar else gcd(16 // problem.itemsize, problem.keys)
    each = 5 / min(vector, max(1, _tile_elements(config))) + (2 if problem.mean else 6 if problem.index_bytes else 3)
    if group == 1 and width < problem.horizontal.size:
        each += 1
    at_end = tile * group * (2 if problem.mean else 5 if problem.index_bytes else 3) + 40 * group * threads
    programs = _programs(config, problem)
    used = min(config["BLOCK_K"], problem.keys)
    # rows and columns of two windows are read again, from L2
    new = problem.vertical.size / problem.vertical.count * problem.horizontal.size / problem.horizontal.count * group
    again = max(0.0, rows * min(width * group, problem.horizontal.size) - new)
    read = (new + again * _L2_SHARE) * problem.itemsize / parts
    outputs = problem.keys * problem.images * problem.vertical.count * problem.horizontal.count
    partial = parts * outputs * (max(4, problem.itemsize) + problem.index_bytes) if parts > 1 else 0
    return Cost(
        blocks=programs * parts,
        flops=2 * (tile * steps * each + at_end + 150 * threads),
        unit="double" if problem.itemsize == 8 else "fma",
        bytes=used * (read + group * (problem.itemsize + problem.index_bytes)),
        shared_traffic=tile * steps * max(problem.itemsize, 4 // vector),
        steps=steps / config["BLOCK_STEP"],
        shared=8 * threads,
        threads=threads,
        registers=min(255, int(_band_registers(config, problem))),
        extra_bytes=2 * partial,
        extra_launches=parts > 1,
    )


_BAND_REASONS = {
    "BLOCK_K": "planes, or channels where they are innermost: several share a warp where windows are narrow",
    "BLOCK_W": "columns: those of a few windows beside each other, or a wide one's folded",
    "BLOCK_STEP": "rows at a time: more of them bring more bytes before anything waits",
    "num_warps": "2 to 8, for 1 to 16 elements a thread",
    "BLOCKS": "blocks a multiprocessor, from which the number of parts follows where windows are few",
}


def _bands(planar: bool) -> Tunable:
    tunable = Tunable(
        f"triton.pool2d.bands.{'planar' if planar else 'channels_last'}",
        {
            "BLOCK_K": (16, 8, 32, 64, 4) if planar else (64, 32, 128, 16),
            "BLOCK_W": (64, 16, 32, 8, 128, 256) if planar else (8, 16, 4, 32, 64, 128),
            "BLOCK_STEP": (4, 2, 1),
            "num_warps": (4, 2, 8),
            "BLOCKS": (2, 4),
        },
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_band_refusal,
        reasons=_BAND_REASONS,
        key=lambda problem: problem.key,
        cost=_band_cost,
    )
    return tunable


BANDS = {planar: _bands(planar) for planar in (False, True)}


# ---- one number a plane


@dataclass(frozen=True)
class Spread:
    """One launch of the kernel that writes planes of ``elements`` in all, from one number each."""

    elements: int
    itemsize: int
    index: bool
    options: tuple[object, ...]
    device: Device

    @property
    def key(self) -> Key:
        d = self.device
        exact = (self.itemsize, self.index, *self.options, d.name, d.multiprocessors, d.shared_bytes)
        return Key(exact, {"elements": self.elements})


def _spread_refusal(config: Config, problem: Spread) -> str | None:
    each = config["BLOCK"] // (32 * config["num_warps"])
    if not 16 <= each * problem.itemsize <= 32:
        return f"{each} elements a thread: one access of 16 bytes, or two"
    return None


def _spread_cost(config: Config, problem: Spread) -> Cost:
    threads = 32 * config["num_warps"]
    return Cost(
        blocks=blocks_of(problem.elements, config["BLOCK"]),
        # a division, an address and a load for each element, a comparison of its number
        flops=2 * (config["BLOCK"] * (14 if problem.index else 8) + 30 * threads),
        unit="double" if problem.itemsize == 8 else "fma",
        bytes=config["BLOCK"] * problem.itemsize,
        steps=1,
        threads=threads,
        registers=40,
    )


SPREAD: Tunable = Tunable(
    "triton.pool2d.spread",
    {"BLOCK": (1024, 2048, 512, 256), "num_warps": (4, 8, 2)},
    default=lru_cache(maxsize=4096)(lambda problem: fastest(SPREAD, problem, problem.device)),
    refusal=_spread_refusal,
    reasons={"BLOCK": "elements: 16 or 32 bytes a thread", "num_warps": "2 to 8"},
    key=lambda problem: problem.key,
    cost=_spread_cost,
)

TUNABLES = (
    *(tunable for family in (FORWARD, LOOPED, BANDS, BLOCKS, GATHER, PICK) for tunable in family.values()),
    SPREAD,
)
