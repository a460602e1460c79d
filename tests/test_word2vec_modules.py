"""SkipGram and CBOW: the op against plain loops, gradients of both kinds, negatives, paths, optimizers on real text."""

from __future__ import annotations

import copy
import io
import math
import pickle
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import tilesmith.nn as ours
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tilesmith.kernels import word2vec as kernels
from tilesmith.nn.words.huffman import HuffmanTree
from torch.nn import functional as F

from examples.corpora import gensim_data, sentences

from . import word2vec_reference as reference
from .harness import FLOATS, assert_within, laid_out

pairs: Any = import_module("tilesmith.nn.functions").word2vec_pairs
plain: Any = import_module("tilesmith.nn.functions.word2vec").plain
_numpy: Any = import_module("tilesmith.kernels.word2vec._numpy_pairs")
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own optimizers
DOUBLE = torch.float64
MODULES = (ours.SkipGram, ours.CBOW)
each_module = pytest.mark.parametrize("module", MODULES)


# ---- the op


def in_loops(
    in_weight: torch.Tensor,
    out_weight: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    labels: torch.Tensor,
    mean: bool,
    divide: bool,
    grad_loss: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, residual and both gradients, pair by pair in float64."""
    w_in, w_out = in_weight.double().numpy(force=True), out_weight.double().numpy(force=True)
    d_in, d_out = np.zeros_like(w_in), np.zeros_like(w_out)
    loss, residual = np.zeros(len(inputs)), np.zeros(targets.shape)
    for b, (sources, row, marks) in enumerate(
        zip(inputs.tolist(), targets.tolist(), labels.bool().tolist(), strict=True)
    ):
        sources = [i for i in sources if i >= 0]
        if not sources:
            continue
        h = np.sum([w_in[i] for i in sources], axis=0) / (len(sources) if mean else 1)
        d_h = np.zeros_like(h)
        for m, (target, label) in enumerate(zip(row, marks, strict=True)):
            if target >= 0:
                score = float(h @ w_out[target])
                loss[b] += reference.softplus(-score if label else score)
                residual[b, m] = label - reference.sigmoid(score)
                slope = -residual[b, m] * float(grad_loss[b])
                d_h += slope * w_out[target]
                d_out[target] += slope * h
        for i in sources:
            d_in[i] += d_h / (len(sources) if divide else 1)
    return torch.tensor(loss), torch.tensor(residual), torch.tensor(d_in), torch.tensor(d_out)


@st.composite
def problems(draw: Any) -> tuple[Any, ...]:
    """Tables, ids with paddings in them, labels, and a gradient of the loss."""
    V, U, d = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    B, C, M = draw(st.integers(0, 9)), draw(st.integers(0, 4)), draw(st.integers(0, 7))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    padding = draw(st.sampled_from([0.0, 0.3, 0.9]))
    inputs, targets = (
        np.where(generator.random((B, n)) < padding, -1, generator.integers(0, rows, (B, n)))
        for n, rows in ((C, V), (M, U))
    )
    ids = draw(st.sampled_from([torch.int32, torch.int64]))
    marks = draw(st.sampled_from([torch.bool, torch.int8]))
    return (
        torch.from_numpy(generator.normal(size=(V, d))),
        torch.from_numpy(generator.normal(size=(U, d))),
        torch.from_numpy(inputs).to(ids),
        torch.from_numpy(targets).to(ids),
        torch.from_numpy(generator.random((B, M)) < 0.4).to(marks),
        draw(st.booleans()),
        draw(st.booleans()),
        torch.from_numpy(generator.normal(size=B)),
    )


@settings(max_examples=150, deadline=None)
@given(problem=problems(), block=st.sampled_from([1, 100, 1 << 20]), chunk=st.sampled_from([1, 150, 1 << 20]))
def test_op_is_the_plain_loop(problem: Any, block: int, chunk: int) -> None:
    """However rows are cut into blocks and chunks."""
    in_weight, out_weight, inputs, targets, labels, mean, divide, grad_loss = problem
    expected = in_loops(*problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_numpy, "_BLOCK_BYTES", block)
        patch.setattr(_numpy, "_CHUNK_BYTES", chunk)
        loss, residual = kernels.pairs_forward(in_weight, out_weight, inputs, targets, labels, mean)
        operands = (grad_loss, in_weight, out_weight, inputs, targets, residual, mean, divide, True, True)
        gradients = kernels.pairs_backward(*operands)
        in_ids, in_rows, out_ids, out_rows = kernels.pairs_backward_sparse(*operands)
    for found, wanted in zip((loss, residual, *gradients), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    reached = targets[(inputs >= 0).any(1)]
    for ids, rows, dense, of in (
        (in_ids, in_rows, gradients[0], inputs),
        (out_ids, out_rows, gradients[1], reached),
    ):
        assert ids.tolist() == sorted(set(of[of >= 0].tolist()))
        assert torch.equal(torch.zeros_like(dense).index_copy_(0, ids, rows), dense)


def operands(
    V: int = 30,
    U: int = 20,
    B: int = 40,
    C: int = 3,
    M: int = 6,
    d: int = 5,
    dtype: torch.dtype = DOUBLE,
    seed: int = 0,
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(rows, d, generator=generator, dtype=DOUBLE).to(dtype) for rows in (V, U)]
    ids = [torch.randint(-1, rows, (B, n), generator=generator) for rows, n in ((V, C), (U, M))]
    return *(table.requires_grad_() for table in tables), *ids, torch.rand(B, M, generator=generator) < 0.3


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_derivatives(mean: bool, frozen: int | None) -> None:
    tables, rest = operands(6, 5, 4, 3, 4, 2)[:2], operands(6, 5, 4, 3, 4, 2)[2:]
    if frozen is not None:
        tables[frozen].requires_grad_(False)

    def function(*tables: torch.Tensor) -> torch.Tensor:
        return pairs(*tables, *rest, mean, mean, False)

    assert torch.autograd.gradcheck(function, tables)
    assert torch.autograd.gradgradcheck(function, tables)


def test_third_derivative() -> None:
    values = operands(6, 5, 4, 3, 4, 2)
    results = []
    for function in (lambda *a: pairs(*a, True, True, False), lambda *a: plain(*a, True)):
        value = function(*values).square().sum()
        for _ in range(3):
            slopes = torch.autograd.grad(value, values[:2], create_graph=True)
            value = sum(slope.square().sum() for slope in slopes)
        results.append([slope.detach() for slope in slopes])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("divide", "sparse", "words"), [(False, False, "grad='gensim'"), (True, True, "sparse=False")])
def test_what_has_no_second_derivative_says_so(divide: bool, sparse: bool, words: str) -> None:
    values = operands()
    slopes = torch.autograd.grad(pairs(*values, True, divide, sparse).sum(), values[:2], create_graph=True)
    total = torch.stack([(slope.coalesce().values() if sparse else slope).sum() for slope in slopes]).sum()
    with pytest.raises(RuntimeError, match=words):
        torch.autograd.grad(total, values[0])


@pytest.mark.parametrize("name", ["pairs_forward", "pairs_backward", "pairs_backward_sparse"])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.bfloat16])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    in_weight, out_weight, inputs, targets, labels = (t.detach() for t in operands(dtype=dtype))
    args: tuple[Any, ...] = (in_weight, out_weight, inputs, targets, labels, True)
    if name != "pairs_forward":
        loss, residual = kernels.pairs_forward(*args)
        args = (loss, in_weight, out_weight, inputs, targets, residual, True, True, True, True)
    torch.library.opcheck(getattr(torch.ops.tilesmith, f"word2vec_{name}").default, args)


@pytest.mark.parametrize("dtype", FLOATS[1:])
@pytest.mark.parametrize("mean", [False, True])
def test_errors_grow_with_the_reduction_only(dtype: torch.dtype, mean: bool) -> None:
    """Half types: the loss is float32, and each gradient is rounded once."""
    B, d = 2000, 64
    values = operands(20, 300, B, 3, 6, d, dtype)
    with torch.no_grad():
        values[0].mul_(0.2)
    grad_loss = torch.linspace(0.5, 1, B, dtype=DOUBLE).to(torch.float32)
    problem: Any = (*values, mean, mean, grad_loss)
    exact = in_loops(*problem)
    loss = pairs(*values, mean, mean, False)
    gradients = torch.autograd.grad(loss, values[:2], grad_loss)
    assert_within(loss.detach(), exact[0], torch.float32, 3 + d + 6, "loss")
    for found, expected, entries, what in zip(gradients, exact[2:], (B * 3 // 20, B * 6 // 300), "io", strict=True):
        assert_within(found, expected, dtype, 3 + d + 6 + entries, what, half_roundings=0.51)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed"])
def test_tables_are_read_where_they_lie(dtype: torch.dtype, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among NaNs, and never copied or converted whole."""
    values = [t.detach() for t in operands(dtype=dtype)]
    tables = [laid_out(table, layout).requires_grad_() for table in values[:2]]
    forward, seen = _numpy.forward, list[int]()

    def watched(problem: Any, w_in: Any, w_out: Any, *rest: Any) -> None:
        seen.extend(w.__array_interface__["data"][0] for w in (w_in, w_out))
        forward(problem, w_in, w_out, *rest)

    monkeypatch.setattr(_numpy, "forward", watched)
    results = []
    for pair in (tables, [table.clone().requires_grad_() for table in values[:2]]):
        loss = pairs(*pair, *values[2:], True, True, False)
        results.append([loss, *torch.autograd.grad(loss.sum(), pair)])
    assert seen[:2] == [table.data_ptr() for table in tables]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_ids_and_labels_of_any_strides() -> None:
    values = operands()
    grad_loss = torch.ones(()).to(DOUBLE).expand(len(values[2]))
    one_row = values[4][:1].expand_as(values[4])
    results = []
    for layout in ("contiguous", "sliced", "transposed"):
        inputs, targets = (laid_out(ids, layout) for ids in values[2:4])
        labels = one_row if layout == "sliced" else one_row.contiguous()
        loss = pairs(*values[:2], inputs, targets, labels, True, False, False)
        results.append([loss, *torch.autograd.grad(loss, values[:2], grad_loss)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_padding_reads_no_row(poison: float) -> None:
    """-1 is not the last row, nor the first; a row without inputs reaches nothing either."""
    in_weight, out_weight = torch.ones(4, 2), torch.ones(4, 2)
    for table in (in_weight, out_weight):
        table[[0, 3]] = poison
        table.requires_grad_()
    inputs = torch.tensor([[1, -1, 2], [-1, -1, -1], [-1, 2, -1]])
    targets = torch.tensor([[-1, 1], [0, 3], [2, -1]])
    labels = torch.tensor([True, False]).expand(3, 2)
    loss = pairs(in_weight, out_weight, inputs, targets, labels, True, True, False)
    d_in, d_out = torch.autograd.grad(loss.sum(), (in_weight, out_weight))
    assert loss.isfinite().all()
    assert loss[1] == 0
    assert d_in.isfinite().all()
    assert d_out.isfinite().all()
    assert not d_in[[0, 3]].any()
    assert not d_out[[0, 3]].any()
    assert d_in[[1, 2]].all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_large_scores(dtype: torch.dtype) -> None:
    """No overflow, and the tail of the sigmoid is exact: 1 - sigmoid(60) is not 0."""
    scores = torch.tensor([-1e4, -60.0, 0.0, 60.0, 1e4], dtype=dtype)
    in_weight = torch.ones(1, 1, dtype=dtype)
    targets, inputs = torch.arange(5)[:, None], torch.zeros(5, 1, dtype=torch.int64)
    for label in (False, True):
        labels = torch.full((5, 1), label)
        loss, residual = kernels.pairs_forward(in_weight, scores[:, None].contiguous(), inputs, targets, labels, False)
        wrong = -scores if label else scores
        torch.testing.assert_close(loss, -F.logsigmoid(-wrong.double()).to(dtype), rtol=1e-6, atol=0)
        expected = torch.sigmoid(wrong.double()).to(dtype) * (1 if label else -1)
        torch.testing.assert_close(residual[:, 0], expected, rtol=1e-6, atol=0)


def test_special_values_spread_as_in_torch() -> None:
    for value in (math.nan, math.inf):
        results = []
        for function in (lambda *a: pairs(*a, False, False, False), lambda *a: plain(*a, False)):
            values = operands(dtype=torch.float32)
            with torch.no_grad():
                values[0][3, 1] = value
            loss = function(*values)
            results.append([loss.detach(), *torch.autograd.grad(loss.sum(), values[:2])])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("sparse", [False, True])
def test_bits_depend_neither_on_the_run_nor_on_threads(sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_numpy, "_CHUNK_BYTES", 400_000)  # several chunks, the last one short
    monkeypatch.setattr(_numpy, "_BYTES_FOR_THREADS", 0)
    run, moved = _numpy.parallel_for, list[int]()

    def watched(*args: Any, bytes_moved: int, **options: Any) -> None:
        moved.append(bytes_moved)
        run(*args, bytes_moved=bytes_moved, **options)

    monkeypatch.setattr(_numpy, "parallel_for", watched)
    values = operands(400, 300, 4000, 4, 6, 64, torch.float32)
    grad_loss = torch.linspace(0, 1, 4000)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            loss = pairs(*values, True, True, sparse)
            found = torch.autograd.grad(loss, values[:2], grad_loss)
            results.append([loss, *(g.to_dense() for g in found)])
    finally:
        torch.set_num_threads(before)
    assert moved[0] > 3 << 20  # enough for three threads
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_only_needed_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    backward, seen = _numpy.backward, []

    def watched(*args: Any) -> Any:
        seen.append(args[-2:])
        found = backward(*args)
        assert [f is not None for f in found] == list(args[-2:])
        return found

    monkeypatch.setattr(_numpy, "backward", watched)
    whole = operands()
    full = torch.autograd.grad(pairs(*whole, True, True, False).sum(), whole[:2])
    for frozen in (0, 1):
        values: Any = operands()
        values[frozen].requires_grad_(False)
        pairs(*values, True, True, False).sum().backward()
        assert values[frozen].grad is None
        assert torch.equal(values[1 - frozen].grad, full[1 - frozen])
    assert seen == [(True, True), (False, True), (True, False)]


def peak_bytes(function: Any) -> int:
    """What NumPy allocates at most at once, in a thread without buffers of earlier calls."""
    peaks = []

    def run() -> None:
        tracemalloc.start()
        function()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return peaks[0]


def test_memory_stays_far_below_all_gathered_rows() -> None:
    B, M, d = 60_000, 6, 100
    values = operands(2000, 2000, B, 1, M, d, torch.float32)
    _, residual = kernels.pairs_forward(*values, False)
    gradient_operands = (torch.ones(B), *values[:4], residual, False, False, True, True)
    gathered = B * M * d * 4
    assert peak_bytes(lambda: kernels.pairs_forward(*values, False)) < gathered / 8
    assert peak_bytes(lambda: kernels.pairs_backward_sparse(*gradient_operands)) < gathered / 3


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_table_that_is_not_contiguous_is_not_copied(dtype: torch.dtype) -> None:
    values = operands(50_000, 50_000, 10, 2, 3, 20, dtype)
    tables = [laid_out(table.detach(), "sliced") for table in values[:2]]
    assert peak_bytes(lambda: kernels.pairs_forward(*tables, *values[2:], True)) < 200_000


def test_what_is_kept_for_the_backward() -> None:
    """The tables, the ids, the labels and the residual; nothing with d columns."""
    kept: list[torch.Tensor] = []
    values = operands()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        pairs(*values, True, True, False)
    known = {t.data_ptr() for t in values}
    (own,) = (t for t in kept if t.data_ptr() not in known)
    assert own.shape == values[3].shape


def test_problem_counts() -> None:
    problem = kernels.PairsProblem(10**6, 10**6, 2**20, 1, 6, 300)
    assert problem.flops == 2**20 * 300 * 38
    assert problem.bytes_moved(4) == 3 * 2**20 * 7 * 300 * 4 > 2**34


# ---- the modules


def filled(module: Any, *args: Any, seed: int = 0, **options: Any) -> Any:
    """With an output table that is not zero, so that both gradients are there."""
    torch.manual_seed(seed)
    made = module(*args, **options)
    with torch.no_grad():
        made.in_weight.normal_()
        made.out_weight.normal_()
    return made


def batch(module: Any, V: int, B: int = 30, C: int = 4, K: int = 3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Arguments of a call, with paddings and skipped negatives."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, V, (B,), generator=generator)
    contexts = torch.randint(-1, V, (B, C), generator=generator)
    if module is ours.CBOW:
        return contexts, words, torch.randint(-1, V, (B, K), generator=generator)
    return words, contexts, torch.randint(-1, V, (B, C, K), generator=generator)


def flat_gradients(module: Any, *args: Any, **options: Any) -> list[torch.Tensor]:
    loss = module(*args, **options)
    return [loss.detach(), *torch.autograd.grad(loss, list(module.parameters()))]


def test_skipgram_is_the_sum_over_its_pairs() -> None:
    V = 12
    module = filled(ours.SkipGram, V, 5, dtype=DOUBLE)
    centres, contexts, negatives = batch(ours.SkipGram, V)
    w_in, w_out = (p.detach().numpy() for p in module.parameters())
    sums = reference.Sums.like(w_in, w_out)
    rows = np.zeros(len(centres))
    for b, (i, row) in enumerate(zip(centres.tolist(), contexts.tolist(), strict=True)):
        before = sums.loss
        for c, context in enumerate(row):
            if context >= 0:
                sums.d_in[i] += sums.meet(w_in[i], context, w_out[context], 1, 1)
                sums.pairs += 1
                for negative in negatives[b, c].tolist():
                    if negative >= 0:
                        sums.d_in[i] += sums.meet(w_in[i], negative, w_out[negative], 0, 1)
        rows[b] = sums.loss - before
    expected = [torch.tensor(x, dtype=DOUBLE) for x in (sums.loss, -sums.d_in, -sums.d_out)]
    torch.testing.assert_close(flat_gradients(module, centres, contexts, negatives, reduction="sum"), expected)
    torch.testing.assert_close(flat_gradients(module, centres, contexts, negatives), [x / sums.pairs for x in expected])
    by_row = module(centres, contexts, negatives, reduction="none")
    torch.testing.assert_close(by_row.detach(), torch.tensor(rows))
    column = [module(centres, contexts[:, c], negatives[:, c], reduction="none") for c in range(contexts.shape[1])]
    torch.testing.assert_close(sum(column), by_row)


@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize("grad", ["exact", "gensim"])
def test_cbow_is_the_sum_over_its_windows(mode: str, grad: str) -> None:
    V = 12
    module = filled(ours.CBOW, V, 5, mode=mode, grad=grad, dtype=DOUBLE)
    contexts, centres, negatives = batch(ours.CBOW, V)
    contexts[3] = -1
    w_in, w_out = (p.detach().numpy() for p in module.parameters())
    sums = reference.Sums.like(w_in, w_out)
    tokens = contexts.numpy().reshape(-1)
    divide = (mode, grad) in (("mean", "exact"), ("sum", "gensim"))
    for b, row in enumerate(contexts.numpy()):
        window = (b * len(row) + np.flatnonzero(row >= 0)).tolist()
        if window:
            h = reference.hidden(w_in, tokens, window, mode == "mean")
            centre = int(centres[b])
            gradient = sums.meet(h, centre, w_out[centre], 1, 1)
            for negative in negatives[b].tolist():
                if negative >= 0:
                    gradient = gradient + sums.meet(h, negative, w_out[negative], 0, 1)
            reference.spread(sums, tokens, window, gradient, divide=divide, mean=mode == "mean")
            sums.pairs += 1
    assert sums.pairs == len(contexts) - 1
    expected = [torch.tensor(x, dtype=DOUBLE) for x in (sums.loss, -sums.d_in, -sums.d_out)]
    torch.testing.assert_close(flat_gradients(module, contexts, centres, negatives, reduction="sum"), expected)
    torch.testing.assert_close(flat_gradients(module, contexts, centres, negatives), [x / sums.pairs for x in expected])
    assert module(contexts, centres, negatives, reduction="none")[3] == 0


@each_module
def test_hierarchical_is_the_loss_of_the_path(module: Any) -> None:
    counts = [40, 1, 7, 7, 19, 2, 2, 1, 11]
    V = len(counts)
    made = filled(module, V, 5, counts=counts, hierarchical=True, dtype=DOUBLE)
    assert made.out_weight.shape == (V - 1, 5)
    first, second, _ = batch(module, V)
    tree = HuffmanTree.of(np.array(counts))
    w_in, w_nodes = (p.detach().numpy() for p in made.parameters())
    sums = reference.Sums.like(w_in, w_nodes)
    for a, b in zip(first.numpy(), second.numpy(), strict=True):
        if module is ours.SkipGram:
            for word in b[b >= 0]:
                sums.d_in[a] += reference.along_path(sums, w_in[a], w_nodes, tree.paths[word], tree.codes[word])
        elif (a >= 0).any():
            window = np.flatnonzero(a >= 0).tolist()
            h = reference.hidden(w_in, a, window, True)
            gradient = reference.along_path(sums, h, w_nodes, tree.paths[b], tree.codes[b])
            reference.spread(sums, a, window, gradient, divide=True, mean=True)
    expected = [torch.tensor(x, dtype=DOUBLE) for x in (sums.loss, -sums.d_in, -sums.d_out)]
    torch.testing.assert_close(flat_gradients(made, first, second, reduction="sum"), expected)
    with pytest.raises(ValueError, match="negatives must be None: the module is hierarchical"):
        made(first, second, second)
    with pytest.raises(RuntimeError, match="no negatives"):
        made.draw_negatives((3,))


@each_module
@pytest.mark.parametrize("hierarchical", [False, True])
def test_sparse_is_dense_bit_by_bit(module: Any, hierarchical: bool) -> None:
    V = 40
    counts = np.arange(1, V + 1)
    first, second, negatives = batch(module, V, 200)
    results = []
    for sparse in (False, True):
        made = filled(module, V, 6, counts=counts, sparse=sparse, hierarchical=hierarchical)
        loss = made(first, second, None if hierarchical else negatives)
        loss.backward()
        results.append([loss, *(p.grad.to_dense() for p in made.parameters())])
        assert all(p.grad.is_sparse is sparse for p in made.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def storages(gradient: torch.Tensor) -> list[int]:
    return [t.data_ptr() for t in (gradient._indices(), gradient._values())]


def copied(module: Any) -> Iterator[Any]:
    yield module
    yield copy.deepcopy(module)
    yield pickle.loads(pickle.dumps(module))
    yield copy.deepcopy(module).to(DOUBLE)


@each_module
def test_optimizers_find_sparse_gradients_coalesced(module: Any) -> None:
    """torch's accumulation forgets it, and coalescing sorts and copies; also in copies of the module."""
    args = batch(module, 40)
    for made in copied(filled(module, 40, 6, sparse=True)):
        for gradient in torch.autograd.grad(made(*args), list(made.parameters())):
            assert gradient.is_coalesced()
        made(*args).backward()
        for parameter in made.parameters():
            assert parameter.grad.is_coalesced()
            before = storages(parameter.grad)
            assert storages(parameter.grad.coalesce()) == before
            assert (parameter.grad.indices()[0].diff() > 0).all()
        all_before = [storages(p.grad) for p in made.parameters()]
        torch.optim.SparseAdam(made.parameters()).step()
        torch.optim.Adagrad(made.parameters()).step()
        torch.optim.SGD(made.parameters(), lr=0.1).step()
        assert [storages(p.grad) for p in made.parameters()] == all_before


def test_rows_of_another_use_are_not_taken_for_coalesced() -> None:
    module = filled(ours.SkipGram, 10, 3, sparse=True)
    args = batch(ours.SkipGram, 10)
    (module(*args) + F.embedding(torch.tensor([7, 7, 2]), module.in_weight, sparse=True).sum()).backward()
    expected = filled(ours.SkipGram, 10, 3)
    (expected(*args) + F.embedding(torch.tensor([7, 7, 2]), expected.in_weight).sum()).backward()
    assert (module.in_weight.grad.coalesce().indices()[0].diff() > 0).all()
    torch.testing.assert_close(module.in_weight.grad.coalesce().to_dense(), expected.in_weight.grad)
    for other in (module, expected):  # and a second call adds to the first
        other(*args).backward()
    torch.testing.assert_close(module.in_weight.grad.coalesce().to_dense(), expected.in_weight.grad)
    torch.testing.assert_close(module.out_weight.grad.coalesce().to_dense(), expected.out_weight.grad)


# ---- negatives


@pytest.mark.parametrize("ns_exponent", [0.75, 0.0, -0.5])
def test_negatives_have_the_probabilities_of_the_counts(ns_exponent: float) -> None:
    counts = torch.tensor([1000, 1, 50, 50, 7, 300])
    module = ours.SkipGram(6, 2, counts=counts, ns_exponent=ns_exponent)
    drawn = module.draw_negatives((400, 1000), torch.Generator().manual_seed(5))
    assert drawn.shape == (400, 1000)
    assert drawn.dtype is torch.int64
    expected = counts.double() ** ns_exponent
    found = torch.bincount(drawn.flatten(), minlength=6) / drawn.numel()
    torch.testing.assert_close(found.double(), expected / expected.sum(), rtol=0, atol=0.003)


def test_negatives_are_uniform_without_counts() -> None:
    drawn = ours.CBOW(5, 2).draw_negatives([100_000], torch.Generator().manual_seed(5))
    torch.testing.assert_close(torch.bincount(drawn) / 100_000, torch.full((5,), 0.2), rtol=0, atol=0.006)


def test_a_word_without_counts_is_never_drawn() -> None:
    assert (ours.SkipGram(3, 2, counts=[0, 5, 1]).draw_negatives((5000,)) > 0).all()


@each_module
def test_seeds_and_generators_govern_the_draws(module: Any) -> None:
    made = filled(module, 50, 4, counts=range(1, 51))
    first, second, _ = batch(module, 50)
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(made(first, second).item())
    assert losses[0] == losses[2] != losses[1]
    state = torch.get_rng_state()
    losses = [made(first, second, generator=torch.Generator().manual_seed(s)).item() for s in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]
    assert torch.equal(torch.get_rng_state(), state)


@each_module
def test_drawn_negatives_skip_the_word_itself_and_given_ones_do_not(module: Any) -> None:
    """With one word that is all there is to draw, no negative is left."""
    made = filled(module, 2, 3, counts=[0, 5], negatives=4)
    words, contexts = torch.ones(5, dtype=torch.int64), torch.ones(5, 2, dtype=torch.int64)
    args = (contexts, words) if module is ours.CBOW else (words, contexts)
    given_shape = (5, 4) if module is ours.CBOW else (5, 2, 4)
    nothing = torch.full(given_shape, -1)
    assert made(*args) == made(*args, nothing)
    score = made.in_weight[1] @ made.out_weight[1]
    torch.testing.assert_close(made(*args), F.softplus(-score))
    torch.testing.assert_close(made(*args, nothing + 2), F.softplus(-score) + 4 * F.softplus(score))


def test_draws_are_as_many_as_asked() -> None:
    """Zero output vectors: each target costs ln 2."""
    for K in (1, 7):
        module = ours.SkipGram(10_000, 4, negatives=K)
        centres, contexts = torch.arange(20), torch.arange(40).reshape(20, 2)
        loss = module(centres, contexts, reduction="sum", generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(loss.item(), 40 * (1 + K) * math.log(2))
        contexts[:, 1] = -1
        loss = module(centres, contexts, reduction="none", generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(loss, torch.full((20,), (1 + K) * math.log(2)))


# ---- what a module has to stand


@each_module
def test_initial_values_are_gensims(module: Any) -> None:
    made = module(500, 20)
    assert not made.out_weight.any()
    assert made.in_weight.abs().max() <= 1 / 20
    assert made.in_weight.abs().max() > 0.049
    assert abs(made.in_weight.mean()) < 0.002
    with torch.no_grad():
        made.out_weight.fill_(3)
    made.reset_parameters()
    assert not made.out_weight.any()


@each_module
def test_state_dict_copies_and_dtypes(module: Any) -> None:
    args = batch(module, 9)
    counts = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    for options, names in (
        ({"counts": counts}, ["in_weight", "out_weight"]),
        ({"counts": counts, "hierarchical": True}, ["in_weight", "out_weight", "paths", "codes"]),
    ):
        made = filled(module, 9, 4, **options)
        call = args[:2] if "hierarchical" in options else args
        expected = made(*call)
        assert list(made.state_dict()) == names
        other = module(9, 4, **options)
        stream = io.BytesIO()
        torch.save(made.state_dict(), stream)
        stream.seek(0)
        other.load_state_dict(torch.load(stream))
        for again in (other, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert torch.equal(again(*call), expected)
        for dtype in FLOATS:
            cast = copy.deepcopy(made).to(dtype)
            loss = cast(*call)
            loss.backward()
            assert loss.dtype is dtype
            assert {p.grad.dtype for p in cast.parameters()} == {dtype}
            torch.testing.assert_close(loss.float(), expected, rtol=0.01, atol=0)
    half = ours.SkipGram(6, 2, counts=[1000, 1, 50, 50, 7, 300]).half()
    drawn = [m.draw_negatives((50,), torch.Generator().manual_seed(1)) for m in (half, half.double())]
    assert torch.equal(*drawn)


def test_a_half_mean_over_many_pairs_does_not_overflow() -> None:
    module = filled(ours.SkipGram, 10, 4, dtype=torch.float16)
    ids = torch.arange(100_000) % 10
    loss = module(ids, ids, ids[:, None])
    torch.testing.assert_close(loss.float(), module.float()(ids, ids, ids[:, None]), rtol=1e-3, atol=0)


@each_module
def test_autocast_keeps_the_parameters_dtype(module: Any) -> None:
    made = filled(module, 9, 4)
    args = batch(module, 9)
    expected = flat_gradients(made, *args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = flat_gradients(made, *args)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@each_module
@pytest.mark.parametrize("hierarchical", [False, True])
def test_compiles_into_one_graph(module: Any, hierarchical: bool) -> None:
    torch._dynamo.reset()
    made = filled(module, 20, 4, counts=range(1, 21), hierarchical=hierarchical)
    args = batch(module, 20)[: 2 if hierarchical else 3]
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    for found, expected in zip(flat_gradients(compiled, *args), flat_gradients(made, *args), strict=True):
        torch.testing.assert_close(found, expected)
    if not hierarchical:
        assert compiled(*args[:2]).isfinite()  # draws in the graph
        wrong = args[2].clone()
        wrong[0] = 20
        with pytest.raises(IndexError, match=r"targets\[0, 1\] is 20, it must be in 0 to 19 \(or -1 for nothing\)"):
            compiled(*args[:2], wrong)


@each_module
def test_gradients_of_each_row_by_vmap(module: Any) -> None:
    made = filled(module, 9, 4, dtype=DOUBLE)
    args = batch(module, 9, 5)
    parameters = {name: p.detach() for name, p in made.named_parameters()}

    def loss(parameters: Any, *row: torch.Tensor) -> Any:
        return torch.func.functional_call(made, parameters, tuple(a[None] for a in row), {"reduction": "sum"})

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))(parameters, *args)
    for b in range(5):
        expected = flat_gradients(made, *(a[b : b + 1] for a in args), reduction="sum")[1:]
        torch.testing.assert_close([found[name][b] for name in parameters], expected)


@each_module
def test_second_derivatives_through_the_module(module: Any) -> None:
    made = filled(module, 9, 4, dtype=DOUBLE)
    args = batch(module, 9, 5)
    slopes = torch.autograd.grad(made(*args), list(made.parameters()), create_graph=True)
    penalty = torch.stack([slope.square().sum() for slope in slopes]).sum()
    step, epsilon = torch.autograd.grad(penalty, list(made.parameters())), 1e-6

    def penalty_at(sign: float) -> float:
        moved = copy.deepcopy(made)
        with torch.no_grad():
            for parameter, direction in zip(moved.parameters(), step, strict=True):
                parameter += sign * epsilon * direction
        return sum(float(g.square().sum()) for g in flat_gradients(moved, *args)[1:])

    expected = sum(float(s.square().sum()) for s in step)
    assert abs((penalty_at(1) - penalty_at(-1)) / (2 * epsilon) / expected - 1) < 1e-6


@each_module
def test_nothing_to_learn_from(module: Any) -> None:
    """All padding: the loss is 0 and so are the gradients, not NaN."""
    made = filled(module, 5, 3)
    words, contexts = torch.tensor([1, 2]), torch.full((2, 3), -1)
    args = (contexts, words) if module is ours.CBOW else (words, contexts)
    for reduction in ("mean", "sum"):
        loss, d_in, d_out = flat_gradients(made, *args, reduction=reduction)
        assert loss == 0
        assert not d_in.any()
        assert not d_out.any()
    empty = made(args[0][:0], args[1][:0])
    assert empty == 0


def test_meta_and_descriptions() -> None:
    module = ours.SkipGram(50, 8, counts=range(50), device="meta")
    assert module(torch.arange(3, device="meta"), torch.arange(3, device="meta")).device.type == "meta"
    assert repr(ours.SkipGram(50, 8)) == "SkipGram(50, 8, negatives=5)"
    assert repr(module) == "SkipGram(50, 8, negatives=5, ns_exponent=0.75)"
    hierarchical = ours.CBOW(50, 8, counts=range(50), hierarchical=True, sparse=True, mode="sum")
    assert repr(hierarchical) == "CBOW(50, 8, hierarchical=True, sparse=True, mode=sum, grad=exact)"


# ---- errors

IDS = torch.tensor([1, 2, 3])
PADDED = torch.tensor([[1, -1], [2, 3], [0, 1]])


@pytest.mark.parametrize(
    ("module", "args", "options", "error", "words"),
    [
        (ours.SkipGram, (0, 4), {}, ValueError, "num_embeddings is 0, it must be at least 1"),
        (ours.SkipGram, (4, 0), {}, ValueError, "embedding_dim is 0"),
        (ours.SkipGram, (4.0, 4), {}, TypeError, "num_embeddings must be an int, not float"),
        (ours.SkipGram, (4, 4), {"negatives": 0}, ValueError, "negatives is 0"),
        (ours.SkipGram, (4, 4), {"counts": [1, 2]}, ValueError, r"counts is of shape \[2\], it must be \[4\]"),
        (ours.SkipGram, (2, 4), {"counts": [1, -2]}, ValueError, "counts must be finite and at least 0"),
        (ours.SkipGram, (2, 4), {"counts": [0, 0]}, ValueError, "not all 0"),
        (ours.SkipGram, (2, 4), {"counts": [0, 1], "ns_exponent": -1}, ValueError, "weights must be finite"),
        (ours.SkipGram, (2, 4), {"hierarchical": True}, ValueError, "needs counts.*num_embeddings is 2, counts None"),
        (ours.SkipGram, (1, 4), {"counts": [1], "hierarchical": True}, ValueError, "num_embeddings is 1"),
        (ours.CBOW, (2, 4), {"mode": "max"}, ValueError, "mode is 'max', it must be one of 'mean', 'sum'"),
        (ours.CBOW, (2, 4), {"grad": "none"}, ValueError, "grad is 'none', it must be one of 'exact', 'gensim'"),
    ],
)
def test_options_refused(module: Any, args: Any, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        module(*args, **options)


@pytest.mark.parametrize(
    ("module", "args", "options", "error", "words"),
    [
        (ours.SkipGram, (IDS, IDS), {"reduction": "max"}, ValueError, "reduction is 'max'"),
        (ours.SkipGram, ([1], IDS), {}, TypeError, "centres must be a tensor, not list"),
        (ours.SkipGram, (IDS.float(), IDS), {}, RuntimeError, "centres is torch.float32, it must be int32 or int64"),
        (ours.SkipGram, (IDS, IDS > 1), {}, RuntimeError, "contexts is torch.bool"),
        (ours.SkipGram, (IDS - 2, IDS), {}, IndexError, r"centres\[0\] is -1, it must be in 0 to 3"),
        (ours.SkipGram, (IDS, IDS + 1), {}, IndexError, r"contexts\[2\] is 4, it must be in 0 to 3 \(or -1"),
        (ours.SkipGram, (IDS, PADDED - 1), {}, IndexError, r"contexts\[0, 1\] is -2"),
        (ours.SkipGram, (IDS, IDS, PADDED * 4), {}, IndexError, r"negatives\[0, 0\] is 4"),
        (ours.SkipGram, (IDS, IDS, IDS), {}, RuntimeError, r"negatives is of shape \[3\], it must be 2-dimensional"),
        (ours.SkipGram, (IDS, IDS, PADDED[:2]), {}, RuntimeError, r"negatives is of shape \[2, 2\].* \[3, K\]"),
        (ours.SkipGram, (IDS, PADDED, PADDED), {}, RuntimeError, r"negatives.* \[3, 2\], it must be 3-dimensional"),
        (ours.SkipGram, (PADDED, IDS), {}, RuntimeError, r"centres is of shape \[3, 2\], it must be 1-dimensional"),
        (
            ours.SkipGram,
            (IDS, PADDED[:2]),
            {},
            RuntimeError,
            r"contexts is of shape \[2, 2\].* as many rows as centres, 3",
        ),
        (ours.SkipGram, (IDS, PADDED[None]), {}, RuntimeError, r"contexts.*1-dimensional or 2-dimensional"),
        (ours.SkipGram, (IDS, IDS.to("meta")), {}, RuntimeError, "contexts is on meta and in_weight on cpu"),
        (ours.CBOW, (IDS, IDS), {}, RuntimeError, r"contexts is of shape \[3\], it must be 2-dimensional"),
        (ours.CBOW, (PADDED, PADDED), {}, RuntimeError, r"centres is of shape \[3, 2\]"),
        (ours.CBOW, (PADDED[:2], IDS), {}, RuntimeError, r"contexts is of shape \[2, 2\].* as many rows as centres, 3"),
        (ours.CBOW, (PADDED, IDS - 2), {}, IndexError, r"centres\[0\] is -1"),
        (ours.CBOW, (PADDED + 1, IDS), {}, IndexError, r"contexts\[1, 1\] is 4"),
    ],
)
def test_calls_refused(module: Any, args: Any, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        module(4, 3)(*args, **options)


@pytest.mark.parametrize(
    ("position", "value", "error", "words"),
    [
        (0, torch.ones(4), RuntimeError, r"in_weight is of shape \[4\]"),
        (1, torch.ones(0, 3), RuntimeError, r"out_weight is of shape \[0, 3\]"),
        (1, torch.ones(4, 2), RuntimeError, r"\[4, 3\] and out_weight torch.float32 of shape \[4, 2\]"),
        (1, torch.ones(4, 3).double(), RuntimeError, r"out_weight torch.float64"),
        (2, PADDED.float(), RuntimeError, "inputs is torch.float32"),
        (2, IDS, RuntimeError, r"inputs is of shape \[3\]"),
        (3, PADDED[:2], RuntimeError, "inputs has 3 rows and targets 2"),
        (3, PADDED + 1, IndexError, r"targets\[1, 1\] is 4"),
        (4, torch.ones(3, 2), RuntimeError, "labels is torch.float32"),
        (4, torch.ones(2, 2).bool(), RuntimeError, r"labels is of shape \[2, 2\]"),
    ],
)
def test_op_refuses(position: int, value: torch.Tensor, error: Any, words: str) -> None:
    args: list[Any] = [torch.ones(4, 3), torch.ones(4, 3), PADDED, PADDED, PADDED > 0]
    args[position] = value
    with pytest.raises(error, match=words):
        pairs(*args, True, True, False)


# ---- training


@pytest.fixture(scope="module")
def text() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Counts, centres and windows of two words on each side of real sentences."""
    found = list(sentences(gensim_data("lee_background.cor").read_text(encoding="utf-8")))[:150]
    counted = Counter(word for sentence in found for word in sentence)
    index = {word: i for i, (word, _) in enumerate(counted.most_common())}
    centres, windows = [], []
    for sentence in found:
        padded = [-1, -1, *(index[word] for word in sentence), -1, -1]
        for i in range(2, len(padded) - 2):
            centres.append(padded[i])
            windows.append([*padded[i - 2 : i], *padded[i + 1 : i + 3]])
    return torch.tensor([counted[word] for word in index]), torch.tensor(centres), torch.tensor(windows)


OPTIMIZERS: dict[str, Any] = {
    "SGD": (lambda p: torch.optim.SGD(p, lr=100.0), (False, True)),
    "Adam": (lambda p: torch.optim.Adam(p, lr=0.05), (False,)),
    "SparseAdam": (lambda p: torch.optim.SparseAdam(p, lr=0.05), (True,)),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, lr=0.3), (False, True)),
}
RUNS = [(name, sparse, False) for name, (_, both) in OPTIMIZERS.items() for sparse in both]


@each_module
@pytest.mark.parametrize(("name", "sparse", "hierarchical"), [*RUNS, ("Adagrad", True, True)])
def test_training_on_real_text(module: Any, name: str, sparse: bool, hierarchical: bool, text: Any) -> None:
    counts, centres, windows = text
    losses = []
    torch.manual_seed(0)
    made = module(len(counts), 16, counts=counts, sparse=sparse, hierarchical=hierarchical)
    optimizer = OPTIMIZERS[name][0](list(made.parameters()))
    for step in range(15):
        rows = slice(step % 3 * 300, step % 3 * 300 + 300)
        args = (windows[rows], centres[rows]) if module is ours.CBOW else (centres[rows], windows[rows])
        optimizer.zero_grad()
        loss = made(*args)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_training_is_the_same_bit_by_bit_sparse_or_dense_and_again(name: str, text: Any) -> None:
    counts, centres, windows = text
    tables = []
    for sparse in (False, True, True):
        torch.manual_seed(0)
        made = ours.SkipGram(len(counts), 16, counts=counts, sparse=sparse)
        optimizer = OPTIMIZERS[name][0](list(made.parameters()))
        for step in range(5):
            optimizer.zero_grad()
            made(centres[step * 300 :][:300], windows[step * 300 :][:300]).backward()
            optimizer.step()
        tables.append(made.in_weight.detach())
    torch.testing.assert_close(tables[0], tables[1])
    assert torch.equal(tables[1], tables[2])
