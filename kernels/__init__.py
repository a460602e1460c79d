"""Kernels: plain functions from tensors to tensors, registered as ``torch.ops.tilesmith.*``. No autograd here."""

from ._precision import set_float32_precision
from .backends import BackendUnavailable, available, backend, reason_unavailable

__all__ = ["BackendUnavailable", "available", "backend", "reason_unavailable", "set_float32_precision"]
