"""From gensim and to gensim. It is imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .huffman import HuffmanTree
from .options import Options
from .vocabulary import Vocabulary


def to_gensim(model: Any) -> Any:
    """A trained tilesmith ``Word2Vec`` as gensim's, with a copy of all weights: it can be asked and trained further.

    Words, their order and counts, thinning, negatives or tree, window, rates and seed are the model's. gensim knows no
    ``cbow_grad="exact"``: it goes on with its own gradient. ``workers`` stays gensim's usual.

    Raises:
        ImportError: gensim is not installed. RuntimeError: the model is not fitted.
    """
    models = _gensim()
    if model.vocabulary is None:
        raise RuntimeError("this model is not fitted yet: call fit(corpus) first")
    options, vocabulary = model.options, model.vocabulary
    theirs = models.Word2Vec(**gensim_arguments(options))
    # as they are: gensim's sorting turns words of equal counts around, and it would drop the rare ones
    theirs.sorted_vocab = 0
    counts = dict(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True))
    theirs.build_vocab_from_freq(counts, trim_rule=_keep)
    theirs.sorted_vocab = 1
    theirs.corpus_total_words = vocabulary.total
    theirs.wv.vectors = _copied(model.in_weight)
    if options.hierarchical:
        theirs.syn1[: len(vocabulary) - 1] = _copied(model.out_weight)  # gensim has a row more, which nothing uses
    else:
        theirs.syn1neg = _copied(model.out_weight)
    return theirs


def gensim_arguments(options: Options) -> dict[str, Any]:
    """What ``gensim.models.Word2Vec`` calls these options. What only tilesmith has is left out."""
    return {
        "vector_size": options.vector_size,
        "alpha": options.alpha,
        "min_alpha": options.min_alpha,
        "window": options.window,
        "shrink_windows": options.shrink_windows,
        "min_count": options.min_count,
        "max_final_vocab": options.max_vocab,
        "sample": options.sample,
        "seed": options.seed,
        "sg": int(options.model == "skipgram"),
        "hs": int(options.hierarchical),
        "negative": 0 if options.hierarchical else options.negative,
        "ns_exponent": options.ns_exponent,
        "cbow_mean": int(options.cbow_mode == "mean"),
        "epochs": options.epochs,
    }


def from_gensim(theirs: Any, word2vec_class: Any) -> Any:
    """A trained gensim ``Word2Vec`` as ``word2vec_class``, tilesmith's, with a copy of all weights.

    Options that only tilesmith has are the usual ones.

    Raises:
        ImportError: gensim is not installed. TypeError: it is no gensim ``Word2Vec``.
        ValueError: it has no vocabulary with counts, a FastText's or Doc2Vec's vectors, negative sampling and
            hierarchical softmax together, a null word, or a tree other than its counts have.
    """
    models = _gensim()
    if not isinstance(theirs, models.Word2Vec):
        raise TypeError(f"expected a gensim Word2Vec, got {type(theirs).__name__}")
    if isinstance(theirs, models.FastText | models.Doc2Vec):
        raise ValueError(
            f"a {type(theirs).__name__} has vectors of more than words: use WordVectors.from_gensim(model.wv)"
        )
    if bool(theirs.hs) == bool(theirs.negative):
        raise ValueError(
            "a model has either hierarchical softmax or negative sampling, this one "
            f"hs={theirs.hs} and negative={theirs.negative}"
        )
    if theirs.null_word:
        raise ValueError("a model with a null word cannot be converted")
    words, vectors, counts = table_of(theirs.wv)
    if counts is None or not len(words) or counts.min() < 1:
        raise ValueError("the gensim model has no vocabulary with counts: call build_vocab first")
    if theirs.hs:
        _check_tree(theirs.wv, HuffmanTree.of(counts))
        out = theirs.syn1[: len(words) - 1]
    else:
        out = theirs.syn1neg
    model = word2vec_class(
        "skipgram" if theirs.sg else "cbow",
        vector_size=theirs.vector_size,
        window=theirs.window,
        shrink_windows=theirs.shrink_windows,
        min_count=max(1, theirs.min_count or 1),
        max_vocab=theirs.max_final_vocab,
        sample=theirs.sample or 0.0,
        hierarchical=bool(theirs.hs),
        ns_exponent=theirs.ns_exponent,
        cbow_mode="mean" if theirs.cbow_mean else "sum",
        alpha=theirs.alpha,
        min_alpha=theirs.min_alpha,
        epochs=theirs.epochs,
        seed=theirs.seed,
        **({} if theirs.hs else {"negative": theirs.negative}),
    )
    model.vocabulary = Vocabulary(words, counts)
    model.in_weight = torch.from_numpy(vectors)
    model.out_weight = torch.from_numpy(np.array(out, np.float32))
    return model


def keyed_vectors(words: Sequence[str], vectors: NDArray[np.float32], counts: NDArray[np.int64] | None) -> Any:
    """See :meth:`WordVectors.to_gensim`."""
    theirs = _gensim().KeyedVectors(vectors.shape[1])
    theirs.add_vectors(list(words), vectors)
    if counts is not None:
        theirs.expandos["count"] = counts.copy()
    return theirs


def table_of(theirs: Any) -> tuple[list[str], NDArray[np.float32], NDArray[np.int64] | None]:
    """Words, vectors and counts of a gensim ``KeyedVectors``. See :meth:`WordVectors.from_gensim`."""
    if not isinstance(theirs, _gensim().KeyedVectors):
        raise TypeError(f"expected a gensim KeyedVectors, as in model.wv, got {type(theirs).__name__}")
    words = list(theirs.index_to_key)
    for word in words:
        if not isinstance(word, str):
            raise ValueError(f"keys must be words, one is {word!r}")
    counts = theirs.expandos.get("count")
    return words, np.array(theirs.vectors, np.float32), None if counts is None else np.array(counts, np.int64)


def _gensim() -> Any:
    try:
        import gensim.models
    except ImportError as error:
        raise ImportError("this needs gensim: pip install gensim") from error
    return gensim.models


def _keep(word: str, count: int, min_count: int) -> int:
    from gensim.utils import RULE_KEEP

    return int(RULE_KEEP)


def _copied(weight: torch.Tensor) -> NDArray[np.float32]:
    return weight.detach().to("cpu", torch.float32, copy=True).numpy()


def _check_tree(theirs: Any, tree: HuffmanTree) -> None:
    """Raises ValueError if gensim's tree is another one: its rows would belong to other nodes."""
    for i, (path, code, n) in enumerate(zip(tree.paths, tree.codes, tree.lengths.tolist(), strict=True)):
        points, turns = (theirs.get_vecattr(i, name) for name in ("point", "code"))
        if not (np.array_equal(points, path[:n]) and np.array_equal(turns, code[:n])):
            raise ValueError(f"the path to {theirs.index_to_key[i]!r} in the model's tree is not that of its counts")
