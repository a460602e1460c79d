"""Test session set-up: ``--benchmark`` runs the benchmarks and nothing else; without it they are skipped.

A run leaves out a few tests and takes a sample of the slowest ones' cases, the same ones each time: more with
``--one-in N``, all with ``--all-cases``.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"

# Files whose tests share nothing: workers (pytest -n) take them one by one. Those of another file stay together, for
# what its fixtures make once.
APART = {
    "test_backends_ops.py",
    "test_conv2d_backends.py",
    "test_conv_pool2d.py",
    "test_ops.py",
    "test_pool2d_backends.py",
    "test_softmax_backends.py",
}

# Files and tests of which a run takes one case in so many, at least one a test (and a backend), drawn by their names:
# kernels on emulators, and what takes seconds a case. So it takes some ten minutes on two cores. On a GPU, and when
# tests are named, all of them run.
ONE_IN = {
    "test_backends_ops.py": 12,
    "test_conv2d_backends.py": 12,
    "test_conv_pool2d.py": 12,
    "test_pool2d_backends.py": 12,
    "test_softmax_backends.py": 12,
    "test_integration.py::test_a_compiled_network_trains_like_the_eager_one": 2,
    "test_integration.py::test_two_processes_train_like_one": 2,
    "test_ops.py::test_gradcheck": 6,
    "test_ops.py::test_compiles_without_graph_breaks": 6,
    "test_ops.py::test_compiles_with_dynamic_shapes": 6,
    "test_rnn.py::test_more_than_65535_steps": 3,
    "test_rnn.py::test_4096_steps_do_not_drift": 3,
    "test_cli.py::test_a_stopped_training_goes_on_to_the_same_bits": 2,
    "test_static_table.py::kernels_compiled_again": 6,
    "test_words.py::test_it_learns_and_two_runs_are_equal_bit_by_bit": 3,
    "test_words.py::test_held_out_loss_is_gensims": 2,
    "test_words.py::test_processes_that_differ_are_stopped": 2,
    "test_words.py::test_two_processes_have_the_bits_of_one": 2,
}

# Tests that a plain run leaves out: a quarter or half of a minute each, and what they look at hardly changes alone.
LEFT_OUT = {
    "test_backends_ops.py::test_cuda_kernels_under_sanitizers",
    "test_cli.py::test_a_stopped_training_goes_on_to_the_same_bits",
    "test_conv2d_backends.py::test_cuda_kernels_under_sanitizers",
    "test_conv_pool2d.py::test_cuda_kernels_under_sanitizers",
    "test_corpus.py::test_two_processes_encode_the_same_text_at_once",
    "test_examples.py::test_mnist",
    "test_examples.py::test_it_learns_to_read",
    "test_integration.py::test_a_compiled_network_trains_like_the_eager_one",
    "test_integration.py::test_two_processes_train_like_one",
    "test_pool2d_backends.py::test_cuda_kernels_under_sanitizers",
    "test_rnn.py::test_more_than_65535_steps",
    "test_softmax_backends.py::test_cuda_kernels_under_sanitizers",
    "test_static_table.py::test_a_sample_has_no_faults",
    "test_static_table.py::test_a_sample_needs_what_the_table_says",
    "test_words.py::test_a_killed_run_goes_on_to_the_same_bits",
    "test_words.py::test_bursty_text_stays_stable",
    "test_words.py::test_the_bible_at_the_largest_step",
    "test_words.py::test_two_stopped_processes_go_on_to_the_same_bits",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks (and nothing else)")
    parser.addoption("--all-cases", action="store_true", help="run every case of the slowest tests, not a sample")
    parser.addoption("--one-in", metavar="N", type=int, help="of the slowest tests' cases run at least one in N")
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
    if _samples(config):
        kept, more = _sampled(config, kept)
        left_out += more
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    kept.sort(key=lambda item: item.path.name in APART)  # whole files first: at the end workers share what is small
    items[:] = kept


def pytest_report_header(config: pytest.Config) -> str | None:
    if not _samples(config):
        return None
    sizes = defaultdict(list)
    for name in ONE_IN:
        sizes[_one_in(config, name)].append(name)
    counts = "; ".join(f"one in {n} of {', '.join(names)}" for n, names in sizes.items() if n > 1)
    left_out = "" if config.getoption("--one-in") is not None else f" Left out: {', '.join(sorted(LEFT_OUT))}."
    return f"samples of cases: {counts}.{left_out} More with --one-in, all with --all-cases" if counts else None


def _one_in(config: pytest.Config, name: str) -> int:
    asked: int | None = config.getoption("--one-in")
    return ONE_IN[name] if asked is None else max(1, min(ONE_IN[name], asked))


@pytest.fixture(scope="session")
def one_in(pytestconfig: pytest.Config) -> Callable[[str], int]:
    """Of what ``ONE_IN`` names, for tests that make their cases themselves."""
    return lambda name: _one_in(pytestconfig, name) if _samples(pytestconfig) else 1


def _samples(config: pytest.Config) -> bool:
    named = any("::" in argument for argument in config.args) or config.getoption("keyword")
    asked = config.getoption("--all-cases") or config.getoption("--benchmark")
    return not (named or asked or "gpu" in config.getoption("markexpr"))


def _sampled(config: pytest.Config, items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    cases: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    left_out = set()
    for item in items:
        function = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
        if function in LEFT_OUT and config.getoption("--one-in") is None:
            left_out.add(item)
        elif item.get_closest_marker("skip") is None and (function in ONE_IN or item.path.name in ONE_IN):
            call: Any = getattr(item, "callspec", None)
            cases[function, str(call.params.get("rig", "")) if call else ""].append(item)
    for (function, _), group in cases.items():
        one_in = _one_in(config, function if function in ONE_IN else function.partition("::")[0])
        group.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        left_out.update(group[-(-len(group) // one_in) :])
    return [item for item in items if item not in left_out], [item for item in items if item in left_out]
