"""``tilesmith doctor``: what can run on this machine, what is missing, and what to install for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..kernels import _cuda, _precision, backends

_VARIABLES = re.compile(r"(TILESMITH|TRITON|CUPY|CUDA)_\w+|CXX|PYTORCH_NVML_BASED_CUDA_CHECK")
_TIMEOUT = 120.0  # seconds for one of the two tiny kernels
_INSTALL_TRITON = "pip install triton (Linux)"
_INSTALL_CUPY = "pip install 'tilesmith[cuda13]' (or 'tilesmith[cuda12]')"
_INSTALL_NVRTC = "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"


@dataclass(frozen=True)
class Finding:
    """One thing that works here or does not.

    Attributes:
        what: it is for.
        found: versions, paths and names, in words.
        missing: why it does not work and what to do; "" where it does.
    """

    name: str
    what: str
    found: str
    missing: str = ""

    @property
    def works(self) -> bool:
        return not self.missing


@dataclass(frozen=True)
class Report:
    """Everything that the command tells."""

    rigs: list[Finding]
    backends: list[Finding]
    float32: dict[str, str]
    versions: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def doctor(
    require: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Exit with 1 unless all of these work: interpreter,host,triton,nvrtc,gpu."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say what can run on this machine: the rigs that test kernels without a GPU, the GPU, the backends."""
    wanted = [name.strip() for name in require.split(",") if name.strip()]
    for name in wanted:
        if name not in CHECKS:
            raise typer.BadParameter(f"--require: {name!r} is unknown, it must be one of {', '.join(CHECKS)}")
    report = examine()
    if as_json:
        print(json.dumps(_as_data(report), indent=2))
    else:
        _print(report)
    works = {finding.name for finding in report.rigs if finding.works}
    numpy = any(finding.name == "numpy" and finding.works for finding in report.backends)
    raise typer.Exit(0 if numpy and works.issuperset(wanted) else 1)


def examine() -> Report:
    """Looks at everything. Compiles two tiny kernels in processes of their own; no CUDA where there is no GPU."""
    return Report(
        [check() for check in CHECKS.values()],
        [_backend(name) for name in backends.BACKENDS],
        {
            "convolution": _precision.convolution_precision(),
            "matmul": torch.backends.cuda.matmul.fp32_precision,
            "rnn": torch.backends.cudnn.rnn.fp32_precision,  # type: ignore[attr-defined]
        },
        {name: found for name in ("tilesmith", "torch", "numpy", "triton") if (found := _version(name))}
        | {"python": ".".join(map(str, sys.version_info[:3]))},
        {name: value for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)},
    )


# ---- the four rigs, and the GPU that they stand in for


def _interpreter() -> Finding:
    what = "Triton kernels on the CPU (TRITON_INTERPRET=1)"
    if find_spec("triton") is None:
        return Finding("interpreter", what, "", f"triton is not installed: {_INSTALL_TRITON}")
    triton, numpy = _version("triton"), _version("numpy")
    found = f"triton {triton}, numpy {numpy}"
    if _numbers(triton) < (3, 7, 1) and _numbers(numpy) >= (2, 4):
        missing = f"the interpreter of triton {triton} needs numpy < 2.4: pip install 'numpy<2.4' or 'triton>=3.7.1'"
        return Finding("interpreter", what, found, missing)
    return Finding("interpreter", what, found)


def _host() -> Finding:
    what = "CUDA kernels on the CPU, a fiber a thread"
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        return Finding("host", what, "", "g++ is not found: apt-get install g++ (or set CXX to a C++17 compiler)")
    result = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    if result.returncode or not lines:
        return Finding("host", what, compiler, f"{compiler} --version does not run: {result.stderr.strip()[:200]}")
    return Finding("host", what, f"{compiler}, {lines[0].strip()}")


def _triton() -> Finding:
    what = "Triton kernels compiled for GPUs that are not here"
    if find_spec("triton") is None:
        return Finding("triton", what, "", f"triton is not installed: {_INSTALL_TRITON}")
    from ..kernels import _compile

    found = f"triton {_version('triton')}"
    absent = [name for name in ("ptxas", "nvdisasm") if _compile.tool(name) is None]
    if absent:
        missing = f"{' and '.join(absent)} are not in triton's folder: pip install --force-reinstall triton"
        return Finding("triton", what, found, missing)
    return _compiled("triton", what, f"{found}, {_compile.tool('ptxas')}", "launch_triton", (), _INSTALL_TRITON)


def _nvrtc() -> Finding:
    what = "CUDA kernels compiled for GPUs that are not here"
    if find_spec("cupy") is None:
        return Finding("nvrtc", what, "", f"cupy is not installed: {_INSTALL_CUPY}")
    found = next((f"{name} {v}" for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy") if (v := _version(name))), "cupy")
    nvrtc = next((v for name in ("", "-cu13", "-cu12") if (v := _version(f"nvidia-cuda-nvrtc{name}"))), None)
    found += f", nvrtc {nvrtc}" if nvrtc else ""
    headers = _cuda.include_directories()
    if not headers:
        return Finding("nvrtc", what, found, f"the CUDA headers are not found: {_INSTALL_NVRTC}, or set CUDA_PATH")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "tiny.cu"
        source.write_text(_TINY_CUDA)
        return _compiled("nvrtc", what, f"{found}, headers {headers[0]}", "launch_cuda", (source,), _INSTALL_NVRTC)


_TINY_CUDA = """\
#include <cuda_fp16.h>
extern "C" __global__ void twice(__half* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = __hadd(x[i], x[i]);
}
"""


def launch_triton() -> None:
    """One launch of a small kernel, for the rig to compile."""
    from ..kernels.activation import _triton

    x = torch.empty(4096, device="meta")
    _triton.forward("relu", x, torch.empty_like(x))


def launch_cuda(source: Path) -> None:
    """As :func:`launch_triton`, of a kernel in CUDA C++."""
    _cuda.launch(source, "twice", {}, (16,), (256,), (torch.empty(4096, dtype=torch.float16, device="meta"),))


def _compiled(name: str, what: str, found: str, function: str, arguments: tuple[Any, ...], install: str) -> Finding:
    """Compiles a tiny kernel for sm_90 in a process of its own, as the rig does."""
    from ..kernels import _compile

    call = _compile.Call(f"{__name__}:{function}", arguments, "sm_90")
    (result,) = _compile.compiled([(call, 0, None)], timeout=_TIMEOUT)
    if isinstance(result, _compile.Failure):
        return Finding(name, what, found, f"a tiny kernel does not compile: {result.reason} ({install})")
    return Finding(name, what, f"{found}; a tiny kernel takes {result.registers} registers on sm_90")


def _guarded() -> Finding:
    return Finding("guarded", "reads and writes outside of tensors", "needs torch only")


def _gpu() -> Finding:
    what = "the kernels themselves"
    cuda = torch.version.cuda
    if cuda is None:
        missing = "this torch is built without CUDA: see pytorch.org/get-started"
        return Finding("gpu", what, f"torch {torch.__version__}", missing)
    if not torch.cuda.is_available():
        return Finding(
            "gpu", what, f"torch {torch.__version__} for CUDA {cuda}", "no GPU, or no driver: try nvidia-smi"
        )
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{c.name} (sm_{c.major}{c.minor}, {c.multi_processor_count} multiprocessors)" for c in cards)
    driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()
    return Finding(
        "gpu", what, f"{names}; driver for CUDA {driver // 1000}.{driver % 1000 // 10}, torch for CUDA {cuda}"
    )


CHECKS: dict[str, Callable[[], Finding]] = {
    "interpreter": _interpreter,
    "host": _host,
    "triton": _triton,
    "nvrtc": _nvrtc,
    "guarded": _guarded,
    "gpu": _gpu,
}


# ---- backends


def _backend(name: str) -> Finding:
    backend = backends.BACKENDS[name]
    serves = [*backend.devices, *(["cpu (emulated)"] if backends.emulated(name) else [])]
    what = f"{' and '.join(serves)} tensors"
    missing = backends.reason_unavailable(name) or ""
    if name == "numpy" and not missing:
        missing = _numpy_fault()
    return Finding(name, what, backend.emulation, missing)


def _numpy_fault() -> str:
    """What is wrong with a convolution on the NumPy backend, which needs nothing but NumPy."""
    from ..nn import functional

    try:
        with backends.backend("numpy"):
            y = functional.conv2d(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3))
    except Exception as error:
        return f"a convolution fails: {type(error).__name__}: {error}"
    return "" if y.item() == 18 else f"a convolution of ones gives {y.item()}, not 18"


# ---- in words


def _version(package: str) -> str:
    """Of an installed package; "" without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def _as_data(report: Report) -> dict[str, Any]:
    def findings(those: Sequence[Finding]) -> dict[str, Any]:
        return {f.name: {"works": f.works} | {k: v for k, v in asdict(f).items() if k != "name"} for f in those}

    return asdict(report) | {"rigs": findings(report.rigs), "backends": findings(report.backends)}


def _print(report: Report) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "works", "for", "found, or what is missing"):
        table.add_column(column, overflow="fold")
    for title, findings in (("", report.rigs), ("backend ", report.backends)):
        for finding in findings:
            words = "; ".join(filter(None, (finding.missing, finding.found)))
            table.add_row(title + finding.name, "yes" if finding.works else "no", finding.what, words)
    for title, values in (
        ("versions", report.versions),
        ("float32", report.float32),
        ("environment", report.environment),
    ):
        table.add_row(title, "", "", ", ".join(f"{k} {v}" for k, v in values.items()) or "nothing set")
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, 200)  # a line each for whoever reads the pipe
    console.print(table)
