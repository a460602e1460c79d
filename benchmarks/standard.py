"""The standard set: the convolutions of well-known networks that kernels are compared on, in order of importance."""

from __future__ import annotations

from dataclasses import dataclass

from tilesmith.autotune import Device
from tilesmith.kernels.conv2d import Conv2dProblem, make_problem

DIRECTIONS = ("forward", "input_grad", "weight_grad")
LAYOUTS = ("NCHW", "channels_last")
FUSED = "forward fused"  # with bias and activation, beside torch's convolution and activation one after the other

_ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_UNIT = {"float64": "double", "float32": "tf32", "float16": "half", "bfloat16": "half"}
_UNIT_WITHOUT_TENSOR_CORES = {"float64": "double", "float32": "fma", "float16": "fma", "bfloat16": "fma"}


@dataclass(frozen=True)
class Target:
    """How many times as fast as torch in the same layout we mean to be (below 1: how much slower we may be)."""

    directions: tuple[str, ...]
    layouts: tuple[str, ...]
    dtypes: tuple[str, ...]
    ratio: float

    def covers(self, direction: str, layout: str, dtype: str) -> bool:
        return direction in self.directions and layout in self.layouts and dtype in self.dtypes


@dataclass(frozen=True)
class Layer:
    """One convolution: sizes as in :class:`Conv2dProblem`, the other figures the same for height and width.

    Attributes:
        activation: what follows it with a bias, in the fused row; "none" where there is no such row.
        dtypes: that it is timed in.
        why: what it is in the set for.
        target: what we mean to reach; the first that covers a row holds for it.
    """

    name: str
    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: int
    padding: int
    dilation: int
    groups: int
    activation: str
    dtypes: tuple[str, ...]
    why: str
    target: tuple[Target, ...]

    @property
    def directions(self) -> tuple[str, ...]:
        """Those that are timed."""
        return DIRECTIONS if self.activation == "none" else (FUSED, *DIRECTIONS)

    def problem(self, N: int | None = None) -> Conv2dProblem:
        """The problem with its activation, of another batch size where one is given."""
        return make_problem(
            (self.N if N is None else N, self.C, self.H, self.W),
            (self.K, self.C // self.groups, self.R, self.S),
            (self.stride, self.stride),
            (self.padding,) * 4,
            (self.dilation, self.dilation),
            self.groups,
            self.activation,
        )

    def floor_seconds(self, direction: str, dtype: str, device: Device, tf32: bool = True) -> float:
        """No kernel is faster: the larger of bytes over bandwidth and FLOPs over peak.

        Each operand is read once and the result is written once; of ``x``, forward and for the weight's gradient, only
        what some tap touches (a 1x1 of stride 2 needs a quarter). Products with padding count, as everybody counts
        them: where there is much of it (ASPP), skipping them could beat the floor. Rates are the maker's, as
        ``device`` has them (an H200: 4.8 TB/s, 989 TFLOP/s half, 495 TF32, 66.9 without tensor cores). Nobody reaches
        all of them: about 0.88 of the bandwidth and 0.8 of the matrix rate is what is seen. Depthwise convolutions
        run without tensor cores.

        Args:
            tf32: whether float32 may be multiplied on tensor cores.
        """
        return floor_seconds(self.problem(), direction, dtype, device, tf32)

    def target_ratio(self, direction: str, layout: str, dtype: str) -> float | None:
        """What is meant to be reached there, or ``None`` where nothing was set."""
        return next((t.ratio for t in self.target if t.covers(direction, layout, dtype)), None)


def floor_seconds(p: Conv2dProblem, direction: str, dtype: str, device: Device, tf32: bool = True) -> float:
    """As :meth:`Layer.floor_seconds`, for any problem."""
    size = _ITEMSIZE[dtype]
    moved = p.bytes_moved(size)
    if direction != "input_grad":  # which fills all of dx, with zeros where no tap was
        rows = _touched(p.H, p.P, p.R, p.stride[0], p.padding[0], p.dilation[0])
        columns = _touched(p.W, p.Q, p.S, p.stride[1], p.padding[2], p.dilation[1])
        moved -= p.N * p.C * (p.H * p.W - rows * columns) * size
    without = p.depthwise or (dtype == "float32" and not tf32)
    unit = (_UNIT_WITHOUT_TENSOR_CORES if without else _UNIT)[dtype]
    return max(moved / device.bytes_per_second, p.flops / device.flops(unit))


def _touched(size: int, places: int, taps: int, stride: int, padding: int, dilation: int) -> int:
    """How many of ``size`` rows (or columns) some tap reads."""
    read = {place * stride + tap * dilation - padding for place in range(places) for tap in range(taps)}
    return sum(0 <= index < size for index in read)


_BF16 = ("bfloat16",)
_BOTH = ("bfloat16", "float32")

_DEPTHWISE = (
    Target(("weight_grad",), LAYOUTS, _BF16, 3.0),
    Target(("forward", "input_grad"), ("NCHW",), _BF16, 2.0),
    Target(("forward", "input_grad"), ("channels_last",), _BF16, 1.2),
)
_GROUPED = (Target(DIRECTIONS, ("channels_last",), _BF16, 2.0),)
_TUTORIAL = (Target((FUSED,), LAYOUTS, _BOTH, 1.3),)
_DENSE = (Target(DIRECTIONS, ("channels_last",), _BF16, 0.85),)
_POINTWISE = (Target(DIRECTIONS, ("channels_last",), _BF16, 0.95),)
_DOWNSAMPLE = (Target(DIRECTIONS, ("channels_last",), _BF16, 1.0),)
_STEM = (
    Target(("weight_grad",), ("channels_last",), _BF16, 1.3),
    Target(("forward",), ("channels_last",), _BF16, 1.0),
)

# fmt: off
LAYERS = (
    #     name                       N     C    H    W    K  R  S  stride padding dilation groups activation dtypes
    Layer("MobileNetV2 dw3 144@56", 256, 144,  56,  56, 144, 3, 3, 1, 1, 1, 144, "none", _BOTH,
          "depthwise 3x3, both layouts", _DEPTHWISE),
    Layer("ResNeXt g32 128@56",      64, 128,  56,  56, 128, 3, 3, 1, 1, 1,  32, "none", _BF16,
          "4 channels a group: packing", _GROUPED),
    Layer("MNIST conv1",            128,   1,  28,  28,  32, 3, 3, 1, 0, 1,   1, "relu", _BOTH,
          "the tutorial's first: C=1, launch-bound", _TUTORIAL),
    Layer("MNIST conv2",            128,  32,  13,  13,  64, 3, 3, 1, 0, 1,   1, "relu", _BOTH,
          "the tutorial's second: tiny maps, odd sizes", _TUTORIAL),
    Layer("ResNet-50 s2 3x3",       256, 128,  28,  28, 128, 3, 3, 1, 1, 1,   1, "none", _BOTH,
          "the core dense 3x3", _DENSE),
    Layer("ResNet-50 s1 3x3",       256,  64,  56,  56,  64, 3, 3, 1, 1, 1,   1, "none", _BF16,
          "dense 3x3 with 64 filters", _DENSE),
    Layer("ResNet-50 s1 1x1",        64,  64,  56,  56, 256, 1, 1, 1, 0, 1,   1, "none", _BF16,
          "1x1, bound by bytes", _POINTWISE),
    Layer("ResNet-50 stem",          64,   3, 224, 224,  64, 7, 7, 2, 3, 1,   1, "none", _BF16,
          "C=3; the weight's gradient is one long sum", _STEM),
    Layer("ConvNeXt dw7 96@56",      64,  96,  56,  56,  96, 7, 7, 1, 3, 1,  96, "none", _BF16,
          "depthwise with a large kernel, bound by arithmetic", _DEPTHWISE),
    Layer("ResNet-50 s2 3x3/2",      64, 128,  56,  56, 128, 3, 3, 2, 1, 1,   1, "none", _BF16,
          "a strided input gradient", _DENSE),
    Layer("ResNet-50 s4 3x3",        64, 512,   7,   7, 512, 3, 3, 1, 1, 1,   1, "none", _BF16,
          "few outputs, long sums", _DENSE),
    Layer("MobileNetV2 dw3/2 96@112", 256, 96, 112, 112, 96, 3, 3, 2, 1, 1,  96, "none", _BF16,
          "depthwise, strided", _DEPTHWISE),
    Layer("EfficientNet dw5 240@28", 64, 240,  28,  28, 240, 5, 5, 1, 2, 1, 240, "none", _BF16,
          "depthwise 5x5", _DEPTHWISE),
    Layer("ResNeXt g32 512@14",      64, 512,  14,  14, 512, 3, 3, 1, 1, 1,  32, "none", _BF16,
          "16 channels a group", _GROUPED),
    Layer("ResNet-50 s3 3x3",       256, 256,  14,  14, 256, 3, 3, 1, 1, 1,   1, "none", _BF16,
          "maps of 14: tiles do not fit", _DENSE),
    Layer("ResNet-50 1x1/2",         64, 256,  56,  56, 512, 1, 1, 2, 0, 1,   1, "none", _BF16,
          "downsampling 1x1 that needs a quarter of x", _DOWNSAMPLE),
    Layer("Stable Diffusion 1280@16", 16, 1280, 16, 16, 1280, 3, 3, 1, 1, 1,  1, "none", _BF16,
          "sums of 11520 terms", _DENSE),
    Layer("UNet 64@256",             16,  64, 256, 256,  64, 3, 3, 1, 1, 1,   1, "none", _BF16,
          "large maps, 64 filters", _DENSE),
    Layer("VGG 128@112",             64, 128, 112, 112, 128, 3, 3, 1, 1, 1,   1, "none", _BF16,
          "large: the steady state", _DENSE),
    Layer("ASPP d12 2048@33",        16, 2048, 33,  33, 256, 3, 3, 1, 12, 12, 1, "none", _BF16,
          "dilation", _DENSE),
)
# fmt: on

# One layer for each kind of kernel: depthwise, packed groups, few channels, dense.
EVERY_DTYPE = frozenset({"MobileNetV2 dw3 144@56", "ResNeXt g32 128@56", "MNIST conv1", "ResNet-50 s2 3x3"})
