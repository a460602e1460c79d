"""What a look-up of the autotuner costs: warm, and the first of a problem with and without a row that answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tilesmith import autotune, nn
from tilesmith.autotune import lookup
from tilesmith.autotune.lookup import Tables
from tilesmith.autotune.resolve import forget
from tilesmith.autotune.rows import filed, provenance
from tilesmith.autotune.store import Store
from tilesmith.autotune.tuner import jobs_of

ROWS = 200  # of the family, that a miss has to look through


@pytest.fixture
def job() -> Any:
    calls = autotune.recorded(nn.Conv2d(16, 32, 3), torch.randn(16, 16, 56, 56), training=False)
    return jobs_of(calls)[0]


@pytest.fixture
def tables(job: Any) -> Iterator[Tables]:
    """The key itself far away, and many neighbours that are too far as well."""
    store = Store(None)
    place = filed(job.tunable, job.problem)
    for i in range(ROWS):
        row = {**provenance(job.tunable, place), "kind": "choice", "config": dict(job.default), "time_us": 1.0}
        key = {**row["key"], "sizes": {name: size * 16 * (i + 2) for name, size in row["key"]["sizes"].items()}}
        store.append({**row, "key": key, "generation": 1})
    before = lookup.use(Tables(store))
    yield lookup.tables()
    lookup.use(before)


def test_a_warm_look_up(benchmark: BenchmarkFixture, job: Any, tables: Tables) -> None:
    """Goal: 5 us."""
    autotune.resolve(job.tunable, job.problem)
    benchmark(autotune.resolve, job.tunable, job.problem)


def test_the_first_look_up_of_a_problem(benchmark: BenchmarkFixture, job: Any, tables: Tables) -> None:
    """Goal: 200 us. None of the rows of its family is near enough: the whole ladder down to the default."""
    tables.choices()
    benchmark.pedantic(autotune.resolve, (job.tunable, job.problem), setup=forget, rounds=300)


def test_the_first_look_up_that_a_row_answers(benchmark: BenchmarkFixture, job: Any, tables: Tables) -> None:
    """Goal: 200 us."""
    row = {**provenance(job.tunable, job.filed), "kind": "choice", "config": dict(job.default), "time_us": 1.0}
    tables.cache.append({**row, "generation": 1})
    tables.reload()
    tables.choices()
    benchmark.pedantic(autotune.resolve, (job.tunable, job.problem), setup=forget, rounds=300)
