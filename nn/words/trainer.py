"""Word2Vec from text to vectors: vocabulary, steps, learning rate, checkpoints, several processes."""

from __future__ import annotations

import errno
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ...kernels import word2vec as kernels
from ._files import atomic_file
from ._progress import Clock, State, Watcher, bar
from ._stream import Batch, TokenStream
from ._updates import Updates, processes
from .corpus import Corpus, Source
from .huffman import HuffmanTree
from .options import Options
from .vectors import WordVectors
from .vocabulary import Vocabulary

_FORMAT = 1
_LOSS_EVERY = 16  # steps: of these the loss is computed; of more in a short text, so that an epoch has some hundred
_UNSEEN_EPOCH = 0xFFFFFFFF  # whose draws score() takes


def _digest(*parts: Any) -> str:
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return digest.hexdigest()


class Word2Vec:
    """Word vectors from text: skip-gram or CBOW, with negative sampling or hierarchical softmax.

    Compared with gensim: the same vocabulary, the same thinning of frequent words, windows, initial vectors and
    learning rate; negatives are shared by slices of text, and many tokens are trained at once, with a cap on what one
    row takes (``kernels.word2vec`` says why that gives the same vectors). Two runs with one seed are equal bit by bit.
    Sentences of any length are used whole.

    Args:
        model: "skipgram" or "cbow".
        vector_size: dimensions of the vectors.
        window: most words between a word and its context; each word draws 1 to this, unless ``shrink_windows=False``.
        min_count: words seen less often are dropped, before windows are made.
        max_vocab: keep only this many words, the most frequent ones.
        sample: threshold of thinning out frequent words; 0 for none.
        negative: negatives a pair.
        hierarchical: hierarchical softmax instead of negative sampling.
        ns_exponent: negatives are drawn with probability count ** this.
        cbow_mode: "mean" or "sum" of the window's vectors.
        cbow_grad: "exact", the derivative; or "gensim", as word2vec.c and gensim do it: with "mean" the gradient of a
            context is not divided by their number (with "sum" gensim divides it, so "gensim" does).
        alpha, min_alpha: the learning rate falls from one to the other, linearly in the words of all epochs.
        cap: the pairs of one step that update a row count in full until their learning rates add up to this; their sum
            is scaled down to it. ``inf``: no limit. At the default and alpha = 0.025 these are 64 pairs; twice this
            diverges on text of few words.
        slice_tokens, pool: this many tokens share this many negatives. ``None``: 16, and 32 for CBOW, whose analogies
            get worse with fewer.
        tokens_per_step: tokens trained at once. ``None``: as many as the vocabulary's counts allow
            (:meth:`Options.usual_step`), at most 2,048, and 512 with hierarchical softmax. What was used stands in
            ``options`` after ``fit``.
        blocks: parts of a step whose windows do not see each other. With torch.distributed one a process.
        device: "cpu". GPU kernels come later.
        dtype: of the vectors in training, torch.float32 or, for checks, torch.float64.

    Attributes:
        options: all of the above, as used.
        vocabulary: words and counts, most frequent first; ``None`` before ``fit``.
        in_weight, out_weight: tensors ``[V, vector_size]``; hierarchical: out_weight ``[V - 1, vector_size]``.
        history: a dictionary an epoch: loss a pair (of each 16th step, of more in a short text), effective_tokens,
            seconds.

    Raises:
        ValueError: an option makes no sense, naming it.

    Source: Mikolov et al. 2013, arXiv:1301.3781 and arXiv:1310.4546.
    """

    def __init__(
        self,
        model: str = "skipgram",
        *,
        vector_size: int = 100,
        window: int = 5,
        shrink_windows: bool = True,
        min_count: int = 5,
        max_vocab: int | None = None,
        sample: float = 1e-3,
        negative: int = 5,
        hierarchical: bool = False,
        ns_exponent: float = 0.75,
        cbow_mode: str = "mean",
        cbow_grad: str = "gensim",
        alpha: float = 0.025,
        min_alpha: float = 1e-4,
        epochs: int = 5,
        seed: int = 1,
        cap: float = 1.6,
        slice_tokens: int = 16,
        pool: int | None = None,
        tokens_per_step: int | None = None,
        blocks: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        given = {name: v.item() if isinstance(v, np.generic) else v for name, v in locals().items()}
        self.options = Options(**{f.name: given[f.name] for f in fields(Options)})
        self.options.check()
        self.device = torch.device(device)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.dtype = dtype
        self.vocabulary: Vocabulary | None = None
        self.in_weight: torch.Tensor | None = None
        self.out_weight: torch.Tensor | None = None
        self.history: list[dict[str, float]] = []
        self._state = State()
        self._vectors: tuple[Any, WordVectors] | None = None
        self._tree: HuffmanTree | None = None
        self._negatives: kernels.AliasTable | None = None
        self._unnamed = False  # the words are ids as text: sentences of ids are of these, not of places among the words

    def __repr__(self) -> str:
        usual = Options()
        changed = [f"{n}={v!r}" for n, v in asdict(self.options).items() if v != getattr(usual, n) and n != "model"]
        words = "not fitted" if self.vocabulary is None else f"{len(self.vocabulary):,} words"
        return f"Word2Vec({', '.join([repr(self.options.model), *changed])}; {words})"

    # ---- training

    def fit(
        self,
        corpus: Source | Corpus,
        *,
        vocabulary: Vocabulary | None = None,
        cache: str | os.PathLike[str] | None = None,
        progress: bool | Watcher = False,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 60.0,
    ) -> Word2Vec:
        """Trains on a text, all epochs; on a model that is fitted already, further, with the vocabulary it has.

        With torch.distributed initialised, every process calls it with the same text: each trains its block of every
        step, all have the same vectors, and they are those that one process computes with ``blocks`` set to their
        number.

        Args:
            corpus: path of a text with a sentence a line and words between white space (also .gz, .bz2); or sentences:
                lists of words, or of ids (integers: places in the vocabulary, or any others, whose words are then the
                ids as text); or a :class:`Corpus`.
            vocabulary: train these words only, instead of counting.
            cache: folder for a text that is larger than memory; see :meth:`Corpus.of`.
            progress: ``True`` for a bar on the terminal (needs rich), or a function that is called now and then.
            checkpoint: file that is written every ``checkpoint_seconds`` and at the end. If it is there already,
                training goes on where it stopped, and ends with the bits that an undisturbed run has; one that was
                finished is finished. (Ctrl-C may fall inside a step: go on from the checkpoint, not with the model.)

        Raises:
            ValueError: the corpus has no word that is frequent enough, or none of the vocabulary's; an id is out of
                range; the checkpoint is of another text or of other options (it says which).
            TypeError: the corpus has sentences of something else.
            FloatingPointError: the vectors diverged, which the usual ``cap`` prevents.
            FileNotFoundError: no folder for the checkpoint.
            RuntimeError: processes that train together have different texts, options or models.
        """
        if self.vocabulary is not None:
            if vocabulary is not None and not vocabulary.equals(self.vocabulary):
                raise ValueError("the model is fitted already, with another vocabulary than vocabulary=")
            vocabulary = self.vocabulary
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder for a checkpoint", str(path.parent))
        if not isinstance(corpus, Corpus):
            corpus = Corpus.of(corpus, cache=cache, words=self._words_of_ids(vocabulary))
        if vocabulary is None:
            vocabulary = Vocabulary.of(
                corpus.words, corpus.counts, min_count=self.options.min_count, max_vocab=self.options.max_vocab
            )
        before = dict(self.__dict__)
        try:
            self._check(corpus, vocabulary)
            if self.vocabulary is None:
                self._unnamed = corpus.unnamed
            self._prepare(vocabulary)
            if path is not None and path.exists():
                self._resume(path, corpus)
            elif self._state.corpus != corpus.digest or self._state.epoch >= self.options.epochs:
                self._state = State(corpus.digest)
            if processes() > 1:
                self._agree()
        except BaseException:
            self.__dict__ = before  # as if fit had not been called
            raise
        with bar() if progress is True else nullcontext(progress or None) as watcher:
            self._train(corpus, watcher, path, checkpoint_seconds)
        return self

    def score(self, corpus: Source | Corpus, *, seed: int = 0) -> float:
        """The loss a pair on a text, without training it: lower is better.

        Words that the vocabulary does not have are left out. ``seed`` decides the draws. Comparable between models with
        the same vocabulary and options, also with those of :meth:`from_gensim`.
        """
        self._fitted()
        assert self.vocabulary is not None
        if not isinstance(corpus, Corpus):
            corpus = Corpus.of(corpus, words=self._words_of_ids(self.vocabulary))
        self._check(corpus, self.vocabulary)
        self._prepare(self.vocabulary)
        updates, loss, pairs = self._updates(), 0.0, 0.0
        for batch, pool in self._batches(corpus, _UNSEEN_EPOCH, 0, seed):
            of_step = updates.loss(batch, pool)
            loss, pairs = loss + of_step[0], pairs + of_step[1]
        return loss / pairs if pairs else float("nan")

    def _prepare(self, vocabulary: Vocabulary) -> None:
        """Everything that follows from options and vocabulary: step size, first weights, tables of draws."""
        options = self.options
        if processes() > 1:
            options = options.replaced(blocks=processes())
        options = options.settled(vocabulary)
        options.check()
        assert options.tokens_per_step is not None
        if self.vocabulary is None and options.tokens_per_step > (most := options.largest_step(vocabulary)):
            warnings.warn(
                f"tokens_per_step={options.tokens_per_step:,}: this vocabulary allows {most:,}; with more at once the "
                "cap takes much of the frequent words' updates, and vectors get worse",
                stacklevel=3,
            )
        self.options = options
        if options.hierarchical and self._tree is None:
            self._tree = HuffmanTree.of(vocabulary.counts)
        if not options.hierarchical and self._negatives is None:
            self._negatives = kernels.AliasTable.of(vocabulary.counts.astype(np.float64) ** options.ns_exponent)
        if self.vocabulary is None:
            V, d = len(vocabulary), options.vector_size
            generator = np.random.default_rng(options.seed)  # gensim's own first vectors
            first = (generator.random((V, d), np.float32) * np.float32(2) - np.float32(1)) / np.float32(d)
            self.vocabulary = vocabulary
            self.in_weight = torch.from_numpy(first).to(self.device, self.dtype)
            self.out_weight = torch.zeros(V - options.hierarchical, d, dtype=self.dtype, device=self.device)

    def _words_of_ids(self, vocabulary: Vocabulary | None) -> list[str] | None:
        return None if vocabulary is None or self._unnamed else vocabulary.words

    @staticmethod
    def _check(corpus: Corpus, vocabulary: Vocabulary) -> None:
        if not corpus.counts[vocabulary.ids_of(corpus.words) >= 0].any():
            raise ValueError("the corpus has none of the vocabulary's words")

    def _agree(self) -> None:
        """Raises on every process if one has another text, other options or another place in the training."""
        mine = {**asdict(self.options), **asdict(self._state), "dtype": str(self.dtype)}
        del mine["seconds"]
        assert self.vocabulary is not None
        assert self.in_weight is not None
        assert self.out_weight is not None
        mine["vocabulary"] = _digest(json.dumps(self.vocabulary.words).encode(), self.vocabulary.counts)
        mine["weights"] = _digest(self.in_weight.cpu().numpy(), self.out_weight.cpu().numpy())
        mine["epochs of its life"] = len(self.history)
        everyone: list[Any] = [None] * processes()
        dist.all_gather_object(everyone, mine)
        for rank, other in enumerate(everyone):
            for name, value in other.items():
                if value != everyone[0][name]:
                    raise RuntimeError(
                        f"{name} is {value!r} on rank {rank} and {everyone[0][name]!r} on rank 0: all processes need "
                        "the same text and options, and a checkpoint where each finds it"
                    )

    def _updates(self) -> Updates:
        assert self.in_weight is not None
        assert self.out_weight is not None
        return Updates(self.options, [self.in_weight, self.out_weight], self._tree)

    def _batches(self, corpus: Corpus, epoch: int, first_step: int, seed: int) -> Iterator[tuple[Batch, Any]]:
        """The steps of an epoch from the given one on, each with its negatives ([slices, pool], or ``None``)."""
        options, vocabulary = self.options, self.vocabulary
        assert vocabulary is not None
        assert options.tokens_per_step is not None
        rest = (options.window, options.shrink_windows, seed, options.tokens_per_step)
        stream = TokenStream.of(corpus, vocabulary, options.sample, *rest)
        slices, pool = options.tokens_per_step // options.slice_tokens, options.pool
        assert pool is not None
        for chunk in stream.chunks(epoch):
            batches = [batch for batch in chunk if batch.step >= first_step]
            if self._negatives is None or not batches:
                yield from ((batch, None) for batch in batches)
                continue
            first, count = batches[0].step * slices, len(batches) * slices
            pools = kernels.negatives(self._negatives, count, pool, seed, epoch, first)
            yield from zip(batches, pools.reshape(len(batches), slices, pool), strict=True)

    def _train(self, corpus: Corpus, watcher: Watcher | None, checkpoint: Path | None, seconds: float) -> None:
        options, state, tokens = self.options, self._state, len(corpus.tokens)
        assert options.tokens_per_step is not None
        updates, clock = self._updates(), Clock(state, options.epochs, tokens, watcher)
        loss_every = max(1, min(_LOSS_EVERY, tokens // options.tokens_per_step // 100))
        saved, rate = time.monotonic(), options.alpha
        self._vectors = None
        while state.epoch < options.epochs:
            # draws are counted through all epochs of the model's life, those of earlier texts among them
            for batch, pool in self._batches(corpus, len(self.history), state.step, options.seed):
                share = (state.epoch + batch.position / tokens) / options.epochs
                rate = max(options.min_alpha, options.alpha - (options.alpha - options.min_alpha) * share)
                loss = updates.train(batch, pool, rate, batch.step % loss_every == 0)
                if not math.isfinite(loss[0]):
                    raise FloatingPointError(
                        f"the vectors diverged (epoch {state.epoch}, step {batch.step}): with cap={options.cap}, "
                        f"alpha={options.alpha} or tokens_per_step={options.tokens_per_step:,} is too much; the "
                        "usual cap is 1.6"
                    )
                clock.tick(len(batch.tokens), batch.position, loss, rate)
                if checkpoint is not None and time.monotonic() - saved >= seconds:
                    self._checkpoint(checkpoint)
                    saved = time.monotonic()
            self.history.append(clock.epoch_done(rate))
        if checkpoint is not None:
            self._checkpoint(checkpoint)
            if processes() > 1:
                dist.barrier()  # it is there before anybody looks for it

    # ---- files

    def _checkpoint(self, path: Path) -> None:
        if processes() == 1 or dist.get_rank() == 0:
            self.save(path)

    def _resume(self, path: Path, corpus: Corpus) -> None:
        there = type(self).load(path)
        assert there.vocabulary is not None
        assert self.vocabulary is not None
        for name, found, expected in [
            *((n, v, asdict(self.options)[n]) for n, v in asdict(there.options).items()),
            ("vocabulary", there.vocabulary.words, self.vocabulary.words),
            ("corpus", there._state.corpus, corpus.digest),
            ("dtype", there.dtype, self.dtype),
        ]:
            if found != expected:
                what = f": it has {found!r}, this run {expected!r}" if len(repr((found, expected))) < 200 else ""
                raise ValueError(f"{path} is the checkpoint of a run with another {name}{what}")
        if len(there.history) < len(self.history):
            raise ValueError(
                f"{path} is one after {len(there.history)} epochs, this model has trained {len(self.history)}; "
                "give its further training another one"
            )
        self.in_weight, self.out_weight, self._unnamed = there.in_weight, there.out_weight, there._unnamed
        self.history, self._state = there.history, there._state

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the whole model, so that training can go on: an .npz of arrays, nothing pickled. Atomic."""
        self._fitted()
        assert self.vocabulary is not None
        assert self.in_weight is not None
        assert self.out_weight is not None
        about = {
            "format": _FORMAT,
            "options": asdict(self.options),
            "history": self.history,
            "state": asdict(self._state),
            "words": self.vocabulary.words,
            "unnamed": self._unnamed,
        }
        with atomic_file(path) as file:
            np.savez(
                file,
                about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                counts=self.vocabulary.counts,
                in_weight=self.in_weight.cpu().numpy(),
                out_weight=self.out_weight.cpu().numpy(),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Word2Vec:
        """Reads what :meth:`save` or a checkpoint wrote.

        Raises:
            ValueError: the file is something else, or broken.
        """
        with Path(path).open("rb") as file:
            try:
                with np.load(file, allow_pickle=False) as arrays:
                    about = json.loads(arrays["about"].tobytes())
                    counts, in_weight, out_weight = (arrays[name] for name in ("counts", "in_weight", "out_weight"))
                if about["format"] == _FORMAT:
                    return cls._of(about, counts, in_weight, out_weight, device)
            except Exception as error:  # of any type: zipfile raises six, for six kinds of broken bytes
                raise ValueError(f"{os.fspath(path)} is not a Word2Vec model: {error}") from error
        raise ValueError(f"{os.fspath(path)} is of format {about['format']}, this version reads {_FORMAT}")

    @classmethod
    def _of(cls, about: Any, counts: Any, in_weight: Any, out_weight: Any, device: torch.device | str) -> Word2Vec:
        model = cls(**about["options"], device=device, dtype=torch.from_numpy(in_weight[:0]).dtype)
        model.vocabulary = Vocabulary(about["words"], counts)
        V, d = len(counts), model.options.vector_size
        for name, weight, rows in (("in", in_weight, V), ("out", out_weight, V - model.options.hierarchical)):
            if weight.shape != (rows, d) or weight.dtype != in_weight.dtype:
                raise ValueError(f"{name}_weight is {weight.dtype} {list(weight.shape)}, it must be [{rows}, {d}]")
        model.in_weight, model.out_weight = (torch.from_numpy(a).to(device) for a in (in_weight, out_weight))
        model.history, model._state = about["history"], State(**about["state"])
        model._unnamed = bool(about["unnamed"])
        return model

    def to_gensim(self) -> Any:
        """A ``gensim.models.Word2Vec`` with these words, counts, vectors and options, which gensim can train on."""
        from . import interop

        self._fitted()
        return interop.to_gensim(self)

    @classmethod
    def from_gensim(cls, model: Any) -> Word2Vec:
        """The words, counts, vectors and options of a ``gensim.models.Word2Vec``.

        Raises:
            ValueError: it is trained with negative sampling and hierarchical softmax together, or not at all.
        """
        from . import interop

        return interop.from_gensim(model, cls)

    # ---- what comes out

    def _fitted(self) -> None:
        if self.vocabulary is None:
            raise RuntimeError("this model is not fitted yet: call fit(corpus) first")

    @property
    def vectors(self) -> WordVectors:
        """The input vectors with their words, on the CPU: neighbours, analogies, evaluation, files."""
        self._fitted()
        assert self.vocabulary is not None
        assert self.in_weight is not None
        # a copy, with what is computed from it, until the weights change (every change in place counts a version up)
        state = self._state
        version = (id(self.in_weight), self.in_weight._version, len(self.history), state.corpus, state.step)
        if self._vectors is None or self._vectors[0] != version:
            copy = self.in_weight.float().cpu().numpy().copy()
            self._vectors = version, WordVectors(self.vocabulary.words, copy, self.vocabulary.counts)
        return self._vectors[1]

    def most_similar(
        self,
        positive: str | Sequence[str] = (),
        negative: str | Sequence[str] = (),
        topn: int = 10,
        restrict_vocab: int | None = None,
    ) -> list[tuple[str, float]]:
        """See :meth:`WordVectors.most_similar`."""
        return self.vectors.most_similar(positive, negative, topn, restrict_vocab)
