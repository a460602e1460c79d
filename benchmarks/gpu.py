"""Tests and times on an NVIDIA GPU, in at most nine minutes: what `make gpu` runs.

    python -m benchmarks.gpu --out DIR

First the tests that need a GPU (DIR/pytest.txt), then the standard layers (benchmarks/standard.py) by each of our
backends beside torch, checked and then timed: DIR/results.jsonl as it goes; results.json, results.md and results.svg
after each row. A run that is cut off keeps what it has.

This Python must hold torch, triton, cupy and pytest; nothing is installed, and nothing is asked of a network.

Exit codes: 0 all right, 1 a test failed or a kernel is wrong or raised, 2 no GPU or a wrong option, 3 nothing is wrong
but the time was over before the last row, 128 + n ended by signal n. Targets that are missed do not count.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("kernels", "nn", "autotune", "cli")
_NO_GPU = 2


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", help="folder of the results (out/gpu)")
    parser.add_argument("--minutes", type=float, default=9.0, help="at most, for all of it (9)")
    parser.add_argument("--quick", action="store_true", help="batches of 4: is everything right, not how fast it is")
    parser.add_argument("--only", default="", metavar="TEXT", help="only layers with TEXT in their names")
    parser.add_argument("--tests", default="tests", metavar="PATH", help="what pytest runs; '' for no tests (tests)")
    parser.add_argument("--tests-seconds", type=float, default=150.0, help="after which pytest is stopped (150)")
    parser.add_argument(
        "--checkers",
        type=int,
        default=max(1, min(6, cores // 2 - 1)),
        help="processes that check kernels while the tests run",
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: tiny layers on the NumPy backend, only to try this program",
    )
    chosen = parser.parse_args(arguments)
    missing = _missing(chosen.device)
    if missing:
        print(missing, file=sys.stderr)
        return _NO_GPU
    imported = importable()

    from .gpu_row import Settings  # what these import had to be made importable first
    from .gpu_run import Options, run

    settings = Settings(chosen.device, chosen.quick, chosen.only)
    if not settings.rows():
        parser.error(f"no layer has {chosen.only!r} in its name")
    return run(
        Options(
            chosen.out.resolve(),
            chosen.minutes,
            chosen.tests,
            chosen.tests_seconds,
            chosen.checkers,
            imported,
            settings,
        )
    )


def _missing(device: str) -> str:
    """What there is not, in one line."""
    try:
        import torch
    except ImportError as error:
        return f"benchmarks.gpu needs PyTorch in {sys.executable}: {error}"
    if device == "cuda" and not torch.cuda.is_available():
        return f"benchmarks.gpu needs an NVIDIA GPU: torch {torch.__version__} in {sys.executable} finds none"
    return ""


def importable() -> str:
    """Makes this checkout's ``tilesmith`` importable here and in child processes, and says how.

    Where it is not installed, a folder of links is put on the path: no pip, which would want a recent setuptools and
    leave an installation behind in a Python that is not ours.
    """
    if _is_here():
        return "as installed"
    folder = ROOT / "build" / "import"
    (folder / "tilesmith").mkdir(parents=True, exist_ok=True)
    for package in _PACKAGES:
        link = folder / "tilesmith" / package
        if not link.is_symlink():
            link.symlink_to(Path("..", "..", "..", package))
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    importlib.invalidate_caches()
    if not _is_here():
        raise SystemExit("another tilesmith is in the way: uninstall it from this Python first")
    return "through build/import on PYTHONPATH"


def _is_here() -> bool:
    try:
        spec = find_spec("tilesmith.kernels")
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None and ROOT in Path(spec.origin).resolve().parents


if __name__ == "__main__":
    sys.exit(main())
