"""What the analytic model knows of a device: how much it can hold and how fast it is."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Device:
    """A GPU, real or only named, or this machine's CPU.

    Attributes:
        name: of the card, or the CPU's model.
        arch: "sm_90" and the like, or "cpu".
        multiprocessors: how many there are; of a CPU, the threads that torch may use.
        shared_bytes: the most shared memory one block can have; of a CPU, a core's second-level cache.
        shared_bytes_each: shared memory of one multiprocessor; of a CPU, the same cache.
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


_L2_BYTES = 1024 * _KB  # of a core, where the system does not say


def cpu() -> Device:
    """This machine's CPU with the threads that torch may use now. Its rates are those of a common server core: they
    rank configurations and say little of times."""
    return _of_cpu(torch.get_num_threads())


@lru_cache(maxsize=64)
def _of_cpu(threads: int) -> Device:
    l2_bytes = _l2_bytes()
    return Device(
        _cpu_name(),
        "cpu",
        threads,
        l2_bytes,
        l2_bytes,
        threads * 8e9,
        *(threads * rate for rate in (90e9, 90e9, 90e9, 45e9)),
    )


def _l2_bytes() -> int:
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (AttributeError, ValueError, OSError):
        found = 0
    return found if found > 0 else _L2_BYTES


def _cpu_name() -> str:
    """The model, such as "AMD EPYC 9654", from the kernel where it tells; else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name" and value.strip():
                    return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


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
        name=properties.name.removeprefix("NVIDIA "),  # as it is called where it is planned for
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
