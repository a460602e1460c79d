"""A ``Runtime`` of ``tilesmith.kernels._cuda`` that runs programs on CPU tensors, and Python under the sanitizers."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tilesmith.kernels._cuda import Compiled, Dim3, Program

from .build import library, runtime_library

ORDERS = ("forward", "backward", "shuffled")
_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)


class _Parameter(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_int), ("kind", ctypes.c_char))


class _Entry(ctypes.Structure):
    _fields_ = (
        ("invoke", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("parameters", ctypes.POINTER(_Parameter)),
        ("max_threads", ctypes.c_int),
        ("sections", ctypes.c_int),
        ("shared", ctypes.c_void_p),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
        ("shared", ctypes.c_int),
        ("order", ctypes.c_int),
        ("cooperative", ctypes.c_int),
    )


@dataclass(frozen=True)
class HostRuntime:
    """Runs programs on the CPU.

    Attributes:
        order: which of the threads that can go on runs next: ``"forward"`` the first, ``"backward"`` the last,
            ``"shuffled"`` one of a permutation with a fixed seed that changes at every barrier. The same for blocks.
        sanitize: whether accesses are checked; only inside ``run_sanitized``.
    """

    order: str = "forward"
    sanitize: bool = False

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order is {self.order!r}; it is one of {ORDERS}")

    def compiled(self, program: Program) -> Compiled:
        """A function that launches the program and returns when it has ended.

        Raises:
            CompileError: g++ refuses it.
        """
        if self.sanitize and "libasan" not in os.environ.get("LD_PRELOAD", ""):
            raise RuntimeError("sanitize=True needs a process that run_sanitized started")
        loaded = _loaded(program, self.sanitize)
        order = ORDERS.index(self.order)

        def run(grid: Dim3, block: Dim3, args: tuple[Any, ...], shared: int) -> None:
            loaded.run(grid, block, args, shared, order)

        return run


class _Loaded:
    """A program's shared object in this process."""

    def __init__(self, program: Program, sanitize: bool) -> None:
        self.program = program
        self._path = library(program, sanitize)
        self._run = ctypes.CDLL(str(runtime_library(sanitize))).tilesmith_run
        self._library: ctypes.CDLL | None = None

    def run(self, grid: Dim3, block: Dim3, args: tuple[Any, ...], shared: int, order: int) -> None:
        name = self.program.name
        if not (all(1 <= n <= most for n, most in zip(grid, _MAX_GRID, strict=True))):
            raise RuntimeError(f"{name}: a grid of {grid}; a GPU allows {_MAX_GRID}")
        if not all(1 <= n <= most for n, most in zip(block, _MAX_BLOCK, strict=True)) or np.prod(block) > 1024:
            raise RuntimeError(f"{name}: a block of {block}; a GPU allows {_MAX_BLOCK} and 1024 threads")
        with _LOCK:
            if self._library is None:
                self._library = ctypes.CDLL(str(self._path))
            entry = _Entry.in_dll(self._library, "tilesmith_entry")
            values = _values(name, args, [entry.parameters[i] for i in range(entry.count)])
            pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(value) for value in values))
            launch = _Launch(grid, block, pointers, shared, order, self.program.cooperative)
            message = ctypes.create_string_buffer(4096)
            if self._run(ctypes.byref(entry), ctypes.byref(launch), message, len(message)):
                self._forget()
                raise RuntimeError(f"{self.program.source.name}: {name}: {message.value.decode(errors='replace')}")

    def _forget(self) -> None:
        """Unloads the program after an error, which may have left its global variables half written."""
        assert self._library is not None
        _ctypes.dlclose(self._library._handle)
        self._library = None


_LOCK = threading.RLock()  # the runtime has one set of fibers
_programs: dict[tuple[Program, bool], _Loaded] = {}


def _loaded(program: Program, sanitize: bool) -> _Loaded:
    with _LOCK:
        key = (program, sanitize)
        if key not in _programs:
            _programs[key] = _Loaded(program, sanitize)
        return _programs[key]


def _values(name: str, args: Sequence[Any], parameters: Sequence[_Parameter]) -> list[ctypes.Array[ctypes.c_char]]:
    """Each argument's bytes, which must fit the parameter that the compiler saw."""
    if len(args) != len(parameters):
        raise RuntimeError(f"{name} has {len(parameters)} parameters; {len(args)} arguments were given")
    values = []
    for i, (arg, parameter) in enumerate(zip(args, parameters, strict=True)):
        kind = parameter.kind.decode()
        if isinstance(arg, torch.Tensor):
            if arg.device.type != "cpu":
                raise RuntimeError(f"{name}: argument {i} is on {arg.device}; the host run takes CPU tensors")
            data, fits = np.uint64(arg.data_ptr()).tobytes(), kind == "p"
        elif arg is None:
            data, fits = bytes(8), kind == "p"
        elif isinstance(arg, np.generic):
            data = arg.tobytes()
            fits = len(data) == parameter.bytes and (kind in "sp" or (kind == "f") == (arg.dtype.kind == "f"))
        else:
            raise RuntimeError(
                f"{name}: argument {i} is a {type(arg).__name__}; tensors, None and NumPy scalars are passed"
            )
        if not fits:
            given = f"a {arg.dtype} scalar" if isinstance(arg, np.generic) else "a pointer"
            wanted = {"p": "pointer", "f": "floating-point number", "i": "integer", "s": "struct"}[kind]
            raise RuntimeError(
                f"{name}: argument {i} is {given}; the parameter is a {wanted} of {parameter.bytes} bytes"
            )
        values.append(ctypes.create_string_buffer(data, max(16, len(data))))
    return values


def _sanitizer_libraries() -> list[Path]:
    """The libraries to load before Python's own: AddressSanitizer and what it has to find when it starts."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = (
        subprocess.run(("g++", f"-print-file-name={n}"), capture_output=True, text=True).stdout.strip() for n in names
    )
    return [Path(path).resolve() for path in found if Path(path).is_absolute()]


def sanitizer_missing() -> str | None:
    """Why ``run_sanitized`` cannot work here, or ``None``."""
    return None if len(_sanitizer_libraries()) == 3 else "g++ has no libasan.so and libubsan.so here"


def run_sanitized(args: Sequence[str], timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments under AddressSanitizer, which then sees where each tensor's memory ends.

    The first error ends the process with a report on stderr. It starts in the root of the
    repository. ``HostRuntime(sanitize=True)`` works only in there.
    """
    options = "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1"
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(map(str, _sanitizer_libraries())),
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    command, root = (sys.executable, *args), Path(__file__).parents[2]
    return subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, timeout=timeout, check=False
    )
