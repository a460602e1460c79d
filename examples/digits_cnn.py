"""Trains the tutorial's CNN on handwritten digits: our layers beside torch's, same weights, same batches."""

from __future__ import annotations

import copy
import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tilesmith import nn as tsnn
from tilesmith.kernels import conv2d
from torch import nn

from . import plots
from .data import Dataset, Split, load_digits, load_mnist
from .training import EVALUATION_BATCH, Evaluation, History, Options, evaluate, largest_relative_difference, train
from .tuning import tune_first

OURS, TORCH, YARDSTICK = "tilesmith", "torch", "torch without oneDNN"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Dtype(StrEnum):
    float32 = "float32"
    float64 = "float64"


def build_network(layers: ModuleType, *, dropout: float = 0.0, batch_norm: bool = False) -> nn.Sequential:
    """The tutorial's CNN for ``[N, 1, 28, 28]`` images and ten classes.

    Args:
        layers: ``torch.nn``, or ``tilesmith.nn``, whose layers take the activation into the kernel.
        dropout: probability of dropping an input of the last layer; 0 leaves the layer out.
        batch_norm: normalise after each convolution, before its activation.

    Parameters have the same names whichever layers it is made of, so a state_dict of one fits the other.
    """
    parts: dict[str, nn.Module] = {}

    def add_activated(name: str, layer: Callable[..., nn.Module], *sizes: int, norm: nn.Module | None = None) -> None:
        if layers is tsnn and norm is None:
            parts[name] = layer(*sizes, activation="relu")
            return
        parts[name] = layer(*sizes)
        if norm is not None:
            parts[f"{name}_norm"] = norm
        parts[f"{name}_relu"] = layers.ReLU()

    add_activated("conv1", layers.Conv2d, 1, 32, 3, norm=nn.BatchNorm2d(32) if batch_norm else None)
    parts["pool1"] = layers.MaxPool2d(2)
    add_activated("conv2", layers.Conv2d, 32, 64, 3, norm=nn.BatchNorm2d(64) if batch_norm else None)
    parts["pool2"] = layers.MaxPool2d(2)
    parts["flatten"] = nn.Flatten()
    add_activated("dense1", layers.Linear, 64 * 5 * 5, 64)
    if dropout:
        parts["dropout"] = nn.Dropout(dropout)
    parts["dense2"] = layers.Linear(64, 10)

    network = nn.Sequential()
    for name, part in parts.items():
        network.add_module(name, part)
    return network


def build_twins(seed: int, *, dropout: float = 0.0, batch_norm: bool = False) -> tuple[nn.Sequential, nn.Sequential]:
    """The network of our layers and the network of torch's, with the same initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reference = build_network(nn, dropout=dropout, batch_norm=batch_norm)
        ours = build_network(tsnn, dropout=dropout, batch_norm=batch_norm)
    ours.load_state_dict(reference.state_dict())
    return ours, reference


def _checked(valid: Callable[[float], bool], rule: str) -> Callable[[float], float]:
    def check(value: float) -> float:
        if not (math.isfinite(value) and valid(value)):
            raise typer.BadParameter(f"{value:g} is not {rule}")
        return value

    return check


@app.command()
def main(
    mnist: Annotated[
        Path | None,
        typer.Option(
            help="Folder with MNIST's four idx files (plain or .gz), instead of the bundled digits.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = Options.epochs,
    batch_size: Annotated[int, typer.Option(help="Images a training step.", min=1)] = Options.batch_size,
    lr: Annotated[
        float, typer.Option(help="Adam's learning rate.", callback=_checked(lambda v: v > 0, "above 0"))
    ] = Options.lr,
    dropout: Annotated[
        float,
        typer.Option(
            help="Probability of dropping an input of the last layer.",
            callback=_checked(lambda v: 0 <= v < 1, "at least 0 and below 1"),
        ),
    ] = 0.0,
    batch_norm: Annotated[bool, typer.Option("--batch-norm", help="Batch norm after each convolution.")] = False,
    fuse: Annotated[
        bool, typer.Option("--fuse", help="Make one layer of each convolution, ReLU and pooling of ours.")
    ] = False,
    weight_decay: Annotated[
        float,
        typer.Option(help="L2 penalty on the weights.", callback=_checked(lambda v: v >= 0, "at least 0")),
    ] = Options.weight_decay,
    lr_decay: Annotated[
        float,
        typer.Option(
            help="Factor on the learning rate after each epoch.",
            callback=_checked(lambda v: 0 < v <= 1, "above 0 and at most 1"),
        ),
    ] = Options.lr_decay,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            help="Stop after this many epochs without a better validation loss; keep the best weights.",
            metavar="PATIENCE",
            min=1,
        ),
    ] = Options.early_stopping,
    seed: Annotated[
        int, typer.Option(help="Decides splits, initial weights, batches and dropout.", min=0, max=2**31 - 1)
    ] = Options.seed,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and images.")] = Dtype.float32,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and metrics.json.", file_okay=False)] = Path(
        "out/demo"
    ),
    tune: Annotated[
        bool,
        typer.Option("--tune/--no-tune", help="First measure which configurations of the kernels are fastest here."),
    ] = True,
    limit: Annotated[
        int | None, typer.Option(help="Use only the first LIMIT training images.", metavar="LIMIT", min=10)
    ] = None,
) -> None:
    """Train the tutorial's CNN twice, of tilesmith's layers and of torch's, and compare them."""
    options = Options(epochs, batch_size, lr, weight_decay, lr_decay, early_stopping, seed, getattr(torch, dtype.value))
    try:
        data = load_mnist(mnist, seed, limit) if mnist else load_digits(seed, limit)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--mnist" if mnist else "--limit") from error
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error

    console = Console(highlight=False)
    try:
        run(console, data, options, out, dropout=dropout, batch_norm=batch_norm, fuse=fuse, tune=tune)
    except FloatingPointError as error:
        console.print(f"[red]Training diverged:[/] {error}")
        raise typer.Exit(1) from error


def run(
    console: Console,
    data: Dataset,
    options: Options,
    out: Path,
    *,
    dropout: float,
    batch_norm: bool,
    fuse: bool,
    tune: bool,
) -> None:
    """Trains both networks and the yardstick, prints what comes out and writes it to ``out``."""
    ours, reference = build_twins(options.seed, dropout=dropout, batch_norm=batch_norm)
    if fuse:
        console.print(str(tsnn.convert(ours, fuse=True)))
    yardstick = copy.deepcopy(reference)
    steps = math.ceil(len(data.train) / options.batch_size)
    setup = {
        "data": data.name,
        "images": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        "parameters": sum(parameter.numel() for parameter in reference.parameters()),
        "options": asdict(options)
        | {
            "dtype": str(options.dtype).removeprefix("torch."),
            "dropout": dropout,
            "batch_norm": batch_norm,
            "fuse": fuse,
        },
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "backend": conv2d.OPERATION.implementation("cpu").__name__.rpartition("._")[2],
        "onednn": torch.backends.mkldnn.is_available(),
        "versions": {name: version(name) for name in ("tilesmith", "torch", "numpy")}
        | {"python": platform.python_version()},
    }
    _print_setup(console, setup, steps)
    if tune:
        few, many = (data.train.images[:n].to(options.dtype) for n in (options.batch_size, EVALUATION_BATCH))
        setup["tuning"] = tune_first(console, copy.deepcopy(ours).to(options.dtype), few, many, out / "cache")
    console.print("[bold]epoch  network    train loss  train acc.  valid. loss  valid. acc.[/]")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("training steps", total=(2 * options.epochs + 1) * steps)

        def advance() -> None:
            progress.advance(task)

        histories = train(
            {OURS: ours, TORCH: reference},
            data,
            options,
            on_step=advance,
            on_epoch=lambda epoch, trained: _print_epoch(console, epoch, options.epochs, trained),
        )
        # torch's own distance from itself: other kernels, same weights, same batches; the first epoch tells it
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):  # None: its default warns on a CPU
            first_epoch = train({YARDSTICK: yardstick}, data, replace(options, epochs=1), on_step=advance)

    test = Split(data.test.images.to(options.dtype), data.test.labels)
    tests = {OURS: evaluate(ours, test), TORCH: evaluate(reference, test)}
    torch_losses = histories[TORCH].step_losses[:steps]
    differences = {
        OURS: largest_relative_difference(histories[OURS].step_losses[:steps], torch_losses),
        YARDSTICK: largest_relative_difference(first_epoch[YARDSTICK].step_losses, torch_losses),
    }
    step_ms = {name: median(history.step_ms) for name, history in histories.items()}
    _print_result(console, histories, tests, step_ms, differences)

    title = f"{data.name}: {len(data.train):,} training images"
    plots.learning_curves(out / "learning_curves.png", histories, title)
    plots.confusion_matrix(
        out / "confusion_matrix.png",
        tests[OURS].confusion,
        f"{OURS}: {tests[OURS].accuracy:.2%} of {len(data.test):,} test images right",
    )
    metrics = setup | {
        "networks": {name: _network_metrics(histories[name], tests[name], step_ms[name]) for name in histories},
        "first_epoch_loss_difference_from_torch": differences,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    console.print(f"Written to {out}: learning_curves.png, confusion_matrix.png, metrics.json", soft_wrap=True)


def _network_metrics(history: History, test: Evaluation, step_ms: float) -> dict[str, Any]:
    return {
        "train_loss": history.train_loss,
        "train_accuracy": history.train_accuracy,
        "validation_loss": history.validation_loss,
        "validation_accuracy": history.validation_accuracy,
        "kept_epoch": history.kept_epoch,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "confusion_matrix": test.confusion.tolist(),
        "median_step_ms": step_ms,
    }


def _print_setup(console: Console, setup: dict[str, Any], steps: int) -> None:
    images, options, versions = setup["images"], setup["options"], setup["versions"]
    remedies = [f"{name.replace('_', ' ')} {options[name]:g}" for name in ("dropout", "weight_decay") if options[name]]
    if options["lr_decay"] != 1:
        remedies.append(f"lr decay {options['lr_decay']:g}")
    if options["batch_norm"]:
        remedies.append("batch norm")
    if options["early_stopping"]:
        remedies.append(f"early stopping after {options['early_stopping']}")
    rows = {
        "network": f"the tutorial's CNN, {setup['parameters']:,} parameters, {options['dtype']}",
        "data": setup["data"],
        "images": f"{images['train']:,} training, {images['validation']:,} validation, {images['test']:,} test",
        "training": f"Adam, lr {options['lr']:g}, {options['epochs']} epochs of {steps:,} steps of "
        f"{options['batch_size']} images, seed {options['seed']}",
        "remedies": ", ".join(remedies) or "none",
        OURS: f"{versions['tilesmith']}, backend {setup['backend']} {versions['numpy']}",
        TORCH: f"{versions['torch']}, {'with' if setup['onednn'] else 'without'} oneDNN",
        "device": f"CPU, {setup['threads']} threads",
    }
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/]", text)
    console.print(table)
    console.print()


def _print_epoch(console: Console, epoch: int, epochs: int, trained: dict[str, History]) -> None:
    for position, (name, history) in enumerate(trained.items()):
        counter = f"{epoch}/{epochs}" if position == 0 else ""
        console.print(
            f"{counter:<7}{name:<11}{history.train_loss[-1]:>10.4f}{history.train_accuracy[-1]:>12.2%}"
            f"{history.validation_loss[-1]:>13.4f}{history.validation_accuracy[-1]:>13.2%}"
        )


def _print_result(
    console: Console,
    histories: dict[str, History],
    tests: dict[str, Evaluation],
    step_ms: dict[str, float],
    differences: dict[str, float],
) -> None:
    table = Table(title="Result", title_justify="left")
    table.add_column("")
    for name in histories:
        table.add_column(name, justify="right")
    table.add_row("test accuracy", *(f"{tests[name].accuracy:.2%}" for name in histories))
    table.add_row("test loss", *(f"{tests[name].loss:.4f}" for name in histories))
    table.add_row("weights of epoch", *(str(history.kept_epoch) for history in histories.values()))
    table.add_row("median training step", *(f"{step_ms[name]:.2f} ms" for name in histories))
    console.print()
    console.print(table)
    console.print("Losses of the first epoch's steps, largest relative difference from torch's:")
    for name, difference in differences.items():
        console.print(f"  {name:<22}{difference:.1e}")
    console.print()


if __name__ == "__main__":
    app()
