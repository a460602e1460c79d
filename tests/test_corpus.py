"""Text as numbers: counting and encoding beside gensim's and plain Python's, files, broken input, killed runs."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tilesmith.nn.words import Corpus, Vocabulary, corpus

from examples import corpora
from examples.corpora import gensim_data, sentences


@pytest.fixture(scope="module")
def lee() -> list[list[str]]:
    """Three hundred news of 2000 and 2001: 60 thousand words."""
    return list(sentences(gensim_data("lee_background.cor").read_text(encoding="utf-8")))


def decoded(c: Corpus) -> list[list[str]]:
    pairs = zip(c.starts[:-1], c.starts[1:], strict=True)
    return [[c.words[i] for i in c.tokens[a:b].tolist()] for a, b in pairs]


def test_words_counts_and_thinning_are_gensims(lee: list[list[str]]) -> None:
    from gensim.models import Word2Vec as Theirs

    text = Corpus.of(lee)
    for sample in (1e-3, 1e-5, 20, 0):
        model = Theirs(min_count=3, sample=sample)
        model.build_vocab(lee)
        vocabulary = Vocabulary.of(text.words, text.counts, min_count=3)
        assert vocabulary.words == model.wv.index_to_key
        assert vocabulary.counts.tolist() == [model.wv.get_vecattr(w, "count") for w in vocabulary.words]
        keep = [model.wv.get_vecattr(w, "sample_int") / (2**32 - 1) for w in vocabulary.words]
        np.testing.assert_allclose(vocabulary.keep_probabilities(sample), keep, atol=1e-8)
    limited = Vocabulary.of(text.words, text.counts, min_count=3, max_vocab=10)
    assert limited.words == vocabulary.words[:10]


WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=3)


@given(
    text=st.lists(st.lists(WORD, max_size=6), max_size=30),
    block=st.sampled_from([1, 2, 7, 64, 1 << 20]),
    separator=st.sampled_from([" ", "\t", "  \r", "\x0b"]),
    last=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_encoding_is_what_plain_python_does(
    tmp_path_factory: pytest.TempPathFactory, text: list[list[str]], block: int, separator: str, last: bool
) -> None:
    """In blocks of any size, in memory and in files, with and without a line's end at the end."""
    words = list(dict.fromkeys(word for sentence in text for word in sentence))
    counts = Counter(word for sentence in text for word in sentence)
    folder = tmp_path_factory.mktemp("text")
    path = folder / "text.txt"
    content = "\n".join(separator.join(s) for s in text) + "\n" * (last and bool(text))
    path.write_text(content, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_CHUNK_BYTES", block)
        patch.setattr(corpus, "_CHUNK_SENTENCES", block)
        patch.setattr(corpus, "_CHUNK_TOKENS", block)
        found = [
            Corpus.of(text),
            Corpus.of(s for s in text),
            Corpus.of(text, cache=folder / "cache"),
            Corpus.of(path),
            Corpus.of(path, cache=folder / "cache"),
            Corpus.of(path, cache=folder / "cache"),
        ]
        for c in found:
            assert c.words == words
            assert c.counts.tolist() == [counts[word] for word in words]
            assert [s for s in decoded(c) if s] == [s for s in text if s]
            assert c.tokens.dtype == np.int32
        assert found[3].digest == found[4].digest == found[5].digest
        assert found[0].digest == found[1].digest == found[2].digest


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_a_last_line_may_end_in_white_space(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_CHUNK_BYTES", block)
    for end in ("", " ", "\n", " \n", "\n ", "\t\r"):
        (tmp_path / "text.txt").write_bytes(b"a b\n\nc d" + end.encode())
        assert [s for s in decoded(Corpus.of(tmp_path / "text.txt")) if s] == [["a", "b"], ["c", "d"]], repr(end)


def test_compressed_text(tmp_path: Path, lee: list[list[str]]) -> None:
    plain = Corpus.of(lee)
    text = "".join(" ".join(s) + "\r\n" for s in lee).encode()
    for name, compressed in (("a.gz", gzip.compress(text)), ("a.bz2", bz2.compress(text)), ("a.txt", text)):
        (tmp_path / name).write_bytes(compressed)
        for cache in (None, tmp_path / "cache"):
            found = Corpus.of(tmp_path / name, cache=cache)
            assert found.words == plain.words
            assert np.array_equal(found.tokens, plain.tokens)
            assert np.array_equal(found.starts, plain.starts)
            assert found.digest == plain.digest


def test_bad_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"good words\nand b\xffd ones\n")
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(ValueError, match=r"text\.txt, line 2, byte 5: not UTF-8"):
            Corpus.of(path, cache=cache)
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(TypeError, match="not a string: split it first"):
        Corpus.of(["one string", "and another"])
    with pytest.raises(TypeError, match="words are strings, got 3 of int"):
        Corpus.of([["a", 3]])
    with pytest.raises(TypeError, match="a sentence is a sequence of words or ids, got 5"):
        Corpus.of([5, 6])
    with pytest.raises(TypeError, match="a sentence is a sequence of words or ids, got 7"):
        Corpus.of([["a"], 7])
    with pytest.raises(ValueError, match="sentence 2, position 0: id -1"):
        Corpus.of([[], [], [-1]])
    with pytest.raises(FileNotFoundError):
        Corpus.of(tmp_path / "missing.txt")
    with pytest.raises(ValueError, match="the corpus has no words"):
        Vocabulary.of([], [])
    message = r"no word is seen 5 times \(min_count\): the most frequent, 'a', is seen 2 times"
    with pytest.raises(ValueError, match=message):
        Vocabulary.of(["a", "b"], [2, 1])
    with pytest.raises(ValueError, match="2 words and 1 counts"):
        Vocabulary(["a", "b"], np.array([1]))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda s: np.array(s, np.uint16)])
def test_ids(kind: Any) -> None:
    ids = [kind([0, 2, 2]), kind([5])]
    found = Corpus.of(ids)
    assert found.words == ["0", "2", "5"]
    assert found.unnamed
    assert found.counts.tolist() == [1, 2, 1]
    assert decoded(found) == [["0", "2", "2"], ["5"]]
    named = Corpus.of(ids, words=list("abcdef"))
    assert named.words == list("abcdef")
    assert not named.unnamed
    assert decoded(named) == [["a", "c", "c"], ["f"]]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[0, 1], [1, 3]], ValueError, "sentence 1, position 1: id 3 is not from 0 to 2"),
        ([[0, -1]], ValueError, "sentence 0, position 1: id -1"),
        ([[0.5]], TypeError, "sentence 0 is of float64, ids are integers"),
        ([[[0]]], ValueError, "sentence 0 has 2 dimensions"),
        ([[0, 2**33]], ValueError, f"id {2**33}"),
    ],
)
def test_bad_ids(ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Corpus.of(ids, words=["a", "b", "c"])


# ---- files of numbers


def test_a_file_is_encoded_once_and_found_by_its_content(
    tmp_path: Path, lee: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    path.write_text("".join(" ".join(s) + "\n" for s in lee), encoding="utf-8")
    first = Corpus.of(path, cache=cache)
    assert isinstance(first.tokens, np.memmap)
    assert len(list(cache.iterdir())) == 1
    moved = path.rename(tmp_path / "other.txt")
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_lines", lambda path: pytest.fail("encoded again"))
        again = Corpus.of(moved, cache=cache)
    assert np.array_equal(first.tokens, again.tokens)
    with moved.open("a") as file:
        file.write("one more line\n")
    assert len(Corpus.of(moved, cache=cache).tokens) == len(first.tokens) + 3
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(corpus, "_LARGE_TEXT", 1000)
    monkeypatch.setenv("TILESMITH_CACHE", str(tmp_path / "large"))
    assert isinstance(Corpus.of(moved).tokens, np.memmap)
    assert len(list((tmp_path / "large" / "corpora").iterdir())) == 1


@pytest.mark.parametrize("harm", ["about.json", "words.json", "tokens.i32", "short", "future"])
def test_a_harmed_cache_is_said_and_made_again(tmp_path: Path, harm: str) -> None:
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    path.write_text("a b c\nb c\n")
    Corpus.of(path, cache=cache)
    (folder,) = cache.iterdir()
    if harm == "short":
        (folder / "tokens.i32").write_bytes(b"\0" * 8)
    elif harm == "future":
        about = json.loads((folder / "about.json").read_text())
        (folder / "about.json").write_text(json.dumps({**about, "format": 99}))
    else:
        (folder / harm).unlink()
    with pytest.warns(UserWarning, match="is not what was written there"):
        found = Corpus.of(path, cache=cache)
    assert decoded(found) == [["a", "b", "c"], ["b", "c"]]


def test_a_harmed_cache_of_sentences_is_made_again_too(tmp_path: Path) -> None:
    text = [["a", "b", "c"], ["b", "c"]]
    for harm in ("tokens.i32", "about.json"):
        Corpus.of(text, cache=tmp_path)
        (folder,) = tmp_path.iterdir()
        (folder / harm).write_bytes((folder / harm).read_bytes()[:4])
        with pytest.warns(UserWarning, match="is not what was written there"):
            assert decoded(Corpus.of(text, cache=tmp_path)) == text


def test_long_sentences_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not thousands of them at once: a generator is at most a few sentences ahead of the file."""
    monkeypatch.setattr(corpus, "_CHUNK_TOKENS", 1000)
    sizes = []

    def text() -> Any:
        for i in range(20):
            sizes.append(sum(p.stat().st_size for p in tmp_path.glob(".*/tokens.i32")))
            yield [f"w{j % 50}" for j in range(i, i + 3000)]

    assert len(Corpus.of(text(), cache=tmp_path).tokens) == 60_000
    assert sizes[-1] > 4 * 3000 * 15


_ENCODE = """
import sys
from tilesmith.nn.words import Corpus, corpus
corpus._CHUNK_BYTES = 1000
Corpus.of(sys.argv[1], cache=sys.argv[2])
"""


def large_text(path: Path, lines: int) -> None:
    path.write_text("".join(" ".join(f"w{(i * 7 + j) % 5000}" for j in range(20)) + "\n" for i in range(lines)))


def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    """The process may write no file of more than 50 kB; the numbers need 800."""
    large_text(tmp_path / "text.txt", 10_000)
    (tmp_path / "cache").mkdir()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    arguments = [sys.executable, "-B", "-c", _ENCODE, str(tmp_path / "text.txt"), str(tmp_path / "cache")]
    result = subprocess.run(arguments, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "encoding" in result.stderr
    assert "File too large; free some space there or choose another folder with cache=" in result.stderr
    assert not list((tmp_path / "cache").iterdir())


def test_a_killed_run_loses_nothing_and_the_next_cleans_up(tmp_path: Path) -> None:
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    large_text(path, 60_000)
    process = subprocess.Popen([sys.executable, "-c", _ENCODE, str(path), str(cache)])
    try:
        deadline = time.monotonic() + 60
        while not list(cache.glob(".*/tokens.i32")):
            assert process.poll() is None, "done before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [p.name.startswith(".") for p in cache.iterdir()] == [True]
    found = Corpus.of(path, cache=cache)
    assert len(found.tokens) == 60_000 * 20
    assert [p.name.startswith(".") for p in cache.iterdir()] == [False]


def test_two_processes_encode_the_same_text_at_once(tmp_path: Path) -> None:
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    large_text(path, 5_000)
    processes = [subprocess.Popen([sys.executable, "-c", _ENCODE, str(path), str(cache)]) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len(list(cache.iterdir())) == 1
    assert len(Corpus.of(path, cache=cache).tokens) == 100_000


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "text.txt").write_text("a b\n")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        Corpus.of(tmp_path / "text.txt", cache=tmp_path / "file" / "below")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(PermissionError):
            Corpus.of(tmp_path / "text.txt", cache=tmp_path / "locked")


# ---- the texts that Word2Vec is judged on


def test_texts_are_prepared_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpora.sentences("Mr. Smith's DOG; it barked -- loudly!\n\nToo short.\n\nIt's 5 o'clock in Zürich now?")
    assert [" ".join(s) for s in text] == ["it barked loudly", "it's o'clock in z rich now"]
    path = corpora.prepare("lee", tmp_path)
    found = Corpus.of(path)
    assert (len(found.tokens), len(found.starts) - 1) == (59_576, 2_622)
    monkeypatch.setattr(corpora, "sentences", lambda text: pytest.fail("prepared again"))
    assert corpora.prepare("lee", tmp_path) == path


def test_a_text_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        corpora.Unavailable, match="apt-get is not on this machine, the package bible-kjv-text cannot be"
    ):
        corpora.prepare("kjv", tmp_path)
    lines: list[str] = []
    path = corpora.prepare_all(tmp_path, lines.append)
    assert {p.name for p in tmp_path.glob("*.txt")} == {"lee.txt", "enwiki.txt", "all.txt"}
    assert [line.partition(":")[0] for line in lines] == list(corpora.TEXTS)
    assert path.read_bytes() == (tmp_path / "lee.txt").read_bytes() + (tmp_path / "enwiki.txt").read_bytes()
    assert not list(tmp_path.glob(".*"))
