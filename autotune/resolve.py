"""Which configuration a call runs with. A ladder: pinned by the caller, else the kernel's own default.

Looking up is pure and cheap; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .space import Config, Tunable

_NOTHING: Mapping[str, Config] = {}
_pinned: ContextVar[Mapping[str, Config]] = ContextVar("tilesmith_pinned", default=_NOTHING)


@contextmanager
def pin(name: str, config: Config) -> Iterator[None]:
    """Runs the kernel of that name with this configuration inside the ``with`` block, in this thread."""
    token = _pinned.set({**_pinned.get(), name: dict(config)})
    try:
        yield
    finally:
        _pinned.reset(token)


def resolve(tunable: Tunable, problem: Any) -> Config:
    """The configuration with which ``tunable`` runs ``problem`` (hashable) here and now.

    Raises:
        ValueError: the pinned configuration is not in the kernel's space or cannot run this problem.
    """
    config = _pinned.get().get(tunable.name)
    if config is None:
        return tunable.default(problem)
    tunable.check(config, problem)
    return config
