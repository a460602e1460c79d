"""Convolution, activation and 2x2 pooling in one pass, on every backend: against the layers one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tilesmith.nn as ours
import torch
import torch.nn.functional as F
from tilesmith import kernels
from tilesmith.kernels import conv_pool2d
from tilesmith.nn import functional
from torch.autograd import gradcheck, gradgradcheck

from .cases import CONV_POOL2D, conv_pool
from .harness import LAYOUTS, Case, assert_spreads_alike, gradients, guarded_outputs
from .rigs import (
    RIGS,
    Rig,
    assert_case_keeps_its_bits,
    assert_clean_under_sanitizers,
    check,
    compare,
    each_configuration,
    limit_launches,
)

CASES = [
    *CONV_POOL2D,
    conv_pool((2, 24, 7, 9), (20, 24, 3, 3), padding=1, activation="sigmoid"),
    conv_pool((1, 32, 9, 7), (33, 32, 3, 3), stride=2, padding=1, activation=None),
    conv_pool((1, 16, 8, 8), (24, 16, 2, 2), stride=2, pool="avg"),
    conv_pool((2, 8, 7, 6), (8, 2, 3, 3), groups=4, padding=1),
    conv_pool((1, 5, 8, 9), (5, 1, 3, 3), groups=5, pool="avg"),
    conv_pool((1, 18, 5, 14), (36, 18, 3, 3), padding=1),
]
DENSE, DEPTHWISE, LARGE = CASES[8], CASES[12], CASES[13]
NONEMPTY = [case for case in CASES if case.shapes[0][0]]

each_rig = pytest.mark.parametrize("rig", RIGS)


@pytest.fixture
def running(rig: Rig) -> Iterator[Rig]:
    with rig.running():
        yield rig


@each_rig
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "channels_last"), (torch.float64, "contiguous")], ids=str
)
def test_values_and_gradients(case: Case, running: Rig, dtype: torch.dtype, layout: str) -> None:
    check(case, running, dtype, layout)


@each_rig
@pytest.mark.parametrize("case", NONEMPTY[:6] + NONEMPTY[7:12], ids=str)
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.bfloat16, "channels_last"), (torch.float16, "contiguous")], ids=str
)
def test_half_types_are_those_of_the_layers_bit_for_bit(
    case: Case, running: Rig, dtype: torch.dtype, layout: str
) -> None:
    """What is pooled has been rounded, so even ties go where they go when the layers run one after another."""
    tensors = running.place(case.inputs(dtype, layout))
    options = {k: v for k, v in case.options.items() if k != "pool"}

    def layers(*t: Any) -> torch.Tensor:
        z = functional.conv2d(*t, **options)
        return F.max_pool2d(z, 2) if case.options.get("pool", "max") == "max" else F.avg_pool2d(z, 2)

    y, grads = gradients(case.ours, tensors)
    y_layers, grads_layers = gradients(layers, tensors)
    assert torch.equal(y, y_layers)
    for grad, expected in zip(grads, grads_layers, strict=True):
        if expected is not None:
            compare(case, grad, expected.cpu().double(), dtype, "gradient")


@each_rig
@pytest.mark.parametrize("case", NONEMPTY[::3], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[2:])
def test_any_strides(case: Case, running: Rig, layout: str) -> None:
    check(case, running, torch.float32, layout)


@each_rig
@pytest.mark.parametrize(("mode", "eps"), [("tf32", 2**-10), ("tf32x3", 2**-20)])
@pytest.mark.parametrize("case", [DENSE, CASES[9], CASES[3]], ids=str)
def test_float32_on_tensor_cores(case: Case, running: Rig, mode: str, eps: float) -> None:
    """Values only: with operands rounded another tap may win, and takes the gradient."""
    kernels.set_float32_precision(mode)
    with torch.no_grad():
        tensors = case.inputs(torch.float32, "channels_last")
        y = case.ours(*running.place(tensors))
        compare(
            case, y, case.theirs(*(None if t is None else t.double() for t in tensors)), torch.float32, "output", eps
        )


@each_rig
@pytest.mark.parametrize("case", [c for c in NONEMPTY if len(c.shapes[0]) == 4], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_follows_torch(case: Case, running: Rig, layout: str) -> None:
    tensors = running.place(case.inputs(torch.float32, layout))
    y = case.ours(*tensors)
    (dx,) = torch.autograd.grad(y.sum(), tensors[:1])
    assert y.stride() == case.theirs(*tensors).stride()
    assert dx.stride() == tensors[0].stride()


@each_rig
@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[4], CASES[5], CASES[11], DEPTHWISE], ids=str)
def test_gradcheck(case: Case, running: Rig) -> None:
    present = [t for t in running.place(case.inputs(seed=3)) if t is not None]

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        rest = iter(tensors)
        y: torch.Tensor = case.ours(*(None if shape is None else next(rest) for shape in case.shapes))
        return y

    assert gradcheck(call, present, fast_mode=True)
    assert gradgradcheck(call, present, fast_mode=True)


@each_rig
@pytest.mark.parametrize("case", [CASES[0], DENSE, CASES[3], CASES[4], CASES[5], DEPTHWISE], ids=str)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf], ids=str)
def test_special_values_spread_as_in_torch(case: Case, running: Rig, special: float) -> None:
    tensors = case.inputs(torch.float64)
    with torch.no_grad():
        tensors[0].view(-1)[tensors[0].numel() // 2] = special
    y_oracle, grads_oracle = gradients(case.theirs, tensors)
    y, grads = gradients(case.ours, running.place(tensors))
    torch.testing.assert_close(y.cpu(), y_oracle, equal_nan=True, rtol=1e-9, atol=1e-9)
    for grad, expected in zip(grads, grads_oracle, strict=True):
        if expected is not None:
            assert_spreads_alike(case, grad.cpu(), expected)


@each_rig
@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_ties_and_nans_go_where_torch_sends_them(running: Rig, pool: str, layout: str) -> None:
    """Equal values, zeros behind the ReLU and NaNs: to the first, to none, and to the last."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(-2, 3, (2, 8, 6, 10), generator=generator).double()
    x[torch.rand(x.shape, generator=generator) < 0.1] = math.nan
    case = conv_pool((2, 8, 6, 10), (8, 8, 1, 1), bias=False, pool=pool)
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    # a product with the identity in a depthwise layer, where NaN stays in its channel
    case = replace(case, shapes=((2, 8, 6, 10), (8, 1, 1, 1), None), options=case.options | {"groups": 8})
    ones = torch.ones(8, 1, 1, 1, dtype=torch.float64).requires_grad_()
    tensors = [x.contiguous(memory_format=format).requires_grad_(), ones, None]
    _, (expected, *_) = gradients(case.theirs, tensors)
    _, (dx, *_) = gradients(case.ours, running.place(tensors))
    torch.testing.assert_close(dx.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@each_rig
@pytest.mark.parametrize("case", NONEMPTY[::4], ids=str)
def test_two_runs_are_bitwise_equal(case: Case, running: Rig) -> None:
    first, second = (gradients(case.ours, running.place(case.inputs(torch.bfloat16))) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(a is None or torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@each_rig
@pytest.mark.parametrize("case", NONEMPTY[::2], ids=str)
@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_nothing_outside_is_read_or_written(
    case: Case, running: Rig, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded_outputs(monkeypatch) as checks:
        check(case, running, torch.float32, layout)
        assert checks
        for outside in checks:
            outside()


@each_rig
@pytest.mark.parametrize("case", [CASES[0], CASES[9], CASES[5]], ids=str)
def test_batches_that_a_launch_cannot_count(case: Case, running: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for operation in (kernels.conv2d.OPERATION, conv_pool2d.OPERATION):
        limit_launches(running, operation, 40 * case.shapes[1][0], monkeypatch)
    check(case, running, torch.float32, "channels_last")
    check(case, running, torch.float32, "contiguous")


@each_rig
@pytest.mark.parametrize("case", [CASES[0], LARGE, DEPTHWISE], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_configurations(case: Case, running: Rig, layout: str) -> None:
    """float32: a half type's tap may win by a rounding that another order of the sum does not make."""
    assert each_configuration(running, case, torch.float32, layout)


@each_rig
def test_compiles(running: Rig) -> None:
    for case in (CASES[0], CASES[3], CASES[5]):
        tensors = running.place(case.inputs(torch.float32))
        torch._dynamo.reset()
        compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager")
        y, grads = gradients(compiled, tensors)
        y_eager, grads_eager = gradients(case.ours, tensors)
        torch.testing.assert_close(y, y_eager, rtol=0, atol=0)
        for grad, expected in zip(grads, grads_eager, strict=True):
            torch.testing.assert_close(grad, expected, rtol=0, atol=0)


def kept_bytes(function: Any, *tensors: torch.Tensor) -> tuple[int, torch.Tensor]:
    """What a forward keeps for its backward beside its arguments, and the output."""
    known, sizes = {t.data_ptr() for t in tensors}, {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in known:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = function(*tensors)
    return sum(sizes.values()), y


@pytest.mark.parametrize(
    ("C", "K", "size", "torchs", "ours_one_by_one", "fused"),
    [(1, 32, 28, 16613376, 11767808, 3461120), (32, 64, 13, 5603328, 4169728, 1024000)],
)
def test_only_the_pooled_value_and_a_byte_are_kept(
    C: int, K: int, size: int, torchs: int, ours_one_by_one: int, fused: int
) -> None:
    """The figures of docs/fusion.md."""
    x, w, b = torch.randn(128, C, size, size), torch.randn(K, C, 3, 3).requires_grad_(), torch.randn(K).requires_grad_()
    in_torch, _ = kept_bytes(lambda *t: F.max_pool2d(F.relu(F.conv2d(*t)), 2), x, w, b)
    one_by_one, _ = kept_bytes(lambda *t: functional.max_pool2d(functional.relu(functional.conv2d(*t)), 2), x, w, b)
    in_one, y = kept_bytes(functional.conv_pool2d, x, w, b)
    assert (in_torch, one_by_one, in_one) == (torchs, ours_one_by_one, fused)
    assert in_one == y.numel() * (4 + 1)
    text = (Path(__file__).parent.parent / "docs" / "fusion.md").read_text(encoding="utf-8")
    assert f"| {torchs:,} | {ours_one_by_one:,} | {fused:,} |" in text


def test_without_a_backward_no_byte_is_kept() -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    y, code = conv_pool2d.forward(x, w, None, "relu", "max", (1, 1), (0, 0, 0, 0), (1, 1), 1, False)
    assert torch.equal(functional.conv_pool2d(x, w), y)
    assert not code.numel()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"pool": "min"}, ValueError, "'min'"),
        ({"pool": "avg", "activation": "tanh"}, ValueError, "'tanh'"),
        ({"activation": "gelu"}, ValueError, "'gelu'"),
        ({"padding": -1}, RuntimeError, "padding"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        functional.conv_pool2d(torch.ones(1, 2, 6, 6), torch.ones(3, 2, 3, 3), **options)
    if "padding" not in options:
        with pytest.raises(error, match=words):
            ours.ConvPool2d(2, 3, 3, **options)


def test_outputs_without_a_window_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Output size is too small"):
        functional.conv_pool2d(torch.ones(1, 2, 3, 6), torch.ones(3, 2, 3, 3))


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_the_module_is_the_layers(padding_mode: Any) -> None:
    torch.manual_seed(0)
    module = ours.ConvPool2d(3, 4, 3, padding=1, padding_mode=padding_mode, activation="tanh", pool="max")
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode=padding_mode), torch.nn.Tanh(), torch.nn.MaxPool2d(2)
    )
    layers[0].load_state_dict(module.state_dict())
    x = torch.randn(2, 3, 8, 9)
    torch.testing.assert_close(module(x), layers(x))
    assert "activation=tanh, pool=max" in repr(module)


@pytest.mark.parametrize("case", [DENSE, CASES[0], DEPTHWISE], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_order_of_threads_does_not_matter(case: Case, dtype: torch.dtype) -> None:
    assert_case_keeps_its_bits(case, dtype, "channels_last")


def test_cuda_kernels_under_sanitizers(one_in: Callable[[str], int]) -> None:
    assert_clean_under_sanitizers(
        """
        from tests.test_conv_pool2d import NONEMPTY
        for number, case in enumerate(some(NONEMPTY)):
            for layout in ("channels_last", "contiguous"):
                run(case, torch.float32 if number % 2 else torch.bfloat16, layout)
    """,
        one_in("test_conv_pool2d.py"),
    )
