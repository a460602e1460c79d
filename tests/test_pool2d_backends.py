"""2-D pooling on the GPU backends, where the cases that all ops share do not lead; each group says what it reaches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tilesmith import autotune, kernels
from tilesmith.kernels import _triton_tensors, pool2d
from tilesmith.kernels._recording import record
from tilesmith.kernels.pool2d import _cupy_space, _triton_space
from tilesmith.nn import functional

from .cases import _pool
from .harness import Case, gradients, guarded_outputs, laid_out
from .rigs import RIGS, Rig, assert_clean_under_sanitizers, check

FLOAT, DOUBLE, HALF, BFLOAT = torch.float32, torch.float64, torch.float16, torch.bfloat16
each_rig = pytest.mark.parametrize("rig", RIGS)
cuda = pytest.mark.parametrize("rig", RIGS[1::2])
triton = pytest.mark.parametrize("rig", RIGS[::2])

Reached = tuple[Case, torch.dtype, str, tuple[str, ...]]


@pytest.fixture
def running(rig: Rig) -> Iterator[Rig]:
    with rig.running():
        yield rig


def launched(case: Case, dtype: torch.dtype, layout: str) -> list[Any]:
    """What forward and backward of a case launch."""
    with record() as launches:
        gradients(case.ours, case.inputs(dtype, layout))
    return launches


def reaches(launches: list[Any], wanted: str) -> bool:
    """Whether there is a launch of the kernel that ``wanted`` begins with, with all constants that follow it."""
    name, *constants = wanted.split()
    return any(name == _name(one) and set(constants) <= _constants(one) for one in launches)


def _name(launch: Any) -> str:
    return launch.program.name if hasattr(launch, "program") else launch.kernel.fn.__name__


def _constants(launch: Any) -> set[str]:
    items = launch.program.macros if hasattr(launch, "program") else launch.args.items()
    return {f"{name}={value}" for name, value in items if not isinstance(value, torch.Tensor)}


# Windows that threads walk through, dilated and padded: rows and columns that the last window does not see last.
WALKED: list[Reached] = [
    (_pool("max_pool2d", (1, 1, 64, 64), 3, 1, 1, dilation=16), FLOAT, "contiguous", ("forward_planes SLIDING=0",)),
    (_pool("max_pool2d", (1, 1, 40, 40), 10, 1, 3, dilation=4), BFLOAT, "contiguous", ("forward_planes SLIDING=0",)),
]
# Windows that blocks reduce: in planes, with gaps between rows and padding; with channels inside, more elements than a
# small divisor divides; in parts, also maxima.
REDUCED: list[Reached] = [
    (_pool("max_pool2d", (1, 1, 130, 70), (60, 70), 1, dilation=(2, 1)), FLOAT, "contiguous", ("reduce_planes",)),
    (_pool("max_pool2d", (1, 2, 90, 81), 70, 20, 35), HALF, "contiguous", ("reduce_planes VECTOR=8",)),
    (_pool("avg_pool2d", (1, 2, 90, 81), 70, 20, 35), DOUBLE, "contiguous", ("reduce_planes MAXIMUM=0",)),
    (_pool("adaptive_max_pool2d", (1, 1, 260, 250), 1), FLOAT, "contiguous", ("reduce_planes SPLIT=1", "finish")),
    (_pool("max_pool2d", (1, 8, 40, 41), 17, 9, 8, dilation=2), FLOAT, "channels_last", ("reduce_channels",)),
    (_pool("adaptive_max_pool2d", (1, 2, 180, 181), 1), FLOAT, "channels_last", ("reduce_channels SPLIT=1", "finish")),
]
# Planes that lie in shared memory piece by piece: some rows of them, or parts of a row.
CUT: list[Reached] = [
    (_pool("max_pool2d", (1, 1, 200, 190), 3, 2, 1), FLOAT, "contiguous", ("forward_planes", "scatter_planes")),
    (_pool("avg_pool2d", (1, 1, 200, 190), 3, 2, 1), FLOAT, "contiguous", ("forward_planes", "spread_planes")),
    (_pool("max_pool2d", (1, 1, 3, 20000), 2, 2), FLOAT, "contiguous", ("forward_planes SOURCE_RUNS=ROW_RUNS",)),
    (_pool("avg_pool2d", (1, 1, 3, 20000), 3, 1, 1), FLOAT, "contiguous", ("forward_planes SOURCE_RUNS=ROW_RUNS",)),
]
# Means whose windows have gaps between them, count less at the edges, reach beyond the input, or are divided by a
# number of the caller's, which may be negative and of any size.
MEANS: list[Reached] = [
    (_pool("avg_pool2d", (1, 2, 12, 13), 7, 1, 3, count_include_pad=False), FLOAT, "contiguous", ("spread_planes",)),
    (
        _pool("avg_pool2d", (1, 8, 12, 13), 7, 1, 3, count_include_pad=False),
        HALF,
        "channels_last",
        ("spread_channels",),
    ),
    (_pool("avg_pool2d", (1, 2, 17, 16), 2, 5), FLOAT, "contiguous", ("spread_planes SLIDING=0",)),
    (_pool("avg_pool2d", (1, 8, 17, 16), 2, 5), FLOAT, "channels_last", ("spread_channels SLIDING=0",)),
    (_pool("avg_pool2d", (1, 1, 3, 3), 4, 2, ceil_mode=True), FLOAT, "contiguous", ("spread_whole",)),
    (_pool("avg_pool2d", (1, 1, 1, 17), (1, 16), 1), FLOAT, "contiguous", ("spread_planes SLIDING=1",)),
    (_pool("avg_pool2d", (1, 1, 6, 6), 3, 1, divisor_override=-5), FLOAT, "contiguous", ("spread_planes SLIDING=1",)),
    (_pool("avg_pool2d", (1, 8, 6, 6), 3, 1, divisor_override=-5), HALF, "channels_last", ("spread_channels",)),
    (_pool("avg_pool2d", (1, 3, 6, 6), 3, 1, divisor_override=2**33 + 1), DOUBLE, "contiguous", ("spread_planes",)),
    (_pool("avg_pool2d", (1, 1, 6, 6), 6, divisor_override=-(2**33)), FLOAT, "contiguous", ("spread_whole",)),
]
# Maxima of windows that begin behind what a plane's last row has.
MASKED: list[Reached] = [
    (
        _pool("max_pool2d", (1, 1, 1, 17), (1, 16), (1, 16), ceil_mode=True), DOUBLE, "contiguous",
        ("forward_planes SOURCE_RUNS=PLANE_RUNS MASKED=1",),
    ),
]  # fmt: skip


@cuda
@pytest.mark.parametrize(("case", "dtype", "layout", "reached"), [*WALKED, *REDUCED, *CUT, *MEANS, *MASKED], ids=str)
def test_cuda_values_and_gradients(
    case: Case, running: Rig, dtype: torch.dtype, layout: str, reached: tuple[str, ...]
) -> None:
    launches = launched(case, dtype, layout)
    assert all(reaches(launches, wanted) for wanted in reached), [_name(one) for one in launches]
    check(case, running, dtype, layout)


@cuda
@pytest.mark.parametrize("case", [WALKED[0][0], _pool("max_pool2d", (1, 1, 40, 90), 10, 1, 3, dilation=4)], ids=str)
def test_bands_of_walked_windows(case: Case, running: Rig) -> None:
    """Each plane in several bands."""
    bands = launched(case, FLOAT, "contiguous")[0].notes["problem"]
    config = next(
        config
        for config in _cupy_space.BANDS_FORWARD.configs(bands)
        if (found := _cupy_space.plan(config, bands)) and found.rows < bands.box[0]
    )
    with autotune.pin(_cupy_space.BANDS_FORWARD.name, config):
        check(case, running, FLOAT, "contiguous")


@cuda
@pytest.mark.parametrize("case", [c for c, *_ in CUT], ids=str)
def test_planes_are_cut(case: Case, running: Rig) -> None:
    launches = launched(case, FLOAT, "contiguous")
    assert all(one.grid[0] > 1 for one in launches)


@cuda
@pytest.mark.parametrize(
    ("case", "layout"),
    [(case, layout) for case, _, layout, _ in [*WALKED, *REDUCED, *CUT] if "max" in case.op],
    ids=str,
)
@pytest.mark.parametrize("values", ["ties", "nan"])
def test_cuda_indices_are_torchs(case: Case, layout: str, values: str, running: Rig) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(0, 3, case.shapes[0], generator=generator).float()
    if values == "nan":
        x[torch.rand(x.shape, generator=generator) < 0.3] = float("nan")
    (placed,) = running.place([laid_out(x, layout)])
    y, index = getattr(functional, case.op)(placed, **case.options, return_indices=True)
    y_torch, index_torch = getattr(F, case.op)(x, **case.options, return_indices=True)
    torch.testing.assert_close(y.cpu(), y_torch, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index.cpu(), index_torch)


@cuda
def test_the_last_element_of_a_large_window_counts(running: Rig) -> None:
    """More pixels and columns than 32 bits hold the product of, channels inside."""
    x = torch.zeros(1, 2, 26, 13107)
    x[..., -1, -1] = 1
    (placed,) = running.place([laid_out(x, "channels_last")])
    with record() as launches:
        functional.adaptive_max_pool2d(placed, 1)
    assert reaches(launches, "reduce_channels")
    assert torch.equal(functional.adaptive_max_pool2d(placed, 1).cpu(), torch.ones(1, 2, 1, 1))


# Channels behind the first one, which no vector is aligned to; double backward of maxima with channels inside.
@cuda
@pytest.mark.parametrize(
    "case",
    [_pool("max_pool2d", (2, 8, 7, 9), 3, 2, 1), _pool("avg_pool2d", (2, 8, 7, 9), 3, 2, 1)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=str)
def test_channels_behind_the_first(
    case: Case, running: Rig, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = running.place(case.inputs(dtype, "channels_last"))
    (wide,) = case.inputs(torch.float64)
    with torch.no_grad():
        wide.copy_(whole)
    with guarded_outputs(monkeypatch) as checks:
        y, (grad,) = gradients(lambda t: case.ours(t[:, 1:]), [whole])
        for outside in checks:
            outside()
    y_oracle, (oracle,) = gradients(lambda t: case.theirs(t[:, 1:]), [wide])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.cpu().double(), y_oracle, rtol=4 * eps, atol=4 * eps)
    torch.testing.assert_close(grad.cpu().double(), oracle, rtol=8 * eps, atol=8 * eps)


@each_rig
@pytest.mark.parametrize(
    "case",
    [
        _pool("max_pool2d", (1, 2, 3, 4), 3, 2, 1, dilation=(1, 2)),
        _pool("adaptive_max_pool2d", (1, 2, 3, 4), (2, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("indices", [False, True])
def test_double_backward_with_channels_inside(case: Case, running: Rig, indices: bool) -> None:
    """The derivative of the gradient by the output's gradient: each window's element."""

    def gathered(pool: Any, x: torch.Tensor, **more: bool) -> torch.Tensor:
        result = pool(x, **case.options, **more)
        y = result[0] if more else result
        generator = torch.Generator().manual_seed(4)
        dy = torch.randn(y.shape, generator=generator, dtype=x.dtype).to(x.device).requires_grad_()
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        weights = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        (ddy,) = torch.autograd.grad((dx * weights).sum(), dy)
        return ddy

    (x,) = case.inputs(layout="channels_last", seed=3)
    (placed,) = running.place([x])
    more = {"return_indices": True} if indices else {}
    ours = gathered(getattr(functional, case.op), placed, **more)
    assert torch.equal(ours.cpu(), gathered(case.oracle, x))


# ---- Triton: its kernels for large windows, with padding, gaps and what counts

TRITON: list[Reached] = [
    (
        _pool("max_pool2d", (1, 1, 10, 9), 5, 2, 2, dilation=2), FLOAT, layout,
        ("looped_windows PAD_H=2 DILATION_W=2", "max_gather_windows PAD_H=2 DILATION_W=2"),
    )
    for layout in ("contiguous", "channels_last")
] + [
    (
        _pool("avg_pool2d", (1, 2, 9, 24), 5, 5, 2, count_include_pad=False), FLOAT, "contiguous",
        ("bands PAD_W=2 COUNTED=True",),
    ),
    (_pool("avg_pool2d", (1, 4, 7, 8), 7, 2, 3, count_include_pad=False), FLOAT, "channels_last", ("bands PAD_W=3",)),
    (_pool("avg_pool2d", (1, 2, 17, 16), 2, 5), FLOAT, "contiguous", ("mean_gather_windows STRIDE_H=5",)),
    (_pool("avg_pool2d", (1, 4, 17, 16), 2, 5), FLOAT, "channels_last", ("mean_gather_windows STRIDE_H=5",)),
    (_pool("avg_pool2d", (1, 2, 13, 12), 2, 3), FLOAT, "contiguous", ("mean_blocks STRIDE_H=3",)),
]  # fmt: skip


@triton
@pytest.mark.parametrize(("case", "dtype", "layout", "reached"), TRITON, ids=str)
def test_triton_values_and_gradients(
    case: Case, running: Rig, dtype: torch.dtype, layout: str, reached: tuple[str, ...]
) -> None:
    launches = launched(case, dtype, layout)
    assert all(reaches(launches, wanted) for wanted in reached), [(_name(one), _constants(one)) for one in launches]
    check(case, running, dtype, layout)


@triton
@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
def test_triton_bands_of_several_windows(op: str, running: Rig) -> None:
    """A program that reduces neighbouring windows from the same rows: GROUP > 1."""
    case = _pool(op, (1, 2, 9, 24), 5, 5, 2)
    (problem,) = (one.notes["problem"] for one in launched(case, FLOAT, "contiguous") if _name(one) == "bands")
    tunable = _triton_space.BANDS[True]
    config = next(config for config in tunable.configs(problem) if _triton_space.group_of(config, problem) > 1)
    with autotune.pin(tunable.name, config):
        check(case, running, FLOAT, "contiguous")


# ---- what no emulator can hold: launches recorded on tensors without memory


def _meta(shape: tuple[int, ...], dtype: torch.dtype = HALF) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _recorded(function: str, problem: Any, *tensors: torch.Tensor | None, backend: str = "cupy") -> list[Any]:
    with record() as launches:
        getattr(pool2d.OPERATION.named(backend), function)(problem, *tensors)
    assert launches
    assert all(one.grid[0] < 2**31 for one in launches)
    return launches


@pytest.mark.parametrize("plane", [(16384, 16384), (16384, 16383), (16381, 16381)], ids=str)
def test_elements_of_a_block_are_counted_in_32_bits(plane: tuple[int, int]) -> None:
    dy, dx = _meta((1, 8, 1, 1)), _meta((1, 8, *plane))
    for launch in _recorded("adaptive_avg_backward", pool2d.make_adaptive_problem(dx.shape, (1, 1)), dy, dx):
        vector = int(dict(launch.program.macros)["VECTOR"])
        group, size = (int(number) for number in launch.args[3:5])
        assert group * size < 2**31 - launch.block[0] * vector
        assert group * size % vector == 0


def test_planes_of_a_launch_are_counted_in_32_bits() -> None:
    window = (2, 2, 2, 2, 0, 0, 1, 1)
    x = _meta((65536, 32768, 2, 2))
    problem = pool2d.make_problem(x.shape, window)
    y = _meta((65536, 32768, 1, 1))
    assert len(_recorded("avg_forward", problem, x, y)) > 1
    assert len(_recorded("avg_backward", problem, y, x)) > 1
    assert len(_recorded("max_forward", problem, x, y, None)) > 1


def test_windows_of_a_launch_are_counted_in_32_bits() -> None:
    """More windows, each a block's, than a grid has blocks: also of one image, and in parts."""
    for shape, size in (((8, 256, 1024, 1024), 65), ((1, 2, 30000, 30000), 65)):
        x = _meta(shape, FLOAT)
        problem = pool2d.make_problem(shape, (size, size, 1, 1, size // 2, size // 2, 1, 1))
        launches = _recorded("max_forward", problem, x, _meta(shape, FLOAT), None)
        assert {one.program.name for one in launches} == {"reduce_planes"}
        assert len(launches) > 1
        problem = launches[0].notes["problem"]
        assert all(problem.windows * config["SPLITS"] < 2**31 for config in _cupy_space.REDUCE.configs(problem))


def test_triton_offsets_of_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the index lies so far apart that its offsets take 64 bits."""
    monkeypatch.setattr(_triton_tensors, "LIMIT", 2**18)
    for window in ((2, 2, 2, 2, 0, 0, 1, 1), (5, 5, 1, 1, 0, 0, 1, 1)):
        problem = pool2d.make_problem((1, 1, 16, 16), window)
        dy, dx = _meta((1, 1, problem.P, problem.Q)), _meta((1, 1, 16, 16))
        for pitch, wide in ((problem.Q, False), (2**18, True)):
            index = torch.empty_strided(dy.shape, (0, 0, pitch, 1), dtype=torch.uint8, device="meta")
            (launch,) = _recorded("max_backward", problem, dy, index, dx, backend="triton")
            assert launch.args["WIDE"] is wide


# ---- costs


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", [_pool("max_pool2d", (2, 8, 9, 8), 3, 2, 1), REDUCED[3][0], MEANS[0][0]], ids=str)
def test_costs_tell_the_unit(case: Case, layout: str) -> None:
    with kernels.backend("cupy"):
        for dtype, unit in ((FLOAT, "fma"), (DOUBLE, "double")):
            noted = [one.notes for one in launched(case, dtype, layout) if one.notes]
            assert noted
            assert {note["tunable"].cost(note["config"], note["problem"]).unit for note in noted} == {unit}


def test_pairs_of_maxima_have_a_key_of_their_own() -> None:
    """One column of windows and two are the same windows, but different machine code."""
    keys = set()
    with kernels.backend("cupy"):
        for columns in (3, 5):
            launch = launched(_pool("max_pool2d", (1, 2, 5, columns), (3, 3), 2), HALF, "contiguous")[0]
            keys.add((launch.notes["problem"].width, launch.notes["problem"].key.exact))
    assert len({exact for _, exact in keys}) == len({width for width, _ in keys}) == 2


# ---- accesses


def test_cuda_kernels_under_sanitizers() -> None:
    assert_clean_under_sanitizers("""
        from tests.test_pool2d_backends import MASKED, MEANS
        for case, dtype, layout, _ in (MEANS[5], MASKED[0]):
            run(case, dtype, layout)
    """)
