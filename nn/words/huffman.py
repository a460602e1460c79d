"""The binary tree of hierarchical softmax: frequent words have short paths."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HuffmanTree:
    """The way from the root to each word's leaf.

    ``paths [V, L]`` int32: the inner nodes, numbered 0 to V - 2 as they are made, the root last; -1 behind a path's
    end. ``codes [V, L]`` bool: the turn at each, towards the child of code 1 or of code 0.
    """

    paths: NDArray[np.int32]
    codes: NDArray[np.bool_]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """``[V]``: inner nodes on each word's path."""
        return (self.paths >= 0).sum(axis=1)

    @staticmethod
    def of(counts: Any) -> HuffmanTree:
        """Huffman's tree of the words' counts, built as gensim builds it: ties fall the same way.

        Raises:
            ValueError: with fewer than two words, there is nothing to decide.
        """
        counts = np.asarray(counts)
        V = len(counts)
        if V < 2:
            raise ValueError(f"hierarchical softmax needs two words or more, the vocabulary has {V}")
        heap = [_Node(count, i) for i, count in enumerate(counts.tolist())]
        heapq.heapify(heap)
        parent, code = np.zeros(2 * V - 1, np.int64), np.zeros(2 * V - 1, bool)
        for node in range(V, 2 * V - 1):
            left, right = heapq.heappop(heap), heapq.heappop(heap)
            parent[left.index] = parent[right.index] = node
            code[right.index] = True
            heapq.heappush(heap, _Node(left.count + right.count, node))
        # all leaves climb at once, a level a turn
        root, climbed, turns = 2 * V - 2, [], []
        at = np.arange(V)
        while (at != root).any():
            turns.append(np.where(at != root, code[at], False))
            at = np.where(at != root, parent[at], root)
            climbed.append(at)
        depth = len(climbed)
        # a leaf that reached the root after n levels waited there: its first n entries, backwards, are its path
        levels = np.stack(climbed, axis=1) - V
        lengths = (np.stack(climbed, axis=1) != root).sum(axis=1) + 1
        column = lengths[:, None] - 1 - np.arange(depth)
        inside = column >= 0
        column = np.maximum(column, 0)
        paths = np.where(inside, np.take_along_axis(levels, column, 1), -1).astype(np.int32)
        codes = inside & np.take_along_axis(np.stack(turns, axis=1), column, 1)
        return HuffmanTree(paths, codes)


class _Node:
    """Ordered by its count alone, so that ties are decided by the heap, as in gensim."""

    __slots__ = ("count", "index")

    def __init__(self, count: int, index: int) -> None:
        self.count, self.index = count, index

    def __lt__(self, other: _Node) -> bool:
        return bool(self.count < other.count)
