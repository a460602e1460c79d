"""2-D convolution in CUDA C++: which kernel serves a problem, what it may be run with, how it is launched.

- ``correlate.cu``: an implicit product, forward and for the input's gradient. Filters are packed into a matrix first.
- ``weight_grad.cu``: an implicit product over all pixels, cut into slabs that ``pack.cu`` adds in order.
- ``depthwise.cu``: one channel a group, several groups: direct, windows slide over registers.

The kernels read tensors through their strides; a channel stride of 1 with aligned rows is read 16 bytes at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import autotune
from ...autotune import Config, Cost, Device, Key, Tunable, fastest
from .._cuda import ELEMENTS, launch
from .._cuda_tensors import aligned, by, ints, longs, strides_of
from .._division import blocks_of, power_of_two
from .._precision import convolution_precision
from ._problem import Conv2dProblem

ON_TENSORS = True

_FOLDER = Path(__file__).parent
ACTIVATIONS = {"none": 0, "relu": 1, "sigmoid": 2, "tanh": 3}
POOLS = {"none": 0, "max": 1, "avg": 2}
_PIXELS = 2**31 - 2**16  # kernels count pixels in 31 bits, and a tile beyond the last one
_OFFSETS = 2**31
_SLAB_BYTES = 32 * 1024 * 1024
_SPLIT = 8  # ranges of slabs that are added side by side

# What multiplies (MATH in _tile.cuh): its number, the unit of the cost model, products for one, accumulators a thread
# up to which nothing spills
_MATH = {
    "half": (0, "half", 1, 128),
    "tf32": (1, "tf32", 1, 128),
    "tf32x3": (2, "tf32", 3, 32),
    "fma": (3, "fma", 1, 64),
    "double": (3, "double", 1, 32),
}


def _math(problem: Conv2dProblem, dtype: torch.dtype) -> str:
    if dtype is torch.float64:
        return "double"
    if dtype is torch.float32:
        mode = problem.precision or convolution_precision()
        return "fma" if mode == "ieee" else mode
    return "half"


# ---- the products: spaces


@dataclass(frozen=True)
class Product:
    """One launch of a product kernel: ``batch`` products of ``[rows, depth] x [depth, columns]``.

    Attributes:
        depth: for the input's gradient the mean over the phases.
        reuse: bytes of the source that a row of the product brings from device memory, of those that it reads.
        units: elements that one copy brings, for each operand; 1 is a copy along pixels.
        options: everything else that changes the machine code.
        written: bytes written for each of the product's, below 1 where the epilogue pools.
    """

    rows: int
    columns: int
    depth: float
    batch: int
    reuse: float
    itemsize: int
    math: str
    units: tuple[int, ...]
    options: tuple[object, ...]
    device: Device
    written: float = 1.0

    @property
    def accumulator_bytes(self) -> int:
        return max(4, self.itemsize)

    @property
    def key(self) -> Key:
        sizes = {"rows": self.rows, "columns": self.columns, "depth": self.depth, "batch": self.batch}
        d = self.device
        exact = (self.math, self.itemsize, self.units, *self.options, d.name, d.multiprocessors, d.shared_bytes)
        return Key(exact, sizes)


def _warps(config: Config) -> tuple[int, int]:
    """Warps along rows and columns: each warp's tile as square as 16 x 16 parts allow, for the least shared traffic."""
    m, n, warps = config["BLOCK_M"], config["BLOCK_N"], config["WARPS"]
    ways = [(warps // w, w) for w in (1, 2, 4, 8) if warps % w == 0 and n // w >= 16 and m // (warps // w) >= 16]
    return min(ways, key=lambda way: (m // way[0] + n // way[1], way[1]), default=(0, 0))


def _depth(config: Config, problem: Product) -> int:
    return config["DEPTH_BYTES"] // problem.itemsize


def _tile_refusal(config: Config, problem: Product, least_columns: int = 16) -> str | None:
    m, n, threads = config["BLOCK_M"], config["BLOCK_N"], 32 * config["WARPS"]
    if not all(_warps(config)):
        return f"{m} x {n} cannot be cut into {config['WARPS']} tiles of 16 x 16 or more"
    accumulators, most = m * n // threads, _MATH[problem.math][3]
    if accumulators > most:
        return f"{accumulators} accumulators a thread spill; {problem.math} has room for {most}"
    # elements of 2 bytes that are copied one by one wait in registers while a step is multiplied
    k = config["BLOCK_K"] if "BLOCK_K" in config else _depth(config, problem)
    one_by_one = [size for size, unit in zip((m, n), problem.units, strict=False) if unit * problem.itemsize == 2]
    held = sum(one_by_one) * k // threads
    if held > 32 or held + accumulators > 144:
        return f"{held} elements on their way and {accumulators} accumulators a thread spill"
    if n > max(least_columns, power_of_two(problem.columns)) or m > max(64, power_of_two(problem.rows)):
        return f"{m} x {n} is more than all of {problem.rows} x {problem.columns}"
    return None


def _too_much_shared(shared: int, device: Device) -> str | None:
    if shared <= device.shared_bytes:
        return None
    return f"{shared} bytes of shared memory, {device.name} has {device.shared_bytes}"


def _shared_of_correlate(config: Config, problem: Product) -> int:
    m, n, k, size = config["BLOCK_M"], config["BLOCK_N"], _depth(config, problem), problem.itemsize
    pipeline = config["STAGES"] * (m + n) * (k * size + 16)
    return max(pipeline, m * (n * size + 16)) + config["STAGES"] * k // problem.units[0] * 16 + m * 8


def _correlate_refusal(config: Config, problem: Product) -> str | None:
    m, k, threads, unit = config["BLOCK_M"], _depth(config, problem), 32 * config["WARPS"], problem.units[0]
    if unit == 1 and (m > threads or threads > m * k):
        return f"{threads} threads cannot be dealt {m} pixels"
    if unit > 1 and m * k // unit < threads:
        return f"{threads} threads for {m * k // unit} copies of a step"
    if config["DEPTH_BYTES"] > 64 and problem.math == "tf32x3":
        return "split operands of more than 64 bytes of the depth spill"
    if config["DEPTH_BYTES"] > 64 and k > power_of_two(int(problem.depth)):
        return f"{k} is more than the depth of {problem.depth:g}"
    return _tile_refusal(config, problem) or _too_much_shared(_shared_of_correlate(config, problem), problem.device)


# Of what lies in L2 a block reads at about four times the rate of device memory.
_L2_SHARE = 0.25


def _registers(config: Config, problem: Product) -> int:
    return min(
        255, 64 + config["BLOCK_M"] * config["BLOCK_N"] // (32 * config["WARPS"]) * problem.accumulator_bytes // 4
    )


def _shared_traffic(config: Config, problem: Product) -> float:
    """Bytes that the warps read for one element of the depth."""
    warps_m, warps_n = _warps(config)
    return (config["BLOCK_M"] * warps_n + config["BLOCK_N"] * warps_m) * problem.itemsize


def _correlate_cost(config: Config, problem: Product) -> Cost:
    m, n, k = config["BLOCK_M"], config["BLOCK_N"], _depth(config, problem)
    _, unit, passes, _ = _MATH[problem.math]
    tiles_n = blocks_of(problem.columns, n)
    steps = max(problem.depth / k, 0.01)
    steps = max(1.0, -(-steps // 1)) if problem.depth > 1 else steps
    rows, columns = min(m, problem.rows), min(n, problem.columns)
    source = rows * problem.depth * problem.itemsize * max(problem.reuse / tiles_n, 0.1)
    # single elements cost about ten instructions each, as much as 40 products of a warp on tensor cores
    effort = 1 if problem.units[0] > 1 else 1 + 10 / max(1, n // 4)
    return Cost(
        blocks=blocks_of(problem.rows, m) * tiles_n * problem.batch,
        flops=2 * m * n * k * steps * passes * effort,
        unit=unit,
        bytes=source + (columns * problem.depth * _L2_SHARE + rows * columns * problem.written) * problem.itemsize,
        shared_traffic=steps * k * _shared_traffic(config, problem),
        steps=steps / (config["STAGES"] - 1),
        shared=_shared_of_correlate(config, problem),
        threads=32 * config["WARPS"],
        registers=_registers(config, problem),
    )


_TILE_REASONS = {
    "BLOCK_M": "128 rows share a step's filters; 64 for small maps, which would not fill the multiprocessors",
    "BLOCK_N": "128 read the source least often; 16 is the least a warp multiplies, for groups of few channels",
    "WARPS": "8 hide more latency with small tiles each, 4 read shared memory less often with tiles of 64 x 64",
    "STAGES": "2 steps under way hide L2, 3 device memory; one, with two stages, leaves room for a second block",
}


def _correlate(name: str) -> Tunable:
    tunable = Tunable(
        name,
        {
            "BLOCK_M": (128, 64),
            "BLOCK_N": (128, 64, 32, 16),
            "DEPTH_BYTES": (64, 128),
            "WARPS": (8, 4),
            "STAGES": (3, 4, 2),
        },
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_correlate_refusal,
        reasons={
            **_TILE_REASONS,
            "DEPTH_BYTES": "64 bytes are two tensor-core steps; 128 halve the barriers where shared memory allows",
        },
        key=lambda problem: problem.key,
        cost=_correlate_cost,
    )
    return tunable


FPROP = _correlate("cupy.conv2d.fprop")
DGRAD = _correlate("cupy.conv2d.dgrad")


def _shared_of_weight_grad(config: Config, problem: Product) -> int:
    m, n, k, size = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"], problem.itemsize
    pad = 8 if size == 4 else 16 // size
    stage = k * ((m + n + 2 * pad) * size + 24)
    return config["STAGES"] * stage + n // problem.units[1] * 16 + 32 * config["WARPS"] * 8


def _weight_grad_refusal(config: Config, problem: Product) -> str | None:
    m, k, threads = config["BLOCK_M"], config["BLOCK_K"], 32 * config["WARPS"]
    if k * problem.itemsize > (64 if problem.math == "tf32x3" else 128):
        return f"{k} pixels of {problem.itemsize} bytes: the loop is unrolled too far, registers spill"
    if m > threads:
        return f"{threads} threads cannot sum {m} channels of the bias"
    if m > max(16, power_of_two(problem.rows)):
        return f"{m} is more than all {problem.rows} output channels"
    shared = _shared_of_weight_grad(config, problem)
    return _tile_refusal(config, problem, least_columns=64) or _too_much_shared(shared, problem.device)


def _slab_pixels(config: Config, problem: Product) -> int:
    """Pixels of a slab: for ``BLOCKS`` blocks a multiprocessor, a few steps each, and 32 MB of slabs at most."""
    tiles = blocks_of(problem.rows, config["BLOCK_M"]) * blocks_of(problem.columns, config["BLOCK_N"]) * problem.batch
    slab_bytes = problem.rows * problem.columns * problem.batch * problem.accumulator_bytes
    pixels, step = int(problem.depth), config["BLOCK_K"]
    wanted = min(problem.device.multiprocessors * config["BLOCKS"] // tiles, _SLAB_BYTES // slab_bytes)
    slabs = max(1, min(wanted, pixels // (4 * step)))
    return blocks_of(blocks_of(pixels, slabs), step) * step


def _weight_grad_cost(config: Config, problem: Product) -> Cost:
    m, n, k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    _, unit, passes, _ = _MATH[problem.math]
    pixels = _slab_pixels(config, problem)
    slabs, steps = blocks_of(int(problem.depth), pixels), pixels / k
    tiles_m, tiles_n = blocks_of(problem.rows, m), blocks_of(problem.columns, n)
    rows, columns = min(m, problem.rows), min(n, problem.columns)
    slab = problem.rows * problem.columns * problem.batch * problem.accumulator_bytes
    once = rows / tiles_n + columns * problem.reuse / tiles_m
    again = (rows + columns) * _L2_SHARE
    effort = 1 + sum(10 / max(1, size // 4) for u, size in zip(problem.units, (n, m), strict=True) if u == 1)
    return Cost(
        blocks=tiles_m * tiles_n * problem.batch * slabs,
        flops=2 * m * n * pixels * passes * effort,
        unit=unit,
        bytes=pixels * max(once, again) * problem.itemsize,
        shared_traffic=pixels * _shared_traffic(config, problem),
        steps=steps / (config["STAGES"] - 1),
        shared=_shared_of_weight_grad(config, problem),
        threads=32 * config["WARPS"],
        registers=_registers(config, problem),
        extra_bytes=2 * slabs * slab,
        extra_launches=1,
    )


WGRAD: Tunable = Tunable(
    "cupy.conv2d.wgrad",
    {
        "BLOCK_M": (128, 64, 32, 16),
        "BLOCK_N": (128, 64, 32, 16),
        "BLOCK_K": (32, 16, 64),
        "WARPS": (8, 4),
        "STAGES": (3, 2),
        "BLOCKS": (2, 1, 4),
    },
    default=lru_cache(maxsize=4096)(lambda problem: fastest(WGRAD, problem, problem.device)),
    refusal=_weight_grad_refusal,
    reasons={
        **_TILE_REASONS,
        "BLOCK_M": "output channels: 128 read x least often, 16 to 64 for groups that have no more",
        "BLOCK_N": "taps and input channels: as BLOCK_M",
        "BLOCK_K": "pixels a step: 128 bytes of them at most; 16 are one step of half types",
        "BLOCKS": "blocks a multiprocessor, from which the number of slabs follows: 1 fills all, 2 and 4 hide latency",
    },
    key=lambda problem: problem.key,
    cost=_weight_grad_cost,
)


# ---- depthwise: spaces


@dataclass(frozen=True)
class Depthwise:
    """One launch of a depthwise kernel.

    Attributes:
        along: outputs (of a phase) of the axis that a thread's tile lies along.
        lines: all of the other axis, over images and phases.
        channels: that a thread makes ``width`` of, and that ``lanes`` neighbours share a filter's row with.
        taps: along and across, at most, of one phase; ``filter_taps`` are all that a filter has.
        pace, spread: steps of the window between outputs and between taps.
        sources: channels that one output reads.
    """

    along: int
    lines: int
    channels: int
    width: int
    lanes: int
    taps: tuple[int, int]
    filter_taps: int
    pace: int
    spread: int
    sources: int
    itemsize: int
    options: tuple[object, ...]
    device: Device

    @property
    def accumulator_bytes(self) -> int:
        return max(4, self.itemsize)

    @property
    def channel_blocks(self) -> int:
        return blocks_of(self.channels, self.lanes * self.width)

    @property
    def key(self) -> Key:
        d = self.device
        window = (self.taps, self.pace, self.spread, self.sources, self.width, self.lanes)
        exact = (self.itemsize, *window, *self.options, d.name, d.multiprocessors, d.shared_bytes)
        return Key(exact, {"along": self.along, "lines": self.lines, "channels": self.channels})


_LONGEST_SPAN = 160  # inputs under a tile that the compiler unrolls
_MOST_TAPS = 16  # of one row in registers


def _taps_along(tile: int, problem: Depthwise) -> int:
    """Taps of a row that one pass over the inputs serves: equal parts of the row."""
    room = max(1, 1 + (_LONGEST_SPAN - (tile - 1) * problem.pace) // problem.spread)
    passes = blocks_of(problem.taps[0], min(room, _MOST_TAPS))
    return blocks_of(problem.taps[0], passes)


def _filter_bytes(problem: Depthwise) -> int:
    """Shared memory for the filters of a block's channels; 0 where they are read from device memory each time."""
    size = problem.sources * problem.filter_taps * problem.lanes * problem.width * problem.accumulator_bytes
    return size if size <= 48 * 1024 else 0


def _depthwise_refusal(config: Config, problem: Depthwise) -> str | None:
    tile = config["TILE"]
    if tile == 1:
        return None if config["ITERATIONS"] == 1 else "a tile of one output is for what nothing else fits"
    if (tile - 1) * problem.pace >= _LONGEST_SPAN:
        return f"{tile} outputs with stride {problem.pace} span too far"
    if tile > power_of_two(problem.along):
        return f"{tile} is more than all {problem.along} outputs"
    held = (tile + _taps_along(tile, problem)) * problem.width * problem.accumulator_bytes // 4
    return f"{held} registers for sums and filters" if held > 80 else None


def _depthwise_cost(config: Config, problem: Depthwise) -> Cost:
    tile, threads = config["TILE"], config["THREADS"]
    taps_along, taps_across = problem.taps
    span = (tile - 1) * problem.pace + (taps_along - 1) * problem.spread + 1
    loads = min(span, tile * taps_along) * taps_across * problem.sources
    positions = problem.lines * blocks_of(problem.along, tile)
    per_block = threads // problem.lanes * config["ITERATIONS"]
    outputs = tile * problem.width * threads * config["ITERATIONS"]
    products = outputs * taps_along * taps_across * problem.sources
    # an input costs its load, its test and its conversion: about five instructions beside the products
    effort = products + 5 * loads * threads * config["ITERATIONS"]
    return Cost(
        blocks=blocks_of(positions, per_block) * problem.channel_blocks,
        flops=2 * effort,
        unit="double" if problem.itemsize == 8 else "fma",
        bytes=outputs * (1 + problem.pace * problem.sources) * problem.itemsize,
        steps=1.0 * taps_across * problem.sources * config["ITERATIONS"] / 4,
        shared=_filter_bytes(problem),
        threads=threads,
        registers=min(255, 48 + (tile + taps_along) * problem.width * problem.accumulator_bytes // 4),
    )


DEPTHWISE: Tunable = Tunable(
    "cupy.conv2d.depthwise",
    {"TILE": (8, 7, 4, 14, 1), "THREADS": (128, 256), "ITERATIONS": (1, 4)},
    default=lru_cache(maxsize=4096)(lambda problem: fastest(DEPTHWISE, problem, problem.device)),
    refusal=_depthwise_refusal,
    reasons={
        "TILE": "outputs a thread: each input under 8 is loaded once; 7 and 14 divide the maps of common networks, "
        "4 is for small maps, 1 for strides that leave nothing to share",
        "THREADS": "128 fit maps of few pixels, 256 share a copy of the filters among more",
        "ITERATIONS": "tiles a thread: 4 for filters that cost as much to fetch as a tile costs",
    },
    key=lambda problem: problem.key,
    cost=_depthwise_cost,
)


def _tap_tile(config: Config, problem: Depthwise) -> tuple[int, int]:
    """Taps along and across that a block keeps sums for: 100 registers of them at most, in equal parts."""
    along = _taps_along(config["TILE"], problem)
    fitting = max(1, 100 * 4 // (problem.accumulator_bytes * along * problem.width))
    if problem.accumulator_bytes == 8:
        fitting = max(1, fitting // 2)
    passes = blocks_of(problem.taps[1], fitting)
    return along, blocks_of(problem.taps[1], passes)


def _depthwise_wgrad_refusal(config: Config, problem: Depthwise) -> str | None:
    tile = config["TILE"]
    if tile > 1 and (tile - 1) * problem.pace >= _LONGEST_SPAN:
        return f"{tile} outputs with stride {problem.pace} span too far"
    if tile > max(4, power_of_two(problem.along)):
        return f"{tile} is more than all {problem.along} outputs"
    if tile > 4 and problem.accumulator_bytes == 8:
        return f"{tile} gradients in double precision spill"
    if tile == 1 and (4 - 1) * problem.pace < _LONGEST_SPAN:
        return "a tile of one output is for what nothing else fits"
    return None


def _depthwise_slab(config: Config, problem: Depthwise) -> tuple[int, int]:
    """Positions in all, and of a slab."""
    along, across = _tap_tile(config, problem)
    tiles = blocks_of(problem.taps[0], along) * blocks_of(problem.taps[1], across) * problem.channel_blocks
    positions = problem.lines * blocks_of(problem.along, config["TILE"])
    slots = config["THREADS"] // problem.lanes
    taps = problem.channels * problem.taps[0] * problem.taps[1] * problem.accumulator_bytes
    wanted = min(blocks_of(problem.device.multiprocessors * config["BLOCKS"], tiles), max(1, _SLAB_BYTES // taps))
    slabs = max(1, min(wanted, positions // (4 * slots)))
    return positions, max(1, blocks_of(blocks_of(positions, slabs), slots)) * slots


def _depthwise_wgrad_cost(config: Config, problem: Depthwise) -> Cost:
    tile, threads = config["TILE"], config["THREADS"]
    along, across = _tap_tile(config, problem)
    tiles = blocks_of(problem.taps[0], along) * blocks_of(problem.taps[1], across)
    positions, each = _depthwise_slab(config, problem)
    slabs = blocks_of(positions, each)
    rounds = each / (threads // problem.lanes)
    loads = ((tile - 1) * problem.pace + (along - 1) * problem.spread + 1) * across
    effort = tile * along * across * problem.width + 5 * loads + 6 * tile
    taps = problem.channels * problem.taps[0] * problem.taps[1] * problem.accumulator_bytes
    return Cost(
        blocks=slabs * tiles * problem.channel_blocks,
        flops=2 * threads * (rounds * effort + 12 * along * across * problem.width),
        unit="double" if problem.itemsize == 8 else "fma",
        bytes=rounds * threads * tile * problem.width * (1 + problem.pace) * problem.itemsize,
        steps=rounds,
        threads=threads,
        registers=min(255, 56 + (along * across + tile) * problem.width * problem.accumulator_bytes // 4),
        extra_bytes=2 * slabs * taps,
        extra_launches=1,
    )


DEPTHWISE_WGRAD: Tunable = Tunable(
    "cupy.conv2d.depthwise_wgrad",
    {"TILE": (8, 7, 4, 1), "THREADS": (128, 256), "BLOCKS": (4, 2, 8)},
    default=lru_cache(maxsize=4096)(lambda problem: fastest(DEPTHWISE_WGRAD, problem, problem.device)),
    refusal=_depthwise_wgrad_refusal,
    reasons={
        "TILE": "gradients a thread holds while it walks under them: 8 halve the loads of 4, 7 divides common maps, 1 "
        "is for strides that leave nothing to share",
        "THREADS": "128 leave more registers to each, 256 make fewer slabs",
        "BLOCKS": "blocks a multiprocessor, from which the number of slabs follows: 4 hide latency, 2 make fewer "
        "slabs, 8 are for few registers",
    },
    key=lambda problem: problem.key,
    cost=_depthwise_wgrad_cost,
)
TUNABLES = (FPROP, DGRAD, WGRAD, DEPTHWISE, DEPTHWISE_WGRAD)


# ---- what kernels are told of tensors


def _unit(tensor: torch.Tensor, channels: int) -> int:
    """Channels of a group that one copy can bring: 16 bytes of them, or 8; 1 means copies along pixels."""
    for size in (16, 8):
        count = size // tensor.element_size()
        if count > 1 and channels % count == 0 and aligned(tensor, count):
            return count
    return 1


def _index(problem: Conv2dProblem, *tensors: torch.Tensor) -> str:
    """The type that offsets need, those of windows that hang over an edge included."""
    (top, bottom, left, right), (stride_h, stride_w), (dilation_h, dilation_w) = (
        problem.padding, problem.stride, problem.dilation,
    )  # fmt: skip
    margin_h = top + bottom + dilation_h * problem.R + stride_h
    margin_w = left + right + dilation_w * problem.S + stride_w
    for tensor in tensors:
        n, c, h, w = strides_of(tensor)
        N, C, H, W = tensor.shape
        if N * n + C * c + (H + margin_h) * h + (W + margin_w) * w >= _OFFSETS:
            return "long long"
    return "int"


def images_of(problem: Conv2dProblem, pixels_each: int, most: int) -> Iterator[tuple[Conv2dProblem, slice]]:
    """Parts of the batch whose pixels a kernel can count: ``most`` of them."""
    if pixels_each > most:
        raise NotImplementedError(f"one image has {pixels_each} pixels, the kernels count up to {most}: {problem}")
    count = most // max(pixels_each, 1)
    for n in range(0, problem.N, count):
        part = slice(n, min(n + count, problem.N))
        yield replace(problem, N=part.stop - n), part


def _tap_step(stride: int, dilation: int) -> int:
    return stride // gcd(stride, dilation)


# ---- copies


def _channels_inside(problem: Conv2dProblem, tensor: torch.Tensor, reads: int) -> torch.Tensor:
    """The tensor with channels inside, copied into that order where its elements are read so often that it pays.

    Element by element a read costs about ten instructions; a copy costs as much as four of those.
    """
    N, C, H, W = tensor.shape
    channels, vector = C // problem.groups, 16 // tensor.element_size()
    if reads < 4 or channels % vector or _unit(tensor, channels) > 1:
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=torch.channels_last)
    tiles_p, tiles_c = blocks_of(H * W, 64), blocks_of(C, 64)
    launch(
        _FOLDER / "pack.cu",
        "to_channels_last",
        {"ELEMENT": ELEMENTS[tensor.dtype], "BACKWARD": 0, "SPLIT": _SPLIT},
        (tiles_p * tiles_c * N,),
        (256,),
        (tensor, copy, *ints(C, H * W, W, tiles_p, tiles_c), by(W), *longs(*tensor.stride())),
    )
    return copy


# ---- the three directions


def forward(
    problem: Conv2dProblem, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor
) -> None:
    """``y = act(conv(x, w) + bias)``."""
    if not y.numel():
        return
    bias = None if bias is None else bias.contiguous()
    run = _depthwise if problem.depthwise else _product
    for part, images in images_of(problem, problem.P * problem.Q, _PIXELS):
        run(part, x[images], w, bias, y[images], False)


def forward_pooled(
    problem: Conv2dProblem,
    pool: str,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    code: torch.Tensor | None,
) -> None:
    """2x2 ``pool`` of ``act(conv(x, w) + bias)`` and the code of each window; for all but depthwise convolutions."""
    bias = None if bias is None else bias.contiguous()
    for part, images in images_of(problem, 4 * y.shape[2] * y.shape[3], _PIXELS):
        _product(part, x[images], w, bias, y[images], False, pool, None if code is None else code[images])


def input_grad(problem: Conv2dProblem, dy: torch.Tensor, w: torch.Tensor, dx: torch.Tensor) -> None:
    """The gradient of the input: a correlation of ``dy`` with the flipped filters, phase by phase of the stride."""
    if not dx.numel():
        return
    if not dy.numel():
        dx.zero_()
        return
    problem = replace(problem, activation="none")
    run = _depthwise if problem.depthwise else _product
    rows, columns = (blocks_of(size, step) for size, step in zip((problem.H, problem.W), problem.stride, strict=True))
    for part, images in images_of(problem, rows * columns, _PIXELS):
        run(part, dy[images], w, None, dx[images], True)


def weight_grad(
    problem: Conv2dProblem, x: torch.Tensor, dy: torch.Tensor, dw: torch.Tensor, db: torch.Tensor | None
) -> None:
    """The gradients of weight and bias: parts for slabs of pixels, then their sum in a fixed order."""
    if not dw.numel():
        return
    if not x.numel() or not dy.numel():
        dw.zero_()
        if db is not None:
            db.zero_()
        return
    run = _depthwise_weight_grad if problem.depthwise else _product_weight_grad
    parts = [
        run(part, x[images], dy[images], db is not None)
        for part, images in images_of(problem, problem.P * problem.Q, _PIXELS)
    ]
    slabs = torch.cat([part[0] for part in parts]) if len(parts) > 1 else parts[0][0]
    bias_slabs = torch.cat([part[1] for part in parts]) if len(parts) > 1 else parts[0][1]
    K, C, R, S = dw.shape
    biases = 0 if db is None else K
    launch(
        _FOLDER / "pack.cu",
        "sum_slabs",
        {"ELEMENT": ELEMENTS[dw.dtype], "BACKWARD": 0, "SPLIT": _SPLIT},
        (blocks_of(K * C * R * S + biases, 32),),
        (32 * _SPLIT,),
        (
            slabs, bias_slabs, dw, db, np.int64(K * C * R * S),
            *ints(biases, slabs.shape[0], bias_slabs.shape[0], C * R * S, C, S), *longs(*dw.stride()),
        ),
    )  # fmt: skip


# ---- launches of the products


@dataclass(frozen=True)
class _Axis:
    """One axis of a correlation: forward, or (``backward``) for the input's gradient; see ``_taps.cuh``."""

    kernel: int
    stride: int
    dilation: int
    padding: int
    backward: bool

    @property
    def phases(self) -> int:
        return self.stride if self.backward else 1

    @property
    def pace(self) -> int:
        return 1 if self.backward else self.stride

    @property
    def step(self) -> int:
        return _tap_step(self.stride, self.dilation) if self.backward else 1

    @property
    def spread(self) -> int:
        return -self.dilation // gcd(self.stride, self.dilation) if self.backward else self.dilation

    @property
    def most_taps(self) -> int:
        """Of a phase."""
        return blocks_of(self.kernel, self.step)


def _axes(problem: Conv2dProblem, backward: bool) -> tuple[_Axis, _Axis]:
    (top, _, left, _), (stride_h, stride_w), dilation = problem.padding, problem.stride, problem.dilation
    return (
        _Axis(problem.R, stride_h, dilation[0], top, backward),
        _Axis(problem.S, stride_w, dilation[1], left, backward),
    )


def _packed(problem: Conv2dProblem, w: torch.Tensor, backward: bool) -> tuple[torch.Tensor, int]:
    """Filters as a matrix ``[phase][group][outputs][row]``, and the length of a row: a multiple of 16 bytes."""
    K, C, R, S = w.shape
    groups, vector = problem.groups, 16 // w.element_size()
    h, w_axis = _axes(problem, backward)
    k_stride, c_stride, r_stride, s_stride = w.stride()
    if backward:
        inputs, outputs, w_out, w_in = K // groups, C, c_stride, k_stride
    else:
        inputs, outputs, w_out, w_in = C, K // groups, k_stride, c_stride
        ready = w.permute(0, 2, 3, 1).is_contiguous() and C * R * S % vector == 0
        if ready and (w.is_meta or w.data_ptr() % 16 == 0):
            return w, C * R * S
    row = blocks_of(h.most_taps * w_axis.most_taps * inputs, vector) * vector
    phases = h.phases * w_axis.phases
    packed = torch.empty((phases, groups, outputs, row), dtype=w.dtype, device=w.device)
    launch(
        _FOLDER / "pack.cu",
        "pack_filters",
        {"ELEMENT": ELEMENTS[w.dtype], "BACKWARD": int(backward), "SPLIT": _SPLIT},
        (blocks_of(packed.numel(), 256),),
        (256,),
        (
            w, packed, np.int64(packed.numel()),
            *ints(groups, inputs, outputs, row, R, S, w_axis.phases, *problem.stride, *problem.dilation),
            *ints(h.padding, w_axis.padding, h.step, w_axis.step),
            *longs(K // groups * k_stride, w_out, w_in, r_stride, s_stride),
        ),
    )  # fmt: skip
    return packed, row


def _product(
    problem: Conv2dProblem,
    source: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    backward: bool,
    pool: str = "none",
    code: torch.Tensor | None = None,
) -> None:
    """One launch of ``correlate``; ``backward``: ``source`` is dy and ``out`` dx; with ``pool`` ``out`` is pooled."""
    filters, row = _packed(problem, w, backward)
    groups = problem.groups
    inputs, outputs = source.shape[1] // groups, out.shape[1] // groups
    source = _channels_inside(problem, source, problem.R * problem.S * blocks_of(outputs, 128))
    h, w_axis = _axes(problem, backward)
    phases = h.phases * w_axis.phases
    _, _, H, W = source.shape
    _, _, out_h, out_w = out.shape
    P, Q = blocks_of(out_h, h.phases), blocks_of(out_w, w_axis.phases)
    pixels = problem.N * P * Q * (1 if pool == "none" else 4)
    math = _math(problem, source.dtype)
    unit = _unit(source, inputs)
    vector = 16 // source.element_size()
    out_unit = vector if outputs % vector == 0 and aligned(out, vector) else 1
    out_along_pixels = out_unit == 1 and out.stride(1) != 1
    index = _index(problem, source, out)
    taps = problem.R * problem.S / phases
    reuse = min(1.0, 1 / taps) if backward else min(1.0, problem.stride[0] * problem.stride[1] / taps)
    tunable = DGRAD if backward else FPROP
    kernel_problem = Product(
        pixels, outputs, max(taps * inputs, 1.0), groups * phases, reuse, source.element_size(), math, (unit,),
        (out_unit, out_along_pixels, index, problem.activation, bias is not None, pool, code is not None),
        autotune.device_of(source), 1.0 if pool == "none" else (1 + (code is not None) / source.element_size()) / 4,
    )  # fmt: skip
    config = autotune.resolve(tunable, kernel_problem)
    tiles_m, tiles_n = blocks_of(pixels, config["BLOCK_M"]), blocks_of(outputs, config["BLOCK_N"])
    warps_m, warps_n = _warps(config)
    launch(
        _FOLDER / "correlate.cu",
        "correlate",
        {
            "ELEMENT": ELEMENTS[source.dtype],
            "INDEX": index,
            "MATH": _MATH[math][0],
            "BLOCK_M": config["BLOCK_M"],
            "BLOCK_N": config["BLOCK_N"],
            "BLOCK_K": _depth(config, kernel_problem),
            "WARPS_M": warps_m,
            "WARPS_N": warps_n,
            "STAGES": config["STAGES"],
            "A_UNIT": unit,
            "ALONG_PIXELS": int(unit == 1),
            "OUT_UNIT": out_unit,
            "OUT_ALONG_PIXELS": int(out_along_pixels),
            "HAS_BIAS": int(bias is not None),
            "ACTIVATION": ACTIVATIONS[problem.activation],
            "POOL": POOLS[pool],
            "CODE": int(code is not None),
            "BACKWARD": int(backward),
        },
        (tiles_m * tiles_n * groups * phases,),
        (32 * config["WARPS"],),
        (
            source, filters, bias, out, code,
            *ints(pixels, phases, tiles_n, groups, inputs, outputs, row, H, W, out_h, out_w, P, Q),
            *ints(problem.R, problem.S, *problem.stride, *problem.dilation, h.padding, w_axis.padding),
            *ints(h.pace, w_axis.pace, h.spread, w_axis.spread, h.step, w_axis.step, w_axis.phases),
            by(P * Q), by(Q), by(inputs), *longs(*source.stride(), *out.stride()),
        ),
        _shared_of_correlate(config, kernel_problem),
        tunable=tunable,
        problem=kernel_problem,
        config=config,
        tensor_cores=_MATH[math][0] < 3,
    )  # fmt: skip


def _product_weight_grad(
    problem: Conv2dProblem, x: torch.Tensor, dy: torch.Tensor, has_bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """One launch of ``weight_grad``. Returns the slabs of both gradients."""
    groups, (N, K, P, Q) = problem.groups, dy.shape
    inputs, outputs, pixels = problem.C // groups, K // groups, N * P * Q
    length = problem.R * problem.S * inputs
    x = _channels_inside(problem, x, problem.R * problem.S * blocks_of(outputs, 128))
    dy = _channels_inside(problem, dy, blocks_of(length, 128))
    math, index = _math(problem, x.dtype), _index(problem, x, dy)
    units = _unit(dy, outputs), _unit(x, inputs)
    reuse = min(1.0, problem.stride[0] * problem.stride[1] / (problem.R * problem.S))
    kernel_problem = Product(
        outputs, length, float(pixels), groups, reuse, x.element_size(), math, units, (index, has_bias),
        autotune.device_of(x),
    )  # fmt: skip
    config = autotune.resolve(WGRAD, kernel_problem)
    slab_pixels = _slab_pixels(config, kernel_problem)
    count = blocks_of(pixels, slab_pixels)
    tiles_m, tiles_n = blocks_of(outputs, config["BLOCK_M"]), blocks_of(length, config["BLOCK_N"])
    warps_m, warps_n = _warps(config)
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    slabs = torch.empty((count, K * length), dtype=dtype, device=x.device)
    bias_slabs = torch.empty((count * tiles_n if has_bias else 0, K), dtype=dtype, device=x.device)
    launch(
        _FOLDER / "weight_grad.cu",
        "weight_grad",
        {
            "ELEMENT": ELEMENTS[x.dtype],
            "INDEX": index,
            "MATH": _MATH[math][0],
            "BLOCK_M": config["BLOCK_M"],
            "BLOCK_N": config["BLOCK_N"],
            "BLOCK_K": config["BLOCK_K"],
            "WARPS_M": warps_m,
            "WARPS_N": warps_n,
            "STAGES": config["STAGES"],
            "A_UNIT": units[0],
            "A_ALONG_PIXELS": int(units[0] == 1),
            "B_UNIT": units[1],
            "B_ALONG_PIXELS": int(units[1] == 1),
            "HAS_BIAS": int(has_bias),
        },
        (tiles_m * tiles_n * groups * count,),
        (32 * config["WARPS"],),
        (
            x, dy, slabs, bias_slabs,
            *ints(pixels, slab_pixels, tiles_m, tiles_n, groups, inputs, outputs, problem.H, problem.W, P, Q),
            *ints(problem.S, length, *problem.stride, *problem.dilation, problem.padding[0], problem.padding[2]),
            by(P * Q), by(Q), by(inputs), *longs(*x.stride(), *dy.stride()),
        ),
        _shared_of_weight_grad(config, kernel_problem),
        tunable=WGRAD,
        problem=kernel_problem,
        config=config,
        tensor_cores=_MATH[math][0] < 3,
    )  # fmt: skip
    return slabs, bias_slabs


# ---- launches of the depthwise kernels


def _lanes(channels: int) -> int:
    """Neighbouring threads that are neighbouring channels: 32 unless fewer leave less of the last ones idle."""
    return min((32, 16, 8), key=lambda lanes: blocks_of(channels, lanes) * lanes)


def _channels_each(multiplier: int, *tensors: torch.Tensor) -> int:
    """Channels that a thread makes: two of a half type, where they can be read at once."""
    paired = tensors[0].element_size() == 2 and multiplier == 1
    return 2 if paired and all(t.shape[1] % 2 == 0 and aligned(t, 2) for t in tensors) else 1


def _turned(inside: bool, h: Any, w: Any) -> tuple[Any, Any]:
    """What belongs to H and W as (along, across): along W where channels lie inside, else along H."""
    return (w, h) if inside else (h, w)


def _depthwise(
    problem: Conv2dProblem,
    source: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    backward: bool,
) -> None:
    """One launch of ``depthwise``; ``backward``: ``source`` is dy and ``out`` is dx."""
    multiplier = problem.K // problem.C
    inside = out.stride(1) == 1
    along, across = _turned(inside, *_axes(problem, backward))
    along_size, across_size = _turned(inside, *source.shape[2:])
    along_out, across_out = _turned(inside, *out.shape[2:])
    N, channels = out.shape[:2]
    width = _channels_each(multiplier, source, out) if inside else 1
    across_count, along_count = blocks_of(across_out, across.phases), blocks_of(along_out, along.phases)
    phases = along.phases * across.phases
    index = _index(problem, source, w, out)
    spread = abs(along.spread)
    kernel_problem = Depthwise(
        along=along_count,
        lines=N * across_count * phases,
        channels=channels,
        width=width,
        lanes=_lanes(channels // width) if inside else 1,
        taps=(along.most_taps, across.most_taps),
        filter_taps=problem.R * problem.S,
        pace=along.pace,
        spread=spread,
        sources=multiplier if backward else 1,
        itemsize=source.element_size(),
        options=(inside, index, backward, problem.activation, bias is not None),
        device=autotune.device_of(source),
    )
    config = autotune.resolve(DEPTHWISE, kernel_problem)
    tile, threads, iterations = config["TILE"], config["THREADS"], config["ITERATIONS"]
    taps = _taps_along(tile, kernel_problem)
    segments = blocks_of(along_count, tile)
    positions = N * segments * across_count
    position_blocks = blocks_of(positions, threads // kernel_problem.lanes * iterations)
    shared = _filter_bytes(kernel_problem)
    n, c, *hw = source.stride()
    out_n, out_c, *out_hw = out.stride()
    launch(
        _FOLDER / "depthwise.cu",
        "depthwise",
        {
            "ELEMENT": ELEMENTS[source.dtype],
            "INDEX": index,
            "THREADS": threads,
            "LANES": kernel_problem.lanes,
            "CHANNELS": width,
            "TILE": tile,
            "TAPS": taps,
            "PACE": along.pace,
            "SPREAD": spread,
            "MULTIPLIER": multiplier,
            "FILTERS_IN_SHARED": int(shared > 0),
            "EXACT": int(along.kernel % along.step == 0 and along.most_taps % taps == 0),
            "HAS_BIAS": int(bias is not None),
            "ACTIVATION": ACTIVATIONS[problem.activation],
            "BACKWARD": int(backward),
        },
        (position_blocks * kernel_problem.channel_blocks * phases,),
        (threads,),
        (
            source, w, bias, out,
            *ints(channels, kernel_problem.channel_blocks, position_blocks, positions, iterations, segments),
            *ints(across_count, along_size, across_size, along_out, across_out, along.kernel, across.kernel),
            *ints(along.stride, across.stride, along.dilation, across.dilation, along.padding, across.padding),
            *ints(along.step, across.step, across.spread, across.phases), by(across_count), by(segments),
            *longs(n, c, *_turned(inside, *hw), out_n, out_c, *_turned(inside, *out_hw)),
            *longs(w.stride(0), *_turned(inside, *w.stride()[2:])),
        ),
        shared,
        tunable=DEPTHWISE,
        problem=kernel_problem,
        config=config,
    )  # fmt: skip


def _depthwise_weight_grad(
    problem: Conv2dProblem, x: torch.Tensor, dy: torch.Tensor, has_bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """One launch of ``depthwise_weight_grad``. Returns the slabs of both gradients."""
    N, K, P, Q = dy.shape
    R, S = problem.R, problem.S
    multiplier = K // problem.C
    inside = dy.stride(1) == 1
    along, across = _turned(inside, *_axes(problem, False))
    along_size, across_size = _turned(inside, problem.H, problem.W)
    along_count, across_count = _turned(inside, P, Q)
    width = _channels_each(multiplier, x, dy) if inside else 1
    index = _index(problem, x, dy)
    kernel_problem = Depthwise(
        along=along_count,
        lines=N * across_count,
        channels=K,
        width=width,
        lanes=_lanes(K // width) if inside else 1,
        taps=(along.kernel, across.kernel),
        filter_taps=R * S,
        pace=along.stride,
        spread=along.dilation,
        sources=1,
        itemsize=x.element_size(),
        options=(inside, index, multiplier, has_bias),
        device=autotune.device_of(x),
    )
    config = autotune.resolve(DEPTHWISE_WGRAD, kernel_problem)
    tile, threads = config["TILE"], config["THREADS"]
    taps_along, taps_across = _tap_tile(config, kernel_problem)
    tiles_along, tiles_across = blocks_of(along.kernel, taps_along), blocks_of(across.kernel, taps_across)
    segments = blocks_of(along_count, tile)
    positions, slab_positions = _depthwise_slab(config, kernel_problem)
    count = blocks_of(positions, slab_positions)
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    slabs = torch.empty((count, K * R * S), dtype=dtype, device=x.device)
    bias_slabs = torch.empty((count if has_bias else 0, K), dtype=dtype, device=x.device)
    x_n, x_c, *x_hw = x.stride()
    dy_n, dy_k, *dy_hw = dy.stride()
    launch(
        _FOLDER / "depthwise.cu",
        "depthwise_weight_grad",
        {
            "ELEMENT": ELEMENTS[x.dtype],
            "INDEX": index,
            "THREADS": threads,
            "LANES": kernel_problem.lanes,
            "CHANNELS": width,
            "TILE": tile,
            "TAPS": taps_along,
            "ROWS": taps_across,
            "PACE": along.stride,
            "SPREAD": along.dilation,
            "EXACT": int(along_count % tile == 0),
            "HAS_BIAS": int(has_bias),
            "BACKWARD": 0,
        },
        (count * kernel_problem.channel_blocks * tiles_along * tiles_across,),
        (threads,),
        (
            x, dy, slabs, bias_slabs,
            *ints(K, kernel_problem.channel_blocks, count, positions, slab_positions, multiplier, segments),
            *ints(across_count, along_count, along_size, across_size, along.kernel, across.kernel, tiles_along),
            *ints(across.stride, across.dilation, along.padding, across.padding),
            by(across_count), by(segments),
            *longs(x_n, x_c, *_turned(inside, *x_hw), dy_n, dy_k, *_turned(inside, *dy_hw)),
            *longs(*_turned(inside, S, 1)),
        ),
        tunable=DEPTHWISE_WGRAD,
        problem=kernel_problem,
        config=config,
    )  # fmt: skip
    return slabs, bias_slabs
