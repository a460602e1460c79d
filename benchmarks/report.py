"""The tables that a benchmark run ends with: plain text for the terminal, Markdown for a README."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .load import TOO_MUCH


@dataclass
class Table:
    """Rows of text under a header; the first ``words`` columns are words, the others numbers."""

    title: str
    header: tuple[str, ...]
    words: int
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def text(self) -> list[str]:
        """Lines with aligned columns."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        return [self._aligned(line, widths) for line in (self.header, tuple("-" * w for w in widths), *self.rows)]

    def _aligned(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        padded = [
            cell.ljust(width) if i < self.words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    def markdown(self) -> list[str]:
        """Lines of a Markdown table."""
        marks = ["---" if i < self.words else "---:" for i in range(len(self.header))]
        return ["| " + " | ".join(cells) + " |" for cells in (self.header, marks, *self.rows)]


@dataclass
class Report:
    """What a run has measured so far."""

    ops: Table = field(
        default_factory=lambda: Table(
            "tilesmith beside torch (medians; ratio = tilesmith / torch; FLOPs and bytes are tilesmith's)",
            ("op", "direction", "shape", "layout", "dtype", "tilesmith", "torch", "ratio", "GFLOP/s", "GB/s"),
            words=5,
        )
    )
    overhead: Table = field(
        default_factory=lambda: Table(
            "dispatch overhead on tiny inputs, us a call (medians; overhead = functional - bare NumPy function)",
            ("op", "shape", "bare", "functional", "overhead", "module", "torch"),
            words=2,
        )
    )
    words: Table = field(
        default_factory=lambda: Table(
            "Word2Vec beside one worker of gensim's, one thread, thousand words a second (medians; over 1 is faster)",
            ("Word2Vec", "text", "tilesmith", "gensim", "ratio"),
            words=2,
        )
    )

    disturbed: int = 0  # rows measured on a busy machine

    @property
    def tables(self) -> list[Table]:
        return [table for table in (self.ops, self.overhead, self.words) if table.rows]

    def trusted(self, cell: str, share_elsewhere: float) -> str:
        """The cell, marked if other processes took too much of the machine for what it says."""
        if share_elsewhere <= TOO_MUCH:
            return cell
        self.disturbed += 1
        return f"{cell} !"

    @property
    def warnings(self) -> list[str]:
        if not self.disturbed:
            return []
        return [
            f"! {self.disturbed} measured while other processes used over {TOO_MUCH:.0%} of the cores: do not trust"
        ]

    def write_markdown(self, path: Path, notes: Sequence[str]) -> None:
        parts = [
            f"{table.title[0].upper()}{table.title[1:]}.\n\n" + "\n".join(table.markdown()) for table in self.tables
        ]
        path.write_text("\n\n".join([*parts, *(f"{note}." for note in notes)]) + "\n", encoding="utf-8")


def environment(device: torch.device) -> dict[str, str | int]:
    """Where a time was measured: what makes it comparable with another."""
    return {
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def conditions(facts: dict[str, str | int]) -> str:
    """:func:`environment` in one line."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "numpy", "python"))
    return f"{facts['device']}, {facts['threads']} threads, {versions}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.processor() or platform.machine())
    return f"{model} ({torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores)"


def time_words(seconds: float) -> str:
    """Three significant digits, in us or ms."""
    value, unit = (seconds * 1e6, "us") if seconds < 1e-3 else (seconds * 1e3, "ms")
    return f"{_three_digits(value)} {unit}"


def rate_words(per_second: float) -> str:
    """Three significant digits in units of 1e9 a second, or a dash for nothing."""
    return _three_digits(per_second / 1e9) if per_second else "-"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"
