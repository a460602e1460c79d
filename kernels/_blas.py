"""One thread a matrix product: where a product is worth several, they are our own.

NumPy's BLAS starts threads of its own in every larger product, and they go on spinning for some 20 ms after it. Torch's
threads then wait for the scheduler at the barrier behind each of torch's operations: a ReLU of a million elements took
0.14 ms, and 6.5 ms right behind a dense layer on BLAS threads; torch's LSTM 3.3 ms and 7.6 ms (two cores, medians of
one run). Called from two threads of ours it was worse: a blocked 3x3 convolution took 21 ms with one BLAS thread a
worker and 370 ms with more, while another process was busy.
"""

from __future__ import annotations

import os
from functools import cache
from threading import Lock, local
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

# Multiplications up to which OpenBLAS keeps any product in the thread that asks for it: of a matrix and a vector.
ALONE = 4 * 2304

_lock = Lock()
_users = 0
_shared_before: list[int] = []


class _Thread(local):
    """What a thread keeps while it is inside."""

    depth = 0
    before: list[int]
    torch_threads: int


_thread = _Thread()


def _forget_other_threads() -> None:
    global _lock, _users
    _lock, _users = Lock(), min(_thread.depth, 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)  # one that was inside never leaves


@cache
def _libraries() -> list[Any]:
    """The BLAS libraries of this process that have a thread count. Finding them takes milliseconds: once."""
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def _counts_by_thread(library: Any) -> bool:
    """Whether each thread has a count of its own (MKL, an OpenBLAS on OpenMP), not the process."""
    return library.internal_api == "mkl" or getattr(library, "threading_layer", None) == "openmp"


@cache
def _own_and_shared() -> tuple[list[Any], list[Any]]:
    own = [library for library in _libraries() if _counts_by_thread(library)]
    return own, [library for library in _libraries() if not _counts_by_thread(library)]


def _set_shared(library: Any, threads: int) -> None:
    """Whichever thread asks: threadpoolctl would let only the first one that ever did set an OpenBLAS."""
    release = getattr(library, "clear_controlling_thread", None)
    if release is None:
        library.set_num_threads(threads)
        return
    release(force=True)
    library.set_num_threads(threads)
    release()


class _OneThread:
    """Limits BLAS to one thread a call. A count of the process is limited while any thread is inside, and the last one
    out restores what was set before; a count of the thread's own while that thread is."""

    def __enter__(self) -> None:
        global _users, _shared_before
        _thread.depth += 1
        if _thread.depth > 1:
            return
        own, shared = _own_and_shared()
        _thread.torch_threads = torch.get_num_threads()
        _thread.before = [library.num_threads for library in own]
        for library in own:
            library.set_num_threads(1)
        with _lock:
            if _users == 0:
                _shared_before = [library.num_threads for library in shared]
                for library in shared:
                    _set_shared(library, 1)
            _users += 1

    def __exit__(self, *error: object) -> None:
        global _users
        _thread.depth -= 1
        if _thread.depth:
            return
        own, shared = _own_and_shared()
        for library, threads in zip(own, _thread.before, strict=True):
            library.set_num_threads(threads)
        with _lock:
            _users -= 1
            if _users == 0:
                for library, threads in zip(shared, _shared_before, strict=True):
                    _set_shared(library, threads)


_ONE_THREAD = _OneThread()


def one_thread() -> _OneThread:
    """A context in which each product runs in the thread that asks for it."""
    return _ONE_THREAD


def stay_alone() -> None:
    """What a thread of ours starts with: its own products never take further threads."""
    for library in _own_and_shared()[0]:
        library.set_num_threads(1)


def torch_threads() -> int:
    """Torch's intra-op thread count; the limit of a BLAS on torch's own OpenMP does not count."""
    return _thread.torch_threads if _thread.depth else torch.get_num_threads()
