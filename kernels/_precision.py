"""How float32 is multiplied on tensor cores: what torch's settings say, and one mode that torch has no name for."""

from __future__ import annotations

import os
from typing import Any

import torch

MODES = ("ieee", "tf32", "tf32x3")


def _checked(mode: str | None) -> str | None:
    if mode is not None and mode not in MODES:
        raise ValueError(f"float32 precision is {mode!r}, it must be one of {', '.join(map(repr, MODES))}, or None")
    return mode


_override: str | None = _checked(os.environ.get("TILESMITH_FLOAT32_PRECISION") or None)


def set_float32_precision(mode: str | None) -> None:
    """Sets how the GPU kernels multiply float32, in the whole process; ``None`` leaves it to torch's settings again.

    The environment variable ``TILESMITH_FLOAT32_PRECISION``, read at import, does the same.

    Args:
        mode: "ieee" (float32 products, no tensor cores), "tf32" (operands rounded to 10 bits of mantissa, error about
            5e-4 of a product), or "tf32x3" (each operand as a sum of two TF32 numbers and three products: error about
            1e-6, tensor cores at a third of their rate), which torch has no setting for.

    Raises:
        ValueError: no such mode.
    """
    global _override
    _override = _checked(mode)


def convolution_precision() -> str:
    """The mode for convolutions here and now: "ieee", "tf32" or "tf32x3".

    torch's own rule: ``torch.backends.cudnn.conv.fp32_precision``, where that is "none" the wider
    ``torch.backends.fp32_precision``. ("tf32" is torch's default for convolutions.)
    """
    return _override or _torchs(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


def matmul_precision() -> str:
    """The mode for dense layers here and now: as :func:`convolution_precision`, from
    ``torch.backends.cuda.matmul.fp32_precision``. (torch's default there is "ieee".)"""
    return _override or _torchs(torch.backends.cuda.matmul.fp32_precision)


def _torchs(setting: str) -> str:
    if setting == "none":
        setting = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if setting == "tf32" else "ieee"


def settings() -> dict[str, Any]:
    """What decides how this process computes, for another process to do the same."""
    backends: Any = torch.backends
    return {
        "override": _override,
        "all": backends.fp32_precision,
        "conv": backends.cudnn.conv.fp32_precision,
        "matmul": backends.cuda.matmul.fp32_precision,
        "threads": torch.get_num_threads(),
    }


def use_settings(told: dict[str, Any]) -> None:
    """Computes as the process does that :func:`settings` was called in."""
    backends: Any = torch.backends
    set_float32_precision(told["override"])
    backends.fp32_precision = told["all"]
    backends.cudnn.conv.fp32_precision = told["conv"]
    backends.cuda.matmul.fp32_precision = told["matmul"]
    if torch.get_num_threads() != told["threads"]:
        torch.set_num_threads(told["threads"])
