"""Torch's own operations in the thread that asks for them, where they are too short for several.

Torch's threads wait for each other at the end of an operation. Where another process has the second core, 256 rows
added to a table took 41 ms on average, and 37 us so (two cores, one run; medians 27 and 10 us).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from threadpoolctl import ThreadpoolController


@cache
def _libraries() -> list[Any]:
    """The OpenMP libraries of this process. Finding them takes milliseconds: once."""
    return list(ThreadpoolController().select(user_api="openmp").lib_controllers)


class alone:
    """A context in which the calling thread's torch operations run in it alone: OpenMP's count belongs to a thread, so
    no other one sees the change."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        torch.get_num_threads()  # sets a new thread's count, which would undo ours later
        self._before = [library.num_threads for library in _libraries()]
        for library in _libraries():
            library.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        for library, threads in zip(_libraries(), self._before, strict=True):
            library.set_num_threads(threads)
