"""What a look-up of the autotuner costs: warm, and the first of a problem with and without a row that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from tilesmith import autotune, nn
from tilesmith.autotune import lookup
from tilesmith.autotune.lookup import Tables
from tilesmith.autotune.resolve import forget
from tilesmith.autotune.rows import Filed, filed, provenance
from tilesmith.autotune.store import Store
from tilesmith.autotune.tuner import jobs_of

from .portfolios import problems_of
from .standard import LAYERS, UNTIMED

ROWS = 200  # of the family, that a miss has to look through

# GPU kernels with the largest spaces and the most expensive costs, and layers that ask for them: no GPU is needed.
GPU_KERNELS = {
    "triton.conv2d.forward": "ResNet-50 s2 3x3",
    "triton.conv2d.weight_grad": "ResNet-50 s2 3x3",
    "cupy.conv2d.wgrad": "ResNet-50 s2 3x3",
    "triton.pool2d.bands.planar": "PSP avgpool 60 to 7",
    "cupy.pool2d.bands_forward": "ResNet-50 maxpool 3/2",
    "cupy.softmax.columns": "softmax of 256 columns",
    "triton.softmax.columns": "softmax of 256 columns",
}


@dataclass(frozen=True)
class Asked:
    tunable: autotune.Tunable
    problem: Any
    default: autotune.Config

    @property
    def filed(self) -> Filed:
        return filed(self.tunable, self.problem)


@pytest.fixture(params=["numpy.conv2d.forward", *GPU_KERNELS])
def job(request: pytest.FixtureRequest) -> Asked:
    if request.param not in GPU_KERNELS:
        calls = autotune.recorded(nn.Conv2d(16, 32, 3), torch.randn(16, 16, 56, 56), training=False)
        found = jobs_of(calls)[0]
        return Asked(found.tunable, found.problem, found.tunable.default(found.problem))
    (layer,) = (one for one in (*LAYERS, *UNTIMED) if one.name == GPU_KERNELS[request.param])
    tunable, problems = problems_of([layer], ["sm_90"])[request.param]
    problem = next(iter(problems))
    return Asked(tunable, problem, tunable.default(problem))


def anew(job: Asked) -> Callable[[], None]:
    """What makes the next look-up of the problem its first."""
    remembered: Any = job.tunable.default

    def forget_all() -> None:
        forget()
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()

    return forget_all


@pytest.fixture
def tables(job: Asked) -> Iterator[Tables]:
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


def test_a_warm_look_up(benchmark: BenchmarkFixture, job: Asked, tables: Tables) -> None:
    """Goal: 5 us."""
    autotune.resolve(job.tunable, job.problem)
    benchmark(autotune.resolve, job.tunable, job.problem)


def test_the_first_look_up_of_a_problem(benchmark: BenchmarkFixture, job: Asked, tables: Tables) -> None:
    """Goal: 200 us. None of the rows of its family is near enough: the whole ladder down to the default."""
    tables.choices()
    benchmark.pedantic(autotune.resolve, (job.tunable, job.problem), setup=anew(job), rounds=300)


def test_the_first_look_up_that_a_row_answers(benchmark: BenchmarkFixture, job: Asked, tables: Tables) -> None:
    """Goal: 200 us."""
    row = {**provenance(job.tunable, job.filed), "kind": "choice", "config": dict(job.default), "time_us": 1.0}
    tables.cache.append({**row, "generation": 1})
    tables.reload()
    tables.choices()
    benchmark.pedantic(autotune.resolve, (job.tunable, job.problem), setup=anew(job), rounds=300)
