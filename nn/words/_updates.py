"""Steps on a model's tables, alone or together with other processes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ...kernels import word2vec as kernels
from ._stream import Batch
from .huffman import HuffmanTree
from .options import Options


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Updates:
    """Runs steps on two tables: this process's blocks of each, then the rows of all blocks, in order.

    Every process applies the same rows in the same order, so their tables stay equal bit by bit.
    """

    def __init__(self, options: Options, tables: list[torch.Tensor], tree: HuffmanTree | None) -> None:
        assert options.tokens_per_step is not None
        assert options.pool is not None
        self.options, self.tree = options, tree
        self.implementation = kernels.OPERATION.implementation(tables[0].device.type)
        self.pool = options.pool
        self.block = options.tokens_per_step // options.blocks
        self.tables = [t.numpy() for t in tables]
        self.masses = [np.zeros(len(t), t.dtype) for t in self.tables]
        self.processes = processes()

    def train(self, batch: Batch, pool: Any, rate: float, with_loss: bool) -> tuple[float, float]:
        """Trains one step; returns its summed loss and the pairs that it is of, 0 and 0 if it was not asked for."""
        blocks = self._blocks(batch)
        if self.processes > 1:
            mine = dist.get_rank()
            step = self._together(self._block(batch, pool, mine, with_loss) if mine in blocks else None)
        elif len(blocks) == 1:
            step = self._block(batch, pool, 0, with_loss)
        else:
            step = _joined([_copied(self._block(batch, pool, b, with_loss)) for b in blocks])
        for table, rows, masses in zip(self.tables, (step.inputs, step.outputs), self.masses, strict=True):
            self.implementation.apply(table, rows, rate, self.options.cap / rate, masses)
        return step.loss, step.pairs

    def loss(self, batch: Batch, pool: Any) -> tuple[float, float]:
        """The summed loss of a step that is not trained, and its pairs."""
        steps = [self._block(batch, pool, b, True) for b in self._blocks(batch)]
        return sum(s.loss for s in steps), sum(s.pairs for s in steps)

    def _blocks(self, batch: Batch) -> range:
        return range(-(-len(batch.tokens) // self.block))

    def _block(self, batch: Batch, pool: Any, b: int, with_loss: bool) -> kernels.Step:
        options = self.options
        part = slice(b * self.block, (b + 1) * self.block)
        tokens = batch.tokens[part]
        problem = kernels.Word2VecProblem(
            options.model,
            len(tokens),
            options.vector_size,
            options.window,
            0 if options.hierarchical else options.negative,
            options.slice_tokens,
            self.pool,
            0 if self.tree is None else self.tree.paths.shape[1],
        )
        targets: tuple[Any, ...]
        if self.tree is not None:
            targets = (self.tree.paths, self.tree.codes)
        else:
            first = b * self.block // options.slice_tokens
            targets = (pool[first : first + problem.slices],)
        if options.model == "cbow":
            mean = options.cbow_mode == "mean"
            targets += (mean, mean if options.cbow_grad == "exact" else not mean)
        run = getattr(self.implementation, f"{options.model}_{'hierarchical' if options.hierarchical else 'negative'}")
        operands = (tokens, batch.sentences[part], batch.reach[part])
        step: kernels.Step = run(problem, *self.tables, *operands, *targets, with_loss)
        return step

    def _together(self, own: kernels.Step | None) -> kernels.Step:
        """The step of all processes, from this one's block of it."""
        mine = torch.zeros(4, dtype=torch.float64)
        if own is not None:
            mine[:] = torch.tensor([len(own.inputs.ids), len(own.outputs.ids), own.loss, own.pairs])
        all_of_them = [torch.empty_like(mine) for _ in range(self.processes)]
        dist.all_gather(all_of_them, mine)
        sizes = torch.stack(all_of_them).tolist()
        inputs, outputs = (
            _gathered(table, rows, [int(s[i]) for s in sizes])
            for i, (table, rows) in enumerate(
                zip(self.tables, (None, None) if own is None else (own.inputs, own.outputs), strict=True)
            )
        )
        return kernels.Step(inputs, outputs, sum(s[2] for s in sizes), sum(s[3] for s in sizes))


def _gathered(table: Any, own: kernels.Rows | None, sizes: list[int]) -> kernels.Rows:
    """The rows that all processes have for one table, in their order."""
    d = table.shape[1]
    values = torch.zeros(max(sizes), d + 1, dtype=torch.from_numpy(table[:0]).dtype)  # the last column: the mass
    ids = torch.zeros(max(sizes), dtype=torch.int64)
    if own is not None:
        n = len(own.ids)
        values[:n, :d] = torch.from_numpy(own.gradients)
        values[:n, d] = torch.from_numpy(np.ascontiguousarray(own.mass, table.dtype))
        ids[:n] = torch.from_numpy(own.ids.astype(np.int64))
    all_values, all_ids = ([torch.empty_like(t) for _ in sizes] for t in (values, ids))
    dist.all_gather(all_values, values)
    dist.all_gather(all_ids, ids)
    rows = np.concatenate([v[:n].numpy() for v, n in zip(all_values, sizes, strict=True)])
    joined = np.concatenate([i[:n].numpy() for i, n in zip(all_ids, sizes, strict=True)])
    return kernels.Rows(joined, np.ascontiguousarray(rows[:, :d]), rows[:, d])


def _copied(step: kernels.Step) -> kernels.Step:
    """The arrays of a step live in buffers that the next step uses again."""
    inputs, outputs = (
        kernels.Rows(r.ids.copy(), r.gradients.copy(), r.mass.copy()) for r in (step.inputs, step.outputs)
    )
    return kernels.Step(inputs, outputs, step.loss, step.pairs)


def _joined(steps: list[kernels.Step]) -> kernels.Step:
    inputs, outputs = (
        kernels.Rows(*(np.concatenate([getattr(r, f.name) for r in rows]) for f in fields(kernels.Rows)))
        for rows in ([s.inputs for s in steps], [s.outputs for s in steps])
    )
    return kernels.Step(inputs, outputs, sum(s.loss for s in steps), sum(s.pairs for s in steps))
