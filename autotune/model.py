"""The analytic model: how long a configuration should take, from what its kernel says it costs.

Roofline, occupancy and wave quantisation: blocks share a multiprocessor as far as shared memory, threads and registers
let them; a wave of them takes as long as the slowest of its arithmetic, its device memory and its shared memory. It
ranks configurations; nobody should read its microseconds as a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from .device import Device

_REGISTERS = 65536
_THREADS = 2048
_BLOCKS = 32
_LAUNCH_SECONDS = 2.5e-6
_BLOCK_SECONDS = 0.7e-6  # until a block's first operands arrive, and from its last product to its last store
_SHARED_BYTES_PER_SECOND = 128 * 1.7e9  # of one multiprocessor: 128 bytes a clock
_LATENCY_SECONDS = 0.6e-6  # of device memory
_SHARE_OF_PEAK = 0.85  # what a long loop without stalls reaches, of memory and of arithmetic

# of a CPU: a NumPy call on a small array, and how many the loop around a body is worth; caches against memory
_CALL_SECONDS = 1.5e-6
_BODY_CALLS = 4
_CACHE_SPEEDUP = 4.0


@dataclass(frozen=True)
class Cost:
    """What one launch costs. All figures but ``blocks`` are of one block (a program, in Triton's words).

    Attributes:
        blocks: how many there are.
        flops: with whatever is computed and thrown away.
        unit: "half", "tf32", "fma" or "double".
        bytes: moved between device memory and the multiprocessor.
        shared_traffic: bytes read from shared memory by the arithmetic.
        steps: loads from device memory that wait for one another, behind what a pipeline hides.
        shared: bytes of shared memory held.
        threads: in the block.
        registers: a thread.
        extra_bytes, extra_launches: of further launches that the result needs (a sum of slabs).

    On a CPU a block is a call of a loop's body: ``bytes`` are those that its passes read and write, whether in cache or
    not, ``steps`` the NumPy calls in it, ``shared`` the bytes it comes back to, which should stay in the cache, and
    ``threads`` how many blocks run at once.
    """

    blocks: int
    flops: float
    unit: str
    bytes: float
    shared_traffic: float = 0.0
    steps: float = 0.0
    shared: int = 0
    threads: int = 128
    registers: int = 64
    extra_bytes: float = 0.0
    extra_launches: int = 0


def resident(cost: Cost, device: Device) -> int:
    """Blocks that fit on one multiprocessor at once; 0 if not even one does."""
    if cost.shared > device.shared_bytes:
        return 0
    by_shared = device.shared_bytes_each // (cost.shared + 1024)
    by_registers = _REGISTERS // (cost.registers * cost.threads)
    return min(_BLOCKS, by_shared, by_registers, _THREADS // cost.threads)


def seconds(cost: Cost, device: Device) -> float:
    """The predicted time of the launch; infinite where it cannot run."""
    if device.arch == "cpu":
        return _on_cpu(cost, device)
    beside = resident(cost, device)
    if beside == 0:
        return float("inf")
    places = device.multiprocessors * beside
    full_waves, rest = divmod(cost.blocks, places)
    time = full_waves * _wave(cost, device, beside, places)
    if rest:
        time += _wave(cost, device, ceil(rest / device.multiprocessors), rest)
    extra = cost.extra_bytes / (device.bytes_per_second * _SHARE_OF_PEAK) + cost.extra_launches * _LAUNCH_SECONDS
    return time + extra + _LAUNCH_SECONDS


def _on_cpu(cost: Cost, device: Device) -> float:
    """Calls wait for one another (the interpreter's lock); their arithmetic and their memory traffic do not."""
    threads = max(1, min(cost.threads, device.multiprocessors, cost.blocks))
    rounds = ceil(cost.blocks / threads)
    calls = (cost.blocks * (_BODY_CALLS + cost.steps) + cost.extra_launches) * _CALL_SECONDS
    arithmetic = rounds * cost.flops * device.multiprocessors / device.flops(cost.unit)
    missing = 0.0 if cost.shared <= device.shared_bytes else 1 - device.shared_bytes / cost.shared
    traffic = rounds * cost.bytes * (missing + (1 - missing) / _CACHE_SPEEDUP)
    memory = traffic * device.multiprocessors / device.bytes_per_second
    extra = cost.extra_bytes / device.bytes_per_second
    return calls + arithmetic + memory + extra


def _wave(cost: Cost, device: Device, beside: int, blocks: int) -> float:
    arithmetic = beside * cost.flops / (device.flops(cost.unit) / device.multiprocessors)
    shared = beside * cost.shared_traffic / _SHARED_BYTES_PER_SECOND
    # few blocks cannot draw all of the bandwidth: about a hundredth each, whatever they are
    share = min(1.0, blocks / (0.75 * device.multiprocessors))
    memory = blocks * cost.bytes / (device.bytes_per_second * share)
    waiting = cost.steps * _LATENCY_SECONDS
    return max(max(arithmetic, shared, memory) / _SHARE_OF_PEAK, waiting) + _BLOCK_SECONDS / beside
