"""Measures every configuration of the NumPy kernels on a list of layers: the landscapes that the search is tested on.

    python -m benchmarks.record_times tests/recorded_times.jsonl     # some minutes; nothing else should run

Each configuration's time is the median of samples taken in turns with all others of its key. What a model predicts, and
what it came from, stand beside it.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from tilesmith import autotune, nn
from tilesmith.autotune.bench import Bench
from tilesmith.autotune.rows import VERSION, Row, text_of
from tilesmith.autotune.tuner import jobs_of

SAMPLES = 9
MOST_SECONDS = 0.05  # of a call: longer ones would take the evening


def layers() -> list[tuple[torch.nn.Module, torch.Tensor]]:
    """Small enough for minutes, large enough that a block is not all."""
    return [
        (nn.Conv2d(1, 32, 3), torch.randn(32, 1, 28, 28)),
        (nn.Conv2d(32, 64, 3), torch.randn(32, 32, 13, 13)),
        (nn.Conv2d(16, 32, 3, padding=1), torch.randn(8, 16, 40, 40)),
        (nn.Conv2d(8, 16, 5, stride=2), torch.randn(8, 8, 48, 48)),
        (nn.Conv2d(32, 32, 3, padding=1, groups=32), torch.randn(8, 32, 40, 40)),
        (nn.MaxPool2d(2), torch.randn(32, 32, 26, 26)),
        (nn.MaxPool2d(3, 2, 1), torch.randn(8, 32, 56, 56)),
        (nn.AvgPool2d(2), torch.randn(32, 32, 26, 26)),
        (nn.AvgPool2d(3, 1, 1), torch.randn(8, 32, 40, 40)),
        (nn.AdaptiveAvgPool2d(3), torch.randn(32, 64, 14, 14)),
        (nn.Linear(64, 64, activation="relu"), torch.randn(16384, 64)),
        (nn.Sigmoid(), torch.randn(64, 64, 26, 26)),
        (nn.Softmax(1), torch.randn(256, 1000)),
        (nn.LogSoftmax(1), torch.randn(64, 4096)),
    ]


def recorded() -> list[Row]:
    """A row for each configuration of each key."""
    calls = autotune.Recording()
    for layer, x in layers():
        for format in (torch.contiguous_format, torch.channels_last)[: 2 if x.dim() == 4 else 1]:
            laid_out = x.clone(memory_format=format).requires_grad_()
            calls.counts.update(autotune.recorded(layer, laid_out).counts)
    rows: list[Row] = []
    jobs = jobs_of(calls)
    for number, job in enumerate(jobs, 1):
        assert job.call is not None
        configs = list(job.tunable.configs(job.problem))
        if len(configs) < 2 or job.call_s > MOST_SECONDS:
            continue
        times, protocol = Bench(job.call).in_turns(job.tunable.name, configs, SAMPLES)
        for config, taken in zip(configs, times, strict=True):
            rows.append(_row(job, config, sorted(taken)[len(taken) // 2], protocol))
        print(
            f"{number} of {len(jobs)}: {job.tunable.name}, {len(configs)} configurations", file=sys.stderr, flush=True
        )
    return rows


def _row(job: Any, config: autotune.Config, time_s: float, protocol: str) -> Row:
    predicted_s = job.tunable.predicted(config, job.problem)
    row: Row = {"v": VERSION, "kind": "time", "key": job.filed.as_json(), "config": dict(config), "status": "ok"}
    row |= {"rung": "first", "protocol": protocol, "samples": SAMPLES}
    return row | {"time_us": _us(time_s), "predicted_us": _us(predicted_s or math.nan)}


def _us(time_s: float) -> float:
    return float(f"{time_s * 1e6:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file: Path = parser.parse_args().file
    file.write_text("".join(text_of(row) + "\n" for row in recorded()), encoding="utf-8")


if __name__ == "__main__":
    main()
