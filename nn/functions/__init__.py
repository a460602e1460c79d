"""Autograd: what differentiates the kernels. One file an op; every backward is made of differentiable functions."""

from .activation import activation
from .conv2d import conv2d
from .conv_pool2d import conv_pool2d
from .linear import linear
from .pool2d import adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d, max_pool2d
from .rnn import rnn, stack_directions
from .softmax import softmax
from .word2vec import word2vec_pairs

__all__ = [
    "activation",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "conv2d",
    "conv_pool2d",
    "linear",
    "max_pool2d",
    "rnn",
    "softmax",
    "stack_directions",
    "word2vec_pairs",
]
