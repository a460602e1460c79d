"""The modules are drop-in: constructor, initial values, state_dict, repr, copies, errors; and what they add."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import tilesmith.nn as ours
import torch
from torch import nn as theirs

# name, arguments, keyword arguments, input shape
LAYERS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("Conv2d", (3, 4, 3), {}, (2, 3, 8, 9)),
    ("Conv2d", (4, 6, (3, 2)), {"stride": 2, "padding": (1, 2), "dilation": 2, "groups": 2}, (2, 4, 9, 9)),
    ("Conv2d", (3, 4, 3), {"padding": "same", "bias": False, "dtype": torch.float64}, (2, 3, 8, 9)),
    ("Conv2d", (3, 4, 3), {"padding": 2, "padding_mode": "reflect"}, (2, 3, 8, 9)),
    ("Conv2d", (3, 4, 3), {"padding": (1, 2), "padding_mode": "replicate"}, (2, 3, 8, 9)),
    ("Conv2d", (3, 4, 3), {"padding": 1, "padding_mode": "circular"}, (2, 3, 8, 9)),
    ("Conv2d", (3, 4, (3, 4)), {"padding": "same", "padding_mode": "reflect"}, (2, 3, 8, 9)),
    ("Conv2d", (6, 12, 3), {"groups": 6, "padding": "valid"}, (6, 8, 9)),
    ("MaxPool2d", (2,), {}, (2, 3, 8, 9)),
    ("MaxPool2d", (3, 2, 1), {"dilation": 2, "ceil_mode": True}, (2, 3, 12, 13)),
    ("MaxPool2d", (2,), {"return_indices": True}, (3, 8, 9)),
    ("AvgPool2d", (3, 2, 1), {"ceil_mode": True, "count_include_pad": False}, (2, 3, 8, 9)),
    ("AvgPool2d", (2,), {"divisor_override": 3}, (2, 3, 8, 9)),
    ("AdaptiveMaxPool2d", ((2, None),), {}, (2, 3, 8, 9)),
    ("AdaptiveMaxPool2d", (3,), {"return_indices": True}, (2, 3, 8, 9)),
    ("AdaptiveAvgPool2d", ((3, 2),), {}, (2, 3, 8, 9)),
    ("Linear", (7, 4), {}, (2, 5, 7)),
    ("Linear", (7, 4), {"bias": False, "dtype": torch.float64}, (5, 7)),
    ("ReLU", (), {}, (2, 3)),
    ("ReLU", (), {"inplace": True}, (2, 3)),
    ("Sigmoid", (), {}, (2, 3)),
    ("Tanh", (), {}, (2, 3)),
    ("Softmax", (1,), {}, (2, 3, 4)),
    ("LogSoftmax", (), {"dim": -1}, (2, 3, 4)),
    ("RNN", (3, 4, 2, "relu"), {"bidirectional": True, "dropout": 0.0}, (5, 2, 3)),
    ("GRU", (3, 4), {"batch_first": True, "bias": False, "dtype": torch.float64}, (5, 2, 3)),
    ("LSTM", (3, 4, 2), {"bidirectional": True, "proj_size": 2}, (5, 3)),
    ("RNNCell", (3, 4), {"nonlinearity": "relu"}, (2, 3)),
    ("GRUCell", (3, 4, False), {}, (2, 3)),
    ("LSTMCell", (3, 4), {"dtype": torch.float64}, (3,)),
]
each_layer = pytest.mark.parametrize(
    ("name", "args", "options", "shape"), LAYERS, ids=[f"{n}{a}{o}".replace(" ", "") for n, a, o, _ in LAYERS]
)


def make_pair(name: str, args: Any, options: Any) -> tuple[theirs.Module, theirs.Module]:
    """Ours and torch's, each made from the same seed."""
    pair = []
    for library in (ours, theirs):
        torch.manual_seed(11)
        pair.append(getattr(library, name)(*args, **options))
    return pair[0], pair[1]


def run(layer: theirs.Module, shape: tuple[int, ...], options: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=options.get("dtype"), requires_grad=True)
    y = layer(x.clone())
    first = y[0] if isinstance(y, tuple) else y
    first.square().sum().backward()
    assert x.grad is not None
    return y, x.grad


@each_layer
def test_same_initial_values_outputs_and_gradients(name: str, args: Any, options: Any, shape: Any) -> None:
    mine, reference = make_pair(name, args, options)
    for (key, parameter), (key_reference, expected) in zip(
        mine.named_parameters(), reference.named_parameters(), strict=True
    ):
        assert key == key_reference
        assert torch.equal(parameter, expected)
    torch.testing.assert_close(run(mine, shape, options), run(reference, shape, options), rtol=1e-4, atol=1e-5)
    for parameter, expected in zip(mine.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-4)


@each_layer
def test_same_repr_and_signature(name: str, args: Any, options: Any, shape: Any) -> None:
    mine, reference = make_pair(name, args, options)
    assert repr(mine) == repr(reference)
    # torch's recurrent layers break torch.compile, so ours are no subclasses of them
    assert isinstance(mine, type(reference)) == (name[:3] not in ("RNN", "GRU", "LST"))


@each_layer
def test_state_dict_both_ways(name: str, args: Any, options: Any, shape: Any) -> None:
    mine, reference = make_pair(name, args, options)
    other = type(mine)(*args, **options)
    other.load_state_dict(reference.state_dict())
    back = type(reference)(*args, **options)
    back.load_state_dict(mine.state_dict())
    for parameter, expected in zip(other.parameters(), back.parameters(), strict=True):
        assert torch.equal(parameter, expected)


@each_layer
def test_copies_compute_the_same(name: str, args: Any, options: Any, shape: Any) -> None:
    mine, _ = make_pair(name, args, options)
    expected = run(mine, shape, options)
    buffer = io.BytesIO()
    torch.save(mine, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), torch.load(buffer, weights_only=False)]
    for twin in copies:
        assert type(twin) is type(mine)
        assert repr(twin) == repr(mine)
        torch.testing.assert_close(run(twin, shape, options), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda nn: nn.Conv2d(3, 4, 3, groups=2), "in_channels must be divisible by groups"),
        (lambda nn: nn.Conv2d(4, 3, 3, groups=2), "out_channels must be divisible by groups"),
        (lambda nn: nn.Conv2d(3, 4, 3, padding="wrong"), "padding"),
        (lambda nn: nn.Conv2d(3, 4, 3, padding_mode="wrong"), "padding_mode"),
        (lambda nn: nn.Conv2d(3, 4, 3, groups=0), "groups"),
    ],
)
def test_constructor_errors_are_torchs(make: Any, words: str) -> None:
    for library in (ours, theirs):
        with pytest.raises(ValueError, match=words):
            make(library)


# ---- beyond torch


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_fused_activation(activation: str) -> None:
    torch.manual_seed(0)
    fused = theirs.Sequential(
        ours.Conv2d(2, 3, 3, activation=activation), theirs.Flatten(), ours.Linear(48, 5, activation=activation)
    )
    x = torch.randn(2, 2, 6, 6)
    apply = getattr(torch, activation)
    conv: Any = fused[0]
    dense: Any = fused[2]
    y = apply(theirs.functional.conv2d(x, conv.weight, conv.bias))
    expected = apply(theirs.functional.linear(y.flatten(1), dense.weight, dense.bias))
    torch.testing.assert_close(fused(x), expected)
    assert f"activation={activation}" in repr(fused)
    assert repr(copy.deepcopy(fused)) == repr(fused)


@pytest.mark.parametrize("layer", [lambda **k: ours.Conv2d(2, 3, 3, **k), lambda **k: ours.Linear(2, 3, **k)])
def test_unknown_activation_is_refused(layer: Any) -> None:
    with pytest.raises(ValueError, match=r"activation is 'gelu', it must be None or one of 'relu', 'sigmoid', 'tanh'"):
        layer(activation="gelu")


def test_activation_is_keyword_only() -> None:
    conv: Any = ours.Conv2d
    with pytest.raises(TypeError, match="positional"):
        conv(3, 4, 3, 1, 0, 1, 1, True, "zeros", None, None, "relu")
    linear: Any = ours.Linear
    with pytest.raises(TypeError, match="positional"):
        linear(3, 4, True, None, None, "relu")


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_asymmetric_padding(mode: Any) -> None:
    layer = ours.Conv2d(2, 3, 3, stride=2, padding=((0, 2), (1, 3)), padding_mode=mode)
    x = torch.randn(2, 2, 6, 7)
    padded = theirs.functional.pad(x, (1, 3, 0, 2), mode="constant" if mode == "zeros" else mode)
    torch.testing.assert_close(layer(x), theirs.functional.conv2d(padded, layer.weight, layer.bias, 2))
    assert "padding=((0, 2), (1, 3))" in repr(layer)
    assert repr(copy.deepcopy(layer)) == repr(layer)
    with pytest.raises(ValueError, match="padding must not be negative"):
        ours.Conv2d(2, 3, 3, padding=((0, -1), (1, 1)))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"), [(7, 3, 2, 1), (8, 3, 2, 1), (9, 5, 3, 2), (5, 2, 4, 1)]
)
def test_same_padding_with_stride(size: int, kernel: int, stride: int, dilation: int) -> None:
    """TensorFlow's rule: ceil(size / stride) outputs, the odd zero at the end."""
    layer = ours.Conv2d(1, 1, kernel, stride=stride, padding="same", dilation=dilation, bias=False)
    x = torch.randn(1, 1, size, size)
    y = layer(x)
    outputs = -(-size // stride)
    assert y.shape == (1, 1, outputs, outputs)
    total = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    before, after = total // 2, total - total // 2
    padded = theirs.functional.pad(x, (before, after, before, after))
    torch.testing.assert_close(y, theirs.functional.conv2d(padded, layer.weight, None, stride, 0, dilation))


def test_inplace_relu_writes_its_input_and_differentiates() -> None:
    x = torch.randn(5, requires_grad=True)
    doubled = x * 2
    y = ours.ReLU(inplace=True)(doubled)
    assert y.data_ptr() == doubled.data_ptr()
    y.sum().backward()
    assert torch.equal(x.grad, 2.0 * (x > 0))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        ours.ReLU(inplace=True)(torch.randn(3, requires_grad=True))


def test_no_index_is_made_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values only where nobody will ask for the index: an int64 a pixel is twice the traffic."""
    from tilesmith.kernels.pool2d import _numpy

    seen = []
    forward = _numpy.max_forward

    def spy(problem: Any, x: Any, y: Any, index: Any) -> None:
        seen.append(index is not None)
        forward(problem, x, y, index)

    monkeypatch.setattr(_numpy, "max_forward", spy)
    pool, x = ours.MaxPool2d(2), torch.randn(1, 1, 4, 4)
    pool(x)
    with torch.no_grad():
        pool(x.requires_grad_())
    pool(x)
    assert seen == [False, False, True]


def test_adaptive_pooling_to_nothing() -> None:
    x = torch.randn(2, 3, 7, 6, requires_grad=True)
    y = ours.AdaptiveAvgPool2d(0)(x)
    assert y.shape == (2, 3, 0, 0)
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))  # type: ignore[arg-type]
