"""The words of a text and how often each was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Vocabulary:
    """Words with their counts, most frequent first; a word's id is its place.

    Attributes:
        words: V different words.
        counts: int64 ``[V]``, at least 1 each.
    """

    words: list[str]
    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.words) != len(self.counts):
            raise ValueError(f"{len(self.words)} words and {len(self.counts)} counts do not belong together")

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def index(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words)}

    @property
    def total(self) -> int:
        """The sum of all counts."""
        return int(self.counts.sum())

    @staticmethod
    def of(words: Sequence[str], counts: Any, *, min_count: int = 5, max_vocab: int | None = None) -> Vocabulary:
        """What remains of words, in the order in which they were first seen, with their counts.

        Words seen less often than ``min_count`` go, and all but the ``max_vocab`` most frequent. Order and ties are
        gensim's.

        Raises:
            ValueError: there are no words at all, or none is frequent enough.
        """
        counts = np.asarray(counts, np.int64)
        if not len(words):
            raise ValueError("the corpus has no words")
        frequent = np.flatnonzero(counts >= min_count)
        if not len(frequent):
            most = int(counts.argmax())
            raise ValueError(
                f"no word is seen {min_count} times (min_count): the most frequent, {words[most]!r}, is seen "
                f"{int(counts[most]):,} times"
            )
        order = frequent[np.lexsort((-frequent, -counts[frequent]))][:max_vocab]
        return Vocabulary([words[i] for i in order.tolist()], counts[order])

    def equals(self, other: Vocabulary) -> bool:
        """Whether words and counts are the same."""
        return self.words == other.words and np.array_equal(self.counts, other.counts)

    def ids_of(self, words: Sequence[str]) -> NDArray[np.int32]:
        """The id of each of ``words``, -1 for one that is not in the vocabulary."""
        return np.array([self.index.get(word, -1) for word in words], np.int32)

    def keep_probabilities(self, sample: float) -> NDArray[np.float64]:
        """``[V]``: how likely an occurrence of each word survives the thinning of frequent words.

        With f a word's share of all counts, ``sqrt(sample / f) + sample / f``, at most 1 (the formula of word2vec.c and
        gensim). From 1 on ``sample`` is not a share but a count, as in gensim; 0 keeps everything.
        """
        if not sample:
            return np.ones(len(self))
        threshold = sample * self.total if sample < 1 else int(sample * (3 + np.sqrt(5)) / 2)
        ratio = threshold / self.counts
        return np.minimum(1, np.sqrt(ratio) + ratio)
