"""How CUDA C++ kernels are compiled and launched: a source file, a kernel's name in it, macros, a grid.

CuPy compiles with NVRTC for the device at hand and launches on torch's current stream. Nothing is compiled at import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ._recording import recorded

Dim3 = tuple[int, int, int]
Compiled = Callable[[Dim3, Dim3, tuple[Any, ...], int], None]  # grid, block, arguments, bytes of dynamic shared memory

# What a kernel's macro ELEMENT is for a tensor's dtype.
ELEMENTS = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}
INCLUDE = Path(__file__).parent  # where kernels find this library's own headers


@dataclass(frozen=True)
class Program:
    """One kernel of one source file with its macros: what is compiled once.

    Attributes:
        source: the ``.cu`` file.
        name: of the ``extern "C" __global__`` function.
        macros: name and value of each ``-D`` option, sorted by name.
        cooperative: whether it contains a grid-wide barrier.
    """

    source: Path
    name: str
    macros: tuple[tuple[str, str], ...]
    cooperative: bool = False


class Runtime(Protocol):
    """What runs a program on the tensors of one kind of device."""

    def compiled(self, program: Program) -> Compiled: ...


@dataclass
class Launch:
    """One launch as it was asked for. Arguments are tensors, ``None`` and NumPy scalars."""

    program: Program
    grid: Dim3
    block: Dim3
    args: tuple[Any, ...]
    shared: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)


# Tests put a runtime here that runs programs on CPU tensors.
emulator: Runtime | None = None


def launch(
    source: Path,
    name: str,
    macros: Mapping[str, int | str],
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared: int = 0,
    cooperative: bool = False,
    **notes: Any,
) -> None:
    """Compiles the kernel if need be and launches it on the current stream.

    Args:
        args: tensors (their first element's address is passed), ``None`` (a null pointer) and NumPy scalars (by value).
        shared: bytes of dynamic shared memory.
        notes: what a recorded launch should be known by; not passed on.

    Raises:
        RuntimeError: the kernel does not compile; the message holds the compiler's.
    """
    macro_items = tuple(sorted((key, str(value)) for key, value in macros.items()))
    program = Program(source, name, macro_items, cooperative)
    x, y, z = (*grid, 1, 1)[:3]
    threads, rows, planes = (*block, 1, 1)[:3]
    launches = recorded()
    if launches is not None:
        launches.append(Launch(program, (x, y, z), (threads, rows, planes), tuple(args), shared, notes))
        return
    if emulator is not None and args[0].device.type == "cpu":
        emulator.compiled(program)((x, y, z), (threads, rows, planes), tuple(args), shared)
        return
    _CUPY.compiled(program)((x, y, z), (threads, rows, planes), tuple(args), shared)


def include_directories() -> list[Path]:
    """Where the CUDA headers are: a toolkit's, or those of the pip packages that torch's CUDA builds bring."""
    candidates = [Path(os.environ[name]) / "include" for name in ("CUDA_PATH", "CUDA_HOME") if name in os.environ]
    spec = find_spec("nvidia")
    for root in spec.submodule_search_locations if spec and spec.submodule_search_locations else ():
        candidates += [Path(root) / part / "include" for part in ("cu13", "cuda_runtime")]
    candidates.append(Path("/usr/local/cuda/include"))
    return [directory for directory in candidates if (directory / "cuda_fp16.h").exists()][:1]


def options(program: Program) -> tuple[str, ...]:
    """NVRTC's options for a program, without the architecture."""
    directories = [INCLUDE, *include_directories()]
    return (
        "--std=c++17",
        *(f"-I{directory}" for directory in directories),
        *(f"-D{name}={value}" for name, value in program.macros),
    )


class _CupyRuntime:
    """Compiles through CuPy, which keeps the machine code in a cache of its own on disk."""

    def compiled(self, program: Program) -> Compiled:
        return self._compiled(program, torch.cuda.current_device())

    @cache  # noqa: B019 - there is one runtime for the life of the process
    def _compiled(self, program: Program, device: int) -> Compiled:
        import cupy

        module = cupy.RawModule(
            code=program.source.read_text(encoding="utf-8"),
            options=options(program),
            enable_cooperative_groups=program.cooperative,
        )
        try:
            kernel = module.get_function(program.name)
        except cupy.cuda.compiler.CompileException as error:
            macros = " ".join(f"{name}={value}" for name, value in program.macros)
            card = torch.cuda.get_device_name(device)
            raise RuntimeError(
                f"{program.source.name}: {program.name} ({macros}) does not compile for {card} with CuPy "
                f"{cupy.__version__}; it needs NVRTC and the CUDA headers (pip install nvidia-cuda-nvrtc "
                f"nvidia-cuda-runtime): {error}"
            ) from error
        largest = 0

        def run(grid: Dim3, block: Dim3, args: tuple[Any, ...], shared: int) -> None:
            nonlocal largest
            if shared > max(largest, 48 * 1024):
                kernel.max_dynamic_shared_size_bytes = largest = shared
            addresses = tuple(
                np.uint64(a.data_ptr()) if isinstance(a, torch.Tensor) else np.uint64(0) if a is None else a
                for a in args
            )
            with cupy.cuda.Device(device), cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream):
                kernel(grid, block, addresses, shared_mem=shared)

        return run


_CUPY = _CupyRuntime()
