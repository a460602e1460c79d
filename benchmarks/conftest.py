"""Benchmark session set-up: the device and its threads, the report and where it is printed."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_limits

from .load import Load
from .report import Report, conditions, environment

# The README's table is for two threads; a machine with more cores measures the same thing.
THREADS = 2

REPORT = pytest.StashKey[Report]()
ENVIRONMENT = pytest.StashKey[dict[str, str | int]]()

# Options of pytest-benchmark that ask for its own table, and what they are when not given.
_OWN_TABLE: dict[str, Any] = {
    "columns": None,
    "sort": "min",
    "group_by": "group",
    "name": "normal",
    "compare": [],
    "cprofile": None,
    "histogram": [],
    "verbose": False,
}


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report()
    # ours has one line a case with torch's time in it; pytest-benchmark's wide one comes when it is asked for
    if all(config.getoption(f"benchmark_{name}") == default for name, default in _OWN_TABLE.items()):
        config.option.benchmark_quiet = True


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[int]:
    """The thread count of torch, NumPy's BLAS and our own workers alike."""
    count = min(THREADS, len(os.sched_getaffinity(0)))
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    with threadpool_limits(count, user_api="blas"):
        yield count
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[REPORT]


@pytest.fixture(scope="session")
def facts(pytestconfig: pytest.Config, device: torch.device, threads: int) -> dict[str, str | int]:
    """Goes into each benchmark's ``extra_info`` and under the tables."""
    return pytestconfig.stash.setdefault(ENVIRONMENT, environment(device))


@pytest.fixture
def load() -> Load:
    """Counts what other processes take, from here on."""
    return Load()


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """No garbage collection while a case runs."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash[REPORT]
    if not report.tables:
        return
    notes = [conditions(config.stash[ENVIRONMENT]), *report.warnings]
    for table in report.tables:
        terminalreporter.section(table.title)
        for line in table.text():
            terminalreporter.write_line(line)
    terminalreporter.write_line("")
    for note in notes:
        terminalreporter.write_line(note)
    path = config.getoption("--benchmark-table")
    if path:
        report.write_markdown(path, notes)
        terminalreporter.write_line(f"wrote {path}")
