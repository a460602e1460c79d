"""What the NumPy kernels of convolution may be run with: the layout of columns, blocks, slabs of a weight gradient.

Columns and blocks follow from the geometry of a correlation, which is here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from ...autotune import Config, Cost, Device, Key, Tunable
from .._arrays import Array
from .._numpy_tuning import KB, LOOP_BYTES, MB, made_once, repeated, unit, workers
from ._problem import Conv2dProblem

# Channels a group from which on a pixel's channels are a run worth copying.
PIXEL_CHANNELS = 8
# Bytes of a block per byte of its output where windows are summed in place: source, product, result, and as much again.
_CHANNELS_FACTOR = 3
_SLAB_BYTES = 32 * MB


@dataclass(frozen=True)
class Geometry:
    """A correlation of a source ``[N, C, H, W]`` with ``R x S`` taps into ``[N, K, P, Q]``: forward, or the input's
    gradient as one (then padding may be negative: it crops)."""

    N: int
    C: int  # channels a group
    K: int  # outputs a group
    G: int
    R: int
    S: int
    H: int
    W: int
    P: int
    Q: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int
    channels_last: bool  # in the source, channels are neighbours
    dense_rows: bool  # and rows of a plane lie one behind the other
    layout: str  # of columns: "runs", "pixels" or "windows"; or "channels", which has none

    @cached_property
    def staged(self) -> bool:
        """Whether the source is copied into a padded buffer first."""
        if self.layout == "runs":
            return not (self.Q <= self.W and self.dense_rows)
        inside = self.top == self.left == 0 and self.height(self.P) <= self.H and self.width <= self.W
        return not (inside and (self.layout == "windows" or self.channels_last))

    @property
    def width(self) -> int:
        """Width of the staged source."""
        return (self.Q - 1) * self.stride[1] + (self.S - 1) * self.dilation[1] + 1

    @cached_property
    def pitch(self) -> int:
        """Columns between the starts of two output rows."""
        return self.Q if self.layout != "runs" else self.width if self.staged else self.W

    def height(self, rows: int) -> int:
        """Height of the staged source of ``rows`` output rows."""
        return (rows - 1) * self.stride[0] + (self.R - 1) * self.dilation[0] + 1

    @property
    def pixels_and_run(self) -> tuple[int, int]:
        """How an output row of all channels, ``Q·G`` elements in channels-last memory, is cut into runs."""
        return (1, self.Q * self.G) if self.stride[1] == 1 else (self.Q, self.G)

    @property
    def taps(self) -> int:
        return self.C * self.R * self.S


def _correlation(problem: Conv2dProblem, channels_last: bool, dense_rows: bool) -> Geometry:
    """The forward."""
    p, (top, _, left, _) = problem, problem.padding
    C, K = p.C // p.groups, p.K // p.groups
    window = (p.stride, p.dilation, top, left, channels_last, dense_rows)
    layout = _layout(C, K, p.groups, p.R * p.S, p.stride, p.Q < 0.9 * p.W, channels_last)
    return Geometry(p.N, C, K, p.groups, p.R, p.S, p.H, p.W, p.P, p.Q, *window, layout)


def _gradient_as_correlation(problem: Conv2dProblem, channels_last: bool, dense_rows: bool) -> Geometry:
    """The input's gradient for stride 1, from the outputs' and the flipped kernel."""
    p, (top, _, left, _) = problem, problem.padding
    C, K = p.K // p.groups, p.C // p.groups
    down, right = p.dilation[0] * (p.R - 1), p.dilation[1] * (p.S - 1)
    window = ((1, 1), p.dilation, down - top, right - left, channels_last, dense_rows)
    layout = _layout(C, K, p.groups, p.R * p.S, (1, 1), p.W < 0.9 * p.Q, channels_last)
    return Geometry(p.N, C, K, p.groups, p.R, p.S, p.P, p.Q, p.H, p.W, *window, layout)


def _scattered(problem: Conv2dProblem, channels_last: bool) -> Geometry:
    """The forward, whose columns are made in a buffer and added to the gradient of its source."""
    g = _correlation(problem, channels_last, dense_rows=False)
    if g.layout == "channels" or not channels_last:
        return replace(g, layout=_runs_or_windows(g.taps, g.K, g.stride))
    return g


def _layout(C: int, K: int, G: int, window: int, stride: tuple[int, int], narrower: bool, channels_last: bool) -> str:
    """Of columns, as the source lies in memory. ``narrower``: of runs a tenth and more would be dropped."""
    if C >= PIXEL_CHANNELS and (channels_last or (stride == (1, 1) and narrower)):
        return "pixels"
    if C == K == 1 and G >= PIXEL_CHANNELS:
        return "channels"
    return _runs_or_windows(C * window, K, stride)


def _runs_or_windows(taps: int, outputs: int, stride: tuple[int, int]) -> str:
    """Fewer rows of columns than of outputs: copying rows of them is less than dropping columns of outputs."""
    return "runs" if stride == (1, 1) and taps >= outputs else "windows"


def is_channels_last(a: Array) -> bool:
    return a.strides[1] == a.itemsize and a.shape[1] > 1


def rows_are_dense(a: Array) -> bool:
    return a.strides[3] == a.itemsize and a.strides[2] == a.shape[3] * a.itemsize


class Block(NamedTuple):
    images: slice
    groups: slice
    rows: slice

    @property
    def sizes(self) -> tuple[int, int, int]:
        images, groups, rows = (s.stop - s.start for s in self)
        return images, groups, rows

    def channels(self, per_group: int) -> slice:
        return slice(self.groups.start * per_group, self.groups.stop * per_group)


def _row_bytes(g: Geometry, itemsize: int) -> int:
    """Of columns and products of an output row, of one group; of all where they make the longest runs."""
    if g.layout == "channels":
        return _CHANNELS_FACTOR * g.G * g.pitch * itemsize
    return (g.taps + g.K) * g.pitch * itemsize


def block_sizes(g: Geometry, itemsize: int, rows: int, block_bytes: int) -> tuple[int, int, int]:
    """Images, groups and output rows of a block. The output is cut by groups first, then by images, so that copies stay
    long; down to ``rows`` where an image is too much."""
    row_bytes = _row_bytes(g, itemsize)
    if g.layout == "channels":
        groups = g.G
        rows = max(1, min(g.P, block_bytes // row_bytes))
    else:
        rows = max(min(rows, g.P), min(g.P, block_bytes // row_bytes))
        groups = max(1, min(g.G, block_bytes // (row_bytes * rows)))
    images = max(1, min(g.N, block_bytes // (row_bytes * rows * groups)))
    return images, groups, rows


def cut_output(g: Geometry, itemsize: int, rows: int, block_bytes: int) -> list[Block]:
    """Blocks of :func:`block_sizes` at most."""
    images, groups, rows = block_sizes(g, itemsize, rows, block_bytes)
    return [Block(n, k, p) for n in _cut(g.N, images) for k in _cut(g.G, groups) for p in _cut(g.P, rows)]


def _cut(n: int, size: int) -> Iterator[slice]:
    """Ranges of about ``size`` that cover ``range(n)`` and are as even as can be."""
    count = -(-n // size)
    return (slice(n * i // count, n * (i + 1) // count) for i in range(count))


def slabs_of(g: Geometry, itemsize: int, blocks: int, most: int) -> int:
    """Partial weight gradients: as many as wanted, but of a bounded size."""
    weight_bytes = g.G * g.K * g.taps * itemsize
    return max(1, min(blocks, most, max(2, _SLAB_BYTES // max(1, weight_bytes))))


# ---- the space

_BLOCK_BYTES = (2 * MB, 1 * MB, 4 * MB, 512 * KB, 8 * MB, 256 * KB)
_COLUMNS = ("auto", "pixels", "windows", "runs")
_SLABS = (16, 4, 8, 32, 64)


@dataclass(frozen=True)
class Blocks:
    """One direction of a convolution.

    Attributes:
        method: "forward"; "gradient", of the input as a correlation; "scatter", of the input by adding; "weight_grad".
        channels_last, dense_rows: how the array that columns are of lies in memory.
        by_pixel: whether the channels of the array that columns are multiplied into, or with, are neighbours.
    """

    method: str
    problem: Conv2dProblem
    channels_last: bool
    dense_rows: bool
    by_pixel: bool
    itemsize: int
    device: Device

    @cached_property
    def g(self) -> Geometry:
        """With columns as the rule lays them out."""
        if self.method == "scatter":
            return _scattered(self.problem, self.channels_last)
        make = _gradient_as_correlation if self.method == "gradient" else _correlation
        return make(self.problem, self.channels_last, self.dense_rows)

    @property
    def rows(self) -> int:
        """The fewest a block can have: windows of neighbouring blocks must not add to one element."""
        return self.g.P if self.method == "scatter" else 1

    @cached_property
    def is_one(self) -> bool:
        """Whether nothing is cut with the least value of the space."""
        g = self.g
        return g.N * g.G * g.P * _row_bytes(g, self.itemsize) <= min(_BLOCK_BYTES)


_blocks = made_once(Blocks)


def blocks_of(method: str, problem: Conv2dProblem, of_columns: Array, other: Array) -> Blocks:
    return _blocks(
        method,
        problem,
        is_channels_last(of_columns),
        rows_are_dense(of_columns),
        is_channels_last(other),
        other.itemsize,
    )


def with_columns(g: Geometry, columns: str) -> Geometry:
    return g if columns == "auto" else replace(g, layout=columns)


def _counts(config: Config, blocks: Blocks) -> tuple[int, int, int]:
    """Into how many parts images, groups and rows are cut."""
    g = with_columns(blocks.g, config["COLUMNS"])
    images, groups, rows = block_sizes(g, blocks.itemsize, blocks.rows, config["BLOCK_BYTES"])
    return -(-g.N // images), -(-g.G // groups), -(-g.P // rows)


def _columns_refusal(columns: str, g: Geometry) -> str | None:
    if columns == "auto":
        return None
    if g.layout == "channels":
        return "depthwise windows are summed where they lie: there are no columns"
    if columns == g.layout:
        return f"{columns} are what the rule takes"
    if columns == "runs" and g.stride != (1, 1):
        return f"taps of stride {g.stride} are not shifted runs"
    if columns == "pixels" and g.C < PIXEL_CHANNELS:
        return f"{g.C} channels of a pixel are too short a run"
    if columns == "windows" and g.channels_last:
        return "rows of pixels, whose channels are neighbours, are no runs"
    return None


def _refusal(config: Config, blocks: Blocks) -> str | None:
    return _columns_refusal(config["COLUMNS"], blocks.g) or repeated(
        "BLOCK_BYTES", _CUT, config, lambda other: _counts(other, blocks)
    )


def _slabs(config: Config, blocks: Blocks) -> int:
    n, k, p = _counts(config, blocks)
    return slabs_of(blocks.g, blocks.itemsize, n * k * p, config["SLABS"])


def _weight_grad_refusal(config: Config, blocks: Blocks) -> str | None:
    slabs, threads = config["SLABS"], blocks.device.multiprocessors
    if slabs != _SLABS[0]:
        if config["COLUMNS"] != "auto":
            return "other slabs are tried with the rule's columns"
        if slabs < threads:
            return f"{slabs} slabs leave some of {threads} threads idle"
        if slabs >= 2 * threads and slabs > min(_SLABS):
            return f"half as many slabs are enough for {threads} threads"
    return _refusal(config, blocks) or repeated("SLABS", _CUT_IN_SLABS, config, lambda other: _slabs(other, blocks))


def _key(blocks: Blocks) -> Key:
    g, d = blocks.g, blocks.device
    window = (g.R, g.S, g.stride, g.dilation, g.staged, g.pitch != g.Q)
    layout = (blocks.method, g.layout, g.channels_last, g.dense_rows, blocks.by_pixel, blocks.itemsize)
    return Key(
        (*layout, *window, d.name, d.multiprocessors),
        {
            "outputs": g.K,
            "taps": g.taps,
            "pixels": g.N * g.P * g.Q,
            "row": g.Q,
            "groups": g.G,
        },
    )


def _cost(config: Config, blocks: Blocks) -> Cost:
    g, itemsize = with_columns(blocks.g, config["COLUMNS"]), blocks.itemsize
    counts = _counts(config, blocks)
    count = counts[0] * counts[1] * counts[2]
    columns = g.N * g.P * g.pitch * g.G / count  # of a block, those that straddle rows among them
    products = columns * g.taps * g.K
    # what one inner loop of NumPy copies: a plane's run, a pixel's channels, or a row
    run = {"runs": g.P * g.pitch / counts[2], "pixels": g.C, "windows": g.Q, "channels": g.Q * g.G}[g.layout]
    elements = columns * g.taps
    passes = 2 + 2 * g.K / g.taps + 2 * g.staged / (g.R * g.S)
    calls = 3 + 4 * g.staged
    if g.layout == "runs":
        calls += 2 * g.R * g.S
    if blocks.method == "scatter":
        passes += 3
        calls += g.R * g.S
    slabs = _slabs(config, blocks) if "SLABS" in config else 0
    weight_bytes = g.G * g.K * g.taps * itemsize
    source, target = g.N * g.G * g.C * g.H * g.W, g.N * g.G * g.K * g.P * g.Q
    return Cost(
        blocks=count,
        flops=2 * products,
        unit=unit(itemsize),
        bytes=itemsize * elements * passes + LOOP_BYTES * elements / run,
        steps=calls,
        shared=int(columns * itemsize * (_CHANNELS_FACTOR if g.layout == "channels" else g.taps + g.K)),
        threads=workers(slabs or count, (source + target) * itemsize, target * g.taps, blocks.device),
        # slabs are zeroed, and summed at the end
        extra_bytes=3.0 * slabs * weight_bytes,
        extra_launches=2 * min(1, slabs),
    )


_REASONS = {
    "BLOCK_BYTES": "of columns and products of a block: 256 KiB to 8 MiB by powers of two, from half of a small "
    "second-level cache to a share of the third; small blocks are small products and many calls",
    "COLUMNS": "how taps become columns: as the rule has it, or as runs of planes, pixels of channels or rows of "
    "windows where the geometry has them too",
}
_CUT = {"BLOCK_BYTES": _BLOCK_BYTES, "COLUMNS": _COLUMNS}
_CUT_IN_SLABS = {**_CUT, "SLABS": _SLABS}


def tunable(direction: str, default: Callable[[Blocks], Config]) -> Tunable:
    """Of forward and input_grad."""
    return Tunable(
        f"numpy.conv2d.{direction}",
        _CUT,
        default=default,
        refusal=_refusal,
        reasons=_REASONS,
        key=_key,
        cost=_cost,
    )


def weight_grad(default: Callable[[Blocks], Config]) -> Tunable:
    return Tunable(
        "numpy.conv2d.weight_grad",
        _CUT_IN_SLABS,
        default=default,
        refusal=_weight_grad_refusal,
        reasons={
            **_REASONS,
            "SLABS": "partial sums at most: 16 for any machine, or as few as give each of its threads one, which are "
            "fewer weights to zero and to add up",
        },
        key=_key,
        cost=_cost,
    )
