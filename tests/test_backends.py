"""The registry: automatic choice, explicit requests, and what a refusal says."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from tilesmith.kernels import BackendUnavailable, available, backend, backends, reason_unavailable
from tilesmith.nn import functional as F


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_numpy_is_available() -> None:
    assert "numpy" in available()
    assert reason_unavailable("numpy") is None


def test_an_explicit_request_is_served() -> None:
    with backend("numpy"):
        assert backends.requested() == "numpy"
        F.relu(torch.ones(2))
    assert backends.requested() is None


def test_an_unknown_backend_is_named_with_those_there_are() -> None:
    words = "backend 'cudnn' is unknown: it must be one of 'triton', 'cupy', 'numpy'"
    with pytest.raises(ValueError, match=words), backend("cudnn"):
        pass


@pytest.mark.parametrize(("name", "install"), [("cupy", r"tilesmith\[cuda13\]"), ("triton", "pip install triton")])
def test_a_missing_backend_says_what_to_install(name: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda package: None)
    reason_unavailable.cache_clear()
    try:
        with pytest.raises(BackendUnavailable, match=f"{name}.*not installed.*{install}"), backend(name):
            pass
        assert name not in available()
    finally:
        reason_unavailable.cache_clear()


def test_a_backend_without_a_kernel_refuses_and_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "reason_unavailable", lambda name: None)
    operation = backends.Operation("relu", __name__, {"numpy": ".nothing"})
    with backend("triton"), pytest.raises(BackendUnavailable, match=r"'triton' was asked for.*no kernel for relu"):
        operation.implementation("cpu")


def test_no_backend_for_a_device_says_why_for_each() -> None:
    operation = backends.Operation("relu", __name__, {"numpy": ".nothing"})
    with pytest.raises(BackendUnavailable, match=r"relu on cuda: no backend can serve this.*'numpy' takes cpu tensors"):
        operation.implementation("cuda")
    assert not operation.serves("cuda")
    assert operation.serves("cpu")


def test_a_request_belongs_to_its_thread() -> None:
    seen: list[str | None] = []
    with backend("numpy"):
        thread = threading.Thread(target=lambda: seen.append(backends.requested()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_the_environment_asks_for_a_whole_process() -> None:
    code = "\n".join(
        [
            "import torch",
            "from tilesmith.kernels import backends",
            "from tilesmith.nn import functional",
            "functional.relu(torch.ones(1))",
            "print(backends.requested())",
        ]
    )
    assert run_python(code, TILESMITH_BACKEND="numpy").stdout.strip() == "numpy"
    wrong = run_python(code, TILESMITH_BACKEND="cudnn")
    assert wrong.returncode != 0
    assert "backend 'cudnn' is unknown" in wrong.stderr
