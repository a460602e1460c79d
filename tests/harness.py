"""From one table of cases, everything an op must stand: what a case is, its inputs, its oracle, its error bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tilesmith.kernels import _arrays, activation, conv2d, conv_pool2d, linear, pool2d, rnn, softmax
from tilesmith.nn import functional

OPS = (activation, conv2d, conv_pool2d, linear, pool2d, rnn, softmax)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed", "expanded")


@dataclass(frozen=True)
class Case:
    """One problem of one op.

    Attributes:
        op: the function's name in ``tilesmith.nn.functional``.
        shapes: of its tensor arguments, in order; ``None`` for an argument left out.
        options: its other arguments.
        oracle: the same function in torch, run in float64.
        reduction: elements summed for one output, over all directions: errors may grow with its square root.
        half_roundings: how often a half type rounds on the way to a result, in units in the last place.
    """

    op: str
    shapes: tuple[Any, ...]
    oracle: Callable[..., Any]
    reduction: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    half_roundings: float = 1.5

    def __str__(self) -> str:
        options = "-".join(f"{k}={v}" for k, v in self.options.items()).replace(" ", "")
        return f"{self.op}-{'x'.join(map(str, self.shapes[0] or ()))}" + (f"-{options}" if options else "")

    @property
    def gradient_scale(self) -> float:
        """The least size of what a gradient is computed from: of ``dy`` where an activation may shrink it, else 0."""
        return (
            1.0 if self.options.get("activation") or self.op in ("sigmoid", "tanh", "softmax", "log_softmax") else 0.0
        )

    def ours(self, *tensors: torch.Tensor | None) -> Any:
        return getattr(functional, self.op)(*tensors, **self.options)

    def theirs(self, *tensors: torch.Tensor | None) -> Any:
        return self.oracle(*tensors, **self.options)

    def inputs(
        self, dtype: torch.dtype = torch.float64, layout: str = "contiguous", seed: int = 0, grad: bool = True
    ) -> list[Any]:
        """Random tensors, the first one in the given layout; values distinct, so that a maximum is one element's."""
        generator = torch.Generator().manual_seed(seed)
        made: list[Any] = []
        for position, shape in enumerate(self.shapes):
            if shape is None:
                made.append(None)
                continue
            values = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            made.append(laid_out(values, layout if position == 0 else "contiguous").requires_grad_(grad))
        return made


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The values behind other strides, inside a buffer that is NaN (or the smallest integer) everywhere else."""
    poison = math.nan if values.is_floating_point() else torch.iinfo(values.dtype).min
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values.clone()
    if layout == "sliced":  # every second element of the last dimension, off the buffer's start
        buffer = values.new_full((*values.shape[:-1], 2 * values.shape[-1] + 3), poison)
        view = buffer[..., 1 : 1 + 2 * values.shape[-1] : 2]
        return view.copy_(values)
    if layout == "transposed":
        buffer = values.new_full(tuple(n + 2 for n in reversed(values.shape)), poison)
        view = buffer[tuple(slice(1, 1 + n) for n in reversed(values.shape))].permute(*reversed(range(values.dim())))
        return view.copy_(values)
    if layout == "expanded" and values.dim() > 1:  # every image the same memory
        return values[:1].clone().expand_as(values)
    return values.clone()


def gradients(function: Callable[..., Any], tensors: list[Any], seed: int = 1) -> tuple[Any, list[Any]]:
    """The output, and the gradients of all inputs for a random (fixed) gradient of the output."""
    y = function(*tensors)
    y = y[0] if isinstance(y, tuple) else y
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(y.dtype)
    wanted = [t for t in tensors if t is not None]
    found = iter(torch.autograd.grad(y, wanted, dy))
    return y.detach(), [None if t is None else next(found) for t in tensors]


def assert_spreads_alike(case: Case, grad: torch.Tensor, oracle: torch.Tensor) -> None:
    """A gradient is NaN or infinite where the oracle's is.

    Behind a sigmoid or tanh torch's gradient of a maximum is NaN at each NaN of a window, a fused one's at the last.
    """
    fewer = case.op == "conv_pool2d" and case.options.get("activation") in ("sigmoid", "tanh")
    assert torch.equal(grad.isfinite() & oracle.isfinite() if fewer else grad.isfinite(), oracle.isfinite())


def assert_within(
    actual: torch.Tensor,
    expected: torch.Tensor,
    dtype: torch.dtype,
    reduction: int,
    what: str,
    scale: float = 0.0,
    half_roundings: float = 1.5,
) -> None:
    """Compares with the float64 oracle: rounding of ``reduction`` summed terms, and of the result to ``dtype``.

    The sum of L random terms has a rounding error near ``eps · sqrt(L)`` times its size, in the dtype it is summed in
    (float32 for half types). A half type is then rounded by half a unit in the last place: once in forward, and in
    backward up to three times (the saved output, the gradient behind a fused activation, the result). ``scale`` is the
    least size that errors are relative to: an activation's gradient ``dy (1 - y²)`` can be small where ``dy`` is not.
    """
    assert actual.dtype is dtype, f"{what}: dtype {actual.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if not expected.numel():
        return
    scale = max(scale, expected.abs().amax().item())
    summed_in = _arrays.compute_dtype(dtype)
    bound = torch.finfo(summed_in).eps * (8 + 2 * math.sqrt(reduction)) * scale
    if summed_in is not dtype:
        bound += torch.finfo(dtype).eps * half_roundings * scale
    error = (actual.double() - expected).abs().amax().item()
    assert error <= bound, f"{what}: error {error:.3g} above the bound {bound:.3g} (largest value {scale:.3g})"


@contextmanager
def guarded_outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], None]]]:
    """Makes the ops allocate their outputs poisoned, inside a canary. Yields checks to call afterwards."""
    checks: list[Callable[[], None]] = []

    def guard(like: torch.Tensor) -> torch.Tensor:
        """A poisoned tensor with the strides of ``like`` whose memory lies between two canaries."""
        margin = 64
        canary = 0x5A
        room = sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True)) + 1 if like.numel() else 0
        size = like.element_size()
        buffer = torch.full(((room + 2 * margin) * size,), canary, dtype=torch.uint8, device=like.device)
        inside = slice(margin * size, (margin + room) * size)
        buffer[inside] = 0xFF  # NaN in every floating point type, -1 as an index
        # a dtype's view needs its alignment: the margin is a multiple of every element size
        storage = buffer.view(like.dtype)

        def check() -> None:
            assert (buffer[: inside.start] == canary).all(), "written before an output"
            assert (buffer[inside.stop :] == canary).all(), "written behind an output"

        checks.append(check)
        return storage.as_strided(like.shape, like.stride(), margin)

    with monkeypatch.context() as patch:
        for op in OPS:
            for name in ("empty", "empty_like"):
                if hasattr(op, name):
                    allocate = getattr(op, name)
                    patch.setattr(op, name, lambda *args, _allocate=allocate, **kw: guard(_allocate(*args, **kw)))
        yield checks
