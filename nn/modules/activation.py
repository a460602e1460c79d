"""Activations and softmax: ``torch.nn``'s modules on this library's kernels. Constructors and repr are torch's."""

from __future__ import annotations

import torch

from .. import functional as F


class ReLU(torch.nn.ReLU):
    """``max(x, 0)``, elementwise; see ``torch.nn.ReLU``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.relu(input, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    """``1 / (1 + exp(-x))``, elementwise; see ``torch.nn.Sigmoid``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.sigmoid(input)


class Tanh(torch.nn.Tanh):
    """The hyperbolic tangent, elementwise; see ``torch.nn.Tanh``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.tanh(input)


class Softmax(torch.nn.Softmax):
    """Softmax along ``dim``; see ``torch.nn.Softmax``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    """The logarithm of softmax along ``dim``; see ``torch.nn.LogSoftmax``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(input, self.dim, _stacklevel=5)
