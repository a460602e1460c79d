"""ReLU, sigmoid and tanh in Triton: one pass over memory, in whatever order the tensors are dense in.

A tensor in another order than the output's is copied into it first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from ... import autotune
from ...autotune import Config, Cost, Tunable, fastest
from .. import _triton_tensors
from .._triton import launch
from .._triton_math import activate, rounded
from ._dense import Elementwise, in_the_order_of

ON_TENSORS = True


# ---- kernels


@triton.jit
def computed(x_ptr, i, ok, ACC: tl.constexpr, KIND: tl.constexpr):
    """``act(x)`` of elements ``i``; ``ok`` is ``None`` where all of them are there."""
    return activate(tl.load(x_ptr + i, mask=ok).to(ACC), KIND)


@triton.jit
def derived(dy_ptr, y_ptr, i, ok, ACC: tl.constexpr, KIND: tl.constexpr):
    """``dy · act'``, told from the output ``y``."""
    dy, y = tl.load(dy_ptr + i, mask=ok).to(ACC), tl.load(y_ptr + i, mask=ok).to(ACC)
    if KIND == "relu":
        return tl.where(y <= 0, 0.0, dy)  # torch's rule: past a NaN the gradient goes on
    elif KIND == "sigmoid":
        return dy * (y * (1 - y))
    else:
        return dy * (1 - y * y)


@triton.jit(do_not_specialize=["n"])
def activation_forward(x_ptr, y_ptr, n, ACC: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """``y = act(x)`` of ``BLOCK`` elements. Only the last block needs a mask, which would cost 16-byte accesses."""
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    i = pid * BLOCK + tl.arange(0, BLOCK)
    if pid < n // BLOCK:
        tl.store(y_ptr + i, rounded(computed(x_ptr, i, None, ACC, KIND), y_ptr.dtype.element_ty))
    else:
        ok = i < n
        tl.store(y_ptr + i, rounded(computed(x_ptr, i, ok, ACC, KIND), y_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["n"])
def activation_backward(
    dy_ptr, y_ptr, dx_ptr, n, ACC: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """``dx = dy · act'`` of ``BLOCK`` elements."""
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    i = pid * BLOCK + tl.arange(0, BLOCK)
    if pid < n // BLOCK:
        tl.store(dx_ptr + i, rounded(derived(dy_ptr, y_ptr, i, None, ACC, KIND), dx_ptr.dtype.element_ty))
    else:
        ok = i < n
        tl.store(dx_ptr + i, rounded(derived(dy_ptr, y_ptr, i, ok, ACC, KIND), dx_ptr.dtype.element_ty), mask=ok)


# ---- spaces


def _refusal(config: Config, problem: Elementwise) -> str | None:
    each = config["BLOCK"] // (32 * config["num_warps"])
    if each * problem.itemsize < 16:
        return f"{each} elements a thread are less than 16 bytes"
    if each * problem.itemsize > 64:
        return f"{each} elements a thread: more than 4 accesses of 16 bytes on the way keep no other block from waiting"
    return None


def _cost(config: Config, problem: Elementwise) -> Cost:
    block, threads = config["BLOCK"], 32 * config["num_warps"]
    return Cost(
        blocks=-(-problem.count // block),
        flops=block * problem.flops + 2 * 30 * threads,
        unit=problem.unit,
        bytes=block * problem.tensors * problem.itemsize,
        threads=threads,
        registers=24 + block // threads * max(4, problem.itemsize) // 4 * (problem.tensors + 1) // 2,
    )


def _tunable(name: str) -> Tunable:
    tunable = Tunable(
        name,
        {"BLOCK": (1024, 2048, 4096), "num_warps": (4, 8)},
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_refusal,
        reasons={
            "BLOCK": "1 to 4 accesses of 16 bytes a thread and tensor; 1024 are for few elements",
            "num_warps": "nothing is shared between threads: 4 make the last wave finer, 8 start fewer blocks",
        },
        key=lambda problem: problem.key,
        cost=_cost,
    )
    return tunable


FORWARD = _tunable("triton.activation.forward")
BACKWARD = _tunable("triton.activation.backward")
TUNABLES = (FORWARD, BACKWARD)


# ---- launches


def forward(kind: str, x: torch.Tensor, y: torch.Tensor) -> None:
    """``y = act(x)``."""
    (x,) = in_the_order_of(y, [x])
    _launch(activation_forward, FORWARD, {"x_ptr": x, "y_ptr": y}, y, kind)


def backward(kind: str, dy: torch.Tensor, y: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx = dy · act'(x)`` from the output ``y``."""
    dy, y = in_the_order_of(dx, [dy, y])
    _launch(activation_backward, BACKWARD, {"dy_ptr": dy, "y_ptr": y, "dx_ptr": dx}, dx, kind)


def _launch(kernel: Any, tunable: Tunable, tensors: dict[str, torch.Tensor], out: torch.Tensor, kind: str) -> None:
    n, itemsize = out.numel(), out.element_size()
    if not n:
        return
    problem = Elementwise(kind, n, len(tensors), itemsize, 16 // itemsize, autotune.device_of(out))
    config = autotune.resolve(tunable, problem)
    block = config["BLOCK"]
    launch(
        kernel,
        (-(-n // block),),
        {
            **tensors,
            "n": n,
            "ACC": tl.float64 if out.dtype is torch.float64 else tl.float32,
            "KIND": kind,
            "WIDE": n + block >= _triton_tensors.LIMIT,
            "BLOCK": block,
        },
        config["num_warps"],
        tunable=tunable,
        problem=problem,
        config=config,
    )
