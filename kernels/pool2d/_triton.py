"""2-D pooling in Triton: which kernel serves a problem, in which layout, with which tiles.

Forward:

- windows of a few taps are unrolled, :mod:`._triton_windows`;
- windows of planes that are five columns wide and more, and few windows in general: :mod:`._triton_bands`;
- all others, :mod:`._triton_looped`.

Backward: where taps are few, blocks of ``dx`` with everything unrolled, :mod:`._triton_blocks`; else every element asks
its windows, :mod:`._triton_gather`.

Adaptive windows of one size are ordinary ones, and one window of a whole plane is a single row. A tile is planar, lanes
of columns, unless channels are innermost in the tensor that is written; inputs may lie in memory as they like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import triton.language as tl

from ... import autotune
from .. import _triton_tensors
from .._division import divisor
from .._triton import launch
from .._triton_tensors import Strides, alignment, block_sizes, chunks, named_strides, wide
from . import _triton_space as space
from ._problem import AdaptivePool2dProblem, Pool2dProblem
from ._triton_axes import Axis, Windows, merged, windows_of
from ._triton_bands import bands, combine_parts
from ._triton_blocks import max_blocks, mean_blocks
from ._triton_gather import max_gather_windows, mean_gather_windows
from ._triton_looped import looped_windows
from ._triton_planes import pick, spread_planes
from ._triton_windows import max_windows, windows

ON_TENSORS = True
TUNABLES = space.TUNABLES

Problem = Pool2dProblem | AdaptivePool2dProblem

_MOST_TAPS = 16  # of a window whose values are all held: 64 registers of packed halves
_MOST_READS = 36  # taps where sums or maxima of rows are all that is held
_MOST_PHASES = 16  # elements of a block of ``dx``
_WIDE_WINDOW = 5  # columns from which on a lane a window would read too many lines of memory at once
_MANY_TAPS = 16
_MOST_AT_ONCE = 12  # columns that a looped window reads at once and adds,
_MOST_HELD = 8  # or compares


# Registers an element in the kernels that ask the windows, found by compiling: planar or not, of one window a row or of
# more, of means, with an index of bytes, with one of int64
_HELD_BY_GATHER = {True: ((3, 6, 11), (13, 24, 26)), False: ((2, 2, 3), (3, 8, 16))}

# ---- what a backend is asked for


def max_forward(problem: Pool2dProblem, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None) -> None:
    """Maxima, and where they were unless ``index`` is ``None``."""
    _forward(problem, x, y, index, mean=False)


def adaptive_max_forward(
    problem: AdaptivePool2dProblem, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None
) -> None:
    """As :func:`max_forward`."""
    _forward(problem, x, y, index, mean=False)


def avg_forward(problem: Pool2dProblem, x: torch.Tensor, y: torch.Tensor) -> None:
    """Means, summed in float32 (float64 of float64)."""
    _forward(problem, x, y, None, mean=True)


def adaptive_avg_forward(problem: AdaptivePool2dProblem, x: torch.Tensor, y: torch.Tensor) -> None:
    """As :func:`avg_forward`."""
    _forward(problem, x, y, None, mean=True)


def max_backward(problem: Problem, dy: torch.Tensor, index: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx``: of each element the sum of ``dy`` over the windows whose maximum it was."""
    _backward(problem, dy, index, dx)


def avg_backward(problem: Pool2dProblem, dy: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx``: of each element the sum of its shares of the windows that it is in."""
    _backward(problem, dy, None, dx)


def adaptive_avg_backward(problem: AdaptivePool2dProblem, dy: torch.Tensor, dx: torch.Tensor) -> None:
    """As :func:`avg_backward`."""
    _backward(problem, dy, None, dx)


def max_gather(problem: Problem, ddx: torch.Tensor, index: torch.Tensor, ddy: torch.Tensor) -> None:
    """``ddy = ddx`` where each window's maximum was."""
    all_windows = windows_of(problem)
    planar = _is_planar(ddy, ddx)
    for part in _parts(problem, problem.Q, planar):
        _pick(all_windows, ddx[part], index[part], ddy[part], planar)


# ---- which kernel


def _forward(problem: Problem, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None, mean: bool) -> None:
    all_windows = windows_of(problem)
    planar = _is_planar(y, x)
    if all_windows.whole and _rows_follow(x):
        all_windows = merged(all_windows)
        N, C, size = problem.N, problem.C, problem.H * problem.W
        x = x.as_strided((N, C, 1, size), (x.stride(0), x.stride(1), 0, _step(x)))
    banded = _banded(all_windows, problem, planar, x)
    unrolled = not banded and _unrolled(all_windows, index is not None)
    columns = _columns(all_windows.horizontal, x, planar) if unrolled else _Columns(1, 0, 0, 0)
    across = 1 if banded else -(-problem.Q // columns.each)
    for part in _parts(problem, across, planar):
        where = None if index is None else index[part]
        if banded:
            _reduce_bands(all_windows, x[part], y[part], where, mean, planar)
        elif unrolled:
            _unroll(all_windows, columns, across, x[part], y[part], where, mean, planar)
        else:
            _loop(all_windows, x[part], y[part], where, mean, planar)


def _backward(problem: Problem, dy: torch.Tensor, index: torch.Tensor | None, dx: torch.Tensor) -> None:
    all_windows = windows_of(problem)
    planar = _is_planar(dx, dy)
    if planar and all_windows.whole:
        for part in _parts(problem, problem.H * problem.W, planar):
            _spread(all_windows, dy[part], None if index is None else index[part], dx[part])
        return
    horizontal = all_windows.horizontal
    in_blocks = _in_blocks(all_windows, index is not None)
    columns = _block_columns(horizontal, dy, index, planar) if in_blocks else _Columns(1, 0, 0, 0)
    each = columns.each * horizontal.stride if in_blocks else _piece(dx) if planar else 1
    across = -(-problem.W // each)
    for part in _parts(problem, across, planar):
        where = None if index is None else index[part]
        if in_blocks:
            _blocks(all_windows, columns, across, dy[part], where, dx[part], planar)
        else:
            _gather(all_windows, each, across, dy[part], where, dx[part], planar)


def _unrolled(all_windows: Windows, with_index: bool) -> bool:
    return not all_windows.adaptive and all_windows.taps <= (_MOST_TAPS if with_index else _MOST_READS)


def _banded(all_windows: Windows, problem: Problem, planar: bool, x: torch.Tensor) -> bool:
    """Planar windows so wide that a lane each would read far apart; windows too few to fill a GPU with a lane each."""
    if not all_windows.undilated:
        return False
    if planar:
        return all_windows.horizontal.touching and all_windows.horizontal.kernel >= _WIDE_WINDOW
    vectors = problem.N * problem.C * problem.P * problem.Q * x.element_size() // 16
    return all_windows.taps > _MANY_TAPS and vectors < 256 * autotune.device_of(x).multiprocessors


def _in_blocks(all_windows: Windows, with_index: bool) -> bool:
    vertical, horizontal = all_windows.axes
    if all_windows.adaptive or vertical.stride * horizontal.stride > _MOST_PHASES:
        return False
    met = vertical.met * horizontal.met
    return max(all_windows.taps, met) <= (_MOST_TAPS if with_index else _MOST_READS)


# ---- lanes


@dataclass(frozen=True)
class _Columns:
    """How a lane, which is ``each`` windows, reads a row: ``left`` single columns, a ``piece`` as one vector, ``right``
    single ones behind it."""

    each: int
    left: int
    piece: int
    right: int

    @property
    def loads(self) -> int:
        return self.left + (self.piece > 0) + self.right

    @property
    def count(self) -> int:
        return self.left + self.piece + self.right


def _columns(axis: Axis, x: torch.Tensor, planar: bool) -> _Columns:
    """A planar lane takes as many windows as have 16 bytes of columns of their own, if rows are aligned to that, and
    rows of windows to theirs."""
    strides = _strides(x)
    piece = min(16 // x.element_size(), strides.align) if planar and strides.inner == "w" else 1
    while piece > 1 and (axis.size % piece or piece % axis.stride or axis.count % (piece // axis.stride)):
        piece //= 2
    if piece == 1:
        return _Columns(1, axis.kernel, 0, 0)
    each = piece // axis.stride
    return _Columns(each, axis.padding, piece, max(0, (each - 1) * axis.stride + axis.reach - axis.padding - piece))


def _block_columns(axis: Axis, dy: torch.Tensor, index: torch.Tensor | None, planar: bool) -> _Columns:
    """A planar lane takes as many blocks as make 16 bytes of a row of ``dx``, if ``dy`` can be read so."""
    each = 1
    read = [dy] if index is None else [dy, index]
    if planar and _joined(axis, 1, planar) and all(_strides(tensor).inner == "w" for tensor in read):
        most = max(1, 16 // dy.element_size() // axis.stride)
        each = gcd(most, axis.count, axis.size // axis.stride, *(_strides(tensor).align for tensor in read))
    if each == 1:
        return _Columns(1, axis.met, 0, 0)
    return _Columns(each, -axis.first_covering, each, axis.last_covering)


def _joined(axis: Axis, each: int, planar: bool) -> bool:
    """Whether ``each`` blocks' columns of ``dx`` are one vector."""
    columns = each * axis.stride
    return planar and columns in (1, 2, 4, 8) and axis.size % columns == 0


def _parts(problem: Problem, across: int, planar: bool) -> Iterator[tuple[slice, slice]]:
    """Ranges of images and of channels whose lanes a launch can count; a row has ``across`` lanes."""
    every = slice(None)
    if not planar:
        yield from ((images, every) for images in chunks(problem, problem.N, across))
    elif problem.C * across < _triton_tensors.LIMIT:
        yield from ((images, every) for images in chunks(problem, problem.N, problem.C * across))
    else:
        for n in range(problem.N):
            yield from ((slice(n, n + 1), channels) for channels in chunks(problem, problem.C, across))


def _strides(tensor: torch.Tensor) -> Strides:
    return Strides.of(tuple(tensor.shape), tensor.stride(), "nchw")


def _is_planar(written: torch.Tensor, read: torch.Tensor) -> bool:
    """Whether columns, not channels, are innermost in what is written; of planes of one element, in what is read."""
    one = written.shape[2] * written.shape[3] == 1
    return written.shape[1] == 1 or (read if one else written).stride(1) != 1


def _step(x: torch.Tensor) -> int:
    """From one element of a plane, whose rows follow each other, to the next one."""
    return x.stride(3) if x.shape[3] > 1 else x.stride(2)


def _rows_follow(x: torch.Tensor) -> bool:
    return x.shape[2] == 1 or x.shape[3] == 1 or x.stride(2) == x.shape[3] * x.stride(3)


def _accumulator(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype is torch.float64 else tl.float32


def _walk_arguments(
    windows: Windows, N: int, C: int, across: int, rows: int, planar: bool, config: autotune.Config
) -> tuple[int, dict[str, Any]]:
    """The number of programs, and the arguments of every kernel whose lanes walk down ``rows`` rows."""
    vertical, horizontal = windows.axes
    lanes = N * across * (C if planar else 1)
    c_align = 1 if planar else alignment(C)
    tiles_c = 1 if planar else -(-C // config["BLOCK_C"])
    bands_of_rows = -(-rows // config["BLOCK_P"])
    across_mul, across_shift = divisor(across)
    channel_mul, channel_shift = divisor(C)
    return -(-lanes // config["BLOCK_LANES"]) * tiles_c * bands_of_rows, {
        "H": vertical.size,
        "W": horizontal.size,
        "P": vertical.count,
        "Q": horizontal.count,
        "channels": C // c_align,
        "lanes": lanes,
        "across": across,
        "tiles_c": tiles_c,
        "bands": bands_of_rows,
        "across_mul": across_mul,
        "across_shift": across_shift,
        "channel_mul": channel_mul,
        "channel_shift": channel_shift,
        "STRIDE_H": vertical.stride,
        "STRIDE_W": horizontal.stride,
        "PAD_H": vertical.padding,
        "PAD_W": horizontal.padding,
        "C_ALIGN": c_align,
        "PLANAR": planar,
        **block_sizes(config),
    }


def _kernel(windows: Windows) -> dict[str, int]:
    return {"R": windows.vertical.kernel, "S": windows.horizontal.kernel}


def _dilation(windows: Windows) -> dict[str, int]:
    return {"DILATION_H": windows.vertical.dilation, "DILATION_W": windows.horizontal.dilation}


def _mean(windows: Windows) -> dict[str, Any]:
    return {"divisor": windows.divisor, "COUNTED": windows.counted, "INCLUDE_PAD": windows.include_pad}


def _named(names: tuple[str, str, str, str], axis: str, numbers: tuple[int, int, int, int]) -> dict[str, int]:
    return {f"{name}_{axis}": number for name, number in zip(names, numbers, strict=True)}


def _shares(windows: Windows) -> dict[str, Any]:
    names = ("whole", "rest", "mul", "shift")
    return {
        **_named(names, "h", windows.vertical.share),
        **_named(names, "w", windows.horizontal.share),
        "ADAPTIVE": windows.adaptive,
        "LARGE": windows.vertical.large or windows.horizontal.large,
    }


def _shares_of_elements(windows: Windows) -> dict[str, int]:
    names = ("windows", "left", "times", "over")
    return {**_named(names, "h", windows.vertical.windows), **_named(names, "w", windows.horizontal.windows)}


def _tap_row(windows: Windows, index: torch.Tensor) -> int:
    return windows.tap_row if index.dtype is torch.uint8 else 0


def _bytewise(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype is torch.uint8


def _layouts(*tensors: torch.Tensor | None) -> tuple[object, ...]:
    """What a key says of tensors: their dtypes, and what lies side by side in them."""
    return tuple(None if t is None else (str(t.dtype), _strides(t).inner, _strides(t).align) for t in tensors)


def _columns_read(columns: _Columns) -> dict[str, int]:
    return {"LEFT": columns.left, "PIECE": columns.piece, "RIGHT": columns.right, "EACH": columns.each}


# ---- launches forward


def _unroll(
    all_windows: Windows,
    columns: _Columns,
    across: int,
    x: torch.Tensor,
    y: torch.Tensor,
    index: torch.Tensor | None,
    mean: bool,
    planar: bool,
) -> None:
    """One launch of :func:`windows` or :func:`max_windows`."""
    N, C, H, W = x.shape
    vertical, horizontal = all_windows.axes
    itemsize = x.element_size()
    word = max(itemsize / 4, 1 if planar else 0.5)  # registers of a value as it is loaded
    fresh_rows = vertical.kernel - vertical.carried
    fresh = fresh_rows * columns.count * word
    if index is not None:
        effort = columns.each * all_windows.taps * (2.0 if word < 1 else 3.5)
        held = vertical.carried * columns.count * word
        fresh += columns.each * (1 if _bytewise(index) else 4)
    else:
        effort = fresh_rows * (columns.count + columns.each * (horizontal.kernel - 1)) + columns.each * vertical.kernel
        held = vertical.carried * columns.each * (max(1, itemsize / 4) if mean else word)
    if planar:
        held += 2 * (columns.left + columns.right) + 1
    row_bytes = W / across * itemsize
    written = columns.each * (itemsize + (0 if index is None else index.element_size()))
    problem = space.Walk(
        lanes=N * across * (C if planar else 1),
        rows=vertical.count,
        channels=1 if planar else C,
        planar=planar,
        loads=fresh_rows * columns.loads,
        effort=effort,
        bytes=H / vertical.count * row_bytes + written,
        shared_bytes=vertical.carried * row_bytes,
        held=held,
        fresh=fresh,
        itemsize=itemsize,
        bytewise=_bytewise(index),
        options=("unrolled", mean, all_windows, columns, *_layouts(x, y, index)),
        device=autotune.device_of(x),
    )
    tunable = space.FORWARD[planar]
    config = autotune.resolve(tunable, problem)
    programs, arguments = _walk_arguments(all_windows, N, C, across, vertical.count, planar, config)
    arguments |= {
        "x_ptr": x,
        "y_ptr": y,
        **named_strides("x", _strides(x), "nchw"),
        **named_strides("y", _strides(y), "nchw"),
        **_kernel(all_windows),
        **_dilation(all_windows),
        "CARRIED": vertical.carried,
        **_columns_read(columns),
        "CHECKED": all_windows.checked or config["BLOCK_STEP"] > 1,
        "WIDE": wide(x, y),
    }
    if index is None:
        kernel: Any = windows
        arguments |= {**_mean(all_windows), "MEAN": mean, "ACC": _accumulator(x.dtype)}
        arguments["COUNTED"] = mean and arguments["COUNTED"]
    else:
        kernel = max_windows
        arguments |= {"index_ptr": index, "TAP_ROW": _tap_row(all_windows, index)}
    launch(
        kernel, (programs,), arguments, config["num_warps"], 1, tunable=tunable, problem=problem, config=config
    )  # fmt: skip


def _loop(
    all_windows: Windows, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None, mean: bool, planar: bool
) -> None:
    """One launch of :func:`looped_windows`."""
    N, C, H, W = x.shape
    vertical, horizontal = all_windows.axes
    P, Q = vertical.count, horizontal.count
    itemsize = x.element_size()
    word = max(itemsize / 4, 1 if planar else 0.5)
    batches = -(-horizontal.kernel // (_MOST_AT_ONCE if mean else _MOST_HELD))
    at_once = -(-horizontal.kernel // batches)
    reads = batches * at_once * vertical.kernel
    written = itemsize + (0 if index is None else index.element_size())
    problem = space.Walk(
        lanes=N * Q * (C if planar else 1),
        rows=P,
        channels=1 if planar else C,
        planar=planar,
        loads=reads,
        effort=reads * (2.0 if index is None else 4.0),
        bytes=H * W / (P * Q) * itemsize + written,
        shared_bytes=0.0,
        held=2.0 * max(1, itemsize / 4) + (0 if index is None else 1),
        fresh=at_once * word,
        itemsize=itemsize,
        bytewise=_bytewise(index),
        options=("looped", mean, all_windows, *_layouts(x, y, index)),
        device=autotune.device_of(x),
        waits=batches * vertical.kernel,
    )
    tunable = space.LOOPED[planar]
    config = autotune.resolve(tunable, problem)
    programs, arguments = _walk_arguments(all_windows, N, C, Q, P, planar, config)
    arguments |= {
        "x_ptr": x,
        "y_ptr": y,
        "index_ptr": index,
        **_shares(all_windows),
        **named_strides("x", _strides(x), "nchw"),
        **named_strides("y", _strides(y), "nchw"),
        **_kernel(all_windows),
        **_dilation(all_windows),
        **_mean(all_windows),
        "MEAN": mean,
        "WITH_INDEX": index is not None,
        "TAP_ROW": 0 if index is None else _tap_row(all_windows, index),
        "WIDE": wide(x, y),
        "ACC": _accumulator(x.dtype),
        "BLOCK_S": at_once,
    }
    launch(
        looped_windows, (programs,), arguments, config["num_warps"], 1, tunable=tunable, problem=problem, config=config
    )  # fmt: skip


def _reduce_bands(
    all_windows: Windows, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor | None, mean: bool, planar: bool
) -> None:
    """One launch of :func:`bands`, and where windows are cut into parts one of :func:`combine_parts`."""
    N, C = x.shape[:2]
    vertical, horizontal = all_windows.axes
    P, Q = vertical.count, horizontal.count
    strides = _strides(x)
    itemsize = x.element_size()
    vector = min(16 // itemsize, strides.align, alignment(horizontal.size)) if strides.inner == "w" else 1
    problem = space.Bands(
        keys=N * C if planar else C,
        images=1 if planar else N,
        vertical=vertical,
        horizontal=horizontal,
        planar=planar,
        vector=vector,
        mean=mean,
        index_bytes=0 if index is None else index.element_size(),
        itemsize=itemsize,
        options=(all_windows, *_layouts(x, y, index)),
        device=autotune.device_of(x),
    )
    config = autotune.resolve(space.BANDS[planar], problem)
    group, parts = space.group_of(config, problem), space.parts_of(config, problem)
    tiles, groups = -(-problem.keys // config["BLOCK_K"]), -(-Q // group)
    accumulator = _accumulator(x.dtype)
    outputs, where = y, index
    if parts > 1:
        dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        outputs = torch.empty((parts, *y.shape), dtype=dtype, device=x.device)
        where = None if index is None else torch.empty((parts, *y.shape), dtype=index.dtype, device=x.device)
    out_strides = _strides(outputs[0] if parts > 1 else y)
    channel_mul, channel_shift = divisor(C)
    c_align = 1 if planar else alignment(C)
    launch(
        bands,
        (tiles * groups * P * problem.images * parts,),
        {
            "x_ptr": x,
            "y_ptr": outputs,
            "index_ptr": where,
            "H": vertical.size,
            "W": horizontal.size // alignment(horizontal.size),
            "P": P,
            "Q": Q,
            "channels": C // c_align,
            "planes": problem.keys,
            "tiles": tiles,
            "groups": groups,
            "parts": parts,
            **_shares(all_windows),
            "channel_mul": channel_mul,
            "channel_shift": channel_shift,
            **named_strides("x", strides, "nchw"),
            **named_strides("y", out_strides, "nchw"),
            "stride_part": y.numel(),
            **_kernel(all_windows),
            "STRIDE_H": vertical.stride,
            "STRIDE_W": horizontal.stride,
            "PAD_H": vertical.padding,
            "PAD_W": horizontal.padding,
            **_mean(all_windows),
            "MEAN": mean,
            "WITH_INDEX": index is not None,
            "TAP_ROW": 0 if index is None else _tap_row(all_windows, index),
            "PLANAR": planar,
            "C_ALIGN": c_align,
            "W_ALIGN": alignment(horizontal.size),
            "VECTOR": vector,
            "GROUP": group,
            "WIDE": wide(x, y),
            "ACC": accumulator,
            "CODE": tl.int64 if vertical.size * horizontal.size >= _triton_tensors.LIMIT else tl.int32,
            **block_sizes(config),
        },
        config["num_warps"],
        1,
        tunable=space.BANDS[planar],
        problem=problem,
        config=config,
    )
    if parts > 1:
        _combine(outputs, where, y, index, mean)


def _combine(
    parts: torch.Tensor, codes: torch.Tensor | None, y: torch.Tensor, index: torch.Tensor | None, mean: bool
) -> None:
    _, C, P, Q = y.shape
    plane_mul, plane_shift = divisor(P * Q)
    row_mul, row_shift = divisor(Q)
    channel_mul, channel_shift = divisor(C)
    block = 256
    launch(
        combine_parts,
        (-(-y.numel() // block),),
        {
            "part_ptr": parts,
            "code_ptr": codes,
            "y_ptr": y,
            "index_ptr": index,
            "outputs": y.numel(),
            "parts": parts.shape[0],
            "channels": C,
            "P": P,
            "Q": Q,
            "plane_mul": plane_mul,
            "plane_shift": plane_shift,
            "row_mul": row_mul,
            "row_shift": row_shift,
            "channel_mul": channel_mul,
            "channel_shift": channel_shift,
            **dict(zip(("stride_yn", "stride_yc", "stride_yh", "stride_yw"), y.stride(), strict=True)),
            "MEAN": mean,
            "WITH_INDEX": index is not None,
            "WIDE": wide(y),
            "BLOCK": block,
        },
        num_warps=4,
    )


# ---- launches backward


def _blocks(
    all_windows: Windows,
    columns: _Columns,
    across: int,
    dy: torch.Tensor,
    index: torch.Tensor | None,
    dx: torch.Tensor,
    planar: bool,
) -> None:
    """One launch of :func:`max_blocks` or :func:`mean_blocks`."""
    N, C, H, W = dx.shape
    vertical, horizontal = all_windows.axes
    stride_h, stride_w = vertical.stride, horizontal.stride
    rows = -(-H // stride_h)
    carried = vertical.last_covering - vertical.first_covering
    itemsize = dx.element_size()
    word = max(itemsize / 4, 1 if planar else 0.5)
    wide_word = max(1, itemsize / 4)
    block = columns.each * stride_h * stride_w
    read = itemsize + (0 if index is None else index.element_size())
    loads = columns.loads * (1 if index is None else 2)
    if index is not None:
        effort = columns.each * all_windows.taps * 3 + 1.5 * block + 2 * columns.count
        number = max(0.5, index.element_size() / 4)  # registers of an index
        held = carried * columns.count * (word + number)
        fresh = columns.count * (word + number) + columns.each * stride_w * wide_word
    else:
        effort = columns.count * 2 + columns.each * (horizontal.kernel + stride_w * vertical.kernel) + 1.5 * block
        held = carried * columns.each * stride_w * wide_word + (columns.count if all_windows.counted and planar else 0)
        fresh = columns.count * word + columns.each * stride_w * wide_word
    if planar:
        held += 2 * (columns.left + columns.right) + 2
    row_bytes = horizontal.count / across * read
    problem = space.Walk(
        lanes=N * across * (C if planar else 1),
        rows=rows,
        channels=1 if planar else C,
        planar=planar,
        loads=loads + block / (8 if planar else 1),
        effort=effort,
        bytes=vertical.count / rows * row_bytes + H / rows * W / across * itemsize,
        shared_bytes=carried * row_bytes,
        held=held,
        fresh=fresh,
        itemsize=itemsize,
        bytewise=_bytewise(index),
        options=("blocks", all_windows, columns, *_layouts(dy, index, dx)),
        device=autotune.device_of(dy),
    )
    tunable = space.BLOCKS[planar]
    config = autotune.resolve(tunable, problem)
    programs, arguments = _walk_arguments(all_windows, N, C, across, rows, planar, config)
    checked = columns.count > columns.each or across * columns.each > horizontal.count or carried > 0
    arguments |= {
        "dy_ptr": dy,
        "dx_ptr": dx,
        "rows": rows,
        **named_strides("x", _strides(dx), "nchw"),
        **named_strides("y", _strides(dy), "nchw"),
        **_kernel(all_windows),
        **_columns_read(columns),
        "JOINED": _joined(horizontal, columns.each, planar),
        "ALL_ROWS": H % stride_h == 0 and config["BLOCK_STEP"] == 1,
        "CHECKED": checked or rows > vertical.count or config["BLOCK_STEP"] > 1,
        "WIDE": wide(dy, dx, dx if index is None else index),
        "ACC": _accumulator(dx.dtype),
    }
    if index is None:
        kernel: Any = mean_blocks
        arguments |= _mean(all_windows)
    else:
        kernel = max_blocks
        arguments |= {
            "index_ptr": index,
            **named_strides("i", _strides(index), "nchw"),
            **_dilation(all_windows),
            "PERIOD_H": vertical.period,
            "PERIOD_W": horizontal.period,
            "TAP_ROW": _tap_row(all_windows, index),
        }
    launch(
        kernel, (programs,), arguments, config["num_warps"], 1, tunable=tunable, problem=problem, config=config
    )  # fmt: skip


def _piece(dx: torch.Tensor) -> int:
    """Columns of a row of planes that one access writes."""
    return gcd(16 // dx.element_size(), dx.shape[3])


def _gather(
    all_windows: Windows,
    each: int,
    across: int,
    dy: torch.Tensor,
    index: torch.Tensor | None,
    dx: torch.Tensor,
    planar: bool,
) -> None:
    """One launch of :func:`max_gather_windows` or :func:`mean_gather_windows`."""
    N, C, H, W = dx.shape
    vertical, horizontal = all_windows.axes
    itemsize = dx.element_size()
    # a row of windows is read once for all rows that begin with it; what else a row is in, for it alone
    read_rows = min(1.0, vertical.count / H) * (1 + (vertical.covering > 1))
    if not vertical.adaptive:
        read_rows += max(0, vertical.covering - 2)
    loads = horizontal.covering * read_rows * (1 if index is None else 2)
    read = itemsize + (0 if index is None else index.element_size())
    problem = space.Walk(
        lanes=N * across * (C if planar else 1),
        rows=H,
        channels=1 if planar else C,
        planar=planar,
        loads=loads * each + 1,
        effort=each * (loads * 4 + (1 if index is None else 2 * horizontal.covering) + 1),
        bytes=W / across * (itemsize + vertical.count * horizontal.count / (H * W) * read),
        shared_bytes=0.0,
        held=each
        * max(1, itemsize / 4)
        * _HELD_BY_GATHER[planar][min(horizontal.covering, 2) - 1][
            0 if index is None else 1 if _bytewise(index) else 2
        ],
        fresh=0.0,
        itemsize=itemsize,
        bytewise=_bytewise(index),
        options=("gather", all_windows, each, *_layouts(dy, index, dx)),
        device=autotune.device_of(dy),
        waits=min(1.0, read_rows),
    )
    tunable = space.GATHER[planar]
    config = autotune.resolve(tunable, problem)
    programs, arguments = _walk_arguments(all_windows, N, C, across, H, planar, config)
    arguments |= {
        "dy_ptr": dy,
        "dx_ptr": dx,
        **_shares(all_windows),
        **_shares_of_elements(all_windows),
        **named_strides("x", _strides(dx), "nchw"),
        **named_strides("y", _strides(dy), "nchw"),
        **_kernel(all_windows),
        "COVERING_H": vertical.covering,
        "COVERING_W": horizontal.covering,
        "EACH": each,
        "WHOLE": W % each == 0,
        "WIDE": wide(dy, dx, dx if index is None else index),
        "ACC": _accumulator(dx.dtype),
    }
    if index is None:
        kernel: Any = mean_gather_windows
        arguments |= _mean(all_windows)
    else:
        kernel = max_gather_windows
        arguments |= {
            "index_ptr": index,
            **named_strides("i", _strides(index), "nchw"),
            **_dilation(all_windows),
            "TAP_ROW": _tap_row(all_windows, index),
        }
    launch(
        kernel, (programs,), arguments, config["num_warps"], 1, tunable=tunable, problem=problem, config=config
    )  # fmt: skip


def _spread(all_windows: Windows, dy: torch.Tensor, index: torch.Tensor | None, dx: torch.Tensor) -> None:
    """One launch of :func:`spread_planes`."""
    size = all_windows.vertical.size * all_windows.horizontal.size
    plane_mul, plane_shift = divisor(size)
    align = alignment(dx.numel())
    problem = space.Spread(
        elements=dx.numel(),
        itemsize=dx.element_size(),
        index=index is not None,
        options=(align, *_layouts(dy, index, dx)),
        device=autotune.device_of(dx),
    )
    config = autotune.resolve(space.SPREAD, problem)
    launch(
        spread_planes,
        (-(-dx.numel() // config["BLOCK"]),),
        {
            "dy_ptr": dy.reshape(-1).contiguous(),
            "index_ptr": None if index is None else index.reshape(-1).contiguous(),
            "dx_ptr": dx,
            "elements": dx.numel() // align,
            "size": size,
            "divisor": all_windows.divisor,
            "plane_mul": plane_mul,
            "plane_shift": plane_shift,
            "ALIGN": align,
            "MEAN": index is None,
            "ACC": _accumulator(dx.dtype),
            "BLOCK": config["BLOCK"],
        },
        config["num_warps"],
        1,
        tunable=space.SPREAD,
        problem=problem,
        config=config,
    )


def _pick(all_windows: Windows, ddx: torch.Tensor, index: torch.Tensor, ddy: torch.Tensor, planar: bool) -> None:
    """One launch of :func:`pick`."""
    N, C, P, Q = ddy.shape
    itemsize = ddy.element_size()
    problem = space.Walk(
        lanes=N * Q * (C if planar else 1),
        rows=P,
        channels=1 if planar else C,
        planar=planar,
        loads=2 + (1 if planar else 16 / itemsize),
        effort=8.0,
        bytes=2.0 * itemsize + index.element_size(),
        shared_bytes=0.0,
        held=2.0,
        fresh=6.0,
        itemsize=itemsize,
        bytewise=_bytewise(index),
        options=("pick", all_windows, *_layouts(ddx, index, ddy)),
        device=autotune.device_of(ddx),
    )
    tunable = space.PICK[planar]
    config = autotune.resolve(tunable, problem)
    programs, arguments = _walk_arguments(all_windows, N, C, Q, P, planar, config)
    arguments |= {
        "ddx_ptr": ddx,
        "index_ptr": index,
        "ddy_ptr": ddy,
        **_shares(all_windows),
        **named_strides("x", _strides(ddx), "nchw"),
        **named_strides("y", _strides(ddy), "nchw"),
        **named_strides("i", _strides(index), "nchw"),
        **_dilation(all_windows),
        "TAP_ROW": _tap_row(all_windows, index),
        "WIDE": wide(ddx, ddy),
    }
    launch(
        pick, (programs,), arguments, config["num_warps"], 1, tunable=tunable, problem=problem, config=config
    )  # fmt: skip
