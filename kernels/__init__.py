"""Kernels: plain functions from tensors to tensors, registered as ``torch.ops.tilesmith.*``. No autograd here."""

from .backends import BackendUnavailable, available, backend, reason_unavailable

__all__ = ["BackendUnavailable", "available", "backend", "reason_unavailable"]
