"""Text as numbers: read and encoded in one pass, in memory or in files that are mapped into it."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ._files import unfinished_name

_FORMAT = 1
_CHUNK_BYTES = 1 << 22
_CHUNK_SENTENCES = 1 << 14
_CHUNK_TOKENS = 1 << 22
_LARGE_TEXT = 1 << 30  # bytes; from here on a file's ids are kept in files too, unless the caller says where
_WHITE_SPACE = (b"\n", b" ", b"\t", b"\r", b"\x0b", b"\x0c")

Source = str | os.PathLike[str] | Iterable[Any]


def cache_folder() -> Path:
    """Where large texts are kept encoded: ``$TILESMITH_CACHE``, else ``tilesmith`` in the user's cache folder."""
    given = os.environ.get("TILESMITH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(given) if given else Path(base) / "tilesmith") / "corpora"


@dataclass(frozen=True)
class Corpus:
    """Sentences as numbers, one behind the other. A word's number is its place in ``words``.

    Attributes:
        tokens: int32 ``[n]``, perhaps a memory map.
        starts: int64 ``[s + 1]``: where each sentence begins, and n.
        words: every word of the text, in the order in which they first appear.
        unnamed: the text was ids without words, which stand here as text.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    words: list[str]
    unnamed: bool = False

    @staticmethod
    def of(
        source: Source, *, cache: str | os.PathLike[str] | None = None, words: Sequence[str] | None = None
    ) -> Corpus:
        """Encodes a text.

        Args:
            source: path of a UTF-8 text with a sentence a line and words between ASCII white space (also .gz, .bz2); or
                sentences: each a sequence of words, or of ids as integers (lists, arrays, tensors). A generator is read
                once.
            cache: a folder. The numbers are written to files there and mapped into memory, so the text may be larger
                than it; a file that was encoded before is found again by its content. ``None``: in memory; but a file
                of 1 GiB or more in :func:`cache_folder`.
            words: of sentences of ids, the word that each id stands for; ``None``: the id as text.

        Raises:
            FileNotFoundError: no file is there. OSError: the disk is full; nothing is left behind.
            ValueError: the file is not UTF-8 (says where); an id is out of range (says which).
            TypeError: a sentence is a string, or has words that are none.
        """
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            if cache is None and path.stat().st_size >= _LARGE_TEXT:
                cache = cache_folder()
            return _encoded_file(path, None if cache is None else Path(cache))
        sentences, seen = iter(source), []
        for sentence in sentences:
            seen.append(sentence)
            if _length(sentence):
                break
        again = chain(seen, sentences)
        is_ids = bool(seen) and _is_ids(seen[-1])
        pieces = _ids(again, words) if is_ids else _words(again)
        if cache is None:
            return replace(pieces.into(_InMemory()), unnamed=is_ids and words is None)
        folder = Path(cache)
        with _unfinished(folder / "sentences") as unfinished:
            corpus = _into_files(pieces, unfinished, "sentences")
            return replace(_finished(unfinished, folder / corpus.digest), unnamed=is_ids and words is None)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """int64 ``[len(words)]``: how often each word is there."""
        counts = np.zeros(len(self.words), np.int64)
        for first in range(0, len(self.tokens), _CHUNK_TOKENS):
            counts += np.bincount(self.tokens[first : first + _CHUNK_TOKENS], minlength=len(counts))
        return counts

    @cached_property
    def digest(self) -> str:
        """A fingerprint of the text: equal for equal sentences, wherever they came from."""
        digest = blake2b(digest_size=16)
        for array in (self.tokens, self.starts):
            for first in range(0, len(array), _CHUNK_TOKENS):
                digest.update(np.ascontiguousarray(array[first : first + _CHUNK_TOKENS]).data)
        digest.update(json.dumps(self.words).encode())
        return digest.hexdigest()


# ---- where the numbers go


class _InMemory:
    def __init__(self) -> None:
        self._tokens, self._ends = [np.empty(0, np.int32)], [np.zeros(1, np.int64)]

    def add(self, tokens: NDArray[np.int32], ends: NDArray[np.int64]) -> None:
        self._tokens.append(tokens)
        self._ends.append(ends)

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        return np.concatenate(self._tokens), np.concatenate(self._ends)


class _InFiles:
    """Of a folder: ``tokens.i32``, ``starts.i64``, and when all is there ``words.json`` and ``about.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = [(folder / name).open("wb") for name in ("tokens.i32", "starts.i64")]
        self._files[1].write(np.zeros(1, np.int64).data)

    def add(self, tokens: NDArray[np.int32], ends: NDArray[np.int64]) -> None:
        self._files[0].write(tokens.data)
        self._files[1].write(ends.data)

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        return _mapped(self.folder)


def _mapped(folder: Path) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    def one(name: str, dtype: type[Any]) -> NDArray[Any]:
        path = folder / name
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)  # nothing cannot be mapped

    return one("tokens.i32", np.int32), one("starts.i64", np.int64)


def _encoded_file(path: Path, cache: Path | None) -> Corpus:
    if cache is None:
        return _lines(path).into(_InMemory())
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    key = digest.hexdigest() + path.suffix.replace(".", "-") * (path.suffix in (".gz", ".bz2"))
    if (cache / key).exists() and (corpus := _still_there(cache / key)):
        return corpus
    with _unfinished(cache / key) as unfinished:
        _into_files(_lines(path), unfinished, str(path))
        return _finished(unfinished, cache / key)


def _still_there(folder: Path) -> Corpus | None:
    """What is in the folder; ``None``, and no folder any more, if that is not what was written there."""
    try:
        return _opened_folder(folder)
    except (ValueError, KeyError, TypeError, OSError) as error:
        warnings.warn(f"{folder} is not what was written there ({error}): encoding it again", stacklevel=4)
        shutil.rmtree(folder)
        return None


def _into_files(pieces: _Pieces, folder: Path, what: str) -> Corpus:
    try:
        corpus = pieces.into(_InFiles(folder))
        (folder / "words.json").write_text(json.dumps(corpus.words), encoding="ascii")
        about = {"format": _FORMAT, "tokens": len(corpus.tokens), "sentences": len(corpus.starts) - 1}
        about["words"] = len(corpus.words)
        (folder / "about.json").write_text(json.dumps({**about, "digest": corpus.digest}))
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        hint = "free some space there or choose another folder with cache="
        raise OSError(error.errno, f"encoding {what}: {error.strerror}; {hint}", str(folder.parent)) from error
    return corpus


def _opened_folder(folder: Path) -> Corpus:
    about = json.loads((folder / "about.json").read_text())
    if about["format"] != _FORMAT:
        raise ValueError(f"format {about['format']}, this version reads {_FORMAT}")
    corpus = Corpus(*_mapped(folder), json.loads((folder / "words.json").read_text(encoding="ascii")))
    for name, found in (
        ("tokens", len(corpus.tokens)),
        ("sentences", len(corpus.starts) - 1),
        ("words", len(corpus.words)),
    ):
        if found != about[name]:
            raise ValueError(f"{found} {name} instead of {about[name]}")
    corpus.__dict__["digest"] = about["digest"]
    return corpus


@contextmanager
def _unfinished(final: Path) -> Iterator[Path]:
    """A folder that is gone at the end, unless it was renamed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = unfinished_name(final)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _finished(unfinished: Path, final: Path) -> Corpus:
    """The folder under its final name, or the one of another process that was faster: it holds the same."""
    if final.exists() and (corpus := _still_there(final)):
        return corpus
    try:
        unfinished.rename(final)
    except OSError:
        if not (final / "about.json").exists():
            raise
    return _opened_folder(final)


# ---- where they come from


class _Pieces:
    """Numbers of a text, some at a time, and at the end its words.

    ``parts``: pairs of tokens int32 and the places, counted through the text, where sentences end.
    """

    def __init__(self, parts: Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]], words: Any) -> None:
        self._parts, self._words = parts, words

    def into(self, target: _InMemory | _InFiles) -> Corpus:
        for tokens, ends in self._parts:
            target.add(tokens, ends)
        return Corpus(*target.arrays(), self._words())


class _Numbers(dict[Any, int]):
    """Gives each new word the next number."""

    def __missing__(self, word: Any) -> int:
        number = self[word] = len(self)
        return number


def _numbered(pieces: Iterator[Sequence[Sequence[Any]]], numbers: _Numbers) -> Iterator[tuple[Any, Any]]:
    """``pieces``: lists of sentences, of each list the last goes on in the next list."""
    position, number = 0, numbers.__getitem__
    for sentences in pieces:
        tokens = np.fromiter(map(number, chain.from_iterable(sentences)), np.int32)
        ends = position + np.cumsum(np.fromiter(map(len, sentences[:-1]), np.int64, len(sentences) - 1))
        position += len(tokens)
        yield tokens, ends


def _lines(path: Path) -> _Pieces:
    """The words of a file, which are decoded when all of them are known."""
    numbers = _Numbers()

    def pieces() -> Iterator[list[list[bytes]]]:
        rest, ended = b"", True
        with _opened(path) as file:
            while block := file.read(_CHUNK_BYTES):
                block = rest + block
                end = block.rfind(b"\n") + 1 or max(block.rfind(c) for c in _WHITE_SPACE) + 1
                rest, lines = block[end:], block[:end].split(b"\n")
                ended = not lines[-1]
                yield [line.split() for line in lines]
        if rest or not ended:
            yield [rest.split(), []]

    def words() -> list[str]:
        try:
            return [word.decode("utf-8") for word in numbers]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, {_not_utf8(path)}: not UTF-8") from error

    return _Pieces(_numbered(pieces(), numbers), words)


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return bz2.open(path, "rb") if path.suffix == ".bz2" else path.open("rb")


def _not_utf8(path: Path) -> str:
    """Where a text is not UTF-8."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start}"
    return "somewhere"  # cut in a word that is right as a whole: cannot be


def _words(source: Iterator[Sequence[str]]) -> _Pieces:
    numbers = _Numbers()

    def pieces() -> Iterator[list[Sequence[str]]]:
        for some in _some(source):
            if any(isinstance(sentence, str | bytes) for sentence in some):
                raise TypeError("a sentence is a sequence of words, not a string: split it first")
            yield [*some, []]

    def words() -> list[str]:
        for word in numbers:
            if not isinstance(word, str):
                raise TypeError(f"words are strings, got {word!r} of {type(word).__name__}")
        return list(numbers)

    return _Pieces(_numbered(pieces(), numbers), words)


def _length(sentence: Any) -> int:
    if not hasattr(sentence, "__len__"):
        raise TypeError(f"a sentence is a sequence of words or ids, got {sentence!r}")
    return len(sentence)


def _some(source: Iterator[Any]) -> Iterator[list[Any]]:
    """Sentences, some at a time: as many as there may be tokens at once."""
    some: list[Any] = []
    tokens = 0
    for sentence in source:
        some.append(sentence)
        tokens += _length(sentence)
        if len(some) >= _CHUNK_SENTENCES or tokens >= _CHUNK_TOKENS:
            yield some
            some, tokens = [], 0
    if some:
        yield some


def _is_ids(sentence: Any) -> bool:
    return not isinstance(sentence, str | bytes) and len(sentence) > 0 and not isinstance(sentence[0], str | bytes)


def _ids(source: Iterator[Any], words: Sequence[str] | None) -> _Pieces:
    """Without ``words``, ids are numbered in the order in which they appear, as words are: they may be any numbers."""
    numbers = _Numbers()
    limit = np.iinfo(np.int64).max if words is None else len(words) - 1

    def parts() -> Iterator[tuple[Any, Any]]:
        position = first = 0
        for some in _some(source):
            arrays = [_checked(np.asarray(s), first + i, limit) for i, s in enumerate(some)]
            ids = np.concatenate(arrays)
            if words is None:
                ids = np.fromiter(map(numbers.__getitem__, ids.tolist()), np.int32, len(ids))
            yield ids.astype(np.int32), position + np.cumsum([len(a) for a in arrays])
            position, first = position + len(ids), first + len(some)

    return _Pieces(parts(), lambda: [str(i) for i in numbers] if words is None else list(words))


def _checked(sentence: NDArray[Any], number: int, limit: int) -> NDArray[np.int64]:
    if sentence.ndim != 1:
        raise ValueError(f"sentence {number} has {sentence.ndim} dimensions, it must have one")
    if len(sentence) and not np.issubdtype(sentence.dtype, np.integer):
        raise TypeError(f"sentence {number} is of {sentence.dtype}, ids are integers")
    wrong = np.flatnonzero((sentence < 0) | (sentence > limit))
    if len(wrong):
        place = wrong[0]
        raise ValueError(f"sentence {number}, position {place}: id {sentence[place]} is not from 0 to {limit}")
    return sentence.astype(np.int64)
