"""The NumPy kernels' spaces: each configuration reaches the kernel, gives the same result and repeats no other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from tilesmith import autotune
from tilesmith.kernels.conv2d import make_problem
from tilesmith.kernels.conv_pool2d import ConvPool2dProblem
from tilesmith.kernels.pool2d import AdaptivePool2dProblem, Pool2dProblem
from tilesmith.kernels.rnn import RnnProblem
from tilesmith.kernels.rnn._problem import Weights
from tilesmith.kernels.word2vec._problem import PairsProblem

Array = np.ndarray[Any, Any]
Asked = tuple[autotune.Tunable, Any]


def _module(name: str) -> Any:
    return import_module(f"tilesmith.kernels.{name}")


@dataclass(frozen=True)
class Case:
    """One call of a NumPy kernel.

    Attributes:
        module: with the kernel and its tunables.
        tunable: that the call asks; "numpy." goes before it.
        call: makes its arrays in a dtype and returns the results.
        counted: what the module calls once a block, or hands a function of one block to.
        reduction: elements summed for a result, where the sums may be cut otherwise; 0: the bits are the same.
    """

    module: str
    tunable: str
    call: Callable[[Any], list[Array]]
    counted: str
    reduction: int = 0
    label: str = ""

    def __str__(self) -> str:
        return f"{self.tunable}-{self.label}" if self.label else self.tunable


def random(shape: tuple[int, ...], dtype: Any, channels_last: bool = False, seed: int = 0) -> Array:
    generator = np.random.default_rng(seed)
    if channels_last:
        N, C, H, W = shape
        return generator.standard_normal((N, H, W, C)).astype(dtype).transpose(0, 3, 1, 2)
    return generator.standard_normal(shape).astype(dtype)


def conv2d(
    direction: str,
    x: tuple[int, ...] = (4, 16, 24, 24),
    w: tuple[int, ...] = (16, 16, 3, 3),
    channels_last: bool = False,
    stride: int = 1,
    padding: int = 1,
    groups: int = 1,
) -> Callable[[Any], list[Array]]:
    problem = make_problem(x, w, (stride, stride), (padding,) * 4, (1, 1), groups)
    y = problem.N, problem.K, problem.P, problem.Q
    numpy = _module("conv2d._numpy")

    def call(dtype: Any) -> list[Array]:
        images, filters = random(x, dtype, channels_last), random(w, dtype, seed=1)
        outputs = random(y, dtype, channels_last, seed=2)
        if direction == "forward":
            numpy.forward(problem, images, filters, filters[:, 0, 0, 0].copy(), outputs)
            return [outputs]
        if direction == "input_grad":
            numpy.input_grad(problem, outputs, filters, images)
            return [images]
        bias = np.empty(w[0], dtype)
        numpy.weight_grad(problem, images, outputs, filters, bias)
        return [filters, bias]

    return call


def conv_pool2d(pool: str, x: tuple[int, ...] = (96, 3, 34, 34), channels_last: bool = False) -> Any:
    convolution = make_problem(x, (16, 3, 3, 3), (1, 1), (0,) * 4, (1, 1), 1, "relu")
    problem = ConvPool2dProblem(convolution, pool)

    def call(dtype: Any) -> list[Array]:
        y = random((x[0], 16, problem.P, problem.Q), dtype, channels_last)
        code = np.zeros_like(y, np.uint8)
        filters = random((16, 3, 3, 3), dtype, seed=1)
        _module("conv_pool2d._numpy").forward(problem, random(x, dtype, channels_last, 2), filters, None, y, code)
        return [y]

    return call


def pool2d(
    function: str,
    problem: Pool2dProblem | AdaptivePool2dProblem,
    channels_last: bool = False,
    index: Any = None,
) -> Callable[[Any], list[Array]]:
    large, small = (problem.N, problem.C, problem.H, problem.W), (problem.N, problem.C, problem.P, problem.Q)
    numpy = _module("pool2d._numpy")

    def call(dtype: Any) -> list[Array]:
        x, y = random(large, dtype, channels_last), random(small, dtype, channels_last, seed=1)
        if function.endswith("max_forward"):
            where = None if index is None else np.zeros_like(y, index)
            getattr(numpy, function)(problem, x, y, where)
            return [y] if where is None else [y, where]
        if function.startswith("max"):
            where = np.zeros_like(y, index)
            numpy.max_forward(problem, x, np.empty_like(y), where)
            if function == "max_gather":
                numpy.max_gather(problem, x, where, y)
                return [y]
            numpy.max_backward(problem, y, where, x)
            return [x]
        if function.endswith("forward"):
            getattr(numpy, function)(problem, x, y)
            return [y]
        getattr(numpy, function)(problem, y, x)
        return [x]

    return call


def elementwise(op: str, direction: str, what: Any, shape: tuple[int, ...]) -> Callable[[Any], list[Array]]:
    def call(dtype: Any) -> list[Array]:
        inputs = [random(shape, dtype, seed=seed) for seed in range(1 if direction == "forward" else 2)]
        output = np.empty(shape, dtype)
        getattr(_module(f"{op}._numpy"), direction)(what, *inputs, output)
        return [output]

    return call


def linear(M: int, I: int, O: int, by_columns: bool = False) -> Callable[[Any], list[Array]]:  # noqa: E741
    def call(dtype: Any) -> list[Array]:
        x = random((I, M), dtype).T if by_columns else random((M, I), dtype)
        y = np.empty((M, O), dtype)
        _module("linear._numpy").forward("sigmoid", x, random((O, I), dtype, seed=1), random((O,), dtype, seed=2), y)
        return [y]

    return call


def rnn(cell: str, T: int = 60, B: int = 8, H: int = 64, stored: bool = True, D: int = 1) -> Any:
    problem = RnnProblem(cell, T, B, D, 16, H, H)
    G = problem.G

    def call(dtype: Any) -> list[Array]:
        numpy = _module("rnn._numpy")
        shapes = (D, G * H, 16), (D, G * H, H), (D, G * H)
        w_ih, w_hh, bias = (random(shape, dtype, seed=seed) / 8 for seed, shape in enumerate(shapes))
        weights = Weights(w_ih, w_hh, bias, random((D, H), dtype, seed=4) if cell == "gru" else None, None)
        x, h0 = random((T, B, 16), dtype, seed=5), random((D, B, H), dtype, seed=6)
        c0 = h0[::-1].copy() if cell == "lstm" else None
        y, h_n, c_n = np.empty((T, B, D * H), dtype), np.empty_like(h0), None if c0 is None else np.empty_like(h0)
        cells = np.empty(T * B * D * H, dtype) if cell == "lstm" else None
        gates = np.empty(T * B * D * 4 * H, dtype) if stored and G > 1 else None
        numpy.forward(problem, x, h0, c0, weights, None, None, y, h_n, c_n, gates, cells)
        dx, dh0, dc0 = np.empty_like(x), np.empty_like(h0), None if c0 is None else np.empty_like(h0)
        dweights = Weights(*(None if a is None else np.empty_like(a) for a in vars(weights).values()))
        dy = random(y.shape, dtype, seed=7)
        dc_n = None if c_n is None else np.zeros_like(c_n)
        kept = (None, None, y, gates, cells)
        wanted = (dx, dh0, dc0, *vars(dweights).values())
        numpy.gradients(problem, dy, np.zeros_like(h_n), dc_n, x, h0, c0, *vars(weights).values(), *kept, *wanted)
        return [a for a in wanted if a is not None]

    return call


def pairs(direction: str, B: int = 12000, C: int = 4, M: int = 6) -> Callable[[Any], list[Array]]:
    problem = PairsProblem(300, 200, B, C, M, 64)

    def call(dtype: Any) -> list[Array]:
        numpy, generator = _module("word2vec._numpy_pairs"), np.random.default_rng(0)
        tables = [random((rows, 64), dtype, seed=rows) for rows in (300, 200)]
        inputs, targets = generator.integers(-1, 300, (B, C)), generator.integers(0, 200, (B, M))
        loss, residual = np.empty(B, dtype), random((B, M), dtype, seed=3)
        if direction == "forward":
            numpy.forward(problem, *tables, inputs, targets, targets % 2 == 0, True, loss, residual)
            return [loss, residual]
        ones = np.ones(B, dtype)
        found = numpy.backward(problem, *tables, inputs, targets, residual, ones, True, False, True, True)
        return [array for pair in found for array in pair]

    return call


MAX = Pool2dProblem(4, 16, 64, 64, (3, 3), (2, 2), (1, 1))
TILES = Pool2dProblem(4, 32, 48, 48, (2, 2), (2, 2), (0, 0))
UNEVEN = AdaptivePool2dProblem(4, 32, 47, 48, 9, 7)
SMALL_PLANES = AdaptivePool2dProblem(64, 32, 7, 7, 3, 3)
GLOBAL = AdaptivePool2dProblem(8, 64, 28, 28, 1, 1)
DEPTHWISE: dict[str, Any] = {"x": (8, 32, 32, 32), "w": (32, 1, 3, 3), "groups": 32}
STRIDED: dict[str, Any] = {"x": (6, 16, 40, 40), "stride": 2}
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "NCHW": {},
    "channels_last": {"channels_last": True},
    "grouped": {"x": (4, 32, 20, 20), "w": (32, 8, 3, 3), "groups": 4},
}

CASES = [
    *(
        Case("conv2d._numpy", f"conv2d.{direction}", conv2d(direction, **options), counted, reduction, label)
        for direction, reduction, counted in (
            ("forward", 144, "_columns"),
            ("input_grad", 144, "_columns"),
            ("weight_grad", 9600, "_columns"),
        )
        for label, options in CONVOLUTIONS.items()
    ),
    Case("conv2d._numpy", "conv2d.forward", conv2d("forward", **STRIDED), "_columns", 144, "stride=2"),
    Case("conv2d._numpy", "conv2d.forward", conv2d("forward", **DEPTHWISE), "_channel_windows", 9, "depthwise"),
    Case("conv2d._numpy", "conv2d.input_grad", conv2d("input_grad", **STRIDED), "_gradient", 144, "scattered"),
    Case(
        "conv2d._numpy",
        "conv2d.input_grad",
        conv2d("input_grad", channels_last=True, **STRIDED),
        "_gradient",
        144,
        "scattered-channels_last",
    ),
    Case(
        "conv2d._numpy",
        "conv2d.input_grad",
        conv2d("input_grad", (4, 8, 24, 24), (32, 8, 3, 3)),
        "_gradient",
        288,
        "scattered-runs",
    ),
    Case("conv2d._numpy", "conv2d.weight_grad", conv2d("weight_grad", **STRIDED), "_columns", 9600, "stride=2"),
    Case("conv2d._numpy", "conv2d.weight_grad", conv2d("weight_grad", **DEPTHWISE), "_channel_windows", 9000, "depth"),
    Case("conv_pool2d._numpy", "conv_pool2d.forward", conv_pool2d("max"), "_window", 27, "max"),
    Case(
        "conv_pool2d._numpy",
        "conv_pool2d.forward",
        conv_pool2d("avg", channels_last=True),
        "_window",
        108,
        "avg-channels_last",
    ),
    Case("pool2d._numpy", "pool2d.max_forward", pool2d("max_forward", MAX), "parallel_for", 0, "values"),
    Case("pool2d._numpy", "pool2d.max_forward", pool2d("max_forward", MAX, True, np.uint8), "parallel_for", 0, "taps"),
    Case("pool2d._numpy", "pool2d.max_forward", pool2d("adaptive_max_forward", UNEVEN), "parallel_for", 0, "uneven"),
    Case("pool2d._numpy", "pool2d.max_backward", pool2d("max_backward", MAX, False, np.int64), "parallel_for", 0),
    Case(
        "pool2d._numpy",
        "pool2d.max_backward",
        pool2d("max_backward", TILES, True, np.uint8),
        "parallel_for",
        0,
        "tiles",
    ),
    Case("pool2d._numpy", "pool2d.max_gather", pool2d("max_gather", MAX, False, np.uint8), "parallel_for"),
    Case("pool2d._numpy", "pool2d.avg_forward", pool2d("avg_forward", MAX), "parallel_for", 9, "positions"),
    Case("pool2d._numpy", "pool2d.avg_forward", pool2d("avg_forward", MAX, True), "parallel_for", 9, "windows"),
    Case("pool2d._numpy", "pool2d.avg_forward", pool2d("adaptive_avg_forward", GLOBAL), "parallel_for", 784, "global"),
    Case("pool2d._numpy", "pool2d.avg_backward", pool2d("avg_backward", MAX), "parallel_for", 9, "spread"),
    Case(
        "pool2d._numpy",
        "pool2d.avg_backward",
        pool2d("adaptive_avg_backward", UNEVEN, True),
        "parallel_for",
        9,
        "uneven",
    ),
    Case(
        "pool2d._numpy",
        "pool2d.avg_backward",
        pool2d("adaptive_avg_backward", SMALL_PLANES),
        "parallel_for",
        9,
        "product",
    ),
    Case(
        "activation._numpy",
        "activation.forward",
        elementwise("activation", "forward", "sigmoid", (400, 501)),
        "apply",
    ),
    *(
        Case(
            "activation._numpy",
            "activation.backward",
            elementwise("activation", "backward", kind, (400, 501)),
            "derivative",
            0,
            kind,
        )
        for kind in ("relu", "tanh")
    ),
    *(
        Case(
            "softmax._numpy",
            f"softmax.{direction}",
            elementwise("softmax", direction, (dim, log), (30, 20, 500)),
            "parallel_for",
            shape,
            f"dim={dim}",
        )
        for direction in ("forward", "backward")
        for dim, log, shape in ((2, False, 500), (0, True, 30))
    ),
    Case("linear._numpy", "linear.forward", linear(80_000, 16, 16), "over_products", 16),
    Case("rnn._numpy_backward", "rnn.backward", rnn("lstm"), "_lstm_slopes"),
    Case("rnn._numpy_backward", "rnn.backward", rnn("gru", stored=False, D=2, T=40), "_gru_slopes", 700, "again"),
    Case("word2vec._numpy_pairs", "word2vec.pairs_forward", pairs("forward"), "parallel_for"),
    Case("word2vec._numpy_pairs", "word2vec.pairs_backward", pairs("backward"), "parallel_for", 400),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
ALL = [tunable for module in sorted({case.module for case in CASES}) for tunable in _module(module).TUNABLES]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Blocks are counted, and told by the costs, without the ranges of several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def answering(config: autotune.Config | None = None, name: str = "") -> Iterator[list[Asked]]:
    """Whoever asks inside the block gets the default, or for one tunable this configuration; and who it was."""
    asked = list[Asked]()

    def resolve(tunable: autotune.Tunable, problem: Any) -> autotune.Config:
        asked.append((tunable, problem))
        return tunable.default(problem) if config is None or tunable.name != name else config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "resolve", resolve)
        yield asked


def asked_by(case: Case, dtype: Any = np.float32) -> Asked:
    """What the call asks of the case's own tunable, which it does once."""
    with answering() as asked:
        case.call(dtype)
    own = [pair for pair in asked if pair[0].name == f"numpy.{case.tunable}"]
    assert len(own) == 1
    return own[0]


def assert_alike(found: list[Array], expected: list[Array], reduction: int) -> None:
    for a, b in zip(found, expected, strict=True):
        if reduction == 0 or b.dtype.kind in "iu":
            assert np.array_equal(a, b)
        else:
            bound = 2 * math.sqrt(reduction) * float(np.finfo(b.dtype).eps) * np.abs(b).max()
            assert np.abs(a - b).max() <= bound


@each_case
def test_every_configuration_gives_the_defaults_result(case: Case) -> None:
    torch.set_num_threads(2)
    tunable, problem = asked_by(case)
    with answering():
        expected = case.call(np.float32)
    configs = list(tunable.configs(problem))
    assert tunable.default(problem) in configs
    assert 2 <= len(configs) <= 24
    for config in configs:
        with autotune.pin(tunable.name, config):
            assert_alike(case.call(np.float32), expected, case.reduction)


@each_case
def test_a_configuration_reaches_the_kernel(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are as many as its cost says, and no two configurations cut and lay out alike."""
    tunable, problem = asked_by(case)
    module = _module(case.module)
    function, calls = getattr(module, case.counted), 0

    def counted(body: Callable[..., Any]) -> Callable[..., Any]:
        def one_block(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            return body(*arguments, **options)

        return one_block

    def looped(*arguments: Any, **options: Any) -> Any:
        at = next(i for i, argument in enumerate(arguments) if callable(argument))
        function(*arguments[:at], counted(arguments[at]), *arguments[at + 1 :], **options)

    by_loop = case.counted in ("parallel_for", "over_products")
    seen = set[Any]()
    for config in tunable.configs(problem):
        calls = 0
        with monkeypatch.context() as patch, answering(config, tunable.name):
            if case.tunable == "pool2d.max_backward" or case.tunable == "pool2d.max_gather":
                patch.setattr(module, "max_forward", _quietly(function, module))
            patch.setattr(module, case.counted, looped if by_loop else counted(function))
            case.call(np.float32)
        assert tunable.cost is not None
        assert calls == tunable.cost(config, problem).blocks
        others = tuple(value for name, value in config.items() if name not in ("BLOCK_BYTES", "BLOCK", "PIECE_BYTES"))
        assert (calls, others) not in seen or case.tunable.startswith("conv2d.")  # there rows and groups are cut, too
        seen.add((calls, others))


def _quietly(loop: Any, module: Any) -> Callable[..., None]:
    """The forward that only makes an index for the call of the test, with the loop as it was."""
    forward = module.max_forward

    def call(*arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "parallel_for", loop)
            forward(*arguments)

    return call


@each_case
def test_costs_and_keys(case: Case) -> None:
    tunable, problem = asked_by(case)
    assert tunable.key is not None
    assert tunable.cost is not None
    for config in tunable.configs(problem):
        assert 0 < autotune.seconds(tunable.cost(config, problem), problem.device) < 10
    key = tunable.key(problem)
    assert all(0 < size < math.inf for size in key.sizes.values())
    hash((problem, key.exact))
    assert tunable.key(asked_by(case)[1]) == key
    assert tunable.key(asked_by(case, np.float64)[1]).exact != key.exact
    torch.set_num_threads(2)
    assert tunable.key(asked_by(case)[1]).exact != key.exact


@each_case
def test_refusals_are_sentences(case: Case) -> None:
    tunable, problem = asked_by(case)
    names, spaces = list(tunable.space), list(tunable.space.values())
    for values in np.stack(np.meshgrid(*(range(len(s)) for s in spaces)), -1).reshape(-1, len(spaces)).tolist():
        config = {name: space[i] for name, space, i in zip(names, spaces, values, strict=True)}
        reason = tunable.refusal(config, problem)
        assert reason is None or len(reason.split()) >= 4
        if reason is not None:
            with pytest.raises(ValueError, match="cannot run"), autotune.pin(tunable.name, config):
                autotune.resolve(tunable, problem)


@pytest.mark.parametrize("tunable", ALL, ids=lambda tunable: tunable.name)
def test_a_space_says_what_it_is(tunable: autotune.Tunable) -> None:
    """The default stands first, which is what a value is compared with before it is tried."""
    assert set(tunable.space) == set(tunable.reasons)
    assert {name: values[0] for name, values in tunable.space.items()} == tunable.default(None)
    assert all(len(set(values)) == len(values) for values in tunable.space.values())
    assert any(f"numpy.{case.tunable}" == tunable.name for case in CASES)


FOLDED = [
    (conv2d("forward"), conv2d("forward", (8, 16, 12, 24))),
    (conv2d("weight_grad", **STRIDED), conv2d("weight_grad", (12, 16, 20, 40), stride=2)),
    (conv_pool2d("max"), conv_pool2d("max", (48, 3, 66, 34))),
    (pool2d("max_forward", MAX), pool2d("max_forward", Pool2dProblem(16, 4, 64, 64, (3, 3), (2, 2), (1, 1)))),
    (
        pool2d("adaptive_avg_forward", GLOBAL),
        pool2d("adaptive_avg_forward", AdaptivePool2dProblem(8, 64, 14, 56, 1, 1)),
    ),
    (
        elementwise("activation", "backward", "relu", (400, 501)),
        elementwise("activation", "backward", "relu", (501, 20, 20)),
    ),
    (
        elementwise("softmax", "forward", (2, False), (30, 20, 500)),
        elementwise("softmax", "forward", (2, False), (20, 30, 500)),
    ),
    (rnn("lstm"), rnn("lstm", B=16, H=32)),
    (pairs("forward"), pairs("forward", C=5, M=5)),
]


def _key(call: Callable[[Any], list[Array]]) -> autotune.Key:
    with answering() as asked:
        call(np.float32)
    tunable, problem = asked[0]
    assert tunable.key is not None
    return tunable.key(problem)


@pytest.mark.parametrize(("one", "other"), FOLDED)
def test_batch_and_image_size_fold_together(one: Any, other: Any) -> None:
    """Up to what rows of blocks differ in."""
    a, b = _key(one), _key(other)
    assert a.exact == b.exact
    apart = [abs(math.log2(a.sizes[name] / b.sizes[name])) for name in a.sizes]
    assert math.hypot(*apart) <= 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (conv2d("forward"), conv2d("forward", channels_last=True)),
        (conv2d("forward"), conv2d("forward", stride=2, x=(16, 16, 24, 24))),
        (conv2d("forward"), conv2d("forward", w=(16, 16, 5, 5), padding=2)),
        (conv_pool2d("max"), conv_pool2d("max", channels_last=True)),
        (pool2d("max_forward", MAX), pool2d("max_forward", MAX, True)),
        (pool2d("max_forward", MAX), pool2d("max_forward", MAX, False, np.uint8)),
        (
            elementwise("softmax", "forward", (2, False), (30, 20, 500)),
            elementwise("softmax", "forward", (0, False), (30, 20, 500)),
        ),
        (linear(80_000, 16, 16), linear(80_000, 16, 16, by_columns=True)),
        (rnn("gru"), rnn("gru", stored=False)),
    ],
)
def test_what_must_not_fold(one: Any, other: Any) -> None:
    assert _key(one).exact != _key(other).exact


def test_nothing_is_asked_where_one_block_is_all() -> None:
    small = Pool2dProblem(2, 3, 16, 16, (2, 2), (2, 2), (0, 0))
    calls: list[Callable[[Any], list[Array]]] = [
        *(conv2d(direction, (2, 3, 10, 10), (4, 3, 3, 3)) for direction in ("forward", "input_grad", "weight_grad")),
        conv_pool2d("max", (4, 3, 12, 12)),
        *(pool2d(name, small, index=np.uint8) for name in ("max_forward", "max_backward", "max_gather")),
        *(pool2d(name, small) for name in ("avg_forward", "avg_backward")),
        *(elementwise("activation", "forward", kind, (16, 1024)) for kind in ("relu", "sigmoid", "tanh")),
        elementwise("activation", "backward", "relu", (16, 1024)),
        elementwise("activation", "forward", "relu", (400, 501)),  # one pass, however large
        *(elementwise("softmax", direction, (1, False), (8, 100)) for direction in ("forward", "backward")),
        elementwise("softmax", "forward", (0, False), (50_000,)),
        linear(64, 32, 16),
        rnn("lstm", T=5, B=2, H=8),
        pairs("forward", 50),
        pairs("backward", 50),
    ]
    with answering() as asked:
        for call in calls:
            call(np.float32)
    assert not asked
