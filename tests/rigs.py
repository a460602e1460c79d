"""The GPU backends, run where there is no GPU: Triton's interpreter, and CUDA C++ on the host. With one, for real."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tilesmith import autotune, kernels
from tilesmith.kernels import _cuda, _triton_tensors
from tilesmith.kernels.backends import Operation

from . import interpreter
from .harness import Case, assert_within, gradients


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
        if self.backend == "triton" and self.device == "cpu":
            interpreter.quicken()
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


def check(case: Case, rig: Rig, dtype: torch.dtype, layout: str, **bound: Any) -> None:
    tensors = rig.place(case.inputs(dtype, layout))
    y, grads = gradients(lambda *t: case.ours(*t), tensors)
    wide = [None if t is None else t.detach().cpu().double().requires_grad_() for t in tensors]
    y_oracle, grads_oracle = gradients(case.theirs, wide)
    compare(case, y, y_oracle, dtype, "output", **bound)
    for position, (grad, oracle) in enumerate(zip(grads, grads_oracle, strict=True)):
        if oracle is not None:
            compare(case, grad, oracle, dtype, f"gradient {position}", **bound)


def compare(
    case: Case, actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, what: str, eps: float = 0.0
) -> None:
    """:func:`assert_within`; with ``eps``, operands were rounded to that before they were multiplied."""
    scale = case.gradient_scale if what != "output" else 0.0
    if not eps:
        assert_within(actual.cpu(), expected, dtype, case.reduction, what, scale, case.half_roundings)
        return
    error = (actual.cpu().double() - expected).abs().amax().item() if expected.numel() else 0.0
    size = max(scale, expected.abs().amax().item()) if expected.numel() else 1.0
    assert error <= eps * (8 + 2 * math.sqrt(case.reduction)) * size, f"{what}: error {error:.3g} of {size:.3g}"


def limit_launches(rig: Rig, operation: Operation, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a backend count no further than that, in pixels and in offsets of 32 bits."""
    if rig.backend == "triton":
        monkeypatch.setattr(_triton_tensors, "LIMIT", elements)
        return
    module = operation.named(rig.backend)
    names = [name for name in ("_PIXELS", "_OFFSETS") if hasattr(module, name)]
    assert names
    for name in names:
        monkeypatch.setattr(module, name, elements)


def each_configuration_runs(rig: Rig) -> Iterator[None]:
    """Once as it is, and for softmax once more with slices cut into blocks that are as small as can be."""
    yield
    small = {
        "triton": {"triton.softmax.rows": {"ELEMENTS": 1024, "BLOCKS": 2, "num_warps": 2}},
        "cupy": {"cupy.softmax.rows": {"THREADS": 128, "UNITS": 1, "CACHED": 0, "BLOCKS": 2}},
    }.get(rig.backend, {})
    for name, config in small.items():
        with autotune.pin(name, config):
            yield


def each_configuration(
    rig: Rig, case: Case, dtype: torch.dtype, layout: str, warps: int | None = None
) -> dict[str, int]:
    """Checks a case with every configuration of every kernel it uses, on an emulator with two of each.

    Args:
        warps: only those with so many.

    Returns:
        How many were tried, by the tunable's name.
    """
    tensors = rig.place(case.inputs(dtype, layout))
    wide = [None if t is None else t.detach().cpu().double().requires_grad_() for t in tensors]
    y_oracle, grads_oracle = gradients(case.theirs, wide)
    asked: dict[str, tuple[autotune.Tunable, Any]] = {}
    resolve = autotune.resolve

    def note(tunable: autotune.Tunable, problem: Any) -> Any:
        asked[tunable.name] = (tunable, problem)
        return resolve(tunable, problem)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "resolve", note)
        gradients(case.ours, tensors)
    tried: dict[str, int] = {}
    for tunable, problem in asked.values():
        chosen = [c for c in tunable.configs(problem) if warps is None or _warps(c) == warps]
        for config in chosen if rig.device == "cuda" else chosen[:: max(1, len(chosen) // 2)][:2]:
            with autotune.pin(tunable.name, config):
                y, grads = gradients(case.ours, tensors)
            compare(case, y, y_oracle, dtype, f"output {tunable.name} {config}")
            for grad, oracle in zip(grads, grads_oracle, strict=True):
                if oracle is not None:
                    compare(case, grad, oracle, dtype, f"gradient {tunable.name} {config}")
            tried[tunable.name] = tried.get(tunable.name, 0) + 1
    return tried


def _warps(config: autotune.Config) -> int:
    names = {"num_warps": 1, "WARPS": 1, "THREADS": 32}
    return next(config[name] // threads for name, threads in names.items() if name in config)


# ---- what only the host run of CUDA C++ shows


_SANITIZED = """
import torch
from tests.cuda_host import HostRuntime
from tests.harness import gradients
from tilesmith import kernels
from tilesmith.kernels import _cuda

def run(case, dtype, layout):
    with kernels.backend("cupy"):
        gradients(case.ours, case.inputs(dtype, layout))

_cuda.emulator = HostRuntime(sanitize=True)
"""


def assert_clean_under_sanitizers(code: str, one_in: int = 1) -> None:
    """Runs it where ASan and UBSan watch the CUDA kernels: no access outside of a tensor or of shared memory, no
    overflow, no misaligned vector. The code has ``run(case, dtype, layout)``, and ``some(cases)`` for those that a run
    which takes samples takes."""
    from .cuda_host import run_sanitized, sanitizer_missing

    if reason := sanitizer_missing():
        pytest.skip(reason)
    some = f"some = lambda cases: list(cases)[::{one_in}]\n"
    done = run_sanitized(["-c", f"{_SANITIZED}{some}{textwrap.dedent(code)}\nprint('all of them')"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "all of them"


def assert_order_changes_no_bit(results: Callable[[str], Sequence[torch.Tensor | None]]) -> None:
    """A missing barrier shows as a difference between orders of the fibers; ``results`` of one of them."""
    first, *others = (results(order) for order in ("forward", "backward", "shuffled"))
    for other in others:
        assert all(a is None or b is None or torch.equal(a, b) for a, b in zip(first, other, strict=True))


def assert_case_keeps_its_bits(case: Case, dtype: torch.dtype, layout: str, precision: str = "ieee") -> None:
    """:func:`assert_order_changes_no_bit` of a case's output and gradients."""

    def results(order: str) -> list[torch.Tensor | None]:
        with Rig("cupy", order=order).running():
            kernels.set_float32_precision(precision)
            y, grads = gradients(case.ours, case.inputs(dtype, layout))
        return [y, *grads]

    assert_order_changes_no_bit(results)
