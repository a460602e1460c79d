"""With the rest of PyTorch: autocast, torch.compile with code generation, distributed training, random shapes."""

from __future__ import annotations

import copy
import socket
from typing import Any

import pytest
import tilesmith.nn as ours
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tilesmith.nn import functional as F
from torch import nn
from torch.nn import functional as reference

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(library: Any = ours) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        library.Conv2d(1, 4, 3),
        library.ReLU(),
        library.MaxPool2d(2),
        library.Conv2d(4, 6, 3, padding=1),
        library.Tanh(),
        library.AvgPool2d(2),
        library.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        library.Linear(24, 8),
        library.Sigmoid(),
        library.Linear(8, 5),
        library.LogSoftmax(dim=1),
    )


class Reader(nn.Module):
    """The tutorial's combination: convolution, then both directions of an LSTM over the columns."""

    def __init__(self, library: Any = ours) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.look = nn.Sequential(library.Conv2d(1, 4, 3, padding=1), library.ReLU(), library.MaxPool2d(2))
        self.read = ours.BiLSTM(28, 6, 2, merge="gated")
        self.head = library.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.look(x).flatten(1, 2).permute(2, 0, 1)
        y, _ = self.read(columns)
        return reference.log_softmax(self.head(y[-1]), 1)


# ---- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f.conv2d(x, x[:, :, :3, :3]),
        lambda f, x: f.linear(x, x[0, 0]),
        lambda f, x: f.softmax(x, 1),
        lambda f, x: f.log_softmax(x, 1),
        lambda f, x: f.max_pool2d(x, 2),
        lambda f, x: f.avg_pool2d(x, 2),
        lambda f, x: f.adaptive_avg_pool2d(x, 2),
        lambda f, x: f.adaptive_max_pool2d(x, 2),
        lambda f, x: f.relu(x),
        lambda f, x: f.sigmoid(x),
    ],
)
def test_autocast_gives_torchs_dtype(call: Any, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        for given_dtype in (torch.float32, dtype):
            x = X.to(given_dtype)
            assert call(F, x).dtype is call(reference, x).dtype


def test_training_under_autocast_keeps_parameters_in_float32() -> None:
    layer = ours.Conv2d(3, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(X)
        assert y.dtype is torch.bfloat16
        y.float().square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype is torch.float32
    expected = torch.autograd.grad(reference.conv2d(X, layer.weight, layer.bias).square().sum(), layer.weight)[0]
    assert (layer.weight.grad - expected).norm() < 0.02 * expected.norm()


# ---- torch.compile


@pytest.mark.parametrize("make", [network, Reader])
def test_a_compiled_network_trains_like_the_eager_one(make: Any) -> None:
    """The default compiler, with generated code around our opaque ops; one graph."""
    torch._dynamo.reset()
    eager = make()
    compiled_copy = copy.deepcopy(eager)
    compiled = torch.compile(compiled_copy, fullgraph=True)
    x = torch.randn(5, 1, 14, 14)
    for model in (eager, compiled):
        model(x).square().sum().backward()
    for (name, parameter), expected in zip(compiled_copy.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


# ---- distributed training


def _train_rank(rank: int, world: int, port: int, results: Any, make: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        model = nn.parallel.DistributedDataParallel(make())
        x, target = _batch()
        part = slice(rank * len(x) // world, (rank + 1) * len(x) // world)
        results[rank] = _steps(model, x[part], target[part])
    finally:
        torch.distributed.destroy_process_group()


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 1, 14, 14, generator=generator), torch.randint(0, 5, (8,), generator=generator)


def _steps(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        reference.nll_loss(model(x), target).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("make", [network, Reader])
def test_two_processes_train_like_one(make: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    manager = torch.multiprocessing.get_context("spawn").Manager()
    with manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_train_rank, args=(2, port, results, make), nprocs=2)
        first, second = results[0], results[1]
    alone = _steps(make(), *_batch())
    before = [p.detach() for p in make().parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(alone, before, strict=True))
    for a, b, c in zip(first, second, alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)


# ---- random shapes

small = st.integers(1, 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), groups=small, channels=small, outputs=small, stride=st.tuples(small, small))
def test_any_convolution(data: Any, groups: int, channels: int, outputs: int, stride: tuple[int, int]) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = data.draw(st.tuples(small, small))
    padding = data.draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [data.draw(st.integers(n, n + 6)) for n in least]
    x = torch.randn(data.draw(st.integers(0, 3)), groups * channels, *size, dtype=torch.float64, requires_grad=True)
    w = torch.randn(groups * outputs, channels, *kernel, dtype=torch.float64, requires_grad=True)
    if data.draw(st.booleans()):
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    compare(
        F.conv2d(x, w, None, stride, padding, dilation, groups),
        reference.conv2d(x, w, None, stride, padding, dilation, groups),
        [x, w],
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)), ceil_mode=st.booleans())
def test_any_pooling(data: Any, kernel: tuple[int, int], ceil_mode: bool) -> None:
    stride = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    size = [data.draw(st.integers(max(1, k - 2 * p), k + 9)) for k, p in zip(kernel, padding, strict=True)]
    x = torch.randn(data.draw(st.integers(0, 2)), 2, *size, dtype=torch.float64, requires_grad=True)
    if data.draw(st.booleans()):
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    compare(
        F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode),
        reference.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode),
        [x],
    )
    include = data.draw(st.booleans())
    compare(
        F.avg_pool2d(x, kernel, stride, padding, ceil_mode, include),
        reference.avg_pool2d(x, kernel, stride, padding, ceil_mode, include),
        [x],
    )


@settings(max_examples=40, deadline=None)
@given(size=st.tuples(st.integers(1, 12), st.integers(1, 12)), windows=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_any_adaptive_pooling(size: tuple[int, int], windows: tuple[int, int]) -> None:
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    compare(F.adaptive_avg_pool2d(x, windows), reference.adaptive_avg_pool2d(x, windows), [x])
    compare(F.adaptive_max_pool2d(x, windows), reference.adaptive_max_pool2d(x, windows), [x])


def compare(mine: Any, theirs: Any, inputs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)
    dy = torch.randn(theirs.shape, dtype=theirs.dtype)
    found = torch.autograd.grad(mine, inputs, dy)
    expected = torch.autograd.grad(theirs, inputs, dy)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


# ---- several threads of the user's own


def test_calls_from_several_threads_do_not_disturb_each_other() -> None:
    from concurrent.futures import ThreadPoolExecutor

    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(8, 8, 24, 24, generator=generator) for _ in range(8)]
    w = torch.randn(8, 8, 3, 3, generator=generator)
    expected = [F.max_pool2d(F.conv2d(x, w), 2) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda x: F.max_pool2d(F.conv2d(x, w), 2), xs))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
