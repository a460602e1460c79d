"""What the NumPy kernels of Word2Vec pairs may be run with: how many rows are gathered, and how many vectors kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...autotune import Config, Cost, Device, Key, Tunable
from .._division import blocks_of
from .._numpy_tuning import KB, MB, repeated, share, unit, workers
from ._problem import PairsProblem

_BLOCK_BYTES = (1 * MB, 512 * KB, 2 * MB, 256 * KB, 4 * MB)
_CHUNK_BYTES = (8 * MB, 4 * MB, 16 * MB, 2 * MB)
_FORWARD = {"BLOCK_BYTES": _BLOCK_BYTES}
_BACKWARD = {"BLOCK_BYTES": _BLOCK_BYTES, "CHUNK_BYTES": _CHUNK_BYTES}


@dataclass(frozen=True)
class Rows:
    """One direction: rows of two tables gathered for each of ``B`` vectors; the backward sums ``gradients`` tables'.

    Attributes:
        is_half: the tables', which gathered rows are widened from.
        bytes_for_threads: gathered rows in a loop that are left to one thread if they are less.
    """

    problem: PairsProblem
    gradients: int
    is_half: bool
    bytes_for_threads: int
    itemsize: int
    device: Device

    @property
    def row_bytes(self) -> int:
        return bytes_of_a_row(self.problem, self.itemsize)


def bytes_of_a_row(problem: PairsProblem, itemsize: int) -> int:
    """That are gathered for a vector."""
    return max(1, problem.C + problem.M) * problem.d * itemsize


def is_cut(problem: PairsProblem, itemsize: int, kept: bool) -> bool:
    """Whether any value of the space cuts the vectors, which the backward has kept."""
    gathered = problem.B * bytes_of_a_row(problem, itemsize)
    return gathered > min(_BLOCK_BYTES) or (kept and problem.B * problem.d * itemsize > min(_CHUNK_BYTES))


def _chunk(config: Config, rows: Rows) -> int:
    """Vectors at once."""
    problem = rows.problem
    if not rows.gradients:
        return problem.B
    return min(problem.B, max(1, config["CHUNK_BYTES"] // (problem.d * rows.itemsize)))


def _block(config: Config, rows: Rows) -> int:
    """Vectors whose rows are gathered at once."""
    return share(_chunk(config, rows), config["BLOCK_BYTES"] // rows.row_bytes, _workers(config, rows))


def _workers(config: Config, rows: Rows) -> int:
    problem, n = rows.problem, _chunk(config, rows)
    gathered = n * rows.row_bytes
    bytes_moved = gathered if gathered >= rows.bytes_for_threads else 0
    return workers(n, bytes_moved, n * problem.M * problem.d, rows.device)


def _refusal(config: Config, rows: Rows) -> str | None:
    return repeated("BLOCK_BYTES", _FORWARD, config, lambda other: _block(other, rows))


def _backward_refusal(config: Config, rows: Rows) -> str | None:
    return _refusal(config, rows) or repeated("CHUNK_BYTES", _BACKWARD, config, lambda other: _chunk(other, rows))


def _key(rows: Rows) -> Key:
    p, d = rows.problem, rows.device
    exact = (rows.gradients, p.C == 1, rows.is_half, rows.itemsize, d.name, d.multiprocessors)
    sizes = {"rows": p.B, "row_bytes": rows.row_bytes, "vector_bytes": p.d * rows.itemsize}
    return Key(exact, {**sizes, "table_bytes": (p.U + p.V) * p.d * rows.itemsize})


def _cost(config: Config, rows: Rows) -> Cost:
    problem, block, chunk = rows.problem, _block(config, rows), _chunk(config, rows)
    whole_chunks, rest = divmod(problem.B, chunk)
    chunks = blocks_of(problem.B, chunk)
    vectors = problem.B * problem.d * rows.itemsize
    return Cost(
        blocks=whole_chunks * blocks_of(chunk, block) + blocks_of(rest, block),
        flops=2 * block * problem.d * (problem.C + problem.M) * max(1, rows.gradients),
        unit=unit(rows.itemsize),
        bytes=block * (3 * rows.row_bytes + 2 * rows.gradients * problem.d * rows.itemsize),
        steps=8,
        shared=block * rows.row_bytes,
        threads=_workers(config, rows),
        # the vectors come back once for each entry, and every chunk adds to the rows it has in common with others
        extra_bytes=rows.gradients * (vectors * (1 + problem.C + problem.M) + 2 * (chunks - 1) * chunk * problem.d),
        extra_launches=30 * chunks * rows.gradients,
    )


_REASONS = {
    "BLOCK_BYTES": "of gathered rows, which a product reads while they are in cache: 256 KiB to 4 MiB by powers of two",
    "CHUNK_BYTES": "of vectors kept at once, and as much of their gradients: 2 MiB to 16 MiB by powers of two; more "
    "are sorted and summed together, fewer stay in a cache that all cores share",
}


def forward(default: Callable[[Rows], Config]) -> Tunable:
    return Tunable(
        "numpy.word2vec.pairs_forward",
        _FORWARD,
        default=default,
        refusal=_refusal,
        reasons={"BLOCK_BYTES": _REASONS["BLOCK_BYTES"]},
        key=_key,
        cost=_cost,
    )


def backward(default: Callable[[Rows], Config]) -> Tunable:
    return Tunable(
        "numpy.word2vec.pairs_backward",
        _BACKWARD,
        default=default,
        refusal=_backward_refusal,
        reasons=_REASONS,
        key=_key,
        cost=_cost,
    )
