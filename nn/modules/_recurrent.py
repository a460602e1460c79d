"""What RNN, GRU and LSTM share: parameters, checks, packed sequences, and the way through the layers."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from .. import functional as F
from .. import functions

_CELLS = {"RNN_TANH": "tanh", "RNN_RELU": "relu", "GRU": "gru", "LSTM": "lstm"}
_GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4}
_MEMORY = ("store", "recompute")

Device = torch.device | str | None
States = tuple[torch.Tensor, ...]


class Recurrent(torch.nn.Module):
    """What RNN, LSTM and GRU share. Not a subclass of torch's: that one breaks ``torch.compile``."""

    __constants__ = torch.nn.RNNBase.__constants__

    # absent on a layer that `convert` took over from torch
    input_to_all_layers: bool = False
    activation_memory: str = "store"

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: Device,
        dtype: torch.dtype | None,
        input_to_all_layers: bool,
        activation_memory: str,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = _checked_dropout(dropout, num_layers)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self._check_sizes()
        if activation_memory not in _MEMORY:
            raise ValueError(f"activation_memory is {activation_memory!r}, it must be 'store' or 'recompute'")
        if input_to_all_layers:
            self.input_to_all_layers = True
        if activation_memory != "store":
            self.activation_memory = activation_memory
        self._flat_weights_names: list[str] = []
        self._all_weights: list[list[str]] = []
        rows = _GATES[mode] * hidden_size
        width = proj_size or hidden_size
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            columns = input_size
            if layer > 0:
                columns = width * directions + (input_size if input_to_all_layers else 0)
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, columns), "weight_hh": (rows, width)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            if proj_size:
                shapes["weight_hr"] = (proj_size, hidden_size)
            for suffix in _suffixes(bidirectional):
                names = [f"{name}_l{layer}{suffix}" for name in shapes]
                for name, shape in zip(names, shapes.values(), strict=True):
                    setattr(self, name, torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
                self._flat_weights_names += names
                self._all_weights.append(names)
        self.reset_parameters()

    def _check_sizes(self) -> None:
        for name in ("bias", "batch_first"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} should be of type bool, got: {type(getattr(self, name)).__name__}")
        for name in ("input_size", "hidden_size"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{name} should be of type int, got: {type(getattr(self, name)).__name__}")
        for name in ("input_size", "hidden_size", "num_layers"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than zero, but {name} is {getattr(self, name)}")
        if self.proj_size < 0:
            raise ValueError(f"proj_size should be a positive integer or zero (no projection), but is {self.proj_size}")
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size has to be smaller than hidden_size, but they are {self.proj_size} and {self.hidden_size}"
            )

    def reset_parameters(self) -> None:
        """Draws every parameter from U(-1/√H, 1/√H), as torch does."""
        draw_uniformly(self)

    def flatten_parameters(self) -> None:
        """Nothing: the kernels take parameters where they lie. For code that calls it on torch's layers."""

    @property
    def all_weights(self) -> list[list[torch.nn.Parameter]]:
        """The parameters of each layer and direction, in torch's order."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def extra_repr(self) -> str:
        described = f"{self.input_size}, {self.hidden_size}"
        for name, usual in (
            ("proj_size", 0),
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0),
            ("bidirectional", False),
            ("input_to_all_layers", False),
            ("activation_memory", "store"),
        ):
            if getattr(self, name) != usual:
                described += f", {name}={getattr(self, name)}"
        return described

    # ---- forward

    def _run(
        self,
        input: torch.Tensor | PackedSequence,
        hx: States | None,
        lengths: torch.Tensor | None,
        reset: torch.Tensor | None,
    ) -> tuple[Any, States]:
        if isinstance(input, PackedSequence):
            return self._run_packed(input, hx, lengths, reset)
        name = type(self).__name__
        F._check_tensor(name, "input", input)
        if input.dim() not in (2, 3):
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        for state in hx or ():
            if state.dim() != input.dim():
                kind = f"{'batched' if batched else 'unbatched'} {input.dim()}-D"
                raise RuntimeError(
                    f"For {kind} input, hx should also be {input.dim()}-D but got {state.dim()}-D tensor"
                )
        if batched:
            x = input.transpose(0, 1) if self.batch_first else input
            reset = reset.transpose(0, 1) if reset is not None and reset.dim() == 2 and self.batch_first else reset
        else:
            x = input.unsqueeze(1)
            hx = None if hx is None else tuple(state.unsqueeze(1) for state in hx)
            lengths = lengths.reshape(1) if lengths is not None and lengths.dim() == 0 else lengths
            reset = reset.unsqueeze(1) if reset is not None and reset.dim() == 1 else reset
        self._check_input(x)
        if x.shape[0] == 0:
            raise RuntimeError(f"Expected sequence length to be larger than 0 in RNN, but input is {list(input.shape)}")
        lengths, reset = _checked_lengths(lengths, x), _checked_reset(reset, x)
        hx = self._states(x, hx)
        y, hx = self._layers(x, hx, lengths, reset, None)
        if not batched:
            return y.squeeze(1), tuple(state.squeeze(1) for state in hx)
        return y.transpose(0, 1) if self.batch_first else y, hx

    def _run_packed(
        self,
        input: PackedSequence,
        hx: States | None,
        lengths: torch.Tensor | None,
        reset: torch.Tensor | None,
    ) -> tuple[PackedSequence, States]:
        if lengths is not None or reset is not None:
            which = "lengths" if lengths is not None else "reset"
            raise ValueError(
                f"{which} is given with a PackedSequence, which has lengths of its own: pass a padded tensor"
            )
        data, batch_sizes, by_length, as_given = input
        if data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
        if bool((batch_sizes[1:] > batch_sizes[:-1]).any()):
            raise RuntimeError(
                f"a PackedSequence is sorted by length, longest first, so batch_sizes must not increase, "
                f"but batch_sizes is {batch_sizes.tolist()}"
            )
        self._check_input(data)
        x, sizes = torch.nn.utils.rnn.pad_packed_sequence(PackedSequence(data, batch_sizes))
        hx = self._states(x, None if hx is None else _permuted(hx, by_length))
        y, hx = self._layers(x, hx, sizes.to(x.device), None, batch_sizes)
        data = torch.nn.utils.rnn.pack_padded_sequence(y, sizes).data
        return PackedSequence(data, batch_sizes, by_length, as_given), _permuted(hx, as_given)

    def _check_input(self, x: torch.Tensor) -> None:
        weight = self.weight_ih_l0
        F._check_dtype(type(self).__name__, x, F.FLOATS)
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
            )
        if x.device != weight.device:
            raise RuntimeError(f"input is on {x.device} and the parameters are on {weight.device}")
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )

    def _states(self, x: torch.Tensor, hx: States | None) -> States:
        """The initial states, checked, ``[L·D, B, P]`` and an LSTM's ``[L·D, B, H]``; zeros where none are given."""
        rows = self.num_layers * (2 if self.bidirectional else 1)
        widths = [self.proj_size or self.hidden_size] + [self.hidden_size] * (self.mode == "LSTM")
        if hx is None:
            return tuple(x.new_zeros(rows, x.shape[1], width) for width in widths)
        for i, (state, width) in enumerate(zip(hx, widths, strict=True)):
            which = f"hidden[{i}]" if len(widths) > 1 else "hidden"
            expected = (rows, x.shape[1], width)
            if tuple(state.shape) != expected:
                raise RuntimeError(f"Expected {which} size {expected}, got {list(state.shape)}")
            if state.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                raise RuntimeError(f"{which} is {state.dtype}, it must be of the input's dtype, {x.dtype}")
            if state.device != x.device:
                raise RuntimeError(f"{which} is on {state.device} and input is on {x.device}")
        return hx

    def _layers(
        self,
        x: torch.Tensor,
        hx: States,
        lengths: torch.Tensor | None,
        reset: torch.Tensor | None,
        batch_sizes: torch.Tensor | None,
    ) -> tuple[torch.Tensor, States]:
        """All layers of ``x [T, B, I]``: the last one's output, and the last states of each."""
        directions = 2 if self.bidirectional else 1
        last = []
        y = x
        for layer in range(self.num_layers):
            if layer > 0:
                if self.training and self.dropout > 0:
                    y = self._dropped(y, batch_sizes)
                if self.input_to_all_layers:
                    y = torch.cat([y, x.to(y.dtype)], dim=2)
            states = [state[layer * directions : (layer + 1) * directions] for state in hx]
            y, *ends = apply_layer(
                _CELLS[self.mode],
                y,
                states,
                [self._parameters_of(layer, suffix) for suffix in _suffixes(self.bidirectional)],
                lengths,
                reset,
                self.activation_memory,
            )
            last.append(ends)
        if self.num_layers == 1:
            return y, tuple(last[0])
        return y, tuple(torch.cat(states) for states in zip(*last, strict=True))

    def _dropped(self, y: torch.Tensor, batch_sizes: torch.Tensor | None) -> torch.Tensor:
        """Dropout that draws what torch's draws from the same seed: packed sequences draw for their packed steps."""
        if batch_sizes is None:
            return torch.nn.functional.dropout(y, self.dropout)
        drawn = torch.nn.functional.dropout(y.new_ones(int(batch_sizes.sum()), y.shape[2]), self.dropout)
        return y * torch.nn.utils.rnn.pad_packed_sequence(PackedSequence(drawn, batch_sizes))[0]

    def _parameters_of(self, layer: int, suffix: str) -> list[torch.Tensor | None]:
        """weight_ih, weight_hh, bias_ih, bias_hh, weight_hr."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        there = (True, True, self.bias, self.bias, self.proj_size > 0)
        return [
            getattr(self, f"{n}_l{layer}{suffix}") if is_there else None
            for n, is_there in zip(names, there, strict=True)
        ]

    # ---- taken over from torch's class, and given back

    def take_over(self) -> None:
        """Forgets what torch's class kept beside the parameters; weak references could not be pickled."""
        for name in ("_flat_weights", "_flat_weight_refs"):
            self.__dict__.pop(name, None)


def apply_layer(
    cell: str,
    x: torch.Tensor,
    states: list[torch.Tensor],
    parameters: list[list[torch.Tensor | None]],
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    activation_memory: str,
) -> States:
    """One layer, in one direction or both: ``x [T, B, I]`` to y, h_n and an LSTM's c_n."""
    w_ih, w_hh, b_ih, b_hh, w_hr = (_stacked(of_directions) for of_directions in zip(*parameters, strict=True))
    bias = bias_n = None
    if b_ih is not None and b_hh is not None:
        bias = b_ih + b_hh
        if cell == "gru":  # what the state adds to the candidate passes the reset gate, its bias included
            H = b_hh.shape[1] // 3
            bias = torch.cat([bias[:, : 2 * H], b_ih[:, 2 * H :]], dim=1)
            bias_n = b_hh[:, 2 * H :]
    h0, c0 = states[0], states[1] if len(states) > 1 else None
    operands = F._autocast(x, h0, c0, w_ih, w_hh, bias, bias_n, w_hr)
    return functions.rnn(*[*operands, lengths, reset, cell, activation_memory])


def _stacked(of_directions: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
    tensors = [t for t in of_directions if t is not None]
    return functions.stack_directions(tensors) if tensors else None


def _suffixes(bidirectional: bool) -> tuple[str, ...]:
    return ("", "_reverse") if bidirectional else ("",)


def _permuted(hx: States, order: torch.Tensor | None) -> States:
    return hx if order is None else tuple(state.index_select(1, order) for state in hx)


def draw_uniformly(module: torch.nn.Module) -> None:
    bound = 1 / math.sqrt(module.hidden_size)  # type: ignore[arg-type]
    for parameter in module.parameters(recurse=False):
        torch.nn.init.uniform_(parameter, -bound, bound)


def _checked_dropout(dropout: Any, num_layers: int) -> float:
    if not isinstance(dropout, numbers.Real) or isinstance(dropout, bool) or not 0 <= float(dropout) <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed, "
            f"but dropout is {dropout!r}"
        )
    if float(dropout) > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers "
            f"greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=4,
        )
    return float(dropout)


def _checked_lengths(lengths: Any, x: torch.Tensor) -> torch.Tensor | None:
    """int64 ``[B]``; their values are checked where they are read, in the op."""
    if lengths is None:
        return None
    F._check_tensor("forward", "lengths", lengths)
    if lengths.dtype not in F.INTEGERS:
        raise TypeError(f"lengths must be of an integer dtype, but lengths is {lengths.dtype}")
    if tuple(lengths.shape) != (x.shape[1],):
        raise RuntimeError(
            f"lengths must have one number for each of {x.shape[1]} sequences, got {list(lengths.shape)}"
        )
    if lengths.device != x.device:
        raise RuntimeError(f"lengths must be on the input's device, {x.device}, but lengths is on {lengths.device}")
    return lengths.to(torch.int64)


def _checked_reset(reset: Any, x: torch.Tensor) -> torch.Tensor | None:
    if reset is None:
        return None
    F._check_tensor("forward", "reset", reset)
    if reset.dtype is not torch.bool:
        raise TypeError(f"reset must be of dtype torch.bool, but reset is {reset.dtype}")
    if reset.shape != x.shape[:2]:
        raise RuntimeError(
            f"reset must have the input's steps and sequences, {list(x.shape[:2])}, got {list(reset.shape)}"
        )
    if reset.device != x.device:
        raise RuntimeError(f"reset must be on the input's device, {x.device}, but reset is on {reset.device}")
    return reset
