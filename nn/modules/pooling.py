"""Pooling: ``torch.nn``'s modules on this library's kernels. Constructors and repr are torch's."""

from __future__ import annotations

from typing import Any

import torch

from .. import functional as F


class MaxPool2d(torch.nn.MaxPool2d):
    """The maximum of each window; see ``torch.nn.MaxPool2d``."""

    def forward(self, input: torch.Tensor) -> Any:
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """The mean of each window; see ``torch.nn.AvgPool2d``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """The maximum of each of ``output_size`` windows; see ``torch.nn.AdaptiveMaxPool2d``."""

    def forward(self, input: torch.Tensor) -> Any:
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """The mean of each of ``output_size`` windows; see ``torch.nn.AdaptiveAvgPool2d``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)
