"""What the analytic model knows of a device: how much it can hold and how fast it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Device:
    """A GPU, real or only named.

    Attributes:
        name: of the card.
        arch: "sm_90" and the like.
        multiprocessors: how many there are.
        shared_bytes: the most shared memory one block can have.
        shared_bytes_each: shared memory of one multiprocessor.
        bytes_per_second: device memory bandwidth.
        flops: dense FLOP/s by unit: "half" (float16 and bfloat16) and "tf32" on tensor cores, "fma" (float32) and
            "double" on the others, as the maker states them.
    """

    name: str
    arch: str
    multiprocessors: int
    shared_bytes: int
    shared_bytes_each: int
    bytes_per_second: float
    half: float
    tf32: float
    fma: float
    double: float

    def flops(self, unit: str) -> float:
        """Dense FLOP/s of one unit: "half", "tf32", "fma" or "double"."""
        rates = {"half": self.half, "tf32": self.tf32, "fma": self.fma, "double": self.double}
        return rates[unit]


_KB = 1024
# The makers' data sheets (A100 SXM 80 GB, H200 SXM, B200), dense rates.
TARGETS = {
    device.arch: device
    for device in (
        Device("A100", "sm_80", 108, 163 * _KB, 164 * _KB, 2.04e12, 312e12, 156e12, 19.5e12, 9.7e12),
        Device("H200", "sm_90", 132, 227 * _KB, 228 * _KB, 4.8e12, 989e12, 495e12, 66.9e12, 33.5e12),
        Device("B200", "sm_100", 148, 227 * _KB, 228 * _KB, 8.0e12, 2250e12, 1125e12, 75e12, 37e12),
    )
}

_target: ContextVar[Device | None] = ContextVar("tilesmith_target", default=None)


@contextmanager
def target(arch: str) -> Iterator[Device]:
    """Configurations are chosen for a named device inside the block, in this thread: to plan without having it.

    Raises:
        ValueError: no such device is known.
    """
    if arch not in TARGETS:
        raise ValueError(f"target {arch!r} is unknown: it must be one of {', '.join(map(repr, TARGETS))}")
    token = _target.set(TARGETS[arch])
    try:
        yield TARGETS[arch]
    finally:
        _target.reset(token)


def device_of(tensor: torch.Tensor) -> Device:
    """The device whose configurations serve a tensor; off the GPU (planning, emulation) the target, else an H200."""
    chosen = _target.get()
    if chosen is not None:
        return chosen
    if tensor.device.type == "cuda":
        return _of_cuda(tensor.device.index or 0)
    return TARGETS["sm_90"]


@lru_cache(maxsize=64)
def _of_cuda(index: int) -> Device:
    """The card, with the rates of its generation's named card scaled by the number of multiprocessors."""
    properties = torch.cuda.get_device_properties(index)
    generation = max(
        (d for d in TARGETS.values() if int(d.arch[3:]) <= properties.major * 10 + properties.minor),
        key=lambda d: int(d.arch[3:]),
        default=TARGETS["sm_80"],
    )
    scale = properties.multi_processor_count / generation.multiprocessors
    return replace(
        generation,
        name=properties.name,
        arch=f"sm_{properties.major}{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        shared_bytes_each=properties.shared_memory_per_multiprocessor,
        bytes_per_second=generation.bytes_per_second * scale,
        half=generation.half * scale,
        tf32=generation.tf32 * scale,
        fma=generation.fma * scale,
        double=generation.double * scale,
    )
