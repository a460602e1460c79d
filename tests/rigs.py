"""The GPU backends, run where there is no GPU: Triton's interpreter, and CUDA C++ on the host. With one, for real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tilesmith import kernels
from tilesmith.kernels import _cuda


@dataclass(frozen=True)
class Rig:
    """A backend and the device whose tensors it gets; ``order`` is that of the fibers of a host run."""

    backend: str
    device: str = "cpu"
    order: str = "forward"

    def __str__(self) -> str:
        return self.backend + ("" if self.device == "cpu" else "-gpu")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside the block our ops run on this backend, float32 in IEEE arithmetic."""
        before = _cuda.emulator
        if self.backend == "cupy" and self.device == "cpu":
            from .cuda_host import HostRuntime

            _cuda.emulator = HostRuntime(order=self.order)
        kernels.set_float32_precision("ieee")
        try:
            with kernels.backend(self.backend):
                yield
        finally:
            _cuda.emulator = before
            kernels.set_float32_precision(None)

    def place(self, tensors: list[Any]) -> list[Any]:
        """The tensors on the rig's device, with their strides and what surrounds them in memory."""
        return [t if t is None or self.device == "cpu" else _moved(t, self.device) for t in tensors]


def _moved(tensor: torch.Tensor, device: str) -> torch.Tensor:
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.detach().untyped_storage())
    moved = whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return moved.requires_grad_(tensor.requires_grad)


RIGS = [
    pytest.param(Rig("triton"), id="triton"),
    pytest.param(Rig("cupy"), id="cupy"),
    pytest.param(Rig("triton", "cuda"), id="triton-gpu", marks=pytest.mark.gpu),
    pytest.param(Rig("cupy", "cuda"), id="cupy-gpu", marks=pytest.mark.gpu),
]
