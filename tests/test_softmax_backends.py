"""What softmax and activations on a GPU need beside the checks of every op: each way through the kernels, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest
import torch
from tilesmith import autotune, kernels
from tilesmith.kernels import _triton_tensors, activation, softmax
from tilesmith.kernels._recording import record

from .harness import assert_within
from .rigs import RIGS, Rig, assert_clean_under_sanitizers, assert_order_changes_no_bit

# Triton's interpreter computes lanes that are masked off, too
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

# ---- softmax: every way through the kernels


@dataclass(frozen=True)
class Way:
    """A configuration that makes a backend take one way, with sizes around its limits.

    Attributes:
        config: of the tunable that rows or columns run with.
        launches: how many there are.
        marks: arguments or macros of the first launch by which the way is known.
        multiprocessors: of the GPU that is planned for: with one, nothing is cut into parts.
    """

    backend: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    dim: int
    config: dict[str, int]
    launches: int
    marks: dict[str, Any]
    multiprocessors: int = 1

    def __str__(self) -> str:
        return f"{self.backend}-{self.name}"

    @property
    def tunable(self) -> str:
        rows = self.dim == len(self.shapes[0]) - 1
        return f"{self.backend}.softmax.{'rows' if rows else 'columns'}"

    @contextmanager
    def running(self, order: str = "forward") -> Iterator[ModuleType]:
        """The backend's module, with the configuration pinned for both directions."""
        device = replace(autotune.TARGETS["sm_90"], multiprocessors=self.multiprocessors)
        with (
            pytest.MonkeyPatch.context() as patch,
            Rig(self.backend, order=order).running(),
            autotune.pin(self.tunable, self.config),
            autotune.pin(f"{self.tunable}_backward", self.config),
        ):
            patch.setattr(autotune, "device_of", lambda tensor: device)
            yield softmax.OPERATION.named(self.backend)


def _way(backend: str, name: str, shapes: Any, dim: int, launches: int, marks: dict[str, Any], config: Any) -> Way:
    again = marks.get("READS") and marks.get("WRITES") and not marks.get("CACHED")
    blocks = {"BLOCKS": 1 if again else 2}  # a multiprocessor; with one of each nothing is cut
    return Way(backend, name, shapes, dim, {**config, **blocks}, launches, marks, 132 if launches > 1 else 1)


def _triton(name: str, shapes: Any, dim: int, launches: int, marks: dict[str, Any], **config: int) -> Way:
    warps = 4 if config else 2  # columns, or rows
    return _way("triton", name, shapes, dim, launches, marks, {"ELEMENTS": 1024, "num_warps": warps, **config})


def _cupy(name: str, shapes: Any, dim: int, launches: int, marks: dict[str, Any], **config: int) -> Way:
    return _way("cupy", name, shapes, dim, launches, marks, {"THREADS": 128, "CACHED": 0, **config})


BOTH, FIRST = {"READS": True, "WRITES": True}, {"READS": True, "WRITES": False}
WHOLE, LONGER, CACHED = ({"WHOLE": i == 0, "CACHED": i == 2} for i in range(3))
NEIGHBOURS = {"BLOCK_SLICES": 32}
WAYS = [
    _triton("several rows a tile", ((70, 10), (5, 16), (3, 17)), 1, 1, {"COLUMNS": False}),
    _triton("a row a tile", ((3, 1023), (2, 1024), (2, 640)), 1, 1, {"COLUMNS": False}),
    _triton("longer rows", ((3, 1025), (2, 2048), (2, 3001)), 1, 1, {"COLUMNS": False, **BOTH}),
    _triton("rows in parts", ((1, 1025), (3, 2049), (1, 5000)), 1, 2, {"COLUMNS": False, **FIRST}),
    _triton("columns of planes", ((3, 21, 40), (2, 8, 24), (9, 7, 3)), 1, 1, {"PLANES": True}, **NEIGHBOURS),
    _triton("columns of a matrix", ((21, 150), (32, 24), (5, 23)), 0, 1, {"PLANES": False}, **NEIGHBOURS),
    _triton("longer columns", ((2, 33, 40), (2, 65, 24), (3, 130, 7)), 1, 1, {"PLANES": True, **BOTH}, **NEIGHBOURS),
    _triton("columns in parts", ((33, 24), (130, 40), (300, 23)), 0, 2, {"COLUMNS": True, **FIRST}, **NEIGHBOURS),
    _cupy("lanes a row", ((70, 10), (5, 16), (3, 17)), 1, 1, {"COLUMNS": 0, **WHOLE}, UNITS=1),
    _cupy("a warp a row", ((5, 500), (3, 512), (2, 301)), 1, 1, {"COLUMNS": 0, **WHOLE}, UNITS=4),
    _cupy("a block a row", ((3, 1400), (2, 2048), (2, 1601)), 1, 1, {"COLUMNS": 0, **WHOLE}, UNITS=4),
    _cupy("longer rows", ((3, 517), (2, 1024), (2, 1801)), 1, 1, {"COLUMNS": 0, **LONGER, **BOTH}, UNITS=1),
    _cupy("rows in shared memory", ((3, 2053), (2, 4096)), 1, 1, {"COLUMNS": 0, **CACHED, **BOTH}, UNITS=2, CACHED=1),
    _cupy("rows in parts", ((1, 1025), (3, 2049), (1, 5003)), 1, 2, {"COLUMNS": 0, **LONGER, **FIRST}, UNITS=1),
    _cupy("a thread a column", ((3, 4, 100), (7, 3, 40), (5, 4, 65)), 1, 1, {"COLUMNS": 1, **WHOLE}, UNITS=4, TEAM=1),
    _cupy("a team a column", ((2, 30, 40), (2, 32, 24), (3, 17, 7)), 1, 1, {"COLUMNS": 1, **WHOLE}, UNITS=4, TEAM=8),
    _cupy("longer columns", ((2, 33, 40), (2, 65, 24), (3, 130, 7)), 1, 1, {"COLUMNS": 1, **LONGER, **BOTH},
          UNITS=4, TEAM=8),
    _cupy("columns in shared memory", ((33, 40), (64, 48), (130, 13)), 0, 1, {"COLUMNS": 1, **CACHED, **BOTH},
          UNITS=4, TEAM=8, CACHED=1),
    _cupy("columns in parts", ((33, 40), (130, 40), (300, 13)), 0, 2, {"COLUMNS": 1, **LONGER, **FIRST},
          UNITS=4, TEAM=8),
]  # fmt: skip

each_way = pytest.mark.parametrize("way", WAYS, ids=str)


MARGIN = 64  # elements: an address inside is a multiple of 16 bytes, as outside


def surrounded(values: torch.Tensor, by: float) -> torch.Tensor:
    """The values, with others before and behind them in memory."""
    buffer = torch.full((values.numel() + 2 * MARGIN,), by, dtype=values.dtype)
    return buffer[MARGIN:-MARGIN].view(values.shape).copy_(values)


def untouched(tensor: torch.Tensor, by: float) -> bool:
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return bool((whole[:MARGIN] == by).all() and (whole[-MARGIN:] == by).all())


def both_directions(
    module: ModuleType, dim: int, log: bool, x: torch.Tensor, dy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and gradient from a backend's functions, of inputs among NaNs. What they do not write is NaN."""
    x, dy = surrounded(x, math.nan), surrounded(dy, math.nan)
    y, dx = (surrounded(torch.full_like(x, math.nan), 7.0) for _ in range(2))
    module.forward((dim, log), x, y)
    assert untouched(y, 7.0)
    module.backward((dim, log), dy, surrounded(y, math.nan), dx)
    assert untouched(dx, 7.0)
    return y, dx


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).to(dtype)


def gradient(y: torch.Tensor, dy: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    """In float64, from the output as it was rounded."""
    y, dy = y.double(), dy.double()
    return dy - y.exp() * dy.sum(dim, keepdim=True) if log else y * (dy - (dy * y).sum(dim, keepdim=True))


def compare(module: ModuleType, dim: int, log: bool, x: torch.Tensor, dy: torch.Tensor) -> None:
    y, dx = both_directions(module, dim, log, x, dy)
    expected = torch.log_softmax(x.double(), dim) if log else torch.softmax(x.double(), dim)
    assert_within(y, expected, x.dtype, x.shape[dim], "output", half_roundings=0.5)
    assert_within(dx, gradient(y, dy, dim, log), x.dtype, x.shape[dim], "gradient", half_roundings=0.5)


def told(way: Way, launch: Any) -> dict[str, Any]:
    """What a launch says of the way it takes."""
    marks = launch.args if way.backend == "triton" else dict(launch.program.macros)
    return {name: bool(int(marks[name])) for name in way.marks}


each_way = pytest.mark.parametrize("way", WAYS, ids=str)


@each_way
def test_every_way(way: Way) -> None:
    """Sizes about the limits of a tile, rows that start anywhere in 16 bytes; softmax and its logarithm in turn."""
    with way.running() as module:
        for number, shape in enumerate(way.shapes):
            log = number % 2 == 1
            x, dy = drawn(shape), drawn(shape, seed=1)
            with record() as launches:
                both_directions(module, way.dim, log, x, dy)
            assert len(launches) == 2 * way.launches
            for launch in launches[:: way.launches]:
                assert told(way, launch) == {name: bool(mark) for name, mark in way.marks.items()}
            compare(module, way.dim, log, x, dy)


@each_way
@pytest.mark.parametrize("special", ["all -inf", "-inf", "inf", "nan", "huge"])
def test_special_slices_are_torchs(way: Way, special: str) -> None:
    """One slice of them; what is special about it comes last, where another part or tile has seen the rest."""
    shape = way.shapes[0]
    x, dy = drawn(shape), drawn(shape, seed=1)
    first = x[tuple(slice(None) if d == way.dim else 0 for d in range(len(shape)))]
    first[0] = -3e38
    if special == "all -inf":
        first.fill_(-math.inf)
    else:
        first[-1] = {"-inf": -math.inf, "inf": math.inf, "nan": math.nan, "huge": 3.4e38}[special]
    with way.running() as module:
        y, dx = both_directions(module, way.dim, False, x, dy)
    torch.testing.assert_close(y, torch.softmax(x, way.dim), equal_nan=True, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dx.double(), gradient(y, dy, way.dim, False), equal_nan=True, rtol=1e-4, atol=1e-6)


@each_way
def test_offsets_past_the_limit_of_32_bits(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """From few elements on they are 64-bit, and Triton's launches count no more slices."""
    shape = way.shapes[-1]
    with way.running() as module:
        if way.backend == "triton":
            monkeypatch.setattr(_triton_tensors, "LIMIT", 30)
        else:
            monkeypatch.setattr(module, "_OFFSETS", 1)
        x, dy = drawn(shape), drawn(shape, seed=1)
        with record() as launches:
            both_directions(module, way.dim, len(way.shapes) % 2 == 0, x, dy)
        for launch in launches:
            if way.backend == "triton":
                assert launch.args["WIDE"]
                assert launch.args["slices"] * launch.args["ALIGN"] < 30 or not launch.args["PLANES"]
            else:
                assert dict(launch.program.macros)["INDEX"] == "long long"
        if way.backend == "triton" or not way.marks["COLUMNS"]:  # a compilation each: rows and columns share their code
            compare(module, way.dim, len(way.shapes) % 2 == 0, x, dy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_one_rounding(backend: str, dim: int, dtype: torch.dtype) -> None:
    """Half types are computed in float32 and rounded once, in rows and in columns, whole and in parts."""
    with Rig(backend).running():
        module = softmax.OPERATION.named(backend)
        for length in (41, 2501):
            shape = (3, length) if dim else (length, 3)
            compare(module, dim, length > 41, drawn(shape, dtype), drawn(shape, dtype, 1))


CUDA = [way for way in WAYS if way.backend == "cupy"]


@pytest.mark.parametrize("way", [way for way in CUDA if way.name not in ("lanes a row", "a thread a column")], ids=str)
def test_the_order_of_fibers_changes_no_bit(way: Way) -> None:
    shape = way.shapes[1]

    def results(order: str) -> list[torch.Tensor]:
        with way.running(order) as module:
            return list(both_directions(module, way.dim, True, drawn(shape), drawn(shape, seed=1)))

    assert_order_changes_no_bit(results)


def test_cuda_kernels_under_sanitizers(one_in: Callable[[str], int]) -> None:
    assert_clean_under_sanitizers(
        """
        from tests import test_softmax_backends as tests
        watched = _cuda.emulator
        for way in some(tests.CUDA):
            for shape in (way.shapes[0], way.shapes[-1])[: 1 + (way.dim == 1)]:
                with way.running() as module:
                    _cuda.emulator = watched
                    x, y = torch.randn(shape), torch.empty(shape)
                    module.forward((way.dim, False), x, y)
                    module.backward((way.dim, False), x, y, torch.empty(shape))
    """,
        one_in("test_softmax_backends.py"),
    )


# ---- activations


KINDS = ("relu", "sigmoid", "tanh")
BACKENDS = [*RIGS, pytest.param("numpy", id="numpy")]
NUMBERS = [math.nan, -1.0, 0.0, -0.0, 2.0, math.inf, -math.inf, math.nan, 3.0]


@contextmanager
def asked(rig: Any) -> Iterator[str]:
    """Ops run on a rig, or on NumPy. Yields the device."""
    with kernels.backend("numpy") if rig == "numpy" else rig.running():
        yield "cpu" if rig == "numpy" else rig.device


@pytest.mark.parametrize("rig", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_gradient_of_relu_passes_where_the_output_is_nan(rig: Any, dtype: torch.dtype) -> None:
    """torch's rule: it stops where the output is 0 or less, and nowhere else; what passes is not changed."""
    for gradients in ([5.0] * 9, NUMBERS[::-1]):
        y, dy = torch.tensor(NUMBERS, dtype=dtype), torch.tensor(gradients, dtype=dtype)
        expected = torch.ops.aten.threshold_backward(dy, y, 0)
        with asked(rig) as device:
            dx = activation.backward(dy.to(device), y.to(device), "relu").cpu()
        torch.testing.assert_close(dx, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rig", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_in_place(rig: Any, kind: str) -> None:
    x = torch.cat([drawn((2000,)), torch.tensor(NUMBERS)])
    with asked(rig) as device:
        y = activation.forward(x.to(device), kind)
        if rig == "numpy":
            activation.OPERATION.named("numpy").forward(kind, x.numpy(), x.numpy())
        else:
            x = x.to(device)
            activation.OPERATION.named(rig.backend).forward(kind, x, x)
    torch.testing.assert_close(x.cpu(), y.cpu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rig", RIGS)
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_addresses_and_ends_that_no_vector_fits(rig: Rig, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with offsets of 64 bits, from few elements on."""
    n = 1030
    monkeypatch.setattr(_triton_tensors, "LIMIT", n)
    with rig.running():
        x, dy, y, dx = (torch.full((n + offset + 9,), 7.0).to(rig.device)[offset : offset + n] for _ in range(4))
        x.copy_(drawn((n,)))
        dy.copy_(drawn((n,), seed=1))
        module = activation.OPERATION.named(rig.backend)
        module.forward("relu", x, y)
        module.backward("relu", dy, y, dx)
    assert torch.equal(y, x.clamp(min=0))
    assert torch.equal(dx, dy * (x > 0))
    for tensor in (y, dx):
        whole = torch.empty(0, device=rig.device).set_(tensor.untyped_storage())
        assert (whole[:offset] == 7).all()
        assert (whole[offset + n :] == 7).all()
