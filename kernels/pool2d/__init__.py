"""2-D pooling (max, average, window): the contract every backend implements, the ops, and the dispatch.

"Window" pooling, which cuts the input into a given number of windows, goes by its usual name, adaptive pooling.
A backend is a module with eight functions that write into preallocated tensors (NumPy's: arrays):

- ``max_forward(problem, x, y, index)`` and ``adaptive_max_forward``: ``index`` may be ``None``
- ``max_backward(problem, dy, index, dx)``: for both; no atomics
- ``max_gather(problem, ddx, index, ddy)``: the derivative of ``max_backward``
- ``avg_forward(problem, x, y)``, ``avg_backward(problem, dy, dx)``, ``adaptive_avg_forward``, ``adaptive_avg_backward``

``index`` says where each maximum was, and is laid out like ``y``. Its dtype tells how: int64 is torch's ``h·W + w``
within the plane; uint8 is the tap within the window, ``r·S + s`` with ``S = problem.kernel[1]`` (adaptive windows start
at tap 0, ``S`` being what no window exceeds), and is what training keeps: an eighth of the bytes. Of equal values the
first counts, of NaNs the last, and a NaN counts more than any number.

Inputs may have any strides, also 0; outputs are dense in one of the two memory formats. In the ops a ``window`` is
eight integers: kernel, stride, padding and dilation, each as height, width. An empty one stands for the windows of
adaptive pooling where an op serves both. ``index`` there is "none", "tap" (uint8, or int64 where a window has more than
256 taps) or "plane" (int64).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from .._arrays import empty, empty_like, is_channels_last, run
from .._ops import define, into_batch
from ..backends import Operation
from ._problem import AdaptivePool2dProblem, Pool2dProblem, adaptive_bounds

__all__ = [
    "OPERATION",
    "AdaptivePool2dProblem",
    "Pool2dProblem",
    "adaptive_avg_backward",
    "adaptive_avg_forward",
    "adaptive_bounds",
    "adaptive_max_forward",
    "avg_backward",
    "avg_forward",
    "make_adaptive_problem",
    "make_problem",
    "max_backward",
    "max_forward",
    "max_gather",
]

OPERATION = Operation("pool2d", __name__, {"triton": "._triton", "cupy": "._cupy", "numpy": "._numpy"})

Problem = Pool2dProblem | AdaptivePool2dProblem

_MOST_TAPS = 256  # of a window, that a byte can name


def make_problem(
    x_shape: Sequence[int],
    window: Sequence[int],
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int = 0,
) -> Pool2dProblem:
    """The problem that ``x [N, C, H, W]`` and these options make; ``divisor_override`` 0 stands for none.

    Raises:
        RuntimeError: they do not fit together (torch's exception type and, in the main, its words).
    """
    kernel, stride, padding, dilation = ((window[i], window[i + 1]) for i in (0, 2, 4, 6))
    for name, values in (("kernel_size", kernel), ("stride", stride), ("dilation", dilation)):
        if min(values) <= 0:
            raise RuntimeError(f"{name} should be greater than zero, but {name} is {values}")
    if any(not 0 <= p <= k // 2 for p, k in zip(padding, kernel, strict=True)):
        raise RuntimeError(
            f"pad should be at least 0 and at most half of kernel size, but got padding {padding} and "
            f"kernel_size {kernel}"
        )
    if min(x_shape[1:]) <= 0:
        raise RuntimeError(
            f"Expected 3D or 4D (batch mode) tensor with optional 0 dim batch size for input, but got: {list(x_shape)}"
        )
    N, C, H, W = x_shape
    problem = Pool2dProblem(
        N, C, H, W, kernel, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override
    )
    if problem.P < 1 or problem.Q < 1:
        raise RuntimeError(
            f"Given input size: ({C}x{H}x{W}). Calculated output size: ({C}x{problem.P}x{problem.Q}). "
            "Output size is too small"
        )
    return problem


def make_adaptive_problem(x_shape: Sequence[int], output_size: Sequence[int]) -> AdaptivePool2dProblem:
    """The problem of cutting ``x [N, C, H, W]`` into ``output_size = (P, Q)`` windows.

    Raises:
        RuntimeError: a plane is empty or the output size negative.
    """
    if min(output_size) < 0:
        raise RuntimeError(
            f"elements of output_size must be greater than or equal to 0 but received {list(output_size)}"
        )
    if min(x_shape[2:]) <= 0:
        raise RuntimeError(f"Expected input to have non-zero height and width, but input has size {list(x_shape)}")
    N, C, H, W = x_shape
    P, Q = output_size
    return AdaptivePool2dProblem(N, C, H, W, P, Q)


_problem = lru_cache(maxsize=4096)(make_problem)  # hot path: a lookup costs 0.5 us, the checks 5 us
_adaptive_problem = lru_cache(maxsize=4096)(make_adaptive_problem)


def _output(problem: Problem, x: torch.Tensor) -> torch.Tensor:
    return empty((problem.N, problem.C, problem.P, problem.Q), x.dtype, x.device, is_channels_last(x))


def _outputs(problem: Problem, x: torch.Tensor, index: str) -> tuple[torch.Tensor, torch.Tensor]:
    y = _output(problem, x)
    if index == "none":
        return y, empty((0,), torch.uint8, x.device)
    return y, empty_like(y, torch.uint8 if index == "tap" and problem.taps <= _MOST_TAPS else torch.int64)


def _index_problem(x_shape: Sequence[int], y_shape: Sequence[int], window: Sequence[int], ceil_mode: bool) -> Problem:
    if window:
        return _problem(tuple(x_shape), tuple(window), ceil_mode)
    return _adaptive_problem(tuple(x_shape), tuple(y_shape[2:]))


def _run(
    function: str, problem: Problem, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor | None]
) -> None:
    run(OPERATION.implementation(inputs[0].device.type), function, problem, inputs, outputs)


def fill_inputs(function: str, problem: Problem, inputs: Sequence[torch.Tensor | None]) -> None:
    """Makes an index among the tuner's inputs one that a forward could have left."""
    if function not in ("max_backward", "max_gather"):
        return
    index = inputs[1]
    assert index is not None
    x = torch.randn(problem.N, problem.C, problem.H, problem.W, generator=torch.Generator().manual_seed(1))
    where = torch.empty_strided(index.shape, index.stride(), dtype=index.dtype)
    forward = "max_forward" if isinstance(problem, Pool2dProblem) else "adaptive_max_forward"
    run(OPERATION.named("numpy"), forward, problem, (x,), (torch.empty_strided(where.shape, where.stride()), where))
    index.copy_(where)


def _max_forward(x: torch.Tensor, window: list[int], ceil_mode: bool, index: str) -> tuple[torch.Tensor, torch.Tensor]:
    problem = _problem(x.shape, tuple(window), ceil_mode)
    y, where = _outputs(problem, x, index)
    if y.numel():
        _run("max_forward", problem, (x,), (y, None if index == "none" else where))
    return y, where


def _max_forward_fake(
    x: torch.Tensor, window: list[int], ceil_mode: bool, index: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return _outputs(make_problem(x.shape, window, ceil_mode), x, index)


def _adaptive_max_forward(x: torch.Tensor, output_size: list[int], index: str) -> tuple[torch.Tensor, torch.Tensor]:
    problem = _adaptive_problem(x.shape, tuple(output_size))
    y, where = _outputs(problem, x, index)
    if y.numel():
        _run("adaptive_max_forward", problem, (x,), (y, None if index == "none" else where))
    return y, where


def _adaptive_max_forward_fake(
    x: torch.Tensor, output_size: list[int], index: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return _outputs(make_adaptive_problem(x.shape, output_size), x, index)


def _without_taps(problem: Problem, index: torch.Tensor) -> torch.Tensor | None:
    """Which windows ``[P, Q]`` have no tap inside the plane although their index in it names one; ``None`` if none has.

    Taps that lie apart can all miss the columns, and what they name is then in the next row. Backends see taps miss,
    but not that an index is of such a window.
    """
    if index.dtype is torch.uint8 or isinstance(problem, AdaptivePool2dProblem) or problem.dilation == (1, 1):
        return None
    from ._numpy_index import windows_without_taps

    found = windows_without_taps(problem)
    return None if found is None else torch.from_numpy(found[0]).to(index.device)


def _max_backward(
    dy: torch.Tensor, index: torch.Tensor, x_shape: list[int], window: list[int], ceil_mode: bool, channels_last: bool
) -> torch.Tensor:
    problem = _index_problem(x_shape, dy.shape, window, ceil_mode)
    dx = empty(x_shape, dy.dtype, dy.device, channels_last)
    if dy.numel():
        without = _without_taps(problem, index)
        dy = dy if without is None else dy.masked_fill(without, 0)
        _run("max_backward", problem, (dy, index), (dx,))
    else:
        dx.zero_()
    return dx


def _max_backward_fake(
    dy: torch.Tensor, index: torch.Tensor, x_shape: list[int], window: list[int], ceil_mode: bool, channels_last: bool
) -> torch.Tensor:
    return empty(x_shape, dy.dtype, dy.device, channels_last)


def _max_gather(ddx: torch.Tensor, index: torch.Tensor, window: list[int], ceil_mode: bool) -> torch.Tensor:
    problem = _index_problem(ddx.shape, index.shape, window, ceil_mode)
    ddy = empty(index.shape, ddx.dtype, ddx.device, is_channels_last(index))
    if ddy.numel():
        _run("max_gather", problem, (ddx, index), (ddy,))
        without = _without_taps(problem, index)
        if without is not None:
            ddy.masked_fill_(without, 0)
    return ddy


def _max_gather_fake(ddx: torch.Tensor, index: torch.Tensor, window: list[int], ceil_mode: bool) -> torch.Tensor:
    return empty(index.shape, ddx.dtype, ddx.device, is_channels_last(index))


def _avg_forward(
    x: torch.Tensor, window: list[int], ceil_mode: bool, count_include_pad: bool, divisor_override: int
) -> torch.Tensor:
    problem = _problem(x.shape, tuple(window), ceil_mode, count_include_pad, divisor_override)
    y = _output(problem, x)
    if y.numel():
        _run("avg_forward", problem, (x,), (y,))
    return y


def _avg_forward_fake(
    x: torch.Tensor, window: list[int], ceil_mode: bool, count_include_pad: bool, divisor_override: int
) -> torch.Tensor:
    return _output(make_problem(x.shape, window, ceil_mode, count_include_pad, divisor_override), x)


def _avg_backward(
    dy: torch.Tensor,
    x_shape: list[int],
    window: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    channels_last: bool,
) -> torch.Tensor:
    problem = _problem(tuple(x_shape), tuple(window), ceil_mode, count_include_pad, divisor_override)
    dx = empty(x_shape, dy.dtype, dy.device, channels_last)
    if dx.numel():
        _run("avg_backward", problem, (dy,), (dx,))
    return dx


def _avg_backward_fake(
    dy: torch.Tensor,
    x_shape: list[int],
    window: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int,
    channels_last: bool,
) -> torch.Tensor:
    return empty(x_shape, dy.dtype, dy.device, channels_last)


def _adaptive_avg_forward(x: torch.Tensor, output_size: list[int]) -> torch.Tensor:
    problem = _adaptive_problem(x.shape, tuple(output_size))
    y = _output(problem, x)
    if y.numel():
        _run("adaptive_avg_forward", problem, (x,), (y,))
    return y


def _adaptive_avg_forward_fake(x: torch.Tensor, output_size: list[int]) -> torch.Tensor:
    return _output(make_adaptive_problem(x.shape, output_size), x)


def _adaptive_avg_backward(dy: torch.Tensor, x_shape: list[int], channels_last: bool) -> torch.Tensor:
    problem = _adaptive_problem(tuple(x_shape), tuple(dy.shape[2:]))
    dx = empty(x_shape, dy.dtype, dy.device, channels_last)
    if dy.numel():
        _run("adaptive_avg_backward", problem, (dy,), (dx,))
    else:
        dx.zero_()
    return dx


def _adaptive_avg_backward_fake(dy: torch.Tensor, x_shape: list[int], channels_last: bool) -> torch.Tensor:
    return empty(x_shape, dy.dtype, dy.device, channels_last)


max_forward = define(
    "pool2d_max_forward(Tensor x, int[] window, bool ceil_mode, str index) -> (Tensor, Tensor)",
    _max_forward,
    _max_forward_fake,
    into_batch(),
)
adaptive_max_forward = define(
    "pool2d_adaptive_max_forward(Tensor x, SymInt[] output_size, str index) -> (Tensor, Tensor)",
    _adaptive_max_forward,
    _adaptive_max_forward_fake,
    into_batch(),
)
max_backward = define(
    "pool2d_max_backward(Tensor dy, Tensor index, SymInt[] x_shape, int[] window, bool ceil_mode, bool channels_last)"
    " -> Tensor",
    _max_backward,
    _max_backward_fake,
    into_batch(shape_argument=2),
)
max_gather = define(
    "pool2d_max_gather(Tensor ddx, Tensor index, int[] window, bool ceil_mode) -> Tensor",
    _max_gather,
    _max_gather_fake,
    into_batch(),
)
_AVERAGE = "int[] window, bool ceil_mode, bool count_include_pad, SymInt divisor_override"
avg_forward = define(
    f"pool2d_avg_forward(Tensor x, {_AVERAGE}) -> Tensor",
    _avg_forward,
    _avg_forward_fake,
    into_batch(),
)
avg_backward = define(
    f"pool2d_avg_backward(Tensor dy, SymInt[] x_shape, {_AVERAGE}, bool channels_last) -> Tensor",
    _avg_backward,
    _avg_backward_fake,
    into_batch(shape_argument=1),
)
adaptive_avg_forward = define(
    "pool2d_adaptive_avg_forward(Tensor x, SymInt[] output_size) -> Tensor",
    _adaptive_avg_forward,
    _adaptive_avg_forward_fake,
    into_batch(),
)
adaptive_avg_backward = define(
    "pool2d_adaptive_avg_backward(Tensor dy, SymInt[] x_shape, bool channels_last) -> Tensor",
    _adaptive_avg_backward,
    _adaptive_avg_backward_fake,
    into_batch(shape_argument=1),
)
