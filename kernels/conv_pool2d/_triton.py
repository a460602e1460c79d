"""Convolution and 2x2 pooling in Triton: the product kernels pool in their epilogue, others have a pass behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl

from ... import autotune
from ...autotune import Config, Cost, Device, Key, Tunable, fastest
from .._division import divisor, power_of_two
from .._triton import launch
from .._triton_tensors import Strides, alignment, block_sizes, chunks, named_strides, wide
from ..conv2d import _triton as convolution
from ._problem import ConvPool2dProblem
from ._triton_windows import pool_pixels, pool_rows, unpool_pixels, unpool_rows

ON_TENSORS = True


# ---- what the passes over windows may be run with


@dataclass(frozen=True)
class Windows:
    """One pass over 2x2 windows: ``rows`` by ``columns``, which lie side by side in memory.

    Attributes:
        bytes_each: moved for one window.
        options: everything else that changes the machine code.
    """

    rows: int
    columns: int
    bytes_each: float
    itemsize: int
    options: tuple[object, ...]
    device: Device

    @property
    def key(self) -> Key:
        d = self.device
        exact = (self.itemsize, *self.options, d.name, d.multiprocessors, d.shared_bytes)
        return Key(exact, {"rows": self.rows, "columns": self.columns})


def _tunable(name: str, inner: str, inner_reason: str, inner_sizes: tuple[int, ...]) -> Tunable:
    def refusal(config: Config, problem: Windows) -> str | None:
        each = config["BLOCK_M"] * config[inner] // (32 * config["num_warps"])
        least = 16 // problem.itemsize
        if not least <= each <= 16:
            return f"{each} windows a thread: {least} are 16 bytes, up to 16 stay in registers with their taps"
        if config[inner] > max(inner_sizes[-1], power_of_two(problem.columns)):
            return f"{inner}={config[inner]} is more than all {problem.columns} columns"
        return None

    def cost(config: Config, problem: Windows) -> Cost:
        m, columns, warps = config["BLOCK_M"], config[inner], config["num_warps"]
        return Cost(
            blocks=-(-problem.rows // m) * -(-problem.columns // columns),
            flops=m * columns * 16,
            unit="double" if problem.itemsize == 8 else "fma",
            bytes=min(m, problem.rows) * min(columns, problem.columns) * problem.bytes_each,
            threads=32 * warps,
            registers=min(255, 32 + 8 * m * columns // (32 * warps) * max(4, problem.itemsize) // 4),
        )

    tunable = Tunable(
        name,
        {"BLOCK_M": (16, 8, 32, 4, 64), inner: inner_sizes, "num_warps": (4, 2, 8)},
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=refusal,
        reasons={
            "BLOCK_M": "windows, or rows of them: enough that few programs are idle at the end",
            inner: inner_reason,
            "num_warps": "2 to 8, for 16 bytes to 16 windows a thread",
        },
        key=lambda problem: problem.key,
        cost=cost,
    )
    return tunable


CHANNELS_LAST = _tunable(
    "triton.conv_pool2d.channels_last", "BLOCK_C", "channels: 16 bytes a thread of neighbours", (64, 128, 32)
)
PLANAR = _tunable(
    "triton.conv_pool2d.planar", "BLOCK_Q", "columns of windows: a row of planes of that size", (32, 64, 16, 128, 8)
)
TUNABLES = (CHANNELS_LAST, PLANAR)


# ---- the contract


def forward(
    problem: ConvPool2dProblem,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    code: torch.Tensor | None,
) -> None:
    """2x2 ``pool`` of ``act(conv(x, w) + bias)``. Extra memory: for depthwise convolutions their output."""
    p = problem.convolution
    if not p.depthwise:
        convolution.forward_pooled(p, problem.pool, x, w, bias, y, code)
        return
    layout = torch.contiguous_format if y.is_contiguous() else torch.channels_last
    z = torch.empty((p.N, p.K, p.P, p.Q), dtype=y.dtype, device=y.device, memory_format=layout)
    convolution.forward(p, x, w, bias, z)
    for part in chunks(problem, p.N, problem.windows):
        images = replace(problem, convolution=replace(p, N=part.stop - part.start))
        _pool(images, z[part], y[part], None if code is None else code[part])


def backward(
    problem: ConvPool2dProblem, dy: torch.Tensor, y: torch.Tensor | None, code: torch.Tensor | None, dz: torch.Tensor
) -> None:
    """The gradient of ``conv(x, w) + bias``."""
    p = problem.convolution
    for part in chunks(problem, p.N, problem.windows):
        images = replace(problem, convolution=replace(p, N=part.stop - part.start))
        _unpool(images, dy[part], None if y is None else y[part], None if code is None else code[part], dz[part])


# ---- launches


def _pool(problem: ConvPool2dProblem, z: torch.Tensor, y: torch.Tensor, code: torch.Tensor | None) -> None:
    """One launch of :func:`pool_pixels` or :func:`pool_rows`; ``z`` and ``y`` are dense in the same format."""
    P, Q = problem.P, problem.Q
    bytes_each = 5 * y.element_size() + (code is not None)
    arguments: dict[str, Any] = {"z_ptr": z, "y_ptr": y, "code_ptr": code, "WIDE": wide(z, y)}
    if y.stride(1) == 1:
        _launch_pixels(pool_pixels, problem, arguments, {"z": z, "y": y}, (P, Q), code, bytes_each)
    else:
        arguments["Q"], arguments["Q_ALIGN"] = Q // alignment(Q), alignment(Q)
        _launch_rows(pool_rows, problem, arguments, {"z": z, "y": y}, (P, Q), code, bytes_each)


def _unpool(
    problem: ConvPool2dProblem,
    dy: torch.Tensor,
    y: torch.Tensor | None,
    code: torch.Tensor | None,
    dz: torch.Tensor,
) -> None:
    """One launch of :func:`unpool_pixels` or :func:`unpool_rows`, over the windows that cover the plane."""
    H, W = dz.shape[2:]
    P, Q = -(-H // 2), -(-W // 2)
    if y is not None and code is not None and code.stride() != y.stride():
        code = torch.empty_like(y, dtype=torch.uint8).copy_(code)
    saved = y if y is not None else code if code is not None else dy
    bytes_each = (5 + (y is not None)) * dz.element_size() + (code is not None)
    arguments: dict[str, Any] = {
        "dy_ptr": dy,
        "y_ptr": y,
        "code_ptr": code,
        "dz_ptr": dz,
        "whole_p": problem.P,
        "H": H,
        "WIDE": wide(dy, saved, dz),
    }
    tensors = {"y": saved, "g": dy, "z": dz}
    if dz.stride(1) == 1:
        arguments.update(whole_q=problem.Q, W=W)
        _launch_pixels(unpool_pixels, problem, arguments, tensors, (P, Q), code, bytes_each, y is not None)
    else:
        q_align, w_align = alignment(problem.Q), alignment(W)
        arguments.update(whole_q=problem.Q // q_align, W=W // w_align, Q_ALIGN=q_align, W_ALIGN=w_align)
        _launch_rows(unpool_rows, problem, arguments, tensors, (P, Q), code, bytes_each, y is not None)


def _launch_pixels(
    kernel: Callable[..., None],
    problem: ConvPool2dProblem,
    arguments: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    size: tuple[int, int],
    code: torch.Tensor | None,
    bytes_each: float,
    sloped: bool = True,
) -> None:
    """``tensors`` by the letter of their strides, ``size`` the windows of a plane."""
    p, (P, Q) = problem.convolution, size
    strides = {letter: Strides.of(tuple(t.shape), t.stride(), "nchw") for letter, t in tensors.items()}
    c_align = alignment(p.K)
    plane_mul, plane_shift = divisor(P * Q)
    row_mul, row_shift = divisor(Q)
    layouts = tuple(s.inner for s in strides.values())
    _launch(
        kernel,
        CHANNELS_LAST,
        problem,
        p.N * P * Q,
        p.K,
        layouts,
        {
            **arguments,
            "channels": p.K // c_align,
            "P": P,
            "Q": Q,
            "plane_mul": plane_mul,
            "plane_shift": plane_shift,
            "row_mul": row_mul,
            "row_shift": row_shift,
            **{
                name: value for letter, s in strides.items() for name, value in named_strides(letter, s, "nchw").items()
            },
            "C_ALIGN": c_align,
        },
        "tiles_c",
        code,
        bytes_each,
        sloped,
    )


def _launch_rows(
    kernel: Callable[..., None],
    problem: ConvPool2dProblem,
    arguments: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    size: tuple[int, int],
    code: torch.Tensor | None,
    bytes_each: float,
    sloped: bool = True,
) -> None:
    p, (P, Q) = problem.convolution, size
    strides = {letter: Strides.of(tuple(t.shape), t.stride(), "nchw") for letter, t in tensors.items()}
    plane_mul, plane_shift = divisor(p.K * P)
    row_mul, row_shift = divisor(P)
    given = {name: value for letter, s in strides.items() for name, value in named_strides(letter, s, "nchw").items()}
    for letter in ("z",) if "g" in tensors else ("z", "y"):  # which are dense, with columns innermost
        del given[f"stride_{letter}w"], given[f"{letter.upper()}_INNER"]
    _launch(
        kernel,
        PLANAR,
        problem,
        p.N * p.K * P,
        Q,
        tuple(s.inner for s in strides.values()),
        {
            **arguments,
            "channels": p.K,
            "P": P,
            "plane_mul": plane_mul,
            "plane_shift": plane_shift,
            "row_mul": row_mul,
            "row_shift": row_shift,
            **given,
        },
        "tiles_q",
        code,
        bytes_each,
        sloped,
    )


def _launch(
    kernel: Callable[..., None],
    tunable: Tunable,
    problem: ConvPool2dProblem,
    rows: int,
    columns: int,
    layouts: tuple[str, ...],
    arguments: dict[str, Any],
    tiles: str,
    code: torch.Tensor | None,
    bytes_each: float,
    sloped: bool,
) -> None:
    y = arguments["dy_ptr"] if "dy_ptr" in arguments else arguments["y_ptr"]
    activation = problem.convolution.activation if sloped else "none"
    itemsize = y.element_size()
    options = (*layouts, problem.pool, activation, code is not None, "dy_ptr" in arguments)
    windows = Windows(rows, columns, bytes_each, itemsize, options, autotune.device_of(y))
    config = autotune.resolve(tunable, windows)
    sizes = block_sizes(config)
    tiles_m, tiles_inner = (
        -(-rows // config["BLOCK_M"]),
        -(-columns // next(v for k, v in sizes.items() if k != "BLOCK_M")),
    )
    launch(
        kernel,
        (tiles_m * tiles_inner,),
        {
            **arguments,
            "rows": rows,
            tiles: tiles_inner,
            "POOL": problem.pool,
            "CODE": code is not None,
            "ACTIVATION": activation,
            "ACC": tl.float64 if y.dtype is torch.float64 else tl.float32,
            **sizes,
        },
        config["num_warps"],
        tunable=tunable,
        problem=windows,
        config=config,
    )
