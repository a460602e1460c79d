"""Whole numbers on the host: division as kernels do it, how many blocks there are, powers of two."""

from __future__ import annotations


def divisor(d: int) -> tuple[int, int]:
    """Multiplier ``m`` and shift ``s`` with which ``n // d`` is ``(2·n·m >> 32) >> s`` for every ``0 <= n < 2^31``.

    Exact where ``m = ceil(2^(31+s) / d) < 2^32`` and ``2^s >= d``: the error of ``m`` times ``n`` stays below 1 part.
    """
    shift = max(d - 1, 0).bit_length()
    return -(-(1 << (31 + shift)) // max(d, 1)), shift


def blocks_of(n: int, size: int) -> int:
    """How many blocks of ``size`` hold ``n``."""
    return -(-n // size)


def power_of_two(n: int) -> int:
    """The least one that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()
