"""What elementwise kernels need of their tensors: one common order in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def in_the_order_of(out: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors with the strides of ``out``, which is dense; those that have others are copied."""
    return [t if t.stride() == out.stride() else torch.empty_like(out).copy_(t) for t in tensors]
