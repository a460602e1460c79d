"""What the autotuner's tests share: a kernel that exists only as a space, rows about it, tables in a directory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilesmith import autotune
from tilesmith.autotune import lookup
from tilesmith.autotune.calls import Call, TensorSpec
from tilesmith.autotune.lookup import Tables
from tilesmith.autotune.rows import Row, filed, provenance
from tilesmith.autotune.runner import Job
from tilesmith.autotune.store import Store

from .planted._numpy import RIGHT, WRONG, Doubling


@dataclass(frozen=True)
class Size:
    """A problem of the pretended kernel: ``BLOCK`` may not be larger than ``rows``."""

    rows: int
    columns: int = 64
    dtype: str = "float32"


def _refusal(config: autotune.Config, problem: Size) -> str | None:
    block = config["BLOCK"]
    return f"a block of {block} is more than all {problem.rows} rows" if block > problem.rows else None


def _seconds(config: autotune.Config, problem: Size) -> float:
    """Best where a block is an eighth of the rows and warps are 4."""
    off = abs(math.log2(8 * config["BLOCK"] / problem.rows))
    return 1e-6 * problem.rows * (1 + 0.2 * off + 0.1 * abs(math.log2(config["WARPS"] / 4)))


PRETENDED = autotune.Tunable(
    "test.pretended",
    {"BLOCK": (16, 32, 64, 128, 256, 512), "WARPS": (1, 2, 4, 8)},
    default=lambda _: {"BLOCK": 16, "WARPS": 1},
    refusal=_refusal,
    key=lambda p: autotune.Key((p.dtype, "row-major", ("device", 2)), {"rows": p.rows, "columns": p.columns}),
    cost=lambda config, p: autotune.Cost(1, 1e11 * _seconds(config, p), "fma", 0.0),
)


def seconds_of(config: autotune.Config, problem: Size) -> float:
    """What a configuration of the pretended kernel takes."""
    return _seconds(config, problem)


def choice(problem: Size, config: autotune.Config, generation: int = 1, **more: Any) -> Row:
    """A row that chooses a configuration for a problem of the pretended kernel."""
    row = {
        **provenance(PRETENDED, filed(PRETENDED, problem)),
        "kind": "choice",
        "config": dict(config),
        "default": {"BLOCK": 16, "WARPS": 1},
        "time_us": 10.0,
        "default_us": 20.0,
        "tied": [dict(config)],
        "generation": generation,
        "call": None,
    }
    return row | more


def time(problem: Size, config: autotune.Config, time_us: float | None = None, **more: Any) -> Row:
    """A row that measured one; as long as :func:`seconds_of` says if nothing else is told."""
    row = {
        **provenance(PRETENDED, filed(PRETENDED, problem)),
        "kind": "time",
        "config": dict(config),
        "status": "ok",
        "reason": "",
        "rung": "first",
        "generation": 1,
        "time_us": seconds_of(config, problem) * 1e6 if time_us is None else time_us,
        "samples": 7,
        "predicted_us": seconds_of(config, problem) * 1e6,
    }
    return row | more


def every_time(problem: Size) -> list[Row]:
    return [time(problem, config) for config in PRETENDED.configs(problem)]


def job(problem: Size) -> Job:
    return Job(PRETENDED, problem, filed(PRETENDED, problem), PRETENDED.default(problem))


@contextmanager
def using(tables: Tables) -> Iterator[Tables]:
    """Look-ups read these tables inside the block."""
    before = lookup.use(tables)
    try:
        yield tables
    finally:
        lookup.use(before)


def in_memory(*rows: Row, shipped: tuple[Row, ...] = ()) -> Tables:
    cache, table = Store(None), Store(None)
    for row in rows:
        cache.append(row)
    for row in shipped:
        table.append(row)
    return Tables(cache, (table,))


def in_directory(path: Path) -> Tables:
    return Tables(Store(path))


def planted_call(elements: int = 1000, ways: tuple[str, ...] = RIGHT + WRONG, dtype: str = "float32") -> Call:
    """The call of an op of which some configurations are wrong."""
    spec = TensorSpec((elements,), (1,), dtype)
    return Call("tests.planted._numpy", "forward", Doubling(elements, ways), (spec,), (spec,))
