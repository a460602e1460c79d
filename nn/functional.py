"""The functions of ``torch.nn.functional`` for the layers this library has, with the same signatures.

Each takes what torch's takes, returns what it returns and raises the exception types it raises; what goes beyond torch
is keyword-only or said in the docstring. Autocast casts as torch's lists do: convolution and linear to the autocast
dtype, softmax to float32 on CUDA; the others keep their dtype.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from . import functions

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "conv2d",
    "conv_pool2d",
    "linear",
    "log_softmax",
    "max_pool2d",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
]

Ints = int | Sequence[int]
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str | Sequence[Sequence[int]] = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
) -> torch.Tensor:
    """2-D convolution (a correlation), as ``torch.nn.functional.conv2d``.

    ``y[n, k, p, q] = act(bias[k] + Σ_{c,r,s} input[n, c, p·stride + r·dilation - padding, …] · weight[k, c, r, s])``

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``; float64, float32, float16 or bfloat16; contiguous, channels_last or
            any strides.
        weight: ``[K, C / groups, R, S]``, of the same dtype.
        bias: ``[K]`` or ``None``.
        stride, dilation: one number or (height, width).
        padding: zeros on each side: one number, (height, width), "valid" or "same".
        groups: divides C and K.

    Beyond torch:
        ``activation``: "relu", "sigmoid" or "tanh", applied before the output is written.
        ``padding="same"`` with a stride: P = ⌈H / stride⌉, the odd zero at the bottom and right (as TensorFlow).
        ``padding=((top, bottom), (left, right))``: different numbers of zeros on each side.
        No warning and no copy of the input where "same" pads one side more than the other.

    Returns:
        ``[N, K, P, Q]`` (without N for an unbatched input); channels_last if input or weight is.

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit.
        TypeError: an argument of the wrong type.
        ValueError: an unknown activation.
        BackendUnavailable: no backend can serve the tensors' device.
    """
    input, weight, bias, window, batched = _convolution("conv2d", input, weight, bias, stride, padding, dilation)
    y = functions.conv2d(input, weight, bias, activation or "none", *window, groups)
    return y if batched else y.squeeze(0)


def conv_pool2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str | Sequence[Sequence[int]] = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    activation: str | None = "relu",
    pool: str = "max",
) -> torch.Tensor:
    """``pool2x2(act(conv2d(input, weight) + bias))`` in one pass, which torch has no function for.

    The convolution's output, four times the result, is neither written nor read nor kept: a training keeps the result
    and one byte an element of it (see ``docs/fusion.md`` for the bytes). Values and gradients are those of
    :func:`conv2d`, the activation and :func:`max_pool2d` or :func:`avg_pool2d` with 2x2 windows one after another; but
    of several NaNs in a window that sigmoid or tanh made, only the last one's gradient is NaN.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as for :func:`conv2d`.
        activation: "relu", "sigmoid", "tanh" or ``None``; before an average only "relu" or ``None``.
        pool: "max" or "avg", of windows of 2x2 outputs that do not overlap; an odd last row or column is dropped.

    Returns:
        ``[N, K, P // 2, Q // 2]`` (without N for an unbatched input); channels_last if input or weight is.

    Raises:
        RuntimeError: shapes, dtypes, devices or options that do not fit, or no 2x2 window of outputs.
        TypeError: an argument of the wrong type.
        ValueError: an unknown activation or pooling, or an average of sigmoids or tanhs.
        BackendUnavailable: no backend can serve the tensors' device.
    """
    input, weight, bias, window, batched = _convolution("conv_pool2d", input, weight, bias, stride, padding, dilation)
    y = functions.conv_pool2d(input, weight, bias, activation or "none", pool, *window, groups)
    return y if batched else y.squeeze(0)


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str | None = None,
) -> torch.Tensor:
    """``act(input weightᵀ + bias)``, as ``torch.nn.functional.linear``.

    Args:
        input: ``[..., I]``; float64, float32, float16 or bfloat16.
        weight: ``[O, I]``, or ``[I]`` for a single output without a dimension; of the same dtype.
        bias: ``[O]`` or ``None``.
        activation: beyond torch: "relu", "sigmoid" or "tanh", applied before the output is written.

    Returns:
        ``[..., O]``.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.
        TypeError: an argument of the wrong type.
        ValueError: an unknown activation.
        BackendUnavailable: no backend can serve the tensors' device.
    """
    _check_tensors("linear", input, weight, bias)
    if input.dim() == 0 or weight.dim() not in (1, 2) or input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            "mat1 and mat2 shapes cannot be multiplied: linear() needs an input [..., in_features] and a weight "
            f"[out_features, in_features], but got {list(input.shape)} and {list(weight.shape)}"
        )
    outputs = weight.shape[:-1]
    if bias is not None and bias.shape == (1,) and len(outputs) == 1:
        bias = bias.expand(outputs)
    if bias is not None and bias.shape != outputs:
        raise RuntimeError(f"linear(): bias must have size {list(outputs)} to fit weight, but got {list(bias.shape)}")
    input, weight, bias = _autocast(input, weight, bias)
    _check_operands("linear", input, weight, bias)
    if weight.dim() == 1:
        weight, bias = weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0)
    lead = input.shape[:-1]
    rows = input if input.dim() == 2 else input.unsqueeze(0) if input.dim() == 1 else input.flatten(0, -2)
    y = functions.linear(rows, weight, bias, activation or "none")
    return y if input.dim() == 2 and len(outputs) == 1 else y.reshape(*lead, *outputs)


def max_pool2d(
    input: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window, as ``torch.nn.functional.max_pool2d``.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``; floating point or integer.
        kernel_size, stride, padding, dilation: one number or (height, width); the stride is the kernel by default,
            padding is at most half of the (dilated) kernel and never wins.
        ceil_mode: windows may hang over the bottom and right edge.
        return_indices: also return ``h * W + w`` of each maximum, int64. Of equal values the first wins, of several
            NaNs the last.

    Returns:
        ``[N, C, P, Q]`` (without N for an unbatched input), in the input's memory format.

    Raises:
        RuntimeError: shapes or options that do not fit (NotImplementedError: the dtype).
        TypeError: an argument of the wrong type.
        BackendUnavailable: no backend can serve the tensor's device.
    """
    _check_tensor("max_pool2d", "input", input)
    _check_dtype("max_pool2d", input, FLOATS + INTEGERS)
    window = _window("max_pool2d", kernel_size, stride, padding, dilation)
    y, index = functions.max_pool2d(_batched("max_pool2d", input), window, ceil_mode, return_indices)
    if input.dim() == 3:
        y = y.squeeze(0)
        index = index.squeeze(0) if return_indices else index
    return (y, index) if return_indices else y


def avg_pool2d(
    input: torch.Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """The mean of each window, as ``torch.nn.functional.avg_pool2d``.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``, floating point.
        kernel_size, stride, padding: one number or (height, width); the stride is the kernel by default.
        ceil_mode: windows may hang over the bottom and right edge; what lies beyond the padding is not counted.
        count_include_pad: whether padded zeros count as elements of the mean.
        divisor_override: divide each sum by this instead.

    Returns:
        ``[N, C, P, Q]`` (without N for an unbatched input), in the input's memory format.

    Raises:
        RuntimeError: shapes or options that do not fit (NotImplementedError: the dtype).
        TypeError: an argument of the wrong type.
        BackendUnavailable: no backend can serve the tensor's device.
    """
    _check_tensor("avg_pool2d", "input", input)
    _check_dtype("avg_pool2d", input, FLOATS)
    window = _window("avg_pool2d", kernel_size, stride, padding, 1)
    if divisor_override == 0:
        raise RuntimeError("avg_pool2d(): divisor_override must be not zero")
    y = functions.avg_pool2d(_batched("avg_pool2d", input), window, ceil_mode, count_include_pad, divisor_override or 0)
    return y if input.dim() == 4 else y.squeeze(0)


def adaptive_max_pool2d(
    input: torch.Tensor, output_size: Ints | Sequence[int | None] | None, return_indices: bool = False
) -> Any:
    """The maximum of each of ``output_size`` windows, as ``torch.nn.functional.adaptive_max_pool2d``.

    Unlike torch's on CUDA, the backward is deterministic.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``, floating point.
        output_size: one number or (height, width); ``None`` in it keeps that size. Window p covers rows
            ⌊p·H/P⌋ to ⌈(p+1)·H/P⌉.
        return_indices: also return ``h * W + w`` of each maximum, int64.

    Returns:
        ``[N, C, P, Q]`` (without N for an unbatched input), in the input's memory format.

    Raises:
        RuntimeError: shapes or options that do not fit (NotImplementedError: the dtype).
        TypeError: an argument of the wrong type.
        BackendUnavailable: no backend can serve the tensor's device.
    """
    _check_tensor("adaptive_max_pool2d", "input", input)
    _check_dtype("adaptive_max_pool2d", input, FLOATS)
    x = _batched("adaptive_max_pool2d", input)
    if x.shape[1] == 0:
        raise RuntimeError(
            f"adaptive_max_pool2d(): Expected input to have channels, but its size is {list(input.shape)}"
        )
    y, index = functions.adaptive_max_pool2d(x, _output_size("adaptive_max_pool2d", output_size, x), return_indices)
    if input.dim() == 3:
        y = y.squeeze(0)
        index = index.squeeze(0) if return_indices else index
    return (y, index) if return_indices else y


def adaptive_avg_pool2d(input: torch.Tensor, output_size: Ints | Sequence[int | None] | None) -> torch.Tensor:
    """The mean of each of ``output_size`` windows, as ``torch.nn.functional.adaptive_avg_pool2d``.

    Unlike torch's on CUDA, the backward is deterministic.

    Args:
        input: ``[N, C, H, W]`` or ``[C, H, W]``, floating point.
        output_size: one number or (height, width); ``None`` in it keeps that size.

    Returns:
        ``[N, C, P, Q]`` (without N for an unbatched input), in the input's memory format.

    Raises:
        RuntimeError: shapes or options that do not fit (NotImplementedError: the dtype).
        TypeError: an argument of the wrong type.
        BackendUnavailable: no backend can serve the tensor's device.
    """
    _check_tensor("adaptive_avg_pool2d", "input", input)
    _check_dtype("adaptive_avg_pool2d", input, FLOATS)
    x = _batched("adaptive_avg_pool2d", input)
    y = functions.adaptive_avg_pool2d(x, _output_size("adaptive_avg_pool2d", output_size, x))
    return y if input.dim() == 4 else y.squeeze(0)


def relu(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """``max(input, 0)``, as ``torch.nn.functional.relu``; NaN stays NaN. Floating point or integer."""
    _check_tensor("relu", "input", input)
    if input.dtype is torch.bool:
        raise RuntimeError("Boolean inputs not supported for relu")
    _check_dtype("relu", input, FLOATS + INTEGERS)
    y = functions.activation(input, "relu")
    return input.copy_(y) if inplace else y


def sigmoid(input: torch.Tensor) -> torch.Tensor:
    """``1 / (1 + exp(-input))``, as ``torch.nn.functional.sigmoid``. Integers become the default float dtype."""
    return functions.activation(_floating("sigmoid", input), "sigmoid")


def tanh(input: torch.Tensor) -> torch.Tensor:
    """The hyperbolic tangent, as ``torch.nn.functional.tanh``. Integers become the default float dtype."""
    return functions.activation(_floating("tanh", input), "tanh")


def softmax(
    input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """``exp(x - max x) / Σ exp(x - max x)`` along ``dim``, as ``torch.nn.functional.softmax``.

    Args:
        input: any shape, floating point.
        dim: the dimension that sums to 1 (guessed with a warning when ``None``, as torch does).
        dtype: cast the input to this first.

    Raises:
        IndexError: ``dim`` is out of range.
        NotImplementedError: the dtype is not a floating point one.
    """
    return _softmax("softmax", input, dim, _stacklevel, dtype)


def log_softmax(
    input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The logarithm of :func:`softmax`, without underflow, as ``torch.nn.functional.log_softmax``."""
    return _softmax("log_softmax", input, dim, _stacklevel, dtype)


def _softmax(
    name: str, input: torch.Tensor, dim: int | None, stacklevel: int, dtype: torch.dtype | None
) -> torch.Tensor:
    _check_tensor(name, "input", input)
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. "
            "Change the call to include dim=X as an argument.",
            stacklevel=stacklevel,
        )
        dim = 0 if input.dim() in (0, 1, 3) else 1
    if dtype is not None:
        input = input.to(dtype)
    elif input.dtype in (torch.float16, torch.bfloat16) and input.is_cuda and torch.is_autocast_enabled("cuda"):
        input = input.float()
    _check_dtype(name, input, FLOATS)
    rank = max(input.dim(), 1)
    if not -rank <= dim < rank:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-rank}, {rank - 1}], but got {dim})")
    if input.dim() == 0:
        return functions.softmax(input.unsqueeze(0), 0, name == "log_softmax").squeeze(0)
    return functions.softmax(input, dim % rank, name == "log_softmax")


# ---- what arguments mean


def _convolution(
    op: str, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, tuple[Any, Any, Any], bool]:
    """A convolution's operands, checked, batched and cast; stride, padding and dilation; whether there was a batch."""
    _check_tensors(op, input, weight, bias)
    stride = _pair(op, "stride", stride)
    dilation = _pair(op, "dilation", dilation)
    if input.dim() not in (3, 4):
        raise RuntimeError(
            f"Expected 3D (unbatched) or 4D (batched) input to {op}, but got input of size: {list(input.shape)}"
        )
    if weight.dim() != 4:
        raise RuntimeError(f"{op}(): weight must have 4 dimensions [K, C / groups, R, S], got {list(weight.shape)}")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        raise RuntimeError(
            f"Given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with {weight.shape[0]} "
            f"elements, but got bias of size {list(bias.shape)} instead"
        )
    if isinstance(padding, str):
        sides = _named_sides(padding, input.shape[-2:], weight.shape[-2:], stride, dilation)
    else:
        sides = _sides(padding)
    input, weight, bias = _autocast(input, weight, bias)
    _check_operands(op, input, weight, bias)
    batched = input.dim() == 4
    return input if batched else input.unsqueeze(0), weight, bias, (stride, sides, dilation), batched


def _pair(op: str, name: str, value: Any) -> tuple[int, int]:
    """One number or two of them, as (height, width)."""
    if type(value) is int:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int:
        return value  # what a module passes, each call
    if _is_int(value):
        return value, value
    if isinstance(value, Sequence) and not isinstance(value, str) and all(_is_int(v) for v in value):
        if len(value) == 2:
            return value[0], value[1]
        if len(value) == 1:
            return value[0], value[0]
        raise RuntimeError(f"{op}(): {name} must either be a single int or a tuple of two ints, but got {list(value)}")
    raise TypeError(f"{op}(): argument '{name}' must be int or tuple of ints, not {value!r}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int | torch.SymInt) and not isinstance(value, bool)


def _sides(padding: Any) -> tuple[int, int, int, int]:
    """Padding in numbers, as (top, bottom, left, right)."""
    sides = padding if type(padding) is not int and isinstance(padding, Sequence) else ()
    if len(sides) == 2 and isinstance(sides[0], Sequence):
        (top, bottom), (left, right) = (_pair("conv2d", "padding", side) for side in sides)
        return top, bottom, left, right
    height, width = _pair("conv2d", "padding", padding)
    return height, height, width, width


def _named_sides(
    padding: str, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """Padding by name, as (top, bottom, left, right)."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: {padding!r}: padding must be 'valid', 'same' or numbers")
    sides = []
    for H, R, s, d in zip(size, kernel, stride, dilation, strict=True):
        if s <= 0:
            raise RuntimeError(f"non-positive stride is not supported: stride is {stride}")
        total = max((-(-H // s) - 1) * s + d * (R - 1) + 1 - H, 0)
        sides += [total // 2, total - total // 2]
    return sides[0], sides[1], sides[2], sides[3]


def _window(op: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> tuple[int, ...]:
    kernel = _pair(op, "kernel_size", kernel_size)
    if stride is None or (isinstance(stride, Sequence) and len(stride) == 0):
        step = kernel
    else:
        step = _pair(op, "stride", stride)
    return *kernel, *step, *_pair(op, "padding", padding), *_pair(op, "dilation", dilation)


def _output_size(op: str, output_size: Any, x: torch.Tensor) -> tuple[int, int]:
    if _is_int(output_size):
        return output_size, output_size
    if not isinstance(output_size, Sequence) or not all(size is None or _is_int(size) for size in output_size):
        raise TypeError(f"{op}(): argument 'output_size' must be int, None or two of them, not {output_size!r}")
    if len(output_size) != 2:
        raise RuntimeError(f"{op}(): output_size must be 2 numbers (height, width), but got {list(output_size)}")
    height, width = output_size
    return x.shape[2] if height is None else height, x.shape[3] if width is None else width


def _batched(op: str, input: torch.Tensor) -> torch.Tensor:
    if input.dim() == 4:
        return input
    if input.dim() == 3:
        return input.unsqueeze(0)
    raise RuntimeError(f"{op}(): Expected 3D or 4D (batch mode) tensor for input, but got: {list(input.shape)}")


def _autocast(*tensors: torch.Tensor | None) -> Any:
    """The operands in the autocast dtype where autocast is on for their device (torch's lower-precision list)."""
    device = tensors[0].device.type  # type: ignore[union-attr]
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return [
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype is not torch.float64 else t for t in tensors
    ]


# ---- what is refused


def _check_tensor(op: str, name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}(): argument '{name}' must be Tensor, not {type(value).__name__}")


def _check_tensors(op: str, input: Any, weight: Any, bias: Any) -> None:
    if not (
        isinstance(input, torch.Tensor)
        and isinstance(weight, torch.Tensor)
        and (bias is None or isinstance(bias, torch.Tensor))
    ):
        _check_tensor(op, "input", input)
        _check_tensor(op, "weight", weight)
        _check_tensor(op, "bias", bias)


def _check_dtype(op: str, input: torch.Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if input.dtype not in allowed:
        raise NotImplementedError(f'"{op}" not implemented for {input.dtype}')


def _check_operands(op: str, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """One dtype, one device."""
    _check_dtype(op, input, FLOATS)
    for name, operand in (("weight", weight), ("bias", bias)):
        if operand is None:
            continue
        if operand.dtype is not input.dtype:
            raise RuntimeError(
                f"{op}(): Input type ({input.dtype}) and {name} type ({operand.dtype}) should be the same"
            )
        if operand.device != input.device:
            raise RuntimeError(
                f"{op}(): Expected all tensors to be on the same device, but input is on {input.device} "
                f"and {name} is on {operand.device}"
            )


def _floating(op: str, input: torch.Tensor) -> torch.Tensor:
    _check_tensor(op, "input", input)
    if not input.is_floating_point() and not input.is_complex():
        input = input.to(torch.get_default_dtype())
    _check_dtype(op, input, FLOATS)
    return input
