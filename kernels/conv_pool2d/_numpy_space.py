"""What the NumPy kernel of convolution and pooling may be run with: how much of the convolution exists at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...autotune import Config, Cost, Device, Key, Tunable
from .._division import blocks_of
from .._numpy_tuning import MB, repeated, unit
from ._problem import ConvPool2dProblem

SPACE = {"BLOCK_BYTES": (8 * MB, 4 * MB, 16 * MB, 2 * MB, 32 * MB, 1 * MB)}
LEAST_BLOCK_BYTES = min(SPACE["BLOCK_BYTES"])

_CALLS = 24  # of NumPy for a block: a convolution of one block, and a pooling of one
_PASSES = 3  # over a block: written by the convolution, whose own blocks are activated in cache, and pooled


@dataclass(frozen=True)
class Images:
    """The forward, as many images at a time as a block of the convolution's output holds."""

    problem: ConvPool2dProblem
    channels_last: bool
    with_code: bool
    itemsize: int
    device: Device

    @property
    def image_bytes(self) -> int:
        p = self.problem.convolution
        return p.K * p.P * p.Q * self.itemsize


def _images(config: Config, images: Images) -> int:
    return min(images.problem.convolution.N, max(1, config["BLOCK_BYTES"] // images.image_bytes))


def _refusal(config: Config, images: Images) -> str | None:
    return repeated("BLOCK_BYTES", SPACE, config, lambda other: _images(other, images))


def _key(images: Images) -> Key:
    p, d = images.problem.convolution, images.device
    window = p.R, p.S, p.stride, p.dilation, any(p.padding), p.depthwise
    layout = images.channels_last, images.with_code, images.itemsize
    return Key(
        (images.problem.pool, p.activation, *window, *layout, d.name, d.multiprocessors),
        {
            "bytes": p.N * images.image_bytes,
            "image_bytes": images.image_bytes,
            "outputs": p.K // p.groups,
            "taps": p.C // p.groups * p.R * p.S,
        },
    )


def _cost(config: Config, images: Images) -> Cost:
    p = images.problem.convolution
    at_once = _images(config, images)
    block_bytes = at_once * images.image_bytes
    return Cost(
        blocks=blocks_of(p.N, at_once),
        flops=p.flops * at_once / p.N,
        unit=unit(images.itemsize),
        bytes=_PASSES * block_bytes + at_once * p.C * p.H * p.W * images.itemsize,
        steps=_CALLS,
        shared=block_bytes,
        threads=1,  # a block's convolution and pooling have threads of their own
    )


def tunable(default: Callable[[Images], Config]) -> Tunable:
    return Tunable(
        "numpy.conv_pool2d.forward",
        SPACE,
        default=default,
        refusal=_refusal,
        reasons={
            "BLOCK_BYTES": "of the convolution's output, which is pooled before the next block: 1 MiB to 32 MiB by "
            "powers of two, from two second-level caches to what a shared cache holds; each block starts threads twice"
        },
        key=_key,
        cost=_cost,
    )
