"""Recurrent layers beyond single values: what torch's CUDA layers fail at, packed sequences, masks, merges, memory."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import tilesmith.nn as ours
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tilesmith.kernels import rnn as kernels
from torch import nn as theirs
from torch.nn.utils import rnn as packing

from .recurrent import call, flat, in_pieces

LAYERS = ("RNN", "GRU", "LSTM")
each_layer = pytest.mark.parametrize("name", LAYERS)
DOUBLE = torch.float64


def pair(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Ours and torch's, each made from the same seed."""
    layers = []
    for library in (ours, theirs):
        torch.manual_seed(3)
        layers.append(getattr(library, name)(*args, **options))
    return layers[0], layers[1]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def states_of(output: Any) -> list[torch.Tensor]:
    return list(output[1]) if isinstance(output[1], tuple) else [output[1]]


# ---- what fails or breaks in torch's CUDA LSTM


@each_layer
def test_backward_in_evaluation_mode(name: str) -> None:
    """cuDNN: "cudnn RNN backward can only be called in training mode"."""
    mine, reference = pair(name, 3, 4, 2, dropout=0.5, dtype=DOUBLE)
    x = random(5, 2, 3)
    found, expected = (
        torch.autograd.grad(flat(layer.eval()(x)).square().sum(), list(layer.parameters()))
        for layer in (mine, reference)
    )
    torch.testing.assert_close(found, expected)


@each_layer
@pytest.mark.parametrize("activation_memory", ["store", "recompute"])
def test_double_backward(name: str, activation_memory: str) -> None:
    """cuDNN: "derivative for _cudnn_rnn_backward is not implemented", so no gradient penalty."""
    mine, reference = pair(name, 3, 4, 2, bidirectional=True, dtype=DOUBLE)
    mine.activation_memory = activation_memory
    results = []
    for layer in (mine, reference):
        x = random(5, 2, 3).requires_grad_()
        (slope,) = torch.autograd.grad(flat(layer(x)).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad((slope.norm() - 1).square(), [x, *layer.parameters()]))
    torch.testing.assert_close(*results)


def test_third_derivative() -> None:
    mine, reference = pair("LSTM", 2, 3, dtype=DOUBLE)
    results = []
    for layer in (mine, reference):
        x = random(3, 2, 2).requires_grad_()
        value = flat(layer(x)).pow(3).sum()
        for _ in range(3):
            (slope,) = torch.autograd.grad(value, x, create_graph=True)
            value = slope.pow(2).sum()
        results.append(slope)
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


@each_layer
def test_more_than_65535_steps(name: str) -> None:
    """cuDNN refuses T above 65,535 (CUDNN_STATUS_NOT_SUPPORTED)."""
    mine, reference = pair(name, 1, 2, dtype=DOUBLE)
    x = random(65_600, 1, 1)
    found, expected = (
        (y.detach(), torch.autograd.grad(y[-100:].sum(), list(layer.parameters())))
        for layer in (mine, reference)
        for y in [layer(x)[0]]
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("packed", [False, True])
@each_layer
def test_dropout_is_torchs_from_the_same_seed(name: str, packed: bool) -> None:
    """cuDNN keeps a dropout state of its own, which ``torch.manual_seed`` does not reset."""
    mine, reference = pair(name, 3, 4, 3, dropout=0.4, bidirectional=True, dtype=DOUBLE)
    x: Any = random(5, 4, 3)
    if packed:
        x = packing.pack_padded_sequence(x, torch.tensor([2, 5, 3, 1]), enforce_sorted=False)
    results = []
    for layer in (mine, reference, mine):
        torch.manual_seed(9)
        y = layer(x)[0]
        results.append(y.data if packed else y)
    torch.testing.assert_close(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_compiles_to_one_opaque_op_a_layer_and_pair_of_directions() -> None:
    """torch.compile breaks the graph at ``torch.nn.LSTM`` (its flat list of weak references)."""
    torch._dynamo.reset()
    seen: list[str] = []

    def count(graph: torch.fx.GraphModule, example: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if "tilesmith" in str(node.target))
        return graph

    from torch._dynamo.backends.common import aot_autograd

    layer = ours.LSTM(3, 4, 2, bidirectional=True, dropout=0.3)
    backend = aot_autograd(fw_compiler=count, bw_compiler=count)
    x = random(5, 2, 3, dtype=torch.float32).requires_grad_()
    lengths = torch.tensor([3, 5])
    torch.manual_seed(1)
    y, _ = torch.compile(layer, fullgraph=True, backend=backend)(x, lengths=lengths)
    y.sum().backward()
    assert seen == ["tilesmith.rnn_forward.default"] * 2 + ["tilesmith.rnn_backward.default"] * 2
    with pytest.raises(RuntimeError, match="lengths must be between 0 and the input's 5 steps"):
        torch.compile(layer, fullgraph=True, backend="eager")(x, lengths=lengths + 1)


@each_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """torch's LSTM mixes dtypes under autocast on some devices; ours computes in the autocast dtype on each."""
    mine, _ = pair(name, 3, 4, 2, bidirectional=True)
    x = random(5, 2, 3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        for given_dtype in (torch.float32, dtype):
            output = mine(x.to(given_dtype))
            assert {t.dtype for t in (output[0], *states_of(output))} == {dtype}
    flat(output).float().square().sum().backward()
    assert all(p.grad.dtype is torch.float32 for p in mine.parameters())
    torch.testing.assert_close(output[0].float(), mine(x)[0], rtol=0.05, atol=0.02)


# ---- packed sequences


@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [[5, 4, 4, 1], [2, 5, 1, 5]], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("with_states", [False, True])
def test_packed_is_torchs_and_padded(name: str, batch_first: bool, lengths: list[int], with_states: bool) -> None:
    options: dict[str, Any] = {"batch_first": batch_first, "bidirectional": True, "dtype": DOUBLE}
    if name == "LSTM":
        options["proj_size"] = 3
    mine, reference = pair(name, 3, 4, 2, **options)
    x = random(4, 5, 3) if batch_first else random(5, 4, 3)
    packed = packing.pack_padded_sequence(
        x, torch.tensor(lengths), batch_first, enforce_sorted=lengths == sorted(lengths, reverse=True)
    )
    hx: Any = None
    if with_states:
        hx = (random(4, 4, 3, seed=1), random(4, 4, 4, seed=2)) if name == "LSTM" else random(4, 4, 4, seed=1)
    found, expected = mine(packed, hx), reference(packed, hx)
    for part, part_expected in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(part, part_expected)
    torch.testing.assert_close(found[1], expected[1])
    padded = mine(x, hx, lengths=torch.tensor(lengths))
    torch.testing.assert_close(padded[1], found[1], rtol=0, atol=1e-15)
    unpacked, _ = packing.pad_packed_sequence(found[0], batch_first)
    torch.testing.assert_close(padded[0], unpacked, rtol=0, atol=1e-15)


def test_gradients_reach_a_packed_input() -> None:
    mine, reference = pair("GRU", 3, 4, bidirectional=True, dtype=DOUBLE)
    results = []
    for layer in (mine, reference):
        x = random(5, 3, 3).requires_grad_()
        packed = packing.pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False)
        y, h = layer(packed)
        results.append(torch.autograd.grad(y.data.square().sum() + h.sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*results)


# ---- long sequences


@each_layer
def test_4096_steps_do_not_drift(name: str) -> None:
    """In float32 no further from float64 than twice what torch's own float32 layer is."""
    mine, reference = pair(name, 8, 16)
    _, exact = pair(name, 8, 16, dtype=DOUBLE)
    exact.load_state_dict(mine.state_dict())
    x = random(4096, 2, 8, dtype=torch.float32)
    results = []
    for layer, dtype in ((mine, torch.float32), (reference, torch.float32), (exact, DOUBLE)):
        y = layer(x.to(dtype))[0]
        results.append([y, *torch.autograd.grad(y.square().mean(), list(layer.parameters()))])
    for found, other, truth in zip(*results, strict=True):
        scale = truth.abs().max()
        error, error_of_torch = ((t.double() - truth).abs().max() / scale for t in (found, other))
        assert error <= 2 * error_of_torch + 1e-7
        assert error < 1e-4


# ---- lengths and resets


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(LAYERS), bidirectional=st.booleans(), recompute=st.booleans())
def test_any_lengths_and_resets(data: Any, name: str, bidirectional: bool, recompute: bool) -> None:
    """Equal to torch's layer on each piece of each sequence by itself."""
    T, B = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 10))
    lengths = tuple(data.draw(st.integers(1, T)) for _ in range(B))
    reset = tuple(tuple(data.draw(st.booleans()) for _ in range(B)) for _ in range(T))
    mine, reference = pair(name, 2, 3, bidirectional=bidirectional, dtype=DOUBLE)
    mine.activation_memory = "recompute" if recompute else "store"
    rows = 2 if bidirectional else 1
    states = [random(rows, B, 3, seed=s).requires_grad_() for s in range(2 if name == "LSTM" else 1)]
    x = random(T, B, 2, seed=5).requires_grad_()
    parameters = [p.detach().requires_grad_() for p in mine.parameters()]
    masks = {"lengths": torch.tensor(lengths), "reset": torch.tensor(reset)}
    found = flat(call(mine, x, *states, *parameters, **masks))
    expected = flat(in_pieces(reference, lengths, reset, x, *states, *parameters))
    torch.testing.assert_close(found, expected)
    dy = random(*found.shape, seed=6)
    inputs = [x, *states, *parameters]
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, dy), torch.autograd.grad(expected, inputs, dy), rtol=1e-9, atol=1e-10
    )


@each_layer
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_padded_tail_never_leaks(name: str, poison: float, recompute: bool) -> None:
    """Whatever lies behind a sequence's end: not in results, not in gradients, not in gradients of gradients."""
    options = {"proj_size": 2} if name == "LSTM" else {}
    mine, _ = pair(name, 3, 4, 2, bidirectional=True, dtype=DOUBLE, **options)
    mine.activation_memory = "recompute" if recompute else "store"
    lengths = torch.tensor([2, 5, 0, 3])
    behind = torch.arange(5)[:, None] >= lengths
    results = []
    for filler in (0.0, poison):
        x = random(5, 4, 3).masked_fill(behind[:, :, None], filler).requires_grad_()
        y, h = mine(x, lengths=lengths)
        loss = flat((y, h)).square().sum()
        slopes = torch.autograd.grad(loss, [x, *mine.parameters()], create_graph=True)
        second = torch.autograd.grad(flat((slopes[0], slopes[1:])).square().sum(), [x, *mine.parameters()])
        results.append([y, *states_of((y, h)), *slopes, *second])
        assert not y[behind].any()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not results[1][-len(second)][behind].any()


def test_a_sequence_of_no_steps_keeps_its_state() -> None:
    layer = ours.LSTM(3, 4, bidirectional=True)
    hx = (torch.randn(2, 2, 4), torch.randn(2, 2, 4))
    y, (h, c) = layer(torch.randn(5, 2, 3), hx, lengths=torch.tensor([0, 5]))
    assert not y[:, 0].any()
    assert torch.equal(h[:, 0], hx[0][:, 0])
    assert torch.equal(c[:, 0], hx[1][:, 0])


def test_masks_of_batch_first_and_unbatched_inputs() -> None:
    layer = ours.GRU(3, 4, bidirectional=True)
    first = ours.GRU(3, 4, bidirectional=True, batch_first=True)
    first.load_state_dict(layer.state_dict())
    x, lengths = torch.randn(5, 2, 3), torch.tensor([3, 5])
    reset = torch.rand(5, 2) < 0.5
    y, h = layer(x, lengths=lengths, reset=reset)
    y_first, h_first = first(x.transpose(0, 1), lengths=lengths, reset=reset.T)
    assert torch.equal(y, y_first.transpose(0, 1))
    assert torch.equal(h, h_first)
    y_one, h_one = layer(x[:, 0], lengths=torch.tensor(3), reset=reset[:, 0])
    torch.testing.assert_close(y_one, y[:, 0])
    torch.testing.assert_close(h_one, h[:, 0])


# ---- memory


@pytest.mark.parametrize(("name", "kept"), [("LSTM", 4), ("GRU", 4), ("RNN", 0)])
def test_activation_memory_in_bytes(name: str, kept: int) -> None:
    """ "recompute" keeps everything but the gates, and the numbers stay the same."""
    T, B, H = 20, 4, 16
    x = random(T, B, 8, dtype=torch.float32)
    bytes_kept, slopes = {}, {}
    for mode in ("store", "recompute"):
        torch.manual_seed(0)
        layer = getattr(ours, name)(8, H, bidirectional=True, activation_memory=mode)
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y, _ = layer(x)
        bytes_kept[mode] = sum(sizes.values())
        slopes[mode] = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    assert bytes_kept["store"] - bytes_kept["recompute"] == 4 * T * B * 2 * kept * H
    problem = kernels.make_problem({"RNN": "tanh"}.get(name, name.lower()), x, *_stacked_weights(layer))
    assert problem.activation_bytes(4) - problem.activation_bytes(4, store=False) == 4 * T * B * 2 * kept * H
    for a, b in zip(slopes["store"], slopes["recompute"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _stacked_weights(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.stack([layer.weight_ih_l0, layer.weight_ih_l0_reverse]),
        torch.stack([layer.weight_hh_l0, layer.weight_hh_l0_reverse]),
    )


def test_nothing_is_kept_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilesmith.kernels.rnn import _numpy

    kept = []
    forward = _numpy.forward

    def spy(*args: Any) -> None:
        kept.append([a is not None for a in args[-2:]])
        forward(*args)

    monkeypatch.setattr(_numpy, "forward", spy)
    layer, x = ours.LSTM(3, 4), torch.randn(5, 2, 3)
    with torch.no_grad():
        layer(x)
    layer.requires_grad_(False)(x)
    layer(x.requires_grad_())
    layer.activation_memory = "recompute"
    layer(x)
    assert kept == [[False, False], [False, False], [True, True], [False, True]]


@each_layer
@pytest.mark.parametrize(("batch", "steps"), [(32, 40), (512, 3)])
def test_threads_and_blocks_do_not_change_a_bit(name: str, batch: int, steps: int) -> None:
    """Large enough for a product ahead of the walk and a step in small products; for a step that threads share."""
    layer = getattr(ours, name)(96, 128, bidirectional=True)
    x = random(steps, batch, 96, dtype=torch.float32)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y, _ = layer(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    torch.set_num_threads(before)
    reference = getattr(theirs, name)(96, 128, bidirectional=True)
    reference.load_state_dict(layer.state_dict())
    torch.testing.assert_close(results[0][0], reference(x)[0], rtol=1e-4, atol=1e-5)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_walk_that_fails_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilesmith.kernels import _parallel

    done = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    blocks = _parallel.ahead(lambda start, stop: done.append(start), [(0, 1), (1, 2), (2, 3), (3, 4)])
    next(blocks)
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    finished = list(done)
    assert finished[:2] == [0, 1]
    list(_parallel.ahead(lambda start, stop: None, [(0, 1), (1, 2)]))
    assert done == finished  # what had not begun was called off

    def fail(start: int, stop: int) -> None:
        if start == 2:
            raise ValueError("block 2")

    with pytest.raises(ValueError, match="block 2"):
        list(_parallel.ahead(fail, [(0, 1), (1, 2), (2, 3), (3, 4)]))


# ---- the tutorial's shapes


@each_layer
def test_input_to_all_layers(name: str) -> None:
    """Each layer above the first sees the output of the one below and the input, side by side."""
    layer = getattr(ours, name)(3, 4, 3, bidirectional=True, input_to_all_layers=True, dtype=DOUBLE)
    assert [p.shape[1] for n, p in layer.named_parameters() if n.startswith("weight_ih")] == [3, 3, 11, 11, 11, 11]
    assert "input_to_all_layers=True" in repr(layer)
    x = random(5, 2, 3)
    y = x
    for level in range(3):
        single = getattr(theirs, name)(y.shape[2] + 3 * (level > 0), 4, bidirectional=True, dtype=DOUBLE)
        single.load_state_dict(
            {n.replace(f"_l{level}", "_l0"): p for n, p in layer.state_dict().items() if f"_l{level}" in n}
        )
        y = single(y if level == 0 else torch.cat([y, x], dim=2))[0]
    torch.testing.assert_close(layer(x)[0], y)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_merges(packed: bool, proj_size: int) -> None:
    torch.manual_seed(0)
    reference = theirs.LSTM(3, 4, 2, bidirectional=True, proj_size=proj_size, dtype=DOUBLE)
    x: Any = random(5, 4, 3)
    if packed:
        x = packing.pack_padded_sequence(x, torch.tensor([2, 5, 3, 1]), enforce_sorted=False)

    def data(y: Any) -> torch.Tensor:
        result: torch.Tensor = y.data if packed else y
        return result

    expected, states = reference(x)
    forward, backward = data(expected).chunk(2, dim=-1)
    for merge in ("concat", "sum", "mean", "gated"):
        layer = ours.BiLSTM(3, 4, 2, proj_size=proj_size, merge=merge, dtype=DOUBLE)
        layer.load_state_dict(reference.state_dict(), strict=merge != "gated")
        y, found_states = layer(x)
        torch.testing.assert_close(found_states, states)
        if merge == "gated":
            mixer = theirs.LSTM(2 * (proj_size or 4), proj_size or 4, dtype=DOUBLE)
            mixer.load_state_dict(layer.mixer.state_dict())
            merged = data(mixer(expected)[0])
            w_f, w_i, w_o = layer.gate.weight.chunk(3, dim=1)
            gate = torch.sigmoid(backward @ w_f.T + forward @ w_i.T + merged @ w_o.T + layer.gate.bias)
            torch.testing.assert_close(data(y), gate * forward)
            data(y).sum().backward()
            assert all(p.grad is not None for p in layer.parameters())
        else:
            wanted = {"concat": data(expected), "sum": forward + backward, "mean": (forward + backward) / 2}
            torch.testing.assert_close(data(y), wanted[merge])
        assert f"merge={merge}" in repr(layer)
        assert repr(copy.deepcopy(layer)) == repr(layer)


# ---- bad input


@each_layer
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"hidden_size": 0}, ValueError, "hidden_size must be greater than zero"),
        ({"input_size": -1}, ValueError, "input_size must be greater than zero"),
        ({"hidden_size": 2.0}, TypeError, "hidden_size should be of type int, got: float"),
        ({"num_layers": 0}, ValueError, "num_layers must be greater than zero"),
        ({"bias": 1}, TypeError, "bias should be of type bool, got: int"),
        ({"batch_first": "yes"}, TypeError, "batch_first should be of type bool, got: str"),
        ({"dropout": 1.5}, ValueError, "dropout should be a number in range"),
        ({"dropout": True}, ValueError, "dropout should be a number in range"),
    ],
)
def test_constructor_errors_are_torchs(name: str, options: dict[str, Any], error: type[Exception], words: str) -> None:
    for library in (ours, theirs):
        with pytest.raises(error, match=words):
            getattr(library, name)(**{"input_size": 3, "hidden_size": 4, **options})


def test_errors_of_one_layer_only() -> None:
    for library in (ours, theirs):
        with pytest.raises(ValueError, match="proj_size has to be smaller than hidden_size"):
            library.LSTM(3, 4, proj_size=4)
        with pytest.raises(ValueError, match="proj_size should be a positive integer or zero"):
            library.LSTM(3, 4, proj_size=-1)
        with pytest.raises(ValueError, match="Unknown nonlinearity 'gelu'"):
            library.RNN(3, 4, nonlinearity="gelu")
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
            library.GRU(3, 4, dropout=0.5)
        with pytest.raises(RuntimeError, match="Unknown nonlinearity"):
            library.RNNCell(3, 4, nonlinearity="gelu")(torch.randn(2, 3))
    with pytest.raises(ValueError, match="activation_memory is 'forget', it must be 'store' or 'recompute'"):
        ours.LSTM(3, 4, activation_memory="forget")
    with pytest.raises(ValueError, match="merge is 'max', it must be one of 'concat', 'sum', 'mean', 'gated'"):
        ours.BiLSTM(3, 4, merge="max")


def lstm_states(rows: int, batch: int, width: int = 4, cells: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, batch, width), torch.randn(rows, batch, cells)


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((torch.randn(5, 2, 7),), RuntimeError, "input.size\\(-1\\) must be equal to input_size. Expected 3, got 7"),
        ((torch.randn(5, 2, 3, 1),), ValueError, "Expected input to be 2D or 3D, got 4D"),
        ((torch.randn(5, 2, 3).double(),), ValueError, "does not match weight dtype"),
        ((torch.randn(0, 2, 3),), RuntimeError, "Expected sequence length to be larger than 0"),
        ((torch.randn(5, 2, 3), lstm_states(2, 2)), RuntimeError, "Expected hidden\\[0\\] size \\(1, 2, 4\\), got"),
        ((torch.randn(5, 2, 3), lstm_states(1, 3)), RuntimeError, "Expected hidden\\[0\\] size \\(1, 2, 4\\), got"),
        ((torch.randn(5, 2, 3), lstm_states(1, 2, cells=5)), RuntimeError, "Expected hidden\\[1\\] size"),
        ((torch.randn(5, 3), lstm_states(1, 1)), RuntimeError, "should also be 2-D"),
        ((torch.randn(5, 2, 3), (torch.randn(1, 4), torch.randn(1, 4))), RuntimeError, "also be 3-D"),
    ],
)
def test_call_errors_are_torchs(args: tuple[Any, ...], error: type[Exception], words: str) -> None:
    for library in (ours, theirs):
        with pytest.raises(error, match=words):
            library.LSTM(3, 4)(*args)


X = torch.randn(5, 2, 3)


@pytest.mark.parametrize(
    ("masks", "error", "words"),
    [
        ({"lengths": [5, 3]}, TypeError, "'lengths' must be Tensor, not list"),
        (
            {"lengths": torch.tensor([5.0, 3.0])},
            TypeError,
            "lengths must be of an integer dtype, but lengths is torch.float32",
        ),
        ({"lengths": torch.tensor([5])}, RuntimeError, "one number for each of 2 sequences, got \\[1\\]"),
        (
            {"lengths": torch.tensor([6, 3])},
            RuntimeError,
            "between 0 and the input's 5 steps, but lengths is \\[6, 3\\]",
        ),
        (
            {"lengths": torch.tensor([5, -1])},
            RuntimeError,
            "between 0 and the input's 5 steps, but lengths is \\[5, -1\\]",
        ),
        (
            {"lengths": torch.tensor([5, 3], device="meta")},
            RuntimeError,
            "on the input's device, cpu, but lengths is on meta",
        ),
        ({"reset": torch.zeros(5, 2)}, TypeError, "reset must be of dtype torch.bool, but reset is torch.float32"),
        (
            {"reset": torch.zeros(2, 5, dtype=torch.bool)},
            RuntimeError,
            "steps and sequences, \\[5, 2\\], got \\[2, 5\\]",
        ),
    ],
)
def test_masks_that_do_not_fit(masks: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ours.GRU(3, 4)(X, **masks)


def test_packed_sequences_that_do_not_fit() -> None:
    packed = packing.pack_padded_sequence(X, torch.tensor([5, 3]))
    layer = ours.LSTM(3, 4)
    with pytest.raises(ValueError, match="lengths is given with a PackedSequence"):
        layer(packed, lengths=torch.tensor([5, 3]))
    with pytest.raises(ValueError, match="reset is given with a PackedSequence"):
        layer(packed, reset=torch.zeros(5, 2, dtype=torch.bool))
    unsorted = packing.PackedSequence(torch.randn(5, 3), torch.tensor([2, 3]))
    with pytest.raises(RuntimeError, match=r"sorted by length.*batch_sizes is \[2, 3\]"):
        layer(unsorted)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 4\)"):
        layer(packed, lstm_states(1, 3))
    with pytest.raises(RuntimeError, match="sorted in decreasing order"):  # torch's own, where the promise is made
        packing.pack_padded_sequence(X, torch.tensor([3, 5]))


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((torch.randn(2, 5),), RuntimeError, "input has inconsistent input_size: got 5 expected 3"),
        ((torch.randn(1, 2, 3),), ValueError, "Expected input to be 1D or 2D, got 3D"),
        (
            (torch.randn(2, 3), (torch.randn(3, 4), torch.randn(3, 4))),
            RuntimeError,
            "Input batch size 2 doesn't match hidden0",
        ),
        (
            (torch.randn(2, 3), (torch.randn(2, 5), torch.randn(2, 4))),
            RuntimeError,
            "hidden0 has inconsistent hidden_size: got 5",
        ),
        (
            (torch.randn(2, 3), (torch.randn(2, 4), torch.randn(2, 5))),
            RuntimeError,
            "hidden1 has inconsistent hidden_size: got 5",
        ),
        (
            (torch.randn(2, 3), (torch.randn(1, 2, 4), torch.randn(2, 4))),
            ValueError,
            "Expected hx\\[0\\] to be 1D or 2D",
        ),
    ],
)
def test_cell_errors_are_torchs(args: tuple[Any, ...], error: type[Exception], words: str) -> None:
    for library in (ours, theirs):
        with pytest.raises(error, match=words):
            library.LSTMCell(3, 4)(*args)


# ---- cells, copies, conversion


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("with_states", [False, True])
def test_cells(name: str, bias: bool, batched: bool, with_states: bool) -> None:
    mine, reference = pair(name, 3, 4, bias, dtype=DOUBLE)
    x = random(2, 3) if batched else random(3)
    hx: Any = None
    if with_states:
        h, c = random(2, 4, seed=1), random(2, 4, seed=2)
        hx = (h, c) if name == "LSTMCell" else h
        if not batched:
            hx = tuple(s[0] for s in hx) if name == "LSTMCell" else hx[0]
    results = []
    for layer in (mine, reference):
        output = layer(x, hx)
        parts = output if isinstance(output, tuple) else (output,)
        results.append((parts, torch.autograd.grad(sum(p.square().sum() for p in parts), list(layer.parameters()))))
    torch.testing.assert_close(*results)
    assert repr(mine) == repr(reference)
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in reference.named_parameters()]


def test_a_loop_of_cells_is_the_layer() -> None:
    layer, cell = ours.LSTM(3, 4, dtype=DOUBLE), ours.LSTMCell(3, 4, dtype=DOUBLE)
    cell.load_state_dict({n.removesuffix("_l0"): p for n, p in layer.state_dict().items()})
    x = random(5, 2, 3)
    y, (h, c) = layer(x)
    states = None
    for t in range(5):
        states = cell(x[t], states)
        torch.testing.assert_close(states[0], y[t])
    torch.testing.assert_close(states, (h[0], c[0]))


class Tagger(theirs.Module):
    """Recurrent layers as people use them."""

    def __init__(self, library: Any = theirs) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = library.LSTM(3, 4, 2, bidirectional=True, batch_first=True)
        self.second = library.GRU(8, 4, batch_first=True)
        self.third = library.RNN(4, 4, nonlinearity="relu", batch_first=True)
        self.cells = theirs.ModuleList([library.LSTMCell(4, 4), library.GRUCell(4, 4), library.RNNCell(4, 4)])
        self.head = library.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.encoder, self.second, self.third):
            layer.flatten_parameters()
            x, _ = layer(x)
        x = self.cells[0](x[:, -1])[0]
        for cell in list(self.cells)[1:]:
            x = cell(x)
        result: torch.Tensor = self.head(x)
        return result


def test_convert_and_revert() -> None:
    model, x = Tagger(), torch.randn(2, 5, 3)
    expected = model(x)
    parameters = dict(model.named_parameters())
    report = ours.convert(model)
    assert not report.kept
    assert len(report.swapped) == 7
    torch.testing.assert_close(model(x), expected)
    assert all(p is parameters[n] for n, p in model.named_parameters())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    model.to(DOUBLE).float()
    model.encoder.weight_ih_l0.data.zero_()
    changed = model(x)
    assert not torch.equal(changed, expected)
    assert not ours.revert(model).kept
    assert type(model.encoder) is theirs.LSTM
    torch.testing.assert_close(model(x), changed)
    model.encoder.flatten_parameters()
    copy.deepcopy(model)


def test_revert_of_layers_that_were_ours_from_the_start() -> None:
    model, x = Tagger(ours), torch.randn(2, 5, 3)
    expected = model(x)
    assert len(ours.revert(model).swapped) == 7
    torch.testing.assert_close(model(x), expected)
    assert repr(model) == repr(Tagger())


def test_revert_keeps_what_torch_has_no_place_for() -> None:
    model = theirs.ModuleList(
        [ours.BiLSTM(3, 4), ours.BiLSTM(3, 4, merge="sum"), ours.GRU(3, 4, 2, input_to_all_layers=True)]
    )
    report = ours.revert(model)
    assert report.swapped == [("0", "tilesmith.nn.BiLSTM", "torch.nn.LSTM")]
    assert report.kept == [
        ("1", "tilesmith.nn.BiLSTM", "merge='sum' does not exist in torch.nn.LSTM"),
        ("2", "tilesmith.nn.GRU", "input_to_all_layers does not exist in torch.nn.GRU"),
    ]


def test_vmap_and_grad_over_parameters_and_examples() -> None:
    layer = ours.LSTM(3, 4, bidirectional=True, dtype=DOUBLE)
    parameters = {n: p.detach() for n, p in layer.named_parameters()}
    x, lengths = random(6, 5, 2, 3), torch.tensor([3, 5])

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return flat(torch.func.functional_call(layer, parameters, (x,), {"lengths": lengths})).square().sum()

    found = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i in range(6):
        expected = torch.autograd.grad(flat(layer(x[i], lengths=lengths)).square().sum(), list(layer.parameters()))
        torch.testing.assert_close([g[i] for g in found.values()], list(expected))


def test_state_of_one_call_feeds_the_next() -> None:
    """Truncated backpropagation: two halves in turn are the whole."""
    layer = ours.LSTM(3, 4, 2, proj_size=2, dtype=DOUBLE)
    x = random(6, 2, 3)
    y, states = layer(x)
    first, between = layer(x[:2])
    second, end = layer(x[2:], between)
    torch.testing.assert_close(torch.cat([first, second]), y)
    torch.testing.assert_close(end, states)
