"""Drop-in layers for ``torch.nn`` on this library's own kernels, and ``convert``, which swaps them into a model."""

from typing import TYPE_CHECKING, Any

from . import functional
from .convert import ConversionReport, convert, revert
from .modules import (
    CBOW,
    GRU,
    LSTM,
    RNN,
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool2d,
    BiLSTM,
    Conv2d,
    ConvPool2d,
    GRUCell,
    Linear,
    LogSoftmax,
    LSTMCell,
    MaxPool2d,
    ReLU,
    RNNCell,
    Sigmoid,
    SkipGram,
    Softmax,
    Tanh,
)

if TYPE_CHECKING:
    from .words import Word2Vec, WordVectors

__all__ = [
    "CBOW",
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "BiLSTM",
    "Conv2d",
    "ConvPool2d",
    "ConversionReport",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "RNNCell",
    "ReLU",
    "Sigmoid",
    "SkipGram",
    "Softmax",
    "Tanh",
    "Word2Vec",
    "WordVectors",
    "convert",
    "functional",
    "revert",
]


def __getattr__(name: str) -> Any:
    """The trainer is imported when it is first asked for: it would take 15 ms of every program's start."""
    if name in ("Word2Vec", "WordVectors"):
        from . import words

        globals()[name] = value = getattr(words, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
