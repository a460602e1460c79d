"""Random draws that every backend can make bit for bit: counter-based Philox, thresholds and alias tables of integers.

A draw is a function of the seed and of what it is for (its stream, its epoch, its position), so it depends neither on
how the work is cut nor on what was drawn before. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
Philox4x32 with 10 rounds; Walker 1977 and Vose 1991 for the alias method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .._arrays import Array

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Stream(IntEnum):
    """What a draw is for: the counter's third word."""

    TOKENS = 0  # whether a token is kept, and how far its window reaches
    NEGATIVES = 1


def philox(counter: Sequence[Array | int], seed: int) -> tuple[Array, Array, Array, Array]:
    """Philox4x32-10 of many counters: four arrays of 32 random bits each, as uint64.

    Args:
        counter: four words of 32 bits, uint64 ``[n]`` or one number for all; the first is an array.
        seed: 64 bits, the key.
    """
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    shape = np.shape(counter[0])
    x0, x1, x2, x3 = (np.array(np.broadcast_to(np.asarray(word, np.uint64), shape)) for word in counter)
    for round in range(_ROUNDS):
        k0, k1 = (np.uint64((k + round * w) & 0xFFFFFFFF) for k, w in zip(key, _WEYL, strict=True))
        product0, product1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x1 ^= product1 >> _HALF
        x1 ^= k0
        x3 ^= product0 >> _HALF
        x3 ^= k1
        x0, x1, x2, x3 = x1, product1 & _LOW, x3, product0 & _LOW
    return x0, x1, x2, x3


def draws(seed: int, stream: Stream, epoch: int, first: int, count: int, each: int) -> Array:
    """``[count, each]`` numbers of 32 bits, as uint64: the ``each`` (1, 2 or 4) that belong to each position from
    ``first`` on."""
    per_block = 4 // each
    blocks = np.arange(first // per_block, (first + count - 1) // per_block + 1 if count else first // per_block)
    words = blocks.astype(np.uint64)
    counter = (words & _LOW, epoch & 0xFFFFFFFF, int(stream), words >> _HALF)
    numbers = np.stack(philox(counter, seed), axis=1)
    start = first - (first // per_block) * per_block
    return numbers.reshape(-1, each)[start : start + count]


def below(bits: Array, n: int | Array) -> Array:
    """Uniform in 0 to n - 1 from 32 bits, ``n`` up to 2^31: the product's high half. int64."""
    return ((bits * np.asarray(n).astype(np.uint64)) >> _HALF).astype(np.int64)


def thresholds(probabilities: Array) -> Array:
    """Probabilities as numbers of 32 bits, uint64: a draw below the threshold is a yes; 1 is 2^32, always yes."""
    return np.rint(np.clip(np.asarray(probabilities, np.float64), 0, 1) * 2**32).astype(np.uint64)


@dataclass(frozen=True)
class AliasTable:
    """Draws from any distribution in one look-up: a bucket, and either its own item or another's.

    ``thresholds [V]`` uint64 (2^32: always its own) and ``aliases [V]`` int32. Integers decide, so that all backends
    draw the same; an item's probability differs from what was asked for by at most V / 2^32.
    """

    thresholds: Array
    aliases: Array

    @staticmethod
    def of(weights: Array) -> AliasTable:
        """For probabilities proportional to ``weights``, which are at least 0 and not all 0."""
        weights = np.asarray(weights, np.float64)
        if weights.ndim != 1 or not len(weights) or not np.isfinite(weights).all() or weights.min() < 0:
            raise ValueError("weights must be finite, at least 0, and one or more of them")
        if not weights.sum() > 0:
            raise ValueError("weights must not all be 0")
        share = (weights * (len(weights) / weights.sum())).tolist()
        aliases = list(range(len(share)))
        poor = [i for i, s in enumerate(share) if s < 1]
        rich = [i for i, s in enumerate(share) if s >= 1]
        while poor and rich:
            small, large = poor.pop(), rich[-1]
            aliases[small] = large
            share[large] -= 1 - share[small]
            if share[large] < 1:
                poor.append(rich.pop())
        for rest in poor + rich:  # what rounding left over is as good as full
            share[rest] = 1.0
        return AliasTable(thresholds(np.array(share)), np.array(aliases, np.int32))

    def pick(self, bits: Array) -> Array:
        """Items int32 ``[...]`` from two numbers of 32 bits each, ``[..., 2]``: the bucket's, and the choice in it."""
        bucket = below(bits[..., 0], len(self.aliases))
        return np.where(bits[..., 1] < self.thresholds[bucket], bucket, self.aliases[bucket]).astype(np.int32)


def kept_and_reach(
    tokens: Array, keep: Array, window: int, shrink: bool, seed: int, epoch: int, first: int
) -> tuple[Array, Array]:
    """Which tokens are kept, bool ``[n]``, and how far the window of each reaches, int8 or int32 ``[n]``.

    Args:
        tokens: int32 ``[n]``, the corpus from position ``first`` on.
        keep: thresholds of the words, uint64 ``[V]``.
        window: the reach is uniform in 1 to ``window`` if ``shrink``, else it is ``window``.
    """
    bits = draws(seed, Stream.TOKENS, epoch, first, len(tokens), 2)
    kept = bits[:, 0] < keep[tokens]
    dtype = np.int8 if window <= 127 else np.int32
    if shrink:
        return kept, (below(bits[:, 1], window) + 1).astype(dtype)
    return kept, np.full(len(tokens), window, dtype)


def negatives(table: AliasTable, slices: int, pool: int, seed: int, epoch: int, first_slice: int) -> Array:
    """The shared negatives of each slice, int32 ``[slices, pool]``: slices are counted through an epoch."""
    bits = draws(seed, Stream.NEGATIVES, epoch, first_slice * pool, slices * pool, 2)
    return table.pick(bits).reshape(slices, pool)
