"""Word2Vec steps in NumPy: a few small matrix products a slice, rows added where they belong.

A slice of G tokens multiplies its centres by all G + 2w tokens around it, of which a band is wanted: four times as
many multiplications as pairs, and still a fraction of the time of a loop over the offsets, because a product of 16 x
26 x 100 runs at the speed of BLAS. The surroundings of all slices are one strided view of the gathered rows, not a
copy.

What a step computes comes from the weights before it; :func:`apply` then adds the rows. The arrays of a step live in
buffers that the next step uses again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided

from .. import _blas
from .._arrays import Array
from .._openmp import alone
from .._parallel import quiet
from .._workspace import workspace
from ._problem import Word2VecProblem
from ._step import INPUT_MASS, Rows, Step


def _sigmoid(x: Array) -> Array:
    """In place. Where the exponential overflows, 0 is right."""
    np.negative(x, x)
    np.exp(x, x)
    np.add(x, 1, x)
    return np.reciprocal(x, x)


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _buffer(name: str, shape: tuple[int, ...], like: Array) -> Array:
    return workspace(f"word2vec {name}", shape, like.dtype)


class _Slices:
    """The tokens of a step cut into slices of G, each with a halo of w positions on both sides.

    Positions behind the last token fill the last slice. They belong to no sentence, so nothing pairs with them; their
    token is 0, and their rows are gradients of 0.
    """

    def __init__(self, problem: Word2VecProblem, tokens: Array, sentences: Array, reach: Array) -> None:
        N, G, w = problem.N, problem.G, problem.window
        self.count, self.G, self.w, self.N = problem.slices, G, w, N
        self.positions, self.width = self.count * G, G + 2 * w
        self.ids = np.zeros(self.positions + 2 * w, tokens.dtype)
        self.ids[w : w + N] = tokens
        self.tokens = self.ids[w : w + self.positions]
        sentence = np.full(self.positions + 2 * w, -1, np.int32)
        sentence[w : w + N] = sentences
        reaches = np.zeros(self.positions, reach.dtype)
        reaches[:N] = reach
        # whether the token a of a slice has the position b of its surroundings in its window: [slices, G, G + 2w]
        self.band = workspace("word2vec band", (self.count, G, self.width), np.dtype(bool))
        np.less_equal(_distances(G, w), self.own(reaches)[:, :, None], out=self.band)
        centres = self.own(sentence[w : w + self.positions])
        self.band &= self.around(sentence)[:, None] == centres[:, :, None]

    def own(self, a: Array) -> Array:
        """``[slices * G, ...]`` as ``[slices, G, ...]``."""
        return a.reshape(self.count, self.G, *a.shape[1:])

    def around(self, padded: Array) -> Array:
        """``[slices, G + 2w, ...]``, a view of what is ``[slices * G + 2w, ...]``."""
        step = padded.strides[0]
        shape = (self.count, self.width, *padded.shape[1:])
        return as_strided(padded, shape, (self.G * step, step, *padded.strides[1:]), writeable=False)

    def gathered(self, name: str, table: Array, halo: bool) -> Array:
        """The rows of the positions, ``[slices * G, d]``, and of ``2w`` more with a halo."""
        ids = self.ids if halo else self.tokens
        return np.take(table, ids, axis=0, out=_buffer(name, (len(ids), table.shape[1]), table), mode="clip")

    def folded(self, name: str, parts: Array) -> Array:
        """``[slices * G, ...]``: for each position the sum of what ``parts [slices, G + 2w, ...]`` have for it."""
        rest, G = parts.shape[2:], self.G
        places = self.positions + -(-2 * self.w // G) * G
        total = _buffer(name, (places, *rest), parts)
        total[self.positions :] = 0
        np.copyto(total[: self.positions].reshape(self.count, G, *rest), parts[:, :G])
        for first in range(G, self.width, G):
            piece = parts[:, first : first + G]
            target = total[first : first + self.positions].reshape(self.count, G, *rest)[:, : piece.shape[1]]
            np.add(target, piece, target)
        return total[self.w : self.w + self.positions]


def _distances(G: int, w: int) -> Array:
    """``[G, G + 2w]``: how far a position of the surroundings is from a token; too far for any window from itself."""
    distance = np.abs(np.arange(G + 2 * w) - w - np.arange(G)[:, None])
    distance[distance == 0] = G + 2 * w
    return distance.astype(np.int8 if G + 2 * w < 128 else np.int32)


@quiet
def skipgram_negative(
    problem: Word2VecProblem,
    w_in: Array,
    w_out: Array,
    tokens: Array,
    sentences: Array,
    reach: Array,
    pool: Array,
    with_loss: bool,
) -> Step:
    """Each context's input vector predicts the centre's output vector, against the pool of the context's slice."""
    d, slices = problem.d, _Slices(problem, tokens, sentences, reach)
    count, width, positions = slices.count, slices.width, slices.positions
    ids, d_outputs, output_mass = _output_rows(problem, slices, pool, w_out)
    with _blas.one_thread():
        inputs, outputs = slices.gathered("inputs", w_in, True), slices.own(slices.gathered("outputs", w_out, False))
        around, band = slices.around(inputs), slices.band
        scores = np.matmul(outputs, around.swapaxes(1, 2), out=_buffer("scores", band.shape, w_in))
        loss = float(_softplus(-scores[band]).sum(dtype=np.float64)) if with_loss else 0.0
        residual = np.subtract(1, _sigmoid(scores), scores)  # label - sigmoid ...
        np.multiply(residual, band, residual)  # ... where there is a pair
        np.matmul(residual, around, out=slices.own(d_outputs[:positions]))
        parts = np.matmul(residual.swapaxes(1, 2), outputs, out=_buffer("parts", (count, width, d), w_in))
        d_inputs = slices.folded("d inputs", parts)
        pairs = slices.folded("pairs", band.sum(axis=1, dtype=w_in.dtype))
        np.sum(band, axis=2, dtype=w_in.dtype, out=slices.own(output_mass[:positions]))
        vectors = slices.own(inputs[problem.window : problem.window + positions])
        loss += _against_pool(
            problem,
            slices,
            vectors,
            slices.own(pairs),
            w_out,
            pool,
            d_inputs,
            d_outputs[positions:],
            output_mass[positions:],
            with_loss,
        )
    count_of_pairs = float(pairs.sum(dtype=np.float64)) if with_loss else 0.0
    np.multiply(pairs, pairs.dtype.type(INPUT_MASS), pairs)
    return Step(Rows(slices.tokens, d_inputs, pairs), Rows(ids, d_outputs, output_mass), loss, count_of_pairs)


@quiet
def cbow_negative(
    problem: Word2VecProblem,
    w_in: Array,
    w_out: Array,
    tokens: Array,
    sentences: Array,
    reach: Array,
    pool: Array,
    mean: bool,
    divide: bool,
    with_loss: bool,
) -> Step:
    """The sum or mean of a window's input vectors predicts the centre's output vector, against the pool of its slice.

    ``divide``: the gradient of each context is divided by the number of contexts.
    """
    slices = _Slices(problem, tokens, sentences, reach)
    positions = slices.positions
    ids, d_outputs, output_mass = _output_rows(problem, slices, pool, w_out)
    with _blas.one_thread():
        inputs, outputs = slices.gathered("inputs", w_in, True), slices.own(slices.gathered("outputs", w_out, False))
        hidden, windows, share, there = _windows(slices, inputs, mean)
        scores = np.einsum("sgd,sgd->sg", hidden, outputs)
        loss = float((_softplus(-scores) * there).sum(dtype=np.float64)) if with_loss else 0.0
        residual = np.subtract(1, _sigmoid(scores), scores)
        np.multiply(residual, there, residual)
        np.multiply(residual[:, :, None], hidden, slices.own(d_outputs[:positions]))
        d_hidden = np.multiply(residual[:, :, None], outputs, _buffer("d hidden", outputs.shape, w_in))
        np.copyto(slices.own(output_mass[:positions]), there)
        loss += _against_pool(
            problem,
            slices,
            hidden,
            there,
            w_out,
            pool,
            d_hidden.reshape(positions, -1),
            d_outputs[positions:],
            output_mass[positions:],
            with_loss,
        )
        d_inputs, mass = _to_contexts(slices, windows, d_hidden, share, mean, divide)
    rows = Rows(slices.tokens, d_inputs, mass), Rows(ids, d_outputs, output_mass)
    return Step(*rows, loss, float(there.sum(dtype=np.float64)) if with_loss else 0.0)


def _windows(slices: _Slices, inputs: Array, mean: bool) -> tuple[Array, Array, Array, Array]:
    """The hidden vectors ``[slices, G, d]``; the windows as 0 and 1 ``[slices, G, G + 2w]``; a context's share of its
    window ``[slices, G]``; and whether a position has a window at all, as 0 and 1 ``[slices, G]``."""
    windows = _buffer("windows", slices.band.shape, inputs)
    np.copyto(windows, slices.band)
    contexts = windows.sum(axis=2)
    there = np.minimum(contexts, 1)
    share = np.divide(there, np.maximum(contexts, 1))
    hidden = _buffer("hidden", (slices.count, slices.G, inputs.shape[1]), inputs)
    np.matmul(windows, slices.around(inputs), out=hidden)
    if mean:
        np.multiply(hidden, share[:, :, None], hidden)
    return hidden, windows, share, there


def _to_contexts(
    slices: _Slices, windows: Array, d_hidden: Array, share: Array, mean: bool, divide: bool
) -> tuple[Array, Array]:
    """The gradients of the contexts' rows from those of the hidden vectors, and their mass."""
    if divide:
        np.multiply(d_hidden, share[:, :, None], d_hidden)
    parts = _buffer("parts", (slices.count, slices.width, d_hidden.shape[2]), d_hidden)
    np.matmul(windows.swapaxes(1, 2), d_hidden, out=parts)
    if mean == divide:
        scale = share if mean else np.divide(1, share, out=np.zeros_like(share), where=share > 0)
        mass = np.matmul(scale[:, None], windows)[:, 0]
    else:
        mass = windows.sum(axis=1)
    return slices.folded("d inputs", parts), slices.folded("pairs", mass)


def _output_rows(problem: Word2VecProblem, slices: _Slices, pool: Array, like: Array) -> tuple[Array, Array, Array]:
    """Of the output table: the ids, and room for gradients and mass; the positions' own first, then the pools'."""
    n = slices.positions + pool.size
    ids = np.concatenate([slices.tokens, pool.reshape(-1)])
    return ids, _buffer("d outputs", (n, problem.d), like), _buffer("output mass", (n,), like)


def _against_pool(
    problem: Word2VecProblem,
    slices: _Slices,
    vectors: Array,
    pairs: Array,
    w_out: Array,
    pool: Array,
    d_vectors: Array,
    d_pool: Array,
    pool_mass: Array,
    with_loss: bool,
) -> float:
    """``vectors [slices, G, d]`` against the pool of their slice, each entry ``pairs * K / S`` times, and not where it
    is the position's own token. Adds to ``d_vectors [slices * G, d]``, fills the pool's rows, returns the loss."""
    weight = pairs * pairs.dtype.type(problem.K / problem.S)
    negatives = np.take(w_out, pool, axis=0, out=_buffer("pool", (*pool.shape, problem.d), w_out), mode="clip")
    shape = (slices.count, slices.G, pool.shape[1])
    scores = np.matmul(vectors, negatives.swapaxes(1, 2), out=_buffer("pool scores", shape, w_out))
    is_own = slices.own(slices.tokens)[:, :, None] == pool[:, None]
    loss = 0.0
    if with_loss:
        loss = float((_softplus(scores) * weight[:, :, None] * ~is_own).sum(dtype=np.float64))
    residual = _sigmoid(scores)
    np.multiply(residual, -weight[:, :, None], residual)
    residual[is_own] = 0
    product = np.matmul(residual, negatives, out=_buffer("product", vectors.shape, w_out))
    np.add(d_vectors, product.reshape(d_vectors.shape), d_vectors)
    np.matmul(residual.swapaxes(1, 2), vectors, out=d_pool.reshape(negatives.shape))
    pool_mass.reshape(pool.shape)[...] = weight.sum(axis=1)[:, None]
    return loss


@quiet
def skipgram_hierarchical(
    problem: Word2VecProblem,
    w_in: Array,
    w_nodes: Array,
    tokens: Array,
    sentences: Array,
    reach: Array,
    paths: Array,
    codes: Array,
    with_loss: bool,
) -> Step:
    """Each context's input vector predicts the turns on the path to the centre's leaf.

    The sigmoid at a node is the same for all centres that a context leads there for, so only their number counts: the
    nodes that a slice's paths touch are its pool, met by all its surroundings in one product.
    """
    slices = _Slices(problem, tokens, sentences, reach)
    with _blas.one_thread():
        around = slices.around(slices.gathered("inputs", w_in, True))
        nodes, via, ahead = _slice_nodes(slices, paths, codes, w_in)
        band = _buffer("windows", slices.band.shape, w_in)
        np.copyto(band, slices.band)
        leading = band.swapaxes(1, 2)
        shape = (slices.count, slices.width, nodes.shape[1])
        visits = np.matmul(leading, via, out=_buffer("visits", shape, w_in))
        labels = np.matmul(leading, ahead, out=_buffer("labels", shape, w_in))
        d_around, d_nodes, loss = _along_paths(problem, around, nodes, visits, labels, w_nodes, with_loss)
        d_inputs = slices.folded("d inputs", d_around)
        pairs = slices.folded("pairs", slices.band.sum(axis=1, dtype=w_in.dtype))
        count_of_pairs = float(pairs.sum(dtype=np.float64)) if with_loss else 0.0
        np.multiply(pairs, pairs.dtype.type(INPUT_MASS), pairs)
    rows = (
        Rows(slices.tokens, d_inputs, pairs),
        Rows(nodes.reshape(-1), d_nodes.reshape(-1, problem.d), visits.sum(axis=1).reshape(-1)),
    )
    return Step(*rows, loss, count_of_pairs)


@quiet
def cbow_hierarchical(
    problem: Word2VecProblem,
    w_in: Array,
    w_nodes: Array,
    tokens: Array,
    sentences: Array,
    reach: Array,
    paths: Array,
    codes: Array,
    mean: bool,
    divide: bool,
    with_loss: bool,
) -> Step:
    """The sum or mean of a window's input vectors predicts the turns on the path to the centre's leaf."""
    slices = _Slices(problem, tokens, sentences, reach)
    with _blas.one_thread():
        inputs = slices.gathered("inputs", w_in, True)
        hidden, windows, share, there = _windows(slices, inputs, mean)
        nodes, visits, labels = _slice_nodes(slices, paths, codes, w_in)
        np.multiply(visits, there[:, :, None], visits)
        np.multiply(labels, there[:, :, None], labels)
        d_hidden, d_nodes, loss = _along_paths(problem, hidden, nodes, visits, labels, w_nodes, with_loss)
        d_inputs, mass = _to_contexts(slices, windows, d_hidden, share, mean, divide)
        np.multiply(mass, mass.dtype.type(INPUT_MASS), mass)
    rows = (
        Rows(slices.tokens, d_inputs, mass),
        Rows(nodes.reshape(-1), d_nodes.reshape(-1, problem.d), visits.sum(axis=1).reshape(-1)),
    )
    return Step(*rows, loss, float(there.sum(dtype=np.float64)) if with_loss else 0.0)


def _slice_nodes(slices: _Slices, paths: Array, codes: Array, like: Array) -> tuple[Array, Array, Array]:
    """The inner nodes that each slice's paths touch, ``[slices, U]``, 0 behind the last; and ``[slices, G, U]``: 1
    where a position's path passes the node, and 1 where it leaves it with code 0."""
    of_positions = paths[slices.tokens[: slices.N]]
    position, level = np.nonzero(of_positions >= 0)
    slice_index = position // slices.G
    nodes = of_positions[position, level]
    keys, place = np.unique(slice_index * np.int64(len(paths)) + nodes, return_inverse=True)
    slice_of_key = keys // len(paths)
    first = np.searchsorted(slice_of_key, np.arange(slices.count + 1))
    column = np.arange(len(keys)) - first[slice_of_key]
    U = int(np.diff(first).max())
    pool = np.zeros((slices.count, U), np.int32)
    pool[slice_of_key, column] = keys % len(paths)
    via, ahead = (_buffer(name, (slices.count, slices.G, U), like) for name in ("via", "ahead"))
    via[...] = 0
    ahead[...] = 0
    where = (slice_index, position % slices.G, column[place])
    via[where] = 1
    ahead[where] = ~codes[slices.tokens[position], level]
    return pool, via, ahead


def _along_paths(
    problem: Word2VecProblem,
    vectors: Array,
    nodes: Array,
    visits: Array,
    labels: Array,
    w_nodes: Array,
    with_loss: bool,
) -> tuple[Array, Array, float]:
    """``vectors [slices, n, d]`` at the nodes of their slice, which each visits so often and leaves with code 0 so
    often (``[slices, n, U]``): gradients of vectors and nodes, and the loss. The probability of code 0 is the
    sigmoid."""
    table = np.take(w_nodes, nodes, axis=0, out=_buffer("nodes", (*nodes.shape, problem.d), w_nodes), mode="clip")
    scores = np.matmul(vectors, table.swapaxes(1, 2), out=_buffer("scores", visits.shape, w_nodes))
    loss = 0.0
    if with_loss:
        both = labels * _softplus(-scores) + (visits - labels) * _softplus(scores)
        loss = float(both.sum(dtype=np.float64))
    residual = _sigmoid(scores)
    np.multiply(residual, visits, residual)
    np.subtract(labels, residual, residual)
    d_vectors = np.matmul(residual, table, out=_buffer("parts", vectors.shape, w_nodes))
    d_nodes = np.matmul(residual.swapaxes(1, 2), vectors, out=_buffer("d outputs", table.shape, w_nodes))
    return d_vectors, d_nodes, loss


@quiet
def apply(table: Array, rows: Rows, rate: float, cap: float, masses: Array) -> None:
    """``table[id] += rate * min(1, cap / mass of the row) * gradient`` for one row after the other, whose gradients it
    scales.

    Torch adds the rows (45 ns each of 100 floats): it sorts the ids, keeps the order of equal ones, and adds each in
    its dtype to the table, so the bits are those of the plain loop. ``np.add.at`` on the flat
    table takes 200 ns, in rows 660.

    Args:
        table: ``[V, d]``, contiguous.
        cap: pairs whose updates one row takes in full; the sum of more is scaled down to this many. ``inf``: no limit.
        masses: ``[V]`` of the table's dtype, zeros, and again so afterwards.
    """
    ids, gradients, dtype = rows.ids, rows.gradients, table.dtype.type
    factor: Any = dtype(rate)
    if np.isfinite(cap):
        np.add.at(masses, ids, rows.mass)
        mass = masses[ids]
        masses[ids] = 0
        if mass.max(initial=0) > cap:
            factor = (dtype(rate) * np.minimum(1, dtype(cap) / np.maximum(mass, 1)))[:, None]
    np.multiply(gradients, factor, gradients)
    index = torch.from_numpy(ids.astype(np.int64))[:, None].expand(gradients.shape)
    with alone():
        torch.from_numpy(table).scatter_add_(0, index, torch.from_numpy(gradients))
