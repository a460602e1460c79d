"""Between tensors and NumPy arrays: shared memory where the dtypes agree, one rounding where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from numpy.typing import NDArray

from ..autotune import watch

Array = NDArray[Any]

# NumPy has no bfloat16, and its float16 loops are scalar: both compute in float32 and are rounded once at the end.
_COMPUTE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the NumPy backend computes for tensors of ``dtype``."""
    return _COMPUTE.get(dtype, dtype)


def as_array(tensor: torch.Tensor) -> Array:
    """The tensor's values in its compute dtype; a view of the same memory unless it is a half type."""
    if tensor.dtype in _COMPUTE:
        tensor = tensor.to(_COMPUTE[tensor.dtype])
    return tensor.numpy(force=True)  # "force": also of tensors that require grad; still no copy


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether torch takes the 4-D tensor for channels_last: strides rise in the order C, W, H, N.

    The same tie-break as torch's ``suggest_memory_format``: a plainly contiguous tensor is not, even where its strides
    (one channel, one pixel) would allow both readings.
    """
    shape = tensor.shape
    if tensor.is_contiguous() and shape[1] != 1 and (shape[2] != 1 or shape[3] != 1):
        return False
    strides = tensor.stride()
    least = 0
    for d in (1, 3, 2, 0):
        if shape[d] == 0 or strides[d] < least:
            return False
        if d == 0 and least == strides[1]:
            return False
        least = strides[d] * max(shape[d], 1)
    return True


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> torch.Tensor:
    """An uninitialised tensor, dense in the given memory format."""
    if channels_last:
        return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
    return torch.empty(shape, dtype=dtype, device=device)


def empty_like(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor with the shape of ``tensor`` and, where that is dense, its strides."""
    return torch.empty_like(tensor, dtype=dtype)


def rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The result in the caller's dtype: the one rounding of a half-precision op."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def run(
    implementation: ModuleType,
    function: str,
    problem: Any,
    inputs: Sequence[torch.Tensor | None],
    outputs: Sequence[torch.Tensor | None],
) -> None:
    """Calls ``implementation.function(problem, *inputs, *outputs)``, which writes the outputs.

    A backend whose module says ``ON_TENSORS = True`` gets the tensors. NumPy's functions get arrays in the compute
    dtype; what they computed for a half type is rounded into the output afterwards.
    """
    if watch.told is not None:
        watch.told(implementation, function, problem, inputs, outputs)
    call = getattr(implementation, function)
    if getattr(implementation, "ON_TENSORS", False):
        # a tensor may be the negative of what its memory says, which kernels do not see
        inputs = [t if t is None or not t.is_neg() else t.resolve_neg() for t in inputs]
        with _there(outputs):
            call(problem, *inputs, *outputs)
        return
    arrays = [None if t is None else as_array(t) for t in inputs]
    wide = [t if t is None or t.dtype not in _COMPUTE else empty_like(t, _COMPUTE[t.dtype]) for t in outputs]
    call(problem, *arrays, *(None if t is None else t.numpy() for t in wide))
    for output, result in zip(outputs, wide, strict=True):
        if output is not result and output is not None and result is not None:
            output.copy_(result)


def _there(outputs: Sequence[torch.Tensor | None]) -> AbstractContextManager[Any]:
    """Makes the GPU that the outputs are on the current one, for launches go to that."""
    device = next((t.device for t in outputs if t is not None), None)
    if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def flat(*arrays: Array) -> tuple[Array, ...] | None:
    """The arrays as 1-D views in memory order, or ``None`` if they are not all dense in one common order.

    Elementwise kernels run over these: one long inner loop whatever the layout.
    """
    order = _dense_order(arrays[0])
    if order is None:
        return None
    views = [a.transpose(order) for a in arrays]
    return tuple(v.reshape(-1) for v in views) if all(v.flags.c_contiguous for v in views) else None


def _dense_order(a: Array) -> tuple[int, ...] | None:
    if a.flags.c_contiguous:
        return tuple(range(a.ndim))
    order = tuple(sorted(range(a.ndim), key=lambda d: (-a.strides[d], -a.shape[d])))
    return order if a.transpose(order).flags.c_contiguous else None
