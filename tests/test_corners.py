"""Inputs at the edge of what ops take, and callers at the edge of what torch allows, on each backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from tilesmith import autotune, nn
from tilesmith.kernels import conv2d, linear
from tilesmith.kernels._recording import record
from tilesmith.kernels._triton_math import element_strides
from tilesmith.kernels.softmax._triton import sizes
from tilesmith.nn import functional
from torch.autograd import forward_ad

from .harness import laid_out
from .rigs import RIGS, Rig, each_configuration_runs

each_rig = pytest.mark.parametrize("rig", [Rig("numpy"), *RIGS], ids=str)

# Triton's interpreter computes lanes that are masked off, too
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture
def running(rig: Rig) -> Iterator[Rig]:
    with rig.running():
        yield rig


# ---- values


@each_rig
def test_tanh_near_zero_in_double_precision(running: Rig) -> None:
    """1 - exp(-2x) has no digits left there, and zeros keep their sign."""
    x = torch.tensor([1e-300, 1e-18, 1e-12, 1e-5, 0.1, 0.2499, 0.2501, 1.0, 20.0, 0.0], dtype=torch.float64)
    x = torch.cat([x, -x])
    (placed,) = running.place([x])
    y = functional.tanh(placed).cpu()
    torch.testing.assert_close(y, torch.tanh(x), rtol=4e-16, atol=0)
    assert torch.equal(y.signbit(), x.signbit())


@each_rig
def test_relu_of_whole_numbers_is_exact(running: Rig) -> None:
    x = torch.tensor([2**24 + 1, -3, 2**40 + 1, 0])
    (placed,) = running.place([x])
    assert torch.equal(functional.relu(placed).cpu(), F.relu(x))


@each_rig
@pytest.mark.parametrize("shift", [-1e4, torch.finfo(torch.float32).min, 1e4])
@pytest.mark.parametrize("shape", [(3, 10), (2, 300), (1, 5000), (40, 3, 5)], ids=str)
def test_softmax_far_from_zero(running: Rig, shift: float, shape: tuple[int, ...]) -> None:
    """The largest number of a slice starts below every one there is: 0 would win over all of these."""
    dim = 0 if len(shape) == 3 else 1
    x = torch.zeros(shape).uniform_(-4, 4, generator=torch.Generator().manual_seed(1)) + shift
    for ours, theirs in ((functional.softmax, F.softmax), (functional.log_softmax, F.log_softmax)):
        for _ in each_configuration_runs(running):
            (placed,) = running.place([x])
            torch.testing.assert_close(ours(placed, dim).cpu(), theirs(x, dim), rtol=2e-6, atol=4e-6)


@each_rig
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_softmax_at_addresses_that_no_vector_divides(running: Rig, offset: int) -> None:
    for dtype, shape in ((torch.float32, (4, 32)), (torch.bfloat16, (3, 64)), (torch.float32, (8, 2, 16))):
        flat = torch.randn(512 + offset).to(dtype)
        count = torch.Size(shape).numel()
        dim = 0 if len(shape) == 3 else 1
        x = flat[offset : offset + count].view(shape)
        (placed,) = running.place([x])
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(functional.softmax(placed, dim).cpu(), F.softmax(x, dim), rtol=2 * eps, atol=eps)


@each_rig
def test_softmax_over_one_element_of_any_stride(running: Rig) -> None:
    for stride in (0, 3, 1):
        x = torch.randn(40).as_strided((6, 1, 5), (5, stride, 1))
        (placed,) = running.place([x])
        assert torch.equal(functional.softmax(placed, 1).cpu(), torch.ones(6, 1, 5))


@each_rig
def test_a_tensor_that_is_the_negative_of_its_memory(running: Rig) -> None:
    x, w = torch.randn(5, 16, dtype=torch.complex64).conj().imag, torch.randn(3, 16)
    assert x.is_neg()
    images = x.reshape(1, 5, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(functional.linear(*running.place([x, w])).cpu(), F.linear(x, w))
        if running.device == "cpu":
            assert torch.equal(functional.relu(x), F.relu(x))
            assert torch.equal(functional.max_pool2d(images, 2), F.max_pool2d(images, 2))


@each_rig
@pytest.mark.parametrize(
    ("shape", "window"),
    [((2, 3, 1, 5), (2, 1, 1, 2)), ((2, 40, 2, 9), (2, 1, 1, (3, 1))), ((2, 5, 3, 4), (2, 1, 1, (1, 5)))],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_maxima_of_windows_without_a_tap_inside(running: Rig, shape: tuple[int, ...], window: Any, layout: str) -> None:
    """All taps lie beside the plane: -inf, whose gradient goes nowhere. (torch's is written outside the tensor.)"""
    x = laid_out(torch.randn(shape, generator=torch.Generator().manual_seed(2)), layout)
    expected, expected_index = F.max_pool2d_with_indices(x, *window)
    (placed,) = running.place([x.clone(memory_format=torch.preserve_format).requires_grad_()])
    pooling: Any = functional.max_pool2d
    y, index = pooling(placed, *window, return_indices=True)
    assert torch.equal(y.detach().cpu(), expected)
    assert torch.equal(index.cpu(), expected_index)
    inside = expected.isfinite()
    assert not inside.all()
    expected_dx = torch.zeros(shape).flatten(2)
    for n, c, p, q in inside.nonzero().tolist():
        expected_dx[n, c, expected_index[n, c, p, q]] += 1
    without_index = functional.max_pool2d(placed, *window)
    for output in (y, without_index):
        dy = torch.ones_like(output, requires_grad=True)
        (dx,) = torch.autograd.grad(output, placed, dy, create_graph=True)
        assert torch.equal(dx.detach().cpu().flatten(2), expected_dx)
        (ddy,) = torch.autograd.grad((dx * 3).sum(), dy)
        assert torch.equal(ddy.cpu(), 3.0 * inside)


# ---- past 32 bits


@triton.jit
def _strides_kernel(out_ptr, stride, ALIGN: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    sn, _, sh, sw = element_strides(stride, 1, stride, stride, "c", ALIGN, WIDE)
    tl.store(out_ptr, sn)
    tl.store(out_ptr + 1, sh)
    tl.store(out_ptr + 2, sw)


@triton.jit
def _sizes_kernel(out_ptr, size, ALIGN: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    slices, _, inner = sizes(size, 5, size, True, ALIGN, WIDE)
    _, length, _ = sizes(5, size, 5, False, ALIGN, WIDE)
    tl.store(out_ptr, slices)
    tl.store(out_ptr + 1, inner)
    tl.store(out_ptr + 2, length)


@pytest.mark.parametrize("kernel", [_strides_kernel, _sizes_kernel], ids=["strides", "sizes"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_numbers_passed_in_units_are_widened_before_they_are_multiplied(kernel: Any, device: str) -> None:
    out = torch.zeros(3, dtype=torch.int64, device=device)
    kernel[(1,)](out, 2**27, 16, True)
    assert out.tolist() == [2**31] * 3
    kernel[(1,)](out, 7, 16, False)
    assert out.tolist() == [112] * 3


def test_filters_that_triton_cannot_count_are_refused() -> None:
    triton_module = conv2d.OPERATION.named("triton")
    x, y = torch.empty(4, 16, 1, 1, device="meta"), torch.empty(3, 4, 1, 1, device="meta").view(4, 3, 1, 1)
    large = torch.empty_strided((3, 16, 1, 1), (2**30, 1, 1, 1), device="meta")
    problem = conv2d.make_problem(x.shape, large.shape, (1, 1), (0, 0, 0, 0), (1, 1), 1)
    with record(), autotune.target("sm_90"):
        for call in (
            lambda: triton_module.forward(problem, x, large, None, y),
            lambda: triton_module.input_grad(problem, y, large, x),
            lambda: triton_module.weight_grad(problem, x, y, large, None),
            lambda: linear.OPERATION.named("triton").forward(
                "none", x[..., 0, 0], large[..., 0, 0], None, y[..., 0, 0]
            ),
        ):
            with pytest.raises(NotImplementedError, match="'cupy'"):
                call()
        triton_module.forward(replace(problem), x, torch.empty(3, 16, 1, 1, device="meta"), None, y)


# ---- callers


def test_a_trace_without_gradients_records_our_op() -> None:
    with torch.no_grad():
        traced = torch.jit.trace(nn.ReLU(), torch.randn(3, 4))
    assert torch.equal(traced(torch.tensor([[-1.0, 2.0]])), torch.tensor([[0.0, 2.0]]))


@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_says_that_it_is_not_there(grad: bool) -> None:
    """It must not leave the tangent out."""
    with forward_ad.dual_level(), torch.set_grad_enabled(grad):
        x = forward_ad.make_dual(torch.randn(1, 2, 6, 6), torch.randn(1, 2, 6, 6))
        for call in (
            lambda: functional.conv_pool2d(x, torch.randn(3, 2, 3, 3)),
            lambda: functional.relu(x),
            lambda: functional.max_pool2d(x, 2),
            lambda: functional.softmax(x, 1),
        ):
            with pytest.raises(NotImplementedError, match="forward mode"):
                call()


def test_meta_tensors() -> None:
    x, w = torch.empty(3, 4, device="meta"), torch.empty(5, 4, device="meta")
    assert functional.linear(x, w).shape == (3, 5)
    image, filters = torch.empty(1, 4, 6, 6, device="meta"), torch.empty(5, 4, 3, 3, device="meta")
    assert functional.conv2d(image, filters).shape == (1, 5, 4, 4)
    assert functional.conv_pool2d(image, filters).shape == (1, 5, 2, 2)


class _Wrapped(torch.Tensor):
    """A subclass without memory of its own, as quantised weights are."""

    wrapped: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _Wrapped:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.wrapped = inner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def plain(value: Any) -> Any:
            return value.wrapped if isinstance(value, cls) else value

        return function(*map(plain, args), **(kwargs or {}))


def test_a_wrapped_weight_behind_a_plain_input() -> None:
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(functional.linear(x, _Wrapped(w)), F.linear(x, w))


def test_a_bias_of_one_element_counts_for_all() -> None:
    x, w, b = torch.randn(3, 4), torch.randn(5, 4), torch.randn(1, requires_grad=True)
    y = functional.linear(x, w, b)
    torch.testing.assert_close(y, F.linear(x, w, b))
    (db,) = torch.autograd.grad(y.sum(), b)
    assert db.item() == 15.0
