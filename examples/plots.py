"""The demos' pictures: learning curves of two networks, a confusion matrix, lines with what was read in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .lines import Lines
from .training import History

TRAIN_COLOUR, VALIDATION_COLOUR = "#1f5fa8", "#d1571b"
# The curves of the two networks nearly coincide: a wide pale line under a thin dark one shows both.
STYLES: tuple[dict[str, Any], ...] = (
    {"linewidth": 1.6, "marker": "o", "markersize": 4, "zorder": 3},
    {"linewidth": 7, "alpha": 0.3, "solid_capstyle": "round", "zorder": 2},
)


def learning_curves(path: Path, histories: dict[str, History], title: str) -> None:
    """Draws loss and accuracy of two networks, on training and validation images, over the epochs."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    axes = figure.subplots(1, 2)
    figure.suptitle(title)
    panels = (
        ("cross-entropy loss", 1, lambda h: (h.train_loss, h.validation_loss)),
        ("accuracy in %", 100, lambda h: (h.train_accuracy, h.validation_accuracy)),
    )
    for axis, (label, scale, curves) in zip(axes, panels, strict=True):
        for history, style in zip(histories.values(), STYLES, strict=True):
            epochs = np.arange(1, history.epochs + 1)
            for values, colour in zip(curves(history), (TRAIN_COLOUR, VALIDATION_COLOUR), strict=True):
                axis.plot(epochs, scale * np.array(values), color=colour, **style)
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.set_title(label.partition(" in ")[0].capitalize())
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)

    handles, labels = [], []
    for name, style in zip(histories, STYLES, strict=True):
        for split, colour in (("training", TRAIN_COLOUR), ("validation", VALIDATION_COLOUR)):
            handles.append(Line2D([], [], color=colour, **style))
            labels.append(f"{name}, {split}")
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def confusion_matrix(path: Path, confusion: Tensor, title: str) -> None:
    """Draws how many images of which class (row) were taken for which class (column), coloured by share of the row."""
    counts = confusion.numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{count}", ha="center", va="center", color=colour)
    axis.set_xticks(range(len(counts)))
    axis.set_yticks(range(len(counts)))
    axis.set_xlabel("predicted digit")
    axis.set_ylabel("true digit")
    axis.set_title(title)
    figure.colorbar(picture, ax=axis, label="share of the true digit's images", shrink=0.85)
    figure.savefig(path, dpi=120)


def read_lines(path: Path, lines: Lines, read: list[list[int]], title: str, shown: int = 16) -> None:
    """Draws lines with what was read in them: mistakes first, in red, with what stands there."""
    order = sorted(range(len(lines)), key=lambda i: lines.digits[i] == read[i])
    mistakes = sum(a != b for a, b in zip(lines.digits, read, strict=True))
    chosen = order[: min(mistakes, shown // 2)]
    chosen += [i for i in order if lines.digits[i] == read[i]][: shown - len(chosen)]
    figure = Figure(figsize=(11, 1.1 * len(chosen) / 2 + 0.8), layout="constrained")
    axes = figure.subplots((len(chosen) + 1) // 2, 2, squeeze=False).flatten()
    figure.suptitle(title)
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(axes, chosen, strict=False):
        axis.imshow(1 - lines.images[i, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        there, found = (" ".join(map(str, digits)) for digits in (lines.digits[i], read[i]))
        right = there == found
        text = found if right else f"{found or 'nothing'}   (there: {there})"
        axis.set_title(text, color="black" if right else "#c02020", loc="left", fontsize=10, family="monospace")
    figure.savefig(path, dpi=120)
