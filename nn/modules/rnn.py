"""Recurrent layers: torch's RNN, GRU and LSTM on this library's kernels, and the tutorial's BiLSTM."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from ._recurrent import Device, Recurrent
from .linear import Linear


class RNN(Recurrent):
    """Elman's recurrent layer, ``h_t = act(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``; see ``torch.nn.RNN``.

    Same parameters, same initial values from the same seed, same state_dict. What goes beyond torch is keyword-only:
    ``input_to_all_layers`` and ``activation_memory`` (see :class:`LSTM`), and in the call ``lengths`` and ``reset``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        input_to_all_layers: bool = False,
        activation_memory: str = "store",
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            input_to_all_layers,
            activation_memory,
        )
        self.nonlinearity = nonlinearity

    def forward(
        self,
        input: torch.Tensor | PackedSequence,
        hx: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
        reset: torch.Tensor | None = None,
    ) -> tuple[Any, torch.Tensor]:
        output, (h_n,) = self._run(input, None if hx is None else (hx,), lengths, reset)
        return output, h_n


class GRU(Recurrent):
    """Gated recurrent unit, in the form whose reset gate follows the product with the state; see ``torch.nn.GRU``.

    Same parameters, same initial values from the same seed, same state_dict. What goes beyond torch is keyword-only:
    ``input_to_all_layers`` and ``activation_memory`` (see :class:`LSTM`), and in the call ``lengths`` and ``reset``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        input_to_all_layers: bool = False,
        activation_memory: str = "store",
    ) -> None:
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            input_to_all_layers,
            activation_memory,
        )

    def forward(
        self,
        input: torch.Tensor | PackedSequence,
        hx: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
        reset: torch.Tensor | None = None,
    ) -> tuple[Any, torch.Tensor]:
        output, (h_n,) = self._run(input, None if hx is None else (hx,), lengths, reset)
        return output, h_n


class LSTM(Recurrent):
    """Long short-term memory with forget gate, optionally projected; see ``torch.nn.LSTM``.

    ``c_t = f ⊙ c_{t-1} + i ⊙ g``, ``h_t = o ⊙ tanh(c_t)`` with gates of ``W_ih x_t + b_ih + W_hh h_{t-1} + b_hh``
    (Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000). Same parameters, same initial values from the
    same seed, same state_dict, same errors.

    Beyond torch, keyword-only:
        ``input_to_all_layers``: each layer above the first sees ``[output of the layer below, input]``.
        ``activation_memory``: "store" keeps the gates for the backward, ``T·B·D·4·H`` elements; "recompute" does not,
        and the backward computes them again: the states are known by then, so that is a product, not another walk.

    In the call, keyword-only:
        ``lengths``: integers ``[B]`` from 0 to T on the input's device. The output is zero behind a sequence's end, the
        last states are those at its end, the second direction starts there, and what the input has there (NaN, too) is
        never read into a result. A sequence of no steps keeps its initial state.
        ``reset``: bool ``[T, B]`` (``[B, T]`` with ``batch_first``, ``[T]`` unbatched): at these steps a new sequence
        starts in the place of the old one, from states of zero; backwards in time the old one does.

    Differs from torch in one way: under autocast it computes in the autocast dtype on every device, as torch's does on
    CUDA.

    Raises:
        RuntimeError: shapes, dtypes, devices or lengths that do not fit.
        TypeError: an argument of the wrong type.
        ValueError: sizes, dropout or names that do not exist; an input that is not 2-D or 3-D.
        BackendUnavailable: no backend can serve the input's device.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        input_to_all_layers: bool = False,
        activation_memory: str = "store",
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            input_to_all_layers,
            activation_memory,
        )

    def forward(
        self,
        input: torch.Tensor | PackedSequence,
        hx: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        lengths: torch.Tensor | None = None,
        reset: torch.Tensor | None = None,
    ) -> tuple[Any, tuple[torch.Tensor, torch.Tensor]]:
        output, (h_n, c_n) = self._run(input, hx, lengths, reset)
        return output, (h_n, c_n)


MERGES = ("concat", "sum", "mean", "gated")


class BiLSTM(LSTM):
    """A bidirectional :class:`LSTM` whose two directions are merged; P is ``proj_size`` or ``hidden_size``.

    ``merge``, keyword-only:
        "concat": ``[h_forward, h_backward]``, ``2·P`` wide: exactly ``LSTM(bidirectional=True)``, state_dict included.
        "sum", "mean": their sum or mean, P wide.
        "gated": the tutorial's mixing gate, P wide. The concatenated directions feed a further LSTM (``mixer``), and
        ``σ(W_f·h_backward + W_i·h_forward + W_o·h_merged + b) ⊙ h_forward`` is the output; ``gate.weight [P, 3·P]``
        holds W_f, W_i and W_o side by side. The mixer starts from zeros in each call.

    Takes and returns what :class:`LSTM` does; the states are those of the two directions.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        merge: str = "concat",
        input_to_all_layers: bool = False,
        activation_memory: str = "store",
    ) -> None:
        if merge not in MERGES:
            raise ValueError(f"merge is {merge!r}, it must be one of {', '.join(map(repr, MERGES))}")
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            True,
            proj_size,
            device,
            dtype,
            input_to_all_layers=input_to_all_layers,
            activation_memory=activation_memory,
        )
        self.merge = merge
        if merge == "gated":
            width = proj_size or hidden_size
            self.mixer = LSTM(
                2 * width, width, 1, bias, batch_first, device=device, dtype=dtype, activation_memory=activation_memory
            )
            self.gate = Linear(3 * width, width, bias, device, dtype, activation="sigmoid")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, merge={self.merge}"

    def forward(
        self,
        input: torch.Tensor | PackedSequence,
        hx: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        lengths: torch.Tensor | None = None,
        reset: torch.Tensor | None = None,
    ) -> tuple[Any, tuple[torch.Tensor, torch.Tensor]]:
        output, states = super().forward(input, hx, lengths=lengths, reset=reset)
        if self.merge == "concat":
            return output, states
        mixed = self.mixer(output, lengths=lengths, reset=reset)[0] if self.merge == "gated" else None
        if isinstance(output, PackedSequence):
            data = self._merged(output.data, None if mixed is None else mixed.data)
            return PackedSequence(data, *output[1:]), states
        return self._merged(output, mixed), states

    def _merged(self, both: torch.Tensor, mixed: torch.Tensor | None) -> torch.Tensor:
        forward, backward = both.chunk(2, dim=-1)
        if mixed is None:
            return forward + backward if self.merge == "sum" else (forward + backward) / 2
        opened: torch.Tensor = self.gate(torch.cat([backward, forward, mixed], dim=-1))
        return opened * forward
