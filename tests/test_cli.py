"""The ``tilesmith`` command: what it prints and writes, every kind of file, every mistake, Ctrl-C."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from tilesmith import cli
from tilesmith.nn.words import Options, Word2Vec, WordVectors
from typer.testing import CliRunner

from examples.corpora import gensim_data, sentences

COMMAND = Path(sys.executable).with_name("tilesmith")
SMALL: dict[str, Any] = {"vector_size": 16, "min_count": 2, "epochs": 2, "tokens_per_step": 128}
ALL_OTHER: dict[str, Any] = {  # than the usual ones
    "model": "cbow",
    "vector_size": 8,
    "window": 3,
    "shrink_windows": False,
    "min_count": 3,
    "max_vocab": 200,
    "sample": 0.01,
    "negative": 3,
    "hierarchical": True,
    "ns_exponent": 0.5,
    "cbow_mode": "sum",
    "cbow_grad": "exact",
    "alpha": 0.05,
    "min_alpha": 0.001,
    "epochs": 1,
    "seed": 3,
    "cap": 2.5,
    "slice_tokens": 8,
    "pool": 4,
    "tokens_per_step": 64,
    "blocks": 2,
}


def run(*arguments: Any, **rest: Any) -> Any:
    return CliRunner().invoke(cli.make_app(), ["word2vec", *map(str, arguments)], **rest)


def good(*arguments: Any, **rest: Any) -> Any:
    result = run(*arguments, **rest)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output  # nothing for terminals in a pipe
    return result


def mistake(*arguments: Any, **rest: Any) -> str:
    """What is told of a user's mistake: one line, and no results."""
    result = run(*arguments, **rest)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    message: str = result.stderr.removeprefix("error: ").rstrip("\n")
    return message


def misuse(*arguments: Any, **rest: Any) -> str:
    """What is told of wrong usage, without the frame and the line breaks around it."""
    result = run(*arguments, **rest)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.replace("│", " ").split())


def as_options(options: dict[str, Any]) -> list[str]:
    written = []
    for name, value in options.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            written += [f"--{name}" if value else f"--no-{name}"]
        else:
            written += [f"--{name}", str(value)]
    return written


def assert_equal(one: Word2Vec, other: Word2Vec) -> None:
    for name in ("in_weight", "out_weight"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def few_sentences() -> list[list[str]]:
    return list(sentences(gensim_data("lee_background.cor").read_text(encoding="utf-8")))[:500]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ``text.txt``, ``model.npz`` trained on it, and its vectors in every format."""
    folder = tmp_path_factory.mktemp("files")
    text = "".join(" ".join(sentence) + "\n" for sentence in few_sentences())
    (folder / "text.txt").write_text(text)
    model = Word2Vec(**SMALL).fit(folder / "text.txt")
    model.save(folder / "model.npz")
    model.vectors.save(folder / "vectors.npz")
    for name in ("vectors.txt", "vectors.txt.gz", "vectors.bin", "vectors.bin.gz"):
        model.vectors.save_word2vec_format(folder / name, binary="bin" in name)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Word2Vec:
    return Word2Vec.load(folder / "model.npz")


VECTOR_FILES = ["vectors.npz", "vectors.txt", "vectors.txt.gz", "vectors.bin", "vectors.bin.gz"]


# ---- train


def test_every_option_of_word2vec_is_there_with_its_default() -> None:
    words: Any = typer.main.get_command(cli.make_app()).commands["word2vec"]  # type: ignore[attr-defined]
    defaults = {parameter.name: parameter.default for parameter in words.commands["train"].params}
    for name, value in asdict(Options()).items():
        assert defaults.pop(name) == value, name
    own = {"texts", "output", "vectors", "force", "checkpoint", "checkpoint_seconds", "cache", "quiet", "as_json"}
    assert set(defaults) - {"help"} == own | {"dtype"}


def test_every_option_reaches_the_model(tmp_path: Path, folder: Path) -> None:
    usual = asdict(Options())
    assert {name for name in usual if ALL_OTHER[name] != usual[name]} == set(usual)
    out = tmp_path / "model.npz"
    good("train", folder / "text.txt", "-o", out, "--dtype", "float64", *as_options(ALL_OTHER))
    model = Word2Vec.load(out)
    assert model.options == Options(**ALL_OTHER)
    assert model.dtype == torch.float64
    assert_equal(model, Word2Vec(**ALL_OTHER, dtype=torch.float64).fit(folder / "text.txt"))


def test_a_model_has_the_bits_that_the_library_gives(tmp_path: Path, folder: Path, model: Word2Vec) -> None:
    out = tmp_path / "model.npz"
    result = good("train", folder / "text.txt", "--output", out, *as_options(SMALL))
    assert_equal(Word2Vec.load(out), model)
    summary = {line[:17].strip(): line[17:].strip() for line in result.stdout.splitlines()}
    assert model.vocabulary is not None
    words = sum(map(len, few_sentences()))
    assert summary["words"] == f"{words:,}"
    assert summary["vocabulary"] == f"{len(model.vocabulary):,}"
    assert "to train" in summary["seconds"]
    assert int(summary["effective words/s"].replace(",", "")) > 1000
    assert summary["loss by epoch"] == " ".join(f"{epoch['loss']:.4f}" for epoch in model.history)
    assert summary["tokens per step"] == "128"
    assert summary["cap"] == "1.6"
    assert result.stderr == ""


def test_json_of_a_training(tmp_path: Path, folder: Path, model: Word2Vec) -> None:
    out = tmp_path / "model.npz"
    found = json.loads(good("train", folder / "text.txt", "-o", out, "--json", *as_options(SMALL)).stdout)
    assert found["output"] == str(out)
    assert found["options"] == asdict(model.options)
    assert [epoch["loss"] for epoch in found["history"]] == [epoch["loss"] for epoch in model.history]
    assert found["effective_words"] == sum(epoch["effective_tokens"] for epoch in model.history)
    assert found["effective_words_per_second"] == pytest.approx(found["effective_words"] / found["train_seconds"])


def test_quiet_says_nothing(tmp_path: Path, folder: Path) -> None:
    assert good("train", folder / "text.txt", "-o", tmp_path / "m.npz", "-q", *as_options(SMALL)).output == ""


def test_several_texts_are_one(tmp_path: Path, folder: Path, model: Word2Vec) -> None:
    lines = (folder / "text.txt").read_bytes().splitlines(keepends=True)
    (tmp_path / "a.txt").write_bytes(b"".join(lines[:200]))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"".join(lines[200:300])))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "c.bz2").write_bytes(bz2.compress(b"".join(lines[300:400])))
    texts = [tmp_path / name for name in ("a.txt", "b.gz", "empty", "c.bz2")]
    out, cache = tmp_path / "model.npz", tmp_path / "cache"
    for force in ([], ["--force"]):  # the second time from the cache
        arguments = ["-o", out, "--cache", cache, *force, *as_options(SMALL)]
        good("train", *texts, "-", *arguments, input=b"".join(lines[400:]))
        assert_equal(Word2Vec.load(out), model)
        assert len(list(cache.iterdir())) == 5
    # so that a checkpoint of the one goes on with the other
    assert Word2Vec.load(out)._state.corpus == Word2Vec.load(folder / "model.npz")._state.corpus


@pytest.mark.parametrize("name", ["v.txt", "v.vec", "v.txt.gz", "v.gz", "v.bin", "v.bin.gz", "v.npz", "v.gensim"])
def test_vectors_are_written_beside_the_model(tmp_path: Path, folder: Path, model: Word2Vec, name: str) -> None:
    good("train", folder / "text.txt", "-o", tmp_path / "m.npz", "--vectors", tmp_path / name, *as_options(SMALL))
    path = tmp_path / name
    if name == "v.gensim":
        from gensim.models import KeyedVectors

        read = WordVectors.from_gensim(KeyedVectors.load(str(path)))
    elif name == "v.npz":
        read = WordVectors.load(path)
    else:
        read = WordVectors.load_word2vec_format(path, binary="bin" in name)
    assert read.words == model.vectors.words
    assert np.array_equal(read.vectors, model.vectors.vectors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "glove"], "model must be 'skipgram' or 'cbow', got 'glove'"),
        (["--vector-size", "0"], "vector_size must be an integer of at least 1, got 0"),
        (["--vector-size", "many"], "--vector-size"),
        (["--alpha", "nan"], "alpha must be above 0"),
        (["--tokens-per-step", "100"], "multiple of slice_tokens * blocks = 16"),
        (["--seed", "-1"], "--seed"),
        (["--dtype", "float16"], "--dtype"),
        (["--checkpoint-seconds", "-1"], "--checkpoint-seconds"),
        (["--vectors", "v.jpg"], "v.jpg: a name ends in .npz, .txt, .vec, .bin, .gz, .gensim or .model"),
        (["--vectors", "m.npz"], "must be different files"),
        (["--checkpoint", "m.npz"], "must be different files"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_options(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in misuse("train", folder / "text.txt", "-o", "m.npz", *options)
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage(folder: Path) -> None:
    assert "--output" in misuse("train", folder / "text.txt")
    assert "Missing argument" in misuse("train", "-o", "m.npz")
    assert "No such command" in misuse("tain")
    assert "--topn" in misuse("nearest", folder / "model.npz", "the", "--topn", "0")


def test_texts_that_cannot_be_trained_on(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "m.npz"
    (tmp_path / "latin1").write_bytes(b"a b\nna\xefve\n")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a b\n" * 1000)[:-10])
    (tmp_path / "plain.gz").write_bytes(b"a b\n")
    (tmp_path / "damaged.gz").write_bytes(gzip.compress(os.urandom(100))[:12] + b"\xff" * 100)
    (tmp_path / "rare").write_bytes(b"a b\n")
    for name, message in {
        "missing": "missing: No such file or directory",
        "": "Is a directory",
        "latin1": "latin1, line 2, byte 2: not UTF-8",
        "cut.gz": "ended before the end-of-stream marker",
        "plain.gz": "Not a gzipped file",
        "damaged.gz": "Error -3 while decompressing data",
        "rare": "no word is seen 5 times (min_count)",
    }.items():
        assert message in mistake("train", tmp_path / name, "-o", out)
    assert "the corpus has no words" in mistake("train", "-", "-o", out, input="")
    assert not out.exists()


def test_nothing_is_overwritten_and_no_hour_is_lost(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written at the end is told at the beginning."""
    monkeypatch.setattr(Word2Vec, "fit", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "there").write_bytes(b"mine")
    there, new, text = tmp_path / "there", tmp_path / "new", folder / "text.txt"
    overwrites = f"{there} is there already: --force overwrites it"
    assert mistake("train", text, "-o", there) == overwrites
    (tmp_path / "there.txt").write_bytes(b"mine")
    assert "there.txt is there already" in mistake("train", text, "-o", new, "--vectors", tmp_path / "there.txt")
    assert mistake("train", text, "-o", tmp_path, "--force") == f"{tmp_path} is a folder"
    assert mistake("train", text, "-o", new, "--checkpoint", tmp_path) == f"{tmp_path} is a folder"
    no_folder = f"{tmp_path / 'no'} is no folder that can be written to"
    assert mistake("train", text, "-o", tmp_path / "no" / "m") == no_folder
    assert mistake("train", text, "-o", new, "--checkpoint", tmp_path / "no" / "c") == no_folder
    assert there.read_bytes() == b"mine"
    monkeypatch.undo()
    good("train", text, "-o", there, "--force", *as_options(SMALL))
    Word2Vec.load(there)


def test_a_warning_is_a_line(tmp_path: Path, folder: Path) -> None:
    result = good("train", folder / "text.txt", "-o", tmp_path / "m", *as_options(SMALL | {"tokens_per_step": 8192}))
    assert result.stderr.startswith("warning: tokens_per_step=8,192: this vocabulary allows")
    assert result.stderr.count("\n") == 1


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    text, out = tmp_path / "text", tmp_path / "m.npz"
    text.write_text(("a b " * 50 + "\n") * 100)
    options = {"alpha": 1, "cap": "inf", "sample": 0, "vector_size": 8, "tokens_per_step": 512}
    result = run("train", text, "-o", out, *as_options(options))
    assert result.exit_code == 1
    assert "error: the vectors diverged (epoch 0" in result.stderr  # behind warnings, of NumPy too
    assert not out.exists()


# ---- checkpoints and Ctrl-C


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, kill: signal.Signals) -> None:
    text, checkpoint, out = tmp_path / "text", tmp_path / "checkpoint", tmp_path / "model.npz"
    text.write_bytes(b"".join(" ".join(sentence).encode() + b"\n" for sentence in few_sentences()))
    options = SMALL | {"vector_size": 64, "epochs": 150}
    files = ["train", str(text), "-o", str(out), "--checkpoint", str(checkpoint)]
    arguments = [*files, "--checkpoint-seconds", "0.05", *as_options(options)]

    def interruptible() -> None:  # a shell's background jobs ignore Ctrl-C, and hand that on
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [str(COMMAND), "word2vec", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible)
    deadline = time.monotonic() + 60
    while not checkpoint.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(kill)
    _, errors = process.communicate(timeout=60)
    if kill == signal.SIGINT:
        assert process.returncode == 130
        assert errors.startswith(f"interrupted: {checkpoint} keeps what was trained until ")
        assert errors.endswith(" s ago, the same command goes on from there\n")
    else:
        assert (process.returncode, errors) == (-signal.SIGKILL, "")
    assert not out.exists()
    assert len(Word2Vec.load(checkpoint).history) < 150
    found = json.loads(good(*arguments, "--json").stdout)
    whole = Word2Vec(**options).fit(text)
    assert_equal(Word2Vec.load(out), whole)
    assert [epoch["loss"] for epoch in found["history"]] == [epoch["loss"] for epoch in whole.history]
    assert 0 < found["effective_words"] < sum(epoch["effective_tokens"] for epoch in whole.history)
    # and once more: there is nothing left to do
    found = json.loads(good(*arguments, "--json", "--force").stdout)
    assert (found["effective_words"], found["effective_words_per_second"]) == (0, None)
    assert_equal(Word2Vec.load(out), whole)
    assert "another window: it has 5, this run 4" in mistake(*arguments, "--force", "--window", 4)


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_ctrl_c(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Word2Vec, "fit", interrupt)
    monkeypatch.setattr(WordVectors, "most_similar", interrupt)
    train = ["train", folder / "text.txt", "-o", tmp_path / "m"]
    for arguments, message in (
        (train, "interrupted: nothing is kept (with --checkpoint FILE it would be)\n"),
        (
            [*train, "--checkpoint", tmp_path / "c"],
            f"interrupted: {tmp_path / 'c'} was not written yet, nothing is kept\n",
        ),
        (["nearest", folder / "model.npz", "the"], "interrupted\n"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stdout, result.stderr) == (130, "", message)
    assert list(tmp_path.iterdir()) == []


# ---- nearest


@pytest.mark.parametrize("name", ["model.npz", *VECTOR_FILES])
def test_neighbours_of_every_kind_of_file(tmp_path: Path, folder: Path, model: Word2Vec, name: str) -> None:
    anonymous = tmp_path / ("anonymous" + ".gz" * name.endswith(".gz"))  # its content says what it is
    anonymous.write_bytes((folder / name).read_bytes())
    options = ["--negative", "the", "--topn", 7, "--restrict-vocab", 40]
    for path in (folder / name, anonymous):
        shown = good("nearest", path, "police", "australia", *options).stdout.splitlines()
        expected = model.most_similar(["police", "australia"], ["the"], topn=7, restrict_vocab=40)
        assert shown == [f"{cosine:7.4f}  {word}" for word, cosine in expected]
        found = json.loads(good("nearest", path, "police", "australia", *options, "--json").stdout)
        assert (found["positive"], found["negative"]) == (["police", "australia"], ["the"])
        assert [(near["word"], pytest.approx(near["cosine"])) for near in found["nearest"]] == expected


def test_words_from_standard_input(folder: Path, model: Word2Vec) -> None:
    lines = "police\n\npolice xyzzy\naustralia police\n"
    result = run("nearest", folder / "model.npz", "--topn", 2, input=lines)
    assert result.exit_code == 1
    blocks = [block.splitlines() for block in result.stdout.split("\n\n") if block.strip()]
    assert [len(block) for block in blocks] == [2, 2]
    assert blocks[1][0].split()[1] == model.most_similar(["australia", "police"], topn=1)[0][0]
    assert result.stderr.startswith("error: 'xyzzy' is not one of the ")
    result = run("nearest", folder / "model.npz", "--topn", 2, "--json", "--negative", "the", input=lines)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["positive"] for row in rows] == [["police"], ["police", "xyzzy"], ["australia", "police"]]
    assert ["error" in row for row in rows] == [False, True, False]
    assert all(row["negative"] == ["the"] for row in rows)
    assert good("nearest", folder / "model.npz", "--topn", 1, input="police").stdout.count("\n") == 2


def test_an_unknown_word_has_similar_ones(tmp_path: Path, folder: Path, model: Word2Vec) -> None:
    many = f"is not one of the {len(model.vectors):,} words"
    assert mistake("nearest", folder / "model.npz", "austrlia") == (
        f"'austrlia' {many}; similar: 'australia', 'australian', " + '"' + "australia's" + '"'
    )
    assert "similar: 'police'" in mistake("nearest", folder / "model.npz", "POLICE")
    assert mistake("nearest", folder / "model.npz", "the", "--negative", "xyzzy") == f"'xyzzy' {many}"


def test_files_that_cannot_be_read(tmp_path: Path, folder: Path) -> None:
    model, text = (folder / "model.npz").read_bytes(), (folder / "vectors.txt").read_bytes()
    np.savez(tmp_path / "other.npz", about=np.frombuffer(b"{}", np.uint8), counts=0, in_weight=0, out_weight=0)
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    files = {
        "cut.npz": (model[:5000], "cut.npz is a broken .npz: File is not a zip file"),
        "hole.npz": (model[:300] + b"\0" * 500 + model[800:], "hole.npz is not a Word2Vec model"),
        "cut.txt": (text[:5000], "cut.txt, row "),
        "cut.bin": ((folder / "vectors.bin").read_bytes()[:5000], "cut.bin, row "),
        "cut.gz": ((folder / "vectors.txt.gz").read_bytes()[:5000], "cut.gz, row "),
        "gz.txt": ((folder / "vectors.txt.gz").read_bytes(), "gz.txt is compressed: its name must end in .gz"),
        "prose": (b"This is no table.\n", "prose, row 1: expected the numbers of words and of dimensions"),
        "empty": (b"", "empty, row 1: expected the numbers"),
        "pickle": (b"\x80\x04]\x94.", "pickle is gensim's: tilesmith word2vec convert makes one of ours of it"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    messages = {name: message for name, (_, message) in files.items()}
    messages |= {
        "missing": f"{tmp_path / 'missing'}: No such file or directory",
        "": "Is a directory",
        "other.npz": "other.npz is not a Word2Vec model: 'format'",
        "arrays.npz": "arrays.npz is no file of word vectors",
    }
    for name, message in messages.items():
        for command in (["nearest", tmp_path / name, "the"], ["evaluate", tmp_path / name]):
            assert message in mistake(*command)


# ---- evaluate


@pytest.fixture(scope="module")
def analogies(folder: Path) -> Path:
    path = folder / "questions.txt"
    path.write_text(": first\nman men woman women\nthe a of in\n: second\nxyzzy a b c\n")
    return path


def test_scores_are_the_librarys(folder: Path, model: Word2Vec, analogies: Path) -> None:
    wordsim = gensim_data("wordsim353.tsv")
    sets = ["--pairs", wordsim, "--pairs", gensim_data("simlex999.txt"), "--analogies", analogies]
    found = json.loads(
        good("evaluate", folder / "model.npz", *sets, "--loss", folder / "text.txt", "--json").stdout,
        parse_constant=lambda constant: pytest.fail(constant),
    )
    assert (found["words"], found["dimensions"], found["errors"]) == (len(model.vectors), 16, [])
    assert [Path(of["file"]).name for of in found["pairs"]] == ["wordsim353.tsv", "simlex999.txt"]
    scores = asdict(model.vectors.evaluate_word_pairs(wordsim))
    assert found["pairs"][0] == {"file": str(wordsim), **scores}
    expected = asdict(model.vectors.evaluate_word_analogies(analogies))
    assert found["analogies"] == [{"file": str(analogies), **expected, "sections": list(expected["sections"])}]
    assert found["loss"] == {"file": str(folder / "text.txt"), "loss": model.score(folder / "text.txt")}
    result = good("evaluate", folder / "model.npz", *sets, "--loss", folder / "text.txt")
    for text in (
        "wordsim353",
        f"{scores['spearman']:.4f}",
        "simlex999",
        "questions",
        "  first",
        f"{found['loss']['loss']:.4f}",
    ):
        assert text in result.stdout
    fewer = json.loads(
        good("evaluate", folder / "vectors.txt", "--pairs", wordsim, "--restrict-vocab", 400, "--json").stdout
    )
    assert fewer["pairs"][0]["pairs"] < scores["pairs"]
    assert "loss" not in fewer


def test_gensims_sets_are_the_usual_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from tilesmith import cli; sys.argv[1:] = ['word2vec', 'evaluate', sys.argv[1], '--json']\n"
        "try: cli.main()\n"
        "finally: assert 'gensim' not in sys.modules"
    )
    process = subprocess.run([sys.executable, "-c", code, folder / "vectors.bin"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    names = [Path(of["file"]).name for of in found["pairs"] + found["analogies"]]
    assert names == ["wordsim353.tsv", "simlex999.txt", "questions-words.txt"]
    assert len(found["analogies"][0]["sections"]) == 14
    assert "capital-common-countries" in good("evaluate", folder / "vectors.bin").stdout
    monkeypatch.setitem(sys.modules, "gensim", None)
    assert "say what to judge by: --pairs TSV, --analogies FILE" in misuse("evaluate", folder / "vectors.bin")


def test_what_cannot_be_judged(tmp_path: Path, folder: Path, analogies: Path) -> None:
    few, bad, wordsim = tmp_path / "few.tsv", tmp_path / "bad.tsv", gensim_data("wordsim353.tsv")
    few.write_text("xyzzy\tthe\t1\n")
    bad.write_text("the a 1\n")
    (tmp_path / "strange").write_text("xyzzy plugh\n")
    known = f"{few}: a correlation needs two pairs of known words or more, 0 of 1 are"
    # one that knows too few of these words leaves the others
    result = run("evaluate", folder / "model.npz", "--pairs", few, "--pairs", wordsim, "--json")
    assert result.exit_code == 1
    assert result.stderr == f"error: {known}\n"
    found = json.loads(result.stdout)
    assert [of["file"] for of in found["pairs"]] == [str(wordsim)]
    assert found["errors"] == [known]
    assert mistake("evaluate", folder / "model.npz", "--pairs", few) == known
    assert f"{bad}, line 1: expected two words and a score" in mistake("evaluate", folder / "model.npz", "--pairs", bad)
    missing = mistake("evaluate", folder / "model.npz", "--analogies", tmp_path / "missing", "--analogies", analogies)
    assert missing == f"{tmp_path / 'missing'}: No such file or directory"
    assert mistake("evaluate", folder / "vectors.txt", "--loss", folder / "text.txt") == (
        f"--loss needs a model: {folder / 'vectors.txt'} has word vectors only, not what predicts from them"
    )
    assert "none of the vocabulary's words" in mistake("evaluate", folder / "model.npz", "--loss", tmp_path / "strange")
    (tmp_path / "equal.tsv").write_text("the\ta\t1\nthe\tof\t1\n")
    found = json.loads(good("evaluate", folder / "model.npz", "--pairs", tmp_path / "equal.tsv", "--json").stdout)
    assert found["pairs"][0]["spearman"] is None  # NaN


# ---- convert


def read(path: Path, kind: str) -> Word2Vec | WordVectors:
    from gensim.models import KeyedVectors
    from gensim.models import Word2Vec as Theirs
    from gensim.utils import SaveLoad

    if kind == "model":
        return Word2Vec.load(path)
    if kind == "vectors":
        return WordVectors.load(path)
    if kind in ("text", "binary"):
        return WordVectors.load_word2vec_format(path, binary=kind == "binary")
    theirs = SaveLoad.load(str(path))
    assert isinstance(theirs, Theirs | KeyedVectors)
    return Word2Vec.from_gensim(theirs) if isinstance(theirs, Theirs) else WordVectors.from_gensim(theirs)


TARGETS = [
    # the file's name, --to, what then is in it
    ("out.npz", None, "model"),
    ("out.npz", "vectors", "vectors"),
    ("out.txt", None, "text"),
    ("out.vec", None, "text"),
    ("out.gz", None, "text"),
    ("out.bin", None, "binary"),
    ("out.bin.gz", None, "binary"),
    ("out.gensim", None, "gensim"),
    ("out.model", None, "gensim"),
    ("out", "model", "model"),
    ("out", "text", "text"),
    ("out.txt", "binary", "binary"),
    ("out", "gensim", "gensim"),
]


@pytest.mark.parametrize(("name", "to", "kind"), TARGETS)
def test_conversions(tmp_path: Path, folder: Path, model: Word2Vec, name: str, to: str | None, kind: str) -> None:
    options = [] if to is None else ["--to", to]
    model.to_gensim().save(str(tmp_path / "theirs.model"))
    model.vectors.to_gensim().save(str(tmp_path / "theirs.kv"))
    models = [folder / "model.npz", tmp_path / "theirs.model"]
    for source in [*models, *(folder / name for name in VECTOR_FILES), tmp_path / "theirs.kv"]:
        of_model = source in models
        if to == "model" and not of_model:
            message = f"{source} has word vectors only: a model also has output weights, counts and options"
            assert mistake("convert", source, tmp_path / name, *options, "--force") == message
            continue
        got = "vectors" if kind == "model" and not of_model else kind  # an .npz has as much as its source
        result = good("convert", source, tmp_path / name, *options, "--force")
        assert result.stdout == f"{tmp_path / name}: {got}, {len(model.vectors):,} words of 16 numbers\n"
        written = read(tmp_path / name, got)
        if isinstance(written, Word2Vec):
            assert of_model
            assert_equal(written, model)
            assert written.vocabulary is not None
            assert model.vocabulary is not None
            assert written.vocabulary.counts.tolist() == model.vocabulary.counts.tolist()
        vectors = written.vectors if isinstance(written, Word2Vec) else written
        assert vectors.words == model.vectors.words
        assert np.array_equal(vectors.vectors, model.vectors.vectors)
    assert {path.name for path in tmp_path.iterdir()} == {name, "theirs.model", "theirs.kv"}


def test_what_is_converted_can_be_trained_further_and_used(tmp_path: Path, folder: Path, model: Word2Vec) -> None:
    good("convert", folder / "model.npz", tmp_path / "their.model")
    good("convert", tmp_path / "their.model", tmp_path / "ours.npz")
    assert_equal(Word2Vec.load(tmp_path / "ours.npz"), model)
    assert (
        good("nearest", tmp_path / "ours.npz", "police").stdout
        == good("nearest", folder / "model.npz", "police").stdout
    )
    about = json.loads(good("convert", tmp_path / "ours.npz", tmp_path / "v.bin", "--json").stdout)
    expected = {"kind": "binary", "words": len(model.vectors), "dimensions": 16}
    assert about == {"output": str(tmp_path / "v.bin"), **expected}


def test_large_arrays_that_gensim_puts_into_other_files(tmp_path: Path) -> None:
    """From 10 * 1024 ** 2 numbers on."""
    generator = np.random.default_rng(0)
    words, vectors = [f"w{i}" for i in range(5_300)], generator.random((5_300, 2_000), np.float32)
    WordVectors(words, vectors).save(tmp_path / "v.npz")
    good("convert", tmp_path / "v.npz", tmp_path / "v.gensim")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.gensim", "v.gensim.vectors.npy", "v.npz"]
    good("convert", tmp_path / "v.gensim", tmp_path / "again.npz")
    assert np.array_equal(WordVectors.load(tmp_path / "again.npz").vectors, vectors)


def test_other_models_of_gensim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gensim.models import FastText, TfidfModel
    from gensim.models import Word2Vec as Theirs

    few = few_sentences()
    FastText(few, vector_size=4, min_count=20, bucket=10, epochs=1).save(str(tmp_path / "fast"))
    Theirs(few, vector_size=4, min_count=20, hs=1, negative=5, epochs=1).save(str(tmp_path / "both"))
    TfidfModel([[(0, 1)]]).save(str(tmp_path / "tfidf"))
    (tmp_path / "broken").write_bytes((tmp_path / "both").read_bytes()[:2000])
    (tmp_path / "list").write_bytes(b"\x80\x04]\x94.")
    out = tmp_path / "out"
    hint = "(--to vectors, text or binary take what it has)"
    for name, message in {"fast": "a FastText has vectors of more than words", "both": "hs=1 and negative=5"}.items():
        for to in ("model", "gensim"):
            told = mistake("convert", tmp_path / name, out, "--to", to)
            assert message in told
            assert told.endswith(hint)
        good("convert", tmp_path / name, tmp_path / f"{name}.txt")
    assert "tfidf has no word vectors, it is a TfidfModel" in mistake(
        "convert", tmp_path / "tfidf", out, "--to", "text"
    )
    for name in ("broken", "list"):
        assert f"{name} is nothing that gensim can load" in mistake("convert", tmp_path / name, out, "--to", "text")
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    assert "needs gensim: pip install gensim" in mistake("convert", tmp_path / "both", out, "--to", "text")
    assert not out.exists()


def test_an_existing_file_is_not_converted_to(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.txt"
    out.write_bytes(b"mine")
    monkeypatch.setattr(Word2Vec, "load", lambda *_: pytest.fail("read"))
    assert mistake("convert", folder / "model.npz", out) == f"{out} is there already: --force overwrites it"
    assert mistake("convert", folder / "model.npz", tmp_path / "no" / "out.txt").startswith(f"{tmp_path / 'no'} is no")
    for name in ("out.jpg", "out", "out.npz.gz", "out.gensim.gz"):
        assert "a name ends in .npz, .txt" in misuse("convert", folder / "model.npz", tmp_path / name)
    assert "--to" in misuse("convert", folder / "model.npz", tmp_path / "new", "--to", "jpg")
    assert out.read_bytes() == b"mine"
    monkeypatch.undo()
    good("convert", folder / "model.npz", out, "--force")
    assert out.read_bytes() == (folder / "vectors.txt").read_bytes()
    assert "missing: No such file or directory" in mistake("convert", tmp_path / "missing", tmp_path / "new.txt")


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gensim.models import Word2Vec as Theirs

    def fail(self: Any, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(Theirs, "save", fail)
    assert "No space left on device" in mistake("convert", folder / "model.npz", tmp_path / "out.gensim")
    assert list(tmp_path.iterdir()) == []


# ---- the command as a whole


def test_the_console_script() -> None:
    shown = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == "tilesmith 0.1.0\n"
    assert shown.stderr == ""


def test_results_go_to_stdout_and_bars_to_stderr(tmp_path: Path, folder: Path) -> None:
    terminal, errors = os.openpty()
    arguments = [str(folder / "text.txt"), "-o", str(tmp_path / "m.npz"), "--json", *as_options(SMALL)]
    process = subprocess.Popen([str(COMMAND), "word2vec", "train", *arguments], stdout=subprocess.PIPE, stderr=errors)
    os.close(errors)
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # how Linux tells the end of a terminal
        pass
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["options"]["vector_size"] == 16
    assert b"epoch 2/2" in shown
    assert b"words/s, loss" in shown


def test_who_reads_the_output_may_stop(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [str(COMMAND), "word2vec", "nearest", str(folder / "model.npz"), "police"]
    process = subprocess.run(arguments, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (process.returncode, process.stderr) == (1, "")


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_without_typer_and_rich() -> None:
    code = (
        "import sys; import tilesmith.nn, tilesmith.cli; assert not {'typer', 'rich'} & set(sys.modules);"
        "sys.modules['NAME'] = None; tilesmith.cli.main()"
    )
    for name in ("typer", "rich"):
        process = fresh(code.replace("NAME", name))
        assert process.returncode == 1
        assert process.stderr == "error: the tilesmith command needs typer and rich: pip install 'tilesmith[cli]'\n"


def test_a_fault_of_ours_shows_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: Any, **__: Any) -> None:
        raise AttributeError("a fault")

    monkeypatch.setattr(WordVectors, "most_similar", fault)
    result = run("nearest", folder / "model.npz", "the")
    assert isinstance(result.exception, AttributeError)


def test_a_mistake_without_words_has_its_name(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def fail(error: BaseException) -> Callable[..., None]:
        def raise_it(*_: Any, **__: Any) -> None:
            raise error

        return raise_it

    for error, line in (
        (MemoryError(), "MemoryError"),
        (KeyError("'a' is missing"), "'a' is missing"),
        (ValueError("two\n  lines"), "two lines"),
        (OSError("no number"), "no number"),
    ):
        monkeypatch.setattr(WordVectors, "most_similar", fail(error))
        assert mistake("nearest", folder / "model.npz", "the") == line
