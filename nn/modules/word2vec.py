"""Word2Vec as modules for training loops of one's own: skip-gram and CBOW over batches of ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...kernels import word2vec as kernels
from .. import functions

_MODES = ("mean", "sum")
_GRADS = ("exact", "gensim")
_REDUCTIONS = ("mean", "sum", "none")


class _Pairs(torch.nn.Module):
    """What SkipGram and CBOW share: the two tables, negatives or paths, checks, the loss."""

    alias_thresholds: torch.Tensor | None
    aliases: torch.Tensor | None
    paths: torch.Tensor
    codes: torch.Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        counts: Any,
        negatives: int,
        ns_exponent: float,
        hierarchical: bool,
        sparse: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("num_embeddings", num_embeddings),
            ("embedding_dim", embedding_dim),
            ("negatives", negatives),
        ):
            if not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.negatives = 0 if hierarchical else negatives
        self.ns_exponent, self.hierarchical, self.sparse = ns_exponent, hierarchical, sparse
        nodes = num_embeddings - 1 if hierarchical else num_embeddings
        if hierarchical and (counts is None or nodes == 0):
            raise ValueError(
                f"hierarchical softmax needs counts of two words or more, and num_embeddings is {num_embeddings}, "
                f"counts {'None' if counts is None else 'given'}"
            )
        frequencies = None if counts is None else _checked_counts(counts, num_embeddings)
        self.in_weight = torch.nn.Parameter(torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype))
        self.out_weight = torch.nn.Parameter(torch.empty(nodes, embedding_dim, device=device, dtype=dtype))
        device = self.in_weight.device
        if hierarchical:
            from ..words.huffman import HuffmanTree  # here, as it brings the whole trainer

            tree = HuffmanTree.of(frequencies)
            self.register_buffer("paths", torch.from_numpy(tree.paths).to(device))
            self.register_buffer("codes", torch.from_numpy(tree.codes).to(device))
        else:
            thresholds = aliases = None
            if frequencies is not None:
                table = kernels.AliasTable.of((frequencies**ns_exponent).numpy())
                # integers: a change of the module's dtype leaves them alone
                thresholds = torch.from_numpy(table.thresholds.astype("int64")).to(device)
                aliases = torch.from_numpy(table.aliases).to(device)
            self.register_buffer("alias_thresholds", thresholds, persistent=False)
            self.register_buffer("aliases", aliases, persistent=False)
        self.reset_parameters()
        self._watch_gradients()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch_gradients()  # hooks are not copied with a parameter

    def _watch_gradients(self) -> None:
        if self.sparse:
            for weight in (self.in_weight, self.out_weight):
                weight.register_post_accumulate_grad_hook(_say_coalesced)

    def reset_parameters(self) -> None:
        """As gensim: ``in_weight`` from U(-1/d, 1/d), ``out_weight`` zero."""
        with torch.no_grad():
            self.in_weight.uniform_(-1 / self.embedding_dim, 1 / self.embedding_dim)
            self.out_weight.zero_()

    def draw_negatives(self, shape: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
        """Ids, int64 of the given shape on the module's device, each with probability ``counts ** ns_exponent``.

        Raises:
            RuntimeError: the module is hierarchical.
        """
        if self.hierarchical:
            raise RuntimeError("hierarchical softmax has no negatives to draw")
        V, device = self.num_embeddings, self.in_weight.device
        if self.alias_thresholds is None or self.aliases is None:
            return torch.randint(V, tuple(shape), generator=generator, device=device)
        bits = torch.randint(V << 32, tuple(shape), generator=generator, device=device)  # a bucket and a choice in it
        bucket, choice = bits >> 32, bits & 0xFFFFFFFF
        return torch.where(choice < self.alias_thresholds[bucket], bucket, self.aliases[bucket])

    def extra_repr(self) -> str:
        described = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.hierarchical:
            described += ", hierarchical=True"
        else:
            described += f", negatives={self.negatives}"
            if self.alias_thresholds is not None:
                described += f", ns_exponent={self.ns_exponent}"
        return described + (", sparse=True" if self.sparse else "")

    def _targets(
        self, words: torch.Tensor, negatives: torch.Tensor | None, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each of ``words [...]`` is predicted by, ``[..., M]``, and the labels: itself against its negatives, or
        the nodes of its path. Where the word is -1, all is -1."""
        if self.hierarchical:
            if negatives is not None:
                raise ValueError("negatives must be None: the module is hierarchical")
            places = words.clamp(min=0)
            return torch.where(words[..., None] < 0, -1, self.paths[places]), ~self.codes[places]
        if negatives is None:
            negatives = self.draw_negatives((*words.shape, self.negatives), generator)
            negatives = torch.where(negatives == words[..., None], -1, negatives)
        else:
            self._check("negatives", negatives, words.dim() + 1, -1, self.num_embeddings)
            if negatives.shape[:-1] != words.shape:
                raise RuntimeError(
                    f"negatives is of shape {list(negatives.shape)}, it must be [{', '.join(map(str, words.shape))}, K]"
                )
        targets = torch.cat([words[..., None], torch.where(words[..., None] < 0, -1, negatives)], dim=-1)
        labels = torch.arange(targets.shape[-1], device=targets.device) == 0
        return targets, labels.expand(targets.shape)

    def _check(self, name: str, ids: torch.Tensor, dim: int | tuple[int, int], least: int, rows: int) -> None:
        if not isinstance(ids, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(ids).__name__}")
        if ids.dtype not in (torch.int32, torch.int64):
            raise RuntimeError(f"{name} is {ids.dtype}, it must be int32 or int64")
        dims = (dim,) if isinstance(dim, int) else dim
        if ids.dim() not in dims:
            raise RuntimeError(
                f"{name} is of shape {list(ids.shape)}, it must be {' or '.join(f'{d}-dimensional' for d in dims)}"
            )
        if ids.device != self.in_weight.device:
            raise RuntimeError(f"{name} is on {ids.device} and in_weight on {self.in_weight.device}")
        # elsewhere looking at the ids would wait for the device; in a trace there are none yet, and the op looks
        if (
            ids.device.type == "cpu"
            and type(ids) is torch.Tensor
            and not torch.compiler.is_compiling()
            and not torch._C._are_functorch_transforms_active()
            and not torch._C._len_torch_dispatch_stack()
        ):
            kernels.check_ids(name, ids, rows, least)

    def _loss(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        labels: torch.Tensor,
        mean: bool,
        divide: bool,
        counted: torch.Tensor,
        reduction: str,
    ) -> torch.Tensor:
        loss = functions.word2vec_pairs(
            self.in_weight, self.out_weight, inputs, targets, labels, mean, divide, self.sparse
        )
        if reduction != "none":
            loss = loss.sum()
        if reduction == "mean":
            loss = loss / counted.sum().clamp(min=1)
        return loss.to(self.in_weight.dtype)


class SkipGram(_Pairs):
    """Skip-gram: a word's input vector predicts the output vectors of the words around it (Mikolov et al. 2013).

    The loss of a pair is ``softplus(-h · v) + Σ_k softplus(h · n_k)`` with the centre's row h of ``in_weight [V, d]``,
    the context's row v and its negatives' rows n_k of ``out_weight [V, d]``. gensim and ``nn.Word2Vec`` feed a pair the
    other way round, the context's input vector predicts the centre: swap the arguments for that.

    Args:
        num_embeddings: V, the number of words.
        embedding_dim: d.
        counts: how often each word occurs, ``[V]``; ``None``: negatives are drawn uniformly.
        negatives: drawn for each pair when the call brings none.
        ns_exponent: a word is drawn with probability ``counts ** ns_exponent``.
        hierarchical: the context is predicted turn by turn along its path in Huffman's tree of the counts instead of
            against negatives; ``out_weight`` is ``[V - 1, d]``, the tree's inner nodes. A state_dict has the paths.
        sparse: gradients are sparse and coalesced, for SGD, Adagrad and SparseAdam. They have no second derivatives and
            cannot be compiled.

    Half types compute in float32. The result has the parameters' dtype, under autocast too. The gradient is the same
    bit by bit in each run and with any number of threads.

    Raises:
        IndexError: an id that does not exist (on the CPU; in a compiled call the message names the op's argument).
        RuntimeError: shapes, dtypes or devices that do not fit.
        TypeError: an argument of the wrong type.
        ValueError: options that do not exist or do not go together.
        BackendUnavailable: no backend can serve the parameters' device.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        counts: Any = None,
        negatives: int = 5,
        ns_exponent: float = 0.75,
        hierarchical: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, counts, negatives, ns_exponent, hierarchical, sparse, device, dtype
        )

    def forward(
        self,
        centres: torch.Tensor,
        contexts: torch.Tensor,
        negatives: torch.Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """
        Args:
            centres: ids ``[B]``, int32 or int64.
            contexts: ids ``[B]`` or ``[B, C]``, -1 for padding.
            negatives: ids ``[B, K]`` or ``[B, C, K]``, used as they are; -1 skips one. ``None``: ``self.negatives`` are
                drawn for each pair, and one that is the pair's own context is skipped.
            generator: draws the negatives, by default torch's own.
            reduction: "mean" over the pairs that are not padding (0 where there are none), "sum", or "none" for
                ``[B]``, the sum of each row.
        """
        _check_option("reduction", reduction, _REDUCTIONS)
        self._check("centres", centres, 1, 0, self.num_embeddings)
        self._check("contexts", contexts, (1, 2), -1, self.num_embeddings)
        _check_rows(centres, contexts)
        targets, labels = self._targets(contexts, negatives, generator)
        return self._loss(
            centres[:, None], targets.flatten(1), labels.flatten(1), False, False, contexts >= 0, reduction
        )


class CBOW(_Pairs):
    """Continuous bag of words: the input vectors of a window, together, predict the word in its middle (Mikolov 2013).

    As :class:`SkipGram`, but for h, the mean or sum of the contexts' rows of ``in_weight``.

    Beyond its arguments:
        mode: "mean" or "sum" of the contexts' vectors.
        grad: "exact", the derivative; or "gensim", as word2vec.c and gensim do it: with "mean" each context takes the
            whole gradient of h instead of its share, with "sum" its share instead of the whole. Only the exact one has
            second derivatives.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        counts: Any = None,
        negatives: int = 5,
        ns_exponent: float = 0.75,
        hierarchical: bool = False,
        sparse: bool = False,
        mode: str = "mean",
        grad: str = "exact",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_option("mode", mode, _MODES)
        _check_option("grad", grad, _GRADS)
        super().__init__(
            num_embeddings, embedding_dim, counts, negatives, ns_exponent, hierarchical, sparse, device, dtype
        )
        self.mode, self.grad = mode, grad

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode}, grad={self.grad}"

    def forward(
        self,
        contexts: torch.Tensor,
        centres: torch.Tensor,
        negatives: torch.Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        reduction: str = "mean",
    ) -> torch.Tensor:
        """
        Args:
            contexts: ids ``[B, C]``, int32 or int64, -1 for padding.
            centres: ids ``[B]``.
            negatives: ids ``[B, K]``, used as they are; -1 skips one. ``None``: ``self.negatives`` are drawn for each
                centre, and one that is the centre itself is skipped.
            generator: draws the negatives, by default torch's own.
            reduction: "mean" over the rows that have a context (0 where there are none), "sum", or "none" for ``[B]``.
        """
        _check_option("reduction", reduction, _REDUCTIONS)
        self._check("contexts", contexts, 2, -1, self.num_embeddings)
        self._check("centres", centres, 1, 0, self.num_embeddings)
        _check_rows(centres, contexts)
        targets, labels = self._targets(centres, negatives, generator)
        mean = self.mode == "mean"
        divide = mean == (self.grad == "exact")
        return self._loss(contexts, targets, labels, mean, divide, (contexts >= 0).any(1), reduction)


def _say_coalesced(weight: torch.Tensor) -> None:
    """torch's accumulation forgets that a sparse gradient is coalesced, and optimizers would sort and copy it again.

    Looked at, not taken for granted: another use of the weight may have added rows of its own.
    """
    gradient = weight.grad
    if gradient is not None and gradient.is_sparse and gradient.is_cpu and not gradient.is_coalesced():
        ids = gradient._indices()[0]
        if bool((ids[1:] > ids[:-1]).all()):
            gradient._coalesced_(True)


def _check_option(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"{name} is {value!r}, it must be one of {', '.join(map(repr, options))}")


def _check_rows(centres: torch.Tensor, contexts: torch.Tensor) -> None:
    if contexts.shape[0] != centres.shape[0]:
        raise RuntimeError(
            f"contexts is of shape {list(contexts.shape)}, it must have as many rows as centres, {centres.shape[0]}"
        )


def _checked_counts(counts: Any, num_embeddings: int) -> torch.Tensor:
    """As float64 on the CPU."""
    frequencies = torch.as_tensor(counts, dtype=torch.float64, device="cpu")
    if frequencies.shape != (num_embeddings,):
        raise ValueError(f"counts is of shape {list(frequencies.shape)}, it must be [{num_embeddings}], one a word")
    if not (frequencies.isfinite() & (frequencies >= 0)).all() or not frequencies.any():
        raise ValueError("counts must be finite and at least 0, and not all 0")
    return frequencies
