"""How Triton kernels are launched: through the JIT, or into a record of what would be launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._recording import recorded


@dataclass
class Launch:
    """One launch as it was asked for.

    Attributes:
        kernel: the ``@triton.jit`` function.
        grid: number of programs along each axis.
        args: run-time arguments by name (tensors, ``None`` and integers), then the constants.
        options: ``num_warps`` and ``num_stages``.
        notes: what the launch should be known by.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    options: Mapping[str, int]
    notes: Mapping[str, Any] = field(default_factory=dict)


def launch(
    kernel: Any,
    grid: Sequence[int],
    args: Mapping[str, Any],
    num_warps: int = 4,
    num_stages: int = 1,
    **notes: Any,
) -> None:
    """Launches ``kernel`` with arguments by name on the current stream of the current device.

    Args:
        notes: what a recorded launch should be known by; not passed on.
    """
    launches = recorded()
    options = {"num_warps": num_warps, "num_stages": num_stages}
    if launches is not None:
        launches.append(Launch(kernel, tuple(grid), args, options, notes))
        return
    kernel[tuple(grid)](**args, **options)
