"""Reads lines of handwritten digits: the tutorial's CNN and its bidirectional LSTM combined, trained with CTC."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tilesmith import nn as tsnn
from tilesmith.nn import functional as F
from torch import Tensor, nn

from . import plots
from .data import CLASSES, IMAGE_SIZE, Split, load_digits
from .lines import Lines, compose

BLANK = CLASSES  # CTC's "nothing new here", behind the ten digits
COLUMNS_A_STEP = 4  # two poolings halve the width twice

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Merge(StrEnum):
    concat = "concat"
    sum = "sum"
    mean = "mean"
    gated = "gated"


@dataclass(frozen=True)
class Options:
    """How the network is made and trained."""

    epochs: int = 16
    lines: int = 2048
    batch_size: int = 32
    units: int = 64
    merge: str = "concat"
    lr: float = 3e-3
    test_lines: int = 500
    seed: int = 0


class LineReader(nn.Module):
    """Two convolutions see the strokes, a BiLSTM reads the columns from both sides, a dense layer names them.

    ``[B, 1, 28, W]`` with each line's width ``[B]`` to log-probabilities ``[T, B, 11]``, T = ⌊⌊W / 2⌋ / 2⌋, and each
    line's steps ``[B]``.
    """

    def __init__(self, units: int, merge: str) -> None:
        super().__init__()
        self.look = nn.Sequential(
            tsnn.Conv2d(1, 24, 3, padding=1, activation="relu"),
            tsnn.MaxPool2d(2),
            tsnn.Conv2d(24, 48, 3, padding=1, activation="relu"),
            tsnn.MaxPool2d(2),
        )
        self.read = tsnn.BiLSTM(48 * (IMAGE_SIZE // COLUMNS_A_STEP), units, merge=merge)
        self.name = tsnn.Linear(2 * units if merge == "concat" else units, CLASSES + 1)

    def forward(self, images: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        steps = widths // COLUMNS_A_STEP
        columns = self.look(images).flatten(1, 2).permute(2, 0, 1)  # [T, B, 48 * 7]
        read, _ = self.read(columns, lengths=steps)
        return F.log_softmax(self.name(read), dim=2), steps


def ctc_loss(log_probabilities: Tensor, steps: Tensor, digits: list[list[int]]) -> Tensor:
    """Minus the log-probability of the digits, over all their alignments to the steps; the mean of the lines."""
    targets = torch.tensor([digit for line in digits for digit in line])
    counts = torch.tensor([len(line) for line in digits])
    return nn.functional.ctc_loss(log_probabilities, targets, steps, counts, blank=BLANK)


def decode(log_probabilities: Tensor, steps: Tensor) -> list[list[int]]:
    """The likeliest class of each step, repeats taken once, blanks left out."""
    read = []
    for best, n in zip(log_probabilities.argmax(dim=2).T, steps.tolist(), strict=True):
        classes = torch.unique_consecutive(best[:n])
        read.append([c for c in classes.tolist() if c != BLANK])
    return read


@dataclass
class Training:
    """What an epoch gives: mean loss, share of validation lines read without a mistake; and each step's time."""

    loss: list[float] = field(default_factory=list)
    validation_lines_right: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)


def train(
    network: LineReader,
    training: Split,
    validation: Lines,
    options: Options,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[int, Training], None] = lambda epoch, result: None,
) -> Training:
    """Trains on lines that are written anew in each epoch, with Adam and a learning rate that falls to 0."""
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.lr)
    steps = math.ceil(options.lines / options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.epochs * steps)
    result = Training()
    for epoch in range(1, options.epochs + 1):
        network.train()
        losses = []
        for step in range(steps):
            count = min(options.batch_size, options.lines - step * options.batch_size)
            batch = compose(training, count, generator, distorted=True)
            start = time.perf_counter()
            optimizer.zero_grad()
            log_probabilities, steps_of_lines = network(batch.images, batch.widths)
            loss = ctc_loss(log_probabilities, steps_of_lines, batch.digits)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            result.step_ms.append((time.perf_counter() - start) * 1e3)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]} in step {step + 1} of epoch {epoch}")
            on_step()
        result.loss.append(sum(losses) / len(losses))
        result.validation_lines_right.append(share_right(validation.digits, read_lines(network, validation)))
        on_epoch(epoch, result)
    return result


def read_lines(network: LineReader, lines: Lines, batch_size: int = 100) -> list[list[int]]:
    """What the network reads in each line."""
    network.eval()
    read: list[list[int]] = []
    with torch.no_grad():
        for images, widths in zip(lines.images.split(batch_size), lines.widths.split(batch_size), strict=True):
            read += decode(*network(images, widths))
    return read


def share_right(digits: list[list[int]], read: list[list[int]]) -> float:
    """The share of lines read without a mistake."""
    return sum(a == b for a, b in zip(digits, read, strict=True)) / len(digits)


@app.command()
def main(
    epochs: Annotated[int, typer.Option(help="Passes; the lines are written anew in each.", min=1)] = Options.epochs,
    lines: Annotated[int, typer.Option(help="Lines an epoch.", min=1)] = Options.lines,
    batch_size: Annotated[int, typer.Option(help="Lines a training step.", min=1)] = Options.batch_size,
    units: Annotated[int, typer.Option(help="LSTM units a direction.", min=1)] = Options.units,
    merge: Annotated[Merge, typer.Option(help="How the two directions become one.")] = Merge.concat,
    lr: Annotated[float, typer.Option(help="Adam's largest learning rate.", min=1e-8)] = Options.lr,
    test_lines: Annotated[int, typer.Option(help="Lines of held-out images.", min=1)] = Options.test_lines,
    seed: Annotated[int, typer.Option(help="Decides splits, lines and weights.", min=0, max=2**31 - 1)] = Options.seed,
    out: Annotated[Path, typer.Option(help="Folder for the picture and metrics.json.", file_okay=False)] = Path(
        "out/crnn"
    ),
) -> None:
    """Train a CNN and a BiLSTM to read lines of handwritten digits, and show what they read in unseen ones."""
    options = Options(epochs, lines, batch_size, units, merge.value, lr, test_lines, seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    console = Console(highlight=False)
    try:
        run(console, options, out)
    except FloatingPointError as error:
        console.print(f"[red]Training diverged:[/] {error}")
        raise typer.Exit(1) from error


def run(console: Console, options: Options, out: Path) -> float:
    """Trains, prints and writes what comes out; returns the share of test lines read without a mistake."""
    data = load_digits(options.seed)
    generator = torch.Generator().manual_seed(options.seed + 1)
    validation = compose(data.validation, 200, generator)
    test = compose(data.test, options.test_lines, generator)
    torch.manual_seed(options.seed)
    network = LineReader(options.units, options.merge)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    steps = math.ceil(options.lines / options.batch_size)
    console.print(f"{network}\n")
    console.print(
        f"{parameters:,} parameters; {options.epochs} epochs of {steps:,} steps of {options.batch_size} lines, "
        f"{torch.get_num_threads()} threads; digits: {len(data.train):,} for training lines, "
        f"{len(data.validation):,} for validation, {len(data.test):,} for the test\n"
    )
    console.print("[bold]epoch    loss    validation lines without a mistake[/]")

    def print_epoch(epoch: int, result: Training) -> None:
        right = result.validation_lines_right[-1]
        console.print(f"{f'{epoch}/{options.epochs}':<7}{result.loss[-1]:>7.4f}{right:>12.1%}")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("training steps", total=options.epochs * steps)
        result = train(network, data.train, validation, options, lambda: progress.advance(task), print_epoch)
    seconds = time.perf_counter() - start

    read = read_lines(network, test)
    right = share_right(test.digits, read)
    plots.read_lines(out / "lines.png", test, read, f"{right:.1%} of {len(test)} unseen lines read without a mistake")
    metrics: dict[str, Any] = {
        "options": asdict(options),
        "parameters": parameters,
        "training": {"loss": result.loss, "validation_lines_right": result.validation_lines_right},
        "median_step_ms": median(result.step_ms),
        "seconds": seconds,
        "test_lines_right": right,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("tilesmith", "torch", "numpy")}
        | {"python": platform.python_version()},
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    console.print(f"\n[bold]{right:.1%}[/] of {len(test)} lines of held-out digits read without a mistake")
    console.print(f"trained in {seconds:.0f} s, {median(result.step_ms):.0f} ms a step (median)")
    console.print(f"Written to {out}: lines.png, metrics.json", soft_wrap=True)
    return right


if __name__ == "__main__":
    app()
