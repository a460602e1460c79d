"""Pooling, dense layers, activations and softmax on the GPU backends, against the float64 oracle and torch's CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tilesmith import autotune, kernels
from tilesmith.kernels import pool2d
from tilesmith.nn import functional
from torch.autograd import gradcheck, gradgradcheck

from .cases import ELEMENTWISE, LINEAR, POOL2D, SOFTMAX, _pool, linear_oracle
from .harness import LAYOUTS, Case, gradients, guarded_outputs, laid_out
from .rigs import (
    RIGS,
    Rig,
    assert_case_keeps_its_bits,
    assert_clean_under_sanitizers,
    check,
    each_configuration,
    limit_launches,
)

# What the small cases do not reach: several tiles a dimension, channels by the vector and channels that no vector
# divides, windows of more taps than a byte can name, rows longer than a block.
POOL2D_WIDE = [
    _pool("max_pool2d", (2, 40, 9, 10), 3, 2, 1),
    _pool("max_pool2d", (1, 17, 8, 16), 2),
    _pool("max_pool2d", (1, 16, 13, 12), 3, 2, 1, dilation=2),
    _pool("max_pool2d", (1, 2, 34, 40), 2),
    _pool("max_pool2d", (1, 3, 20, 21), 17, 2),
    _pool("max_pool2d", (1, 64, 7, 7), 3, 1, 1),
    _pool("avg_pool2d", (1, 40, 9, 10), 3, 1, 1),
    _pool("avg_pool2d", (2, 24, 8, 8), 2),
    _pool("avg_pool2d", (1, 3, 19, 33), (2, 5), (3, 2), (1, 1), ceil_mode=True),
    _pool("adaptive_max_pool2d", (1, 40, 12, 12), 3),
    _pool("adaptive_max_pool2d", (2, 19, 12, 11), (5, 7)),
    _pool("adaptive_max_pool2d", (1, 9, 20, 21), 1),
    _pool("adaptive_avg_pool2d", (1, 40, 12, 12), 3),
    _pool("adaptive_avg_pool2d", (2, 19, 12, 11), (5, 7)),
    _pool("adaptive_avg_pool2d", (1, 9, 33, 35), 1),
]
LINEAR_WIDE = [
    Case("linear", ((37, 40), (72, 40), (72,)), linear_oracle, 72, {"activation": "relu"}),
    Case("linear", ((130, 24), (20, 24), (20,)), linear_oracle, 130),
    Case("linear", ((2, 5, 33), (17, 33), None), linear_oracle, 33, {"activation": "tanh"}),
    Case("linear", ((3, 350), (1, 350), (1,)), linear_oracle, 350),
]
SOFTMAX_WIDE = [
    Case(op, (shape,), getattr(F, op), shape[dim], {"dim": dim})
    for op in ("softmax", "log_softmax")
    for shape, dim in (((3, 300), 1), ((2, 67, 9), 1), ((1, 2053), 1), ((33, 40), 0), ((70, 10), 1))
]
ELEMENTWISE_WIDE = [
    Case(op, ((2, 5, 21, 13),), getattr(F if op == "relu" else torch, op)) for op in ("relu", "sigmoid", "tanh")
]
WIDE = POOL2D_WIDE + LINEAR_WIDE + SOFTMAX_WIDE + ELEMENTWISE_WIDE
ALL = POOL2D + LINEAR + SOFTMAX + ELEMENTWISE + WIDE
NONEMPTY = [case for case in ALL if 0 not in case.shapes[0]]
WITH_STRIDES = [case for case in NONEMPTY if case.shapes[0]]

each_rig = pytest.mark.parametrize("rig", RIGS)


@pytest.fixture
def running(rig: Rig) -> Iterator[Rig]:
    with rig.running():
        yield rig


@each_rig
@pytest.mark.parametrize("case", ALL, ids=str)
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "channels_last"), (torch.bfloat16, "contiguous")], ids=str
)
def test_values_and_gradients(case: Case, running: Rig, dtype: torch.dtype, layout: str) -> None:
    check(case, running, dtype, layout)


@each_rig
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_the_other_dtypes_and_layouts(case: Case, running: Rig) -> None:
    even = WIDE.index(case) % 2 == 0
    check(case, running, torch.float64 if even else torch.float16, "contiguous" if even else "channels_last")
    check(case, running, torch.bfloat16 if even else torch.float32, "channels_last" if even else "contiguous")


@each_rig
@pytest.mark.parametrize("case", [*WITH_STRIDES[::5], *WIDE[::4]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[2:])
def test_any_strides(case: Case, running: Rig, layout: str) -> None:
    check(case, running, torch.float32, layout)


@each_rig
@pytest.mark.parametrize("case", [c for c in NONEMPTY if len(c.shapes[0]) == 4 and "pool" in c.op][::2], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_follows_torch(case: Case, running: Rig, layout: str) -> None:
    tensors = running.place(case.inputs(torch.float32, layout))
    y = case.ours(*tensors)
    (dx,) = torch.autograd.grad(y.sum(), tensors[:1])
    assert y.stride() == case.theirs(*tensors).stride()
    assert dx.stride() == tensors[0].stride()


@each_rig
@pytest.mark.parametrize(
    "case", [POOL2D[2], POOL2D[12], POOL2D[22], POOL2D[28], LINEAR[2], SOFTMAX[0], SOFTMAX[7], ELEMENTWISE[4]], ids=str
)
def test_gradcheck(case: Case, running: Rig) -> None:
    present = [t for t in running.place(case.inputs(seed=3)) if t is not None]
    assert gradcheck(case.ours, present, fast_mode=True)
    assert gradgradcheck(case.ours, present, fast_mode=True)


SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@each_rig
@pytest.mark.parametrize("case", [*NONEMPTY[::3], *WIDE[::3]], ids=str)
@pytest.mark.parametrize("special", SPECIAL)
def test_special_values_spread_as_in_torch(case: Case, running: Rig, special: str) -> None:
    tensors = case.inputs(torch.float64)
    with torch.no_grad():
        tensors[0].view(-1)[tensors[0].numel() // 2] = SPECIAL[special]
    y_oracle, grads_oracle = gradients(case.theirs, tensors)
    y, grads = gradients(case.ours, running.place(tensors))
    torch.testing.assert_close(y.cpu(), y_oracle, equal_nan=True, rtol=1e-9, atol=1e-9)
    for grad, oracle in zip(grads, grads_oracle, strict=True):
        if oracle is not None:
            torch.testing.assert_close(grad.cpu(), oracle, equal_nan=True, rtol=1e-7, atol=1e-9)


@each_rig
@pytest.mark.parametrize("case", NONEMPTY[::4], ids=str)
def test_two_runs_are_bitwise_equal(case: Case, running: Rig) -> None:
    first, second = (gradients(case.ours, running.place(case.inputs(torch.bfloat16))) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(a is None or torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@each_rig
@pytest.mark.parametrize("case", [*WITH_STRIDES[::4], *WIDE[1::3]], ids=str)
@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_nothing_outside_is_read_or_written(
    case: Case, running: Rig, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs lie among NaNs, outputs start as NaN between canaries."""
    with guarded_outputs(monkeypatch) as checks:
        check(case, running, torch.float32, layout)
        assert checks
        for outside in checks:
            outside()


@each_rig
@pytest.mark.parametrize("case", [*POOL2D_WIDE[:2], *POOL2D_WIDE[6:8], *POOL2D_WIDE[9:14:2]], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_batches_that_a_launch_cannot_count(
    case: Case, running: Rig, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past 2^31 pixels images are cut into launches, past 2^31 elements offsets are 64-bit: here from far fewer on."""
    height, width = case.shapes[0][-2:]
    limit_launches(running, pool2d.OPERATION, (height + 2) * (width + 2) + 1, monkeypatch)
    check(case, running, torch.float32, layout)


@each_rig
@pytest.mark.parametrize("case", [c for c in POOL2D + POOL2D_WIDE if "max" in c.op and c.shapes[0][0]], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("values", ["ties", "-inf", "nan"])
def test_indices_are_torchs(case: Case, running: Rig, layout: str, values: str) -> None:
    """The first of equal maxima, the last of NaNs, the first element inside where nothing is greater than -inf."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(0, 3, case.shapes[0], generator=generator).float()
    if values != "ties":
        x[torch.rand(x.shape, generator=generator) < 0.6] = SPECIAL[values]
    (placed,) = running.place([laid_out(x, layout)])
    y, index = getattr(functional, case.op)(placed, **case.options, return_indices=True)
    y_torch, index_torch = getattr(F, case.op)(x, **case.options, return_indices=True)
    torch.testing.assert_close(y.cpu(), y_torch, rtol=0, atol=0, equal_nan=True)
    assert index.dtype is torch.int64
    assert torch.equal(index.cpu(), index_torch)


@each_rig
@pytest.mark.parametrize("case", [POOL2D[0], POOL2D[2], POOL2D[4], POOL2D[21], POOL2D[22], POOL2D[23]], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_ties_go_where_torch_sends_them(case: Case, running: Rig, layout: str) -> None:
    """From a byte a window, and from torch's index."""
    x = laid_out(torch.randint(0, 2, case.shapes[0], generator=torch.Generator().manual_seed(6)).float(), layout)
    _, (expected,) = gradients(case.theirs, [x.clone().requires_grad_()])
    for more in ({}, {"return_indices": True}):
        tensors = running.place([x.clone(memory_format=torch.preserve_format).requires_grad_()])
        _, (dx,) = gradients(lambda t, more=more: getattr(functional, case.op)(t, **case.options, **more), tensors)
        torch.testing.assert_close(dx.cpu(), expected)


@each_rig
@pytest.mark.parametrize("mode", ["tf32", "tf32x3"])
@pytest.mark.parametrize("case", LINEAR_WIDE, ids=str)
def test_dense_layers_on_tensor_cores(case: Case, running: Rig, mode: str) -> None:
    kernels.set_float32_precision(mode)
    check(case, running, torch.float32, "contiguous", eps={"tf32": 2**-10, "tf32x3": 2**-20}[mode])


@each_rig
def test_dense_layers_follow_torchs_matmul_setting(running: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of convolutions. 1 + 2^-12 is 1 in TF32, but not in Triton's interpreter, which knows no precision."""
    kernels.set_float32_precision(None)
    backends: Any = torch.backends  # torch's stubs do not know these settings
    before = backends.cuda.matmul.fp32_precision
    x, w = running.place([torch.full((4, 16), 1 + 2**-12), torch.ones(16, 16)])
    exact = torch.full((4, 16), 16 * (1 + 2**-12))
    rounded = exact if running == Rig("triton") else torch.full((4, 16), 16.0)
    asked: list[str] = []
    resolve = autotune.resolve

    def note(tunable: autotune.Tunable, problem: Any) -> Any:
        asked.append(getattr(problem, "math", None) or problem.unit)
        return resolve(tunable, problem)

    monkeypatch.setattr(autotune, "resolve", note)
    try:
        for mode, unit, expected in (("ieee", "fma", exact), ("tf32", "tf32", rounded)):
            backends.cuda.matmul.fp32_precision = mode
            assert torch.equal(functional.linear(x, w).cpu(), expected)
            assert asked.pop() == unit
    finally:
        backends.cuda.matmul.fp32_precision = before


@each_rig
@pytest.mark.parametrize("case", [*POOL2D_WIDE[::2], LINEAR_WIDE[0], *SOFTMAX_WIDE[:4], ELEMENTWISE_WIDE[1]], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_configurations(case: Case, running: Rig, layout: str) -> None:
    """Every block size of every kernel on a GPU; two of each on the emulators."""
    assert each_configuration(running, case, torch.bfloat16, layout)


@each_rig
@pytest.mark.parametrize("case", [POOL2D[2], POOL2D[28], LINEAR[2], SOFTMAX[0], ELEMENTWISE[0]], ids=str)
def test_compiles(case: Case, running: Rig) -> None:
    tensors = running.place(case.inputs(torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), case.ours(*tensors), rtol=0, atol=0)


@pytest.mark.parametrize("case", [POOL2D_WIDE[0], POOL2D_WIDE[13], LINEAR_WIDE[0], SOFTMAX_WIDE[1]], ids=str)
def test_order_of_threads_does_not_matter(case: Case) -> None:
    for layout in ("contiguous", "channels_last"):
        assert_case_keeps_its_bits(case, torch.float32, layout)


def test_cuda_kernels_under_sanitizers(one_in: Callable[[str], int]) -> None:
    assert_clean_under_sanitizers(
        """
        from tests.test_backends_ops import WIDE
        for number, case in enumerate(some(WIDE)):
            for layout in ("channels_last", "contiguous"):
                run(case, torch.float32 if number % 2 else torch.bfloat16, layout)
    """,
        one_in("test_backends_ops.py"),
    )
