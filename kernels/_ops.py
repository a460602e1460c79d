"""How an op becomes ``torch.ops.tilesmith.<name>``: schema, kernel, fake implementation, vmap rule.

The ops are opaque to ``torch.compile`` (the fake implementation gives shapes and strides), and they carry no autograd:
``tilesmith.nn.functions`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_LIBRARY = torch.library.Library("tilesmith", "FRAGMENT")

VmapRule = Callable[..., tuple[Any, Any]]


def define(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    vmap: Callable[[Any], VmapRule],
) -> Any:
    """Registers an op and returns a function that calls it.

    Where nobody watches the dispatcher (no tracing, no mode, no functorch transform, no profiler, plain tensors), the
    function calls the kernel itself: 0.4 us instead of 4.5 us for the way through the dispatcher and back.

    Args:
        schema: ``name(Tensor x, ...) -> Tensor`` in the dispatcher's language.
        kernel: the implementation; it chooses the backend itself.
        fake: the same signature, returns empty tensors of the right shape, dtype and strides.
        vmap: makes the op's rule ``(info, in_dims, *args) -> (outputs, out_dims)`` from the op.
    """
    name = schema.partition("(")[0]
    qualified = f"tilesmith::{name}"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    op = getattr(torch.ops.tilesmith, name).default
    torch.library.register_vmap(qualified, vmap(op), lib=_LIBRARY)

    def call(*args: Any) -> Any:
        if (
            not torch.compiler.is_compiling()
            and all(type(a) in _PLAIN or not _dispatches(a) for a in args)
            and not torch._C._are_functorch_transforms_active()
            and not torch._C._len_torch_dispatch_stack()
            and not torch._C._autograd._profiler_enabled()
            and torch._C._get_tracing_state() is None
            and not args[0].is_meta
        ):
            return kernel(*args)
        return op(*args)

    return call


_PLAIN = frozenset({torch.Tensor, type(None), int, bool, str, list, tuple, torch.Size})


def _dispatches(value: Any) -> bool:
    """Whether it is a tensor of a subclass that does something of its own where the dispatcher comes by."""
    return isinstance(value, torch.Tensor) and type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def front(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """The tensor with its vmapped dimension first; one that is not vmapped is repeated (as a view)."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def one_by_one(op: Any) -> VmapRule:
    """vmap rule for what no single call can do: one call an example, the results stacked."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        pairs = list(zip(args, in_dims, strict=True))
        results = [
            op(*(a if not isinstance(a, torch.Tensor) or d is None else a.select(d, i) for a, d in pairs))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])

    return rule


def into_batch(shape_argument: int | None = None) -> Callable[[Any], VmapRule]:
    """vmap rule of ops that treat the images of a batch alike: the vmapped dimension joins N, the first dimension.

    Every tensor argument must have N first, as must the list of sizes at position ``shape_argument``.
    """

    def make(op: Any) -> VmapRule:
        def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
            size = info.batch_size
            folded = [
                front(a, d, size).flatten(0, 1) if isinstance(a, torch.Tensor) else a
                for a, d in zip(args, in_dims, strict=True)
            ]
            images = folded[0].shape[0] // size
            if shape_argument is not None:
                folded[shape_argument] = [size * images, *args[shape_argument][1:]]
            results = op(*folded)
            if isinstance(results, torch.Tensor):
                return results.unflatten(0, (size, images)), 0
            # an op that leaves an optional output out returns it empty: it stays empty for each example
            parts = [r.unflatten(0, (size, images)) if r.ndim > 1 else r.new_empty(size, 0) for r in results]
            return tuple(parts), (0,) * len(parts)

        return rule

    return make


def elementwise(op: Any) -> VmapRule:
    """vmap rule of elementwise ops: the vmapped dimension is one more dimension."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        aligned = [
            front(a, d, info.batch_size) if isinstance(a, torch.Tensor) else a
            for a, d in zip(args, in_dims, strict=True)
        ]
        return op(*aligned), 0

    return rule
