"""The dense layer: ``torch.nn.Linear`` on this library's kernels, with an optional fused activation."""

from __future__ import annotations

import torch

from .. import functional as F
from ._fused import FusedActivation


class Linear(FusedActivation, torch.nn.Linear):
    """``y = act(x weightᵀ + bias)``; see ``torch.nn.Linear``.

    Beyond torch, keyword-only: ``activation="relu" | "sigmoid" | "tanh"`` is applied before the output is written.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = self._checked(activation)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight, self.bias, activation=self.activation)
