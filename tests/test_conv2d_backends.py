"""Convolution on the GPU backends against the float64 oracle: gradients, options, dtypes, layouts and precisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tilesmith import kernels
from tilesmith.kernels import conv2d
from tilesmith.nn import functional
from torch.autograd import gradcheck, gradgradcheck

from .cases import CONV2D, _conv
from .harness import LAYOUTS, Case, gradients, guarded_outputs
from .rigs import (
    RIGS,
    Rig,
    assert_case_keeps_its_bits,
    assert_clean_under_sanitizers,
    check,
    each_configuration,
    limit_launches,
)

# What the small cases do not reach: several tiles a dimension, channels that no vector divides, packs of groups, layers
# that are products of views, each of them with a bias and an activation somewhere.
WIDE = [
    _conv((1, 40, 5, 6), (72, 40, 3, 3), padding=1, activation="relu"),
    _conv((2, 24, 9, 7), (20, 24, 3, 3), padding=1, stride=2),
    _conv((2, 36, 6, 6), (40, 36, 1, 1), activation="tanh"),
    _conv((1, 32, 8, 6), (24, 32, 2, 2), stride=2),
    _conv((1, 17, 7, 8), (19, 17, 3, 2), dilation=(1, 2), padding=(2, 1)),
    _conv((2, 32, 6, 7), (32, 4, 3, 3), groups=8, padding=1),
    _conv((1, 24, 7, 8), (48, 6, 3, 3), groups=4, padding=1, stride=2, activation="sigmoid"),
    _conv((1, 66, 4, 5), (68, 33, 3, 3), groups=2),
    _conv((1, 9, 7, 6), (9, 1, 5, 5), groups=9, padding=2),
    _conv((1, 3, 8, 9), (6, 1, 7, 7), groups=3, padding=3, stride=2),
    _conv((1, 3, 18, 17), (33, 3, 7, 7), padding=3, stride=2, activation="relu"),
    _conv((1, 12, 8, 8), (10, 12, 3, 3), stride=3, dilation=3, padding=3),
]
NONEMPTY = [case for case in CONV2D if case.shapes[0] and 0 not in case.shapes[0]]

each_rig = pytest.mark.parametrize("rig", RIGS)
each_case = pytest.mark.parametrize("case", CONV2D + WIDE, ids=str)


@pytest.fixture
def running(rig: Rig) -> Iterator[Rig]:
    with rig.running():
        yield rig


@each_rig
@each_case
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "channels_last"), (torch.bfloat16, "contiguous")], ids=str
)
def test_values_and_gradients(case: Case, running: Rig, dtype: torch.dtype, layout: str) -> None:
    check(case, running, dtype, layout)


@each_rig
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_the_other_dtypes_and_layouts(case: Case, running: Rig) -> None:
    number = WIDE.index(case)
    check(
        case, running, (torch.float64, torch.float16)[number % 2], "contiguous" if number % 4 < 2 else "channels_last"
    )
    check(case, running, (torch.bfloat16, torch.float32)[number % 2], "channels_last" if number % 2 else "contiguous")


@each_rig
@pytest.mark.parametrize("case", [*NONEMPTY[::5], WIDE[1], WIDE[2], WIDE[5], WIDE[8]], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[2:])
def test_any_strides(case: Case, running: Rig, layout: str) -> None:
    check(case, running, torch.float32, layout)


@each_rig
@pytest.mark.parametrize(("mode", "eps"), [("tf32", 2**-10), ("tf32x3", 2**-20)])
@pytest.mark.parametrize("case", [WIDE[0], WIDE[1], WIDE[2], WIDE[5], WIDE[10]], ids=str)
def test_float32_on_tensor_cores(case: Case, running: Rig, mode: str, eps: float) -> None:
    kernels.set_float32_precision(mode)
    check(case, running, torch.float32, "channels_last", eps=eps)


@each_rig
@pytest.mark.parametrize("case", [c for c in NONEMPTY if len(c.shapes[0]) == 4][::4], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_follows_torch(case: Case, running: Rig, layout: str) -> None:
    tensors = running.place(case.inputs(torch.float32, layout))
    y = case.ours(*tensors)
    (dx,) = torch.autograd.grad(y.sum(), tensors[:1])
    assert y.stride() == case.theirs(*tensors).stride()
    assert dx.stride() == tensors[0].stride()


@each_rig
@pytest.mark.parametrize("case", [CONV2D[12], CONV2D[18]], ids=str)
def test_gradcheck(case: Case, running: Rig) -> None:
    present = [t for t in running.place(case.inputs(seed=3)) if t is not None]

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        rest = iter(tensors)
        y: torch.Tensor = case.ours(*(None if shape is None else next(rest) for shape in case.shapes))
        return y

    assert gradcheck(call, present, fast_mode=True)
    assert gradgradcheck(call, present, fast_mode=True)


SPECIAL = {"nan": math.nan, "inf": math.inf}


@each_rig
@pytest.mark.parametrize("case", [*NONEMPTY[1::5], WIDE[5], WIDE[6]], ids=str)
@pytest.mark.parametrize("special", SPECIAL)
def test_special_values_spread_as_in_torch(case: Case, running: Rig, special: str) -> None:
    """Also into no other group of a pack, and into no tap that does not see the element."""
    tensors = case.inputs(torch.float64)
    with torch.no_grad():
        flat = tensors[0].view(-1)
        flat[flat.numel() // 2] = SPECIAL[special]
    y_oracle, grads_oracle = gradients(case.theirs, tensors)
    y, grads = gradients(case.ours, running.place(tensors))
    torch.testing.assert_close(y.cpu(), y_oracle, equal_nan=True, rtol=1e-9, atol=1e-9)
    for grad, oracle in zip(grads, grads_oracle, strict=True):
        if oracle is not None:
            assert torch.equal(grad.cpu().isfinite(), oracle.isfinite())


@each_rig
@pytest.mark.parametrize("case", [*NONEMPTY[::8], WIDE[5], WIDE[8]], ids=str)
def test_two_runs_are_bitwise_equal(case: Case, running: Rig) -> None:
    first, second = (gradients(case.ours, running.place(case.inputs(torch.bfloat16))) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(a is None or torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@each_rig
@pytest.mark.parametrize("case", NONEMPTY[::6] + WIDE[1::3], ids=str)
@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
def test_nothing_outside_is_read_or_written(
    case: Case, running: Rig, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs lie among NaNs, outputs and workspaces start as NaN, outputs between canaries."""
    with guarded_outputs(monkeypatch) as checks:
        check(case, running, torch.float32, layout)
        assert checks
        for outside in checks:
            outside()


@each_rig
@pytest.mark.parametrize("case", [WIDE[1], WIDE[8], NONEMPTY[1]], ids=str)
def test_batches_that_a_launch_cannot_count(case: Case, running: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past 2^31 pixels the images are cut into launches, and offsets are 64-bit: here from far fewer on."""
    height, width = case.shapes[0][-2:]
    limit_launches(running, conv2d.OPERATION, (height + 2) * (width + 2) + 1, monkeypatch)
    check(case, running, torch.float32, "channels_last")
    check(case, running, torch.float32, "contiguous")


@each_rig
def test_one_image_too_large_is_refused(running: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_launches(running, conv2d.OPERATION, 20, monkeypatch)
    x, w = running.place([torch.ones(1, 16, 6, 6), torch.ones(16, 16, 1, 1)])
    with pytest.raises(NotImplementedError, match="36"):
        functional.conv2d(x, w)


@each_rig
def test_compiles_and_backward_runs_on_the_same_backend(running: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward after the ``with`` block, too: it is the forward's backend that counts."""
    case = CONV2D[2]
    module = conv2d.OPERATION.named(running.backend)
    calls: list[int] = []
    weight_grad = module.weight_grad

    def watched(*args: Any) -> None:
        calls.append(1)
        weight_grad(*args)

    monkeypatch.setattr(module, "weight_grad", watched)
    tensors = running.place(case.inputs(torch.float32))
    y = case.ours(*tensors)
    with kernels.backend("numpy"):
        y.sum().backward()
    assert calls
    torch._dynamo.reset()
    compiled = torch.compile(case.ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), y, rtol=0, atol=0)


@each_rig
def test_tensor_cores_follow_torchs_setting(running: Rig) -> None:
    """1 + 2^-12 is 1 in TF32. What torch calls none is what its wider setting says."""
    from tilesmith.kernels._precision import convolution_precision

    kernels.set_float32_precision(None)
    backends: Any = torch.backends  # torch's stubs do not know these settings
    before, wider = backends.cudnn.conv.fp32_precision, backends.fp32_precision
    try:
        backends.cudnn.conv.fp32_precision = "tf32"
        assert convolution_precision() == "tf32"
        backends.cudnn.conv.fp32_precision = "ieee"
        assert convolution_precision() == "ieee"
        x = torch.full((1, 16, 3, 3), 1 + 2**-12)
        y = functional.conv2d(*running.place([x, torch.full((16, 16, 1, 1), 1.0)]))
        assert torch.equal(y.cpu(), torch.full((1, 16, 3, 3), 16 * (1 + 2**-12)))
        backends.cudnn.conv.fp32_precision = "none"
        backends.fp32_precision = "tf32"
        assert convolution_precision() == "tf32"
    finally:
        backends.cudnn.conv.fp32_precision, backends.fp32_precision = before, wider
    with pytest.raises(ValueError, match="'bf16x3'"):
        kernels.set_float32_precision("bf16x3")


LARGE = {
    "dense": ((1, 32, 9, 9), (66, 32, 3, 3), 1),
    "few": ((1, 3, 9, 9), (66, 3, 3, 3), 1),
    "depthwise": ((1, 34, 5, 7), (34, 1, 3, 3), 34),
}


@each_rig
@pytest.mark.parametrize("what", LARGE)
@pytest.mark.parametrize("warps", [8, 4])
def test_configurations(running: Rig, what: str, warps: int) -> None:
    """Every block size of every kernel that these layers use, 8 warps by name: others met silent miscompilation there.

    All of them on a GPU; on the emulators two, of which Triton's interpreter knows no warps.
    """
    x_shape, w_shape, groups = LARGE[what]
    case = _conv(x_shape, w_shape, padding=1, groups=groups)
    assert each_configuration(running, case, torch.bfloat16, "channels_last", warps)


@each_rig
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_any_shape(rig: Rig, data: st.DataObject) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups = data.draw(st.sampled_from([1, 1, 2, 3, 8]))
    inputs, outputs = groups * draw(1, 9), groups * draw(1, 9)
    R, S = draw(1, 4), draw(1, 4)
    stride, dilation = (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))
    padding = ((draw(0, 2), draw(0, 2)), (draw(0, 2), draw(0, 2)))
    H = draw(max(1, dilation[0] * (R - 1) + 1 - sum(padding[0])), 11)
    W = draw(max(1, dilation[1] * (S - 1) + 1 - sum(padding[1])), 11)
    case = _conv(
        (draw(1, 2), inputs, H, W), (outputs, inputs // groups, R, S), draw(0, 1) == 1,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    with rig.running():
        check(case, rig, torch.float32, data.draw(st.sampled_from(LAYOUTS[:4])))


@pytest.mark.parametrize("case", [WIDE[0], WIDE[1], WIDE[5], WIDE[8], WIDE[9], WIDE[10]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_order_of_fibers_changes_no_bit(case: Case, dtype: torch.dtype) -> None:
    assert_case_keeps_its_bits(case, dtype, "channels_last", "tf32")


def test_cuda_kernels_under_sanitizers(one_in: Callable[[str], int]) -> None:
    assert_clean_under_sanitizers(
        """
        from tests.cases import CONV2D
        from tests.test_conv2d_backends import WIDE
        kernels.set_float32_precision("tf32")
        for number, case in enumerate(some([WIDE[0], WIDE[1], WIDE[5], WIDE[8], WIDE[10], CONV2D[6], CONV2D[12]])):
            dtype = torch.float32 if number % 2 else torch.bfloat16
            run(case, dtype, "channels_last" if number % 3 else "contiguous")
    """,
        one_in("test_conv2d_backends.py"),
    )
