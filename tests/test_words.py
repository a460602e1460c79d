"""The Word2Vec trainer: learning, bits, checkpoints, files, several processes, stability, quality beside gensim's."""

from __future__ import annotations

import copy
import io
import json
import pickle
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tilesmith.kernels import word2vec as kernels
from tilesmith.nn.words import Corpus, Options, Progress, Vocabulary, Word2Vec
from tilesmith.nn.words._files import atomic_file

from examples.corpora import Unavailable, gensim_data, prepare, sentences

ROOT = Path(__file__).resolve().parent.parent

MODELS: list[dict[str, Any]] = [
    {},
    {"model": "cbow", "alpha": 0.05},
    {"model": "cbow", "cbow_mode": "sum", "cbow_grad": "exact"},
    {"hierarchical": True},
    {"model": "cbow", "hierarchical": True},
]
each_model = pytest.mark.parametrize("options", MODELS, ids=str)


@pytest.fixture(scope="module")
def lee() -> list[list[str]]:
    """Three hundred news of 2000 and 2001: 60 thousand words."""
    return list(sentences(gensim_data("lee_background.cor").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def few(lee: list[list[str]]) -> list[list[str]]:
    return lee[:500]


def small(**options: Any) -> Word2Vec:
    return Word2Vec(**({"vector_size": 16, "min_count": 2, "epochs": 2, "tokens_per_step": 128} | options))


def weights(model: Word2Vec) -> list[torch.Tensor]:
    assert model.in_weight is not None
    assert model.out_weight is not None
    return [model.in_weight, model.out_weight]


def vocabulary_of(text: list[list[str]], min_count: int = 2) -> Vocabulary:
    corpus = Corpus.of(text)
    return Vocabulary.of(corpus.words, corpus.counts, min_count=min_count)


def assert_equal(one: Word2Vec, other: Word2Vec) -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


# ---- learning


@each_model
def test_it_learns_and_two_runs_are_equal_bit_by_bit(lee: list[list[str]], options: dict[str, Any]) -> None:
    train, held_out = lee[:2300], lee[2300:]
    first, second = (small(epochs=4, **options).fit(train) for _ in range(2))
    assert_equal(first, second)
    untrained = small(epochs=4, **options).fit(train)
    weights(untrained)[1].zero_()
    assert first.score(held_out) < 0.98 * untrained.score(held_out)
    assert len(first.history) == 4
    assert first.history[-1]["loss"] < first.history[0]["loss"]
    other = small(epochs=4, seed=2, **options).fit(train)
    assert not torch.equal(weights(first)[0], weights(other)[0])
    assert first.options.tokens_per_step == 128


def test_threads_do_not_change_a_bit(few: list[list[str]]) -> None:
    before = torch.get_num_threads()
    models = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        models.append(small(vector_size=100, tokens_per_step=1024).fit(few))
    torch.set_num_threads(before)
    assert_equal(models[0], models[1])
    assert_equal(models[0], models[2])


def test_an_epochs_pools_are_drawn_by_slice_from_the_first_on(lee: list[list[str]]) -> None:
    """As a GPU will draw them: all slices of an epoch in a row, whichever step they are reached from."""
    corpus, model = Corpus.of(lee), small()
    model._prepare(vocabulary_of(lee))
    assert model.vocabulary is not None
    drawn = [pool for _, pool in model._batches(corpus, 3, 0, 7)]
    table = kernels.AliasTable.of(model.vocabulary.counts**0.75)
    expected = kernels.negatives(table, 8 * len(drawn), 16, 7, 3, 0)
    assert len(drawn) > 100
    assert np.array_equal(np.concatenate(drawn), expected)
    assert np.array_equal([pool for _, pool in model._batches(corpus, 3, 70, 7)], drawn[70:])


def test_first_vectors_are_gensims(few: list[list[str]]) -> None:
    from gensim.models import Word2Vec as Theirs

    theirs = Theirs(vector_size=16, min_count=2, seed=7)
    theirs.build_vocab(few)
    mine = small(seed=7, alpha=1e-30, min_alpha=0).fit(few)
    assert np.array_equal(weights(mine)[0].numpy(), theirs.wv.vectors)


@pytest.mark.parametrize(
    ("model", "slack"),
    [("skipgram", 1.01), ("cbow", 1.01), ("skipgram-hierarchical", 1.01), ("cbow-hierarchical", 1.01)],
)
def test_held_out_loss_is_gensims(lee: list[list[str]], model: str, slack: float) -> None:
    """The same tokens, vocabulary and options. (``python -m benchmarks.word2vec_quality`` does it at length.)"""
    from gensim.models import Word2Vec as Theirs

    name, _, softmax = model.partition("-")
    train, held_out = lee[:2300], lee[2300:]
    mine = Word2Vec(name, hierarchical=bool(softmax), vector_size=50, min_count=3, epochs=5).fit(train)
    negative = 0 if softmax else 5
    theirs = Word2Vec.from_gensim(
        Theirs(
            train,
            sg=int(name == "skipgram"),
            hs=int(bool(softmax)),
            negative=negative,
            vector_size=50,
            min_count=3,
            epochs=5,
            workers=1,
        )
    )
    assert mine.score(held_out) < slack * theirs.score(held_out)
    # and what they learned is the same: neighbours by one are near by the other
    a, b = (m.vectors.units[:300] @ m.vectors.units[:300].T for m in (mine, theirs))
    away = ~np.eye(300, dtype=bool)
    assert np.corrcoef(a[away], b[away])[0, 1] > 0.3


def test_ids_are_trained_as_their_words(few: list[list[str]]) -> None:
    vocabulary = vocabulary_of(few)
    ids = [[vocabulary.index[w] for w in s if w in vocabulary.index] for s in few]
    by_id = small().fit([np.array(s) for s in ids], vocabulary=vocabulary)
    by_word = small().fit([[w for w in s if w in vocabulary.index] for s in few], vocabulary=vocabulary)
    assert_equal(by_id, by_word)
    unnamed = small().fit(ids)
    assert unnamed.vocabulary is not None
    assert set(unnamed.vocabulary.words) == {str(i) for i in range(len(vocabulary))}
    assert unnamed.vocabulary.counts.tolist() == vocabulary.counts.tolist()
    with pytest.raises(ValueError, match="sentence 1, position 0: id 99999 is not from 0 to"):
        small().fit([[0, 1], [99_999]], vocabulary=vocabulary)


def test_a_text_in_files_is_trained_as_in_memory(tmp_path: Path, few: list[list[str]]) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(" ".join(s) + "\n" for s in few))
    assert_equal(small().fit(few), small().fit(path, cache=tmp_path / "cache"))


def test_progress(few: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Progress] = []
    monkeypatch.setattr("tilesmith.nn.words._progress._TELL_SECONDS", 0)
    model = small().fit(few, progress=seen.append)
    tokens = len(Corpus.of(few).tokens)
    assert [p.tokens for p in seen] == sorted(p.tokens for p in seen)
    assert seen[-1].tokens == seen[-1].of_tokens == 2 * tokens
    assert seen[-1].effective_tokens == sum(h["effective_tokens"] for h in model.history) > tokens
    assert seen[-1].loss == model.history[-1]["loss"]
    assert seen[0].rate > seen[-1].rate > 0


def test_the_bar_shows_words_a_second_and_loss(few: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich import console

    out = io.StringIO()
    monkeypatch.setattr("rich.progress.get_console", lambda: console.Console(file=out, force_terminal=True, width=120))
    small().fit(few, progress=True)
    assert "epoch 2/2" in out.getvalue()
    assert "words/s, loss" in out.getvalue()
    assert "100%" in out.getvalue()
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r"pip install 'tilesmith\[cli\]'"):
        small().fit(few, progress=True)


# ---- checkpoints and files


class Stopped(Exception):
    pass


@each_model
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, few: list[list[str]], options: dict[str, Any]) -> None:
    whole = small(**options).fit(few)
    path = tmp_path / "checkpoint"
    stops = 0
    for attempt in range(100):
        calls = 0

        def stop_soon(where: Progress) -> None:
            nonlocal calls
            calls += 1
            if calls > 4 + attempt:  # noqa: B023
                raise Stopped

        model = small(**options)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tilesmith.nn.words._progress._TELL_SECONDS", 0)
                model.fit(few, checkpoint=path, checkpoint_seconds=0, progress=stop_soon)
        except Stopped:
            stops += 1
            continue
        break
    assert stops > 2
    assert_equal(whole, model)
    assert [h["loss"] for h in model.history] == [h["loss"] for h in whole.history]
    assert_equal(Word2Vec.load(path), whole)
    assert list(tmp_path.iterdir()) == [path]


_TRAIN = """
import sys
from examples.corpora import gensim_data, sentences
from tilesmith.nn.words import Word2Vec
text = list(sentences(gensim_data("lee_background.cor").read_text(encoding="utf-8")))
model = Word2Vec(vector_size=64, min_count=2, epochs=20).fit(text, checkpoint=sys.argv[1], checkpoint_seconds=0.05)
model.save(sys.argv[1] + ".done")
"""


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, lee: list[list[str]]) -> None:
    """By SIGKILL, at three moments, perhaps while the checkpoint is written."""
    path, kills = tmp_path / "checkpoint", 0
    for seconds in (0.1, 0.3, 0.5):
        process = subprocess.Popen([sys.executable, "-c", _TRAIN, str(path)], cwd=ROOT)
        deadline = time.monotonic() + 60
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == before:
            assert process.poll() in (None, 0)
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills > 0
    subprocess.run([sys.executable, "-c", _TRAIN, str(path)], cwd=ROOT, check=True, timeout=120)
    whole = Word2Vec(vector_size=64, min_count=2, epochs=20).fit(lee)
    assert_equal(Word2Vec.load(f"{path}.done"), whole)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, few: list[list[str]]) -> None:
    path = tmp_path / "checkpoint"
    small().fit(few, checkpoint=path)
    vocabulary = vocabulary_of(few)
    with pytest.raises(ValueError, match="another window: it has 5, this run 4"):
        small(window=4).fit(few, checkpoint=path)
    with pytest.raises(ValueError, match="another corpus"):
        small().fit(few[::-1], vocabulary=vocabulary, checkpoint=path)
    with pytest.raises(ValueError, match="another vocabulary"):
        small().fit(few, vocabulary=Vocabulary(vocabulary.words[:-1], vocabulary.counts[:-1]), checkpoint=path)
    content = path.read_bytes()
    for broken in (content[:1000], content[:-100], b"", b"text", content[:3000] + b"\0" * 500 + content[3500:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is not a Word2Vec model"):
            small().fit(few, checkpoint=path)


def test_save_load_and_more_training(tmp_path: Path, few: list[list[str]]) -> None:
    few = [[*s, "a\nb", "ß"] for s in few]
    model = small(model="cbow").fit(few)
    model.save(tmp_path / "model")
    again = Word2Vec.load(tmp_path / "model")
    assert_equal(model, again)
    assert again.options == model.options
    assert again.vocabulary is not None
    assert model.vocabulary is not None
    assert "a\nb" in again.vocabulary.words
    assert again.vocabulary.words == model.vocabulary.words
    assert repr(again) == repr(model)
    assert "Word2Vec('cbow', vector_size=16" in repr(model)
    before = weights(model)[0].clone()
    assert_equal(model.fit(few), again.fit(few))
    assert not torch.equal(weights(model)[0], before)
    assert len(model.history) == 4
    with pytest.raises(ValueError, match="none of the vocabulary's words"):
        model.fit([["xyzzy"]])
    with pytest.raises(FileNotFoundError):
        Word2Vec.load(tmp_path / "missing")
    with pytest.raises(RuntimeError, match="not fitted yet"):
        small().save(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "is of format 99, this version reads 1"),
        ({"options": {"vector_size": 17}}, r"is not a Word2Vec model: in_weight is float32 \[\d+, 16\], it must be"),
        ({"options": {"window": 0}}, "is not a Word2Vec model: window must be"),
        ({"words": ["a"]}, "is not a Word2Vec model: 1 words and"),
        ({"state": {"unknown": 1}}, "is not a Word2Vec model: "),
    ],
)
def test_a_model_that_is_not_ours_is_refused(
    tmp_path: Path, few: list[list[str]], change: dict[str, Any], message: str
) -> None:
    model = small(epochs=1).fit(few)
    model.save(tmp_path / "model")
    with np.load(tmp_path / "model") as arrays:
        parts = dict(arrays)
    about = json.loads(parts["about"].tobytes())
    parts["about"] = np.frombuffer(json.dumps({**about, **change}).encode(), np.uint8)
    with (tmp_path / "model").open("wb") as file:
        np.savez(file, **parts)
    with pytest.raises(ValueError, match=message):
        Word2Vec.load(tmp_path / "model")


def test_float64_is_trained_and_kept(tmp_path: Path, few: list[list[str]]) -> None:
    model = small(dtype=torch.float64).fit(few)
    model.save(tmp_path / "model")
    assert_equal(Word2Vec.load(tmp_path / "model"), model)
    narrow = small().fit(few)
    assert weights(model)[0].dtype == torch.float64
    torch.testing.assert_close(weights(narrow)[0].double(), weights(model)[0], rtol=1e-3, atol=1e-4)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, few: list[list[str]]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    # and for real: no file of more than 10 kB can be written
    model = small().fit(few)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            model.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# ---- several processes

_PROCESS = """
import os, sys, traceback
import torch.distributed as dist
from examples.corpora import gensim_data, sentences
from tilesmith.nn.words import Word2Vec
rank, folder, options, checkpoint = int(sys.argv[1]), sys.argv[2], eval(sys.argv[3]), sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
text = list(sentences(gensim_data("lee_background.cor").read_text(encoding="utf-8")))[:500]
if options.pop("differ", False) and rank == 1:
    text = text[::-1]
class Stop(Exception): pass
stop = options.pop("stop_epoch", None)
def watch(progress):
    if stop is not None and progress.epoch >= stop:
        raise Stop
from tilesmith.nn.words import _progress
_progress._TELL_SECONDS = 0
reverse = options.pop("reverse", False) and rank == 1
model = Word2Vec(**({"vector_size": 16, "min_count": 2, "epochs": 2, "tokens_per_step": 128} | options))
if reverse:
    from tilesmith.nn.words import Corpus, Vocabulary
    corpus = Corpus.of(text)
    of = Vocabulary.of(corpus.words, corpus.counts, min_count=2)
    model._prepare(Vocabulary(of.words[::-1], of.counts[::-1]))
try:
    model.fit(text, progress=watch, checkpoint=None if checkpoint == "-" else checkpoint, checkpoint_seconds=0)
    model.save(f"{folder}/{rank}")
except Stop:
    pass
except RuntimeError:
    # gloo's own threads abort a process that is on its way out when the other one is already gone
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
dist.destroy_process_group()
"""


def two_processes(folder: Path, options: dict[str, Any], checkpoint: str = "-") -> list[tuple[int, str]]:
    """Exit codes and what was written to standard error."""
    (folder / "rendezvous").unlink(missing_ok=True)
    arguments = [sys.executable, "-c", _PROCESS]
    processes = [
        subprocess.Popen(
            [*arguments, str(rank), str(folder), repr(options), checkpoint], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


@pytest.mark.parametrize("options", [MODELS[0], MODELS[4]], ids=str)
def test_two_processes_have_the_bits_of_one(tmp_path: Path, few: list[list[str]], options: dict[str, Any]) -> None:
    assert [code for code, _ in two_processes(tmp_path, options)] == [0, 0]
    one, other = (Word2Vec.load(tmp_path / str(rank)) for rank in range(2))
    assert_equal(one, other)
    alone = small(blocks=2, **options).fit(few)
    assert one.options == alone.options
    assert_equal(one, alone)
    assert one.history[0]["loss"] == pytest.approx(alone.history[0]["loss"])
    # and the quality of one that does not cut its steps in two
    whole = small(**options).fit(few)
    assert one.score(few) < 1.01 * whole.score(few)


def test_two_stopped_processes_go_on_to_the_same_bits(tmp_path: Path, few: list[list[str]]) -> None:
    checkpoint = str(tmp_path / "checkpoint")
    assert [code for code, _ in two_processes(tmp_path, {"stop_epoch": 1}, checkpoint)] == [0, 0]
    assert not (tmp_path / "0").exists()
    assert [code for code, _ in two_processes(tmp_path, {}, checkpoint)] == [0, 0]
    alone = small(blocks=2).fit(few)
    for rank in range(2):
        assert_equal(Word2Vec.load(tmp_path / str(rank)), alone)


@pytest.mark.parametrize(("options", "what"), [({"differ": True}, "corpus"), ({"reverse": True}, "vocabulary")])
def test_processes_that_differ_are_stopped(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    for code, error in two_processes(tmp_path, options):
        assert code == 1
        assert f"RuntimeError: {what} is" in error
        assert "on rank 1" in error


# ---- options, and how much may be trained at once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "glove"}, "model must be 'skipgram' or 'cbow', got 'glove'"),
        ({"vector_size": 0}, "vector_size must be an integer of at least 1, got 0"),
        ({"window": 2.5}, "window must be an integer of at least 1, got 2.5"),
        ({"negative": 0}, r"negative must be at least 1 \(or use hierarchical=True\)"),
        ({"alpha": 0}, "alpha must be above 0"),
        ({"cap": -1}, "cap must be above 0"),
        ({"sample": -1}, "sample must be at least 0"),
        ({"cbow_mode": "max"}, "cbow_mode must be"),
        ({"cbow_grad": "other"}, "cbow_grad must be"),
        ({"max_vocab": 0}, "max_vocab must be an integer of at least 1 or None, got 0"),
        ({"tokens_per_step": 32.0}, "tokens_per_step must be an integer"),
        ({"sample": None}, "sample must be a number, got None"),
        ({"alpha": float("inf")}, "alpha must be finite and at least min_alpha"),
        ({"alpha": 1e-5}, "alpha must be finite and at least min_alpha=0.0001, got 1e-05"),
        ({"tokens_per_step": 100}, r"tokens_per_step must be a multiple of slice_tokens \* blocks = 16, got 100"),
        ({"dtype": torch.float16}, "dtype must be"),
        ({"ns_exponent": float("nan")}, "ns_exponent must be finite"),
        ({"seed": -1}, "seed must be an integer of 64 bits, at least 0, got -1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Word2Vec(**options)


def test_ids_mean_the_same_when_they_are_trained_again(tmp_path: Path, few: list[list[str]]) -> None:
    """Places in the vocabulary are sorted by count, the ids of the first text are not."""
    numbers: dict[str, int] = {}
    ids = [[numbers.setdefault(w, len(numbers)) * 1_000_003 for w in s] for s in few]
    texts = [[str(i) for i in s] for s in ids]
    by_id, by_word = small().fit(ids), small().fit(texts)
    assert_equal(by_id, by_word)
    assert by_id.score(ids) == by_word.score(texts)
    by_id.save(tmp_path / "model")
    again = Word2Vec.load(tmp_path / "model").fit(ids, checkpoint=tmp_path / "checkpoint")
    assert_equal(again, by_word.fit(texts))
    assert_equal(by_id.fit(ids), by_word)


def test_a_fit_that_fails_leaves_the_model_as_it_was(tmp_path: Path, few: list[list[str]]) -> None:
    vocabulary, model = vocabulary_of(few), small()
    with pytest.raises(ValueError, match="none of the vocabulary's words"):
        model.fit([["xyzzy"]], vocabulary=vocabulary)
    assert model.vocabulary is None
    small().fit(few, checkpoint=tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="another"):
        model.fit(few[:200], checkpoint=tmp_path / "checkpoint")
    assert model.vocabulary is None
    with pytest.raises(FileNotFoundError, match="no such folder for a checkpoint"):
        model.fit(few, checkpoint=tmp_path / "missing" / "checkpoint")
    assert_equal(model.fit(few), small().fit(few))
    with pytest.raises(ValueError, match="fitted already, with another vocabulary"):
        model.fit(few, vocabulary=Vocabulary(vocabulary.words[::-1], vocabulary.counts))
    model.fit(few, vocabulary=vocabulary)
    with pytest.raises(ValueError, match="is one after 2 epochs, this model has trained 4"):
        model.fit(few, checkpoint=tmp_path / "checkpoint")


def test_vectors_are_those_of_now(few: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilesmith.nn.words._progress._TELL_SECONDS", 0)

    def stop(where: Progress) -> None:
        raise Stopped

    model = small()
    for text in (few, few[::-1]):
        with pytest.raises(Stopped):
            model.fit(text, progress=stop)
        assert np.array_equal(model.vectors.vectors, weights(model)[0].numpy())


def test_numpy_numbers_are_numbers(tmp_path: Path, few: list[list[str]]) -> None:
    numbers = {"window": np.int64(4), "alpha": np.float32(0.03125), "hierarchical": np.bool_(False)}
    model = small(epochs=1, **numbers)
    assert model.options.window == 4
    model.fit(few).save(tmp_path / "model")
    assert Word2Vec.load(tmp_path / "model").options == model.options


def test_a_model_is_copied_and_pickled(few: list[list[str]]) -> None:
    model = small(epochs=1).fit(few)
    before = weights(model)[0].clone()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal(other, model)
        other.fit(few)
        assert torch.equal(weights(model)[0], before)
        assert not torch.equal(weights(other)[0], before)
        assert other.vectors.most_similar("the") != model.vectors.most_similar("the")


def test_two_threads_train_at_once(few: list[list[str]]) -> None:
    alone = [small(seed=seed).fit(few) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: small(seed=seed).fit(few), (1, 2)))
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)


def test_bad_corpora() -> None:
    with pytest.raises(ValueError, match="the corpus has no words"):
        Word2Vec().fit([])
    with pytest.raises(ValueError, match="no word is seen 5 times"):
        Word2Vec().fit([["a", "b"]])
    with pytest.raises(ValueError, match="two words or more, the vocabulary has 1"):
        Word2Vec(hierarchical=True).fit([["a"] * 10])
    assert bool(weights(Word2Vec().fit([["a"] * 10]))[0].isfinite().all())  # one word: nothing to learn, no failure


def test_a_small_corpus_allows_fewer_tokens_at_once(lee: list[list[str]]) -> None:
    vocabulary = vocabulary_of(lee, 5)
    allowed = Options().largest_step(vocabulary)
    assert allowed % 16 == 0
    assert 1000 < allowed < 4000
    fewer = Vocabulary(vocabulary.words[:100], vocabulary.counts[:100])
    assert Options().largest_step(fewer) < allowed
    assert Options(cap=0.01).largest_step(vocabulary) == 16
    assert Options().usual_step(vocabulary) < allowed
    kept = (vocabulary.counts * vocabulary.keep_probabilities(1e-3)).sum()
    assert Options(hierarchical=True).usual_step(vocabulary) == int(kept / 100) // 16 * 16 < 512
    many = Vocabulary(vocabulary.words, vocabulary.counts * 100)
    assert Options(hierarchical=True).usual_step(many) == 512
    assert Options(model="cbow").usual_step(many) == 2048
    model = Word2Vec(vector_size=8, epochs=1).fit(lee)
    assert model.options.tokens_per_step == Options().usual_step(vocabulary)
    with pytest.warns(UserWarning, match=f"tokens_per_step=4,096: this vocabulary allows {allowed:,}"):
        Word2Vec(vector_size=8, epochs=1, tokens_per_step=4096).fit(lee)


# ---- stability: far more of a word in a step than the cap

BURSTS = {
    "two words": [["a", "b"] * 50 for _ in range(200)] + [[f"w{i}", "c"] for i in range(50) for _ in range(5)],
    "seven of many": [[f"t{i // 20}_{j % 7}" for j in range(100)] for i in range(2000)],
    "fifty times each": [
        [f"w{n % 300}" for n in sentence]
        for sentence in np.random.default_rng(0).zipf(1.5, (40, 20))
        for _ in range(50)
    ],
}


@pytest.mark.filterwarnings("ignore:tokens_per_step")
@pytest.mark.parametrize("tokens_per_step", [32, 2048])
@pytest.mark.parametrize("text", BURSTS)
@each_model
def test_bursty_text_stays_stable(options: dict[str, Any], text: str, tokens_per_step: int) -> None:
    """Contiguous text of a few words at a time, at four times the usual rate."""
    options = {**options, "alpha": 0.1, "sample": 0, "vector_size": 8, "epochs": 2}
    model = Word2Vec(tokens_per_step=tokens_per_step, **options).fit(BURSTS[text][:700])
    for weight in weights(model):
        assert bool(weight.isfinite().all())
        assert float(weight.norm(dim=1).max()) < 50


def test_without_the_cap_it_diverges_and_says_so(tmp_path: Path) -> None:
    """So that the test above means something."""
    model = Word2Vec(vector_size=8, sample=0, epochs=2, tokens_per_step=32, alpha=0.1, cap=float("inf"))
    with pytest.raises(FloatingPointError, match=r"the vectors diverged .* cap=inf, .* the usual cap is 1\.6"):
        model.fit(BURSTS["two words"], checkpoint=tmp_path / "checkpoint", checkpoint_seconds=1e9)
    assert not (tmp_path / "checkpoint").exists()


def test_the_bible_at_the_largest_step() -> None:
    try:
        corpus = Corpus.of(prepare("kjv", ROOT / "out" / "corpora"))
    except Unavailable as error:
        pytest.skip(f"no King James Bible: {error}")
    vocabulary = Vocabulary.of(corpus.words, corpus.counts)
    largest = Options().largest_step(vocabulary)
    scores = []
    for step in (Options().usual_step(vocabulary), largest):
        model = Word2Vec(vector_size=32, epochs=1, tokens_per_step=step).fit(corpus)
        assert float(max(w.norm(dim=1).max() for w in weights(model))) < 20
        scores.append(model.score(corpus))
    assert scores[1] < 1.05 * scores[0]


def test_the_quality_command_keeps_each_run_and_repeats_none(tmp_path: Path, few: list[list[str]]) -> None:
    from typer.testing import CliRunner

    from benchmarks import word2vec_quality

    text = tmp_path / "few.txt"
    text.write_text("".join(" ".join(s) + "\n" for s in few))
    arguments = [
        "--text",
        str(text),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--model",
        "cbow",
    ]
    runs = [CliRunner().invoke(word2vec_quality.app, arguments, catch_exceptions=False) for _ in range(2)]
    assert [run.exit_code for run in runs] == [0, 0]
    rows = [json.loads(line) for line in (tmp_path / "out" / "few.jsonl").read_text().splitlines()]
    assert [(r["side"], r["seed"]) for r in rows] == [(s, n) for n in (1, 2) for s in ("tilesmith", "gensim")]
    table = (tmp_path / "out" / "few.md").read_text()
    losses = [r["held_out_loss"] for r in rows if r["side"] == "gensim"]
    assert f"{np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f}" in table
    assert word2vec_quality.split(text) == ([s for i, s in enumerate(few) if i % 100 != 99], few[99::100])
