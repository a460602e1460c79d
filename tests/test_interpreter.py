"""The quickened interpreter computes what Triton's does, and 32-bit arithmetic of our kernels does not overflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from .cases import ELEMENTWISE, LINEAR, POOL2D, SOFTMAX
from .harness import Case
from .interpreter import overflow_checked, quicken
from .rigs import Rig, check

triton: Any = pytest.importorskip("triton")
tl: Any = pytest.importorskip("triton.language")


@triton.jit
def _inner(x):  # type: ignore[no-untyped-def]
    return tl.sum(tl.where(x > 0, x, -x), axis=1)


@triton.jit
def _rows(x_ptr, y_ptr, n_columns, HALF: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = tl.program_id(0) * 4 + tl.arange(0, 4)
    columns = tl.arange(0, N)
    inside = columns[None, :] < n_columns
    x = tl.load(x_ptr + rows[:, None] * n_columns + columns[None, :], mask=inside, other=0.0)
    total = _inner(x) + tl.max(_inner(x.to(tl.float64)), axis=0).to(tl.float32)
    tl.store(y_ptr + rows, total.to(tl.float16) if HALF else total)


@triton.jit
def _product(y_ptr, a, b):  # type: ignore[no-untyped-def]
    tl.store(y_ptr, a * b)


@pytest.mark.parametrize("half", [False, True])
def test_values_are_those_of_the_plain_interpreter(half: bool) -> None:
    """Nested functions, several shapes and dtypes of one value, constants, masks, two launches in a row."""
    quicken()
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    each = x.abs().double().sum(1)
    expected = (each.float() + each.float().view(2, 4).amax(1).repeat_interleave(4)).numpy()
    for _ in range(2):
        y = torch.zeros(8, dtype=torch.float16 if half else torch.float32)
        _rows[(2,)](x, y, 5, half, 8)
        np.testing.assert_allclose(y.float().numpy(), expected, rtol=1e-3 if half else 1e-6)


def test_overflow_is_found_where_it_is_looked_for() -> None:
    y = torch.zeros(1, dtype=torch.int32)
    _product[(1,)](y, 1 << 20, 1 << 20)
    with overflow_checked(), Rig("triton").running(), pytest.raises(Exception, match="overflow"):
        _product[(1,)](y, 1 << 20, 1 << 20)
    _product[(1,)](y, 3, 4)
    assert y.item() == 12


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "case", [POOL2D[2], POOL2D[12], POOL2D[22], POOL2D[28], LINEAR[2], SOFTMAX[0], ELEMENTWISE[4]], ids=str
)
def test_no_arithmetic_of_ours_overflows(case: Case, layout: str) -> None:
    with overflow_checked(), Rig("triton").running():
        check(case, Rig("triton"), torch.float32, layout)
