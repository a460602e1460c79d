"""Learns vectors of words from English text, shows what they know, and draws a map of them."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tilesmith.nn.words import Corpus, Options, Vocabulary, Word2Vec, WordVectors
from tilesmith.nn.words.interop import gensim_arguments

from .corpora import OUT as CORPORA
from .corpora import TEXTS, Unavailable, gensim_data, prepare, prepare_all

OURS, GENSIM = "tilesmith", "gensim"

_HELD_OUT = 100  # of so many sentences, one
_ENOUGH_TOKENS = 10_000_000  # trained on if --epochs does not say how often; of less the vectors know little
_EPOCHS = (Options.epochs, 20)  # at least and at most

_SHOWN_WORDS = ("king", "water", "city", "war", "music", "eight", "river", "france", "god", "monday", "computer", "red")
_SHOWN = 6
_ANALOGIES = [
    line.split()
    for line in """
        man king woman queen
        france french germany german
        father mother son daughter
        man men woman women
        big bigger small smaller
        good better bad worse
        he his she her
        paris france london england
        two second four fourth
        go went come came
    """.strip().splitlines()
]
_GROUPS = {
    "months": "january february march april may june july august september october november december",
    "numbers": "one two three four five six seven eight nine ten eleven twelve",
    "animals": "dog cat horse cow sheep pig goat lion bear wolf fish bird",
    "family": "father mother brother sister son daughter wife husband uncle aunt",
    "countries": "england france germany italy spain russia china india japan egypt greece australia",
    "colours": "red blue green yellow white black brown purple orange pink",
    "body": "head hand foot eye ear nose mouth arm leg finger",
    "days": "monday tuesday wednesday thursday friday saturday sunday",
}
_LEAST_OF_GROUP = 3  # words; of fewer it is left out
_DISTANCES = (5, 12, 20, 30, 42, 56, 72, 90)  # pixels from a point to its label
_COLOURS = ("#1f5fa8", "#d1571b", "#2c7f3c", "#b02a37", "#6f42a8", "#7a5230", "#c2378f", "#2b8a94")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Model(StrEnum):
    skipgram = "skipgram"
    cbow = "cbow"


# ---- text


def largest_text(folder: Path) -> Path | None:
    """The largest of the prepared texts in a folder, if there is any."""
    there = [path for name in ("all", *TEXTS) if (path := folder / f"{name}.txt").exists()]
    return max(there, key=lambda path: path.stat().st_size, default=None)


def split(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """The sentences to train on, and each hundredth one, which is held out."""
    lengths = np.diff(corpus.starts)
    held_out = np.arange(len(lengths)) % _HELD_OUT == _HELD_OUT - 1
    of_held_out = np.repeat(held_out, lengths)
    return (
        Corpus(corpus.tokens[~of_held_out], np.append(0, np.cumsum(lengths[~held_out])), corpus.words),
        Corpus(corpus.tokens[of_held_out], np.append(0, np.cumsum(lengths[held_out])), corpus.words),
    )


class Sentences:
    """A corpus as the lists of words that gensim reads, as often as it likes."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def __iter__(self) -> Iterator[list[str]]:
        words = self.corpus.words
        for start, end in pairwise(self.corpus.starts.tolist()):
            yield [words[i] for i in self.corpus.tokens[start:end].tolist()]


# ---- models


def train_gensim(options: Options, corpus: Corpus) -> tuple[Word2Vec, dict[str, float]]:
    """gensim's with one worker, as ours, and what it took."""
    from gensim.models import Word2Vec as Theirs

    begin = time.monotonic()
    theirs = Theirs(**gensim_arguments(options), workers=1)
    sentences = Sentences(corpus)
    theirs.build_vocab(sentences)
    built = time.monotonic()
    effective, _ = theirs.train(sentences, total_examples=theirs.corpus_count, epochs=theirs.epochs)
    seconds = time.monotonic() - built
    cost = {"vocabulary_seconds": built - begin, "train_seconds": seconds, "words_per_second": effective / seconds}
    return Word2Vec.from_gensim(theirs), cost


def measures(model: Word2Vec, held_out: Corpus) -> dict[str, float | None]:
    """What can be measured with this vocabulary and what is on this machine; ``None`` for the rest."""
    vectors = model.vectors

    def analogies() -> float:
        scores = vectors.evaluate_word_analogies(gensim_data("questions-words.txt"))
        return scores.accuracy if scores.total else math.nan

    measured: dict[str, float | None] = {}
    for name, measure in {
        "wordsim": lambda: vectors.evaluate_word_pairs(gensim_data("wordsim353.tsv")).spearman,
        "simlex": lambda: vectors.evaluate_word_pairs(gensim_data("simlex999.txt")).spearman,
        "analogies": analogies,
        "held_out_loss": lambda: model.score(held_out),
    }.items():
        try:
            measured[name] = _finite(measure())
        except (Unavailable, ValueError):  # no gensim; nothing of it is in the vocabulary
            measured[name] = None
    return measured


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


def neighbours(vectors: WordVectors) -> dict[str, list[str]]:
    """The nearest words of some that are there."""
    known = [word for word in _SHOWN_WORDS if word in vectors] or vectors.words[:_SHOWN]
    return {word: [near for near, _ in vectors.most_similar(word, topn=5)] for word in known[:_SHOWN]}


def answers(vectors: WordVectors) -> list[dict[str, Any]]:
    """What the vectors say of "a is to b as c is to ?", for questions of which they know all words."""
    asked = [question for question in _ANALOGIES if all(word in vectors for word in question)]
    return [
        {"question": [a, b, c], "expected": d, "answers": [w for w, _ in vectors.most_similar([b, c], [a], topn=3)]}
        for a, b, c, d in asked
    ]


# ---- the map


def groups_in(vectors: WordVectors) -> dict[str, list[str]]:
    """The groups' words that are there; of a text without them some frequent words."""
    known = {name: [word for word in words.split() if word in vectors] for name, words in _GROUPS.items()}
    groups = {name: words for name, words in known.items() if len(words) >= _LEAST_OF_GROUP}
    return groups or {"frequent words": vectors.words[-40:] if len(vectors) < 100 else vectors.words[60:100]}


def principal_components(points: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``[n, d]`` to ``[n, 2]``: places in the plane that shows most of their variance, and each axis's share of it."""
    centred = points.astype(np.float64) - points.mean(axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    plane, shares = np.zeros((len(points), 2)), np.zeros(2)
    k = min(2, len(axes))  # one point has no plane
    plane[:, :k] = centred @ axes[:k].T
    if values.any():
        shares[:k] = values[:k] ** 2 / (values**2).sum()
    return plane, shares


def draw_map(path: Path, vectors: WordVectors, title: str) -> dict[str, list[str]]:
    """Draws groups of words where the first two principal components put them. Returns the groups."""
    groups = groups_in(vectors)
    words = [word for group in groups.values() for word in group]
    plane, shares = principal_components(np.stack([vectors.units[vectors.index[word]] for word in words]))
    figure = Figure(figsize=(13, 10), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_title(title)
    axis.set_xlabel(f"first principal component, {shares[0]:.0%} of the variance")
    axis.set_ylabel(f"second, {shares[1]:.0%}")
    axis.grid(alpha=0.25)
    axis.margins(0.06)
    axis.set_axisbelow(True)
    place, colours = 0, []
    for (name, group), colour in zip(groups.items(), _COLOURS, strict=False):
        of_group = plane[place : place + len(group)]
        axis.scatter(of_group[:, 0], of_group[:, 1], s=26, color=colour, label=name, linewidths=0, zorder=3)
        place += len(group)
        colours += [colour] * len(group)
    figure.legend(loc="outside lower center", ncols=len(groups), frameon=False, fontsize=11)
    canvas.draw()  # so that the layout is known, and stays
    figure.set_layout_engine("none")
    _label(axis, canvas, plane, words, colours)
    figure.savefig(path, dpi=figure.dpi)
    return groups


def _label(
    axis: Any, canvas: FigureCanvasAgg, plane: NDArray[np.float64], words: list[str], colours: list[str]
) -> None:
    """Writes each word beside its point, where it covers least of other words and points; those in a crowd first."""
    points = axis.transData.transform(plane)  # in pixels from here on
    crowd = (np.linalg.norm(points[:, None] - points[None], axis=2) < 40).sum(axis=1)
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    directions = np.tile(np.stack([np.cos(angles), np.sin(angles)], axis=1), (len(_DISTANCES), 1))
    distances = np.repeat(_DISTANCES, len(angles))[:, None]
    taken = [np.concatenate([point - 8, point + 8]) for point in points]
    frame = axis.get_window_extent()
    inside = np.array([frame.x0, frame.y0, frame.x1, frame.y1])
    for i in np.argsort(-crowd, kind="stable"):
        text = axis.annotate(
            words[i],
            plane[i],
            xytext=(0, 0),
            textcoords="offset pixels",
            color=colours[i],
            fontsize=10,
            ha="center",
            va="center",
            zorder=4,
        )
        size = text.get_window_extent(canvas.get_renderer())
        half = np.array([size.width, size.height]) / 2 + 1
        offsets = (half + distances) * directions
        boxes = np.concatenate([points[i] + offsets - half, points[i] + offsets + half], axis=1)
        others = np.array(taken)
        others[i] = np.concatenate([points[i] - 4, points[i] + 4])  # a word may stand nearer to its own point
        sides = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
        covered = sides.clip(0).prod(axis=2).sum(axis=1)
        outside = np.maximum(inside[:2] - boxes[:, :2], boxes[:, 2:] - inside[2:]).clip(0).sum(axis=1)
        gaps = np.linalg.norm((np.abs(offsets) - half).clip(0), axis=1)
        best = int((covered + 100 * outside + gaps).argmin())
        text.set_position(offsets[best])
        taken.append(boxes[best])
        if gaps[best] > 8:
            line = {"arrowstyle": "-", "color": colours[i], "alpha": 0.7, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 2}
            edge = offsets[best].clip(-half, half)
            axis.annotate("", plane[i], xytext=offsets[best] - edge, textcoords="offset pixels", arrowprops=line)


# ---- the command


@app.command()
def main(
    text: Annotated[
        Path | None,
        typer.Option(
            help="A sentence a line; the largest text in out/corpora if not given.", exists=True, dir_okay=False
        ),
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--prepare", help="Fetch and prepare all texts first (examples.corpora says which).")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the text; 5 to 20 if not given, more on a shorter text.", min=1)
    ] = None,
    model: Annotated[Model, typer.Option(help="What predicts what.")] = Model.skipgram,
    vector_size: Annotated[int, typer.Option(help="Dimensions of the vectors.", min=2)] = Options.vector_size,
    seed: Annotated[int, typer.Option(help="Decides every draw.", min=0, max=2**31 - 1)] = Options.seed,
    gensim: Annotated[bool, typer.Option("--gensim", help="Train gensim's too, with one worker.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for all that is written.", file_okay=False)] = Path("out/word2vec"),
) -> None:
    """Learn vectors of words from English text; show neighbours, analogies and scores; draw a map."""
    console = Console(highlight=False, markup=False, emoji=False)  # words may look like markup
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    try:
        if text is None:
            text = _text(console, fetch)
        run(console, text, epochs, model, vector_size, seed, gensim, out)
    except (Unavailable, ValueError, ImportError) as error:
        console.print(f"error: {error}", style="red", soft_wrap=True)
        raise typer.Exit(1) from error


def _text(console: Console, fetch: bool) -> Path:
    if fetch:
        return prepare_all(CORPORA, console.print)
    text = largest_text(CORPORA) or prepare("enwiki", CORPORA)
    if text.stem != "all":
        console.print(f"{text} is what is here; --prepare fetches more text, and vectors become much better with it")
    return text


def run(
    console: Console,
    text: Path,
    epochs: int | None,
    model: Model,
    vector_size: int,
    seed: int,
    gensim: bool,
    out: Path,
) -> None:
    """Trains, prints and writes what comes out."""
    begin = time.monotonic()
    corpus, held_out = split(Corpus.of(text))
    vocabulary = Vocabulary.of(corpus.words, corpus.counts)
    vocabulary_seconds = time.monotonic() - begin
    if epochs is None:
        epochs = min(max(_EPOCHS[0], _ENOUGH_TOKENS // len(corpus.tokens)), _EPOCHS[1])
    console.print(
        f"{text}: {len(corpus.tokens):,} words in {len(corpus.starts) - 1:,} sentences, {len(vocabulary):,} different "
        f"ones seen {Options.min_count} times or more; each {_HELD_OUT}th sentence is held out; epochs: {epochs}",
        soft_wrap=True,
    )
    ours = Word2Vec(model.value, vector_size=vector_size, epochs=epochs, seed=seed)
    ours.fit(corpus, vocabulary=vocabulary, progress=console.is_terminal)
    seconds = sum(epoch["seconds"] for epoch in ours.history)
    cost = {
        "vocabulary_seconds": vocabulary_seconds,
        "train_seconds": seconds,
        "words_per_second": sum(epoch["effective_tokens"] for epoch in ours.history) / seconds,
    }
    trained = {OURS: (ours, cost)}
    if gensim:
        with console.status("gensim trains"):
            trained[GENSIM] = train_gensim(ours.options, corpus)

    results = {
        name: {
            **cost,
            **measures(model, held_out),
            "neighbours": neighbours(model.vectors),
            "analogies_asked": answers(model.vectors),
        }
        for name, (model, cost) in trained.items()
    }
    _print_results(console, results)
    losses = [epoch["loss"] for epoch in ours.history]
    console.print(f"training loss by epoch: {' '.join(f'{loss:.4f}' for loss in losses)}")

    vectors = ours.vectors
    groups = draw_map(out / "space.png", vectors, f"Words of {text.name}, by {model.value} vectors of {vector_size}")
    ours.save(out / "model.npz")
    vectors.save_word2vec_format(out / "vectors.txt")
    metrics = {
        "text": str(text),
        "words": len(corpus.tokens),
        "vocabulary": len(vocabulary),
        "options": asdict(ours.options),
        "loss": [_finite(loss) for loss in losses],
        "models": results,
        "groups": groups,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("tilesmith", "torch", "numpy", *([GENSIM] if gensim else []))}
        | {"python": platform.python_version()},
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    console.print(f"Written to {out}: space.png, model.npz, vectors.txt, metrics.json", soft_wrap=True)


def _print_results(console: Console, results: dict[str, dict[str, Any]]) -> None:
    names = list(results)
    near = Table("word", *names, title="Nearest words", title_justify="left")
    for word in results[OURS]["neighbours"]:
        near.add_row(word, *(", ".join(results[name]["neighbours"].get(word, [])) for name in names))
    console.print(near)

    asked = Table("question", "expected", *names, title="Analogies", title_justify="left")
    for i, one in enumerate(results[OURS]["analogies_asked"]):
        a, b, c = one["question"]
        asked.add_row(
            f"{a} : {b} = {c} : ?",
            one["expected"],
            *(", ".join(results[name]["analogies_asked"][i]["answers"]) for name in names),
        )
    if asked.rows:
        console.print(asked)

    scores = Table("", title="Result", title_justify="left")
    for name in names:
        scores.add_column(name, justify="right")
    for label, key, style in (
        ("WordSim-353, rank correlation", "wordsim", "{:.4f}"),
        ("SimLex-999, rank correlation", "simlex", "{:.4f}"),
        ("analogies answered right", "analogies", "{:.2%}"),
        ("loss a pair on held-out sentences", "held_out_loss", "{:.4f}"),
        ("vocabulary and encoding, seconds", "vocabulary_seconds", "{:.1f}"),
        ("training, seconds", "train_seconds", "{:.1f}"),
        ("effective words/s", "words_per_second", "{:,.0f}"),
    ):
        values = [results[name][key] for name in names]
        scores.add_row(label, *("-" if value is None else style.format(value) for value in values))
    console.print(scores)


if __name__ == "__main__":
    app()
