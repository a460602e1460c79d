"""The demo's data: scikit-learn's handwritten digits, or MNIST from its own idx files."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

IMAGE_SIZE = 28
CLASSES = 10
TEST_FRACTION = 0.2  # of the bundled digits; MNIST brings its own test set
VALIDATION_FRACTION = 0.1  # of the training images

IDX_UINT8 = 0x08
IDX_DTYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
GZIP_MAGIC = b"\x1f\x8b"
GZIP_BLOCK_BYTES = 1024  # how finely a corrupt gzip file is located


@dataclass(frozen=True)
class Split:
    """Images ``[N, 1, 28, 28]`` float32 with pixels in 0 to 1, and labels ``[N]`` int64 in 0 to 9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: Tensor) -> Split:
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """What a network learns from, what decides when to stop, and what it is judged by."""

    name: str
    train: Split
    validation: Split
    test: Split


def load_digits(seed: int = 0, limit: int | None = None) -> Dataset:
    """scikit-learn's 1,797 handwritten 8x8 digits at 28x28, 20 % of them held out for the test.

    Args:
        seed: decides which images are held out.
        limit: train (and validate) on the first ``limit`` training images only.
    """
    from sklearn.datasets import load_digits as bundled_digits

    pixels, labels = bundled_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().div(16).reshape(-1, 1, 8, 8)
    images = torch.nn.functional.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic")
    everything = Split(images.clamp(0, 1), torch.from_numpy(labels).long())  # bicubic weights overshoot at edges

    generator = torch.Generator().manual_seed(seed)
    kept, held_out = stratified_split(everything.labels, TEST_FRACTION, generator)
    name = "scikit-learn's handwritten digits, 8x8 resized to 28x28"
    return _with_validation(name, everything.at(kept[:limit]), everything.at(held_out), generator)


def load_mnist(directory: Path, seed: int = 0, limit: int | None = None) -> Dataset:
    """MNIST from its four idx files, each plain or gzipped, with ``-idx`` or ``.idx`` in its name.

    Args:
        directory: where the files lie.
        seed: decides which training images are held out for validation.
        limit: train (and validate) on the first ``limit`` training images only.

    Raises:
        FileNotFoundError: a file is missing; the message lists every name that was tried.
        ValueError: a file is not what it should be; the message names the file, the byte offset, what was found
            there and what was expected.
    """
    paths = [
        _find_idx(directory, stem)
        for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    ]
    train = _read_pair(*paths[:2])
    test = _read_pair(*paths[2:])
    generator = torch.Generator().manual_seed(seed)
    if limit is not None:
        train = Split(train.images[:limit], train.labels[:limit])
    return _with_validation("MNIST", train, test, generator)


def stratified_split(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices to keep and to hold out, each in ascending order: ``fraction`` of the whole and of every class.

    The number held out is ``fraction * len(labels)`` rounded; each class is within one image of its exact share.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    # evenly spaced picks from a list sorted by class take the same share of every class
    quota = torch.floor(torch.arange(len(labels) + 1, dtype=torch.float64) * fraction + 0.5)
    held_out = quota[1:] > quota[:-1]
    return by_class[~held_out].sort().values, by_class[held_out].sort().values


def _with_validation(name: str, train: Split, test: Split, generator: torch.Generator) -> Dataset:
    kept, held_out = stratified_split(train.labels, VALIDATION_FRACTION, generator)
    if len(held_out) == 0:
        raise ValueError(f"{len(train)} training images are too few: a tenth of them is held out for validation")
    return Dataset(name, train.at(kept), train.at(held_out), test)


def _find_idx(directory: Path, stem: str) -> Path:
    names = [f"{spelling}-ubyte{suffix}" for spelling in (stem, stem.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory}: none of {', '.join(names)} is there")


def _read_pair(images_path: Path, labels_path: Path) -> Split:
    images = read_idx(images_path, (None, IMAGE_SIZE, IMAGE_SIZE))
    labels = read_idx(labels_path, (None,))
    if len(labels) != len(images):
        raise _fault(
            labels_path, 4, f"{len(labels)} labels", f"{len(images)}, one for each image in {images_path.name}"
        )
    wrong = np.flatnonzero(labels >= CLASSES)
    if len(wrong):
        first = int(wrong[0])
        raise _fault(labels_path, 8 + first, f"label {labels[first]}", f"a label from 0 to {CLASSES - 1}")
    pixels = torch.from_numpy(images).unsqueeze(1).float().div_(255)
    return Split(pixels, torch.from_numpy(labels).long())


def read_idx(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """The uint8 array in an idx file (gunzipped first if its name ends in ``.gz``).

    The format: two zero bytes, a dtype code, the number of dimensions, each dimension as a big-endian uint32, then
    the elements in row-major order and nothing after them.

    Args:
        shape: the shape the file must have; ``None`` stands for any size of at least 1.

    Raises:
        ValueError: the file is not that. Offsets count the bytes after gunzipping, except for faults of the gzip
            stream itself.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = _gunzip(path, content)

    dims = len(shape)
    header_bytes = 4 + 4 * dims
    if len(content) >= 2 and content[:2] != b"\0\0":
        raise _fault(path, 0, f"bytes {content[:2].hex(' ')}", "00 00, the start of an idx file")
    if len(content) >= 3 and content[2] != IDX_UINT8:
        found = IDX_DTYPES.get(content[2], "no dtype of the format")
        raise _fault(path, 2, f"dtype code {content[2]:#04x} ({found})", f"{IDX_UINT8:#04x} (uint8)")
    if len(content) >= 4 and content[3] != dims:
        raise _fault(path, 3, f"{content[3]} dimensions", f"{dims}, as in magic number {IDX_UINT8 << 8 | dims}")
    if len(content) < header_bytes:
        raise _fault(path, len(content), "the end of the file", f"a header of {header_bytes} bytes")

    sizes = struct.unpack_from(f">{dims}I", content, 4)
    for axis, (size, expected) in enumerate(zip(sizes, shape, strict=True)):
        if size == 0 or expected not in (None, size):
            wanted = "at least 1" if expected is None else str(expected)
            raise _fault(path, 4 + 4 * axis, f"size {size} of dimension {axis}", wanted)
    end = header_bytes + prod(sizes)
    if len(content) < end:
        raise _fault(path, len(content), "the end of the file", f"{end} bytes, as its header says")
    if len(content) > end:
        raise _fault(
            path, end, f"{len(content) - end} more bytes", f"the end of the file after {end} bytes, as its header says"
        )
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(sizes).copy()  # writable, as torch wants it


def _gunzip(path: Path, packed: bytes) -> bytes:
    """Like ``gzip.decompress``, but every fault is told with its offset in the compressed file."""
    if packed[:2] != GZIP_MAGIC:
        found = f"bytes {packed[:2].hex(' ')}" if packed else "an empty file"
        raise _fault(path, 0, found, f"{GZIP_MAGIC.hex(' ')}, the start of a gzip file")
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # 16: with a gzip header and checksum
    unpacked = bytearray()
    for offset in range(0, len(packed), GZIP_BLOCK_BYTES):
        block = packed[offset : offset + GZIP_BLOCK_BYTES]
        try:
            unpacked += stream.decompress(block)
        except zlib.error as error:
            raise _fault(
                path, offset, f"a block of {len(block)} bytes that does not gunzip ({error})", "intact gzip data"
            ) from error
        if stream.eof:
            end = offset + len(block) - len(stream.unused_data)
            if end != len(packed):
                raise _fault(path, end, f"{len(packed) - end} more bytes", "the end of the gzip stream to end the file")
            return bytes(unpacked)
    raise _fault(path, len(packed), "the end of the file", "more gzip data: the file is truncated")


def _fault(path: Path, offset: int, found: str, expected: str) -> ValueError:
    return ValueError(f"{path}: at byte {offset}: found {found}, expected {expected}")
