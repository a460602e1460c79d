"""One thread a matrix product, while several of our own threads multiply at once.

NumPy's BLAS starts threads of its own in every larger product. Called from two threads on two cores, their spinning
workers cost more than they add: a blocked 3x3 convolution took 21 ms with one BLAS thread a worker, 26 ms with BLAS
threads alone, and 370 ms with both while another process was busy (two cores, medians of one run).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

_lock = Lock()
_users = 0
_threads_before: list[int] = []


@cache
def _libraries() -> list[Any]:
    """The BLAS libraries of this process that have a thread count. Finding them takes milliseconds: once."""
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits BLAS to one thread a call while any thread is inside; the last one out restores what was set before."""
    global _users, _threads_before
    with _lock:
        if _users == 0:
            _threads_before = [library.num_threads for library in _libraries()]
            for library in _libraries():
                library.set_num_threads(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for library, threads in zip(_libraries(), _threads_before, strict=True):
                    library.set_num_threads(threads)


@contextmanager
def threads_of_torch() -> Iterator[None]:
    """Products on as many threads as BLAS likes, or on one if that is all torch may use."""
    if torch.get_num_threads() > 1:
        yield
    else:
        with one_thread():
            yield
