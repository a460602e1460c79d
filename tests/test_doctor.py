"""``tilesmith doctor``: what it tells, its exit codes, and machines where something is absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tilesmith import cli
from tilesmith.cli import doctor
from tilesmith.kernels import _compile, _cuda, backends
from typer.testing import CliRunner

RIGS = ["interpreter", "host", "triton", "nvrtc", "guarded", "gpu"]


@pytest.fixture(autouse=True)
def _fresh_look() -> Iterator[None]:
    """What is installed is remembered for the life of a process; a test that hides a package must not leave that."""
    backends.reason_unavailable.cache_clear()
    yield
    backends.reason_unavailable.cache_clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled: every tiny kernel is said to take 18 registers."""
    monkeypatch.setattr(_compile, "compiled", lambda wanted, **_: [_compile.Resources(18)] * len(wanted))


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.make_app(), ["doctor", *arguments])
    assert result.exit_code == code, result.output
    output: str = result.output
    return output


def told(code: int = 0, *arguments: str) -> Any:
    return json.loads(run("--json", *arguments, code=code))


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)


# ---- this machine


def test_everything_is_told_as_data() -> None:
    found = told()
    assert list(found) == ["rigs", "backends", "float32", "versions", "environment"]
    assert list(found["rigs"]) == RIGS
    assert list(found["backends"]) == list(backends.BACKENDS)
    for finding in [*found["rigs"].values(), *found["backends"].values()]:
        assert set(finding) == {"works", "what", "found", "missing"}
        assert finding["works"] == (finding["missing"] == "")
    assert found["versions"]["torch"] == torch.__version__
    assert found["float32"]["convolution"] in ("ieee", "tf32", "tf32x3")


def test_tiny_kernels_are_really_compiled() -> None:
    pytest.importorskip("triton")
    pytest.importorskip("cupy")
    for finding in (doctor._triton(), doctor._nvrtc()):
        assert finding.works, finding.missing
        assert "registers on sm_90" in finding.found


@pytest.mark.usefixtures("quick")
def test_the_table_has_a_line_for_each_finding() -> None:
    lines = run().splitlines()
    starts = [line.split("  ")[0].strip() for line in lines if not line.startswith(" ")]
    assert starts == [*RIGS, *(f"backend {name}" for name in backends.BACKENDS), "versions", "float32", "environment"]


@pytest.mark.usefixtures("quick")
def test_environment_variables_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILESMITH_BACKEND", "numpy")
    monkeypatch.setenv("CUDA_PATH", "/nowhere")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert told()["environment"].items() >= {"TILESMITH_BACKEND": "numpy", "CUDA_PATH": "/nowhere"}.items()
    assert not {"SECRET_TOKEN", "TRITON_INTERPRET"} & set(told()["environment"])
    assert not told()["backends"]["triton"]["what"].count("emulated")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert told()["backends"]["triton"]["what"] == "cuda and cpu (emulated) tensors"


def test_no_cuda_and_no_file_is_left(tmp_path: Path) -> None:
    code = (
        "import torch; from tilesmith.cli import doctor; doctor.examine(); "
        "print(torch.cuda.is_initialized() and not torch.cuda.is_available())"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.stdout.strip() == "False", result.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_triton_cupy_and_a_compiler(tmp_path: Path) -> None:
    """In a process that never had them: the NumPy backend is enough for exit code 0."""
    code = (
        "import sys; sys.modules['triton'] = sys.modules['cupy'] = None; "
        "sys.argv = ['tilesmith', 'doctor', '--json']; from tilesmith.cli import main; main()"
    )
    environment = {**os.environ, "PATH": str(tmp_path)}
    environment.pop("CXX", None)
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    works = [name for name, finding in found["rigs"].items() if finding["works"]]
    assert set(works) - {"gpu"} == {"guarded"}
    assert [name for name, finding in found["backends"].items() if finding["works"]] == ["numpy"]


# ---- exit codes


@pytest.mark.usefixtures("quick")
def test_require(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "triton")
    run("--require", "guarded")
    run("--require", "guarded,triton", code=1)
    run("--require", "interpreter", code=1)
    assert told(1, "--require", "triton")["rigs"]["triton"]["missing"]
    run("--require", " guarded, ")
    assert "'tirton' is unknown" in " ".join(run("--require", "tirton", code=2).replace("│", " ").split())


@pytest.mark.usefixtures("quick")
def test_a_broken_numpy_backend_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilesmith.nn import functional

    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("no BLAS")

    monkeypatch.setattr(functional, "conv2d", broken)
    assert "a convolution fails: RuntimeError: no BLAS" in run(code=1)
    monkeypatch.setattr(functional, "conv2d", lambda *_: torch.tensor(17.0))
    assert told(1)["backends"]["numpy"]["missing"] == "a convolution of ones gives 17.0, not 18"


# ---- other machines


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("package", "rigs", "install"),
    [
        ("triton", {"interpreter", "triton"}, "pip install triton"),
        ("cupy", {"nvrtc"}, "pip install 'tilesmith[cuda13]'"),
    ],
)
def test_without_a_package(package: str, rigs: set[str], install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, package)
    found = told()
    for name in rigs:
        assert f"{package} is not installed: {install}" in found["rigs"][name]["missing"]
    assert not found["backends"][package]["works"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [
        ("3.6.0", "2.3.5", True),
        ("3.6.0", "2.4.0", False),
        ("3.7.0", "2.4.6", False),
        ("3.7.1", "2.4.6", True),
        ("3.9.0", "2.5.0", True),
        ("3.6.0+git1234", "2.4.0rc1", False),
    ],
)
def test_interpreter_and_numpy(triton: str, numpy: str, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(doctor, "_version", {"triton": triton, "numpy": numpy}.get)
    finding = doctor._interpreter()
    assert finding.works == works
    assert works or "pip install 'numpy<2.4'" in finding.missing


@pytest.mark.usefixtures("quick")
def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "g++ is not found" in doctor._host().missing
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho no libstdc++ >&2\nexit 1\n")
    broken.chmod(0o755)
    assert "does not run" in doctor._host().missing


@pytest.mark.usefixtures("quick")
def test_without_headers_and_without_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    pytest.importorskip("cupy")
    monkeypatch.setattr(_cuda, "include_directories", lambda: [])
    monkeypatch.setattr(_compile, "tool", lambda name: None)
    assert "the CUDA headers are not found: pip install nvidia-cuda-nvrtc" in doctor._nvrtc().missing
    assert "ptxas and nvdisasm are not in triton's folder" in doctor._triton().missing


def test_a_compiler_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(_compile, "compiled", lambda wanted, **_: [_compile.Failure("libnvrtc.so.13 is not found")])
    assert (
        doctor._triton().missing
        == f"a tiny kernel does not compile: libnvrtc.so.13 is not found ({doctor._INSTALL_TRITON})"
    )


@pytest.mark.usefixtures("quick")
def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor._gpu().missing == "no GPU, or no driver: try nvidia-smi"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: card)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13010, raising=False)
    finding = doctor._gpu()
    assert finding.works
    assert "NVIDIA H100 (sm_90, 132 multiprocessors); driver for CUDA 13.1" in finding.found
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in doctor._gpu().missing
