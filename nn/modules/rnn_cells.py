"""One step of a recurrent layer: torch's RNNCell, GRUCell and LSTMCell on this library's kernels."""

from __future__ import annotations

import torch

from .. import functional as F
from ._recurrent import Device, States, apply_layer, draw_uniformly


class _RecurrentCell(torch.nn.Module):
    """What the three cells share: one step of a layer."""

    __constants__ = torch.nn.RNNCellBase.__constants__

    weight_ih: torch.nn.Parameter
    weight_hh: torch.nn.Parameter
    bias_ih: torch.nn.Parameter | None
    bias_hh: torch.nn.Parameter | None

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, gates: int, device: Device, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = gates * hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size)}
        for name, shape in shapes.items():
            setattr(self, name, torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        for name in ("bias_ih", "bias_hh"):
            parameter = torch.nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every parameter from U(-1/√H, 1/√H), as torch does."""
        if self.hidden_size > 0:
            draw_uniformly(self)

    def extra_repr(self) -> str:
        described = f"{self.input_size}, {self.hidden_size}"
        if self.bias is not True:
            described += f", bias={self.bias}"
        if getattr(self, "nonlinearity", "tanh") != "tanh":
            described += f", nonlinearity={self.nonlinearity}"
        return described

    def _run(self, cell: str, input: torch.Tensor, hx: States | None, states: int) -> States:
        name = type(self).__name__
        F._check_tensor(name, "input", input)
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for i, state in enumerate(hx or ()):
            which = f"hx[{i}]" if states > 1 else "hidden"
            if state.dim() not in (1, 2):
                raise ValueError(f"{name}: Expected {which} to be 1D or 2D, got {state.dim()}D instead")
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        F._check_dtype(name, x, F.FLOATS)
        if x.shape[1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {self.input_size}")
        if x.dtype != self.weight_ih.dtype and not torch.is_autocast_enabled(x.device.type):
            raise RuntimeError(
                f"input is {x.dtype} and the parameters are {self.weight_ih.dtype}: they must be the same"
            )
        if hx is None:
            hx = tuple(x.new_zeros(len(x), self.hidden_size) for _ in range(states))
        elif not batched:
            hx = tuple(state.unsqueeze(0) for state in hx)
        for i, state in enumerate(hx):
            if state.dim() != 2 or len(state) != len(x):
                raise RuntimeError(f"Input batch size {len(x)} doesn't match hidden{i} batch size {len(state)}")
            if state.shape[1] != self.hidden_size:
                raise RuntimeError(
                    f"hidden{i} has inconsistent hidden_size: got {state.shape[1]}, expected {self.hidden_size}"
                )
            if state.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                raise RuntimeError(f"hidden{i} is {state.dtype}, it must be of the input's dtype, {x.dtype}")
        parameters: list[torch.Tensor | None] = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, None]
        _, *ends = apply_layer(cell, x[None], [state[None] for state in hx], [parameters], None, None, "store")
        return tuple(end[0] if batched else end[0, 0] for end in ends)


class RNNCell(_RecurrentCell):
    """One step of :class:`RNN`; see ``torch.nn.RNNCell``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> torch.Tensor:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._run(self.nonlinearity, input, None if hx is None else (hx,), 1)[0]


class GRUCell(_RecurrentCell):
    """One step of :class:`GRU`; see ``torch.nn.GRUCell``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input: torch.Tensor, hx: torch.Tensor | None = None) -> torch.Tensor:
        return self._run("gru", input, None if hx is None else (hx,), 1)[0]


class LSTMCell(_RecurrentCell):
    """One step of :class:`LSTM`; see ``torch.nn.LSTMCell``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(
        self, input: torch.Tensor, hx: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h, c = self._run("lstm", input, hx, 2)
        return h, c
