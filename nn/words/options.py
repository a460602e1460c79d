"""What decides what a Word2Vec model becomes, and how many tokens may be trained at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...kernels import word2vec as kernels
from .vocabulary import Vocabulary

_CAPPED_SHARE, _USUAL_SHARE = 0.3, 0.1  # of all updates of a step: vectors get worse above the one, slightly so above
# the other (on 0.46 million words the loss rises by 1 % between them)
_STEPS_AN_EPOCH = 100


@dataclass(frozen=True)
class Options:
    """Everything that decides what a model becomes, except the text. Saved with it."""

    model: str = "skipgram"
    vector_size: int = 100
    window: int = 5
    shrink_windows: bool = True
    min_count: int = 5
    max_vocab: int | None = None
    sample: float = 1e-3
    negative: int = 5
    hierarchical: bool = False
    ns_exponent: float = 0.75
    cbow_mode: str = "mean"
    cbow_grad: str = "gensim"
    alpha: float = 0.025
    min_alpha: float = 1e-4
    epochs: int = 5
    seed: int = 1
    cap: float = 1.6
    slice_tokens: int = 16
    pool: int | None = None
    tokens_per_step: int | None = None
    blocks: int = 1

    def check(self) -> None:
        """Raises ValueError naming the first option that makes no sense."""
        for name in ("vector_size", "window", "min_count", "epochs", "slice_tokens", "pool", "blocks"):
            if name == "pool" and self.pool is None:
                continue
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {getattr(self, name)!r}")
        if self.model not in kernels.MODELS:
            raise ValueError(f"model must be 'skipgram' or 'cbow', got {self.model!r}")
        if self.cbow_mode not in ("mean", "sum"):
            raise ValueError(f"cbow_mode must be 'mean' or 'sum', got {self.cbow_mode!r}")
        if self.cbow_grad not in ("exact", "gensim"):
            raise ValueError(f"cbow_grad must be 'exact' or 'gensim', got {self.cbow_grad!r}")
        if not self.hierarchical and (not isinstance(self.negative, int) or self.negative < 1):
            raise ValueError(f"negative must be at least 1 (or use hierarchical=True), got {self.negative!r}")
        for name in ("max_vocab", "tokens_per_step"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1 or None, got {value!r}")
        for name in ("sample", "ns_exponent", "alpha", "min_alpha", "cap"):
            if not isinstance(getattr(self, name), int | float):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        for name in ("sample", "min_alpha"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)!r}")
        if not np.isfinite(self.ns_exponent):
            raise ValueError(f"ns_exponent must be finite, got {self.ns_exponent!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed must be an integer of 64 bits, at least 0, got {self.seed!r}")
        for name in ("alpha", "cap"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if not self.min_alpha <= self.alpha < float("inf"):
            raise ValueError(f"alpha must be finite and at least min_alpha={self.min_alpha!r}, got {self.alpha!r}")
        step = self.tokens_per_step
        if step is not None and step % (self.slice_tokens * self.blocks):
            unit = self.slice_tokens * self.blocks
            raise ValueError(
                f"tokens_per_step must be a multiple of slice_tokens * blocks = {unit}, got {step} (each of several "
                "processes trains a block)"
            )

    def replaced(self, **changes: Any) -> Options:
        return Options(**(asdict(self) | changes))

    def settled(self, vocabulary: Vocabulary) -> Options:
        """The same options, with numbers for those that are ``None``."""
        pool = self.pool or (16 if self.model == "skipgram" else 32)
        step = self.tokens_per_step or self.usual_step(vocabulary)
        return self.replaced(pool=pool, tokens_per_step=step)

    def largest_step(self, vocabulary: Vocabulary, share: float = _CAPPED_SHARE) -> int:
        """The most tokens a step may have: so many that the cap takes at most ``share`` of all updates, in the mean.

        A step's updates do not see each other; the smaller the corpus, the larger its most frequent words' share of
        them. The number is a multiple of ``slice_tokens * blocks``, and at least that.
        """
        kept = vocabulary.counts * vocabulary.keep_probabilities(self.sample)
        tokens = kept / kept.sum()
        pairs = self.window + 1 if self.shrink_windows else 2 * self.window
        usual = self.model == "cbow" and not self.hierarchical
        tables = [pairs * tokens * (1 if usual else kernels.INPUT_MASS)]
        if not self.hierarchical:
            drawn = vocabulary.counts.astype(np.float64) ** self.ns_exponent
            each = pairs if self.model == "skipgram" else 1
            tables.append(each * (tokens + self.negative * drawn / drawn.sum()))

        most = self.cap / self.alpha  # pairs

        def capped(step: int) -> float:
            return max(float(np.maximum(0, step * m - most).sum() / (step * m.sum())) for m in tables)

        unit = self.slice_tokens * self.blocks
        low, high = 1, 2
        while high * unit < 1 << 24 and capped(high * unit) <= share:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if capped(middle * unit) <= share else (low, middle)
        return low * unit

    def usual_step(self, vocabulary: Vocabulary) -> int:
        """What ``tokens_per_step=None`` stands for: 2,048, and 512 with hierarchical softmax; fewer if the cap would
        take more than 0.1 of their updates, or if an epoch would have fewer than a hundred steps."""
        unit = self.slice_tokens * self.blocks
        kept = float((vocabulary.counts * vocabulary.keep_probabilities(self.sample)).sum())
        wanted = min(512 if self.hierarchical else 2048, int(kept / _STEPS_AN_EPOCH))
        return min(max(unit, wanted // unit * unit), self.largest_step(vocabulary, _USUAL_SHARE))
