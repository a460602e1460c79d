"""Drop-in layers for ``torch.nn`` on this library's own kernels, and ``convert``, which swaps them into a model."""

from . import functional
from .convert import ConversionReport, convert, revert
from .modules import (
    GRU,
    LSTM,
    RNN,
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool2d,
    BiLSTM,
    Conv2d,
    GRUCell,
    Linear,
    LogSoftmax,
    LSTMCell,
    MaxPool2d,
    ReLU,
    RNNCell,
    Sigmoid,
    Softmax,
    Tanh,
)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "BiLSTM",
    "Conv2d",
    "ConversionReport",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "RNNCell",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "convert",
    "functional",
    "revert",
]
