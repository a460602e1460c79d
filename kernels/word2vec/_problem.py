"""What one Word2Vec step is: sizes, FLOPs, bytes. Known without running anything."""

from __future__ import annotations

from dataclasses import dataclass

MODELS = ("skipgram", "cbow")


@dataclass(frozen=True)
class Word2VecProblem:
    """A step over ``N`` tokens of ``d``-dimensional vectors.

    ``K`` negatives a pair are met as a pool of ``S`` that a slice of ``G`` tokens shares, each with weight K / S.
    ``K = 0``: hierarchical softmax, with paths of at most ``L`` inner nodes.
    """

    model: str
    N: int
    d: int
    window: int
    K: int
    G: int
    S: int
    L: int = 0

    @property
    def slices(self) -> int:
        return -(-self.N // self.G)

    @property
    def pairs(self) -> float:
        """Pairs of a centre and a context in a long text with windows that shrink: each side reaches (w + 1) / 2."""
        return self.N * (self.window + 1)

    @property
    def flops(self) -> int:
        """Of the inner products and of both gradients: three products, of positives and of the pool (or of paths)."""
        targets = self.L if self.K == 0 else self.S
        positives = 0 if self.K == 0 else self.window + 1 if self.model == "skipgram" else 1
        if self.K == 0 and self.model == "skipgram":
            targets *= self.window + 1
        return int(3 * 2 * self.N * self.d * (positives + targets))

    @property
    def bytes(self) -> int:
        """Rows read and written once, in float32: two a token, and the pool's (or the paths')."""
        rows = 2 * self.N + self.slices * self.S if self.K else self.N * (1 + self.L)
        return 2 * rows * self.d * 4


@dataclass(frozen=True)
class PairsProblem:
    """``B`` times the sum or mean of ``C`` rows of a table ``[V, d]`` meets ``M`` rows of a table ``[U, d]``."""

    V: int
    U: int
    B: int
    C: int
    M: int
    d: int

    @property
    def flops(self) -> int:
        """Forward and backward: three products of B x M x d, the inputs summed and their gradients spread."""
        return self.B * self.d * (3 * 2 * self.M + 2 * self.C)

    def bytes_moved(self, itemsize: int) -> int:
        """Forward and backward, where no row occurs twice: each is read in both, and its gradient written."""
        return 3 * self.B * (self.C + self.M) * self.d * itemsize
