"""Triton's interpreter without what it computes again at every step: the same results in a fifth of the time.

It runs a kernel's Python for each program. Most of its time went into doing 32-bit arithmetic again in 64 bits for a
check whose result nobody looks at, into looking up which functions of ``triton.language`` to replace at every launch,
and into types that it builds anew for every value. Whatever another version of Triton lacks is left as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any


@contextmanager
def overflow_checked() -> Iterator[None]:
    """Inside the block the interpreter raises where a 32-bit integer overflows. By itself it only computes whether one
    does: it raises nothing without ``debug``."""
    quicken()  # which would end the check if a rig did it inside the block
    builder = _builder()
    before = builder.options
    builder.options = replace(before, sanitize_overflow=True, debug=True)
    try:
        yield
    finally:
        builder.options = before


def _builder() -> Any:
    from triton.runtime import interpreter

    return interpreter.interpreter_builder


@cache
def quicken() -> None:
    """For the rest of the process."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = _builder()
    if hasattr(getattr(builder, "options", None), "sanitize_overflow"):
        builder.options = replace(builder.options, sanitize_overflow=False)
    module: Any = interpreter
    if hasattr(module, "_get_np_dtype"):
        module._get_np_dtype = _by_scalar(module._get_np_dtype, tl)
    if list(inspect.signature(getattr(module, "_patch_builtin", len)).parameters) == ["pkg", "builder", "scope"]:
        module._patch_builtin = _patch_builtin(module, tl)
        module._patch_lang = _patch_lang(module, tl)
    _intern_block_types(tl)
    _share_shapes(tl)


def _by_scalar(slow: Callable[[Any], Any], tl: Any) -> Callable[[Any], Any]:
    """It builds a dictionary of all dtypes to look one up."""
    known: dict[str, Any] = {}

    def quick(tt_dtype: Any) -> Any:
        scalar = tt_dtype.element_ty if isinstance(tt_dtype, tl.block_type) else tt_dtype
        found = known.get(scalar.name)
        if found is None:
            found = known[scalar.name] = slow(scalar)
        return found

    return quick


def _patch_builtin(module: Any, tl: Any) -> Callable[[Any, Any, Any], None]:
    """Which members are builtins is the same at every launch: they are restored after each."""
    members: dict[Any, list[tuple[str, Any]]] = {}

    def quick(pkg: Any, builder: Any, scope: Any) -> None:
        found = members.get(pkg)
        if found is None:
            found = [(name, member) for name, member in inspect.getmembers(pkg) if tl.core.is_builtin(member)]
            members[pkg] = found
        for name, member in found:
            module._patch_attr(pkg, name, member, builder, scope)

    return quick


def _patch_lang(module: Any, tl: Any) -> Callable[[Any], Any]:
    """A function that a kernel calls finds the language replaced already."""
    slow = module._patch_lang
    languages: dict[Any, set[int]] = {}
    replaced: set[int] = set()

    def quick(fn: Any) -> Any:
        if fn not in languages:
            languages[fn] = {id(value) for value in fn.__globals__.values() if value is tl or value is tl.core}
        missing = languages[fn] - replaced
        if languages[fn] and not missing:
            return module._LangPatchScope()
        scope = slow(fn)
        replaced.update(missing)
        restore = scope.restore

        def restored() -> None:
            restore()
            replaced.difference_update(missing)

        scope.restore = restored
        return scope

    return quick


def _intern_block_types(tl: Any) -> None:
    slow = tl.block_type.__init__
    known: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}

    def quick(self: Any, element_ty: Any, shape: Any) -> None:
        try:
            key = element_ty.name, tuple(getattr(size, "value", size) for size in shape)
            self.__dict__.update(known[key])
        except (KeyError, TypeError):
            slow(self, element_ty, shape)
            known[element_ty.name, tuple(self.shape)] = dict(self.__dict__)

    tl.block_type.__init__ = quick


def _share_shapes(tl: Any) -> None:
    slow = tl.tensor.__init__
    attributes = {"handle", "shape", "numel", "type", "dtype"}
    known: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def quick(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape) if type.is_block() else ()
        shared = known.get(sizes)
        if shared is None:
            slow(self, handle, type)
            if set(self.__dict__) == attributes:
                known[sizes] = self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shared

    tl.tensor.__init__ = quick
