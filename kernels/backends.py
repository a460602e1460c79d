"""Which backend serves a call, and why: the registry, explicit requests and the automatic choice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec, resolve_name
from types import ModuleType

from . import _cuda


class BackendUnavailable(RuntimeError):
    """A backend cannot serve this call. The message says why and what to do."""


@dataclass(frozen=True)
class Backend:
    """A way to run kernels: the package it needs, the devices whose tensors it takes, and how to get it.

    ``emulation`` is what makes it take CPU tensors too, where it is asked for by name.
    """

    name: str
    package: str
    devices: tuple[str, ...]
    install: str
    emulation: str = ""


# In order of preference where several could serve a tensor.
BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "triton",
            "triton",
            ("cuda",),
            "pip install triton (Linux; CUDA builds of torch bring their own)",
            "TRITON_INTERPRET=1 in the environment runs it on the CPU, slowly",
        ),
        Backend("cupy", "cupy", ("cuda",), "pip install 'tilesmith[cuda13]' (or 'tilesmith[cuda12]')"),
        Backend("numpy", "numpy", ("cpu",), "pip install numpy"),
    )
}


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown: it must be one of {', '.join(map(repr, BACKENDS))}")
    return name


def _from_environment() -> str | None:
    name = os.environ.get("TILESMITH_BACKEND", "")
    return _known(name) if name else None


_requested: ContextVar[str | None] = ContextVar("tilesmith_backend", default=None)
_default: str | None = _from_environment()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Asks for one backend by name for the calls made inside the ``with`` block, in this thread.

    A call that this backend cannot serve raises :class:`BackendUnavailable`; nothing falls back silently. The
    environment variable ``TILESMITH_BACKEND``, read at import, does the same for a whole process.

    Raises:
        ValueError: the name is not a backend's.
        BackendUnavailable: the package it needs is not installed.
    """
    reason = reason_unavailable(_known(name))
    if reason:
        raise BackendUnavailable(reason)
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def requested() -> str | None:
    """The backend asked for by name where this is called, or ``None`` for the automatic choice."""
    return _requested.get() or _default


@cache
def reason_unavailable(name: str) -> str | None:
    """Why the backend cannot be used in this process at all (with what to install), or ``None`` if it can."""
    backend = BACKENDS[_known(name)]
    if find_spec(backend.package) is None:
        return f"backend {name!r} needs the package {backend.package!r}, which is not installed: {backend.install}"
    return None


def emulated(name: str) -> bool:
    """Whether the backend runs on CPU tensors in this process: Triton's interpreter, or a runtime that tests put in."""
    if name == "triton":
        return os.environ.get("TRITON_INTERPRET", "") == "1"
    return name == "cupy" and _cuda.emulator is not None


def available() -> list[str]:
    """Names of the backends whose packages are installed, in order of preference. Touches no device."""
    return [name for name in BACKENDS if reason_unavailable(name) is None]


class Operation:
    """One op's implementations: backend name to module, each imported when it is first chosen."""

    def __init__(self, name: str, package: str, implementations: Mapping[str, str]) -> None:
        self.name = name
        self._package = package
        self._implementations = {_known(backend): module for backend, module in implementations.items()}
        self._chosen: dict[tuple[str | None, str], ModuleType] = {}

    def implementation(self, device_type: str) -> ModuleType:
        """The module that serves tensors on ``device_type``.

        Raises:
            BackendUnavailable: the requested backend, or each of those that could be chosen, cannot serve this op.
        """
        key = (_requested.get() or _default, device_type)
        module = self._chosen.get(key)
        if module is None:
            module = self._chosen[key] = self._load(*key)
        return module

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of those that have it."""
        return tuple(self._implementations)

    def module_of(self, name: str) -> str:
        """The full name of one backend's module; nothing is imported."""
        return resolve_name(self._implementations[name], self._package)

    def named(self, name: str) -> ModuleType:
        """The module of one backend, whatever was asked for."""
        return import_module(self.module_of(name))

    def refusal(self, name: str, device_type: str) -> str | None:
        """Why backend ``name`` cannot serve this op for a tensor on ``device_type``, or ``None`` if it can."""
        reason = reason_unavailable(name)
        if reason:
            return reason
        if name not in self._implementations:
            return f"backend {name!r} has no kernel for {self.name} in this version"
        if device_type not in BACKENDS[name].devices:
            takes = " and ".join(BACKENDS[name].devices)
            how = f" ({BACKENDS[name].emulation})" if BACKENDS[name].emulation and device_type == "cpu" else ""
            return f"backend {name!r} takes {takes} tensors, not {device_type} tensors{how}"
        return None

    def _refusal_by_name(self, name: str, device_type: str) -> str | None:
        """As :meth:`refusal` for a backend that was asked for by name: it may be emulated on the CPU."""
        if device_type == "cpu" and name in self._implementations and emulated(name):
            return reason_unavailable(name)
        return self.refusal(name, device_type)

    def serves(self, device_type: str) -> bool:
        """Whether the automatic or requested choice would find a backend for tensors on ``device_type``."""
        if name := requested():
            return self._refusal_by_name(name, device_type) is None
        return any(self.refusal(name, device_type) is None for name in BACKENDS)

    def _load(self, name: str | None, device_type: str) -> ModuleType:
        refusals = []
        for candidate in [name] if name else BACKENDS:
            reason = (self._refusal_by_name if name else self.refusal)(candidate, device_type)
            if reason is None:
                return self.named(candidate)
            refusals.append(reason)
        what = f"backend {name!r} was asked for" if name else "no backend can serve this"
        raise BackendUnavailable(f"{self.name} on {device_type}: {what}, but: " + "; ".join(refusals))
