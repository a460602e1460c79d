"""Modules, drop-in for those of ``torch.nn``: each is a subclass that runs this library's kernels."""

from .activation import LogSoftmax, ReLU, Sigmoid, Softmax, Tanh
from .conv import Conv2d
from .linear import Linear
from .pooling import AdaptiveAvgPool2d, AdaptiveMaxPool2d, AvgPool2d, MaxPool2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "Conv2d",
    "Linear",
    "LogSoftmax",
    "MaxPool2d",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
]
