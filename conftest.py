"""Test session set-up: ``--benchmark`` runs the benchmarks and nothing else; without it they are skipped."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"

# Files whose tests share nothing: workers (pytest -n) take them one by one. Those of another file stay together, for
# what its fixtures make once.
APART = {"test_backends_ops.py", "test_conv2d_backends.py", "test_conv_pool2d.py", "test_ops.py"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks (and nothing else)")
    parser.addoption("--benchmark-table", metavar="FILE", type=Path, help="also write their tables to FILE as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    """Triton kernels run in its interpreter unless a GPU is asked for; it is chosen when they are imported. Nobody's
    own cache of the autotuner is read or written."""
    os.environ["TILESMITH_CACHE"] = str(Path(tempfile.gettempdir()) / f"tilesmith-tests-{os.getpid()}-no-cache")
    if "gpu" not in config.getoption("markexpr"):
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--benchmark")
    chosen_marks = config.getoption("markexpr")
    skip_benchmark = pytest.mark.skip(reason="a benchmark: run with --benchmark")
    skip_gpu = pytest.mark.skip(reason="needs a GPU: run with -m gpu")
    kept, left_out = [], []
    for item in items:
        is_benchmark = BENCHMARKS in item.path.parents
        if wanted and not is_benchmark:
            left_out.append(item)
            continue
        if is_benchmark and not wanted:
            item.add_marker(skip_benchmark)
        if item.get_closest_marker("gpu") and "gpu" not in chosen_marks:
            item.add_marker(skip_gpu)
        if item.path.name not in APART:
            item.add_marker(pytest.mark.xdist_group(item.path.name))
        kept.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
