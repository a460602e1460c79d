"""2-D pooling in CUDA C++: which kernel serves a problem, what it may be run with, how it is launched.

- ``forward.cu``: windows of maps with channels inside, over registers; windows of planes, by bands in shared memory.
- ``reduce.cu``: windows too large or too few for that.
- ``spread.cu``: gradients of means, which elements gather from the windows that see them.
- ``scatter.cu``: gradients of maxima, which windows add to elements in shared memory.
- ``gather.cu``: the derivative of that.

Inputs are read through their strides: 16 bytes at a time where channels or rows lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import autotune
from .._cuda import ELEMENTS, launch
from .._cuda_tensors import divisors, ints, longs, strides_of
from .._division import blocks_of, power_of_two
from ._cupy_space import (
    BANDS_BACKWARD,
    BANDS_FORWARD,
    CHANNELS_BACKWARD,
    CHANNELS_FORWARD,
    REDUCE,
    SCATTER,
    Bands,
    Channels,
    Plan,
    Reduce,
    Scatter,
    Taps,
    plan,
    tiling,
)
from ._problem import AdaptivePool2dProblem, Pool2dProblem, adaptive_bounds

ON_TENSORS = True
TUNABLES = (CHANNELS_FORWARD, CHANNELS_BACKWARD, SCATTER, BANDS_FORWARD, BANDS_BACKWARD, REDUCE)

Problem = Pool2dProblem | AdaptivePool2dProblem

_FOLDER = Path(__file__).parent
_PIXELS = 2**30  # of all planes of a launch: kernels count tiles in 31 bits, of which half may hang over an edge
_OFFSETS = 2**31
_LONGEST_SLIDE = 16  # taps of an axis up to which windows slide over registers
_MOST_APART = 16  # taps of windows that share none, up to which a thread each is enough
_LONGEST_TILE = 4  # strides up to which backward makes the elements between windows in one tile
_LARGE = 4096  # elements of a window that a block of its own should reduce
_WHOLE_ELEMENTS = 16384  # of planes that a block fills
_THREADS = 256  # of kernels without a configuration


# ---- what kernels are told


@dataclass(frozen=True)
class Axis:
    """Windows along one axis, as ``_windows.cuh`` has them. ``kernel`` of an adaptive one: what no window exceeds."""

    size: int
    count: int
    kernel: int
    stride: int
    dilation: int
    padding: int
    margin: int
    divisor: int
    adaptive: bool

    def arguments(self, number: type[np.floating[Any]]) -> tuple[Any, ...]:
        """``number``: the type of what means are divided by."""
        numbers = (self.size, self.count, self.kernel, self.stride, self.dilation, self.padding)
        by_window, by_element = (self.count, self.size) if self.adaptive else (1, self.stride)
        divided = (*ints(self.margin, self.divisor == 0), number(self.divisor))
        return (*ints(*numbers), *divided, *divisors(by_window, by_element))

    @property
    def taps(self) -> Taps:
        kernel = self.kernel
        if self.adaptive:
            kernel = round(sum(b - a for a, b in adaptive_bounds(self.size, self.count)) / self.count)
        return Taps(kernel, self.stride, self.dilation, self.count, self.size)

    @property
    def largest_dividend(self) -> int:
        return (self.count + 1) * (self.size + 1) + self.count if self.adaptive else 0

    def meeting(self) -> int:
        """The least distance of windows that never see the same element."""
        if not self.adaptive:
            return (self.kernel - 1) * self.dilation // self.stride + 1
        bounds = adaptive_bounds(self.size, self.count)
        distance = 1
        while any(b[0] < a[1] for a, b in zip(bounds, bounds[distance:], strict=False)):
            distance += 1
        return distance


@lru_cache(maxsize=4096)
def _axes(problem: Problem) -> tuple[Axis, Axis]:
    sizes = ((problem.H, problem.P), (problem.W, problem.Q))
    if isinstance(problem, AdaptivePool2dProblem):
        h, w = (
            Axis(size, count, kernel, max(1, size // count), 1, 0, 0, 0, True)
            for (size, count), kernel in zip(sizes, problem.kernel, strict=True)
        )
        return h, w
    override = problem.divisor_override
    h, w = (
        Axis(size, count, kernel, stride, dilation, padding, padding if problem.count_include_pad else 0, fixed, False)
        for (size, count), kernel, stride, dilation, padding, fixed in zip(
            sizes, problem.kernel, problem.stride, problem.dilation, problem.padding, (override and 1, override),
            strict=True,
        )
    )  # fmt: skip
    return h, w


@lru_cache(maxsize=4096)
def _sliding(problem: Problem) -> Problem:
    """An adaptive problem as an ordinary one, where its windows all have one size and one distance."""
    if isinstance(problem, Pool2dProblem):
        return problem
    kernel, stride = [], []
    for size, count in ((problem.H, problem.P), (problem.W, problem.Q)):
        bounds = adaptive_bounds(size, count)
        lengths, steps = {b - a for a, b in bounds}, {b[0] - a[0] for a, b in pairwise(bounds)} or {size}
        if len(lengths) > 1 or len(steps) > 1 or steps == {0}:
            return problem
        kernel.append(lengths.pop())
        stride.append(steps.pop())
    N, C, H, W = problem.N, problem.C, problem.H, problem.W
    return Pool2dProblem(N, C, H, W, (kernel[0], kernel[1]), (stride[0], stride[1]), (0, 0))


@dataclass(frozen=True)
class _Call:
    """What all kernels of one launch are told.

    Attributes:
        pitch: tap ``(r, s)`` has number ``r · pitch + s``.
        adaptive: windows are not of one size, or not at one distance.
        index: the type of offsets.
        where: what is told of maxima: 0 nothing, 1 the tap, 2 the place in the plane.
    """

    h: Axis
    w: Axis
    pitch: int
    adaptive: bool
    index: str
    where: int
    dtype: torch.dtype
    device: autotune.Device

    @property
    def macros(self) -> dict[str, int | str]:
        return {
            "ELEMENT": ELEMENTS[self.dtype],
            "INDEX": self.index,
            "WHERE": self.where,
            "ADAPTIVE": int(self.adaptive),
            "PITCH": self.pitch,
        }

    @property
    def windows(self) -> dict[str, int | str]:
        """Constants of windows that slide."""
        h, w = self.h, self.w
        return {
            "KERNEL_H": h.kernel, "KERNEL_W": w.kernel, "STRIDE_H": h.stride, "STRIDE_W": w.stride,
            "DILATION_H": h.dilation, "DILATION_W": w.dilation,
        }  # fmt: skip

    @property
    def axes(self) -> tuple[Any, ...]:
        number = np.float64 if self.dtype is torch.float64 else np.float32
        return (*self.h.arguments(number), *self.w.arguments(number))

    @property
    def taps(self) -> tuple[Taps, Taps]:
        return self.h.taps, self.w.taps

    @property
    def options(self) -> tuple[object, ...]:
        return (self.index, self.where)

    @property
    def index_itemsize(self) -> int:
        return (0, 1, 8)[self.where]


def _call(problem: Problem, index: torch.Tensor | None, *tensors: torch.Tensor) -> _Call:
    ordinary = _sliding(problem)
    h, w = _axes(ordinary)
    where = 0 if index is None else 1 if index.dtype is torch.uint8 else 2
    wide = max(h.largest_dividend, w.largest_dividend) >= _OFFSETS or any(_extent(t) >= _OFFSETS for t in tensors)
    return _Call(
        h, w, problem.kernel[1], h.adaptive, "long long" if wide else "int", where, tensors[0].dtype,
        autotune.device_of(tensors[0]),
    )  # fmt: skip


def _extent(tensor: torch.Tensor) -> int:
    """Offset of the last element of an image."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))


def _parts(problem: Problem, inside: bool) -> Iterator[tuple[Problem, tuple[slice, slice]]]:
    """Ranges of images, and of a single one's planes, whose elements a kernel can count. Channels that lie inside stay
    together: outputs are dense."""
    pixels_each = max(problem.H * problem.W, problem.P * problem.Q)
    if pixels_each > _PIXELS:
        raise NotImplementedError(
            f"pool2d: one image has {pixels_each} pixels, the kernels count up to {_PIXELS}: {problem}"
        )
    images = max(1, _PIXELS // (pixels_each * problem.C))
    planes = problem.C if inside else min(problem.C, _PIXELS // pixels_each)
    for n in range(0, problem.N, images):
        for c in range(0, problem.C, planes):
            part = slice(n, min(n + images, problem.N)), slice(c, min(c + planes, problem.C))
            yield replace(problem, N=part[0].stop - n, C=part[1].stop - c), part


def _aligned(tensor: torch.Tensor, count: int) -> bool:
    """Whether ``count`` channels can be moved at once, wherever a pixel lies: by 16 bytes if they are more."""
    step_n, step_c, step_h, step_w = strides_of(tensor)
    size = count * tensor.element_size()
    address = tensor.storage_offset() * tensor.element_size() if tensor.is_meta else tensor.data_ptr()
    even = tensor.shape[1] % count == 0 and all(step % count == 0 for step in (step_n, step_h, step_w))
    return even and (count == 1 or step_c == 1) and address % min(size, 16) == 0


def _width(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> tuple[int, list[int]]:
    """Channels of a thread, 16 bytes of them if they lie side by side in the outputs, and of each input whether one
    load can bring them."""
    size = outputs[0].element_size()
    counts = [c for c in (16 // size, 8 // size, 4 // size, 2 // size) if c > 1]
    fitting = [c for c in counts if all(_aligned(t, c) for t in outputs)] or [1]
    width = next((c for c in fitting if all(_aligned(t, c) for t in inputs)), fitting[0])
    return width, [int(_aligned(t, width)) for t in inputs]


def _lanes(packs: int) -> int:
    """Neighbouring threads that are neighbouring channels: 32 unless fewer leave less of the last ones idle."""
    least = min(power_of_two(packs), 4)
    return min(
        (n for n in (32, 16, 8, 4, 2, 1) if least <= n <= power_of_two(packs)), key=lambda n: blocks_of(packs, n) * n
    )


def _inside(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Whether channels lie inside: the smaller one says, unless its planes are single pixels."""
    if small.shape[1] == 1:
        return False
    deciding = small if small.shape[2] * small.shape[3] > 1 else large
    return deciding.stride(1) == 1 and deciding.shape[2] * deciding.shape[3] > 1


# ---- forward


def max_forward(problem: Pool2dProblem, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None) -> None:
    """The maximum of each window; ``index``, which may be ``None``, says where it was."""
    _forward(problem, x, y, index, True)


def adaptive_max_forward(
    problem: AdaptivePool2dProblem, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None
) -> None:
    """As :func:`max_forward`."""
    _forward(problem, x, y, index, True)


def avg_forward(problem: Pool2dProblem, x: torch.Tensor, y: torch.Tensor) -> None:
    """The mean of each window: the sum of its elements, by what count as its elements."""
    _forward(problem, x, y, None, False)


def adaptive_avg_forward(problem: AdaptivePool2dProblem, x: torch.Tensor, y: torch.Tensor) -> None:
    """As :func:`avg_forward`."""
    _forward(problem, x, y, None, False)


def _forward(problem: Problem, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None, maxima: bool) -> None:
    inside = _inside(y, x)
    for part, at in _parts(problem, inside):
        part_x, part_y, part_index = x[at], y[at], None if index is None else index[at]
        call = _call(part, index, part_x, part_y)
        slides = _slides(call)
        if inside:
            run = _forward_channels if slides else _reduce_channels
        else:
            run = _forward_planes if _fits_bands(call, part, slides, maxima) else _reduce_planes
        run(call, part, part_x, part_y, part_index, maxima)


def _slides(call: _Call) -> bool:
    """Whether windows slide over registers: few taps, which windows share, or very few."""
    h, w = call.h, call.w
    if (
        call.adaptive
        or max(h.kernel, w.kernel) > _LONGEST_SLIDE
        or max(h.taps.reach, w.taps.reach) > 2 * _LONGEST_SLIDE
    ):
        return False
    return h.meeting() > 1 or w.meeting() > 1 or h.kernel * w.kernel <= _MOST_APART


def _forward_channels(
    call: _Call, problem: Problem, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None, maxima: bool
) -> None:
    width, (together,) = _width([y] if index is None else [y, index], [x])
    packs = problem.C // width
    kernel_problem = Channels(
        "max" if maxima else "mean", call.taps, (problem.P, problem.Q), problem.N, packs, width, _lanes(packs),
        y.element_size(), call.index_itemsize, (*call.options, together, call.pitch), call.device,
    )  # fmt: skip
    _channels(
        call, kernel_problem, "forward", [x, y, index], {"MAXIMUM": int(maxima), "TOGETHER": together}, strides_of(x)
    )


def _channels(
    call: _Call,
    problem: Channels,
    kernel: str,
    tensors: list[torch.Tensor | None],
    macros: dict[str, int | str],
    strides: list[int],
) -> None:
    """Launches ``forward_channels`` or ``spread_channels``."""
    tunable = CHANNELS_FORWARD if kernel == "forward" else CHANNELS_BACKWARD
    config = autotune.resolve(tunable, problem)
    rows, columns, down, threads = (config[name] for name in ("ROWS", "COLS", "DOWN", "THREADS"))
    tiles, groups = blocks_of(problem.places[1], columns), blocks_of(blocks_of(problem.places[0], rows), down)
    positions = problem.images * groups * tiles * down
    slides = problem.way != "cover"
    launch(
        _FOLDER / f"{kernel}.cu",
        f"{kernel}_channels",
        {
            **call.macros, **(call.windows if slides else {}), **macros, "INSIDE": 1, "SLIDING": int(slides),
            "LANES": problem.lanes, "WIDTH": problem.width, "ROWS": rows, "COLS": columns, "DOWN": down,
            "THREADS": threads,
        },
        (blocks_of(positions, threads // problem.lanes) * problem.channel_blocks,),
        (threads,),
        (
            *tensors, *ints(problem.packs * problem.width, problem.channel_blocks, positions, groups, tiles),
            *divisors(groups, tiles), *call.axes, *longs(*strides),
        ),
        tunable=tunable,
        problem=problem,
        config=config,
    )  # fmt: skip


def _images_and_planes(problem: Problem, *tensors: torch.Tensor) -> tuple[int, int]:
    """How many images of how many planes: where images lie side by side in all tensors, they are one."""
    N, C = problem.N, problem.C
    if N == 1 or C == 1 or all(t.stride(0) == C * t.stride(1) for t in tensors):
        return 1, N * C
    return N, C


def _plane_strides(images: int, tensor: torch.Tensor) -> tuple[int, int, int, int]:
    """Strides of images, planes, rows and columns."""
    n, c, h, w = strides_of(tensor)
    return (0, c or n, h, w) if images == 1 else (n, c, h, w)


def _dense_planes(images: int, tensor: torch.Tensor) -> bool:
    """Whether an image's planes, and their rows, lie side by side."""
    _, plane, h, w = _plane_strides(images, tensor)
    N, C, H, W = tensor.shape
    planes = N * C if images == 1 else C
    return all(size == 1 or step == dense for size, step, dense in ((planes, plane, H * W), (H, h, W), (W, w, 1)))


def _forward_bands(
    call: _Call, problem: Problem, slides: bool, maxima: bool, images: tuple[int, int], dense: bool
) -> Bands:
    itemsize = call.dtype.itemsize
    made = (itemsize, call.index_itemsize) if call.where else (itemsize,)
    # two maxima of half types are as fast as one
    width = 2 if slides and maxima and itemsize == 2 and problem.Q > 1 else 1
    outside = [slides and (axis.padding > 0 or axis.taps.span(axis.count) > axis.size) for axis in (call.h, call.w)]
    return Bands(
        ("max" if maxima else "mean") if slides else "walk", call.taps, (problem.P, problem.Q), (problem.H, problem.W),
        (outside[0], outside[1]), *images, (itemsize,), made, itemsize, width, maxima, call.adaptive,
        (*call.options, dense, call.pitch), call.device,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _fits_bands(call: _Call, problem: Problem, slides: bool, maxima: bool) -> bool:
    """Whether windows of planes are taken from bands in shared memory: those that are not too large for it."""
    if not slides and call.h.kernel * call.w.kernel >= _LARGE:
        return False
    bands = _forward_bands(call, problem, slides, maxima, (problem.N, problem.C), True)
    return next(iter(BANDS_FORWARD.configs(bands)), None) is not None


def _forward_planes(
    call: _Call, problem: Problem, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None, maxima: bool
) -> None:
    images = _images_and_planes(problem, x, y)
    dense = _dense_planes(images[0], x)
    kernel_problem = _forward_bands(call, problem, _slides(call), maxima, images, dense)
    slides = kernel_problem.way != "walk"
    config = autotune.resolve(BANDS_FORWARD, kernel_problem)
    team = config["TEAM"]
    found = plan(config, kernel_problem)
    assert found is not None
    # threads of a team that lie across a window, the others below each other
    across = min(team, power_of_two(call.w.kernel + 1) // 2)
    boxes, cuts = _boxes(kernel_problem, found)
    launch(
        _FOLDER / "forward.cu",
        "forward_planes",
        {
            **call.macros, **(call.windows if slides else {}), "MAXIMUM": int(maxima), "INSIDE": 0,
            "SLIDING": int(slides), "FLAT": int(found.flat), "DENSE": int(dense), **_runs(kernel_problem, found),
            "ROWS": config["ROWS"], "COLS": config["COLS"], "WIDTH": kernel_problem.width, "TEAM": team,
            "THREADS": config["THREADS"],
        },
        (boxes,),
        (config["THREADS"],),
        (
            x, y, index,
            *ints(*cuts, *found.tiles, found.source_pitches[0], found.made_pitches[0], found.made_pitches[-1]),
            *ints(found.sources[0], found.made[0], found.made[-1], found.tables, across),
            *divisors(*cuts[2::2], *found.tiles),
            *call.axes, *longs(*_plane_strides(images[0], x)),
        ),
        found.shared,
        tunable=BANDS_FORWARD,
        problem=kernel_problem,
        config=config,
    )  # fmt: skip


def _runs(problem: Bands, found: Plan) -> dict[str, int | str]:
    """How the source lies in shared memory, and whether columns outside of it have no place there."""
    return {"SOURCE_RUNS": found.runs, "MASKED": int(found.runs == "PLANE_RUNS" and problem.outside[1])}


def _boxes(problem: Bands, found: Plan) -> tuple[int, tuple[int, ...]]:
    """How many boxes there are, and for planes, rows and columns: how many in a box, and how many boxes."""
    groups = blocks_of(problem.planes, found.group)
    bands, segments = blocks_of(problem.box[0], found.rows), blocks_of(problem.box[1], found.columns)
    count = problem.images * groups * bands * segments
    return count, (problem.planes, found.group, groups, found.rows, bands, found.columns, segments)


def _area(call: _Call) -> tuple[int, float]:
    """Elements of a window, and of those what no window before has."""
    h, w = call.taps
    return h.kernel * w.kernel, min(h.kernel * w.kernel, h.size * w.size / (h.count * w.count))


def _reduce_channels(
    call: _Call, problem: Problem, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None, maxima: bool
) -> None:
    width, (together,) = _width([y] if index is None else [y, index], [x])
    packs = problem.C // width
    kernel_problem = Reduce(
        problem.N * problem.P * problem.Q, *_area(call), packs, width, _lanes(packs), width,
        x.element_size(), call.index_itemsize, maxima, (*call.options, together, call.pitch), call.device,
    )  # fmt: skip
    _reduce(
        call, kernel_problem, "channels", (x, y, index),
        {"TOGETHER": together, "LANES": kernel_problem.lanes, "WIDTH": width},
        ints(problem.C, kernel_problem.channel_blocks), (problem.P, problem.Q), strides_of(x),
    )  # fmt: skip


def _reduce_planes(
    call: _Call, problem: Problem, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None, maxima: bool
) -> None:
    vector = 16 // x.element_size() if call.w.dilation == 1 and strides_of(x)[3] == 1 else 1
    kernel_problem = Reduce(
        problem.N * problem.C * problem.P * problem.Q, *_area(call), 1, 1, 1, vector,
        x.element_size(), call.index_itemsize, maxima, (*call.options, call.pitch), call.device,
    )  # fmt: skip
    _reduce(
        call, kernel_problem, "planes", (x, y, index), {"VECTOR": vector}, ints(problem.C),
        (problem.P, problem.Q, problem.C), strides_of(x),
    )  # fmt: skip


def _reduce(
    call: _Call,
    problem: Reduce,
    what: str,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    macros: dict[str, int | str],
    counts: tuple[Any, ...],
    divided: tuple[int, ...],
    strides: list[int],
) -> None:
    """Launches ``reduce_channels`` or ``reduce_planes``, and ``finish`` if windows are reduced in parts."""
    x, y, index = tensors
    config = autotune.resolve(REDUCE, problem)
    threads, splits = config["THREADS"], config["SPLITS"]
    outputs = y.numel()
    parts = places = None
    if splits > 1:
        dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        parts = torch.empty((splits, outputs), dtype=dtype, device=x.device)
        places = torch.empty((splits, outputs) if call.where else (0,), dtype=torch.int32, device=x.device)
    shared_macros = {
        **call.macros, "MAXIMUM": int(problem.maxima), "INSIDE": int(what == "channels"), "SPLIT": int(splits > 1),
    }  # fmt: skip
    launch(
        _FOLDER / "reduce.cu",
        f"reduce_{what}",
        {**shared_macros, **macros, "THREADS": threads},
        (problem.windows * problem.channel_blocks * splits,),
        (threads,),
        (
            x, y, index, parts, places, *counts, *ints(splits), np.int64(outputs), *divisors(*divided), *call.axes,
            *longs(*strides),
        ),
        tunable=REDUCE,
        problem=problem,
        config=config,
    )  # fmt: skip
    if parts is not None:
        launch(
            _FOLDER / "reduce.cu",
            "finish",
            {**shared_macros, "FINISH": 1, "INSIDE": 0, "THREADS": _THREADS},
            (blocks_of(outputs, _THREADS),),
            (_THREADS,),
            (parts, places, y, index, *ints(splits), np.int64(outputs)),
        )


# ---- backward


def max_backward(problem: Problem, dy: torch.Tensor, index: torch.Tensor, dx: torch.Tensor) -> None:
    """Each window's gradient, at its maximum; of an element, summed over its windows in a fixed order."""
    inside = _inside(dx, dy)
    for part, at in _parts(problem, inside):
        part_dy, part_index, part_dx = dy[at], index[at], dx[at]
        call = _call(part, index, part_dy, part_dx, part_index)
        if not inside:
            bands = _scatter_bands(call, part, part_dy, part_index, part_dx)
            if _some_config(bands):
                _scatter_planes(call, bands, part_dy, part_index, part_dx)
                continue
        _scatter_channels(call, part, part_dy, part_index, part_dx)


def avg_backward(problem: Pool2dProblem, dy: torch.Tensor, dx: torch.Tensor) -> None:
    """Of each window's gradient every element gets an equal part; of an element, summed in a fixed order."""
    _avg_backward(problem, dy, dx)


def adaptive_avg_backward(problem: AdaptivePool2dProblem, dy: torch.Tensor, dx: torch.Tensor) -> None:
    """As :func:`avg_backward`."""
    _avg_backward(problem, dy, dx)


def _avg_backward(problem: Problem, dy: torch.Tensor, dx: torch.Tensor) -> None:
    inside = _inside(dx, dy)
    for part, at in _parts(problem, inside):
        part_dy, part_dx = dy[at], dx[at]
        call = _call(part, None, part_dy, part_dx)
        if not inside:
            if _whole(call):
                _spread_whole(call, part, part_dy, part_dx)
                continue
            bands = _spread_bands(call, part, part_dy, part_dx)
            if _some_config(bands):
                _spread_planes(call, bands, part_dy, part_dx)
                continue
        _spread_channels(call, part, part_dy, part_dx)


@lru_cache(maxsize=4096)
def _some_config(problem: Bands) -> bool:
    return next(iter(BANDS_BACKWARD.configs(problem)), None) is not None


def _slides_back(call: _Call) -> bool:
    """Whether a thread makes all elements under a tile of windows."""
    return (
        not call.adaptive
        and max(call.h.stride, call.w.stride) <= _LONGEST_TILE
        and max(call.h.kernel, call.w.kernel) <= _LONGEST_SLIDE
    )


def _whole(call: _Call) -> bool:
    """Whether one window sees a whole plane."""
    return all(axis.count == 1 and axis.padding == 0 and axis.kernel >= axis.size for axis in (call.h, call.w))


def _spread_whole(call: _Call, problem: Problem, dy: torch.Tensor, dx: torch.Tensor) -> None:
    """Every element of a plane gets the same."""
    size, planes = problem.H * problem.W, problem.N * problem.C
    aligned = dx.is_meta or dx.data_ptr() % 16 == 0
    vector = 16 // dx.element_size() if aligned else 1
    # planes of a block are whole vectors, and the kernel counts their elements and one round of vectors more
    while vector > 1 and vector // gcd(size, vector) * size + _THREADS * vector >= _OFFSETS:
        vector //= 2
    least = vector // gcd(size, vector)
    group = least * max(1, _WHOLE_ELEMENTS // (size * least))
    share = 1 / (call.w.divisor or size)
    scale = np.float64(share) if dx.dtype is torch.float64 else np.float32(share)
    launch(
        _FOLDER / "spread.cu",
        "spread_whole",
        {
            **call.macros, "MAXIMUM": 0, "WHOLE": 1, "INSIDE": 0, "SLIDING": 0, "VECTOR": vector, "THREADS": _THREADS,
        },
        (blocks_of(planes, group),),
        (_THREADS,),
        (
            dy, dx, *ints(planes, group, size, problem.C), *divisors(size, problem.C), scale,
            *longs(*strides_of(dy)[:2]),
        ),
    )  # fmt: skip


def _spread_channels(call: _Call, problem: Problem, dy: torch.Tensor, dx: torch.Tensor) -> None:
    width, (together,) = _width([dx], [dy])
    packs = problem.C // width
    h, w = call.h, call.w
    slides = _slides_back(call)
    places = (problem.H, problem.W)
    if slides:
        places = blocks_of(h.size + h.padding, h.stride), blocks_of(w.size + w.padding, w.stride)
    kernel_problem = Channels(
        "spread" if slides else "cover", call.taps, places, problem.N, packs, width, _lanes(packs), dx.element_size(),
        0, (*call.options, call.adaptive, together), call.device,
    )  # fmt: skip
    strides = [*strides_of(dy), *strides_of(dx)]
    _channels(call, kernel_problem, "spread", [dy, dx], {"MAXIMUM": 0, "TOGETHER": together}, strides)


def _spread_bands(call: _Call, problem: Problem, dy: torch.Tensor, dx: torch.Tensor) -> Bands:
    size = dx.element_size()
    slides = _slides_back(call)
    pad_h, pad_w = (call.h.padding, call.w.padding) if slides else (0, 0)
    outside = [
        slides and (axis.taps.back > 0 or blocks_of(axis.size + axis.padding, axis.stride) > axis.count)
        for axis in (call.h, call.w)
    ]
    images = _images_and_planes(problem, dy, dx)
    return Bands(
        "spread" if slides else "cover", call.taps, (problem.H + pad_h, problem.W + pad_w), (problem.P, problem.Q),
        (outside[0], outside[1]), *images, (size,), (size,), size, 1, False, call.adaptive,
        (*call.options, _dense_planes(images[0], dy)), call.device,
    )  # fmt: skip


def _spread_planes(call: _Call, bands: Bands, dy: torch.Tensor, dx: torch.Tensor) -> None:
    slides = bands.way == "spread"
    config = autotune.resolve(BANDS_BACKWARD, bands)
    found = plan(config, bands)
    assert found is not None
    boxes, cuts = _boxes(bands, found)
    planes, group, groups, rows, band_count, columns, segments = cuts
    launch(
        _FOLDER / "spread.cu",
        "spread_planes",
        {
            **call.macros, **(call.windows if slides else {}), "MAXIMUM": 0, "INSIDE": 0, "SLIDING": int(slides),
            "FLAT": int(found.flat), "DENSE": int(_dense_planes(bands.images, dy)), **_runs(bands, found),
            "ROWS": config["ROWS"], "COLS": config["COLS"], "STRIP": config["ROWS"] * bands.tile[0],
            "THREADS": config["THREADS"],
        },
        (boxes,),
        (config["THREADS"],),
        (
            dy, dx, *ints(planes, group, groups, bands.box[0], rows, band_count, bands.box[1], columns, segments),
            *ints(*found.tiles, found.source_pitches[0], found.made_pitches[0], found.sources[0], found.made[0]),
            *ints(found.tables), *divisors(groups, band_count, segments, *found.tiles), *call.axes,
            *longs(*_plane_strides(bands.images, dy)),
        ),
        found.shared,
        tunable=BANDS_BACKWARD,
        problem=bands,
        config=config,
    )  # fmt: skip


def _overlap(call: _Call) -> tuple[tuple[int, int], bool]:
    """The least distance of windows that never meet, and whether any do."""
    meeting = call.h.meeting(), call.w.meeting()
    return meeting, max(meeting) > 1


def _scatter_channels(call: _Call, problem: Problem, dy: torch.Tensor, index: torch.Tensor, dx: torch.Tensor) -> None:
    width, (together, index_together) = _width([dx], [dy, index])
    packs, size = problem.C // width, dx.element_size()
    meeting, overlap = _overlap(call)
    kernel_problem = Scatter(
        call.taps, (problem.H, problem.W), meeting, problem.N, packs, width, size, call.index_itemsize,
        max(4, size) if overlap else size, (*call.options, call.adaptive, together, index_together, call.pitch),
        call.device,
    )  # fmt: skip
    config = autotune.resolve(SCATTER, kernel_problem)
    found = tiling(config, kernel_problem)
    assert found is not None
    (tile_h, tile_w), lanes = found.tile, found.lanes
    tiles_h, tiles_w, channel_blocks = (
        blocks_of(problem.H, tile_h),
        blocks_of(problem.W, tile_w),
        blocks_of(packs, lanes),
    )
    launch(
        _FOLDER / "scatter.cu",
        "scatter_channels",
        {
            **call.macros, "MAXIMUM": 0, "OVERLAP": int(overlap), "INSIDE": 1, "LANES": lanes, "WIDTH": width,
            "TOGETHER": together, "INDEX_TOGETHER": index_together, "THREADS": config["THREADS"],
        },
        (problem.N * tiles_h * tiles_w * channel_blocks,),
        (config["THREADS"],),
        (
            dy, index, dx, *ints(problem.C, channel_blocks, tile_h, tile_w, tiles_h, tiles_w, *found.patch),
            *ints(*found.phases), *divisors(channel_blocks, tiles_h, tiles_w, problem.W), *call.axes,
            *longs(*strides_of(dy), *strides_of(index), *strides_of(dx)),
        ),
        found.shared,
        tunable=SCATTER,
        problem=kernel_problem,
        config=config,
    )  # fmt: skip


def _scatter_bands(call: _Call, problem: Problem, dy: torch.Tensor, index: torch.Tensor, dx: torch.Tensor) -> Bands:
    size = dx.element_size()
    _, overlap = _overlap(call)
    images = _images_and_planes(problem, dy, index, dx)
    dense = _dense_planes(images[0], dy), _dense_planes(images[0], index)
    return Bands(
        "scatter", call.taps, (problem.H, problem.W), (problem.P, problem.Q), (False, False), *images,
        (size, call.index_itemsize), (size,), max(4, size) if overlap else size, 1, True, call.adaptive,
        (*call.options, *dense, call.pitch), call.device,
    )  # fmt: skip


def _scatter_planes(call: _Call, bands: Bands, dy: torch.Tensor, index: torch.Tensor, dx: torch.Tensor) -> None:
    config = autotune.resolve(BANDS_BACKWARD, bands)
    found = plan(config, bands)
    assert found is not None
    (meeting_h, meeting_w), overlap = _overlap(call)
    boxes, cuts = _boxes(bands, found)
    launch(
        _FOLDER / "scatter.cu",
        "scatter_planes",
        {
            **call.macros, "MAXIMUM": 0, "OVERLAP": int(overlap), "INSIDE": 0, "FLAT": int(found.flat),
            "DENSE": int(_dense_planes(bands.images, dy)),
            "DENSE_INDEX": int(_dense_planes(bands.images, index)), "THREADS": config["THREADS"],
        },
        (boxes,),
        (config["THREADS"],),
        (
            dy, index, dx, *ints(*cuts, max(config["ROWS"], meeting_h - 1), meeting_w, *found.source_pitches),
            *ints(found.made_pitches[0], found.sources[1], found.made[0], found.shared - found.made[0]),
            *divisors(*cuts[2::2], call.w.size), *call.axes,
            *longs(*_plane_strides(bands.images, dy), *_plane_strides(bands.images, index)),
        ),
        found.shared,
        tunable=BANDS_BACKWARD,
        problem=bands,
        config=config,
    )  # fmt: skip


def max_gather(problem: Problem, ddx: torch.Tensor, index: torch.Tensor, ddy: torch.Tensor) -> None:
    """``ddy = ddx`` at the place of each maximum: the derivative of :func:`max_backward`."""
    inside = ddy.stride(1) == 1 and problem.C > 1
    for part, at in _parts(problem, inside):
        part_ddx, part_index, part_ddy = ddx[at], index[at], ddy[at]
        call = _call(part, index, part_ddx, part_ddy, part_index)
        windows = part_ddy.numel()
        index_type = "long long" if windows >= _OFFSETS else call.index
        launch(
            _FOLDER / "gather.cu",
            "gather",
            {**call.macros, "INDEX": index_type, "MAXIMUM": 0, "INSIDE": int(inside), "THREADS": _THREADS},
            (blocks_of(windows, _THREADS),),
            (_THREADS,),
            (
                part_ddx, part_index, part_ddy, np.int64(windows), *ints(part.C), *divisors(part.C, part.P, part.Q),
                *call.axes, *longs(*strides_of(part_ddx), *strides_of(part_index)),
            ),
        )  # fmt: skip
