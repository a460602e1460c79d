"""Modules, drop-in for those of ``torch.nn``, on this library's kernels: subclasses, but for the recurrent ones."""

from .activation import LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from .conv import Conv2d, ConvPool2d
from .linear import Linear
from .pooling import AdaptiveAvgPool2d, AdaptiveMaxPool2d, AvgPool2d, MaxPool2d
from .rnn import GRU, LSTM, RNN, BiLSTM
from .rnn_cells import GRUCell, LSTMCell, RNNCell
from .word2vec import CBOW, SkipGram

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
]
