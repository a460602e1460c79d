"""Files of word vectors: word2vec's text and binary formats, and .npz."""

from __future__ import annotations

import gzip
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from ._files import atomic_file

AnyPath = str | os.PathLike[str]
Table = tuple[list[str], NDArray[np.float32], NDArray[np.int64] | None]  # words, vectors [V, d], counts [V]
Rows = Iterator[tuple[bytes, NDArray[np.floating]]]

_CHUNK_BYTES = 1 << 20
_BLOCK_NUMBERS = 10_000  # made text at a time, in the cache
_POWERS = 10.0 ** np.arange(14)
_MOST_DEFLATED = 1032  # bytes that one byte of a .gz can stand for
_SIZES = re.compile(rb"\s*(\d{1,15})\s+(\d{1,15})\s*")
_COUNT = re.compile(rb"\d{1,18}")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


# ---- word2vec's formats: a line "V d"; then, V times, a word, a space and d numbers


def write_word2vec(
    path: AnyPath,
    words: Sequence[str],
    vectors: NDArray[np.float32],
    counts: NDArray[np.int64] | None,
    *,
    binary: bool,
    vocab_path: AnyPath | None,
) -> None:
    """See :meth:`WordVectors.save_word2vec_format`."""
    if vocab_path is not None and counts is None:
        raise ValueError(f"there are no counts to write to {os.fspath(vocab_path)}")
    encoded = [_encoded(word) for word in words]
    for word, as_bytes in zip(words, encoded, strict=True):
        if as_bytes.split() != [as_bytes]:
            what = "contains white space" if word else "is empty"
            raise ValueError(f"the word {word!r} {what}: word2vec's formats cannot hold it")
    with _written(path) as file:
        file.write(b"%d %d\n" % vectors.shape)
        if binary:
            rows = (vector.tobytes() for vector in vectors.astype("<f4", copy=False))
            file.writelines(b"%b %b" % row for row in zip(encoded, rows, strict=True))
        else:
            file.writelines(b"%b %b\n" % row for row in zip(encoded, _decimal_rows(vectors), strict=True))
    if vocab_path is not None and counts is not None:
        with _written(vocab_path) as file:
            file.writelines(b"%b %d\n" % row for row in zip(encoded, counts.tolist(), strict=True))


def _decimal_rows(vectors: NDArray[np.float32]) -> Iterator[bytes]:
    """Each row's numbers, a space between them: the shortest decimals that give the same float32 again."""
    block = max(1, _BLOCK_NUMBERS // vectors.shape[1])
    for first in range(0, len(vectors), block):
        cells = _decimals(vectors[first : first + block].ravel())
        cells[vectors.shape[1] - 1 :: vectors.shape[1], -1] = ord("\n")
        yield from cells.tobytes().translate(None, b"\0").splitlines()


def _decimals(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """``[n, 16]``: characters of each number as str writes a float32, a space at the end, 0 where there is none.

    Usual numbers all at once, in a sixth of the time that str takes; the others by str.
    """
    magnitude = np.abs(values)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        exact = magnitude.astype(np.float64)
    usual = (exact >= 1e-4) & (exact < 10)
    exact = np.where(usual, exact, 1)
    exponent = np.floor(np.log10(exact)).astype(np.int64)
    decimal = np.zeros(len(values))
    for digits in (9, 8, 7, 6):  # what holds with fewer has zeros at its end
        scale = _POWERS[digits - 1 - exponent]
        rounded = np.rint(exact * scale) / scale
        decimal = np.where(rounded.astype(np.float32) == magnitude, rounded, decimal)
    fixed = np.rint(decimal * 1e12).astype(np.int64)
    one, a, b, c = fixed // 10**12, fixed // 10**8 % 10_000, fixed // 10**4 % 10_000, fixed % 10_000
    whole, cut = _quads()
    quads = np.stack([np.where((b == 0) & (c == 0), cut[a], whole[a]), np.where(c == 0, cut[b], whole[b]), cut[c]], 1)
    cells = np.empty((len(values), 16), np.uint8)
    cells[:, 0] = np.where(np.signbit(values), ord("-"), 0)
    cells[:, 1] = ord("0") + one
    cells[:, 2] = ord(".")
    cells[:, 3:15] = quads.view(np.uint8)
    cells[:, 3] = np.maximum(cells[:, 3], ord("0"))
    cells[:, 15] = ord(" ")
    for i in np.flatnonzero((fixed / 1e12).astype(np.float32) != magnitude).tolist():
        text: str = str(values[i])
        if len(text) > 15:  # in NumPy 1: 1234568000000000.0
            text = np.format_float_scientific(values[i], trim="-")
        cells[i, :15] = np.frombuffer(text.encode().ljust(15, b"\0"), np.uint8)
    return cells


@cache
def _quads() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The four characters of each number below 10,000; and the same without the zeros at the end."""
    texts = [b"%04d" % i for i in range(10_000)]
    return np.array(texts, "S4").view(np.uint32), np.array([t.rstrip(b"0") for t in texts], "S4").view(np.uint32)


def read_word2vec(path: AnyPath, *, binary: bool | None, limit: int | None, vocab_path: AnyPath | None) -> Table:
    """See :meth:`WordVectors.load_word2vec_format`."""
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be at least 0 or None, got {limit}")
    words: list[str] = []
    row = 1
    with _opened(path) as file:
        try:
            promised, d = _sizes(file)
            wanted = promised if limit is None else min(promised, limit)
            if binary is None:
                binary = _is_binary(file, d)
            # as much as the file has room for, whatever its header says
            room = os.path.getsize(path) * (_MOST_DEFLATED if _is_gzip(path) else 1)
            vectors = np.empty((min(wanted, room // (1 + (4 if binary else 2) * d)), d), np.float32)
            rows = _binary_rows(file, d) if binary else _text_rows(file, d)
            row = 2
            with np.errstate(over="ignore"):  # 1e39 is infinite
                for word, vector in islice(rows, wanted):
                    words.append(_decoded(word))
                    vectors[row - 2] = vector
                    row += 1
            if len(words) < wanted:
                raise ValueError(f"the file ends after {len(words):,} words, its header promises {promised:,}")
            if wanted == promised and next(rows, None) is not None:
                raise ValueError(f"the file goes on after the {promised:,} words that its header promises")
        except (ValueError, *_BROKEN_GZIP) as error:
            raise ValueError(f"{os.fspath(path)}, row {row}: {error}") from error
    first: dict[str, int] = {}
    for i, text in enumerate(words):
        first.setdefault(text, i)
    if len(first) < len(words):
        again = len(words) - len(first)
        warnings.warn(f"{os.fspath(path)}: {again:,} rows left out, their words stood there before", stacklevel=3)
        words, vectors = list(first), vectors[list(first.values())]
    return words, vectors, None if vocab_path is None else _counts(vocab_path, words)


def _sizes(file: IO[bytes]) -> tuple[int, int]:
    line = file.readline(100)
    found = _SIZES.fullmatch(line)
    if found is None or not int(found[2]):
        raise ValueError(f"expected the numbers of words and of dimensions, got {line!r}")
    return int(found[1]), int(found[2])


def _is_binary(file: IO[bytes], d: int) -> bool:
    """Whether the row behind the header is no text: neither a good row, nor a bad one without control characters."""
    start = file.tell()
    numbers = file.read(_CHUNK_BYTES).partition(b" ")[2]
    file.seek(start)
    try:
        _numbers(numbers.partition(b"\n")[0], d)
    except ValueError:
        return _CONTROL.search(numbers[: 4 * d]) is not None
    return False


def _text_rows(file: IO[bytes], d: int) -> Rows:
    for line in file:
        if line.isspace() and not any(map(bytes.strip, file)):
            return
        word, _, numbers = line.partition(b" ")
        yield word, _numbers(numbers, d)


def _numbers(text: bytes, d: int) -> NDArray[np.float64]:
    fields = text.split()
    if len(fields) != d:
        raise ValueError(f"{len(fields):,} numbers behind the word instead of {d:,}")
    if b"_" in text:  # which float allows
        raise ValueError("a number with an underscore")
    return np.fromiter(map(float, fields), np.float64, d)


def _binary_rows(file: IO[bytes], d: int) -> Rows:
    buffer, at, searched = bytearray(), 0, 0  # the row begins at `at`, its space is not before `searched`
    while True:
        space = buffer.find(b" ", searched)
        end = space + 1 + 4 * d
        if space >= 0 and end <= len(buffer):
            # word2vec.c ends a row with a line feed, gensim does not
            yield bytes(buffer[at:space]).lstrip(b"\n"), np.frombuffer(buffer[space + 1 : end], "<f4")
            at = searched = end
            continue
        more = file.read(_CHUNK_BYTES)
        if not more:
            if buffer[at:].strip(b"\n"):
                raise ValueError("the file ends within the row")
            return
        searched = (len(buffer) if space < 0 else space) - at
        del buffer[:at]
        buffer += more
        at = 0


def _counts(path: AnyPath, words: Sequence[str]) -> NDArray[np.int64]:
    """The words' counts, from lines of a word and its count."""
    counts: dict[bytes, int] = {}
    row = 1
    with _opened(path) as file:
        try:
            for line in file:
                fields = line.split()
                if len(fields) != 2 or not _COUNT.fullmatch(fields[1]):
                    raise ValueError(f"expected a word and its count, got {line!r}")
                if fields[0] in counts:
                    raise ValueError(f"a second count of {fields[0]!r}")
                counts[fields[0]] = int(fields[1])
                row += 1
        except (ValueError, *_BROKEN_GZIP) as error:
            raise ValueError(f"{os.fspath(path)}, row {row}: {error}") from error
    try:
        return np.array([counts[word.encode()] for word in words], np.int64)
    except KeyError as error:
        raise ValueError(f"{os.fspath(path)} has no count of {error.args[0].decode()!r}") from None


# ---- .npz


def write_npz(
    path: AnyPath, words: Sequence[str], vectors: NDArray[np.float32], counts: NDArray[np.int64] | None
) -> None:
    """See :meth:`WordVectors.save`."""
    encoded = [_encoded(word) for word in words]
    for word in words:
        if "\n" in word:
            raise ValueError(f"the word {word!r} contains a line feed, which separates the words of a file")
    arrays: dict[str, Any] = {"words": np.frombuffer(b"\n".join(encoded), np.uint8), "vectors": vectors}
    if counts is not None:
        arrays["counts"] = counts
    with atomic_file(path) as file:
        np.savez(file, **arrays)


def read_npz(path: AnyPath) -> Table:
    """See :meth:`WordVectors.load`."""
    with Path(path).open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                words, vectors = arrays["words"].tobytes().decode().split("\n"), arrays["vectors"]
                counts = arrays.get("counts")
            words = words if len(vectors) else []
            check_table(words, vectors, counts)
        except Exception as error:  # of any type: zipfile raises six, for six kinds of broken bytes
            raise ValueError(f"{os.fspath(path)} is no file of word vectors: {error}") from error
    return words, vectors, counts


# ---- both


def check_table(words: Sequence[str], vectors: Any, counts: Any) -> None:
    """Raises ValueError if these do not belong together."""
    if vectors.ndim != 2 or vectors.dtype != np.float32 or not vectors.shape[1]:
        raise ValueError(f"vectors must be float32 [V, d], got {vectors.dtype} {list(vectors.shape)}")
    if len(words) != len(vectors):
        raise ValueError(f"{len(words):,} words and {len(vectors):,} vectors do not belong together")
    if counts is not None and (counts.shape != (len(words),) or counts.dtype != np.int64):
        raise ValueError(f"counts must be int64 [{len(words)}], got {counts.dtype} {list(counts.shape)}")


def _encoded(word: str) -> bytes:
    try:
        return word.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the word {word!r} cannot be written as UTF-8: {error.reason}") from error


def _decoded(word: bytes) -> str:
    if not word:
        raise ValueError("no word before the numbers")
    try:
        return word.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the word {word!r} is not UTF-8") from error


def _is_gzip(path: AnyPath) -> bool:
    return Path(path).suffix == ".gz"


def _opened(path: AnyPath) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb") if _is_gzip(path) else Path(path).open("rb"))


@contextmanager
def _written(path: AnyPath) -> Iterator[IO[bytes]]:
    with atomic_file(path) as file:
        if not _is_gzip(path):
            yield file
            return
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            yield cast(IO[bytes], packed)
