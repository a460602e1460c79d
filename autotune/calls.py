"""Calls of kernels as plain data: which function of which backend, on what problem, with tensors of what shape.

A recorded call can be kept in a file and made again elsewhere, on tensors of its own. That is how the tuner runs one
configuration of a kernel: the call that asked for it, with the configuration pinned.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from . import watch
from .rows import VERSION, Row, text_of

if TYPE_CHECKING:
    from ..kernels.backends import Operation

_PACKAGE = __name__.rpartition(".")[0].rpartition(".")[0]  # whose modules a call from a file may name


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its elements.

    Attributes:
        shape, strides: in elements.
        dtype: "float32" and the like.
        device: "cpu" or "cuda".
        misaligned: elements by which its first one misses a multiple of 16 bytes.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    misaligned: int = 0

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        size = tensor.element_size()
        start = tensor.storage_offset() * size if tensor.is_meta else tensor.data_ptr()
        return cls(tuple(tensor.shape), tensor.stride(), str(tensor.dtype)[6:], tensor.device.type, start % 16 // size)

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def span(self) -> int:
        """Elements from the first to the last, both included; 0 without elements."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * abs(s) for n, s in zip(self.shape, self.strides, strict=True))


Tensors = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class Call:
    """One call of a backend: ``module.function(problem, *inputs, *outputs)``, which writes the outputs.

    Attributes:
        module: of the backend, such as "tilesmith.kernels.conv2d._numpy".
        problem: plain and hashable.
    """

    module: str
    function: str
    problem: Any
    inputs: tuple[TensorSpec | None, ...]
    outputs: tuple[TensorSpec | None, ...]

    @property
    def implementation(self) -> ModuleType:
        return import_module(self.module)

    @property
    def device(self) -> str:
        return next((t.device for t in (*self.outputs, *self.inputs) if t is not None), "cpu")

    def run(self, inputs: Sequence[torch.Tensor | None], outputs: Sequence[torch.Tensor | None]) -> None:
        """Makes the call on tensors that fit it."""
        from ..kernels._arrays import run

        run(self.implementation, self.function, self.problem, inputs, outputs)

    def words(self) -> str:
        op, module = self.module.split(".")[-2:]
        backend = module.strip("_").partition("_")[0]
        shapes = " ".join("x".join(map(str, t.shape)) or "()" for t in self.inputs if t is not None)
        dtypes = [t.dtype for t in self.outputs if t is not None]
        dtype = next((name for name in dtypes if getattr(torch, name).is_floating_point), "".join(dtypes[:1]))
        return f"{op} {self.function} {backend} {dtype} {shapes}"

    def as_json(self) -> Row:
        return {
            "module": self.module,
            "function": self.function,
            "problem": _plain(self.problem),
            "inputs": [None if t is None else _plain(t)["fields"] for t in self.inputs],
            "outputs": [None if t is None else _plain(t)["fields"] for t in self.outputs],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Call:
        """Of a call that was read from a file.

        Raises:
            ValueError: it is not one, or names what is not a backend of ours.
        """
        try:
            module, function = _backend(row["module"]), row["function"]
            owner = getattr(getattr(module, function, None), "__module__", "")
            if not re.fullmatch(r"[a-z][a-z0-9_]*", function) or not owner.startswith(row["module"].rpartition(".")[0]):
                raise ValueError(f"a recorded call names {function!r}, which is no function of {row['module']}")
            inputs, outputs = (
                tuple(None if t is None else _spec(t) for t in row[side]) for side in ("inputs", "outputs")
            )
            call = cls(row["module"], function, _value(row["problem"], row["module"]), inputs, outputs)
            hash(call)
            return call
        except (KeyError, TypeError, AttributeError, ImportError) as error:
            raise ValueError(f"not a recorded call ({error!r}): {text_of(row)[:200]}") from None


def _plain(value: Any) -> Any:
    """As JSON has it: a dataclass with its name, a tuple as a list."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        return {
            "class": f"{kind.__module__}:{kind.__qualname__}",
            "fields": {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.init},
        }
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def _backend(name: str) -> ModuleType:
    """The module of that name, if it is a backend of an op: what is read from a file can run nothing else.

    Raises:
        ValueError: it is not.
    """
    if not name.startswith(f"{_PACKAGE}.kernels.") or operation_of(name) is None:
        raise ValueError(f"a recorded call names {name!r}, which is no backend of {_PACKAGE}")
    return import_module(name)


def operation_of(name: str) -> Operation | None:
    """The operation of its package that the module of that name is a backend of, if it is one."""
    from ..kernels.backends import Operation

    operations = (o for o in vars(import_module(name.rpartition(".")[0])).values() if isinstance(o, Operation))
    return next((o for o in operations if name in map(o.module_of, o.backends)), None)


def _value(plain: Any, backend: str) -> Any:
    """A problem: numbers, strings, tuples, and the dataclasses that the op of the backend calls its problems."""
    if isinstance(plain, dict):
        module, _, name = plain["class"].partition(":")
        ours = {f"{_PACKAGE}.kernels.{op}._problem" for op in ("conv2d", backend.split(".")[-2])}
        kind: Any = getattr(import_module(module), name) if module in ours else None
        if not (isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module):
            raise ValueError(f"a recorded call holds a {plain['class']!r}, which is no problem of {_PACKAGE}")
        return kind(**{k: _value(v, backend) for k, v in plain["fields"].items()})
    return tuple(_value(v, backend) for v in plain) if isinstance(plain, list) else plain


def _spec(plain: Mapping[str, Any]) -> TensorSpec:
    fields_: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
    spec = TensorSpec(**fields_)
    sizes = (*spec.shape, *spec.strides, spec.misaligned)
    if not isinstance(getattr(torch, spec.dtype, None), torch.dtype) or not all(isinstance(n, int) for n in sizes):
        raise ValueError(f"a recorded call has a tensor {text_of(dict(plain))}")
    return spec


# ---- recording


class Recording:
    """Calls and how often each was made."""

    def __init__(self, counts: Mapping[Call, int] | None = None) -> None:
        self.counts: Counter[Call] = Counter(counts or {})

    def __iter__(self) -> Iterator[Call]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def save(self, path: str | Path) -> None:
        """Writes them as lines of JSON, which ``tilesmith tune --shapes`` reads."""
        Path(path).write_text("".join(text_of(row) + "\n" for row in self.rows()), encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        """A row of :meth:`rows`, from a file or a cache.

        Raises:
            ValueError: it holds no recorded call.
        """
        if "call" not in row:
            raise ValueError(f"not a recorded call: {text_of(dict(row))[:200]}")
        self.counts[Call.from_json(row["call"])] += int(row.get("count", 1))

    def rows(self) -> list[Row]:
        return [{"v": VERSION, "kind": "call", "call": c.as_json(), "count": n} for c, n in self.counts.items()]

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """What :meth:`save` wrote.

        Raises:
            ValueError: a line is no recorded call; says which.
        """
        found = cls()
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    found.add(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from None
        return found


_quiet: ContextVar[bool] = ContextVar("tilesmith_quiet", default=False)
_recordings: list[Recording] = []
_before_each: list[Callable[[Call], None]] = []


def _update() -> None:
    watch.told = _note if _recordings or _before_each else None


@contextmanager
def record() -> Iterator[Recording]:
    """Yields what takes down every call of a kernel inside the block, in any thread, backwards too."""
    recording = Recording()
    _recordings.append(recording)
    _update()
    try:
        yield recording
    finally:
        _recordings.remove(recording)
        _update()


@contextmanager
def unnoticed() -> Iterator[None]:
    """Calls that this thread makes inside the block are the tuner's own and nobody is told of them."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def start_before_each(do: Callable[[Call], None]) -> None:
    """Has ``do`` told of every call of a kernel before it is made."""
    _before_each.append(do)
    _update()


@contextmanager
def before_each(do: Callable[[Call], None]) -> Iterator[None]:
    """:func:`start_before_each` inside the block."""
    start_before_each(do)
    try:
        yield
    finally:
        _before_each.remove(do)
        _update()


def _note(module: ModuleType, function: str, problem: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Takes a call down that is about to be made."""
    if _quiet.get():
        return
    inputs, outputs = (tuple(None if t is None else TensorSpec.of(t) for t in side) for side in (inputs, outputs))
    call = Call(module.__name__, function, problem, inputs, outputs)
    for recording in tuple(_recordings):
        recording.counts[call] += 1
    for do in tuple(_before_each):
        do(call)
