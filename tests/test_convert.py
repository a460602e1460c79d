"""convert and revert: what is swapped, what is kept and why, and that nothing else about a model changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tilesmith.nn as ours
import torch
from tilesmith.kernels import backends
from torch import nn

SWAPPED = ["Conv2d", "ReLU", "MaxPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "Linear", "Tanh", "Sigmoid"]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=4)
        )
        self.pools = nn.ModuleDict({"mean": nn.AdaptiveAvgPool2d(2), "max": nn.AdaptiveMaxPool2d((2, 2))})
        self.shared = nn.Linear(16, 16)
        self.gate = nn.Sequential(self.shared, nn.Tanh(), self.shared, nn.Sigmoid())
        self.head = nn.Sequential(nn.Linear(16, 3), nn.Softmax(dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.features(x)
        y = (self.pools["mean"](y) + self.pools["max"](y)).flatten(1)
        result: torch.Tensor = self.head(self.gate(y))
        return result


@pytest.fixture
def model() -> Network:
    torch.manual_seed(0)
    return Network()


def test_converted_model_computes_the_same(model: Network) -> None:
    x = torch.randn(3, 1, 12, 12)
    reference = copy.deepcopy(model)
    report = ours.convert(model)
    torch.testing.assert_close(model(x), reference(x), rtol=1e-5, atol=1e-6)
    model(x).square().sum().backward()
    reference(x).square().sum().backward()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert {after for _, _, after in report.swapped} == {f"tilesmith.nn.{name}" for name in [*SWAPPED, "Softmax"]}
    assert len(report.swapped) == 11  # the shared layer once
    assert report.kept == [("features.1", "torch.nn.BatchNorm2d", "this library has no such layer")]
    assert "11 layers swapped, 1 kept" in str(report)
    assert "features.0: torch.nn.Conv2d -> tilesmith.nn.Conv2d" in str(report)


def test_convert_keeps_everything_else(model: Network) -> None:
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calls: list[str] = []
    features: Any = model.features
    head: Any = model.head
    features[4].eval()
    model.shared.register_forward_hook(lambda *_: calls.append("forward"))
    model.shared.register_full_backward_hook(lambda *_: calls.append("backward"))
    head[0].weight.register_hook(lambda grad: calls.append("weight"))
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state, described = copy.deepcopy(model.state_dict()), repr(model)
    ours.convert(model)
    assert all(module is modules[name] for name, module in model.named_modules())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert [m.training for m in features] == [True, True, True, True, False]
    assert features[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert repr(model) == described
    model(torch.randn(2, 1, 12, 12)).square().sum().backward()
    assert calls == ["forward", "forward", "weight", "backward", "backward"]
    before = model.shared.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.shared.weight)


def test_revert_undoes_convert(model: Network) -> None:
    classes = {name: type(module) for name, module in model.named_modules()}
    x = torch.randn(3, 1, 12, 12)
    expected = model(x)
    swapped = ours.convert(model).swapped
    report = ours.revert(model)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert torch.equal(model(x), expected)
    assert [(name, after, before) for name, before, after in swapped] == report.swapped
    assert ours.revert(model).swapped == []


def test_convert_twice_is_convert_once(model: Network) -> None:
    ours.convert(model)
    again = ours.convert(model)
    assert again.swapped == []
    assert [name for name, *_ in again.kept] == ["features.1"]


def test_a_layer_is_a_model_too() -> None:
    layer = nn.Linear(2, 3)
    report = ours.convert(layer)
    assert type(layer) is ours.Linear
    assert report.swapped == [("", "torch.nn.Linear", "tilesmith.nn.Linear")]
    assert "(the model)" in str(report)


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def replaced_forward() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Doubled(2, 2), "subclass of torch.nn.Linear"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "parametrized"),
        (lambda: nn.LazyLinear(2), "lazy"),
        (lambda: nn.Conv2d(1, 1, 1, dtype=torch.complex64), "complex64"),
        (lambda: nn.Conv1d(1, 1, 1), "no such layer"),
        (replaced_forward, "forward is replaced"),
    ],
)
def test_what_is_kept_and_why(make: Any, reason: str) -> None:
    layer = make()
    before = type(layer)
    report = ours.convert(nn.Sequential(layer))
    assert type(layer) is before
    assert reason in {name: why for name, _, why in report.kept}["0"]
    assert report.swapped == []


def test_a_device_no_backend_serves_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converting must never break a model: on a device without kernels the layers stay torch's."""
    monkeypatch.setattr(backends.Operation, "serves", lambda self, device: False)
    layer = nn.Linear(2, 2)
    report = ours.convert(layer)
    assert type(layer) is nn.Linear
    assert "no backend serves linear on cpu (available here: " in report.kept[0][2]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ours.Conv2d(1, 1, 3, activation="relu"), "fused activation (relu)"),
        (lambda: ours.Linear(1, 1, activation="tanh"), "fused activation (tanh)"),
        (lambda: ours.Conv2d(1, 1, 3, padding=((0, 1), (0, 1))), "differs from side to side"),
        (lambda: ours.Conv2d(1, 1, 3, padding="same", stride=2), "padding='same' with stride"),
    ],
)
def test_what_cannot_be_reverted_and_why(make: Any, reason: str) -> None:
    layer = make()
    report = ours.revert(layer)
    assert report.swapped == []
    assert reason in report.kept[0][2]
