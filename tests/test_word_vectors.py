"""Word vectors: neighbours, files, evaluation and conversion, beside gensim's."""

from __future__ import annotations

import gzip
import math
import re
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tilesmith.nn.words import evaluation, formats, interop
from tilesmith.nn.words.evaluation import AnalogySection
from tilesmith.nn.words.trainer import Word2Vec
from tilesmith.nn.words.vectors import WordVectors
from tilesmith.nn.words.vocabulary import Vocabulary

from examples.corpora import gensim_data, sentences


@pytest.fixture(scope="module")
def lee() -> list[list[str]]:
    """Three hundred news of 2000 and 2001: 60 thousand words."""
    return list(sentences(gensim_data("lee_background.cor").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def few(lee: list[list[str]]) -> list[list[str]]:
    return lee[:500]


@pytest.fixture(scope="module")
def trained() -> Any:
    """gensim's KeyedVectors of the news with their capital letters, so that words have several spellings."""
    from gensim.models import Word2Vec as Theirs

    text = gensim_data("lee_background.cor").read_text(encoding="utf-8")
    lines = [re.findall("[A-Za-z]+", line) for line in text.splitlines()]
    return Theirs(lines, vector_size=24, min_count=2, sg=1, workers=1, epochs=8, alpha=0.08).wv


def table(rows: dict[str, list[float]], counts: list[int] | None = None) -> WordVectors:
    vectors = np.array(list(rows.values()), np.float32)
    return WordVectors(list(rows), vectors, None if counts is None else np.array(counts))


def bits(vectors: NDArray[np.float32]) -> list[list[int]]:
    return np.ascontiguousarray(vectors).view(np.uint32).tolist()


# ---- neighbours


def test_neighbours_are_gensims(trained: Any) -> None:
    vectors = WordVectors.from_gensim(trained)
    first, second = trained["Australia"], 3 * trained["the"]
    for positive, negative in (
        (["police"], []),
        (["government", "attack"], ["the"]),
        ("police", first),
        ([first, "government"], [second]),
        (first, ()),
    ):
        mine = vectors.most_similar(positive, negative, topn=7)
        lists = [[side] if isinstance(side, str | np.ndarray) else list(side) for side in (positive, negative)]
        expected = trained.most_similar(*lists, topn=7)
        assert [w for w, _ in mine] == [w for w, _ in expected]
        np.testing.assert_allclose([s for _, s in mine], [s for _, s in expected], atol=1e-5)
    assert vectors.similarity("police", "fire") == pytest.approx(trained.similarity("police", "fire"), abs=1e-6)
    assert {vectors.words.index(w) < 50 for w, _ in vectors.most_similar("police", restrict_vocab=50)} == {True}
    assert (vectors["police"] == trained["police"]).all()


def test_order_of_equal_neighbours_and_how_many() -> None:
    vectors = table({"a": [1, 0], "b": [0, 1], "nan": [math.nan, 0], "c": [2, 0], "d": [3, 0], "zero": [0, 0]})
    assert vectors.most_similar("a", topn=9) == [
        ("c", 1.0),
        ("d", 1.0),
        ("b", 0.0),
        ("zero", 0.0),
        ("nan", pytest.approx(math.nan, nan_ok=True)),
    ]
    assert vectors.most_similar("a", topn=1) == [("c", 1.0)]
    assert vectors.most_similar("a", topn=3)[2] == ("b", 0.0)
    assert vectors.most_similar(np.array([5, 0]), topn=2) == [("a", 1.0), ("c", 1.0)]
    many = table({f"w{i}": [1 + i, 0] if i % 3 else [0, 1] for i in range(300)})
    expected = [f"w{i}" for i in range(2, 300) if i % 3] + [f"w{i}" for i in range(0, 300, 3)]
    for topn in (150, 250, 300):
        assert [w for w, _ in many.most_similar("w1", topn=topn)] == expected[:topn]
    for topn in (0, -1):
        assert vectors.most_similar("a", topn=topn) == vectors.most_similar(np.ones(2), topn=topn) == []
    assert repr(vectors) == "WordVectors(6 words, 2 dimensions)"


def test_words_that_are_not_there() -> None:
    vectors = WordVectors(["a", "b"], np.eye(2, dtype=np.float32))
    assert "a" in vectors
    assert "c" not in vectors
    for call in (lambda: vectors["c"], lambda: vectors.most_similar("c"), lambda: vectors.similarity("a", "c")):
        with pytest.raises(KeyError, match="'c' is not one of the 2 words"):
            call()
    with pytest.raises(ValueError, match="needs a word"):
        vectors.most_similar()
    with pytest.raises(ValueError, match=r"a vector must be \[2\], got \[3\]"):
        vectors.most_similar(np.ones(3))
    with pytest.raises(ValueError, match="2 words and 1 counts"):
        Vocabulary(["a", "b"], np.array([1]))


@pytest.mark.parametrize(
    ("vectors", "counts", "message"),
    [
        (np.eye(2), None, r"vectors must be float32 \[V, d\], got float64 \[2, 2\]"),
        (np.ones(2, np.float32), None, r"vectors must be .* got float32 \[2\]"),
        (np.ones((2, 0), np.float32), None, r"vectors must be .* got float32 \[2, 0\]"),
        (np.ones((3, 2), np.float32), None, "2 words and 3 vectors"),
        (np.ones((2, 2), np.float32), np.ones(3, np.int64), r"counts must be int64 \[2\], got int64 \[3\]"),
        (np.ones((2, 2), np.float32), np.ones(2), r"counts must be int64 \[2\], got float64"),
    ],
)
def test_what_does_not_belong_together(vectors: Any, counts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordVectors(["a", "b"], vectors, counts)


# ---- files

WORD = st.text(st.characters(codec="utf-8", exclude_characters=" \t\n\r\v\f"), min_size=1, max_size=4)
BITS = st.integers(0, 2**32 - 1) | st.floats(width=32).map(lambda x: int(np.float32(x).view(np.uint32)))


@st.composite
def tables(draw: st.DrawFn) -> WordVectors:
    d = draw(st.integers(1, 4))
    words = draw(st.lists(WORD, max_size=5, unique=True))
    rows = draw(st.lists(st.lists(BITS, min_size=d, max_size=d), min_size=len(words), max_size=len(words)))
    counts = sorted(draw(st.lists(st.integers(1, 10**12), min_size=len(words), max_size=len(words))), reverse=True)
    vectors = np.array(rows, np.uint32).reshape(len(words), d).view(np.float32)
    return WordVectors(words, vectors, np.array(counts, np.int64) if draw(st.booleans()) else None)


def assert_same(found: Any, expected: NDArray[np.float32], binary: bool) -> None:
    """Bit by bit; but text knows one NaN only."""
    if not binary:
        found, expected = (np.where(np.isnan(v), np.float32(math.nan), v) for v in (found, expected))
    assert found.dtype == np.float32
    assert bits(found) == bits(expected)


@given(vectors=tables(), binary=st.booleans(), suffix=st.sampled_from([".txt", ".gz"]))
@settings(max_examples=150, deadline=None)
def test_files_hold_every_word_and_every_bit(
    tmp_path_factory: pytest.TempPathFactory, vectors: WordVectors, binary: bool, suffix: str
) -> None:
    from gensim.models import KeyedVectors

    folder = tmp_path_factory.mktemp("files")
    path, vocab_path = folder / f"vectors{suffix}", folder / f"vocabulary{suffix}"
    kept = None if vectors.counts is None else vocab_path
    vectors.save_word2vec_format(path, binary=binary, vocab_path=kept)
    again = WordVectors.load_word2vec_format(path, binary=binary, vocab_path=kept)
    theirs = KeyedVectors.load_word2vec_format(str(path), binary=binary)
    assert again.words == theirs.index_to_key == vectors.words
    assert_same(again.vectors, vectors.vectors, binary)
    assert_same(theirs.vectors, vectors.vectors, binary)
    assert (again.counts is None) == (vectors.counts is None)
    assert again.counts is None or again.counts.tolist() == vectors.counts.tolist()  # type: ignore[union-attr]
    if not binary:
        assert WordVectors.load_word2vec_format(path).words == vectors.words
    theirs = vectors.to_gensim()
    theirs.save_word2vec_format(str(path), binary=binary)
    again = WordVectors.load_word2vec_format(path, binary=binary)
    assert again.words == vectors.words
    assert_same(again.vectors, vectors.vectors, binary)


@given(vectors=tables(), odd=st.sampled_from(["", "a b", "\t"]))
@settings(max_examples=50, deadline=None)
def test_npz_holds_every_word_and_every_bit(
    tmp_path_factory: pytest.TempPathFactory, vectors: WordVectors, odd: str
) -> None:
    path = tmp_path_factory.mktemp("files") / "vectors"
    vectors = WordVectors([*vectors.words[:-1], odd][: len(vectors)], vectors.vectors, vectors.counts)
    vectors.save(path)
    again = WordVectors.load(path)
    assert again.words == vectors.words
    assert bits(again.vectors) == bits(vectors.vectors)
    assert (again.counts is None) == (vectors.counts is None)
    assert again.counts is None or again.counts.tolist() == vectors.counts.tolist()  # type: ignore[union-attr]


def test_text_has_the_shortest_decimals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    usual = np.exp(rng.uniform(np.log(2e-5), np.log(30), 20_000)).astype(np.float32)
    edges = np.array([10.0**e for e in range(-6, 3)], np.float32)
    edges = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(99))])
    short = (rng.integers(0, 10**4, 2_000) / 10**3).astype(np.float32)
    odd = rng.integers(0, 2**32, 5_000, np.uint32).view(np.float32)
    values = np.concatenate(
        [usual, -usual, edges, short, odd, np.array([0, -0.0, np.inf, -np.inf, np.nan], np.float32)]
    )
    path = tmp_path / "vectors"
    WordVectors([f"w{i}" for i in range(len(values))], values[:, None]).save_word2vec_format(path)
    texts = [line.split()[1] for line in path.read_text().splitlines()[1:]]
    for text, value in zip(texts, values, strict=True):
        assert text == (str(value) if len(str(value)) <= 15 else np.format_float_scientific(value, trim="-"))
        assert np.isnan(value) or np.float32(text) == value


def test_rows_of_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(formats, "_BLOCK_NUMBERS", 50)
    numbers = np.random.default_rng(0).standard_normal((200, 7)).astype(np.float32)
    vectors = WordVectors([f"w{i}" + "é" * (i % 70) for i in range(200)], numbers)
    for binary in (False, True):
        path = tmp_path / "vectors"
        vectors.save_word2vec_format(path, binary=binary)
        again = WordVectors.load_word2vec_format(path)
        assert again.words == vectors.words
        assert bits(again.vectors) == bits(numbers)
        first = WordVectors.load_word2vec_format(path, limit=13)
        assert first.words == vectors.words[:13]
        assert bits(first.vectors) == bits(numbers[:13])
        assert len(WordVectors.load_word2vec_format(path, limit=0)) == 0


def test_binary_and_text_of_word2vec_c(tmp_path: Path) -> None:
    """It ends a vector with a line feed, and its text's lines with a space."""
    path = tmp_path / "vectors"
    numbers = np.array([[1, 2], [10, 32]], np.float32)  # 0x20 and 0x0a are among their bytes
    numbers.view(np.uint32)[1] = [0x0A200A20, 0x20202020]
    path.write_bytes(
        b"2 2\n" + b"".join(w + b" " + v.tobytes() + b"\n" for w, v in zip([b"a", b"b"], numbers, strict=True))
    )
    again = WordVectors.load_word2vec_format(path)
    assert again.words == ["a", "b"]
    assert bits(again.vectors) == bits(numbers)
    path.write_text("2 2\n</s> 0.5 -1e39 \r\nb 1e-3 -nan \n\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = WordVectors.load_word2vec_format(path)
    assert again.words == ["</s>", "b"]
    np.testing.assert_array_equal(again.vectors, np.array([[0.5, -math.inf], [1e-3, math.nan]], np.float32))


def test_a_real_file_that_gensim_brings() -> None:
    path = gensim_data("euclidean_vectors.bin")
    from gensim.models import KeyedVectors

    theirs = KeyedVectors.load_word2vec_format(str(path), binary=True)
    mine = WordVectors.load_word2vec_format(path)
    assert mine.words == theirs.index_to_key
    assert bits(mine.vectors) == bits(theirs.vectors)


def test_counts_in_a_file_of_their_own(tmp_path: Path, trained: Any) -> None:
    from gensim.models import KeyedVectors

    path, vocab_path = tmp_path / "vectors", tmp_path / "vocabulary"
    vectors = WordVectors.from_gensim(trained)
    assert vectors.counts is not None
    vectors.save_word2vec_format(path, binary=True, vocab_path=vocab_path)
    theirs = KeyedVectors.load_word2vec_format(str(path), str(vocab_path), binary=True)
    assert [theirs.get_vecattr(w, "count") for w in vectors.words] == vectors.counts.tolist()
    trained.save_word2vec_format(str(path), str(vocab_path), binary=True)
    again = WordVectors.load_word2vec_format(path, vocab_path=vocab_path, limit=100)
    assert again.counts is not None
    assert again.counts.tolist() == vectors.counts[:100].tolist()
    vocab_path.write_text("a 3\n")
    with pytest.raises(ValueError, match="vocabulary has no count of 'the'"):
        WordVectors.load_word2vec_format(path, vocab_path=vocab_path)
    for content, message in (
        ("a 3\nb\n", r"vocabulary, row 2: expected a word and its count, got b'b\\n'"),
        ("a 3\nb 1.5\n", "row 2: expected a word and its count"),
        ("a 3\nb -1\n", "row 2: expected a word and its count"),
        ("a 3\n\na 4\n", "row 2: expected a word and its count"),
        ("a 3\na 4\n", "row 2: a second count of b'a'"),
    ):
        vocab_path.write_text(content)
        with pytest.raises(ValueError, match=message):
            WordVectors.load_word2vec_format(path, vocab_path=vocab_path)
    with pytest.raises(ValueError, match=r"no counts to write to .*vocabulary"):
        table({"a": [1]}).save_word2vec_format(path, vocab_path=vocab_path)


def row(word: bytes, *numbers: float) -> bytes:
    return word + b" " + np.array(numbers, "<f4").tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"row 1: expected the numbers of words and of dimensions, got b''"),
        (b"a 0.5\n", r"row 1: expected .* got b'a 0.5\\n'"),
        (b"1\na 0.5\n", r"row 1: expected .* got b'1\\n'"),
        (b"-1 2\n", "row 1: expected"),
        (b"1 0\na\n", "row 1: expected"),
        (b"\x00" * 1000, "row 1: expected"),
        (b"1 " + b"9" * 5000, r"row 1: expected .*, got b'1 9{98}'$"),
        (b"3 2\na 1 2\nb 1 2\n", "row 4: the file ends after 2 words, its header promises 3"),
        (b"1 2\n", "row 2: the file ends after 0 words, its header promises 1"),
        (b"1 2\na 1 2\n\nb 1 2\n", "row 3: 0 numbers behind the word instead of 2"),
        (b"1 2\na 1 2\nb 1 2\n", "row 3: the file goes on after the 1 words that its header promises"),
        (b"0 2\nb 1 2\n", "row 2: the file goes on"),
        (b"2 2\na 1 2\nb 1\n", "row 3: 1 numbers behind the word instead of 2"),
        (b"2 2\na 1 2\nb 1 2 3\n", "row 3: 3 numbers behind the word instead of 2"),
        (b"2 2\na 1 2 3\nb 1\n", "row 2: 3 numbers behind the word instead of 2"),
        (b"2 2\na b 1 2\nb 1 2\n", "row 2: 3 numbers behind the word instead of 2"),
        (b"1 2\na 1 0.5x\n", r"row 2: could not convert string to float: b'0.5x'"),
        (b"2 2\na 1 2\nb 1_0 2\n", "row 3: a number with an underscore"),
        (b"2 2\na 1 2\n 1 2\n", "row 3: no word before the numbers"),
        (b"2 2\na 1 2\nb\xff 1 2\n", r"row 3: the word b'b\\xff' is not UTF-8"),
        (b"999999999999 300\na 1 2\n", "row 2: 2 numbers behind the word instead of 300"),
        (b"999999999999 2\na 1 2\n", "row 3: the file ends after 1 words, its header promises 999,999,999,999"),
        (b"1 999999999999999\na 1 2\n", "row 2: 2 numbers behind the word instead of 999,999,999,999,999"),
        (b"2 2\n" + row(b"a", 1, 2) + row(b"b", 1), "row 3: the file ends within the row"),
        (b"2 2\n" + row(b"a", 1, 2) + b"b", "row 3: the file ends within the row"),
        (b"2 2\n" + row(b"a", 1, 2) + b"\n", "row 3: the file ends after 1 words, its header promises 2"),
        (b"1 2\n" + row(b"a", 1, 2) + row(b"b", 1, 2), "row 3: the file goes on after"),
        (b"1 2\n" + row(b"a", 1, 2) + b"b", "row 3: the file ends within the row"),
        (b"2 2\n" + row(b"a", 1, 2) + row(b"", 1, 2), "row 3: no word before the numbers"),
        (b"1 2\n" + row(b"a\xc3", 1, 2), r"row 2: the word b'a\\xc3' is not UTF-8"),
        (b"999999999999 300\n" + row(b"a", 1, 2), "row 2: the file ends within the row"),
        (b"1 999999999999999\n" + row(b"a", 1, 2), "row 2: the file ends within the row"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_broken_files(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=re.escape(str(path)) + ", " + message):
            WordVectors.load_word2vec_format(path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_broken_gzip_missing_files_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "vectors.gz"
    vectors = WordVectors([f"w{i}" for i in range(300)], np.random.default_rng(0).random((300, 9), np.float32))
    vectors.save_word2vec_format(path)
    whole = path.read_bytes()
    assert whole[4:8] == bytes(4)  # no time: the same vectors are the same file
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"vectors\.gz, row \d+: Compressed file ended"):
        WordVectors.load_word2vec_format(path)
    path.write_bytes(whole[:2000] + b"\xff" * 50 + whole[2050:])
    with pytest.raises(ValueError, match=r"vectors\.gz, row \d+: "):
        WordVectors.load_word2vec_format(path)
    path.write_bytes(b"1 2\na 1 2\n")
    with pytest.raises(ValueError, match=r"vectors\.gz, row 1: Not a gzipped file"):
        WordVectors.load_word2vec_format(path)
    with pytest.raises(ValueError, match="limit must be at least 0 or None, got -1"):
        WordVectors.load_word2vec_format(path, limit=-1)
    zeros = WordVectors(vectors.words, np.zeros((300, 99), np.float32))
    for binary in (False, True):  # the file is a fraction of what it stands for
        zeros.save_word2vec_format(path, binary=binary)
        assert path.stat().st_size < 4_000
        assert (WordVectors.load_word2vec_format(path).vectors == 0).all()
    for load in (WordVectors.load, WordVectors.load_word2vec_format):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "missing")


def test_the_first_of_equal_words_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    path.write_text("5 1\na 1\nb 2\na 3\na 4\nc 5\n")
    with pytest.warns(UserWarning, match="vectors: 2 rows left out, their words stood there before") as caught:
        vectors = WordVectors.load_word2vec_format(path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert vectors.words == ["a", "b", "c"]
    assert vectors.vectors.tolist() == [[1], [2], [5]]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("New York", "the word 'New York' contains white space"),
        ("a\n", r"the word 'a\\n' contains white space"),
        ("", "the word '' is empty"),
        ("\ud800", r"the word '\\ud800' cannot be written as UTF-8"),
    ],
)
def test_words_that_a_file_cannot_hold(tmp_path: Path, word: str, message: str) -> None:
    path = tmp_path / "vectors"
    path.write_bytes(b"old")
    for binary in (False, True):
        with pytest.raises(ValueError, match=message):
            table({"a": [1], word: [2]}).save_word2vec_format(path, binary=binary)
    for other in ("a\nb", "\ud800"):
        with pytest.raises(ValueError, match=r"the word '(a\\nb' contains a line feed|\\ud800' cannot be written)"):
            table({"a": [1], other: [2]}).save(path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    path.write_bytes(b"old")
    real, calls = formats._decimals, []

    def full(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        calls.append(values)
        if len(calls) > 1:
            raise OSError("disk is full")
        return real(values)

    monkeypatch.setattr(formats, "_BLOCK_NUMBERS", 2)
    monkeypatch.setattr(formats, "_decimals", full)
    with pytest.raises(OSError, match="disk is full"):
        table({"a": [1, 2], "b": [3, 4]}).save_word2vec_format(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_npz_that_is_broken_or_something_else(tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    vectors = table({"a": [1, 2], "b": [3, 4]}, [5, 4])
    vectors.save(path)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="vectors is no file of word vectors"):
            WordVectors.load(path)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            again = WordVectors.load(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert again.words == vectors.words
            assert bits(again.vectors) == bits(vectors.vectors)
    for arrays in ({"words": np.zeros(0, np.uint8)}, {"words": np.zeros(1, np.uint8), "vectors": np.ones(1)}):
        with path.open("wb") as file:
            np.savez(file, **arrays)
        with pytest.raises(ValueError, match="vectors is no file of word vectors: "):
            WordVectors.load(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match="vectors is no file of word vectors: "):
        WordVectors.load(path)


# ---- evaluation


@pytest.mark.parametrize("name", ["wordsim353.tsv", "simlex999.txt"])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("restrict", [None, 900])
def test_word_pairs_are_gensims(trained: Any, name: str, lower: bool, restrict: int | None) -> None:
    path = gensim_data(name)
    scores = WordVectors.from_gensim(trained).evaluate_word_pairs(path, restrict_vocab=restrict, lower=lower)
    pearson, spearman, oov = trained.evaluate_word_pairs(str(path), restrict_vocab=restrict, case_insensitive=lower)
    assert scores.pearson == pytest.approx(pearson[0], abs=1e-6)
    assert scores.spearman == pytest.approx(spearman[0], abs=1e-6)
    assert scores.oov == pytest.approx(oov / 100)
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert scores.pairs == round(len(lines) * (1 - scores.oov))
    assert 10 < scores.pairs < len(lines)


def test_word_pairs_by_hand() -> None:
    vectors = table({"x": [1, 0], "y": [0, 1], "Z": [1, 0], "w": [-1, 0], "z": [0, 9]})
    pairs = [("x", "z", 9.0), ("X", "Y", 5.0), ("x", "w", 5.0), ("y", "y", 6.0), ("x", "missing", 3.0)]
    # cosines 1, 0, -1, 1: ranks 3.5, 2, 1, 3.5; scores 9, 5, 5, 6: ranks 4, 1.5, 1.5, 3
    scores = vectors.evaluate_word_pairs(pairs)
    assert scores.spearman == pytest.approx(4 / 4.5)
    assert scores.pearson == pytest.approx(3.75 / math.sqrt(2.75 * 10.75))
    assert (scores.pairs, scores.oov) == (4, pytest.approx(0.2))
    cased = vectors.evaluate_word_pairs([*pairs, ("x", "y", 2.0)], lower=False)
    assert cased.pairs == 4  # "X" is unknown
    assert cased.pearson != pytest.approx(scores.pearson, abs=1e-3)
    assert math.isnan(vectors.evaluate_word_pairs([("x", "y", 1), ("x", "w", 1)]).pearson)
    with pytest.raises(ValueError, match="two pairs of known words or more, 1 of 2 are"):
        vectors.evaluate_word_pairs(pairs[-2:])
    with pytest.raises(ValueError, match="two pairs of known words or more, 0 of 0 are"):
        vectors.evaluate_word_pairs([])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# x\n\na\tb\t1\na b 2\n", r"pairs, line 4: expected two words and a score between tabs, got 'a b 2'"),
        (b"a\tb\t1\t2\n", "pairs, line 1: expected two words and a score"),
        (b"a\tb\thigh\n", "pairs, line 1: 'high' is no score"),
        (b"a\tb\tnan\n", "pairs, line 1: 'nan' is no score"),
        (b"a\tb\t1\na\t\xff\t1\n", "pairs, line 2: not UTF-8"),
    ],
)
def test_pairs_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "pairs"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        table({"a": [1, 0], "b": [0, 1]}).evaluate_word_pairs(path)


def analogous() -> tuple[WordVectors, list[str]]:
    """The first 2,500 lines of the real questions, and vectors of their words that answer about half of them.

    Some words have a second spelling, near by.
    """
    rng = np.random.default_rng(0)
    lines = gensim_data("questions-words.txt").read_text().splitlines()
    lines = lines[:500] + lines[9000:10000] + lines[-1000:]
    lines.insert(0, ": another kind")
    questions = [line.split() for line in lines if line[0] != ":"]
    vectors: dict[str, Any] = {}
    for question in questions:
        for word in question:
            vectors.setdefault(word, rng.standard_normal(12))
        a, b, c, d = question
        if rng.random() < 0.4:
            vectors[d] = vectors[b] + vectors[c] - vectors[a] + 0.4 * rng.standard_normal(12)
    for word in list(vectors):
        for other in (word.upper(), word.title(), word.lower()):
            if other not in vectors and rng.random() < 0.3:
                vectors[other] = vectors[word] + 0.1 * rng.standard_normal(12)
    words = rng.permutation(list(vectors)).tolist()[:-20]
    return WordVectors(words, np.array([vectors[w] for w in words], np.float32)), lines


@pytest.mark.parametrize(("lower", "restrict"), [(True, 300_000), (False, None), (True, 400)])
def test_analogies_are_gensims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lower: bool, restrict: int | None
) -> None:
    monkeypatch.setattr(evaluation, "_BLOCK_COSINES", 100_000)  # about a hundred questions
    vectors, lines = analogous()
    path = tmp_path / "questions"
    path.write_text("\n".join(lines))
    mine = vectors.evaluate_word_analogies(path, restrict_vocab=restrict, lower=lower)
    accuracy, theirs = vectors.to_gensim().evaluate_word_analogies(
        str(path), restrict_vocab=restrict, case_insensitive=lower
    )
    assert mine.accuracy == pytest.approx(accuracy)
    found = [(s.name, s.correct, s.total) for s in mine.sections]
    assert found == [(s["section"], len(s["correct"]), len(s["correct"] + s["incorrect"])) for s in theirs[:-1]]
    assert (mine.correct, mine.total) == (len(theirs[-1]["correct"]), sum(s["total"] for s in map(vars, mine.sections)))
    questions = sum(line[0] != ":" for line in lines)
    assert mine.oov == pytest.approx(1 - mine.total / questions)
    assert 0 < mine.oov < 1
    assert 0.1 < mine.accuracy < 0.9


def test_analogies_by_hand(tmp_path: Path) -> None:
    vectors = table(
        {
            "man": [1, 0],
            "woman": [1, 1],
            "king": [3, 0.1],
            "Queen": [3, 1],
            "KING": [3, 0.99],  # nearer to the answer, but a word of the question
            "queen": [-1, 0],  # a rarer spelling with another vector
            "apple": [0, -1],
        }
    )
    path = tmp_path / "questions"
    path.write_text(
        ": royal family\nman woman king queen\nMAN WOMAN KING QUEEN\nman woman king apple\n"
        ": fruit\n\nman woman pear apple\n: none\n"
    )
    scores = vectors.evaluate_word_analogies(path)
    assert scores.sections == (
        AnalogySection("royal family", 2, 3),
        AnalogySection("fruit", 0, 0),
        AnalogySection("none", 0, 0),
    )
    assert (scores.accuracy, scores.correct, scores.total, scores.oov) == (pytest.approx(2 / 3), 2, 3, 0.25)
    assert scores.sections[0].accuracy == pytest.approx(2 / 3)
    assert scores.sections[1].accuracy == 0
    cased = vectors.evaluate_word_analogies(path, lower=False)
    assert (cased.correct, cased.total, cased.oov) == (0, 2, 0.5)
    few = vectors.evaluate_word_analogies(path, restrict_vocab=3)
    assert (few.correct, few.total, few.accuracy, few.oov) == (0, 0, 0.0, 1.0)
    nothing = WordVectors([], np.zeros((0, 2), np.float32)).evaluate_word_analogies(path)
    assert (nothing.total, nothing.oov) == (0, 1.0)
    path.write_text(": x\na b c a\n")  # there is no other word
    assert table({"a": [1, 0], "b": [1, 1], "c": [0, 1]}).evaluate_word_analogies(path).correct == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b": s\na b c d\na b c\n", "questions, line 3: expected four words, got 'a b c'"),
        (b": s\na b c d e\n", "questions, line 2: expected four words"),
        (b"\na b c d\n", "questions, line 2: expected a section's name"),
        (b": s\na b c \xff\n", "questions, line 2: not UTF-8"),
        (b": s\n", "questions has no questions"),
    ],
)
def test_questions_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "questions"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        table({"a": [1, 0], "b": [0, 1]}).evaluate_word_analogies(path)


# ---- to gensim and back

MODELS: list[dict[str, Any]] = [
    {"ns_exponent": 0.5, "negative": 3, "window": 2, "sample": 1e-4, "min_alpha": 0.01, "epochs": 2},
    {"model": "cbow", "alpha": 0.05, "shrink_windows": False},
    {"model": "cbow", "cbow_mode": "sum", "sample": 0},
    {"hierarchical": True, "max_vocab": 500},
    {"model": "cbow", "hierarchical": True, "seed": 5},
]
each_model = pytest.mark.parametrize("options", MODELS, ids=str)


def fitted(text: list[list[str]], **options: Any) -> Word2Vec:
    return Word2Vec(**({"vector_size": 8, "min_count": 2, "epochs": 1, "tokens_per_step": 256} | options)).fit(text)


def theirs_of(options: dict[str, Any]) -> Any:
    """gensim's own model with these options, untrained."""
    from gensim.models import Word2Vec as Theirs

    names = {"shrink_windows", "sample", "ns_exponent", "window", "negative", "alpha", "min_alpha", "seed", "epochs"}
    arguments = {"epochs": 1} | {k: v for k, v in options.items() if k in names}
    if options.get("hierarchical"):
        arguments |= {"hs": 1, "negative": 0}
    arguments |= {"sg": int(options.get("model") != "cbow"), "cbow_mean": int(options.get("cbow_mode") != "sum")}
    return Theirs(vector_size=8, min_count=2, max_final_vocab=options.get("max_vocab"), **arguments)


def train(model: Any, text: list[list[str]]) -> list[list[int]]:
    """All its epochs, and the bits of what comes out."""
    model.workers = 1
    model.train(text, total_examples=len(text), epochs=model.epochs)
    out = model.syn1[: len(model.wv) - 1] if model.hs else model.syn1neg
    return [*bits(model.wv.vectors), *bits(out)]


@each_model
def test_gensim_trains_our_model_as_its_own(few: list[list[str]], options: dict[str, Any]) -> None:
    # gensim's max_final_vocab drops all words of the first count that does not fit: its vocabulary is the smaller one
    options = {k: v for k, v in options.items() if k != "max_vocab"}
    mine, own = fitted(few, **options), theirs_of(options)
    converted = interop.to_gensim(mine)
    own.build_vocab(few)
    assert mine.in_weight is not None
    assert mine.out_weight is not None
    own.wv.vectors = mine.in_weight.numpy().copy()
    if own.hs:
        own.syn1[:-1] = mine.out_weight.numpy()
    else:
        own.syn1neg = mine.out_weight.numpy().copy()
    before = mine.in_weight.clone()
    assert converted.wv.index_to_key == own.wv.index_to_key
    for name in ("alpha", "min_alpha", "epochs", "seed", "sg", "hs", "negative", "vector_size", "min_count", "sample"):
        assert getattr(converted, name) == getattr(own, name), name
    assert train(converted, few) == train(own, few)
    assert torch.equal(mine.in_weight, before)
    assert bits(converted.wv.vectors) != bits(before.numpy())
    if not own.hs:
        assert converted.predict_output_word(["police", "fire"]) == own.predict_output_word(["police", "fire"])


@each_model
def test_a_model_from_gensim_and_back(few: list[list[str]], options: dict[str, Any]) -> None:
    theirs = theirs_of(options)
    theirs.build_vocab(few)
    train(theirs, few)
    mine = interop.from_gensim(theirs, Word2Vec)
    for name, value in {"vector_size": 8, "min_count": 2, "epochs": 1, **options}.items():
        assert getattr(mine.options, name) == value, name
    assert mine.vocabulary.words == theirs.wv.index_to_key
    assert mine.out_weight.shape == (len(theirs.wv) - bool(options.get("hierarchical")), 8)
    assert mine.vectors.most_similar("police")[0][0] == theirs.wv.most_similar("police")[0][0]
    again, before = interop.to_gensim(mine), [mine.in_weight.clone(), mine.out_weight.clone()]
    again.random = theirs.random  # where its draws stand
    state = theirs.random.get_state()
    expected = train(theirs, few)
    again.random.set_state(state)
    assert train(again, few) == expected
    assert torch.equal(mine.in_weight, before[0])
    assert torch.equal(mine.out_weight, before[1])
    mine.fit(few)
    assert bool(mine.in_weight.isfinite().all())
    assert not torch.equal(mine.in_weight, before[0])


def test_our_trained_model_keeps_rare_words_and_order(few: list[list[str]]) -> None:
    words = Vocabulary(["fire", "police", "the", "of"], np.array([3, 3, 3, 1]))
    model = Word2Vec(vector_size=4, min_count=3, max_vocab=2, epochs=1)
    model.fit(few, vocabulary=words)
    theirs = interop.to_gensim(model)
    assert theirs.wv.index_to_key == words.words
    assert [theirs.wv.get_vecattr(w, "count") for w in words.words] == [3, 3, 3, 1]
    assert theirs.corpus_total_words == 10
    assert (theirs.min_count, theirs.max_final_vocab, theirs.sorted_vocab) == (3, 2, 1)
    with pytest.raises(RuntimeError, match="not fitted yet"):
        interop.to_gensim(Word2Vec())


def test_models_that_cannot_come_from_gensim(few: list[list[str]]) -> None:
    from gensim.models import FastText
    from gensim.models import Word2Vec as Theirs

    def changed(change: Callable[[Any], Any], **options: Any) -> Any:
        model = Theirs(vector_size=4, min_count=2, **options)
        model.build_vocab(few)
        change(model)
        return model

    cases = [
        (changed(lambda m: None, hs=1), ValueError, "this one hs=1 and negative=5"),
        (changed(lambda m: None, negative=0), ValueError, "this one hs=0 and negative=0"),
        (changed(lambda m: None, null_word=1), ValueError, "null word"),
        (changed(lambda m: m.wv.expandos.pop("count")), ValueError, "no vocabulary with counts"),
        (changed(lambda m: m.wv.set_vecattr(0, "count", 1), hs=1, negative=0), ValueError, "the path to '.*' in the"),
        (Theirs(vector_size=4), ValueError, "no vocabulary with counts"),
        (FastText(vector_size=4), ValueError, "a FastText has vectors of more than words"),
        (changed(lambda m: None).wv, TypeError, "expected a gensim Word2Vec, got KeyedVectors"),
    ]
    for model, error, message in cases:
        with pytest.raises(error, match=message):
            interop.from_gensim(model, Word2Vec)


def test_vectors_to_gensim_and_back(trained: Any) -> None:
    from gensim.models import KeyedVectors

    vectors = WordVectors.from_gensim(trained)
    assert vectors.counts is not None
    theirs = vectors.to_gensim()
    assert theirs.index_to_key == trained.index_to_key
    assert bits(theirs.vectors) == bits(trained.vectors)
    assert theirs.get_vecattr("police", "count") == trained.get_vecattr("police", "count")
    theirs.vectors[:] = 0
    theirs.expandos["count"][:] = 0
    assert bits(vectors.vectors) == bits(trained.vectors)
    assert vectors.counts.min() > 0
    alone = KeyedVectors(2)
    alone.add_vectors(["a"], np.ones((1, 2)))
    assert WordVectors.from_gensim(alone).counts is None
    alone.add_vectors([7], np.ones((1, 2)))
    with pytest.raises(ValueError, match="keys must be words, one is 7"):
        WordVectors.from_gensim(alone)
    with pytest.raises(TypeError, match=r"expected a gensim KeyedVectors, as in model\.wv, got dict"):
        WordVectors.from_gensim({})


def test_without_gensim(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gensim", "gensim.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install gensim"):
        table({"a": [1]}).to_gensim()
