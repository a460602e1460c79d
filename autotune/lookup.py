"""The measured rungs of the ladder: exact rows in the order of their layers, then the nearest problem of the family."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from .portfolio import point_of
from .rows import Filed, Row, distance, filed, filed_of, identity, is_stale, text_of, versions
from .space import Config, Tunable
from .store import Store, cache_directory

# Doublings between two problems up to which a configuration is worth more than the model's guess: about a factor of
# four in one size, or of two in three of them.
MOST_DOUBLINGS = 2.0

Family = tuple[str, int, str]

SHIPPED = Path(__file__).with_name("tables")


@dataclass(frozen=True)
class Found:
    """A choice that serves a problem.

    Attributes:
        rung: "cache" or "table" where it was measured for this problem, else "nearest".
        row: as it was written.
        layer: "cache", or the file or directory of a table.
        doublings: how far its problem is.
        stale: whether other sources or another compiler wrote it.
    """

    config: Config
    rung: str
    row: Row
    layer: str
    doublings: float
    stale: bool


@dataclass(frozen=True)
class _Choice:
    filed: Filed
    config: Config
    row: Row
    layer: str
    rank: int  # of the layer


class _Places:
    """The choices of a family as points in doublings, so that hundreds are passed over in one step."""

    def __init__(self, choices: list[_Choice]) -> None:
        self._by_names: dict[tuple[str, ...], tuple[list[_Choice], Any]] = {}
        for choice in choices:
            self._by_names.setdefault(_names(choice.filed), ([], None))[0].append(choice)
        for names, (mine, _) in self._by_names.items():
            self._by_names[names] = mine, np.array([point_of(dict(choice.filed.sizes)) for choice in mine])

    def within(self, wanted: Filed, doublings: float) -> Iterator[_Choice]:
        """Those that are no further (and perhaps some that are, by a rounding)."""
        mine, points = self._by_names.get(_names(wanted), ([], None))
        if not mine:
            return
        squares = ((points - point_of(dict(wanted.sizes))) ** 2).sum(axis=1)
        for i in np.flatnonzero(squares <= doublings**2 + 1e-6):
            yield mine[i]


def _names(place: Filed) -> tuple[str, ...]:
    return tuple(name for name, _ in place.sizes)


class Tables:
    """Everything that look-ups read: the user's cache, then tables that ship, in their order.

    Args:
        cache: the store that is written to.
        shipped: read-only ones.
    """

    def __init__(self, cache: Store, shipped: Sequence[Store] = ()) -> None:
        self.cache = cache
        self.shipped = tuple(shipped)
        self._families: dict[Family, list[_Choice]] | None = None
        self._places: dict[Family, _Places] = {}
        self._lock = RLock()

    def reload(self) -> None:
        """Reads what is new when something is looked up next."""
        with self._lock:
            self._families, self._places = None, {}

    def choices(self) -> dict[Family, list[_Choice]]:
        """The valid choice of each problem in each layer, by family."""
        with self._lock:
            if self._families is None:
                families: dict[Family, list[_Choice]] = {}
                for rank, store in enumerate((self.cache, *self.shipped)):
                    layer = "cache" if rank == 0 else str(store.directory)
                    for row in last_choices(store.rows()):
                        place = filed_of(row)
                        families.setdefault(place.family, []).append(_Choice(place, row["config"], row, layer, rank))
                self._families = families
            return self._families

    def find(self, tunable: Tunable, problem: Any) -> Found | None:
        """The best row for a problem, or ``None``: exact and fresh in the order of layers, else the nearest."""
        wanted = filed(tunable, problem)
        near = []
        for choice in self._nearby(wanted):
            doublings = distance(wanted, choice.filed)
            if doublings <= MOST_DOUBLINGS:
                stale = is_stale(choice.row, tunable)
                newest = -choice.row.get("generation", 0)
                order = (doublings > 0 or stale, doublings, stale, choice.rank, newest, text_of(choice.config))
                near.append((*order, choice))
        for is_near, doublings, stale, _, _, _, choice in sorted(near, key=lambda one: one[:-1]):
            config = as_in_space(tunable, choice.config)
            if config is None or tunable.refusal(config, problem) is not None:
                continue
            rung = "nearest" if is_near else "cache" if choice.rank == 0 else "table"
            return Found(config, rung, choice.row, choice.layer, doublings, stale)
        return None

    def _nearby(self, wanted: Filed) -> Iterator[_Choice]:
        """Of a family those that may be near enough."""
        with self._lock:
            family = self.choices().get(wanted.family)
            if not family:
                return
            places = self._places.get(wanted.family)
            if places is None:
                places = self._places[wanted.family] = _Places(family)
        yield from places.within(wanted, MOST_DOUBLINGS)

    def why_missing(self, tunable: Tunable, problem: Any) -> str:
        """Which field separates a problem from the nearest row, in a sentence."""
        if tunable.key is None:
            return f"{tunable.name} has no key and cannot be tuned"
        wanted = filed(tunable, problem)
        mine = [c for family, cs in self.choices().items() if family[0] == tunable.name for c in cs]
        what = f"{tunable.name} was not tuned for {problem}"
        if not mine:
            return f"{what}: the cache has no row of this kernel"
        same = [c for c in mine if c.filed.family == wanted.family]
        if same:
            nearest = min(same, key=lambda c: (distance(wanted, c.filed), text_of(c.config)))
            if distance(wanted, nearest.filed) == 0:
                return f"{what}: its row is stale (other sources or another compiler wrote it)"
            theirs = dict(nearest.filed.sizes)
            differing = ", ".join(f"{n} is {v:g}, there {theirs[n]:g}" for n, v in wanted.sizes if theirs.get(n) != v)
            return f"{what}: the nearest row is {distance(wanted, nearest.filed):.2f} doublings away ({differing})"
        nearest = min(mine, key=lambda c: (len(_differences(wanted, c.filed)), text_of(c.config)))
        return f"{what}: of its key, {'; '.join(_differences(wanted, nearest.filed))}"

    def digest(self) -> str:
        """Equal where all look-ups answer alike, given equal kernels: of every choice that counts, in its layer, and of
        the versions that decide which of them are stale."""
        told = [text_of(dict(versions())), *(f"{key}{value}" for key, value in self.lines().items())]
        return hashlib.sha256("\0".join(told).encode()).hexdigest()

    def lines(self) -> dict[str, str]:
        """The digest of each row that look-ups may use, by a name for it; what :meth:`digest` is made of."""
        found: dict[str, list[str]] = {}
        for family in self.choices().values():
            for c in family:
                place = f"layer {c.rank}: {c.filed.tunable} abi {c.filed.abi} {c.filed.exact} {dict(c.filed.sizes)}"
                found.setdefault(place, []).append(identity(c.row)[:16])
        return {place: " ".join(sorted(rows)) for place, rows in sorted(found.items())}


def _differences(wanted: Filed, other: Filed) -> list[str]:
    if wanted.abi != other.abi:
        return [f"abi is {wanted.abi}, there {other.abi}"]
    mine, theirs = json.loads(wanted.exact), json.loads(other.exact)
    if not isinstance(mine, list) or not isinstance(theirs, list) or len(mine) != len(theirs):
        return [f"exact part is {wanted.exact}, there {other.exact}"]
    return [f"field {i} is {a!r}, there {b!r}" for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b]


def latest_choices(rows: Iterable[Row]) -> list[Row]:
    """Of each problem the choice that was made last: the one that knew the most others, whatever clocks say."""
    return _latest(rows, filed_of)


def last_choices(rows: Iterable[Row]) -> list[Row]:
    """The same of each problem and each of the sources and versions that wrote one: whoever shares a cache with other
    versions finds its own."""
    return _latest(rows, lambda row: (filed_of(row), text_of([row.get("source"), row.get("versions")])))


def _latest(rows: Iterable[Row], place_of: Callable[[Row], Hashable]) -> list[Row]:
    latest: dict[Hashable, Row] = {}
    for row in rows:
        if row["kind"] == "choice":
            place = place_of(row)
            if place not in latest or _order(row) > _order(latest[place]):
                latest[place] = row
    return list(latest.values())


def _order(row: Row) -> tuple[int, str]:
    return row.get("generation", 0), text_of(row)


def as_in_space(tunable: Tunable, config: Config) -> Config | None:
    """A configuration from a file with the space's own values; ``None`` if the space does not have it."""
    if set(config) != set(tunable.space):
        return None
    found = {}
    for name, values in tunable.space.items():
        given = config[name]
        equal = [v for v in values if v == given and type(v) is type(given)]
        equal = equal or [v for v in values if text_of(v) == text_of(given)]  # JSON has fewer types
        if not equal:
            return None
        found[name] = equal[0]
    return found


# ---- those of the process

_tables: Tables | None = None
_lock = RLock()


def tables() -> Tables:
    """The process's own: the cache directory, ``TILESMITH_TABLES`` (files or directories of an application, separated
    as in ``PATH``), and what this package ships."""
    global _tables
    if _tables is None:
        with _lock:
            if _tables is None:
                named = [Path(p) for p in os.environ.get("TILESMITH_TABLES", "").split(os.pathsep) if p]
                shipped = [Store(path, writable=False) for path in (*named, SHIPPED)]
                _tables = Tables(Store(cache_directory()), shipped)
    return _tables


def use(replacement: Tables | None) -> Tables | None:
    """Has look-ups read other tables (``None``: those that the environment names); returns what they read so far."""
    from .resolve import forget

    global _tables
    with _lock:
        before, _tables = _tables, replacement
    forget()
    return before


def reload() -> None:
    """Reads what others have written since, and looks everything up anew."""
    from .resolve import forget

    tables().reload()
    forget()
