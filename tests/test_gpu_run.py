"""The GPU run (`make gpu`), tried on the CPU: its files, its verdicts, its limits; and the standard set."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tilesmith.autotune import TARGETS
from tilesmith.kernels import pool2d
from tilesmith.kernels._arrays import Array
from tilesmith.kernels.conv2d import Conv2dProblem, _numpy
from torch.nn import functional

from benchmarks import gpu_report, gpu_row, gpu_run
from benchmarks.gpu_row import Session, Settings, Side
from benchmarks.gpu_run import NoAnswer, Options, Process, run
from benchmarks.layers import CONTIGUOUS, FUSED, IMAGES, Layer, Sum
from benchmarks.layers.convolution import DIRECTIONS
from benchmarks.layers.fused import FusedBlock
from benchmarks.layers.pooling import MAX_DIRECTIONS, distinct
from benchmarks.standard import CONVOLUTIONS, EVERY_DTYPE, EVERY_DTYPE_ONCE, LAYERS, UNTIMED

ROOT = Path(__file__).resolve().parent.parent
ROWS = 147
ONE_LAYER = "MNIST conv2"
ITS_ROWS = 8  # two dtypes, four directions


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny layers beside other work: two threads that wait for each other take seconds for nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Inline:
    """A worker in this process, where kernels can be replaced."""

    def __init__(self, settings: Settings, heed: Callable[[], None]) -> None:
        self._session = Session(settings)

    def ask(self, question: str, *arguments: Any, seconds: float) -> Any:
        return getattr(self._session, question)(*arguments)

    def stop(self) -> None:
        pass


def options(out: Path, **changes: Any) -> Options:
    plain = Options(out, minutes=2.0, tests="", checkers=0, settings=Settings("cpu", only=ONE_LAYER))
    return replace(plain, **changes)


def results_in(out: Path) -> dict[str, Any]:
    """What results.json holds, once all files are seen to be whole and to agree."""
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line for line in lines if line["kind"] == "row"] == [
        {"kind": "row", **row} for row in results["rows"] if row["timed"]
    ]
    assert lines[-1]["kind"] == "end"
    ElementTree.parse(out / "results.svg")
    assert (out / "results.md").read_text() == gpu_report.markdown(results)
    assert not list(out.glob(".results*"))
    return results


def command(out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# ---- the standard set


@pytest.mark.parametrize(
    ("name", "gflop", "megabytes", "floors_us"),
    [  # floors of an H200 in bfloat16: forward, input_grad, weight_grad; by hand from its data sheet
        ("MobileNetV2 dw3 144@56", 2.08, 462.4, (96.3, 96.3, 96.3)),
        ("ResNeXt g32 128@56", 1.85, 102.8, (21.4, 21.4, 21.4)),
        ("ResNet-50 s2 3x3", 59.19, 103.1, (59.8, 59.8, 59.8)),
        ("ConvNeXt dw7 96@56", 1.89, 77.1, (28.2, 28.2, 28.2)),
        ("ResNet-50 1x1/2", 13.15, 154.4, (16.1, 32.2, 16.1)),
        ("ASPP d12 2048@33", 164.43, 89.7, (166.3, 166.3, 166.3)),
    ],
)
def test_floors(name: str, gflop: float, megabytes: float, floors_us: tuple[float, ...]) -> None:
    layer = _convolution(name)
    assert layer.problem.flops / 1e9 == pytest.approx(gflop, abs=0.006)
    assert layer.problem.bytes_moved(2) / 1e6 == pytest.approx(megabytes, abs=0.06)
    assert _floors_us(layer, "bfloat16") == pytest.approx(floors_us, abs=0.06)


@pytest.mark.parametrize(
    ("name", "floors_us"),
    [  # by hand too; of poolings with a byte a window: without index, forward, backward
        ("ResNet-50 maxpool 3/2", (26.8, 29.4, 29.4)),
        ("VGG maxpool 2 64@224", (107.0, 117.7, 117.7)),
        ("MNIST maxpool 2 32@26", (1.4, 1.6, 1.6)),
        ("DenseNet avgpool 2 256@56", (26.8, 26.8)),
        ("Inception avgpool 3/1 288@35", (18.8, 18.8)),
        ("PSP avgpool 60 to 6", (49.6, 49.6)),
        ("PSP avgpool 60 to 7", (49.8, 49.8)),
        ("global avgpool 2048@7", (10.9, 10.9)),
        ("global maxpool 512@14", (2.7, 2.7, 2.7)),
        # 128 images of 28x28 and 9x32 weights in, 13x13 of 32 channels out, and as many bytes
        ("MNIST block 1", (0.47, 0.77)),
        # 2 x 4096 x 1024 x 4096 FLOPs
        ("Transformer dense 1024 to 4096", (34.7, 34.7, 34.7)),
        ("softmax 65536 of 1000", (54.6, 81.9)),
        ("ReLU 64@224", (171.3, 256.9)),
    ],
)
def test_floors_of_other_kinds(name: str, floors_us: tuple[float, ...]) -> None:
    layer = _layer(name)
    assert _floors_us(layer, "bfloat16") == pytest.approx(floors_us, abs=0.06)
    assert all(
        layer.bytes_moved(direction, 4) > 1.6 * layer.bytes_moved(direction, 2) for direction in layer.directions
    )


def test_a_published_pooling_has_its_floor() -> None:
    assert _floors_us(_layer("ResNet-50 maxpool 3/2 fp16"), "float16") == pytest.approx((13.4, 14.7, 14.7), abs=0.06)


def _layer(name: str) -> Layer:
    return next(layer for layer in LAYERS if layer.name == name)


def _convolution(name: str) -> Any:
    return next(layer for layer in CONVOLUTIONS if layer.name == name)


def _floors_us(layer: Layer, dtype: str) -> list[float]:
    directions = [direction for direction in layer.directions if layer.operation.name != "conv2d" or direction != FUSED]
    return [layer.floor_seconds(direction, dtype, TARGETS["sm_90"]) * 1e6 for direction in directions]


def test_float32_floors_depend_on_tensor_cores() -> None:
    core = _convolution("ResNet-50 s2 3x3")
    device = TARGETS["sm_90"]
    assert core.floor_seconds("forward", "float32", device) == pytest.approx(core.problem.flops / 495e12)
    assert core.floor_seconds("forward", "float32", device, tf32=False) == pytest.approx(core.problem.flops / 66.9e12)


def test_the_standard_set() -> None:
    names = [layer.name for layer in LAYERS]
    assert len(CONVOLUTIONS) == 20
    assert len(names) == len(set(names))
    assert set(names) >= EVERY_DTYPE | EVERY_DTYPE_ONCE
    assert not set(names) & {layer.name for layer in UNTIMED}
    assert {layer.operation.name for layer in LAYERS} == {
        "conv2d", "pool2d", "conv_pool2d", "linear", "softmax", "activation"
    }  # fmt: skip
    assert not any("," in name for name in names)
    for layer in LAYERS:
        assert layer.dtypes[0] in ("bfloat16", "float16")
        assert layer.layouts in (IMAGES, ("NCHW",), CONTIGUOUS)
        assert layer.at_most(3).at_most(100) == layer.at_most(3)
        json.dumps(layer.sizes)
    with_target = {row.layer.name for row in Settings().rows() if any(row.target(layout) for layout in IMAGES)}
    assert with_target >= {layer.name for layer in CONVOLUTIONS}
    depthwise = _convolution("MobileNetV2 dw3 144@56")
    assert depthwise.problem.depthwise
    assert [_ratio(depthwise, "forward", layout) for layout in IMAGES] == [2.0, 1.2]
    assert _ratio(depthwise, "weight_grad", "NCHW") == 3.0
    assert depthwise.target("forward", "NCHW", "float32") is None


def _ratio(layer: Layer, direction: str, layout: str) -> float | None:
    target = layer.target(direction, layout, "bfloat16")
    return None if target is None else target.ratio


def test_targets_of_poolings() -> None:
    """0.85 of the floor, wherever that is longer than a launch takes; maxima of overlapping windows 3 and 2 times."""
    poolings = [layer for layer in LAYERS if layer.operation.name == "pool2d"]
    assert len(poolings) == 10
    for layer in poolings:
        for direction, layout in ((direction, layout) for direction in layer.directions for layout in layer.layouts):
            target = layer.target(direction, layout, layer.dtypes[0])
            long = layer.floor_seconds(direction, layer.dtypes[0], TARGETS["sm_90"]) > 5e-6
            assert (target is not None and target.of_floor == 0.85) == long
    assert [_ratio(_layer("ResNet-50 maxpool 3/2"), direction, "NCHW") for direction in MAX_DIRECTIONS] == [
        3.0,
        3.0,
        2.0,
    ]
    assert [_ratio(_layer(f"PSP avgpool 60 to {n}"), "backward", "channels_last") for n in (6, 7)] == [3.0, 3.0]
    assert [_ratio(_layer(f"MNIST block {n}"), "forward", "NCHW") for n in (1, 2)] == [2.0, 2.0]


def test_rows_with_a_target_come_first() -> None:
    rows = Settings().rows()
    assert len(rows) == ROWS
    aims = [any(row.target(layout) for layout in row.layer.layouts) for row in rows]
    assert aims == sorted(aims, reverse=True)
    assert rows[0].layer is LAYERS[0]
    assert Settings(quick=True).run(LAYERS[0]).sizes["N"] == 4


# ---- operands


@pytest.mark.parametrize("size", [(20, 33), (14, 14)])
def test_no_window_has_a_value_twice(size: tuple[int, int]) -> None:
    x = distinct(torch.Generator().manual_seed(0), 2, 3, *size)
    assert torch.equal(x.bfloat16().float(), x)
    windows = functional.unfold(x, (min(16, size[0]), min(16, size[1]))).unflatten(1, (3, -1)).sort(2).values
    assert (windows.diff(dim=2) > 0).all()
    assert not torch.equal(x[0, 0], x[1, 2])


def test_one_rounding_of_what_is_exact_and_no_more() -> None:
    exact = torch.tensor([1.0, 257.0, -3.0], dtype=torch.float64)
    compared = partial(gpu_row._compared, reference=exact, dtype=torch.bfloat16, arithmetic="ieee")
    assert compared(exact.bfloat16(), sums=None).of_bound == 0
    one_more = torch.tensor([1.0, 258.0, -3.0]).bfloat16()  # 257 lies between 256 and 258, and is rounded to 256
    wrong = compared(one_more, sums=None)
    assert (wrong.status, "worst at [1], 2 off what is exact" in wrong.message) == ("wrong", True)
    assert compared(one_more, sums=Sum(1, 1.0)).status == "ok"
    assert compared(torch.full((3,), math.nan).bfloat16(), sums=None).message.startswith("3 of 3 elements are NaN")
    assert compared(exact.float(), sums=None).message.startswith("it is [3] of torch.float32")


# ---- the command


def test_a_whole_run(tmp_path: Path) -> None:
    """By the command, with tests that pass, checks in a process of their own, and every kind of row."""
    tests = tmp_path / "test_something.py"
    tests.write_text("import pytest\n@pytest.mark.gpu\ndef test_it(): pass\ndef test_other(): assert False\n")
    out = tmp_path / "out"
    process = command(out, "--device", "cpu", "--only", ONE_LAYER, "--tests", str(tests), "--minutes", "2")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    results = results_in(out)
    assert len(results["rows"]) == results["rows_in_all"] == ITS_ROWS
    assert "1 passed, 1 deselected" in (out / "pytest.txt").read_text()
    assert results["tests"]["passed"]
    facts = results["facts"]
    assert facts["torch"] == torch.__version__
    assert facts["numpy"] == np.__version__
    assert facts["date"].endswith("+00:00")
    assert facts["import"] == "as installed"
    assert facts["copy_bytes_per_second"] > 0
    assert {row["direction"] for row in results["rows"]} == {FUSED, *DIRECTIONS}
    for row in results["rows"]:
        assert list(row["sides"]) == [f"{who} {layout}" for who in ("numpy", "torch") for layout in IMAGES]
        assert row["floor_seconds"] > 0
        for side in row["sides"].values():
            assert side["status"] == "ok"
            first, third = side["quartile_seconds"]
            assert 0 < first <= side["median_seconds"] <= third
            assert side["loop_seconds"] > 0
            assert side["first_call_seconds"] > 0
            assert side["repeats"] >= 1
            assert side["who"] == "torch" or 0 < side["of_bound"] <= 1
    report = (out / "results.md").read_text()
    assert f"| {ONE_LAYER} | float32 | forward fused | NCHW |" in report
    assert "In a loop" in report
    assert f"{ITS_ROWS} of {ITS_ROWS} rows timed" in printed


def test_sigterm_leaves_what_there_is(tmp_path: Path) -> None:
    process = command(tmp_path, "--device", "cpu", "--tests", "", "--minutes", "2", "--checkers", "0")
    journal = tmp_path / "results.jsonl"
    until = time.monotonic() + 40
    while not journal.exists() or journal.read_text().count('"kind": "row"') < 3:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM, printed
    results = results_in(tmp_path)
    assert results["stopped"] == "stopped by SIGTERM"
    assert 3 <= sum(row["timed"] for row in results["rows"]) < results["rows_in_all"] == ROWS
    assert "rows timed in" in printed
    assert "stopped by SIGTERM" in (tmp_path / "results.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "gpu", f"PYTHON={sys.executable}", f"ARGS=--out {tmp_path / 'out'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    said, makes = done.stderr.splitlines()
    assert "needs an NVIDIA GPU" in said
    assert "Error 2" in makes
    assert not (tmp_path / "out").exists()


def test_importable_without_being_installed() -> None:
    """An interpreter whose installed packages it sees, but not tilesmith; its children see it too."""
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]; "
        "sys.path[:] = [p for p in sys.path if 'editable' not in p]; "
        "from benchmarks import gpu; print(gpu.importable()); "
        "import os; print(os.environ['PYTHONPATH'].split(os.pathsep)[0]); "
        "from tilesmith.kernels import conv2d; print(conv2d.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    how, folder, file = done.stdout.splitlines()
    assert how == "through build/import on PYTHONPATH"
    assert Path(folder, "tilesmith", "nn", "functional.py").exists()
    assert Path(file).resolve() == ROOT / "kernels" / "conv2d" / "__init__.py"


# ---- every kind


def test_every_row_is_right_on_the_cpu() -> None:
    session, settings = Session(Settings("cpu", seed=5)), Settings("cpu", seed=5)
    for index, row in enumerate(settings.rows()):
        for side in settings.ours(row):
            outcome = session.check(index, side)
            assert outcome.status == "ok", f"{row.name}, {side.name}: {outcome.message}"


@pytest.mark.parametrize(
    ("only", "rows", "layouts"),
    [("maxpool 3/2 fp16", 3, ("NCHW",)), ("to 7", 2, IMAGES), ("block 2", 4, IMAGES), (" dense ", 15, CONTIGUOUS),
     ("log-softmax", 2, CONTIGUOUS), ("ReLU 32", 2, CONTIGUOUS)],
)  # fmt: skip
def test_a_run_of_each_kind(tmp_path: Path, only: str, rows: int, layouts: tuple[str, ...]) -> None:
    assert run(options(tmp_path, settings=Settings("cpu", only=only)), Inline) == 0
    results = results_in(tmp_path)
    assert len(results["rows"]) == results["rows_in_all"] == rows
    for row in results["rows"]:
        assert list(row["sides"]) == [f"{who} {layout}" for who in ("numpy", "torch") for layout in layouts]
        assert all(side["status"] == "ok" and side["median_seconds"] > 0 for side in row["sides"].values())
        assert row["sizes"]
    table = gpu_report.loop_table(results)
    assert bool(table.rows) == (only in ("block 2", " dense "))


def test_a_block_finds_torchs_maxima_among_equals() -> None:
    """Its operands are whole numbers: equal outputs in a window are frequent, and which one counts is known."""
    block = _layer("MNIST block 2").tiny()
    assert isinstance(block, FusedBlock)
    operands = block.operands("backward", torch.Generator().manual_seed(3))
    z = torch.conv2d(operands["x"], operands["w"], operands["bias"])
    assert torch.equal(z, z.round())
    windows = functional.unfold(z.relu().flatten(0, 1)[:, None], 2, stride=2)
    first, second = windows.sort(1, descending=True).values.unbind(1)[:2]
    assert (first == second).float().mean() > 0.05
    reference = block.expected("backward", {name: tensor.double() for name, tensor in operands.items()})
    for tensors in (operands, {name: tensor.bfloat16() for name, tensor in operands.items()}):
        for result, exact in zip(block.theirs("backward", tensors)(), reference, strict=True):
            assert torch.equal(result, exact.to(result.dtype))


# ---- kernels that are not right


def _one_element_off(call: Callable[..., None]) -> Callable[..., None]:
    def forward(problem: Conv2dProblem, x: Array, w: Array, bias: Array | None, y: Array) -> None:
        call(problem, x, w, bias, y)
        y[-1, -1, -1, -1] += 1.0

    return forward


def _one_element_left_out(call: Callable[..., None]) -> Callable[..., None]:
    def forward(problem: Conv2dProblem, x: Array, w: Array, bias: Array | None, y: Array) -> None:
        kept = y[0, 0, 0, 0].copy()
        call(problem, x, w, bias, y)
        y[0, 0, 0, 0] = kept

    return forward


def _another_result_each_time(call: Callable[..., None]) -> Callable[..., None]:
    calls = 0

    def forward(problem: Conv2dProblem, x: Array, w: Array, bias: Array | None, y: Array) -> None:
        nonlocal calls
        call(problem, x, w, bias, y)
        calls += 1
        y *= 1 + calls % 2 * 2.0**-23  # the last bit: with any more the check of values may see it first

    return forward


@pytest.mark.parametrize(
    ("broken", "dtype", "message"),
    [
        (_one_element_off, "bfloat16", "worst at [1, "),
        (_one_element_off, "float32", "times what may be"),
        (_one_element_left_out, "float32", "are NaN"),
        (_another_result_each_time, "float32", "two calls with the same inputs differ"),
    ],
)
def test_a_wrong_kernel_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: Any, dtype: str, message: str
) -> None:
    monkeypatch.setattr(_numpy, "forward", broken(_numpy.forward))
    assert run(options(tmp_path), Inline) == gpu_run.SOMETHING_WRONG
    results = results_in(tmp_path)
    assert len(results["rows"]) == ITS_ROWS
    for row in results["rows"]:
        wrong = "forward" in row["direction"] and row["dtype"] == dtype
        for side in row["sides"].values():
            if side["who"] == "torch" or row["direction"] in ("input_grad", "weight_grad"):
                assert side["status"] == "ok"
                assert side["median_seconds"] is not None
            elif wrong:
                assert side["status"] == "wrong"
                assert message in side["message"]
                assert side["median_seconds"] is None
        if wrong and row["direction"] == FUSED:
            assert gpu_report.met(row, "NCHW") is False
    assert message in (tmp_path / "results.md").read_text()
    assert "not right" in (tmp_path / "results.svg").read_text()


POOLING = "to 6"  # averages, 2 rows
MAXIMA = "maxpool 2 64"  # 3 rows


def _pooling_rows(tmp_path: Path, only: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What became of our sides, by direction and layout, in a run that finds something wrong."""
    assert run(options(tmp_path, settings=Settings("cpu", only=only)), Inline) == gpu_run.SOMETHING_WRONG
    return {
        (row["direction"], layout): row["sides"][f"numpy {layout}"]
        for row in results_in(tmp_path)["rows"]
        for layout in IMAGES
    }


def test_a_wrong_maximum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = pool2d.OPERATION.named("numpy")
    right = backend.max_forward

    def max_forward(problem: Any, x: Array, y: Array, index: Array | None) -> None:
        right(problem, x, y, index)
        y[-1, -1, -1, -1] += 1

    monkeypatch.setattr(backend, "max_forward", max_forward)
    for (direction, _), side in _pooling_rows(tmp_path, MAXIMA).items():
        assert side["status"] == ("ok" if direction == "backward" else "wrong")
        assert direction == "backward" or "1 off what is exact" in side["message"]


def test_a_wrong_index_shows_in_the_gradient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = pool2d.OPERATION.named("numpy")
    right = backend.max_forward

    def max_forward(problem: Any, x: Array, y: Array, index: Array | None) -> None:
        right(problem, x, y, index)
        if index is not None:
            index ^= 1  # the other column

    monkeypatch.setattr(backend, "max_forward", max_forward)
    for (direction, _), side in _pooling_rows(tmp_path, MAXIMA).items():
        assert side["status"] == ("wrong" if direction == "backward" else "ok")


def test_a_pooling_that_leaves_something_out_or_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = pool2d.OPERATION.named("numpy")

    def forward(problem: Any, x: Array, y: Array) -> None:
        y[:, 1:] = 0

    def backward(problem: Any, dy: Array, dx: Array) -> None:
        raise ValueError("no such window")

    monkeypatch.setattr(backend, "adaptive_avg_forward", forward)
    monkeypatch.setattr(backend, "adaptive_avg_backward", backward)
    for (direction, _), side in _pooling_rows(tmp_path, POOLING).items():
        status, words = ("wrong", "are NaN") if direction == "forward" else ("failed", "ValueError: no such window")
        assert side["status"] == status
        assert words in side["message"]
    assert "| wrong |" in (tmp_path / "results.md").read_text()


def test_two_results_of_a_block_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several results each is looked at."""
    calls, weight_grad = 0, _numpy.weight_grad

    def other_bias(problem: Conv2dProblem, x: Array, dy: Array, dw: Array, db: Array | None) -> None:
        nonlocal calls
        weight_grad(problem, x, dy, dw, db)
        calls += 1
        assert db is not None
        db[0] += calls > 1

    monkeypatch.setattr(_numpy, "weight_grad", other_bias)
    settings = Settings("cpu", only="block 2")
    backward = next(i for i, row in enumerate(settings.rows()) if (row.direction, row.dtype) == ("backward", "float32"))
    outcome = Session(settings).check(backward, Side("numpy", "NCHW"))
    assert (outcome.status, outcome.message) == ("wrong", "two calls with the same inputs differ")
    outcome = Session(settings).check(backward, Side("numpy", "NCHW"))
    assert outcome.message.startswith("result 3 of 3: relative error")


def test_a_kernel_that_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def weight_grad(*arguments: Any) -> None:
        raise ValueError("no such <tile>\nand a second line")

    monkeypatch.setattr(_numpy, "weight_grad", weight_grad)
    assert run(options(tmp_path), Inline) == gpu_run.SOMETHING_WRONG
    results = results_in(tmp_path)
    assert all(row["timed"] for row in results["rows"])
    for row in results["rows"]:
        for side in row["sides"].values():
            failed = side["who"] == "numpy" and row["direction"] == "weight_grad"
            assert side["status"] == ("failed" if failed else "ok")
            assert side["message"] == ("ValueError: no such <tile>" if failed else "")


def test_a_kernel_that_raises_only_when_it_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls, forward = 0, _numpy.forward

    def later(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:  # two checks of two calls, and the first calls before timing
            raise RuntimeError("an illegal address, found late")
        forward(*arguments)

    monkeypatch.setattr(_numpy, "forward", later)
    session = Session(Settings("cpu", only=ONE_LAYER))
    sides = [Side("numpy", layout) for layout in IMAGES]
    assert [session.check(0, side).status for side in sides] == ["ok", "ok"]
    assert [outcome.status for outcome in session.time(0, sides, 0.01).values()] == ["failed", "failed"]


def test_a_backend_that_is_not_there(tmp_path: Path) -> None:
    session = Session(Settings("cpu", only=ONE_LAYER))
    outcome = session.check(0, Side("cupy", "NCHW"))
    assert outcome.status == "unavailable"
    assert "cpu" in outcome.message


# ---- limits


def test_the_time_is_over(tmp_path: Path) -> None:
    begin = time.monotonic()
    assert run(options(tmp_path, minutes=0.02, settings=Settings("cpu")), Inline) == gpu_run.OUT_OF_TIME
    assert time.monotonic() - begin < 15
    results = results_in(tmp_path)
    assert results["stopped"] == "0.02 minutes were over"
    assert len(results["rows"]) < results["rows_in_all"]


def test_tests_that_fail_and_tests_that_take_too_long(tmp_path: Path) -> None:
    """Timing goes on, and the exit code tells."""
    tests = tmp_path / "test_something.py"
    tests.write_text(
        "import time, pytest\npytestmark = pytest.mark.gpu\ndef test_a(): assert 1 == 2\ndef test_b(): time.sleep(60)\n"
    )
    out = tmp_path / "out"
    code = run(options(out, tests=str(tests), tests_seconds=7.0), Inline)
    assert code == gpu_run.SOMETHING_WRONG
    results = results_in(out)
    assert not results["tests"]["passed"]
    assert results["tests"]["words"].startswith("stopped after 7 s")
    assert results["tests"]["seconds"] < 20
    assert "assert 1 == 2" in (out / "pytest.txt").read_text()
    assert all(row["timed"] for row in results["rows"])


@dataclass(frozen=True)
class Hanging(Settings):
    """A session that is never ready."""

    def rows(self) -> Any:
        time.sleep(100)


@dataclass(frozen=True)
class Crashing(Settings):
    """A session that takes its process with it."""

    def rows(self) -> Any:
        os._exit(7)


@pytest.mark.parametrize(
    ("settings", "message"), [(Hanging("cpu"), "no answer in 0 s"), (Crashing("cpu"), "exit code 7")]
)
def test_a_process_that_hangs_or_crashes(settings: Settings, message: str) -> None:
    process = Process(settings, lambda: None)
    with pytest.raises(NoAnswer, match=message):
        process.ask("facts", seconds=0.3 if isinstance(settings, Hanging) else 60)
    process.stop()


def test_a_process_is_started_again() -> None:
    process = Process(Settings("cpu", only=ONE_LAYER), lambda: None)
    try:
        assert process.ask("check", 0, Side("numpy", "NCHW"), seconds=60).status == "ok"
        with pytest.raises(NoAnswer, match="AttributeError"):
            process.ask("something else", seconds=60)
        process.stop()
        assert process.ask("check", 1, Side("numpy", "NCHW"), seconds=60).status == "ok"
    finally:
        process.stop()


def test_rows_that_were_only_checked_are_reported(tmp_path: Path) -> None:
    """Time runs out after the checks, which a thread made: they are known although nothing was timed."""

    class Slow(Inline):
        def ask(self, question: str, *arguments: Any, seconds: float) -> Any:
            if question == "time":
                raise gpu_run.OutOfTime
            return super().ask(question, *arguments, seconds=seconds)

    assert run(options(tmp_path, checkers=1), Slow) == gpu_run.OUT_OF_TIME
    results = results_in(tmp_path)
    assert len(results["rows"]) == ITS_ROWS
    assert not any(row["timed"] for row in results["rows"])
    assert "| right |" in (tmp_path / "results.md").read_text()


# ---- time


def test_events_around_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stopwatch of a GPU on a device that is pretended: a flush before each call, outside of what is timed."""
    story: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            story.append("event")

        def elapsed_time(self, end: Event) -> float:
            return 3.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: story.append("wait"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=1 << 10))
    monkeypatch.setattr(gpu_row, "_LEAST_FLUSH_BYTES", 1)
    stopwatch = gpu_row._CudaStopwatch(torch.device("cpu"))
    assert stopwatch._flushed.nbytes == 2 << 10
    monkeypatch.setattr(stopwatch, "_flushed", SimpleNamespace(zero_=lambda: story.append("flush")))
    story.clear()
    calls = {name: partial(story.append, name) for name in ("a", "b")}
    times = stopwatch.turns(calls, {"a": 5, "b": 2}, seconds=100)
    assert times == {"a": [0.003] * 5, "b": [0.003] * 2}
    first = ["flush", "event", "a", "event", "flush", "event", "b", "event", "wait"]
    assert story[: len(first)] == first
    assert [each for each in story if each in calls] == list("abaaaba")
    assert story[-1] == "wait"


def test_turns_end_in_time() -> None:
    stopwatch = gpu_row._Stopwatch(torch.device("cpu"))
    times = stopwatch.turns({"slow": lambda: time.sleep(0.02), "fast": lambda: None}, {"slow": 1000, "fast": 3}, 0.1)
    assert 2 <= len(times["slow"]) < 20
    assert len(times["fast"]) >= 1


# ---- figures of the report


def test_ratios_and_targets() -> None:
    def side(who: str, layout: str, seconds: float | None) -> dict[str, Any]:
        return {"who": who, "layout": layout, "status": "ok", "message": "", "median_seconds": seconds}

    times = {"triton": (2e-5, 4e-5), "cupy": (1e-5, None), "torch": (3e-5, 2e-5)}
    sides = {
        f"{who} {layout}": side(who, layout, seconds)
        for who, both in times.items()
        for layout, seconds in zip(IMAGES, both, strict=True)
    }
    targets = {"NCHW": _target(2.0, None), "channels_last": _target(0.85, None)}
    row = {"timed": True, "sides": sides, "targets": targets, "floor_seconds": 5e-6}
    assert gpu_report.best_seconds(row, "NCHW") == 1e-5
    assert gpu_report.ratio(row, "NCHW") == pytest.approx(3)
    assert gpu_report.ratio(row, "channels_last") == pytest.approx(0.5)
    assert gpu_report.best_torch_seconds(row) == 2e-5
    assert gpu_report.of_floor(row, "NCHW") == pytest.approx(0.5)
    assert [gpu_report.met(row, layout) for layout in IMAGES] == [True, False]
    assert gpu_report.met(row | {"timed": False}, "NCHW") is None
    assert gpu_report.line(row).startswith("NCHW triton 20.0 us, cupy 10.0 us, torch 30.0 us; ")


def _target(ratio: float | None, of_floor: float | None) -> dict[str, float | None]:
    return {"ratio": ratio, "of_floor": of_floor}


@pytest.mark.parametrize(
    ("ratio", "of_floor", "ours", "torch_seconds", "met", "words"),
    [
        (3.0, 0.85, 1.1e-5, 3.4e-5, True, "3.00x, 0.85 of floor"),
        (3.0, 0.85, 1.2e-5, 9.9e-5, False, "3.00x, 0.85 of floor"),
        (3.0, 0.85, 1.1e-5, 3.2e-5, False, "3.00x, 0.85 of floor"),
        (None, 0.85, 1.1e-5, None, True, "0.85 of floor"),
        (None, 0.85, None, 1e-5, False, "0.85 of floor"),
        (3.0, None, 1.0e-5, None, None, "3.00x"),
        (None, None, 1.0e-5, 1e-5, None, "-"),
    ],
)
def test_a_target_has_two_parts(
    ratio: float | None,
    of_floor: float | None,
    ours: float | None,
    torch_seconds: float | None,
    met: bool | None,
    words: str,
) -> None:
    """Both must be met, as far as there is something to judge them by."""
    sides = {
        f"{who} NCHW": {"who": who, "layout": "NCHW", "status": "ok", "median_seconds": seconds}
        for who, seconds in (("triton", ours), ("torch", torch_seconds))
    }
    target = _target(ratio, of_floor)
    row = {"timed": True, "sides": sides, "targets": {"NCHW": target}, "floor_seconds": 1e-5}
    assert gpu_report.met(row, "NCHW") is met
    assert gpu_report._target(target) == words
