"""Recording launches instead of making them: what would run for a problem, seen without a GPU.

Inside ``with record() as launches:`` a backend's functions run as ever, on tensors of any device (``meta`` will do),
but each launch lands in the list. The cross-compilation rig compiles exactly what production would run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_launches: ContextVar[list[Any] | None] = ContextVar("tilesmith_recorded_launches", default=None)


@contextmanager
def record() -> Iterator[list[Any]]:
    """Yields the list that launches of this thread are put into inside the block, in order."""
    launches: list[Any] = []
    token = _launches.set(launches)
    try:
        yield launches
    finally:
        _launches.reset(token)


def recorded() -> list[Any] | None:
    """The list that launches go to instead of a device, or ``None``."""
    return _launches.get()
