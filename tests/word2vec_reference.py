"""Word2Vec pair by pair, in plain loops and float64: what the fast steps are checked against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x))) if x >= 0 else float(np.exp(x) / (1 + np.exp(x)))


def softplus(x: float) -> float:
    return float(np.logaddexp(0, x))


def windows(sentences: Array, reach: Array) -> Iterator[tuple[int, list[int]]]:
    """Each centre with its contexts: positions in the same sentence, at most its reach away."""
    n = len(sentences)
    for i in range(n):
        around = range(max(0, i - int(reach[i])), min(n, i + int(reach[i]) + 1))
        yield i, [j for j in around if j != i and sentences[j] == sentences[i]]


@dataclass
class Sums:
    """What a step adds up for both tables, dense; the mass of each row; loss and pairs."""

    d_in: Array
    d_out: Array
    in_mass: Array
    out_mass: Array
    loss: float = 0.0
    pairs: int = 0

    @staticmethod
    def like(w_in: Array, w_out: Array) -> Sums:
        return Sums(np.zeros(w_in.shape), np.zeros(w_out.shape), np.zeros(len(w_in)), np.zeros(len(w_out)))

    def meet(self, h: Array, row: int, v: Array, label: float, weight: float) -> Array:
        """One vector against one row of the output table: returns the gradient of the vector."""
        score = float(h @ v)
        self.loss += weight * softplus(-score if label else score)
        residual = weight * (label - sigmoid(score))
        self.d_out[row] += residual * h
        self.out_mass[row] += weight
        return residual * v


def against_pool(sums: Sums, h: Array, w_out: Array, own: int, pool: Array, K: int, weight: float) -> Array:
    """``weight`` pairs' worth of negatives, from a pool in which the position's own token does not count."""
    gradient = np.zeros_like(h)
    for negative in pool.tolist():
        if negative == own:
            sums.out_mass[negative] += weight * K / len(pool)  # the mass is of what was drawn
        else:
            gradient += sums.meet(h, negative, w_out[negative], 0, weight * K / len(pool))
    return gradient


def skipgram_negative(
    w_in: Array, w_out: Array, tokens: Array, sentences: Array, reach: Array, pool: Array, K: int, G: int
) -> Sums:
    sums = Sums.like(w_in, w_out)
    pairs_of = np.zeros(len(tokens), int)
    for i, contexts in windows(sentences, reach):
        for j in contexts:
            sums.d_in[tokens[j]] += sums.meet(w_in[tokens[j]], tokens[i], w_out[tokens[i]], 1, 1)
            sums.in_mass[tokens[j]] += 3  # it moves for the positive and for the negatives
            pairs_of[j] += 1
            sums.pairs += 1
    for j, n in enumerate(pairs_of):
        sums.d_in[tokens[j]] += against_pool(sums, w_in[tokens[j]], w_out, tokens[j], pool[j // G], K, n)
    return sums


def hidden(w_in: Array, tokens: Array, contexts: list[int], mean: bool) -> Array:
    total: Array = np.sum([w_in[tokens[j]] for j in contexts], axis=0)
    return total / len(contexts) if mean else total


def spread(
    sums: Sums, tokens: Array, contexts: list[int], gradient: Array, divide: bool, mean: bool = True, mass: int = 1
) -> None:
    for j in contexts:
        sums.d_in[tokens[j]] += gradient / len(contexts) if divide else gradient
        # how far the hidden vector moves, if all of its rows move alike
        sums.in_mass[tokens[j]] += mass * (1 if mean else len(contexts)) / (len(contexts) if divide else 1)


def cbow_negative(
    w_in: Array,
    w_out: Array,
    tokens: Array,
    sentences: Array,
    reach: Array,
    pool: Array,
    K: int,
    G: int,
    mean: bool,
    divide: bool,
) -> Sums:
    sums = Sums.like(w_in, w_out)
    for i, contexts in windows(sentences, reach):
        if contexts:
            h = hidden(w_in, tokens, contexts, mean)
            gradient = sums.meet(h, tokens[i], w_out[tokens[i]], 1, 1)
            gradient = gradient + against_pool(sums, h, w_out, tokens[i], pool[i // G], K, 1)
            spread(sums, tokens, contexts, gradient, divide, mean)
            sums.pairs += 1
    return sums


def along_path(sums: Sums, h: Array, w_nodes: Array, path: Array, code: Array) -> Array:
    gradient = np.zeros_like(h)
    for node, turn in zip(path.tolist(), code.tolist(), strict=True):
        if node >= 0:
            gradient += sums.meet(h, node, w_nodes[node], 0 if turn else 1, 1)
    return gradient


def skipgram_hierarchical(
    w_in: Array, w_nodes: Array, tokens: Array, sentences: Array, reach: Array, paths: Array, codes: Array
) -> Sums:
    sums = Sums.like(w_in, w_nodes)
    for i, contexts in windows(sentences, reach):
        for j in contexts:
            gradient = along_path(sums, w_in[tokens[j]], w_nodes, paths[tokens[i]], codes[tokens[i]])
            sums.d_in[tokens[j]] += gradient
            sums.in_mass[tokens[j]] += 3
            sums.pairs += 1
    return sums


def cbow_hierarchical(
    w_in: Array,
    w_nodes: Array,
    tokens: Array,
    sentences: Array,
    reach: Array,
    paths: Array,
    codes: Array,
    mean: bool,
    divide: bool,
) -> Sums:
    sums = Sums.like(w_in, w_nodes)
    for i, contexts in windows(sentences, reach):
        if contexts:
            h = hidden(w_in, tokens, contexts, mean)
            gradient = along_path(sums, h, w_nodes, paths[tokens[i]], codes[tokens[i]])
            spread(sums, tokens, contexts, gradient, divide, mean, 3)
            sums.pairs += 1
    return sums


def train_in_order(
    sentences: list[list[int]],
    words: int,
    dimensions: int,
    window: int,
    K: int,
    probabilities: Array,
    epochs: int,
    alpha: float,
    seed: int,
) -> tuple[Array, Array]:
    """word2vec as it was written: one pair after the other, K fresh negatives each, every update seen by the next."""
    generator = np.random.default_rng(seed)
    w_in = (generator.random((words, dimensions)) * 2 - 1) / dimensions
    w_out = np.zeros((words, dimensions))
    total, done = epochs * sum(map(len, sentences)), 0
    for _ in range(epochs):
        for sentence in sentences:
            tokens = np.array(sentence)
            reach = generator.integers(1, window + 1, len(tokens))
            rate = max(1e-4, alpha * (1 - done / total))
            for i, contexts in windows(np.zeros(len(tokens)), reach):
                for j in contexts:
                    h, gradient = w_in[tokens[j]], np.zeros(dimensions)
                    for k in range(K + 1):
                        row = tokens[i] if k == 0 else int(generator.choice(words, p=probabilities))
                        if k and row == tokens[i]:
                            continue
                        residual = rate * ((k == 0) - sigmoid(float(h @ w_out[row])))
                        gradient += residual * w_out[row]
                        w_out[row] += residual * h
                    w_in[tokens[j]] += gradient
            done += len(tokens)
    return w_in, w_out
