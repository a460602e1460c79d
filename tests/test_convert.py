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


def block(**pool: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(**{"kernel_size": 2, **pool}), nn.Flatten())


def test_fusing_makes_one_layer_of_a_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2, 2)),
        nn.Conv2d(6, 4, 1),
        nn.MaxPool2d((2, 2)),
        nn.Conv2d(4, 4, 1),
        nn.Sigmoid(),
        nn.AvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, 5),
        nn.Tanh(),
        nn.Linear(5, 2),
    )
    reference, x = copy.deepcopy(model), torch.randn(2, 1, 26, 27)
    keys, optimizer = list(model.state_dict()), torch.optim.SGD(model.parameters(), lr=0.1)
    report = ours.convert(model, fuse=True)
    assert report.fused == [
        ("2", "Conv2d + MaxPool2d", "tilesmith.nn.ConvPool2d"),
        ("4", "Conv2d + Sigmoid", "tilesmith.nn.Conv2d"),
        ("8", "Linear + Tanh", "tilesmith.nn.Linear"),
        ("0.0", "Conv2d + ReLU + MaxPool2d", "tilesmith.nn.ConvPool2d"),
        ("1.0", "Conv2d + ReLU + AvgPool2d", "tilesmith.nn.ConvPool2d"),
    ]
    assert not report.unfused
    assert "5 runs fused" in str(report)
    assert "fused    0.0: Conv2d + ReLU + MaxPool2d -> tilesmith.nn.ConvPool2d" in str(report)
    assert list(model.state_dict()) == keys
    for optimized in (False, True):
        torch.testing.assert_close(model(x), reference(x), rtol=1e-5, atol=1e-6)
        model(x).square().sum().backward()
        reference(x).square().sum().backward()
        for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        if not optimized:
            optimizer.step()
            reference.load_state_dict(model.state_dict())
            for module in (model, reference):
                module.zero_grad()
    again = ours.convert(model, fuse=True)
    assert (again.swapped, again.fused) == ([], [])
    restored = copy.deepcopy(model)
    ours.revert(restored)
    assert repr(restored) == repr(reference)
    assert {type(m) for m in restored.modules()} == {type(m) for m in reference.modules()}
    torch.testing.assert_close(restored(x), reference(x))


@pytest.mark.parametrize(
    "pool", [{"kernel_size": 3}, {"stride": 1}, {"padding": 1}, {"dilation": 2}, {"ceil_mode": True}], ids=str
)
def test_other_poolings_are_not_fused(pool: dict[str, Any]) -> None:
    model = block(**pool)
    assert ours.convert(model, fuse=True).fused == [("0", "Conv2d + ReLU", "tilesmith.nn.Conv2d")]
    x = torch.randn(1, 1, 11, 12)
    expected = nn.functional.max_pool2d(model[0](x), **{"kernel_size": 2, **pool}).flatten(1)
    torch.testing.assert_close(model(x), expected)


def test_a_fused_activation_counts_as_one() -> None:
    layers = {"conv": ours.Conv2d(1, 4, 3, activation="relu"), "pool": nn.MaxPool2d(2), "flat": nn.Flatten()}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    reference, x = copy.deepcopy(model), torch.randn(1, 1, 8, 8)
    assert ours.convert(model, fuse=True).fused == [("conv", "Conv2d + MaxPool2d", "tilesmith.nn.ConvPool2d")]
    torch.testing.assert_close(model(x), reference(x))
    ours.revert(model)
    assert repr(model) == repr(reference)


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2, return_indices=True), nn.AvgPool2d(2, divisor_override=3), nn.AdaptiveMaxPool2d(3)],
    ids=str,
)
def test_poolings_that_do_more_are_not_fused(pool: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), pool)
    reference, x = copy.deepcopy(model), torch.randn(1, 1, 8, 8)
    assert ours.convert(model, fuse=True).fused == [("0", "Conv2d + ReLU", "tilesmith.nn.Conv2d")]
    torch.testing.assert_close(model(x), reference(x))


def test_a_second_activation_is_not_fused() -> None:
    model = nn.Sequential(ours.Conv2d(1, 4, 3, activation="relu"), nn.Tanh(), nn.MaxPool2d(2))
    reference, x = copy.deepcopy(model), torch.randn(1, 1, 8, 8)
    assert not ours.convert(model, fuse=True).fused
    torch.testing.assert_close(model(x), reference(x))


def test_averages_of_sigmoids_are_not_fused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.AvgPool2d(2))
    assert ours.convert(model, fuse=True).fused == [("0", "Conv2d + Sigmoid", "tilesmith.nn.Conv2d")]


@pytest.mark.parametrize(
    "register", ["register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook"]
)
def test_every_kind_of_hook_keeps_layers_apart(register: str) -> None:
    model = block()
    getattr(model[1], register)(lambda *_: None)
    ((_, _, reason),) = ours.convert(model, fuse=True).unfused
    assert "hooks" in reason


def test_layers_before_one_that_works_in_place_stay_apart() -> None:
    """The fused backward needs its output, which torch's layers one by one do not."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(inplace=True))
    ((_, layers, reason),) = ours.convert(model, fuse=True).unfused
    assert layers == "Conv2d + ReLU + MaxPool2d"
    assert "Dropout behind it works in place" in reason
    model(torch.randn(1, 1, 8, 8)).sum().backward()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_layers_with_hooks_stay_apart(place: int) -> None:
    model = block()
    seen: list[torch.Size] = []
    model[place].register_forward_hook(lambda _, __, y: seen.append(y.shape))
    report = ours.convert(model, fuse=True)
    assert not report.fused
    ((name, layers, reason),) = report.unfused
    assert (name, layers) == ("0", "Conv2d + ReLU + MaxPool2d")
    assert "hooks" in reason
    assert f"apart    0: {layers}: {reason}" in str(report)
    model(torch.randn(1, 1, 8, 8))
    assert seen == [torch.Size([1, 4, 3, 3] if place == 2 else [1, 4, 6, 6])]


def test_shared_layers_and_other_forwards_stay_apart() -> None:
    class Twice(nn.Sequential):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 2

    shared = nn.Conv2d(4, 4, 1)
    assert not ours.convert(Twice(nn.Conv2d(4, 4, 1), nn.ReLU()), fuse=True).fused
    report = ours.convert(nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Tanh())), fuse=True)
    assert [reason for *_, reason in report.unfused] == ["the Conv2d is used in several places"] * 2
    replaced = block()
    replaced[1].forward = lambda x: x
    assert not ours.convert(replaced, fuse=True).fused
    swapped = block()
    ours.convert(swapped)
    swapped[1].forward = lambda x: x
    ((*_, reason),) = ours.convert(swapped, fuse=True).unfused
    assert reason == "the forward of the ReLU is replaced on the instance"
    whole: Any = block()
    whole.forward = lambda x: whole[0](x)
    x = torch.randn(1, 1, 8, 8)
    expected = whole(x)
    assert not ours.convert(whole, fuse=True).fused
    torch.testing.assert_close(whole(x), expected)


def test_a_slice_of_a_fused_model_cannot_be_reverted() -> None:
    model = block()
    ours.convert(model, fuse=True)
    with pytest.raises(ValueError, match="ReLU of a layer that is not here"):
        ours.revert(model[1:])
    ours.revert(model.eval())
    assert not any(layer.training for layer in model)


def test_a_pickled_fused_model_computes_the_same(tmp_path: Any) -> None:
    model = block()
    ours.convert(model, fuse=True)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(loaded(x), model(x))
    ours.revert(loaded)
    assert [type(layer) for layer in loaded] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten]


def test_a_layer_made_fused_cannot_be_reverted() -> None:
    report = ours.revert(nn.Sequential(ours.ConvPool2d(1, 4, 3)))
    assert [reason for *_, reason in report.kept] == ["its fused pooling (max) has no place in torch.nn.Conv2d"]
