"""What the NumPy kernels of activations may be run with: how many elements a block has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...autotune import Config, Cost, Device, Key, Tunable
from .._division import blocks_of
from .._numpy_tuning import made_once, repeated, share, unit, workers

SPACE = {"BLOCK": (65536, 131072, 32768, 262144, 16384, 524288)}
LEAST_BLOCK = min(SPACE["BLOCK"])

# NumPy calls of a block, and what each element costs in flops (transcendental functions in NumPy's own loops)
_FORWARD = {"sigmoid": (4, 24)}
_BACKWARD = {"relu": (3, 3), "sigmoid": (3, 3), "tanh": (3, 3), "none": (1, 0)}


@dataclass(frozen=True)
class Elements:
    """``count`` elements, dense in one order, of ``tensors`` arrays, the output among them."""

    kind: str
    tensors: int
    count: int
    itemsize: int
    device: Device

    @property
    def workers(self) -> int:
        return workers(self.count, self.tensors * self.count * self.itemsize, 0, self.device)


elements_of_a_call = made_once(Elements)


def _block(config: Config, problem: Elements) -> int:
    return share(problem.count, config["BLOCK"], problem.workers)


def _refusal(config: Config, problem: Elements) -> str | None:
    return repeated("BLOCK", SPACE, config, lambda other: _block(other, problem))


def _key(problem: Elements) -> Key:
    d = problem.device
    return Key((problem.kind, problem.tensors, problem.itemsize, d.name, d.multiprocessors), {"count": problem.count})


def _cost(config: Config, problem: Elements) -> Cost:
    block = _block(config, problem)
    calls, flops = (_FORWARD if problem.tensors == 2 else _BACKWARD)[problem.kind]
    return Cost(
        blocks=blocks_of(problem.count, block),
        flops=block * flops,
        unit=unit(problem.itemsize),
        bytes=block * problem.itemsize * (problem.tensors + 2 * (calls - 1)),
        steps=calls,
        shared=block * problem.itemsize * problem.tensors,
        threads=problem.workers,
    )


def tunable(direction: str, default: Callable[[Elements], Config]) -> Tunable:
    return Tunable(
        f"numpy.activation.{direction}",
        SPACE,
        default=default,
        refusal=_refusal,
        reasons={
            "BLOCK": "elements that every call of an expression goes over before the next ones: 16 Ki to 512 Ki, which "
            "are 64 KiB to 2 MiB of float32, from the first-level cache to beyond the second"
        },
        key=_key,
        cost=_cost,
    )
