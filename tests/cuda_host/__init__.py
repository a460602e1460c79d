"""Runs CUDA C++ kernels on the CPU: g++ compiles them, and each CUDA thread is a fiber.

``HostRuntime`` takes the place of CuPy: put one into ``tilesmith.kernels._cuda.emulator``. The order in which threads
run is part of a run: what two orders disagree on lacks a barrier. Shared memory starts as NaN, threads that wait for
each other in vain are an error, and ``sanitize`` has AddressSanitizer and UndefinedBehaviorSanitizer watch accesses.
"""

from .build import CompileError
from .runtime import ORDERS, HostRuntime, run_sanitized, sanitizer_missing

__all__ = ["ORDERS", "CompileError", "HostRuntime", "run_sanitized", "sanitizer_missing"]
