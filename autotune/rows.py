"""Rows of the cache: one line of JSON each, what it is filed under, what wrote it, and whether it is still fresh."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from .space import Config, Key, Tunable

Row = dict[str, Any]

VERSION = 1  # of the format; rows with a greater one are somebody else's future
KINDS = ("time", "choice", "call", "plan")
# What a measurement can come to. Only "ok" is ever chosen.
STATUSES = (
    "ok",
    "compile",
    "resources",
    "spill",
    "runtime",
    "timeout",
    "crash",
    "incorrect",
    "outside",
    "nondeterministic",
)
_PACKAGES = ("torch", "numpy", "triton", "cupy-cuda12x", "cupy-cuda13x")
_BACKENDS = ("_numpy", "_triton", "_cupy")


@dataclass(frozen=True)
class Filed:
    """A key as rows have it: ``exact`` is text, so that what was read from a file compares with what is asked for."""

    tunable: str
    abi: int
    exact: str
    sizes: tuple[tuple[str, float], ...]

    @property
    def family(self) -> tuple[str, int, str]:
        """What must be equal for one's configuration to say anything about the other."""
        return self.tunable, self.abi, self.exact

    def as_json(self) -> Row:
        return {"tunable": self.tunable, "abi": self.abi, "exact": json.loads(self.exact), "sizes": dict(self.sizes)}


def text_of(value: Any) -> str:
    """JSON in one canonical form: tuples are lists, keys in order, what JSON does not know as its name."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, default=str)


def filed(tunable: Tunable, problem: Any) -> Filed:
    """What measurements of the tunable on this problem are filed under.

    Raises:
        ValueError: the tunable has no key: it is not for the cache.
    """
    if tunable.key is None:
        raise ValueError(f"{tunable.name} has no key: its configurations cannot be kept")
    key: Key = tunable.key(problem)
    return Filed(
        tunable.name, tunable.abi, text_of(key.exact), tuple((n, float(key.sizes[n])) for n in sorted(key.sizes))
    )


def filed_of(row: Row) -> Filed:
    """The key of a row that was read (and checked)."""
    key = row["key"]
    sizes = key["sizes"]
    return Filed(key["tunable"], key["abi"], text_of(key["exact"]), tuple((n, float(sizes[n])) for n in sorted(sizes)))


def distance(a: Filed, b: Filed) -> float:
    """Between two problems of a family: Euclidean, in doublings. Infinite where they have other sizes."""
    total = 0.0
    if len(a.sizes) != len(b.sizes):
        return math.inf
    for (name, x), (other, y) in zip(a.sizes, b.sizes, strict=True):
        if name != other:
            return math.inf
        total += math.log2(max(x, 1e-9) / max(y, 1e-9)) ** 2
    return math.sqrt(total)


def fault_of(row: Any) -> str | None:
    """What is wrong with a row that was read: "foreign", "future" or "damaged"; ``None`` if nothing is.

    Whoever reads rows later relies on what is checked here.
    """
    if not isinstance(row, dict) or not isinstance(row.get("v"), int) or "kind" not in row:
        return "foreign"
    if row["v"] > VERSION:
        return "future"
    if row["kind"] not in KINDS:
        return "foreign"
    return None if _is_whole(row) else "damaged"


def _is_whole(row: Row) -> bool:
    if row["kind"] == "call":
        return isinstance(row.get("call"), dict) and _is_count(row.get("count", 1))
    key, config = row.get("key"), row.get("config")
    if not isinstance(key, dict) or not isinstance(config, dict) or not isinstance(key.get("sizes"), dict):
        return False
    if not isinstance(key.get("tunable"), str) or "exact" not in key or not _is_count(key.get("abi")):
        return False
    numbers = [*key["sizes"].values(), row.get("predicted_us", 0.0), row.get("default_us", 1.0)]
    if not all(map(_is_number, numbers)) or not all(
        _is_count(row.get(n, 1)) for n in ("generation", "samples", "rank")
    ):
        return False
    if row["kind"] == "choice":
        return _is_time(row.get("time_us")) and row.get("default_us", 1.0) > 0 and _are_configs(row.get("tied", []))
    if row.get("status") not in STATUSES or not isinstance(row.get("reason", ""), str):
        return False
    if row["kind"] == "plan":
        return True
    return isinstance(row.get("rung"), str) and (row["status"] != "ok" or _is_time(row.get("time_us")))


def _are_configs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, dict) for v in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_time(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_number(value: Any) -> bool:
    """One that arithmetic with floats takes."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**53


def identity(row: Row) -> str:
    """Equal for two copies of one row."""
    return hashlib.sha256(text_of(row).encode()).hexdigest()


def same(a: Config, b: Config) -> bool:
    """Whether two configurations are one, also where one of them has been through JSON."""
    return text_of(dict(a)) == text_of(dict(b))


# ---- provenance


@cache
def versions() -> Mapping[str, str]:
    """Of everything that has a say in how fast a kernel is, as far as it is installed."""
    from importlib.metadata import PackageNotFoundError, version  # takes 10 ms

    found = {"python": platform.python_version(), "system": sys.platform}
    for package in ("tilesmith", *_PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1024)
def relevant_versions(tunable: str) -> Mapping[str, str]:
    """Those that make a row of this tunable stale when they change: of what compiles or runs its kernel."""
    mine = {"numpy": ("numpy",), "triton": ("triton",)}.get(tunable.partition(".")[0], _PACKAGES[3:])
    return {name: value for name, value in versions().items() if name in mine}


# What the kernels of each backend are made of beside their own op's files.
_SHARED = {
    "_numpy": ("_arrays.py", "_blas.py", "_numpy_tuning.py", "_parallel.py", "_workspace.py"),
    "_triton": ("_triton.py", "_triton_math.py", "_triton_tensors.py", "_division.py"),
    "_cupy": ("_cuda.py", "_cuda_tensors.py", "_device.cuh", "_division.py"),
}


@cache
def _digest_of_files(folder: Path, prefix: str) -> str:
    names = sorted(folder.glob(f"{prefix}*.py")) or sorted(folder.glob("*.py"))
    if prefix == "_cupy":
        names += sorted([*folder.glob("*.cu"), *folder.glob("*.cuh")])
    names += [path for name in _SHARED.get(prefix, ()) if (path := folder.parent / name).is_file()]
    texts = [without_comments(path.read_text(encoding="utf-8"), path.suffix) for path in names]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def without_comments(text: str, suffix: str) -> str:
    """Good enough for a digest: blank lines and comments that stand alone do not count, in CUDA C++ also those at the
    end of a line."""
    if suffix == ".py":
        lines = ("" if line.lstrip().startswith("#") else line.rstrip() for line in text.splitlines())
    else:
        lines = (re.sub(r"(^|\s)//.*", "", line).rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def source_of(tunable: Tunable) -> str:
    """Digest of the source of the backend that declares the tunable: all its files of that op, without comments."""
    module = sys.modules.get(tunable.default.__module__)
    file = getattr(module, "__file__", None)
    return "" if file is None else _digest_of_backend(file)


@cache
def _digest_of_backend(file: str) -> str:
    path = Path(file)
    prefix = next((p for p in _BACKENDS if path.name.startswith(p)), path.stem)
    return _digest_of_files(path.parent, prefix)


def is_stale(row: Row, tunable: Tunable) -> bool:
    """Whether the row was measured with other sources or another compiler: good as a seed, not as an answer."""
    written = row.get("versions")
    if row.get("source") != source_of(tunable) or not isinstance(written, dict):
        return True
    return any(written.get(name) != value for name, value in relevant_versions(tunable.name).items())


def provenance(tunable: Tunable, place: Filed) -> Row:
    """What every row says of where it comes from."""
    return {
        "v": VERSION,
        "key": place.as_json(),
        "source": source_of(tunable),
        "versions": dict(versions()),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
