"""What the NumPy kernel of dense layers may be run with: how much a piece of the product holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...autotune import Config, Cost, Device, Key, Tunable
from .. import _parallel
from .._numpy_tuning import MB, repeated, unit, workers

SPACE = {"PIECE_BYTES": (4 * MB, 2 * MB, 8 * MB, 1 * MB, 16 * MB)}
_LEAST_PIECE_BYTES = min(SPACE["PIECE_BYTES"])


@dataclass(frozen=True)
class Product:
    """``[M, I] x [I, O]``, with a bias and an activation behind it, whose NumPy calls are ``passes`` over the result.

    Attributes:
        by_columns: whether x and w are each stored so, which is what BLAS packs them from.
    """

    M: int
    I: int  # noqa: E741  the field's own name
    O: int  # noqa: E741
    passes: int
    by_columns: tuple[bool, bool]
    itemsize: int
    device: Device

    @property
    def products(self) -> int:
        return self.M * self.I * self.O


def is_cut(M: int, I: int, O: int) -> bool:  # noqa: E741
    """Whether any value of the space cuts the product further than its multiplications do."""
    pieces = _by_bytes(M, I, O, _LEAST_PIECE_BYTES)
    return pieces > 1 and pieces > _by_products(M, I, O)


def _by_bytes(M: int, I: int, O: int, piece_bytes: int) -> int:  # noqa: E741
    return 4 * max(M, O) * (I + min(M, O)) // piece_bytes


def _by_products(M: int, I: int, O: int) -> int:  # noqa: E741
    return min(M * I * O // _parallel.MIN_PRODUCTS_PER_WORKER, max(M, O) // _parallel._LEAST_SIDE)


def _pieces(config: Config, problem: Product) -> int:
    """As ``over_products`` has it."""
    sizes = problem.M, problem.I, problem.O
    pieces = max(_by_products(*sizes), _by_bytes(*sizes, config["PIECE_BYTES"]))
    return max(1, min(pieces, max(problem.M, problem.O)))


def _refusal(config: Config, problem: Product) -> str | None:
    return repeated("PIECE_BYTES", SPACE, config, lambda other: _pieces(other, problem))


def _key(problem: Product) -> Key:
    d = problem.device
    exact = (problem.passes, problem.by_columns, problem.itemsize, d.name, d.multiprocessors)
    return Key(exact, {"M": problem.M, "I": max(1, problem.I), "O": problem.O})


def _cost(config: Config, problem: Product) -> Cost:
    pieces = _pieces(config, problem)
    longer, shorter = max(problem.M, problem.O) / pieces, min(problem.M, problem.O)
    results = longer * shorter
    return Cost(
        blocks=pieces,
        flops=2 * problem.products / pieces,
        unit=unit(problem.itemsize),
        # the other operand is packed once a piece; every pass behind the product reads and writes its result
        bytes=problem.itemsize * ((longer + 3 * shorter) * problem.I + results * (1 + 2 * problem.passes)),
        steps=1 + problem.passes,
        shared=int(problem.itemsize * (longer * problem.I + results)),
        threads=workers(pieces, 0, problem.products, problem.device),
    )


def tunable(default: Callable[[Product], Config]) -> Tunable:
    return Tunable(
        "numpy.linear.forward",
        SPACE,
        default=default,
        refusal=_refusal,
        reasons={
            "PIECE_BYTES": "of operands and result in float32, over which bias and activation go again: 1 MiB to "
            "16 MiB by powers of two, as the other operand is packed anew for each piece"
        },
        key=_key,
        cost=_cost,
    )
