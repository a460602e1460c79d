"""Word vectors with their words: neighbours, similarity, evaluation, files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import evaluation, formats, interop

Words = str | NDArray[np.floating] | Sequence[str | NDArray[np.floating]]


@dataclass(frozen=True, eq=False, repr=False)
class WordVectors:
    """V different words, their vectors float32 ``[V, d]``, and how often each was seen, int64 ``[V]``.

    The most frequent words are first: "among the first n words" means among the most frequent ones.

    Raises:
        ValueError: lengths, shapes or dtypes do not belong together.
    """

    words: list[str]
    vectors: NDArray[np.float32]
    counts: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        formats.check_table(self.words, self.vectors, self.counts)

    def __repr__(self) -> str:
        return f"WordVectors({len(self):,} words, {self.vectors.shape[1]} dimensions)"

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.index

    def __getitem__(self, word: str) -> NDArray[np.float32]:
        """A word's vector. Raises KeyError for one that is not there."""
        return self.vectors[self._place(word)]

    @cached_property
    def index(self) -> dict[str, int]:
        """Each word's place."""
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def units(self) -> NDArray[np.float32]:
        """``[V, d]``: the vectors, each of length 1 (or 0)."""
        return _units(self.vectors)

    # ---- neighbours

    def similarity(self, a: str, b: str) -> float:
        """The cosine between two words' vectors."""
        return float(self.units[self._place(a)] @ self.units[self._place(b)])

    def most_similar(
        self, positive: Words = (), negative: Words = (), topn: int = 10, restrict_vocab: int | None = None
    ) -> list[tuple[str, float]]:
        """The words whose vectors are nearest, by cosine, to the mean of the given words' unit vectors.

        Args:
            positive, negative: words that count with weight 1 and -1; none of them is an answer. "a is to b as c is to
                ?": ``most_similar([b, c], [a])``. A vector ``[d]`` in a word's place counts with the length it has.
            topn: how many answers.
            restrict_vocab: look among this many words, the most frequent ones.

        Raises:
            KeyError: a word is not there, by name. ValueError: no word is given, or a vector of another length.
        """
        given = [(item, weight) for side, weight in ((positive, 1), (negative, -1)) for item in _listed(side)]
        if not given:
            raise ValueError("most_similar needs a word")
        own = {self._place(item) for item, _ in given if isinstance(item, str)}
        mean = np.sum([weight * self._given(item) for item, weight in given], axis=0)
        cosines = self.units[:restrict_vocab] @ _units(mean[None])[0]
        topn = max(topn, 0)
        return [(self.words[i], float(cosines[i])) for i in _largest(cosines, topn + len(own)) if i not in own][:topn]

    def _place(self, word: str) -> int:
        try:
            return self.index[word]
        except KeyError:
            raise KeyError(f"{word!r} is not one of the {len(self):,} words") from None

    def _given(self, item: str | NDArray[np.floating]) -> NDArray[np.float32]:
        if isinstance(item, str):
            return self.units[self._place(item)]
        vector = np.asarray(item, np.float32)
        if vector.shape != self.vectors.shape[1:]:
            raise ValueError(f"a vector must be [{self.vectors.shape[1]}], got {list(vector.shape)}")
        return vector

    # ---- evaluation

    def evaluate_word_pairs(
        self,
        pairs: str | os.PathLike[str] | Iterable[tuple[str, str, float]],
        *,
        restrict_vocab: int | None = None,
        lower: bool = True,
    ) -> evaluation.PairScores:
        """How well cosines agree with people's judgement of how similar two words are.

        Args:
            pairs: two words and their score; or the path of a UTF-8 file with a pair a line, separated by tabs, where
                lines that begin with # and empty lines are left out.
            restrict_vocab: know only this many words, the most frequent ones.
            lower: compare words in upper case; of those that then are one, the most frequent counts. (gensim calls it
                ``case_insensitive``.)

        Raises:
            ValueError: a line is no pair (path and line), or fewer than two pairs are of known words.
        """
        return evaluation.word_pairs(self.words, self.units, pairs, restrict_vocab, lower)

    def evaluate_word_analogies(
        self, path: str | os.PathLike[str], *, restrict_vocab: int | None = 300_000, lower: bool = True
    ) -> evaluation.AnalogyScores:
        """How often the nearest word to b + c - a is the fourth one of "a is to b as c is to d".

        The words of the question are no answers, and questions with an unknown word are not asked. Same answers as
        gensim's ``evaluate_word_analogies``.

        Args:
            path: a UTF-8 file with four words a line, in sections that begin with a line ": name".
            restrict_vocab, lower: as in :meth:`evaluate_word_pairs`.

        Raises:
            ValueError: a line has other than four words or is in no section (path and line); no questions at all.
        """
        return evaluation.word_analogies(self.words, self.units, path, restrict_vocab, lower)

    # ---- files and other libraries

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes words, vectors and counts to an .npz of arrays, nothing pickled. Atomic.

        Raises:
            ValueError: a word contains a line feed or is no UTF-8 text.
        """
        formats.write_npz(path, self.words, self.vectors, self.counts)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> WordVectors:
        """Reads what :meth:`save` wrote. Raises ValueError if the file is something else, or broken."""
        return WordVectors(*formats.read_npz(path))

    def save_word2vec_format(
        self,
        path: str | os.PathLike[str],
        *,
        binary: bool = False,
        vocab_path: str | os.PathLike[str] | None = None,
    ) -> None:
        """Writes the format of word2vec.c that gensim and many others read: words and vectors. Atomic.

        Args:
            path: compressed if it ends in .gz.
            binary: numbers as float32, little endian; else as the shortest decimals that give the same float32 again.
            vocab_path: file for the counts, a line a word (gensim's ``fvocab``).

        Raises:
            ValueError: a word is empty or contains ASCII white space (Unicode has more, which is fine); there are no
                counts to write.
        """
        formats.write_word2vec(path, self.words, self.vectors, self.counts, binary=binary, vocab_path=vocab_path)

    @staticmethod
    def load_word2vec_format(
        path: str | os.PathLike[str],
        *,
        binary: bool | None = None,
        limit: int | None = None,
        vocab_path: str | os.PathLike[str] | None = None,
    ) -> WordVectors:
        """Reads the format of word2vec.c, also as gensim writes it.

        A word's second row and those after it are left out, with one warning.

        Args:
            path: compressed if it ends in .gz.
            binary: ``None``: find out from the first row.
            limit: read this many rows, the most frequent words.
            vocab_path: file with the counts; without it there are none.

        Raises:
            ValueError: the file is broken; says which file, which row (the header is row 1) and why.
        """
        return WordVectors(*formats.read_word2vec(path, binary=binary, limit=limit, vocab_path=vocab_path))

    def to_gensim(self) -> Any:
        """These vectors as a gensim ``KeyedVectors``, with a copy of everything. Raises ImportError without gensim."""
        return interop.keyed_vectors(self.words, self.vectors, self.counts)

    @staticmethod
    def from_gensim(keyed_vectors: Any) -> WordVectors:
        """The vectors of a gensim ``KeyedVectors``, copied, with counts if it has them.

        Raises:
            TypeError: it is something else. ValueError: its keys are no words.
        """
        return WordVectors(*interop.table_of(keyed_vectors))


def _listed(words: Any) -> list[Any]:
    alone = isinstance(words, str) or (isinstance(words, np.ndarray) and words.ndim == 1)
    return [words] if alone else list(words)


def _units(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


def _largest(values: NDArray[np.float32], n: int) -> list[int]:
    """The places of the n largest values, largest first; of equal ones the first first, NaNs last."""
    falling = -values
    places = np.arange(len(values))
    if n < len(values):
        # sorting all of a million words takes ten times as long
        places = np.flatnonzero(~(falling > np.partition(falling, n - 1)[n - 1]))
    return [int(i) for i in places[np.argsort(falling[places], kind="stable")][:n]]
