"""The demo of word vectors: its text, its numbers, its map, its command line."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from tilesmith.nn.words import Corpus, Word2Vec, WordVectors
from typer.testing import CliRunner

from examples import word2vec
from examples.corpora import Unavailable, prepare
from examples.word2vec import answers, app, draw_map, groups_in, largest_text, principal_components, split

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 sentences of Wikipedia."""
    lines = prepare("enwiki", ROOT / "out" / "corpora").read_text(encoding="ascii").splitlines(keepends=True)
    path = tmp_path_factory.mktemp("text") / "wiki.txt"
    path.write_text("".join(lines[:4000]))
    return path


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def plain(output: str) -> str:
    """Error text without the frame and the line breaks around it."""
    return " ".join(output.replace("│", " ").split())


def test_end_to_end(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = run("--text", text, "--epochs", 2, "--vector-size", 16, "--seed", 3, "--gensim", "--out", out)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output  # nothing for terminals in a pipe
    for wanted in ("Nearest words", "Analogies", "king", "effective words/s", "gensim", "WordSim-353", "epochs: 2"):
        assert wanted in result.output
    assert {path.name for path in out.iterdir()} == {"space.png", "model.npz", "vectors.txt", "metrics.json"}
    picture = imread(out / "space.png")
    assert picture.shape[:2] == (1000, 1300)
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 100

    metrics = json.loads((out / "metrics.json").read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert (metrics["options"]["vector_size"], metrics["options"]["seed"], metrics["options"]["epochs"]) == (16, 3, 2)
    assert len(metrics["loss"]) == 2
    train, held_out = split(Corpus.of(text))
    assert metrics["words"] == len(train.tokens)
    assert set(metrics["versions"]) == {"tilesmith", "torch", "numpy", "gensim", "python"}
    ours, theirs = metrics["models"]["tilesmith"], metrics["models"]["gensim"]
    for of in (ours, theirs):
        assert of["words_per_second"] > 1000
        for measure in ("wordsim", "simlex", "analogies"):
            assert -1 <= of[measure] <= 1
        assert [len(near) for near in of["neighbours"].values()] == [5] * 6
    assert ours["held_out_loss"] == pytest.approx(theirs["held_out_loss"], rel=0.03)
    assert ours["held_out_loss"] < math.log(2) * 6  # of vectors that know nothing
    assert len(metrics["groups"]) >= 6

    model = Word2Vec.load(out / "model.npz")
    assert ours["held_out_loss"] == model.score(held_out)
    assert ours["analogies_asked"] == answers(model.vectors)
    read = WordVectors.load_word2vec_format(out / "vectors.txt")
    assert np.array_equal(read.vectors, model.vectors.vectors)
    assert metrics["vocabulary"] == len(read)


def test_a_text_of_other_words(tmp_path: Path) -> None:
    """No word of the groups, the questions and the test sets, and too short for a sentence held out."""
    text, out = tmp_path / "text", tmp_path / "out"
    text.write_text("[b] [/] :smile: ça\n" * 20)
    result = run("--text", text, "--epochs", 1, "--model", "cbow", "--out", out)
    assert result.exit_code == 0, result.output
    assert "[/]" in result.output
    assert ":smile:" in result.output
    assert "Analogies" not in result.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["options"]["model"] == "cbow"
    ours = metrics["models"]["tilesmith"]
    assert [ours[name] for name in ("wordsim", "simlex", "analogies", "held_out_loss")] == [None] * 4
    assert metrics["loss"] == [None]  # of so few words thinned out nothing is left
    assert {name: set(words) for name, words in metrics["groups"].items()} == {
        "frequent words": {"[b]", "[/]", ":smile:", "ça"}
    }
    assert imread(out / "space.png").shape[:2] == (1000, 1300)


def test_the_largest_text_that_is_there(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("out/corpora")
    assert largest_text(folder) is None
    asked: list[str] = []

    def prepared(name: str, out: Path) -> Path:
        asked.append(name)
        out.mkdir(parents=True)
        (out / f"{name}.txt").write_bytes(text.read_bytes())
        return out / f"{name}.txt"

    monkeypatch.setattr(word2vec, "prepare", prepared)
    monkeypatch.setattr(word2vec, "run", lambda console, text, *_: console.print(f"trains on {text}"))
    result = run()
    assert asked == ["enwiki"]
    assert "out/corpora/enwiki.txt is what is here; --prepare fetches more" in plain(result.output)
    assert "trains on out/corpora/enwiki.txt" in result.output
    (folder / "kjv.txt").write_bytes(text.read_bytes() * 2)
    assert "trains on out/corpora/kjv.txt" in run().output
    (folder / "all.txt").write_bytes(text.read_bytes() * 3)
    result = run()
    assert result.output == "trains on out/corpora/all.txt\n"
    monkeypatch.setattr(word2vec, "prepare_all", lambda out, report: [report("lee: 1 words"), out / "fetched.txt"][1])
    assert run("--prepare").output == "lee: 1 words\ntrains on out/corpora/fetched.txt\n"
    assert asked == ["enwiki"]


def test_without_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: Any) -> Path:
        raise Unavailable("gensim is not installed")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(word2vec, "prepare", unavailable)
    result = run()
    assert (result.exit_code, result.output) == (1, "error: gensim is not installed\n")


def test_epochs_of_short_texts(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("--text", text, "--vector-size", 4, "--out", tmp_path)
    assert "; epochs: 20" in result.output
    monkeypatch.setattr(word2vec, "_ENOUGH_TOKENS", 1)
    result = run("--text", text, "--vector-size", 4, "--out", tmp_path)
    assert "; epochs: 5" in result.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--vector-size", "1"], "--vector-size"),
        (["--model", "glove"], "--model"),
        (["--seed=-1"], "--seed"),
        (["--text", "no/such/file"], "--text"),
        (["--out", "/dev/null/folder"], "--out"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    result = run("--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert complaint in plain(result.output)
    assert not (tmp_path / "out").exists()


def test_a_text_without_frequent_words(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a b\n")
    result = run("--text", tmp_path / "text", "--out", tmp_path)
    assert result.exit_code == 1
    assert result.output.startswith("error: no word is seen 5 times")


# ---- its parts


def test_each_hundredth_sentence_is_held_out() -> None:
    generator = np.random.default_rng(0)
    text = [[f"w{i}" for i in generator.integers(0, 50, generator.integers(0, 6))] for _ in range(250)]
    train, held_out = (list(word2vec.Sentences(part)) for part in split(Corpus.of(text)))
    assert held_out == [text[99], text[199]]
    assert train == text[:99] + text[100:199] + text[200:]


def test_principal_components() -> None:
    generator = np.random.default_rng(0)
    points = (generator.standard_normal((40, 6)) * [5, 3, 1, 0.5, 0.2, 0.1] + 7).astype(np.float32)
    plane, shares = principal_components(points)
    centred = points.astype(np.float64) - points.astype(np.float64).mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    assert shares == pytest.approx(values[:-3:-1] / values.sum())
    assert np.abs(plane) == pytest.approx(np.abs(centred @ axes[:, :-3:-1]), abs=1e-4)
    for few in (1, 2, 3):
        plane, shares = principal_components(points[:few])
        assert plane.shape == (few, 2)
        assert np.isfinite(shares).all()
    assert principal_components(np.ones((4, 3), np.float32))[1].tolist() == [0, 0]


def test_groups_that_are_missing() -> None:
    words = ["monday", "tuesday", "sunday", "red", "blue", "one", "xyzzy"]
    vectors = WordVectors(words, np.eye(7, dtype=np.float32))
    assert groups_in(vectors) == {"days": ["monday", "tuesday", "sunday"]}


def test_labels_do_not_cover_each_other() -> None:
    """Three crowds of a dozen words each."""
    generator = np.random.default_rng(0)
    plane = np.concatenate([generator.normal(centre, 0.03, (12, 2)) for centre in ((0, 0), (1, 0.2), (0.3, 1))])
    figure = Figure(figsize=(13, 10))
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.scatter(plane[:, 0], plane[:, 1])
    axis.margins(0.06)
    canvas.draw()
    words = [f"september{i}" for i in range(len(plane))]
    word2vec._label(axis, canvas, plane, words, ["#000000"] * len(plane))
    canvas.draw()
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert len(boxes) == len(words)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    frame = axis.get_window_extent()
    assert all(frame.contains(*corner) for box in boxes for corner in box.corners())
    points = axis.transData.transform(plane)
    assert not any(box.contains(*point) for box in boxes for point in points)


def test_a_map_of_few_words(tmp_path: Path) -> None:
    draw_map(tmp_path / "map.png", WordVectors(["a"], np.ones((1, 3), np.float32)), "one word")
    assert imread(tmp_path / "map.png").shape[:2] == (1000, 1300)
