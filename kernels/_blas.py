"""One thread a matrix product: where a product is worth several, they are our own.

NumPy's BLAS starts threads of its own in every larger product, and they go on spinning for some 20 ms after it. Torch's
threads then wait for the scheduler at the barrier behind each of torch's operations: a ReLU of a million elements took
0.14 ms, and 6.5 ms right behind a dense layer on BLAS threads; torch's LSTM 3.3 ms and 7.6 ms (two cores, medians of
one run). Called from two threads of ours it was worse: a blocked 3x3 convolution took 21 ms with one BLAS thread a
worker and 370 ms with more, while another process was busy.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

# Multiplications up to which OpenBLAS keeps any product in the thread that asks for it: of a matrix and a vector.
ALONE = 4 * 2304

_lock = Lock()
_users = 0
_threads_before: list[int] = []


@cache
def _libraries() -> list[Any]:
    """The BLAS libraries of this process that have a thread count. Finding them takes milliseconds: once."""
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


class _OneThread:
    """Limits BLAS to one thread a call while any thread is inside; the last one out restores what was set before."""

    def __enter__(self) -> None:
        global _users, _threads_before
        with _lock:
            if _users == 0:
                _threads_before = [library.num_threads for library in _libraries()]
                for library in _libraries():
                    library.set_num_threads(1)
            _users += 1

    def __exit__(self, *error: object) -> None:
        global _users
        with _lock:
            _users -= 1
            if _users == 0:
                for library, threads in zip(_libraries(), _threads_before, strict=True):
                    library.set_num_threads(threads)


_ONE_THREAD = _OneThread()


def one_thread() -> _OneThread:
    """A context in which each product runs in the thread that asks for it."""
    return _ONE_THREAD
