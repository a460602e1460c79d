"""What launchers tell Triton kernels about tensors in memory: strides, what divides them, how wide offsets are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch

from ..autotune import Config

LIMIT = 2**31  # of what 32 bits count; tests lower it


@dataclass(frozen=True)
class Strides:
    """A tensor's four strides for a kernel: the innermost as it is, the others in units of what divides them all.

    Triton knows of a run-time number only whether 16 divides it; ``align`` (1 to 16) tells the rest at compile time.
    """

    values: tuple[int, int, int, int]
    align: int
    inner: str

    @classmethod
    def of(cls, shape: tuple[int, ...], strides: tuple[int, ...], names: str) -> Strides:
        """``names`` are one letter a dimension, of which two can be innermost."""
        steps = [0 if size == 1 else stride for size, stride in zip(shape, strides, strict=True)]
        inner = next((name for name, step in zip(names, steps, strict=True) if step == 1 and name in "cwoi"), "")
        others = [step for name, step in zip(names, steps, strict=True) if name != inner]
        align = gcd(16, *others)
        first, second, third, fourth = (
            step if name == inner else step // align for name, step in zip(names, steps, strict=True)
        )
        return cls((first, second, third, fourth), align, inner)


def span(tensor: torch.Tensor) -> int:
    """One more than the largest offset a kernel may form, with a tile's overshoot along the channels."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size)
    return reach + 1 + 256 * max(tensor.stride(), default=1) * (tensor.shape[0] == 1) + 256 * tensor.stride(1)


def wide(*tensors: torch.Tensor) -> bool:
    """Whether offsets into one of them need 64 bits."""
    return any(span(tensor) >= LIMIT for tensor in tensors)


def alignment(n: int) -> int:
    """In which unit a size is passed, for Triton to know what divides it: the largest power of two up to 16."""
    return gcd(n, 16)


def named_strides(letter: str, strides: Strides, names: str) -> dict[str, Any]:
    """The arguments ``stride_xn`` ..., ``X_INNER`` and ``X_ALIGN`` of a tensor ``x``."""
    named: dict[str, Any] = {f"stride_{letter}{n}": v for n, v in zip(names, strides.values, strict=True)}
    named[f"{letter.upper()}_INNER"] = strides.inner
    named[f"{letter.upper()}_ALIGN"] = strides.align
    return named


def block_sizes(config: Config) -> dict[str, Any]:
    """The parameters of a configuration that are constants of the kernel; the others are the launch's."""
    return {name: value for name, value in config.items() if name.startswith("BLOCK_")}


def chunks(problem: object, images: int, rows_each: int) -> Iterator[slice]:
    """Ranges of images whose pixels a kernel can count in 31 bits.

    Raises:
        NotImplementedError: a single image has more.
    """
    if rows_each >= LIMIT:
        raise NotImplementedError(f"one image of {rows_each} pixels, the limit is {LIMIT - 1}: {problem}")
    each = max(1, (LIMIT - 1) // max(rows_each, 1))
    return (slice(n, min(n + each, images)) for n in range(0, images, each))
