"""Word2Vec pairs in NumPy: rows gathered a block at a time, gradients summed row by row in the order of their ids.

Gathered rows never exist all at once: a block of them is multiplied where it lies in the cache. For the gradients the h
of a chunk of rows are kept, and what belongs to one id is summed from them in order. What a row's sum is made of does
not depend on how the work is cut among threads; and threads share only what is a few long calls of NumPy, since they
wait for each other between these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ... import autotune
from .._arrays import Array
from .._openmp import alone
from .._parallel import parallel_for, quiet
from .._workspace import workspace
from . import _numpy_space as space
from ._problem import PairsProblem

_BLOCK_BYTES = 1 << 20  # rows gathered at once
_CHUNK_BYTES = 8 << 20  # vectors h kept at once, and as many of their gradients
# Fewer gathered bytes are left to one thread: after an optimizer's step torch's own threads still spin on the other
# core. 4096 rows of skip-gram, 11 MB, took 8.0 ms a step with ours and 6.3 without; 100 thousand 160 and 174.
_BYTES_FOR_THREADS = 32 << 20

Gradient = tuple[Array, Array]
DType = np.dtype[Any]


def _forward_default(_: space.Rows | None) -> autotune.Config:
    return {"BLOCK_BYTES": _BLOCK_BYTES}


def _backward_default(_: space.Rows | None) -> autotune.Config:
    return {"BLOCK_BYTES": _BLOCK_BYTES, "CHUNK_BYTES": _CHUNK_BYTES}


FORWARD, BACKWARD = space.forward(_forward_default), space.backward(_backward_default)
TUNABLES = (FORWARD, BACKWARD)


def _config(
    tunable: autotune.Tunable, problem: PairsProblem, table: Array, dtype: DType, gradients: int
) -> autotune.Config:
    """Asked for once a call, and not where one block is all."""
    if not space.is_cut(problem, dtype.itemsize, gradients > 0):
        return tunable.default(None)
    is_half = table.itemsize == 2
    rows = space.Rows(problem, gradients, is_half, _BYTES_FOR_THREADS, dtype.itemsize, autotune.cpu())
    return autotune.resolve(tunable, rows)


@quiet
def forward(
    problem: PairsProblem,
    w_in: Array,
    w_out: Array,
    inputs: Array,
    targets: Array,
    labels: Array,
    mean: bool,
    loss: Array,
    residual: Array,
) -> None:
    share = _share(inputs, loss.dtype)
    wrong = residual  # holds the scores first
    config = _config(FORWARD, problem, w_in, loss.dtype, 0)

    def body(start: int, stop: int) -> None:
        rows = slice(start, stop)
        h = _hidden(w_in, inputs[rows], share[rows], mean)
        v = _gathered("targets", w_out, targets[rows])
        np.matmul(v, h[:, :, None], out=wrong[rows, :, None])

    _over_rows(problem, config, 0, problem.B, loss.itemsize, body)
    np.negative(wrong, wrong, where=labels)  # how far on the wrong side
    tail = np.exp(-np.abs(wrong))
    there = (targets >= 0) & (share > 0)[:, None]
    losses = np.maximum(wrong, 0)
    losses += np.log1p(tail)
    losses[~there] = 0
    np.sum(losses, axis=1, out=loss)
    np.divide(np.where(wrong >= 0, 1, tail), 1 + tail, residual)  # sigmoid(wrong), exact also where it is small
    np.negative(residual, residual, where=~labels)
    residual[~there] = 0


@quiet
def backward(
    problem: PairsProblem,
    w_in: Array,
    w_out: Array,
    inputs: Array,
    targets: Array,
    residual: Array,
    grad_loss: Array,
    mean: bool,
    divide: bool,
    needs_in: bool,
    needs_out: bool,
) -> tuple[Gradient | None, Gradient | None]:
    B, d, dtype = problem.B, problem.d, residual.dtype
    config = _config(BACKWARD, problem, w_in, dtype, needs_in + needs_out)
    chunk = max(1, config["CHUNK_BYTES"] // (d * dtype.itemsize))
    share = _share(inputs, dtype)
    slope = residual * -grad_loss[:, None]  # of the loss by the scores
    d_in = _RowSums(inputs, chunk, d, dtype) if needs_in else None
    d_out = _RowSums(np.where(share[:, None] > 0, targets, -1), chunk, d, dtype) if needs_out else None
    for first in range(0, B, chunk):
        last = min(first + chunk, B)
        h, dh = (workspace(f"word2vec {name}", (last - first, d), dtype) for name in ("h", "dh"))

        def body(start: int, stop: int, first: int = first, h: Array = h, dh: Array = dh) -> None:
            rows, here = slice(start, stop), slice(start - first, stop - first)
            if needs_out:
                np.copyto(h[here], _hidden(w_in, inputs[rows], share[rows], mean))
            if needs_in:
                v = _gathered("targets", w_out, targets[rows])
                np.matmul(slope[rows, None], v, out=dh[here, None])

        _over_rows(problem, config, first, last, dtype.itemsize, body)
        if d_out is not None:
            d_out.add(first, h, slope[first:last], config)
        if d_in is not None:
            if divide and problem.C != 1:
                np.multiply(dh, share[first:last, None], dh)
            d_in.add(first, dh, None, config)
    return None if d_in is None else d_in.result, None if d_out is None else d_out.result


def _over_rows(problem: PairsProblem, config: autotune.Config, first: int, last: int, itemsize: int, body: Any) -> None:
    """``body(start, stop)`` over blocks of the rows ``first`` to ``last - 1`` whose gathered rows fit the cache."""
    bytes_a_row = space.bytes_of_a_row(problem, itemsize)
    n = last - first
    parallel_for(
        n,
        lambda start, stop: body(first + start, first + stop),
        bytes_moved=n * bytes_a_row if n * bytes_a_row >= _BYTES_FOR_THREADS else 0,
        block=max(1, config["BLOCK_BYTES"] // bytes_a_row),
        products=n * problem.M * problem.d,
    )


def _gathered(name: str, table: Array, ids: Array) -> Array:
    """``[*ids.shape, d]`` in the dtype to compute in, zeros where the id is -1; the next call takes its memory."""
    shape, ids = (*ids.shape, table.shape[1]), ids.reshape(-1)
    if table.dtype.itemsize == 2:
        bits = table[np.maximum(ids, 0)]
        # bfloat16 comes as its bits: the upper half of a float32
        rows = bits.astype(np.float32) if bits.dtype == np.float16 else (bits.astype(np.uint32) << 16).view(np.float32)
    elif table.flags.c_contiguous:
        rows = workspace(f"word2vec {name}", (len(ids), table.shape[1]), table.dtype)
        np.take(table, ids, axis=0, out=rows, mode="clip")
    else:  # np.take would copy the whole table
        rows = table[np.maximum(ids, 0)]
    if ids.min(initial=0) < 0:
        rows[ids < 0] = 0
    return rows.reshape(shape)


def _hidden(w_in: Array, inputs: Array, share: Array, mean: bool) -> Array:
    """``h [n, d]``."""
    rows = _gathered("inputs", w_in, inputs)
    if inputs.shape[1] == 1:
        return rows[:, 0]
    h = np.matmul(np.ones((1, inputs.shape[1]), rows.dtype), rows)[:, 0]
    return np.multiply(h, share[:, None], h) if mean else h


def _share(inputs: Array, dtype: DType) -> Array:
    """``[n]``: one over a row's number of inputs, 0 where it has none."""
    count = (inputs >= 0).sum(axis=1).astype(dtype)
    return np.divide(count > 0, np.maximum(count, 1), dtype=dtype)


@dataclass(frozen=True)
class _Segments:
    """Entries of an array of ids, those of one id side by side in their order: ``ids [n]`` is sorted, each once, and
    its entries in the flat array are ``positions`` from its start to the next one's."""

    ids: Array
    starts: Array
    positions: Array

    @staticmethod
    def of(ids: Array) -> _Segments:
        flat = ids.reshape(-1)
        positions = np.flatnonzero(flat >= 0)
        # id and position in one number: NumPy sorts numbers ten times as fast as it finds the order of equal ones
        shift = len(flat).bit_length()
        keys = np.sort((flat[positions].astype(np.int64) << shift) | positions)
        by_id = keys >> shift
        starts = np.flatnonzero(np.diff(by_id, prepend=-1))
        return _Segments(by_id[starts], starts, keys & ((1 << shift) - 1))


class _RowSums:
    """The gradient of a table's rows, from the ids ``[B, k]`` of the rows that each of B vectors was made of or met."""

    def __init__(self, ids: Array, chunk: int, d: int, dtype: DType) -> None:
        self._of_rows = ids
        self._whole = _Segments.of(ids) if len(ids) <= chunk else None
        self._ids = _distinct(ids) if self._whole is None else self._whole.ids
        self._rows = np.zeros((len(self._ids) if self._whole is None else 0, d), dtype)

    @property
    def result(self) -> Gradient:
        return self._ids, self._rows

    def add(self, first: int, vectors: Array, weights: Array | None, config: autotune.Config) -> None:
        """The ``vectors [n, d]`` of the rows from ``first`` on, times ``weights [n, k]``, to each of the rows' ids."""
        n, k = len(vectors), self._of_rows.shape[1]
        segments = self._whole or _Segments.of(self._of_rows[first : first + n])
        source = segments.positions // k
        factors = None if weights is None else weights.reshape(-1)[segments.positions]
        if self._whole:
            self._rows = _sums(vectors, source, factors, segments.starts)
            return
        places = np.searchsorted(self._ids, segments.ids)
        bounds = np.append(segments.starts, len(source))
        at_once = max(1, config["BLOCK_BYTES"] // (vectors.shape[1] * vectors.itemsize))
        for i in range(0, len(places), at_once):
            here = bounds[i : i + at_once + 1]
            some = slice(here[0], here[-1])
            sums = _sums(vectors, source[some], None if factors is None else factors[some], here[:-1] - here[0])
            self._rows[places[i : i + at_once]] += sums


def _distinct(ids: Array) -> Array:
    """Sorted. ``np.unique`` looks each up in a hash table first: ten times slower for a million that mostly differ."""
    ordered = np.sort(ids[ids >= 0].astype(np.int64))
    return ordered[np.diff(ordered, prepend=-1) != 0]


def _sums(vectors: Array, source: Array, factors: Array | None, starts: Array) -> Array:
    """``[n, d]``: the sum of ``factors[j] vectors[source[j]]`` over the ``j`` from each start to the next.

    Torch's: an entry of 100 floats takes 17 ns. NumPy's fastest way, sums of equal length as one batch of products,
    takes 80.
    """
    if not len(source):
        return np.zeros((0, vectors.shape[1]), vectors.dtype)
    with alone():
        sums, *_ = torch.embedding_bag(
            torch.from_numpy(vectors),
            torch.from_numpy(source),
            torch.from_numpy(starts),
            mode=0,  # sum
            per_sample_weights=None if factors is None else torch.from_numpy(factors),
        )
    return sums.numpy()
