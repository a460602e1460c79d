"""What word vectors are judged by: people's scores for pairs of words, and analogies. Figures are gensim's."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

AnyPath = str | os.PathLike[str]

_BLOCK_COSINES = 1 << 23  # computed at a time: 32 MB
_TRIES = 5  # answers that may be other spellings of the question's words


@dataclass(frozen=True)
class PairScores:
    """Agreement with people's scores.

    Attributes:
        spearman, pearson: correlation of ranks and of values; NaN if all scores or all cosines are equal.
        pairs: how many these are of.
        oov: share of all pairs that were left out, because a word is unknown.
    """

    spearman: float
    pearson: float
    pairs: int
    oov: float


@dataclass(frozen=True)
class AnalogySection:
    """One kind of analogies: of ``total`` questions ``correct`` were answered correctly."""

    name: str
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """0 if nothing was asked."""
        return self.correct / self.total if self.total else 0.0


@dataclass(frozen=True)
class AnalogyScores:
    """Answers to all sections of a file.

    Attributes:
        accuracy, correct, total: of all sections together; accuracy is 0 if nothing was asked.
        sections: in the order of the file.
        oov: share of all questions that were not asked, because a word is unknown.
    """

    accuracy: float
    correct: int
    total: int
    sections: tuple[AnalogySection, ...]
    oov: float


# ---- pairs


def word_pairs(
    words: Sequence[str],
    units: NDArray[np.float32],
    pairs: AnyPath | Iterable[tuple[str, str, float]],
    restrict_vocab: int | None,
    lower: bool,
) -> PairScores:
    """See :meth:`WordVectors.evaluate_word_pairs`."""
    triples = list(_pairs(pairs) if isinstance(pairs, str | os.PathLike) else pairs)
    known = _known(words, restrict_vocab, lower)
    places = np.array([[known.get(_folded(word, lower), -1) for word in triple[:2]] for triple in triples], np.int64)
    used = (places.reshape(-1, 2) >= 0).all(axis=1)
    if used.sum() < 2:
        raise ValueError(f"a correlation needs two pairs of known words or more, {used.sum()} of {len(triples)} are")
    a, b = places[used].T
    cosines = np.einsum("nd,nd->n", units[a], units[b]).astype(np.float64)
    scores = np.array([score for _, _, score in triples], np.float64)[used]
    return PairScores(
        _correlation(_ranks(cosines), _ranks(scores)),
        _correlation(cosines, scores),
        int(used.sum()),
        float(1 - used.mean()),
    )


def _pairs(path: AnyPath) -> Iterator[tuple[str, str, float]]:
    for number, line in _lines(path):
        if line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 3:
            raise ValueError(
                f"{os.fspath(path)}, line {number}: expected two words and a score between tabs, got {line!r}"
            )
        try:
            score = float(fields[2])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise ValueError(f"{os.fspath(path)}, line {number}: {fields[2]!r} is no score")
        yield fields[0], fields[1], score


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value's rank from 1; equal ones share the mean of theirs."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(times)
    return (last - (times - 1) / 2)[place]


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if not (np.ptp(a) and np.ptp(b)):
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) / math.sqrt((a @ a) * (b @ b))


# ---- analogies


def word_analogies(
    words: Sequence[str], units: NDArray[np.float32], path: AnyPath, restrict_vocab: int | None, lower: bool
) -> AnalogyScores:
    """See :meth:`WordVectors.evaluate_word_analogies`."""
    names, section_of, questions = _questions(path, lower)
    known = _known(words, restrict_vocab, lower)
    units = units[:restrict_vocab]
    spelling = np.array([known[_folded(word, lower)] for word in words[:restrict_vocab]], np.int64)
    places = np.array([[known.get(word, -1) for word in question] for question in questions], np.int64)
    asked = (places >= 0).all(axis=1)
    places, section = places[asked], np.array(section_of)[asked]
    right = np.zeros(len(places), bool)
    rows = max(1, _BLOCK_COSINES // max(1, len(units)))
    for first in range(0, len(places), rows):
        block = slice(first, first + rows)
        right[block] = _answered(units, spelling, places[block])
    totals, corrects = (np.bincount(part, minlength=len(names)).tolist() for part in (section, section[right]))
    sections = tuple(map(AnalogySection, names, corrects, totals))
    whole = AnalogySection("", sum(corrects), sum(totals))
    return AnalogyScores(whole.accuracy, whole.correct, whole.total, sections, float(1 - asked.mean()))


def _answered(units: NDArray[np.float32], spelling: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the word nearest to b + c - a is d, for rows a, b, c, d of ``places``.

    ``spelling`` is the place of each word's most frequent spelling. The words at a, b and c are no answers. Where the
    answer is another spelling of one of them the next best is taken, a few times, as gensim does.
    """
    a, b, c, d = places.T
    cosines = (units[b] + units[c] - units[a]) @ units.T
    waiting = every = np.arange(len(places))
    cosines[every[:, None], places[:, :3]] = -np.inf
    answer = np.full(len(places), -1)
    for _ in range(_TRIES):
        best = (cosines if waiting is every else cosines[waiting]).argmax(axis=1)
        there = cosines[waiting, best] > -np.inf  # else there are no more words
        waiting, best = waiting[there], best[there]
        answer[waiting] = spelling[best]
        cosines[waiting, best] = -np.inf
        again = (spelling[best][:, None] == places[waiting, :3]).any(axis=1)
        waiting = waiting[again]
    return answer == d


def _questions(path: AnyPath, lower: bool) -> tuple[list[str], list[int], list[list[str]]]:
    """Names of the sections, and for each question its section and its four words."""
    names: list[str] = []
    section_of: list[int] = []
    questions: list[list[str]] = []
    for number, line in _lines(path):
        if line.startswith(":"):
            names.append(line.lstrip(":").strip())
            continue
        fields = _folded(line, lower).split()
        if len(fields) != 4 or not names:
            what = "expected four words" if names else "expected a section's name, ': name', first"
            raise ValueError(f"{os.fspath(path)}, line {number}: {what}, got {line!r}")
        section_of.append(len(names) - 1)
        questions.append(fields)
    if not questions:
        raise ValueError(f"{os.fspath(path)} has no questions")
    return names, section_of, questions


# ---- both


def _folded(text: str, lower: bool) -> str:
    return text.upper() if lower else text


def _known(words: Sequence[str], restrict_vocab: int | None, lower: bool) -> dict[str, int]:
    """The place of each word; of spellings that differ only in case, of the first, which is the most frequent."""
    known: dict[str, int] = {}
    for i, word in enumerate(words[:restrict_vocab]):
        known.setdefault(_folded(word, lower), i)
    return known


def _lines(path: AnyPath) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not empty, with their numbers from 1."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode().strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: not UTF-8: {error.reason}") from error
            if text:
                yield number, text
