"""Convolution: ``torch.nn.Conv2d`` on this library's kernels, freer padding, and what is fused behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from .. import functional as F
from ._fused import FusedActivation


class Conv2d(FusedActivation, torch.nn.Conv2d):
    """2-D convolution; see ``torch.nn.Conv2d``. Same parameters, same initial values, same state_dict.

    Beyond torch:
        ``activation="relu" | "sigmoid" | "tanh"`` (keyword-only): ``act(conv(x, weight) + bias)``, applied before the
        output is written.
        ``padding="same"`` with a stride above 1.
        ``padding=((top, bottom), (left, right))``, also with the other padding modes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        free = _is_asymmetric(padding) or padding == "same"
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            0 if free else padding,  # type: ignore[arg-type]
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        if free:  # torch's constructor takes neither of the two, so they are set behind it
            self.padding: Any = padding if isinstance(padding, str) else _checked_sides(padding)
        self.activation = self._checked(activation)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.conv2d(*self._arguments(input), activation=self.activation)

    def _arguments(self, input: torch.Tensor) -> tuple[Any, ...]:
        """Those of ``functional.conv2d``, in order."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._pad(input), 0
        return input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups

    def _pad(self, input: torch.Tensor) -> torch.Tensor:
        """The input with its border reflected, replicated or wrapped around."""
        size = input.shape[-2:]
        if isinstance(self.padding, str):
            sides = F._named_sides(self.padding, size, self.kernel_size, self.stride, self.dilation)
        else:
            sides = F._sides(self.padding)
        top, bottom, left, right = sides
        return torch.nn.functional.pad(input, (left, right, top, bottom), mode=self.padding_mode)


class ConvPool2d(Conv2d):
    """Convolution, bias, activation and 2x2 pooling in one pass: :func:`tilesmith.nn.functional.conv_pool2d`.

    The same results and gradients as ``Sequential(Conv2d(...), ReLU(), MaxPool2d(2))``, and the same parameters. What
    the convolution gives is neither written nor kept: a training keeps the pooled output and one byte an element.

    Args:
        activation: "relu", "sigmoid", "tanh" or ``None``; before an average only "relu" or ``None``.
        pool: "max" or "avg".

    The other arguments are those of :class:`Conv2d`.

    Raises:
        ValueError: an unknown activation or pooling, or an average of sigmoids or tanhs.
    """

    pool: str = "max"

    def __init__(self, *args: Any, activation: str | None = "relu", pool: str = "max", **kwargs: Any) -> None:
        super().__init__(*args, activation=activation, **kwargs)
        if pool not in ("max", "avg"):
            raise ValueError(f"pool is {pool!r}, it must be 'max' or 'avg'")
        if not self.can_pool(pool, activation):
            raise ValueError(f"pool='avg' goes with no activation or with 'relu', not with {activation!r}")
        self.pool = pool

    @staticmethod
    def can_pool(pool: str, activation: str | None) -> bool:
        """Whether this activation can stand before this pooling in one pass."""
        return pool == "max" or activation in (None, "relu")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.conv_pool2d(*self._arguments(input), activation=self.activation, pool=self.pool)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pool={self.pool}"


def _checked_sides(padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    (top, bottom), (left, right) = padding
    if min(top, bottom, left, right) < 0:
        raise ValueError(f"padding must not be negative, but padding is {padding}")
    return (top, bottom), (left, right)


def _is_asymmetric(padding: Any) -> bool:
    return (
        isinstance(padding, Sequence)
        and not isinstance(padding, str)
        and len(padding) == 2
        and all(isinstance(side, Sequence) and len(side) == 2 for side in padding)
    )
