"""Every op on every case: values, gradients, dtypes, layouts, special values, determinism, guards, torch's checks."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from tilesmith.kernels import _parallel
from tilesmith.nn import functional
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from .cases import CASES as OTHERS
from .cases import CONV2D, LINEAR, POOL2D
from .harness import (
    FLOATS,
    LAYOUTS,
    Case,
    assert_spreads_alike,
    assert_within,
    gradients,
    guarded_outputs,
    laid_out,
)
from .recurrent import RECURRENT

CASES = OTHERS + RECURRENT

each_case = pytest.mark.parametrize("case", CASES, ids=str)
NONEMPTY = [case for case in CASES if all(shape is None or 0 not in shape for shape in case.shapes)]
with_elements = pytest.mark.parametrize("case", NONEMPTY, ids=str)
images = pytest.mark.parametrize("case", [c for c in CONV2D + POOL2D if len(c.shapes[0] or ()) == 4], ids=str)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Floating-point warnings are bugs here: each is either handled or turned off where it is harmless."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def check_against_oracle(case: Case, dtype: torch.dtype, layout: str) -> None:
    tensors = case.inputs(dtype, layout)
    y, grads = gradients(case.ours, tensors)
    wide = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    y_oracle, grads_oracle = gradients(case.theirs, wide)
    rounding = case.half_roundings
    assert_within(y, y_oracle, dtype, case.reduction, "output", half_roundings=rounding)
    for position, (grad, oracle) in enumerate(zip(grads, grads_oracle, strict=True)):
        if oracle is not None:
            scale = case.gradient_scale
            assert_within(grad, oracle, dtype, case.reduction, f"gradient {position}", scale, rounding)


@each_case
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    check_against_oracle(case, dtype, "contiguous")


@pytest.mark.parametrize("case", [*CONV2D, *POOL2D, *LINEAR, *RECURRENT], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("block_bytes", [1, 1500])
def test_many_small_blocks(case: Case, layout: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, groups and rows in blocks of their own, on several threads: what large problems do, on small ones."""
    for module in ("conv2d._numpy", "pool2d._numpy", "rnn._numpy_backward"):
        monkeypatch.setattr(import_module(f"tilesmith.kernels.{module}"), "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(import_module("tilesmith.kernels.rnn._numpy_layout"), "_SMALL_STEP", 0)
    for limit in ("MIN_BYTES_PER_WORKER", "MIN_PRODUCTS_PER_WORKER", "_LEAST_SIDE"):
        monkeypatch.setattr(_parallel, limit, 1)
    check_against_oracle(case, torch.float32, layout)


@each_case
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_layouts(case: Case, layout: str) -> None:
    if not case.shapes[0] or (layout == "expanded" and (len(case.shapes[0]) < 2 or 0 in case.shapes[0])):
        layout = "contiguous"  # a scalar has one layout only
    check_against_oracle(case, torch.float32, layout)


@images
@pytest.mark.parametrize("weight_last", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_follows_torch(case: Case, layout: str, weight_last: bool) -> None:
    """Output strides are torch's, and the input's gradient has the input's format."""
    tensors = case.inputs(torch.float32, layout)
    if weight_last and case.op == "conv2d":
        tensors[1] = laid_out(tensors[1].detach(), "channels_last").requires_grad_()
    ours, theirs = (f(*tensors) for f in (case.ours, case.theirs))
    (dx,) = torch.autograd.grad(ours.sum(), tensors[:1])
    if theirs.numel():  # the strides of nothing mean nothing
        assert ours.stride() == theirs.stride()
        assert dx.stride() == tensors[0].stride()


@with_elements
def test_gradcheck(case: Case) -> None:
    tensors = [t for t in case.inputs(seed=3) if t is not None]
    absent = [t is None for t in case.inputs()]

    def call(*present: torch.Tensor) -> Any:
        rest = iter(present)
        return case.ours(*(None if gone else next(rest) for gone in absent))

    large = sum(t.numel() for t in tensors) > 2000
    assert gradcheck(call, tensors, fast_mode=large)
    assert gradgradcheck(call, tensors, fast_mode=True)


@with_elements
def test_only_needed_gradients(case: Case) -> None:
    """Asking for one gradient gives the same numbers as asking for all, and the others stay None."""
    _, everything = gradients(case.ours, case.inputs())
    for wanted in range(len(case.shapes)):
        if case.shapes[wanted] is None:
            continue
        tensors = case.inputs(grad=False)
        tensors[wanted].requires_grad_()
        y = case.ours(*tensors)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        y.backward(dy)
        torch.testing.assert_close(tensors[wanted].grad, everything[wanted], rtol=0, atol=1e-13)
        assert all(t is None or t is tensors[wanted] or t.grad is None for t in tensors)


@each_case
def test_saved_tensors_are_not_written(case: Case) -> None:
    tensors = case.inputs()
    before: list[Any] = [None if t is None else t.detach().clone() for t in tensors]
    versions: list[Any] = [None if t is None else t._version for t in tensors]
    gradients(case.ours, tensors)
    for tensor, copy, version in zip(tensors, before, versions, strict=True):
        if tensor is not None:
            assert torch.equal(tensor, copy)
            assert tensor._version == version


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_equal(case: Case, dtype: torch.dtype) -> None:
    first, second = (gradients(case.ours, case.inputs(dtype)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@each_case
@pytest.mark.parametrize("layout", ["sliced", "transposed", "channels_last"])
def test_nothing_outside_is_read_or_written(case: Case, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs lie among NaNs, outputs start as NaN between canaries: a stray access shows."""
    with guarded_outputs(monkeypatch) as checks:
        tensors = case.inputs(torch.float32, layout if case.shapes[0] else "contiguous")
        y, grads = gradients(case.ours, tensors)
        wide = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
        y_oracle, grads_oracle = gradients(case.theirs, wide)
        assert checks
        for check in checks:
            check()
        assert_within(y, y_oracle, torch.float32, case.reduction, "output")
        for grad, oracle in zip(grads, grads_oracle, strict=True):
            if oracle is not None:
                assert_within(grad, oracle, torch.float32, case.reduction, "gradient", case.gradient_scale)


SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 1e30, "-huge": -1e30}


@with_elements
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("place", ["edge", "middle"])
def test_special_values_spread_as_in_torch(case: Case, special: str, place: str) -> None:
    """One NaN or infinity reaches exactly the outputs and gradients that it reaches in torch.

    The last element of a row is seen by few taps of a kernel: it must not reach the gradients of the others.
    """
    tensors = case.inputs(torch.float64)
    with torch.no_grad():
        flat = tensors[0].view(-1)
        flat[case.shapes[0][-1] - 1 if place == "edge" and case.shapes[0] else flat.numel() // 2] = SPECIAL[special]
    y, grads = gradients(case.ours, tensors)
    y_oracle, grads_oracle = gradients(case.theirs, tensors)
    torch.testing.assert_close(
        y, y_oracle, equal_nan=True, rtol=1e-9, atol=1e-9 * SPECIAL["huge"] * ("huge" in special)
    )
    for grad, oracle in zip(grads, grads_oracle, strict=True):
        if oracle is not None:
            assert_spreads_alike(case, grad, oracle)


@pytest.mark.parametrize("case", [c for c in POOL2D if "max" in c.op and 0 not in c.shapes[0]], ids=str)
@pytest.mark.parametrize("values", ["ties", "all -inf", "nans", "plateau"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_indices_are_torchs(case: Case, values: str, layout: str) -> None:
    """The first of equal values, the last of several NaNs, the first element of the input in an all -inf window."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, case.shapes[0], generator=generator).float()
    if values == "all -inf":
        x = torch.full_like(x, -math.inf)
    elif values == "nans":
        x[torch.rand(x.shape, generator=generator) < 0.3] = math.nan
    elif values == "plateau":
        x = torch.zeros_like(x)
    x = laid_out(x, layout)
    ours, index = getattr(functional, case.op)(x, **case.options, return_indices=True)
    theirs, index_oracle = case.oracle(x, **case.options, return_indices=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index, index_oracle)
    assert index.dtype is torch.int64
    assert index.stride() == index_oracle.stride()
    values_only = getattr(functional, case.op)(x, **case.options)
    torch.testing.assert_close(values_only, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", [c for c in POOL2D if c.op == "max_pool2d"], ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8], ids=str)
def test_integer_max_pooling(case: Case, dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    x = torch.randint(info.min, info.max, case.shapes[0], dtype=dtype, generator=torch.Generator().manual_seed(0))
    ours = functional.max_pool2d(x, **case.options, return_indices=True)
    theirs = torch.nn.functional.max_pool2d(x, **case.options, return_indices=True)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert ours[0].dtype is dtype


# ---- torch's own machinery


class Recorder(TorchDispatchMode):
    """Collects the calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "tilesmith":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@each_case
def test_opcheck(case: Case) -> None:
    """Schema and fake implementation of every op that the case calls, forward, backward and double backward."""
    with Recorder() as recorder:
        y = case.ours(*case.inputs(torch.float32))
        inputs = [t for t in case.inputs(torch.float32) if t is not None]
        rest = iter(inputs)
        y = case.ours(*(None if shape is None else next(rest) for shape in case.shapes))
        grads = torch.autograd.grad(y, inputs, torch.ones_like(y).requires_grad_(), create_graph=True)
        differentiable = [g for g in grads if g.requires_grad]
        if differentiable:
            torch.autograd.grad([g.sum() for g in differentiable], inputs, allow_unused=True)
    assert recorder.calls
    for op, args in recorder.calls:
        detached = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
        torch.library.opcheck(op, detached, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


ONE_EACH = list({case.op: case for case in reversed(NONEMPTY) if len(case.shapes[0]) > 1}.values())
one_of_each = pytest.mark.parametrize("case", ONE_EACH, ids=str)


@one_of_each
def test_opcheck_aot_dispatch(case: Case) -> None:
    """The ops under tracing with symbolic shapes."""
    with Recorder() as recorder:
        gradients(case.ours, case.inputs(torch.float32))
    for op, args in recorder.calls:
        detached = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
        torch.library.opcheck(op, detached, test_utils="test_aot_dispatch_dynamic")


@with_elements
def test_compiles_without_graph_breaks(case: Case) -> None:
    torch._dynamo.reset()
    eager = gradients(case.ours, case.inputs())
    compiled = gradients(torch.compile(case.ours, fullgraph=True, backend="aot_eager"), case.inputs())
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)


@one_of_each
def test_compiles_with_dynamic_shapes(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager", dynamic=True)
    for images in (3, 5):
        bigger = dataclasses.replace(case, shapes=((images, *case.shapes[0][1:]), *case.shapes[1:]))
        torch.testing.assert_close(
            gradients(compiled, bigger.inputs()), gradients(case.ours, bigger.inputs()), rtol=0, atol=0
        )


@with_elements
@pytest.mark.parametrize("batched", ["input", "all"])
def test_vmap(case: Case, batched: str) -> None:
    """vmap over a stack of inputs (and of parameters) equals a loop, also through a gradient."""
    examples = [case.inputs(seed=seed, grad=False) for seed in range(3)]
    shared = [batched == "input" and position > 0 for position in range(len(case.shapes))]
    stacked = [
        None if shape is None else examples[0][i] if shared[i] else torch.stack([e[i] for e in examples])
        for i, shape in enumerate(case.shapes)
    ]
    in_dims = tuple(None if t is None or shared[i] else 0 for i, t in enumerate(stacked))
    loop = [[t if t is None or not shared[i] else stacked[i] for i, t in enumerate(e)] for e in examples]

    mapped = torch.vmap(case.ours, in_dims)(*stacked)
    torch.testing.assert_close(mapped, torch.stack([case.ours(*e) for e in loop]), rtol=1e-12, atol=1e-12)

    last = max(i for i, t in enumerate(stacked) if t is not None)
    for argument in {0, last}:
        slope = torch.func.grad(lambda *tensors: case.ours(*tensors).square().sum(), argnums=argument)
        expected = torch.stack([slope(*e) for e in loop])
        torch.testing.assert_close(torch.vmap(slope, in_dims)(*stacked), expected, rtol=1e-10, atol=1e-10)


@one_of_each
def test_func_grad_matches_autograd(case: Case) -> None:
    tensors = case.inputs()
    (expected,) = torch.autograd.grad(case.ours(*tensors).square().sum(), tensors[:1])
    found = torch.func.grad(lambda *t: case.ours(*t).square().sum())(*case.inputs(grad=False))
    torch.testing.assert_close(found, expected)


@one_of_each
def test_hessian_matches_torch(case: Case) -> None:
    """Reverse over reverse through torch.func, against torch's own op."""
    x, *rest = case.inputs(grad=False)

    def hessian(function: Any) -> torch.Tensor:
        slope = torch.func.grad(lambda x: function(x, *rest).pow(3).sum())
        return torch.func.vjp(slope, x)[1](torch.ones_like(x))[0]

    torch.testing.assert_close(hessian(case.ours), hessian(case.theirs), rtol=1e-8, atol=1e-8)
