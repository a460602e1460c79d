"""2-D convolution in Triton: which kernel serves a problem, in which layout, with which blocks.

- Depthwise (one channel a group, several groups): direct kernels, :mod:`._triton_depthwise`.
- Up to 8 channels a group: a product whose depth is taps and channels together, :func:`correlate_flat`.
- All else: an implicit product, :func:`correlate`, forward and for the input's gradient; small groups are packed side
  by side with zeros between them until they are 32 channels wide. A 1x1 kernel with stride 1 is a product of views, and
  a kernel as wide as its stride takes whole rows of windows as channels.
- The weight's gradient is :func:`weight_grad` and :func:`sum_slabs`.

The product kernels read channels innermost. An input in another order is copied once into that order (2 |x| bytes);
1x1 kernels read planes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
import triton.language as tl

from ... import autotune
from .._division import divisor
from .._precision import convolution_precision
from .._triton import launch
from .._triton_tensors import Strides, alignment, block_sizes, chunks, named_strides, span, wide
from . import _triton_space as space
from ._problem import Conv2dProblem
from ._triton_depthwise import depthwise, depthwise_weight_grad
from ._triton_gemm import correlate, correlate_flat
from ._triton_pack import pack_groups, to_channels_last
from ._triton_weight_grad import sum_slabs
from ._triton_weight_grad import weight_grad as weight_grad_kernel

ON_TENSORS = True
TUNABLES = space.TUNABLES

# Channels a group up to which taps and channels are one reduction, forward and in the weight's gradient.
_FILTERS = 2**31
_FEW = 8
_FEW_COLUMNS = 16
# Groups narrower than this are packed to at most so many channels.
_PACK = 32
_GROUP_M = 8  # rows of tiles walked together: 8 tiles of 128 rows and their filters stay in L2


# ---- numbers a kernel is launched with


@dataclass(frozen=True)
class _Numbers:
    """How a dtype is multiplied."""

    itemsize: int
    accumulator: Any
    precision: str
    unit: str
    passes: int

    @property
    def tensor_cores(self) -> bool:
        return self.unit != "fma"


def _numbers(problem: Conv2dProblem, dtype: torch.dtype) -> _Numbers:
    if dtype is torch.float64:
        return _Numbers(8, tl.float64, "ieee", "double", 1)
    if dtype is torch.float32:
        mode = problem.precision or convolution_precision()
        return _Numbers(4, tl.float32, mode, "fma" if mode == "ieee" else "tf32", 3 if mode == "tf32x3" else 1)
    return _Numbers(2, tl.float32, "tf32", "half", 1)  # the precision is of no concern to half types


def _window(problem: Conv2dProblem) -> dict[str, int]:
    """The kernel's size, stride and dilation, constants of every kernel here."""
    (stride_h, stride_w), (dilation_h, dilation_w) = problem.stride, problem.dilation
    return {
        "R": problem.R,
        "S": problem.S,
        "STRIDE_H": stride_h,
        "STRIDE_W": stride_w,
        "DILATION_H": dilation_h,
        "DILATION_W": dilation_w,
    }


def _steps(problem: Conv2dProblem) -> dict[str, int]:
    """How far apart the taps are that meet one phase of the input's gradient."""
    step_h, step_w = (s // gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True))
    return {"STEP_H": step_h, "STEP_W": step_w}


def _pixels(problem: Conv2dProblem, P: int, Q: int) -> dict[str, int]:
    """The padding, and what a row's number is divided by: the pixels of a plane, and those of a row of it."""
    top, _, left, _ = problem.padding
    plane_mul, plane_shift = divisor(P * Q)
    row_mul, row_shift = divisor(Q)
    return {
        "pad_h": top,
        "pad_w": left,
        "plane_mul": plane_mul,
        "plane_shift": plane_shift,
        "row_mul": row_mul,
        "row_shift": row_shift,
    }


# ---- copies


def _empty(like: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _channels_inner(x: torch.Tensor) -> torch.Tensor:
    """The tensor, copied with channels innermost unless they are."""
    N, C, H, W = x.shape
    if x.stride(1) == 1 or C == 1:
        return x
    copy = _empty(x, N, H, W, C)
    block_p, block_c = (16, 64) if H * W < 64 else (64, 64)
    tiles_p, tiles_c = -(-H * W // block_p), -(-C // block_c)
    row_mul, row_shift = divisor(W)
    launch(
        to_channels_last,
        (tiles_p * tiles_c * N,),
        {
            "x_ptr": x,
            "y_ptr": copy,
            "W": W,
            "C": C,
            "pixels": H * W,
            "tiles_p": tiles_p,
            "tiles_c": tiles_c,
            "row_mul": row_mul,
            "row_shift": row_shift,
            **dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), x.stride(), strict=True)),
            "FLAT": _rows_follow(x),
            "WIDE": wide(x, copy),
            "BLOCK_P": block_p,
            "BLOCK_C": block_c,
        },
        num_warps=4,
    )
    return copy.permute(0, 3, 1, 2)


def _rows_follow(x: torch.Tensor) -> bool:
    """Whether a pixel's address is its number in the plane times one stride."""
    return x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3) or (x.shape[3] == 1 and x.stride(3) == 0)


def _group_pack(problem: Conv2dProblem) -> int:
    """Groups that share a product: as many as fit 32 channels, of inputs and of outputs."""
    widest = max(problem.C, problem.K) // problem.groups
    fitting = (d for d in range(_PACK // widest, 1, -1) if problem.groups % d == 0) if widest < _PACK else ()
    return next(iter(fitting), 1)


def _packed(problem: Conv2dProblem, w: torch.Tensor, pack: int) -> torch.Tensor:
    """Filters of packed groups, ``[K, pack·C / groups, R, S]`` with channels innermost."""
    K, C, R, S = w.shape
    packed = _empty(w, K, R, S, pack * C)
    row_mul, row_shift = divisor(R * S * pack * C)
    c_mul, c_shift = divisor(pack * C)
    launch(
        pack_groups,
        (-(-packed.numel() // 512),),
        {
            "w_ptr": w,
            "packed_ptr": packed,
            "elements": packed.numel(),
            "row_mul": row_mul,
            "row_shift": row_shift,
            "c_mul": c_mul,
            "c_shift": c_shift,
            **dict(zip(("stride_k", "stride_c", "stride_r", "stride_s"), w.stride(), strict=True)),
            "C": C,
            "RS": R * S,
            "S": S,
            "GROUP_OUT": problem.K // problem.groups,
            "PACK": pack,
            "BLOCK": 512,
        },
        num_warps=4,
    )
    return packed.permute(0, 3, 1, 2)


# ---- the problem as kernels see it


def _check_filters(problem: Conv2dProblem, w: torch.Tensor) -> None:
    """Filters and their gradients are addressed in 32 bits."""
    if span(w) >= _FILTERS:
        raise NotImplementedError(
            f"the Triton kernels address fewer than {_FILTERS} elements of filters or of a dense layer's weight, these "
            f"reach {span(w)}: use tilesmith.kernels.backend('cupy') for {problem}"
        )


def _is_pointwise(problem: Conv2dProblem) -> bool:
    return (problem.R, problem.S, *problem.stride) == (1, 1, 1, 1) and not any(problem.padding)


def _merged_taps(
    problem: Conv2dProblem, x: torch.Tensor, w: torch.Tensor
) -> tuple[Conv2dProblem, torch.Tensor, torch.Tensor]:
    """A kernel as wide as its stride, without padding, sees whole runs of ``S·C`` elements: they become the channels.

    Views only; anything else comes back as it was.
    """
    C, S = problem.C, problem.S
    touching = S > 1 and problem.stride[1] == S and problem.dilation[1] == 1 and problem.groups == 1
    if not touching or any(problem.padding) or x.stride(1) != 1 or x.stride(3) != C or w.stride(3) != C:
        return problem, x, w
    Q = problem.Q
    xs = x.as_strided((problem.N, S * C, problem.H, Q), (x.stride(0), 1, x.stride(2), S * C))
    ws = w.as_strided((problem.K, S * C, problem.R, 1), (w.stride(0), 1, w.stride(2), S * C))
    return replace(problem, C=S * C, W=Q, S=1, stride=(problem.stride[0], 1)), xs, ws


def forward(
    problem: Conv2dProblem, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor
) -> None:
    """``y = act(conv(x, w) + bias)``."""
    if not y.numel():
        return
    _check_filters(problem, w)
    if problem.depthwise:
        _direct(problem, x, w, None if bias is None else bias.contiguous(), y, transposed=False)
        return
    _forward(problem, x, w, bias, y, _NO_POOL)


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
    _check_filters(problem, w)
    _forward(problem, x, w, bias, y, _Pool(pool, code))


@dataclass(frozen=True)
class _Pool:
    """What a forward's epilogue does with 2x2 windows of outputs: "none", "max" or "avg"."""

    kind: str
    code: torch.Tensor | None

    @property
    def area(self) -> int:
        return 1 if self.kind == "none" else 4

    def of(self, images: slice) -> _Pool:
        return self if self.code is None else _Pool(self.kind, self.code[images])


_NO_POOL = _Pool("none", None)


def _forward(
    problem: Conv2dProblem, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, pool: _Pool
) -> None:
    if bias is not None:
        bias = bias.contiguous()
    numbers = _numbers(problem, x.dtype)
    pack = _group_pack(problem)
    pixels = y.shape[2] * y.shape[3] * pool.area  # that are computed
    if problem.C // problem.groups <= _FEW and pack == 1:
        for part in chunks(problem, problem.N, pixels):
            images = replace(problem, N=part.stop - part.start)
            _few_channels(images, x[part], w, bias, y[part], pool.of(part), numbers)
        return
    planar = pool.area == 1 and _is_pointwise(problem) and x.stride(1) != 1 and _rows_follow(x) and _rows_follow(y)
    x = x if planar else _channels_inner(x)
    w = _packed(problem, w, pack) if pack > 1 else _channels_inner(w)
    problem, x, w = _merged_taps(problem, x, w)
    for part in chunks(problem, problem.N, pixels):
        images = replace(problem, N=part.stop - part.start)
        _product(images, x[part], w, bias, y[part], pack, planar, False, pool.of(part), numbers)


def input_grad(problem: Conv2dProblem, dy: torch.Tensor, w: torch.Tensor, dx: torch.Tensor) -> None:
    """The gradient of the input: ``dy`` correlated with the flipped filters, a phase of the stride at a time."""
    if not dx.numel():
        return
    if not dy.numel():
        dx.zero_()
        return
    _check_filters(problem, w)
    if problem.depthwise:
        _direct(problem, dy, w, None, dx, transposed=True)
        return
    numbers = _numbers(problem, dy.dtype)
    pack = _group_pack(problem)
    pointwise = _is_pointwise(problem)
    planar = pointwise and dy.stride(1) != 1 and _rows_follow(dy) and _rows_follow(dx)
    dy = dy if planar else _channels_inner(dy)
    if pack > 1:
        w = _packed(problem, w, pack)
    elif dy.dtype is torch.float32 and problem.groups == 1:
        # TF32 instructions take both operands with the reduction innermost, which is K here
        w = _channels_inner(w.transpose(0, 1)).transpose(0, 1)
    else:
        w = _channels_inner(w)
    plain = replace(problem, activation="none")
    for part in chunks(problem, problem.N, problem.H * problem.W + problem.stride[0] * problem.W + problem.stride[1]):
        images = replace(plain, N=part.stop - part.start)
        _product(images, dy[part], w, None, dx[part], pack, planar, True, _NO_POOL, numbers)


def _product(
    problem: Conv2dProblem,
    source: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    pack: int,
    planar: bool,
    backward: bool,
    pool: _Pool,
    numbers: _Numbers,
) -> None:
    """One launch of :func:`correlate`. ``backward``: ``source`` is ``dy`` and ``out`` is ``dx``."""
    R, S, (stride_h, stride_w) = problem.R, problem.S, problem.stride
    packs = problem.groups // pack
    inputs, outputs = problem.C // packs, problem.K // packs  # channels a pack
    if backward:
        inputs, outputs = outputs, inputs
    transposed = backward and not _is_pointwise(problem)
    P, Q = (-(-problem.H // stride_h), -(-problem.W // stride_w)) if transposed else out.shape[2:]
    phases = stride_h * stride_w if transposed else 1
    rows = P * Q if planar else problem.N * P * Q * pool.area
    out_strides = Strides.of(tuple(out.shape), out.stride(), "nchw")
    source_strides = Strides.of(tuple(source.shape), source.stride(), "nchw")
    k_stride, c_stride, r_stride, s_stride = w.stride()
    by_out, by_in = (c_stride, k_stride) if backward else (k_stride, c_stride)
    filters = Strides.of((2, 2, R, S), (by_out, by_in, r_stride, s_stride), "oirs")
    group_stride = problem.K // packs * k_stride
    taps = R * S / phases
    reuse = min(float(R * S), float(stride_h * stride_w)) if not backward else min(1.0, taps)
    layouts = (source_strides.inner, filters.inner, out_strides.inner, planar)
    window = (R, S, problem.stride, problem.dilation, problem.activation, pool.kind)
    tunable = space.INPUT_GRAD if backward else space.FORWARD
    device = autotune.device_of(source)
    batch = packs * phases * (problem.N if planar else 1)
    kernel_problem = space.Product(
        rows, outputs, inputs, taps, batch, reuse, pack > 1, numbers.itemsize, numbers.unit, numbers.passes,
        (*layouts, *window), device, _written(pool, numbers),
    )  # fmt: skip
    config = autotune.resolve(tunable, kernel_problem)
    tiles_m, tiles_n = -(-rows // config["BLOCK_M"]), -(-outputs // config["BLOCK_N"])
    c_align, k_align, row_align = alignment(inputs), alignment(outputs), alignment(rows) if planar else 1
    launch(
        correlate,
        (tiles_m * tiles_n * batch,),
        {
            "x_ptr": source,
            "w_ptr": w,
            "bias_ptr": bias,
            "y_ptr": out,
            "code_ptr": pool.code,
            "H": source.shape[2],
            "W": source.shape[3],
            "C": inputs // c_align,
            "K": outputs // k_align,
            "P": P,
            "Q": Q,
            "Y_H": out.shape[2],
            "Y_W": out.shape[3],
            "rows": rows // row_align,
            "images": problem.N,
            "tiles_m": tiles_m,
            "tiles_n": tiles_n,
            **_pixels(problem, P, Q),
            **named_strides("x", source_strides, "nchw"),
            "stride_wg": group_stride // filters.align if packs > 1 else 0,
            **named_strides("w", filters, "oirs"),
            **named_strides("y", out_strides, "nchw"),
            **_window(problem),
            **_steps(problem),
            "TRANSPOSED": transposed,
            "PLANAR": planar,
            "CHECKED": transposed or any(problem.padding),
            "GROUP_IN": inputs // pack if pack > 1 else 0,
            "GROUP_OUT": outputs // pack if pack > 1 else 0,
            "C_ALIGN": c_align,
            "K_ALIGN": k_align,
            "ROW_ALIGN": row_align,
            "EVEN_C": inputs % config["BLOCK_K"] == 0,
            "ACTIVATION": problem.activation,
            "POOL": pool.kind,
            "CODE": pool.code is not None,
            "HAS_BIAS": bias is not None,
            "WIDE": wide(source, out),
            "ACC": numbers.accumulator,
            "PRECISION": numbers.precision,
            **block_sizes(config),
            "GROUP_M": _GROUP_M,
        },
        config["num_warps"],
        config["num_stages"],
        tunable=tunable,
        problem=kernel_problem,
        config=config,
        tensor_cores=numbers.tensor_cores,
    )


def _written(pool: _Pool, numbers: _Numbers) -> float:
    """Bytes that the epilogue writes for each byte of the product."""
    return (1 + (pool.code is not None) / numbers.itemsize) / pool.area


def _few_channels(
    problem: Conv2dProblem,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    pool: _Pool,
    numbers: _Numbers,
) -> None:
    """One launch of :func:`correlate_flat`."""
    C, K, R, S = problem.C // problem.groups, problem.K // problem.groups, problem.R, problem.S
    P, Q = y.shape[2:]
    rows = problem.N * P * Q * pool.area
    out_strides = Strides.of(tuple(y.shape), y.stride(), "nchw")
    layouts = (x.stride(1) == 1, w.stride(1) == 1, out_strides.inner)
    reuse = min(float(R * S), float(problem.stride[0] * problem.stride[1])) / (R * S)
    kernel_problem = space.Product(
        rows, K, C * R * S, 1.0, problem.groups, reuse, False, numbers.itemsize, numbers.unit, numbers.passes,
        (*layouts, C, R, S, problem.stride, problem.dilation, problem.activation, pool.kind), autotune.device_of(x),
        _written(pool, numbers),
    )  # fmt: skip
    config = autotune.resolve(space.FORWARD_FLAT, kernel_problem)
    tiles_m, tiles_n = -(-rows // config["BLOCK_M"]), -(-K // config["BLOCK_N"])
    k_align = alignment(K)
    launch(
        correlate_flat,
        (tiles_m * tiles_n * problem.groups,),
        {
            "x_ptr": x,
            "w_ptr": w,
            "bias_ptr": bias,
            "y_ptr": y,
            "code_ptr": pool.code,
            "H": problem.H,
            "W": problem.W,
            "K": K // k_align,
            "P": P,
            "Q": Q,
            "rows": rows,
            "tiles_m": tiles_m,
            "tiles_n": tiles_n,
            **_pixels(problem, P, Q),
            **dict(zip(("stride_xn", "stride_xc", "stride_xh", "stride_xw"), x.stride(), strict=True)),
            "stride_wg": K * w.stride(0),
            **dict(zip(("stride_wo", "stride_wi", "stride_wr", "stride_ws"), w.stride(), strict=True)),
            **named_strides("y", out_strides, "nchw"),
            "C": C,
            **_window(problem),
            "K_ALIGN": k_align,
            "ACTIVATION": problem.activation,
            "POOL": pool.kind,
            "CODE": pool.code is not None,
            "HAS_BIAS": bias is not None,
            "WIDE": wide(x, y),
            "ACC": numbers.accumulator,
            "PRECISION": numbers.precision,
            **block_sizes(config),
            "GROUP_M": _GROUP_M,
        },
        config["num_warps"],
        config["num_stages"],
        tunable=space.FORWARD_FLAT,
        problem=kernel_problem,
        config=config,
        tensor_cores=numbers.tensor_cores,
    )


# ---- depthwise


def _direct(
    problem: Conv2dProblem,
    source: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    transposed: bool,
) -> None:
    """Launches of :func:`depthwise`. ``transposed``: ``source`` is ``dy`` and ``out`` is ``dx``."""
    numbers = _numbers(problem, source.dtype)
    stride_h, stride_w = problem.stride
    if transposed:
        P, Q, phases, channels = -(-problem.H // stride_h), -(-problem.W // stride_w), stride_h * stride_w, problem.C
    else:
        P, Q, phases, channels = problem.P, problem.Q, 1, problem.K
    planar = out.stride(1) != 1
    tunable = space.DEPTHWISE[planar]
    c_align = alignment(channels)
    for part in chunks(problem, problem.N, P * Q):
        images = part.stop - part.start
        rows = images * P * Q
        x, y = source[part], out[part]
        x_strides, y_strides = (Strides.of(tuple(t.shape), t.stride(), "nchw") for t in (x, y))
        read = x.numel() / max(1, y.numel())
        window = (problem.R, problem.S, problem.stride, problem.dilation, transposed, problem.activation)
        kernel_problem = space.Depthwise(
            rows, channels, problem.R * problem.S / phases, phases, read, planar, numbers.itemsize,
            (x_strides.inner, y_strides.inner, *window), autotune.device_of(x),
        )  # fmt: skip
        config = autotune.resolve(tunable, kernel_problem)
        tiles_m, tiles_c = -(-rows // config["BLOCK_M"]), -(-channels // config["BLOCK_C"])
        launch(
            depthwise,
            (tiles_m * tiles_c * phases,),
            {
                "x_ptr": x,
                "w_ptr": w,
                "bias_ptr": bias,
                "y_ptr": y,
                "H": x.shape[2],
                "W": x.shape[3],
                "P": P,
                "Q": Q,
                "Y_H": y.shape[2],
                "Y_W": y.shape[3],
                "channels": channels // c_align,
                "rows": rows,
                "tiles_m": tiles_m,
                "tiles_c": tiles_c,
                **_pixels(problem, P, Q),
                **named_strides("x", x_strides, "nchw"),
                "stride_wk": w.stride(0),
                "stride_wr": w.stride(2),
                "stride_ws": w.stride(3),
                **named_strides("y", y_strides, "nchw"),
                **_window(problem),
                **_steps(problem),
                "TRANSPOSED": transposed,
                "MULTIPLIER": problem.K // problem.C,
                "PIXELS_INNER": planar,
                "C_ALIGN": c_align,
                "ACTIVATION": "none" if transposed else problem.activation,
                "HAS_BIAS": bias is not None,
                "WIDE": wide(x, y),
                "ACC": numbers.accumulator,
                **block_sizes(config),
            },
            config["num_warps"],
            1,
            tunable=tunable,
            problem=kernel_problem,
            config=config,
        )


# ---- the weight's gradient


def weight_grad(
    problem: Conv2dProblem, x: torch.Tensor, dy: torch.Tensor, dw: torch.Tensor, db: torch.Tensor | None
) -> None:
    """The gradients of weight and bias, summed in a fixed order. Extra memory: the slabs, at most 32 MB or a weight."""
    _check_filters(problem, dw)
    numbers = _numbers(problem, x.dtype)
    if problem.depthwise:
        _direct_weight_grad(problem, x, dy, dw, db, numbers)
        return
    pack = _group_pack(problem)
    packs = problem.groups // pack
    C, K = problem.C // packs, problem.K // packs
    planar = _is_pointwise(problem) and x.stride(1) != 1 and dy.stride(1) != 1 and _rows_follow(x) and _rows_follow(dy)
    flat = C < _FEW_COLUMNS and problem.R * problem.S > 1
    if not planar and x.numel() and dy.numel():
        x, dy = x if flat else _channels_inner(x), _channels_inner(dy)
    pairs = []
    for part in chunks(problem, problem.N, problem.P * problem.Q) if dy.numel() else ():
        images = replace(problem, N=part.stop - part.start)
        pairs.append(_slabs(images, x[part], dy[part], C, K, packs, flat, planar, db is not None, numbers))
    _sum(problem, x, pairs, problem.K * C * problem.R * problem.S, pack, dw, db)


def _empty_slabs(x: torch.Tensor, slabs: int, weights: int, K: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``[slabs, weights]`` and ``[slabs, K]`` in the dtype that gradients are summed in."""
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    return _empty(x, slabs, weights, dtype=dtype), _empty(x, slabs, K, dtype=dtype)


def _slabs(
    problem: Conv2dProblem,
    x: torch.Tensor,
    dy: torch.Tensor,
    C: int,
    K: int,
    packs: int,
    flat: bool,
    planar: bool,
    with_bias: bool,
    numbers: _Numbers,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One launch of :func:`weight_grad_kernel`: slabs ``[slabs, K·packs·R·S·C]`` and ``[slabs, K·packs]``."""
    R, S = problem.R, problem.S
    pixels = problem.P * problem.Q
    rows = pixels if planar else problem.N * pixels
    x_strides, y_strides = (Strides.of(tuple(t.shape), t.stride(), "nchw") for t in (x, dy))
    columns, batch = (C * R * S, packs) if flat else (C, packs * R * S)
    window = (R, S, problem.stride, problem.dilation, flat, planar)
    kernel_problem = space.Product(
        K, columns, problem.N * pixels, 1.0, batch, packs / batch, False, numbers.itemsize, numbers.unit,
        numbers.passes, (x_strides.inner, y_strides.inner, *window), autotune.device_of(x),
    )  # fmt: skip
    config = autotune.resolve(space.WEIGHT_GRAD, kernel_problem)
    split, block = space.slabs_of(config, kernel_problem), config["BLOCK_K"]
    tiles_k = -(-K // config["BLOCK_M"])
    tiles_c = -(-columns // config["BLOCK_N"]) * (1 if flat else R * S)
    blocks = problem.N * -(-pixels // block) if planar else -(-rows // block)
    slabs, bias_slabs = _empty_slabs(x, split, packs * K * R * S * C, packs * K)
    c_align, k_align, row_align = alignment(C), alignment(K), alignment(rows) if planar else 1
    launch(
        weight_grad_kernel,
        (tiles_k * tiles_c * split * packs,),
        {
            "x_ptr": x,
            "dy_ptr": dy,
            "slab_ptr": slabs,
            "bias_ptr": bias_slabs,
            "H": problem.H,
            "W": problem.W,
            "P": problem.P,
            "Q": problem.Q,
            "C": C // c_align,
            "K": K // k_align,
            "groups": packs,
            "rows": rows // row_align,
            "blocks": blocks,
            "split": split,
            "images": problem.N,
            "tiles_k": tiles_k,
            "tiles_c": tiles_c,
            **_pixels(problem, problem.P, problem.Q),
            **named_strides("x", x_strides, "nchw"),
            **named_strides("y", y_strides, "nchw"),
            **_window(problem),
            "FLAT": flat,
            "PLANAR": planar,
            "CHECKED": any(problem.padding),
            "C_ALIGN": c_align,
            "K_ALIGN": k_align,
            "ROW_ALIGN": row_align,
            "HAS_BIAS": with_bias,
            "WIDE": wide(x, dy),
            "ACC": numbers.accumulator,
            "PRECISION": numbers.precision,
            **block_sizes(config),
        },
        config["num_warps"],
        config["num_stages"],
        tunable=space.WEIGHT_GRAD,
        problem=kernel_problem,
        config=config,
        tensor_cores=numbers.tensor_cores,
    )
    return slabs, bias_slabs


def _direct_weight_grad(
    problem: Conv2dProblem,
    x: torch.Tensor,
    dy: torch.Tensor,
    dw: torch.Tensor,
    db: torch.Tensor | None,
    numbers: _Numbers,
) -> None:
    """Launches of :func:`depthwise_weight_grad`, and the sum of their slabs."""
    taps = problem.R * problem.S
    planar = dy.stride(1) != 1
    tunable = space.DEPTHWISE_WEIGHT_GRAD[planar]
    c_align = alignment(problem.K)
    pairs = []
    for part in chunks(problem, problem.N, problem.P * problem.Q) if dy.numel() else ():
        xs, dys = x[part], dy[part]
        rows = (part.stop - part.start) * problem.P * problem.Q
        x_strides, y_strides = (Strides.of(tuple(t.shape), t.stride(), "nchw") for t in (xs, dys))
        window = (problem.R, problem.S, problem.stride, problem.dilation)
        kernel_problem = space.Depthwise(
            rows, problem.K, taps, 1, xs.numel() / dys.numel(), planar, numbers.itemsize,
            (x_strides.inner, y_strides.inner, *window), autotune.device_of(x),
        )  # fmt: skip
        config = autotune.resolve(tunable, kernel_problem)
        split, at_once = space.pixel_slabs(config, kernel_problem), space.taps_at_once(taps, config)
        tiles_c = -(-problem.K // config["BLOCK_C"])
        slab, bias_slab = _empty_slabs(x, split, problem.K * taps, problem.K)
        pairs.append((slab, bias_slab))
        launch(
            depthwise_weight_grad,
            (tiles_c * split * -(-taps // at_once),),
            {
                "x_ptr": xs,
                "dy_ptr": dys,
                "slab_ptr": slab,
                "bias_ptr": bias_slab,
                "H": problem.H,
                "W": problem.W,
                "P": problem.P,
                "Q": problem.Q,
                "channels": problem.K // c_align,
                "rows": rows,
                "blocks": -(-rows // config["BLOCK_M"]),
                "split": split,
                "tiles_c": tiles_c,
                **_pixels(problem, problem.P, problem.Q),
                **named_strides("x", x_strides, "nchw"),
                **named_strides("y", y_strides, "nchw"),
                **_window(problem),
                "MULTIPLIER": problem.K // problem.C,
                "TAPS": at_once,
                "PIXELS_INNER": planar,
                "C_ALIGN": c_align,
                "HAS_BIAS": db is not None,
                "WIDE": wide(xs, dys),
                "ACC": numbers.accumulator,
                **block_sizes(config),
            },
            config["num_warps"],
            1,
            tunable=tunable,
            problem=kernel_problem,
            config=config,
        )
    _sum(problem, x, pairs, problem.K * taps, 1, dw, db)


def _sum(
    problem: Conv2dProblem,
    x: torch.Tensor,
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
    size: int,
    pack: int,
    dw: torch.Tensor,
    db: torch.Tensor | None,
) -> None:
    """One launch of :func:`sum_slabs` over those of all batches; of no slabs at all the sums are zeros."""
    pairs = pairs or [_empty_slabs(x, 0, size, problem.K)]
    slabs, bias_slabs = pairs[0] if len(pairs) == 1 else map(torch.cat, zip(*pairs, strict=True))
    C, RS = problem.C // problem.groups, problem.R * problem.S
    row_mul, row_shift = divisor(RS * C)
    c_mul, c_shift = divisor(C)
    block = 128
    blocks = -(-dw.numel() // block) + (-(-problem.K // block) if db is not None else 0)
    launch(
        sum_slabs,
        (blocks,),
        {
            "slab_ptr": slabs,
            "bias_slab_ptr": bias_slabs,
            "dw_ptr": dw,
            "db_ptr": db,
            "slabs": slabs.shape[0],
            "slab_size": size,
            "weights": dw.numel(),
            "K": problem.K,
            "row_mul": row_mul,
            "row_shift": row_shift,
            "c_mul": c_mul,
            "c_shift": c_shift,
            **dict(zip(("stride_wk", "stride_wc", "stride_wr", "stride_ws"), dw.stride(), strict=True)),
            "C": C,
            "RS": RS,
            "S": problem.S,
            "GROUP_OUT": problem.K // problem.groups,
            "PACK": pack,
            "HAS_BIAS": db is not None,
            "BLOCK": block,
        },
        num_warps=4,
    )
