"""Every op, forward and backward, beside torch's in the same run. Results must agree; times are never judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .cases import CASES, Case
from .load import Load
from .report import Report, rate_words, time_words
from .timing import interleaved, synchronised

SECONDS = 1.0  # a case, both sides together

Results = tuple[torch.Tensor, ...]


def _call(case: Case, mine: bool, direction: str, device: torch.device) -> Callable[[], Results]:
    """One direction of a case, ready to run again and again."""
    function: Callable[..., torch.Tensor] = case.ours if mine else case.theirs
    tensors = case.inputs(device)
    if direction == "forward":
        return lambda: (function(*tensors),)
    if direction == "inference":

        def infer() -> Results:
            with torch.no_grad():
                return (function(*tensors),)

        return infer
    y = function(*tensors)
    dy = torch.empty_like(y).copy_(case.values(tuple(y.shape), torch.Generator().manual_seed(1)))
    wanted = [t for t in tensors if t is not None and t.requires_grad] + case.parameters(mine, device)
    if direction == "training":
        return lambda: torch.autograd.grad(function(*tensors), wanted, dy)
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def _assert_agree(case: Case, direction: str, ours: Results, theirs: Results) -> None:
    """Same shapes and dtypes, outputs of the same memory format; values as near as two orders of summation are."""
    for actual, expected in zip(ours, theirs, strict=True):
        largest = max(1.0, expected.abs().amax().item())
        bound = 2 * torch.finfo(expected.dtype).eps * (8 + 2 * case.reduction**0.5) * largest
        # torch's gradient of a channels_last global average is contiguous; ours keeps the input's format
        torch.testing.assert_close(actual, expected, rtol=0, atol=bound, check_stride=direction != "backward")


def _id(case: Case, direction: str) -> str:
    words = [case.op, *case.words(direction).split(), case.layout, direction]
    return "-".join(word for word in words if word not in ("*", "-"))


@pytest.mark.parametrize(
    ("case", "direction"),
    [pytest.param(case, direction, id=_id(case, direction)) for case in CASES for direction in case.directions],
)
@pytest.mark.benchmark(disable_gc=True)
def test_beside_torch(
    case: Case,
    direction: str,
    benchmark: BenchmarkFixture,
    device: torch.device,
    facts: dict[str, Any],
    report: Report,
    load: Load,
) -> None:
    ours, theirs = (synchronised(_call(case, mine, direction, device), device) for mine in (True, False))
    _assert_agree(case, direction, ours(), theirs())

    benchmark.group = f"{case.op} {direction}"
    medians = interleaved(benchmark, ours, {"torch": theirs}, SECONDS)
    if not benchmark.enabled:
        return
    share_elsewhere = load.share
    time, torch_time = medians["tilesmith"], medians["torch"]
    ratio = time / torch_time
    flops, bytes_moved = case.work(direction)
    benchmark.extra_info.update(
        facts,
        torch_median=torch_time,
        ratio=ratio,
        share_elsewhere=share_elsewhere,
        gflops_per_s=flops / time / 1e9,
        gbytes_per_s=bytes_moved / time / 1e9,
    )
    report.ops.rows.append(
        (
            case.op,
            direction,
            case.words(direction),
            case.layout,
            "float32",
            time_words(time),
            time_words(torch_time),
            report.trusted(f"{ratio:.2f}", share_elsewhere),
            rate_words(flops / time),
            rate_words(bytes_moved / time),
        )
    )
