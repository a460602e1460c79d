"""ReLU, sigmoid and tanh in CUDA C++: one pass over memory, 16 bytes an access where the addresses allow.

A tensor in another order than the output's is copied into it first.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ... import autotune
from ...autotune import Config, Cost, Tunable, fastest
from .._cuda import ELEMENTS, launch
from ._dense import Elementwise, common_alignment, in_the_order_of

ON_TENSORS = True

_SOURCE = Path(__file__).with_name("activation.cu")
_KINDS = {"relu": 1, "sigmoid": 2, "tanh": 3}


# ---- spaces


def _refusal(config: Config, problem: Elementwise) -> str | None:
    vectors = config["VECTORS"]
    if vectors > 1 and config["THREADS"] * vectors * problem.vector > max(problem.count, 1):
        return f"{config['THREADS']} threads of {vectors} vectors are more than all {problem.count} elements"
    return None


def _cost(config: Config, problem: Elementwise) -> Cost:
    threads, each = config["THREADS"], config["VECTORS"] * problem.vector
    return Cost(
        blocks=-(-problem.count // (threads * each)),
        flops=threads * (each * problem.flops + 2 * 30),
        unit=problem.unit,
        bytes=threads * each * problem.tensors * problem.itemsize,
        threads=threads,
        registers=20 + each * problem.itemsize // 4 * (problem.tensors - 1) + 2 * problem.vector,
    )


def _tunable(name: str) -> Tunable:
    tunable = Tunable(
        name,
        {"THREADS": (256, 128, 512), "VECTORS": (1, 2, 4)},
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_refusal,
        reasons={
            "THREADS": "nothing is shared between threads: 128 make the last wave finer, 512 start fewer blocks",
            "VECTORS": "accesses of 16 bytes that a thread has on the way for each tensor",
        },
        key=lambda problem: problem.key,
        cost=_cost,
    )
    return tunable


FORWARD = _tunable("cupy.activation.forward")
BACKWARD = _tunable("cupy.activation.backward")
TUNABLES = (FORWARD, BACKWARD)


# ---- launches


def forward(kind: str, x: torch.Tensor, y: torch.Tensor) -> None:
    """``y = act(x)``."""
    (x,) = in_the_order_of(y, [x])
    _launch("activation_forward", FORWARD, [x, y], kind)


def backward(kind: str, dy: torch.Tensor, y: torch.Tensor, dx: torch.Tensor) -> None:
    """``dx = dy · act'(x)`` from the output ``y``."""
    dy, y = in_the_order_of(dx, [dy, y])
    _launch("activation_backward", BACKWARD, [dy, y, dx], kind)


def _launch(name: str, tunable: Tunable, tensors: list[torch.Tensor], kind: str) -> None:
    out = tensors[-1]
    n, itemsize = out.numel(), out.element_size()
    if not n:
        return
    vector = common_alignment(tensors) // itemsize
    problem = Elementwise(kind, n, len(tensors), itemsize, vector, autotune.device_of(out))
    config = autotune.resolve(tunable, problem)
    threads = config["THREADS"]
    launch(
        _SOURCE,
        name,
        {"ELEMENT": ELEMENTS[out.dtype], "KIND": _KINDS[kind], "EACH": vector, **config},
        (-(-n // (threads * config["VECTORS"] * vector)),),
        (threads,),
        (*tensors, np.int64(n)),
        tunable=tunable,
        problem=problem,
        config=config,
    )
