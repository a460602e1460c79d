"""``tilesmith word2vec``: train word vectors on text, ask them, judge them, convert their files."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from difflib import get_close_matches
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rich
import torch
import typer
from rich.console import Console
from rich.table import Table

from ..nn.words import Corpus, Options, Progress, Word2Vec, WordVectors
from ..nn.words._progress import bar

_HINT_WORDS = 100_000  # the most frequent ones, among which similar words are looked for
_PAIRS, _ANALOGIES = ("wordsim353.tsv", "simlex999.txt"), "questions-words.txt"  # of gensim

app = typer.Typer(no_args_is_help=True, help="Word vectors: train, nearest, evaluate, convert.")


class Kind(StrEnum):
    """What a file holds."""

    model = "model"
    vectors = "vectors"
    text = "text"
    binary = "binary"
    gensim = "gensim"


class Dtype(StrEnum):
    float32 = "float32"
    float64 = "float64"


File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A model, or word vectors: .npz, word2vec's text or binary format.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_training = partial(typer.Option, rich_help_panel="Training")
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]


# ---- train


@app.command()
def train(
    texts: Annotated[
        list[Path],
        typer.Argument(
            metavar="TEXT",
            help="UTF-8, a sentence a line, words between white space (also .gz, .bz2); - is standard input. Several "
            "are one text; their words, four bytes each, are then in memory.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL.npz", help="Where the model goes.")],
    vectors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write word vectors: .txt, .vec, .bin (.gz behind it compresses), .npz."
        ),
    ] = None,
    force: Force = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Written now and then; if it is there, training goes on where it stopped."),
    ] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Between two checkpoints.", min=0)] = 60.0,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep the text as numbers there: for texts larger than memory."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
    as_json: AsJson = False,
    model: Annotated[str, _training(metavar="skipgram|cbow", help="What predicts what.")] = Options.model,
    vector_size: Annotated[int, _training(help="Dimensions.")] = Options.vector_size,
    window: Annotated[int, _training(help="Most words between a word and its context.")] = Options.window,
    shrink_windows: Annotated[bool, _training(help="Each word draws its window.")] = Options.shrink_windows,
    min_count: Annotated[int, _training(help="Words seen less often are dropped.")] = Options.min_count,
    max_vocab: Annotated[int | None, _training(help="Keep only so many words.")] = Options.max_vocab,
    sample: Annotated[float, _training(help="Threshold of thinning out frequent words; 0: none.")] = Options.sample,
    negative: Annotated[int, _training(help="Negatives a pair.")] = Options.negative,
    hierarchical: Annotated[
        bool, _training("--hierarchical", help="Hierarchical softmax instead of negatives.")
    ] = Options.hierarchical,
    ns_exponent: Annotated[float, _training(help="Of counts, for negatives.")] = Options.ns_exponent,
    cbow_mode: Annotated[str, _training(metavar="mean|sum", help="Of the window's vectors.")] = Options.cbow_mode,
    cbow_grad: Annotated[
        str, _training(metavar="exact|gensim", help="The derivative, or what gensim takes for it.")
    ] = Options.cbow_grad,
    alpha: Annotated[float, _training(help="First learning rate.")] = Options.alpha,
    min_alpha: Annotated[float, _training(help="Last learning rate.")] = Options.min_alpha,
    epochs: Annotated[int, _training(help="Passes over the text.")] = Options.epochs,
    seed: Annotated[int, _training(help="Decides every draw.", min=0)] = Options.seed,
    cap: Annotated[float, _training(help="Most learning rates that a row takes in a step.")] = Options.cap,
    slice_tokens: Annotated[int, _training(help="Tokens that share negatives.")] = Options.slice_tokens,
    pool: Annotated[
        int | None, _training(help="Negatives that they share; 16, or 32 for CBOW, if not given.")
    ] = Options.pool,
    tokens_per_step: Annotated[
        int | None, _training(help="Trained at once; as many as the vocabulary allows if not given.")
    ] = Options.tokens_per_step,
    blocks: Annotated[int, _training(help="Parts of a step that do not see each other.")] = Options.blocks,
    dtype: Annotated[Dtype, _training(help="Of the vectors in training.")] = Dtype.float32,
) -> None:
    """Train word vectors on text. The docstring of tilesmith.nn.words.Word2Vec says more about each option."""
    given = locals()
    try:
        word2vec = Word2Vec(**{name: given[name] for name in asdict(Options())}, dtype=getattr(torch, dtype.value))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    files = {"--output": output, "--vectors": vectors, "--checkpoint": checkpoint}
    different = [path.absolute() for path in files.values() if path is not None]
    if len(set(different)) < len(different):
        raise typer.BadParameter(f"{', '.join(files)} must be different files")
    vectors_kind = None if vectors is None else (_kind_by_name(vectors) or Kind.vectors)
    for path in different:
        _check_can_be_written(path, force or path == files["--checkpoint"])

    last: Progress | None = None

    def watch(progress: Progress) -> None:
        nonlocal last
        last = progress
        if show is not None:
            show(progress)

    begin = time.monotonic()
    try:
        corpus = _corpus(texts, cache)
        encode_seconds = time.monotonic() - begin
        with bar() if rich.get_console().is_terminal and not quiet else nullcontext() as show:
            word2vec.fit(corpus, progress=watch, checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds)
    except KeyboardInterrupt:
        print(f"interrupted: {_what_is_kept(checkpoint)}", file=sys.stderr)
        raise typer.Exit(130) from None
    word2vec.save(output)
    if vectors is not None and vectors_kind is not None:
        _write(word2vec.vectors, vectors, vectors_kind)
    assert word2vec.vocabulary is not None
    found = {
        "output": str(output),
        "words": len(corpus.tokens),
        "vocabulary": len(word2vec.vocabulary),
        "encode_seconds": encode_seconds,
        "train_seconds": last.seconds if last else 0.0,
        "effective_words": last.effective_tokens if last else 0,
        "effective_words_per_second": last.effective_tokens / last.seconds if last else None,
        "history": word2vec.history,
        "options": asdict(word2vec.options),
    }
    if as_json:
        _print_json(found)
    elif not quiet:
        _print_summary(found)


def _what_is_kept(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "nothing is kept (with --checkpoint FILE it would be)"
    if not checkpoint.exists():
        return f"{checkpoint} was not written yet, nothing is kept"
    ago = time.time() - checkpoint.stat().st_mtime
    return f"{checkpoint} keeps what was trained until {ago:.0f} s ago, the same command goes on from there"


def _print_summary(found: dict[str, Any]) -> None:
    options, speed = found["options"], found["effective_words_per_second"]
    rows = {
        "words": f"{found['words']:,}",
        "vocabulary": f"{found['vocabulary']:,}",
        "seconds": f"{found['encode_seconds']:.1f} to encode, {found['train_seconds']:.1f} to train",
        "effective words/s": "-" if speed is None else f"{speed:,.0f}",
        "loss by epoch": " ".join(f"{epoch['loss']:.4f}" for epoch in found["history"]),
        "tokens per step": f"{options['tokens_per_step']:,}",
        "cap": f"{options['cap']:g}",
        "written": found["output"],
    }
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(name, text)
    Console(highlight=False, markup=False, emoji=False).print(table)


def _corpus(texts: Sequence[Path], cache: Path | None) -> Corpus:
    """All texts, one behind the other."""
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for text in texts:
            if str(text) == "-":
                text = Path(folder) / "standard input"
                with text.open("wb") as file:
                    shutil.copyfileobj(sys.stdin.buffer, file)
            parts.append(Corpus.of(text, cache=cache))
    if len(parts) == 1:
        return parts[0]
    numbers: dict[str, int] = {}
    tokens, starts, total = [], [np.zeros(1, np.int64)], 0
    for part in parts:
        ids = np.array([numbers.setdefault(word, len(numbers)) for word in part.words], np.int32)
        tokens.append(ids[part.tokens])
        starts.append(part.starts[1:] + total)
        total += len(part.tokens)
    return Corpus(np.concatenate(tokens), np.concatenate(starts), list(numbers))


# ---- nearest


@app.command()
def nearest(
    file: File,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORD", help="Near all of these; without one, words are read line by line."),
    ] = None,
    negative: Annotated[list[str] | None, typer.Option(metavar="WORD", help="And far from this; repeatable.")] = None,
    topn: Annotated[int, typer.Option(help="How many.", min=1)] = 10,
    restrict_vocab: Annotated[int | None, typer.Option(help="Among the most frequent so many words.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Print the words nearest to the given ones, by cosine: nearest FILE king woman --negative man."""
    vectors = _vectors_of(_read(file))
    unwanted = negative or []

    def answer(wanted: list[str]) -> None:
        for word in [*wanted, *unwanted]:
            if word not in vectors:
                raise ValueError(f"{word!r} is not one of the {len(vectors):,} words{_similar(word, vectors)}")
        found = vectors.most_similar(wanted, unwanted, topn, restrict_vocab)
        if as_json:
            near = [{"word": word, "cosine": cosine} for word, cosine in found]
            _print_json({"positive": wanted, "negative": unwanted, "nearest": near}, indent=None)
        else:
            for word, cosine in found:
                print(f"{cosine:7.4f}  {word}", flush=True)

    if words:
        answer(words)
        return
    failed = False
    while line := _line():
        if not line.split():
            continue
        try:
            answer(line.split())
            if not as_json:
                print(flush=True)
        except ValueError as error:
            failed = True
            if as_json:  # a line for each line
                _print_json({"positive": line.split(), "negative": unwanted, "error": str(error)}, indent=None)
            else:
                print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(int(failed))


def _line() -> str:
    """The next line of standard input, empty at its end."""
    if sys.stdin.isatty():
        print("words: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def _similar(word: str, vectors: WordVectors) -> str:
    close = get_close_matches(word, vectors.words[:_HINT_WORDS], n=3)
    spellings = [w for w in (word.lower(), word.capitalize(), word.upper()) if w in vectors]
    found = list(dict.fromkeys([*spellings, *close]))[:3]
    return f"; similar: {', '.join(map(repr, found))}" if found else ""


# ---- evaluate


@app.command()
def evaluate(
    file: File,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(metavar="TSV", help="Pairs of words with people's score of how similar they are; repeatable."),
    ] = None,
    analogies: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Four words a line in sections that begin with ': name'; repeatable."),
    ] = None,
    loss: Annotated[Path | None, typer.Option(metavar="TEXT", help="The loss a pair on this text; of models.")] = None,
    restrict_vocab: Annotated[int, typer.Option(help="Know only the most frequent so many words.", min=1)] = 300_000,
    as_json: AsJson = False,
) -> None:
    """Judge word vectors. Without an option, on the test sets that come with gensim."""
    if not (pairs or analogies or loss):
        pairs, analogies = _sets_of_gensim()
    read = _read(file)
    vectors = _vectors_of(read)
    if loss is not None and not isinstance(read, Word2Vec):
        raise ValueError(f"--loss needs a model: {file} has word vectors only, not what predicts from them")
    found: dict[str, Any] = {"file": str(file), "words": len(vectors), "dimensions": vectors.vectors.shape[1]}
    errors: list[str] = []

    def judged(paths: list[Path] | None, judge: Any) -> list[dict[str, Any]]:
        of = []
        for path in paths or []:
            try:
                of.append({"file": str(path), **asdict(judge(path, restrict_vocab=restrict_vocab))})
            except ValueError as error:  # one set that knows too few of these words leaves the others
                errors.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        return of

    found["pairs"] = judged(pairs, vectors.evaluate_word_pairs)
    found["analogies"] = judged(analogies, vectors.evaluate_word_analogies)
    if loss is not None and isinstance(read, Word2Vec):
        found["loss"] = {"file": str(loss), "loss": read.score(loss)}
    if as_json:
        _print_json({**found, "errors": errors})
    elif found["pairs"] or found["analogies"] or loss:
        _print_scores(found)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(int(bool(errors)))


def _sets_of_gensim() -> tuple[list[Path], list[Path]]:
    spec = importlib.util.find_spec("gensim")  # finds it without importing it
    places = [] if spec is None else spec.submodule_search_locations or []
    for folder in (Path(place) / "test" / "test_data" for place in places):
        if all((folder / name).exists() for name in (*_PAIRS, _ANALOGIES)):
            return [folder / name for name in _PAIRS], [folder / _ANALOGIES]
    raise typer.BadParameter(
        "say what to judge by: --pairs TSV, --analogies FILE or --loss TEXT (gensim has test sets)"
    )


def _print_scores(found: dict[str, Any]) -> None:
    table = Table(
        "test", "measure", "score", "known", title=f"{found['words']:,} words of {found['dimensions']} numbers"
    )
    for of in found["pairs"]:
        known = f"{of['pairs']:,} ({1 - of['oov']:.0%})"
        table.add_row(Path(of["file"]).stem, "rank correlation", f"{of['spearman']:.4f}", known)
        table.add_row("", "correlation", f"{of['pearson']:.4f}", "")
    for of in found["analogies"]:
        known = f"{of['total']:,} ({1 - of['oov']:.0%})"
        table.add_row(Path(of["file"]).stem, "answers right", f"{of['accuracy']:.2%}", known)
        for section in of["sections"]:
            share = f"{section['correct'] / section['total']:.2%}" if section["total"] else "-"
            table.add_row("", f"  {section['name']}", share, f"{section['total']:,}")
    if "loss" in found:
        table.add_row(Path(found["loss"]["file"]).name, "loss a pair", f"{found['loss']['loss']:.4f}", "")
    for column in table.columns[2:]:
        column.justify = "right"
    Console(highlight=False, markup=False, emoji=False).print(table)


# ---- convert


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A model, word vectors, or what gensim saved, which can run any program: only from whom you trust.",
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Its ending says which kind, if --to does not.")],
    to: Annotated[
        Kind | None,
        typer.Option(
            help="A model (.npz) to go on training; vectors (.npz); word2vec's text (.txt, .vec) or binary (.bin) "
            "format, compressed if OUT ends in .gz; gensim's own (.gensim, .model). For .npz as much as IN has."
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Convert a model or word vectors to another kind of file."""
    kind = to or _kind_by_name(target)
    _check_can_be_written(target, force)
    whole = kind in (None, Kind.model, Kind.gensim)
    read = _read_gensim(source, whole) if _kind_of(source) is Kind.gensim else _read(source)
    if kind is None:
        kind = Kind.model if isinstance(read, Word2Vec) else Kind.vectors
    if kind is Kind.model and not isinstance(read, Word2Vec):
        raise ValueError(f"{source} has word vectors only: a model also has output weights, counts and options")
    _write(read, target, kind)
    vectors = _vectors_of(read)
    about = {"output": str(target), "kind": kind.value, "words": len(vectors), "dimensions": vectors.vectors.shape[1]}
    if as_json:
        _print_json(about)
    else:
        print(f"{target}: {kind.value}, {len(vectors):,} words of {about['dimensions']} numbers")


# ---- files


def _kind_by_name(path: Path) -> Kind | None:
    """What a file of this name should hold; ``None`` for .npz, which is a model or vectors."""
    kinds = {".txt": Kind.text, ".vec": Kind.text, ".bin": Kind.binary, ".gensim": Kind.gensim, ".model": Kind.gensim}
    if path.suffix == ".npz":
        return None
    kind = kinds.get(path.suffix)
    if path.suffix == ".gz" and (inner := Path(path.stem).suffix) != ".npz":
        kind = kinds.get(inner, Kind.text)
        kind = None if kind is Kind.gensim else kind  # only word2vec's formats are compressed
    if kind is None:
        raise typer.BadParameter(f"{path}: a name ends in .npz, .txt, .vec, .bin, .gz, .gensim or .model")
    return kind


def _kind_of(path: Path) -> Kind:
    """What a file holds, by its content; text stands for both of word2vec's formats, which are told apart later."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                return Kind.model if "about.npy" in archive.namelist() else Kind.vectors
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is a broken .npz: {error}") from error
    if start[:1] == b"\x80":
        return Kind.gensim
    if start == b"\x1f\x8b" and path.suffix != ".gz":
        raise ValueError(f"{path} is compressed: its name must end in .gz")
    return Kind.text


def _read(path: Path) -> Word2Vec | WordVectors:
    kind = _kind_of(path)
    if kind is Kind.model:
        try:
            return Word2Vec.load(path)
        except (KeyError, TypeError) as error:  # an array "about" of something else
            raise ValueError(f"{path} is not a Word2Vec model: {error}") from error
    if kind is Kind.gensim:
        raise ValueError(f"{path} is gensim's: tilesmith word2vec convert makes one of ours of it")
    return WordVectors.load(path) if kind is Kind.vectors else WordVectors.load_word2vec_format(path)


def _read_gensim(path: Path, whole: bool) -> Word2Vec | WordVectors:
    """A file that gensim saved; ``whole``: with all that a model has, if it is one."""
    try:
        from gensim.models import KeyedVectors
        from gensim.models import Word2Vec as Theirs
        from gensim.utils import SaveLoad
    except ImportError as error:
        raise ImportError(f"{path} is gensim's, reading it needs gensim: pip install gensim") from error
    try:
        read = SaveLoad.load(str(path))
    except Exception as error:  # of any type: a pickle can call anything
        raise ValueError(f"{path} is nothing that gensim can load: {type(error).__name__}: {error}") from error
    if isinstance(read, Theirs) and whole:
        try:
            return Word2Vec.from_gensim(read)
        except ValueError as error:
            raise ValueError(f"{path}: {error} (--to vectors, text or binary take what it has)") from error
    read = getattr(read, "wv", read)
    if not isinstance(read, KeyedVectors):
        raise ValueError(f"{path} has no word vectors, it is a {type(read).__name__}")
    return WordVectors.from_gensim(read)


def _write(what: Word2Vec | WordVectors, path: Path, kind: Kind) -> None:
    if kind is Kind.gensim:
        _write_gensim(what.to_gensim(), path)
    elif kind is Kind.model:
        what.save(path)
    elif kind is Kind.vectors:
        _vectors_of(what).save(path)
    else:
        _vectors_of(what).save_word2vec_format(path, binary=kind is Kind.binary)


def _write_gensim(theirs: Any, path: Path) -> None:
    """gensim puts large arrays into files beside it, named after it: all take their place when all are written."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        theirs.save(str(Path(folder) / path.name))
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.with_name(file.name))


def _vectors_of(what: Word2Vec | WordVectors) -> WordVectors:
    return what.vectors if isinstance(what, Word2Vec) else what


def _check_can_be_written(path: Path, force: bool) -> None:
    """Raises ValueError now, not after an hour of training."""
    if path.exists() and not (force and path.is_file()):
        raise ValueError(f"{path} is a folder" if path.is_dir() else f"{path} is there already: --force overwrites it")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ValueError(f"{path.parent} is no folder that can be written to")


def _print_json(value: Any, indent: int | None = 2) -> None:
    """JSON knows no NaN: null."""
    without = json.loads(json.dumps(value), parse_constant=lambda _: None)
    print(json.dumps(without, indent=indent, allow_nan=False), flush=True)
