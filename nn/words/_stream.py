"""A corpus as the steps of an epoch: tokens thinned out, windows drawn, in the order of the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...kernels import word2vec as kernels
from .corpus import Corpus
from .vocabulary import Vocabulary

_CHUNK = 1 << 16  # tokens drawn for at a time


@dataclass(frozen=True)
class Batch:
    """What one step takes: up to ``tokens_per_step`` kept tokens of running text."""

    step: int  # of the epoch
    tokens: Any
    sentences: Any
    reach: Any
    position: int  # of the first token in the corpus


@dataclass(frozen=True)
class TokenStream:
    """The steps of each epoch over ``tokens [n]`` with sentences from ``starts [s + 1]``.

    ``ids`` are what a token's number is in the vocabulary, -1 where it is not in it: such tokens are dropped before
    windows are made. ``keep`` are the thresholds of the vocabulary's words (``kernels.thresholds``). An epoch's draws
    depend on the seed, the epoch and the position in the corpus: any step can be reached again without having trained
    those before it.
    """

    tokens: Any
    starts: Any
    ids: Any
    keep: Any
    window: int
    shrink: bool
    seed: int
    tokens_per_step: int

    @staticmethod
    def of(corpus: Corpus, vocabulary: Vocabulary, sample: float, *rest: Any) -> TokenStream:
        keep = kernels.thresholds(vocabulary.keep_probabilities(sample))
        return TokenStream(corpus.tokens, corpus.starts, vocabulary.ids_of(corpus.words), keep, *rest)

    def chunks(self, epoch: int) -> Iterator[list[Batch]]:
        """The steps of an epoch, some at a time. The last step of the epoch may be shorter."""
        step, size = 0, self.tokens_per_step
        keep = np.append(self.keep, np.uint64(0))  # the last one, -1, is never kept
        rest: list[Any] = [np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int8), np.empty(0, np.int64)]
        for first in range(0, len(self.tokens), _CHUNK):
            tokens = self.ids[self.tokens[first : first + _CHUNK]]
            kept, reach = kernels.kept_and_reach(tokens, keep, self.window, self.shrink, self.seed, epoch, first)
            positions = np.flatnonzero(kept)
            sentences = self._sentences(first, len(tokens))
            new = (tokens[positions], sentences[positions], reach[positions], positions + first)
            joined = [np.concatenate([a, b]) for a, b in zip(rest, new, strict=True)]
            whole = len(joined[0]) // size
            yield [self._batch(step + i, [a[i * size : (i + 1) * size] for a in joined]) for i in range(whole)]
            step += whole
            rest = [a[whole * size :] for a in joined]
        if len(rest[0]):
            yield [self._batch(step, rest)]

    def _batch(self, step: int, arrays: list[Any]) -> Batch:
        tokens, sentences, reach, positions = arrays
        return Batch(step, tokens, sentences, reach, int(positions[0]))

    def _sentences(self, first: int, count: int) -> Any:
        """The sentence of each token, int32; counted from the first of them."""
        low, high = np.searchsorted(self.starts, [first, first + count - 1], side="right")
        marks = np.zeros(count + 1, np.int32)
        np.add.at(marks, np.asarray(self.starts[low:high]) - first, 1)
        return np.cumsum(marks[:count], dtype=np.int32) + np.int32((low - 1) % (1 << 30))
