"""Word2Vec beside one worker of gensim's, on one thread: words a second of training, of counting and of encoding.

The text is the largest that ``python -m examples.corpora`` has prepared, or the articles in gensim's wheel.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from threadpoolctl import threadpool_limits
from tilesmith.nn.words import Corpus, Options, Vocabulary, Word2Vec
from tilesmith.nn.words.interop import gensim_arguments

from examples.corpora import OUT, TEXTS, prepare

from .load import Load
from .report import Report

TRAINED_TOKENS = 1_000_000  # of the text, from its start
ROUNDS = 3

MODELS: dict[str, dict[str, Any]] = {
    "skip-gram, 5 negatives": {},
    "CBOW, 5 negatives": {"model": "cbow"},
    "skip-gram, hierarchical": {"hierarchical": True},
    "CBOW, hierarchical": {"model": "cbow", "hierarchical": True},
}


@dataclass
class Text:
    path: Path
    sentences: list[list[str]]
    corpus: Corpus
    vocabulary: Vocabulary

    @property
    def words(self) -> str:
        return (
            f"{self.path.stem}, {len(self.corpus.tokens) / 1e6:.1f} M words, {len(self.vocabulary):,} of them different"
        )


@pytest.fixture(scope="module")
def text() -> Text:
    there = [path for name in ("all", *TEXTS) if (path := OUT / f"{name}.txt").exists()]
    path = max(there, key=lambda path: path.stat().st_size) if there else prepare("enwiki")
    corpus = Corpus.of(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    return Text(path, [line.split() for line in lines], corpus, Vocabulary.of(corpus.words, corpus.counts))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1, user_api="blas"):
        yield
    torch.set_num_threads(before)


def _in_turn(benchmark: BenchmarkFixture, ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """Median seconds of ours, in pytest-benchmark's rounds, and of theirs, which run in between."""
    times: list[float] = []

    def before_round() -> None:
        begin = time.perf_counter()
        theirs()
        times.append(time.perf_counter() - begin)

    benchmark.pedantic(ours, setup=before_round, rounds=ROUNDS)
    own = times if benchmark.stats is None else benchmark.stats.stats.data  # None with --benchmark-disable
    return statistics.median(own), statistics.median(times)


def _report(
    what: str,
    text: Text,
    seconds: tuple[float, float],
    words: tuple[int, int],
    benchmark: BenchmarkFixture,
    **tools: Any,
) -> None:
    share, report = tools["load"].share, tools["report"]
    rates = [n / s for n, s in zip(words, seconds, strict=True)]
    ratio = rates[0] / rates[1]
    benchmark.extra_info.update(
        tools["facts"] | {"threads": 1},
        text=text.words,
        words_per_s=rates[0],
        gensim_words_per_s=rates[1],
        ratio=ratio,
        share_elsewhere=share,
    )
    cells = [f"{rate / 1e3:,.0f}" for rate in rates]
    report.words.rows.append((what, text.words, *cells, report.trusted(f"{ratio:.2f}", share)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.benchmark(group="word2vec", disable_gc=True)
def test_training(
    name: str, text: Text, benchmark: BenchmarkFixture, facts: dict[str, Any], report: Report, load: Load
) -> None:
    """Effective words: those that the thinning of frequent ones leaves, as gensim counts them."""
    from gensim.models import Word2Vec as Theirs

    options = MODELS[name]
    stop = int(text.corpus.starts.searchsorted(min(TRAINED_TOKENS, len(text.corpus.tokens))))
    starts = text.corpus.starts[: stop + 1]
    piece = Corpus(text.corpus.tokens[: starts[-1]], starts, text.corpus.words)
    theirs = Theirs(**gensim_arguments(Options(**options)), workers=1)
    theirs.build_vocab_from_freq(dict(zip(text.vocabulary.words, text.vocabulary.counts.tolist(), strict=True)))
    ours = Word2Vec(epochs=1, **options)
    words = {}

    def train_ours() -> None:
        words["ours"] = int(ours.fit(piece, vocabulary=text.vocabulary).history[-1]["effective_tokens"])

    def train_theirs() -> None:
        words["theirs"], _ = theirs.train(text.sentences[:stop], total_words=len(piece.tokens), epochs=1)

    seconds = _in_turn(benchmark, train_ours, train_theirs)
    assert abs(words["ours"] / words["theirs"] - 1) < 0.02
    counts = (words["ours"], words["theirs"])
    _report(f"training, {name}", text, seconds, counts, benchmark, facts=facts, report=report, load=load)


@pytest.mark.parametrize("source", ["a file", "lists of words"])
@pytest.mark.benchmark(group="word2vec", disable_gc=True)
def test_vocabulary(
    source: str, text: Text, benchmark: BenchmarkFixture, facts: dict[str, Any], report: Report, load: Load
) -> None:
    """Ours counts and encodes; gensim's counts, and looks every word up again in each epoch."""
    from gensim.models import Word2Vec as Theirs

    found = {}

    def ours() -> None:
        corpus = Corpus.of(text.path if source == "a file" else text.sentences)
        found["ours"] = Vocabulary.of(corpus.words, corpus.counts)

    def theirs() -> None:
        model = Theirs()
        model.build_vocab(
            **({"corpus_file": str(text.path)} if source == "a file" else {"corpus_iterable": text.sentences})
        )
        found["theirs"] = model.wv.index_to_key

    seconds = _in_turn(benchmark, ours, theirs)
    assert found["ours"].words == found["theirs"]
    counts = (len(text.corpus.tokens),) * 2
    _report(f"vocabulary of {source}", text, seconds, counts, benchmark, facts=facts, report=report, load=load)
