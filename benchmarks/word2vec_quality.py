"""Word vectors of ours beside gensim's: the same tokens, vocabulary and options, several seeds, mean and deviation.

``python -m benchmarks.word2vec_quality --text out/corpora/all.txt`` trains both on the text without each hundredth
sentence, and measures WordSim-353, SimLex-999, analogies, and the loss on the sentences left out (of both models by the
same function, with the same draws). A run is a line of ``<out>/<text>.jsonl`` as soon as it is done; runs that are
there are not repeated.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from tilesmith.nn.words import Corpus, Options, Vocabulary, Word2Vec
from tilesmith.nn.words.interop import gensim_arguments

from examples.corpora import gensim_data

_HELD_OUT = 100  # of so many sentences, one
_VECTOR_SIZE, _ANALOGY_WORDS = 100, 30_000
_MEASURES = {"wordsim": 1, "simlex": 1, "analogies": 1, "held_out_loss": -1}  # 1: more is better

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Model(StrEnum):
    SKIPGRAM = "skipgram"
    CBOW = "cbow"
    SKIPGRAM_HIERARCHICAL = "skipgram-hierarchical"
    CBOW_HIERARCHICAL = "cbow-hierarchical"

    @property
    def options(self) -> dict[str, Any]:
        name, _, softmax = self.value.partition("-")
        return {"model": name, "hierarchical": bool(softmax), "vector_size": _VECTOR_SIZE}


Sentences = list[list[str]]


def split(path: Path) -> tuple[Sentences, Sentences]:
    """The sentences to train on, and those held out."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    held_out = lines[_HELD_OUT - 1 :: _HELD_OUT]
    del lines[_HELD_OUT - 1 :: _HELD_OUT]
    return lines, held_out


def ours(options: Options, corpus: Corpus) -> Word2Vec:
    return Word2Vec(**asdict(options)).fit(corpus)


def theirs(options: Options, sentences: Sentences) -> Word2Vec:
    """gensim's with one worker, as ours."""
    from gensim.models import Word2Vec as Theirs

    return Word2Vec.from_gensim(Theirs(sentences, **gensim_arguments(options), workers=1))


def measures(model: Word2Vec, held_out: Corpus) -> dict[str, float]:
    vectors = model.vectors
    # slices and pool belong to the measure here: gensim has none
    usual = Word2Vec(model.options.model, hierarchical=model.options.hierarchical, slice_tokens=16, pool=16)
    usual.vocabulary, usual.in_weight, usual.out_weight = model.vocabulary, model.in_weight, model.out_weight
    analogies = vectors.evaluate_word_analogies(gensim_data("questions-words.txt"), restrict_vocab=_ANALOGY_WORDS)
    return {
        "wordsim": vectors.evaluate_word_pairs(gensim_data("wordsim353.tsv")).spearman,
        "simlex": vectors.evaluate_word_pairs(gensim_data("simlex999.txt")).spearman,
        "analogies": analogies.accuracy,
        "held_out_loss": usual.score(held_out),
    }


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of mean ± standard deviation, and by how many of gensim's deviations ours is better."""
    lines = [
        "| model | measure | seeds | tilesmith | gensim | better by, in gensim's deviations |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        of = {
            side: [row for row in rows if row["model"] == model and row["side"] == side]
            for side in ("tilesmith", "gensim")
        }
        if not all(of.values()):
            continue
        for measure, sign in _MEASURES.items():
            mine, other = ([row[measure] for row in side] for side in of.values())
            deviations = [statistics.stdev(v) if len(v) > 1 else float("nan") for v in (mine, other)]
            means = [statistics.fmean(v) for v in (mine, other)]
            better = sign * (means[0] - means[1]) / deviations[1] if deviations[1] else float("nan")
            texts = [f"{m:.4f} ± {d:.4f}" for m, d in zip(means, deviations, strict=True)]
            lines.append(
                f"| {model} | {measure} | {len(mine)}, {len(other)} | {texts[0]} | {texts[1]} | {better:+.1f} |"
            )
    return lines


@app.command()
def main(
    text: Annotated[Path, typer.Option(help="A sentence a line.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Where the runs are written.")] = Path("out/word2vec_quality"),
    model: Annotated[list[Model], typer.Option(help="Which models.")] = [Model.SKIPGRAM, Model.CBOW],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Train and measure ours and gensim's, seed after seed, and print a table."""
    torch.set_num_threads(1)
    console = Console(highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    log = out / f"{text.stem}.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    train, held_out_words = split(text)
    corpus, held_out = Corpus.of(train), Corpus.of(held_out_words)
    vocabulary = Vocabulary.of(corpus.words, corpus.counts)
    console.print(
        f"{text}: {len(corpus.tokens):,} tokens, {len(vocabulary):,} words, {len(held_out.tokens):,} held out"
    )
    done = {(row["model"], row["side"], row["seed"], row["epochs"]) for row in rows}
    for seed in range(1, seeds + 1):
        for which in model:
            for side in ("tilesmith", "gensim"):
                if (which.value, side, seed, epochs) in done:
                    continue
                begin = time.monotonic()
                options = Options(**which.options, epochs=epochs, seed=seed)
                trained = ours(options, corpus) if side == "tilesmith" else theirs(options, train)
                seconds = time.monotonic() - begin
                assert trained.vocabulary is not None
                assert trained.vocabulary.words == vocabulary.words
                assert np.array_equal(trained.vocabulary.counts, vocabulary.counts)
                row = {"model": which.value, "side": side, "seed": seed, "epochs": epochs, "seconds": round(seconds, 1)}
                rows.append({**row, **measures(trained, held_out), "options": asdict(trained.options)})
                with log.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                console.print({k: v for k, v in rows[-1].items() if k != "options"})
    table = summary([row for row in rows if row["epochs"] == epochs])
    (out / f"{text.stem}.md").write_text("\n".join(table) + "\n")
    console.print("\n".join(table), soft_wrap=True)


if __name__ == "__main__":
    app()
