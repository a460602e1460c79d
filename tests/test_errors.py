"""Bad input: torch's exception type, and a message that names the argument and its value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tilesmith.nn import functional as ours
from torch.nn import functional as theirs

X = torch.randn(2, 3, 8, 8)
W = torch.randn(4, 3, 3, 3)

# op, arguments, options, what the message must contain; torch must refuse it with the same type
REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("conv2d", (X, W.double()), {}, r"float32.*weight.*float64"),
    ("conv2d", (X, W, torch.randn(4).double()), {}, r"float32.*bias.*float64"),
    ("conv2d", (X, W, torch.randn(3)), {}, r"expected bias to be 1-dimensional with 4 elements.*\[3\]"),
    ("conv2d", (X[0, 0], W), {}, r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d.*\[8, 8\]"),
    ("conv2d", (X, W[0]), {}, r"weight.*\[3, 3, 3\]"),
    ("conv2d", (X, W), {"stride": 0}, r"non-positive stride.*0"),
    ("conv2d", (X, W), {"stride": (1, -1)}, r"non-positive stride.*-1"),
    ("conv2d", (X, W), {"padding": -1}, r"negative padding.*-1"),
    ("conv2d", (X, W), {"dilation": 0}, r"non-positive dilation.*0"),
    ("conv2d", (X, W), {"groups": 0}, r"non-positive groups.*0"),
    ("conv2d", (X, W), {"groups": 2}, r"groups=2.*\[4, 3, 3, 3\].*6 channels.*3 channels"),
    ("conv2d", (X[:, :2], W), {}, r"\[2, 2, 8, 8\] to have 3 channels, but got 2 channels"),
    ("conv2d", (X, W[:3]), {"groups": 2}, r"groups=2.*divisible.*\[3, 3, 3, 3\]"),
    ("conv2d", (X, W[:0]), {}, r"\[0, 3, 3, 3\]"),
    ("conv2d", (X, W), {"padding": "wide"}, r"Invalid padding string: 'wide'"),
    ("conv2d", (X[:, :, :2], W), {}, r"\(2 x 8\).*\(3 x 3\).*greater than actual input size"),
    ("conv2d", (X, W), {"dilation": 4}, r"\(8 x 8\).*\(9 x 9\)"),
    ("conv2d", (X, W), {"stride": (1, 2, 3)}, r"stride.*\[1, 2, 3\]"),
    ("conv2d", (X, W), {"padding": (1, 2, 3)}, r"padding.*\[1, 2, 3\]"),
    ("conv2d", (X, W), {"stride": 1.5}, r"stride.*1.5"),
    ("conv2d", (X, W), {"stride": "a"}, r"stride.*'a'"),
    ("conv2d", ("x", W), {}, r"'input'.*str"),
    ("conv2d", (X, 3), {}, r"'weight'.*int"),
    ("conv2d", (X, W, "b"), {}, r"'bias'.*str"),
    ("max_pool2d", (X, 0), {}, r"kernel_size.*\(0, 0\)"),
    ("max_pool2d", (X, 2, 0), {}, r"stride.*\(0, 0\)"),
    ("max_pool2d", (X, 2), {"padding": 2}, r"half.*padding \(2, 2\).*kernel_size \(2, 2\)"),
    ("max_pool2d", (X, 2), {"padding": -1}, r"padding \(-1, -1\)"),
    ("max_pool2d", (X, 2), {"dilation": 0}, r"dilation.*\(0, 0\)"),
    ("max_pool2d", (X, 20), {}, r"\(3x8x8\).*too small"),
    ("max_pool2d", (X[0, 0], 2), {}, r"3D or 4D.*\[8, 8\]"),
    ("max_pool2d", (X[:, :0], 2), {}, r"\[2, 0, 8, 8\]"),
    ("max_pool2d", (X, (2, 2, 2)), {}, r"kernel_size.*\[2, 2, 2\]"),
    ("max_pool2d", (X, 2.5), {}, r"kernel_size.*2.5"),
    ("max_pool2d", (X.to(torch.complex64), 2), {}, r"max_pool2d.*complex64"),
    ("max_pool2d", (X > 0, 2), {}, r"max_pool2d.*bool"),
    ("avg_pool2d", (X.int(), 2), {}, r"avg_pool2d.*int32"),
    ("avg_pool2d", (X, 2), {"divisor_override": 0}, r"divisor_override"),
    ("avg_pool2d", (X, 20), {}, r"too small"),
    ("avg_pool2d", (X, 2), {"padding": 2}, r"half.*\(2, 2\)"),
    ("avg_pool2d", (X[:, :0], 2), {}, r"\[2, 0, 8, 8\]"),
    ("adaptive_avg_pool2d", (X, -1), {}, r"output_size.*-1"),
    ("adaptive_max_pool2d", (X, -1), {}, r"output_size.*-1"),
    ("adaptive_avg_pool2d", (X, (2, 3, 4)), {}, r"output_size.*\[2, 3, 4\]"),
    ("adaptive_avg_pool2d", (X[0, 0], 2), {}, r"\[8, 8\]"),
    ("adaptive_max_pool2d", (X[:, :0], 2), {}, r"\[2, 0, 8, 8\]"),
    ("adaptive_avg_pool2d", (X.int(), 2), {}, r"adaptive_avg_pool2d.*int32"),
    ("adaptive_max_pool2d", (X.int(), 2), {}, r"adaptive_max_pool2d.*int32"),
    ("adaptive_avg_pool2d", (X[..., :0], 2), {}, r"\[2, 3, 8, 0\]"),
    ("adaptive_avg_pool2d", (X, 2.5), {}, r"output_size.*2.5"),
    ("linear", (X, torch.randn(4, 7)), {}, r"\[2, 3, 8, 8\].*\[4, 7\]"),
    ("linear", (X, torch.randn(4, 8), torch.randn(3)), {}, r"bias.*\[4\].*\[3\]"),
    ("linear", (X, torch.randn(4, 8).double()), {}, r"weight.*float64"),
    ("linear", (torch.tensor(1.0), torch.randn(4, 8)), {}, r"\[\].*\[4, 8\]"),
    ("linear", (X, torch.randn(2, 4, 8)), {}, r"\[2, 4, 8\]"),
    ("linear", (X, torch.randn(4, 8), torch.randn(4).double()), {}, r"bias.*float64"),
    ("linear", ("x", W), {}, r"'input'.*str"),
    ("relu", (X > 0,), {}, r"Boolean inputs not supported for relu"),
    ("relu", (X.to(torch.complex64),), {}, r"relu.*complex64"),
    ("relu", ("x",), {}, r"'input'.*str"),
    ("softmax", (X, 7), {}, r"\[-4, 3\], but got 7"),
    ("log_softmax", (X, -5), {}, r"\[-4, 3\], but got -5"),
    ("softmax", (X.int(), 1), {}, r"softmax.*int32"),
    ("softmax", (X.to(torch.complex64), 1), {}, r"softmax.*complex64"),
]


@pytest.mark.parametrize(("op", "args", "options", "words"), REFUSED, ids=[f"{r[0]}-{r[3]}" for r in REFUSED])
def test_refused_as_torch_does(op: str, args: Any, options: Any, words: str) -> None:
    with pytest.raises(Exception, match=r"(?s).") as reference:  # whatever torch raises
        getattr(theirs, op)(*args, **options)
    with pytest.raises(type(reference.value), match=words) as found:
        getattr(ours, op)(*args, **options)
    assert type(found.value) is type(reference.value)


# what torch accepts and this library refuses, and the reverse, in so many words
def test_refused_beyond_torch() -> None:
    with pytest.raises(RuntimeError, match=r"has no taps"):
        ours.conv2d(X[:, :0], W[:, :0])
    with pytest.raises(NotImplementedError, match=r"conv2d.*int64"):
        ours.conv2d(X.long(), W.long())
    with pytest.raises(NotImplementedError, match=r"sigmoid.*complex64"):
        ours.sigmoid(X.to(torch.complex64))
    with pytest.raises(ValueError, match=r"activation is 'elu', it must be one of 'none', 'relu', 'sigmoid', 'tanh'"):
        ours.conv2d(X, W, activation="elu")
    with pytest.raises(ValueError, match=r"activation is 'elu'"):
        ours.linear(X, torch.randn(4, 8), activation="elu")


def test_two_devices_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"input is on cpu and weight is on meta"):
        ours.conv2d(X, W.to("meta"))


def test_implicit_softmax_dimension_warns_as_torch() -> None:
    for library in (ours, theirs):
        with pytest.warns(UserWarning, match="Implicit dimension choice for softmax has been deprecated") as caught:
            y = library.softmax(X)
        assert caught[0].filename == __file__
        torch.testing.assert_close(y, theirs.softmax(X, 1))


def test_errors_survive_a_failing_worker() -> None:
    """A call that failed leaves nothing behind: the next one is right."""
    with pytest.raises(RuntimeError, match="channels"):
        ours.conv2d(X[:, :2], W)
    torch.testing.assert_close(ours.conv2d(X, W), theirs.conv2d(X, W), rtol=1e-4, atol=1e-5)
