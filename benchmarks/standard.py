"""The standard set: layers of well-known networks that kernels are compared on, of each kind in order of importance."""

from __future__ import annotations

from .layers import FUSED, IMAGES, Layer, Target
from .layers.activation import Activation
from .layers.convolution import DIRECTIONS, Convolution
from .layers.dense import Dense
from .layers.fused import FusedBlock
from .layers.pooling import AVG_DIRECTIONS, MAX_DIRECTIONS, AdaptivePooling, Pooling
from .layers.softmax import Softmax

_BF16 = ("bfloat16",)
_FP16 = ("float16",)
_BOTH = ("bfloat16", "float32")
_ANY = ("bfloat16", "float16", "float32")

_DEPTHWISE = (
    Target(("weight_grad",), IMAGES, _BF16, 3.0),
    Target(("forward", "input_grad"), ("NCHW",), _BF16, 2.0),
    Target(("forward", "input_grad"), ("channels_last",), _BF16, 1.2),
)
_GROUPED = (Target(DIRECTIONS, ("channels_last",), _BF16, 2.0),)
_TUTORIAL = (Target((FUSED,), IMAGES, _BOTH, 1.3),)
_DENSE = (Target(DIRECTIONS, ("channels_last",), _BF16, 0.85),)
_POINTWISE = (Target(DIRECTIONS, ("channels_last",), _BF16, 0.95),)
_DOWNSAMPLE = (Target(DIRECTIONS, ("channels_last",), _BF16, 1.0),)
_STEM = (
    Target(("weight_grad",), ("channels_last",), _BF16, 1.3),
    Target(("forward",), ("channels_last",), _BF16, 1.0),
)

# fmt: off
CONVOLUTIONS = (
    #           name, dtypes, why, targets;
    #             N     C    H    W     K  R  S  s   p   d  groups activation
    Convolution("MobileNetV2 dw3 144@56", _BOTH, "depthwise 3x3, both layouts", _DEPTHWISE,
                256,  144,  56,  56,  144, 3, 3, 1,  1,  1, 144, "none"),
    Convolution("ResNeXt g32 128@56", _BF16, "4 channels a group: packing", _GROUPED,
                 64,  128,  56,  56,  128, 3, 3, 1,  1,  1,  32, "none"),
    Convolution("MNIST conv1", _BOTH, "the tutorial's first: C=1, launch-bound", _TUTORIAL,
                128,    1,  28,  28,   32, 3, 3, 1,  0,  1,   1, "relu"),
    Convolution("MNIST conv2", _BOTH, "the tutorial's second: tiny maps, odd sizes", _TUTORIAL,
                128,   32,  13,  13,   64, 3, 3, 1,  0,  1,   1, "relu"),
    Convolution("ResNet-50 s2 3x3", _BOTH, "the core dense 3x3", _DENSE,
                256,  128,  28,  28,  128, 3, 3, 1,  1,  1,   1, "none"),
    Convolution("ResNet-50 s1 3x3", _BF16, "dense 3x3 with 64 filters", _DENSE,
                256,   64,  56,  56,   64, 3, 3, 1,  1,  1,   1, "none"),
    Convolution("ResNet-50 s1 1x1", _BF16, "1x1, bound by bytes", _POINTWISE,
                 64,   64,  56,  56,  256, 1, 1, 1,  0,  1,   1, "none"),
    Convolution("ResNet-50 stem", _BF16, "C=3; the weight's gradient is one long sum", _STEM,
                 64,    3, 224, 224,   64, 7, 7, 2,  3,  1,   1, "none"),
    Convolution("ConvNeXt dw7 96@56", _BF16, "depthwise with a large kernel, bound by arithmetic", _DEPTHWISE,
                 64,   96,  56,  56,   96, 7, 7, 1,  3,  1,  96, "none"),
    Convolution("ResNet-50 s2 3x3/2", _BF16, "a strided input gradient", _DENSE,
                 64,  128,  56,  56,  128, 3, 3, 2,  1,  1,   1, "none"),
    Convolution("ResNet-50 s4 3x3", _BF16, "few outputs, long sums", _DENSE,
                 64,  512,   7,   7,  512, 3, 3, 1,  1,  1,   1, "none"),
    Convolution("MobileNetV2 dw3/2 96@112", _BF16, "depthwise, strided", _DEPTHWISE,
                256,   96, 112, 112,   96, 3, 3, 2,  1,  1,  96, "none"),
    Convolution("EfficientNet dw5 240@28", _BF16, "depthwise 5x5", _DEPTHWISE,
                 64,  240,  28,  28,  240, 5, 5, 1,  2,  1, 240, "none"),
    Convolution("ResNeXt g32 512@14", _BF16, "16 channels a group", _GROUPED,
                 64,  512,  14,  14,  512, 3, 3, 1,  1,  1,  32, "none"),
    Convolution("ResNet-50 s3 3x3", _BF16, "maps of 14: tiles do not fit", _DENSE,
                256,  256,  14,  14,  256, 3, 3, 1,  1,  1,   1, "none"),
    Convolution("ResNet-50 1x1/2", _BF16, "downsampling 1x1 that needs a quarter of x", _DOWNSAMPLE,
                 64,  256,  56,  56,  512, 1, 1, 2,  0,  1,   1, "none"),
    Convolution("Stable Diffusion 1280@16", _BF16, "sums of 11520 terms", _DENSE,
                 16, 1280,  16,  16, 1280, 3, 3, 1,  1,  1,   1, "none"),
    Convolution("UNet 64@256", _BF16, "large maps, 64 filters", _DENSE,
                 16,   64, 256, 256,   64, 3, 3, 1,  1,  1,   1, "none"),
    Convolution("VGG 128@112", _BF16, "large: the steady state", _DENSE,
                 64,  128, 112, 112,  128, 3, 3, 1,  1,  1,   1, "none"),
    Convolution("ASPP d12 2048@33", _BF16, "dilation", _DENSE,
                 16, 2048,  33,  33,  256, 3, 3, 1, 12, 12,   1, "none"),
)
# fmt: on

# Bytes bind poolings: 0.85 of what the maker says of the memory is what a good copy reaches. Where the floor is a few
# microseconds a launch takes as long, and there is no such target.
_MAX_OVERLAPPING = (
    Target(("inference", "forward"), IMAGES, _ANY, 3.0, 0.85),
    Target(("backward",), IMAGES, _ANY, 2.0, 0.85),
)
_MAX_APART = (Target(MAX_DIRECTIONS, IMAGES, _ANY, 2.0, 0.85),)
_MAX_GLOBAL = (Target(("inference", "forward"), IMAGES, _ANY, 5.0),)
_AVG_APART = (
    Target(("backward",), IMAGES, _ANY, 2.0, 0.85),
    Target(("forward",), IMAGES, _ANY, of_floor=0.85),
)
_AVG_OVERLAPPING = (Target(AVG_DIRECTIONS, IMAGES, _ANY, 1.5, 0.85),)
_AVG_ADAPTIVE = (
    Target(("backward",), IMAGES, _ANY, 3.0, 0.85),
    Target(("forward",), IMAGES, _ANY, of_floor=0.85),
)
_AVG_GLOBAL = (Target(AVG_DIRECTIONS, IMAGES, _ANY, of_floor=0.85),)

# fmt: off
POOLINGS: tuple[Layer, ...] = (
    #       name, dtypes, why, targets;
    #       kind    N     C    H    W  kernel stride padding
    Pooling("ResNet-50 maxpool 3/2", _BOTH, "the pooling everybody runs: windows overlap", _MAX_OVERLAPPING,
            "max",  64,   64, 112, 112, 3, 2, 1, untimed=("gather",)),
    Pooling("ResNet-50 maxpool 3/2 fp16", _FP16, "the same, as others have published it", _MAX_OVERLAPPING,
            "max",  32,   64, 112, 112, 3, 2, 1, layouts=("NCHW",)),
    Pooling("VGG maxpool 2 64@224", _BF16, "large; windows side by side", _MAX_APART,
            "max",  64,   64, 224, 224, 2, 2, 0),
    Pooling("MNIST maxpool 2 32@26", _BF16, "launch-bound: what the fused block saves", (),
            "max", 128,   32,  26,  26, 2, 2, 0),
    Pooling("DenseNet avgpool 2 256@56", _BF16, "averages side by side", _AVG_APART,
            "avg",  64,  256,  56,  56, 2, 2, 0),
    Pooling("Inception avgpool 3/1 288@35", _BF16, "overlap and padding; torch 2.11's channels_last gradient is wrong",
            _AVG_OVERLAPPING,
            "avg",  64,  288,  35,  35, 3, 1, 1),
    #               kind    N     C    H    W windows
    AdaptivePooling("PSP avgpool 60 to 6", _BF16, "adaptive windows that are all of one size", _AVG_ADAPTIVE,
                    "avg",  16, 2048,  60,  60, 6),
    AdaptivePooling("PSP avgpool 60 to 7", _BF16, "windows of two sizes that overlap", _AVG_ADAPTIVE,
                    "avg",  16, 2048,  60,  60, 7),
    AdaptivePooling("global avgpool 2048@7", _BF16, "a mean of each plane", _AVG_GLOBAL,
                    "avg", 256, 2048,   7,   7, 1),
    AdaptivePooling("global maxpool 512@14", _BF16, "few windows of 196 taps", _MAX_GLOBAL,
                    "max",  64,  512,  14,  14, 1),
)

_FUSED = (Target(("forward",), IMAGES, _BOTH, 2.0),)

BLOCKS = (
    #          name, dtypes, why, targets;
    #            N   C   H   W   K  R  S  p groups activation pool first
    FusedBlock("MNIST block 1", _BOTH, "the tutorial's first: convolution, ReLU, maxima in one pass", _FUSED,
               128,  1, 28, 28, 32, 3, 3, 0, 1, "relu", "max", True),
    FusedBlock("MNIST block 2", _BOTH, "the tutorial's second: the last row and column are in no window", _FUSED,
               128, 32, 13, 13, 64, 3, 3, 0, 1, "relu", "max", False),
    FusedBlock("CIFAR block 64@32 avg", _BF16, "averages behind a ReLU: a bit a tap is kept", (),
               256, 64, 32, 32, 64, 3, 3, 1, 1, "relu", "avg", False),
)

DENSE = (
    #     name, dtypes, why, targets; M, I, O, activation
    Dense("MNIST dense 1600 to 10", _BOTH, "the tutorial's last: ten outputs", (), 128, 1600, 10, "none"),
    Dense("MNIST dense 1600 to 128", _BOTH, "a hidden layer behind the tutorial's blocks", (), 128, 1600, 128, "relu"),
    Dense("Transformer dense 1024 to 4096", _BF16, "bound by arithmetic", (), 4096, 1024, 4096, "relu"),
)

SOFTMAXES = (
    #       name, dtypes, why, targets; shape, dim, log
    Softmax("softmax 65536 of 1000", _BF16, "ImageNet's classes", (), (65536, 1000), 1, False),
    Softmax("log-softmax 4096 of 32768", _BF16, "a vocabulary: rows longer than a tile", (), (4096, 32768), 1, True),
    Softmax("softmax 128 of 10", _BOTH, "the tutorial's: launch-bound", (), (128, 10), 1, False),
    Softmax("softmax of 21 channels", _BF16, "segmentation: over columns in NCHW, short rows in channels_last", (),
            (64, 21, 512, 512), 1, False, layouts=IMAGES),
)

ACTIVATIONS = (
    #          name, dtypes, why, targets; kind, shape
    Activation("ReLU 64@224", _BF16, "large: a copy", (), "relu", (64, 64, 224, 224)),
    Activation("tanh 64@224", _BF16, "large: an exponential an element", (), "tanh", (64, 64, 224, 224)),
    Activation("ReLU 32@26", _BF16, "the tutorial's: launch-bound", (), "relu", (128, 32, 26, 26)),
    Activation("tanh 32@26", _BF16, "the same with an exponential an element", (), "tanh", (128, 32, 26, 26)),
)
# fmt: on

LAYERS: tuple[Layer, ...] = (*CONVOLUTIONS, *POOLINGS, *BLOCKS, *DENSE, *SOFTMAXES, *ACTIVATIONS)

# Layers for the table of kernels alone, compiled for one GPU: what none of the others runs by default.
# fmt: off
UNTIMED: tuple[Layer, ...] = (
    FusedBlock("depthwise block 96@56 max", _BF16, "a pass over windows behind the convolution", (),
               64, 96, 56, 56, 96, 3, 3, 1, 96, "relu", "max", False),
    FusedBlock("depthwise block 96@56 avg", _BF16, "the same with averages", (),
               64, 96, 56, 56, 96, 3, 3, 1, 96, "relu", "avg", False),
    AdaptivePooling("global avgpool 16@512", _BF16, "few large planes, which are reduced in parts", (),
                    "avg", 1, 16, 512, 512, 1),
    AdaptivePooling("global maxpool 16@512", _BF16, "the same with maxima, numbered past a byte", (),
                    "max", 1, 16, 512, 512, 1),
    Softmax("softmax 16 of 1000000", _BF16, "few long rows, which are cut into parts", (),
            (16, 1000000), 1, False),
    Softmax("softmax of 256 columns", _BF16, "the same over columns", (), (100000, 256), 0, False),
)
# fmt: on

# One layer for each kind of kernel, compiled in every dtype: convolutions for each GPU, the others for one.
EVERY_DTYPE = frozenset({"MobileNetV2 dw3 144@56", "ResNeXt g32 128@56", "MNIST conv1", "ResNet-50 s2 3x3"})
EVERY_DTYPE_ONCE = frozenset(
    {"ResNet-50 maxpool 3/2", "PSP avgpool 60 to 7", "MNIST block 2", "softmax 65536 of 1000", "tanh 64@224"}
)
