"""``convert(model)`` swaps torch.nn layers for ours in place; ``revert(model)`` swaps them back.

A swap changes the module's class and nothing else: the object, its parameters, buffers, hooks, training mode and memory
format stay, so optimizers, tied weights and references to the module elsewhere go on working. With ``fuse=True`` runs
of layers become one besides (:mod:`.fuse`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .. import kernels
from ..kernels import activation, conv2d, linear, pool2d, rnn, softmax
from ..kernels.backends import Operation
from . import functional, modules
from . import fuse as fusing
from .modules._recurrent import Recurrent

__all__ = ["ConversionReport", "convert", "revert"]

_SWAPS: dict[type[torch.nn.Module], tuple[type[torch.nn.Module], Operation]] = {
    torch.nn.Conv2d: (modules.Conv2d, conv2d.OPERATION),
    torch.nn.Linear: (modules.Linear, linear.OPERATION),
    torch.nn.MaxPool2d: (modules.MaxPool2d, pool2d.OPERATION),
    torch.nn.AvgPool2d: (modules.AvgPool2d, pool2d.OPERATION),
    torch.nn.AdaptiveMaxPool2d: (modules.AdaptiveMaxPool2d, pool2d.OPERATION),
    torch.nn.AdaptiveAvgPool2d: (modules.AdaptiveAvgPool2d, pool2d.OPERATION),
    torch.nn.ReLU: (modules.ReLU, activation.OPERATION),
    torch.nn.Sigmoid: (modules.Sigmoid, activation.OPERATION),
    torch.nn.Tanh: (modules.Tanh, activation.OPERATION),
    torch.nn.Softmax: (modules.Softmax, softmax.OPERATION),
    torch.nn.LogSoftmax: (modules.LogSoftmax, softmax.OPERATION),
    torch.nn.RNN: (modules.RNN, rnn.OPERATION),
    torch.nn.LSTM: (modules.LSTM, rnn.OPERATION),
    torch.nn.GRU: (modules.GRU, rnn.OPERATION),
    torch.nn.RNNCell: (modules.RNNCell, rnn.OPERATION),
    torch.nn.LSTMCell: (modules.LSTMCell, rnn.OPERATION),
    torch.nn.GRUCell: (modules.GRUCell, rnn.OPERATION),
}
_BACK = {ours: theirs for theirs, (ours, _) in _SWAPS.items()} | {modules.BiLSTM: torch.nn.LSTM}


@dataclass
class ConversionReport:
    """What was swapped and what was not.

    Attributes:
        swapped: (name in the model, class before, class after) of each.
        kept: (name, class, reason) of each layer that could not be swapped.
        fused: (name of the first, the layers, class after) of each run that became one layer.
        unfused: (name of the first, the layers, reason) of each run that could not.
    """

    swapped: list[tuple[str, str, str]] = field(default_factory=list)
    kept: list[tuple[str, str, str]] = field(default_factory=list)
    fused: list[tuple[str, str, str]] = field(default_factory=list)
    unfused: list[tuple[str, str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        fused = f", {len(self.fused)} runs fused" if self.fused or self.unfused else ""
        lines = [f"{len(self.swapped)} layers swapped, {len(self.kept)} kept{fused}"]
        lines += [f"  swapped  {name or '(the model)'}: {before} -> {after}" for name, before, after in self.swapped]
        lines += [f"  kept     {name or '(the model)'}: {layer}: {reason}" for name, layer, reason in self.kept]
        lines += [f"  fused    {name}: {layers} -> {after}" for name, layers, after in self.fused]
        lines += [f"  apart    {name}: {layers}: {reason}" for name, layers, reason in self.unfused]
        return "\n".join(lines)


def convert(model: torch.nn.Module, fuse: bool = False) -> ConversionReport:
    """Swaps every layer it can, in place; a layer used in several places is swapped once.

    What a model calls as a function (``torch.nn.functional.relu``) is not a layer and stays torch's.

    Args:
        model: any module; it may itself be a layer.
        fuse: also makes one layer of a convolution, the activation and the 2x2 max or average pooling that follow it in
            a ``Sequential`` (the last two optional), and of a dense layer and its activation. The first layer computes
            all; the others become :class:`~tilesmith.nn.fuse.Absorbed` in their places, so the state_dict stays the
            same. Results are the same too; what lay between the layers is no longer stored.

    Returns:
        What was swapped, and what was not and why. Layers that already are ours are in neither list.
    """
    device = next((p.device.type for p in model.parameters()), "cpu")
    report = _swap(model, lambda module: _ours(module, device))
    for run in fusing.runs(model) if fuse else ():
        if run.reason is None:
            report.fused.append((run.name, run.words, f"tilesmith.nn.{fusing.join(run)}"))
        else:
            report.unfused.append((run.name, run.words, run.reason))
    return report


def revert(model: torch.nn.Module) -> ConversionReport:
    """Undoes :func:`convert`, fusing included, in place, for every layer of ours that torch's class can express.

    A layer made with a fused activation or pooling, or a padding torch's constructor does not know, is kept, and the
    report says so.
    """
    fusing.part(model)
    return _swap(model, _theirs)


Decision = type[torch.nn.Module] | str | None  # the class to take, the reason to keep the layer, or nothing to say


def _swap(model: torch.nn.Module, decide: Callable[[torch.nn.Module], Decision]) -> ConversionReport:
    report = ConversionReport()
    for name, module in model.named_modules():
        decision = decide(module)
        before = _class_name(type(module))
        if isinstance(decision, str):
            report.kept.append((name, before, decision))
        elif decision is not None:
            module.__class__ = decision
            if isinstance(module, Recurrent):
                module.take_over()
            elif isinstance(module, torch.nn.RNNBase):
                module._init_flat_weights()  # torch's class keeps its parameters in a list as well
            report.swapped.append((name, before, _class_name(decision)))
    return report


def _ours(module: torch.nn.Module, device: str) -> Decision:
    layer = type(module)
    if layer in _BACK or layer in (modules.ConvPool2d, fusing.Absorbed):
        return None
    if layer not in _SWAPS:
        return _reason_kept(module)
    ours, operation = _SWAPS[layer]
    parameter = next(module.parameters(recurse=False), None)
    if parameter is not None:
        device = parameter.device.type
        if parameter.dtype not in functional.FLOATS:
            return f"its parameters are {parameter.dtype}, which no backend computes"
    if "forward" in vars(module):
        return "its forward is replaced on the instance"
    if device != "meta" and not operation.serves(device):
        available = ", ".join(kernels.available())
        return f"no backend serves {operation.name} on {device} (available here: {available})"
    return ours


def _reason_kept(module: torch.nn.Module) -> str | None:
    layer = type(module)
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "it is parametrized: its class is made for it"
    if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin):
        return "it is lazy and has no parameters yet: convert after the first forward"
    parent = next((base for base in layer.__mro__[1:] if base in _SWAPS), None)
    if parent is not None:
        return f"it is a subclass of {_class_name(parent)}, whose behaviour may differ"
    if next(module.children(), None) is None and layer.__module__.startswith("torch.nn.modules"):
        return None if isinstance(module, torch.nn.Identity | torch.nn.Flatten) else "this library has no such layer"
    return None


def _theirs(module: torch.nn.Module) -> Decision:
    if isinstance(module, modules.ConvPool2d):
        return f"its fused pooling ({module.pool}) has no place in torch.nn.Conv2d"
    theirs = _BACK.get(type(module))
    if theirs is None:
        return None
    if getattr(module, "activation", None) is not None:
        return f"its fused activation ({module.activation}) has no place in {_class_name(theirs)}"
    if isinstance(module, modules.Conv2d):
        if not isinstance(module.padding, str) and not all(isinstance(p, int) for p in module.padding):
            return f"its padding {module.padding} differs from side to side"
        if module.padding == "same" and max(module.stride) > 1:
            return f"padding='same' with stride {module.stride} does not exist in {_class_name(theirs)}"
    if getattr(module, "merge", "concat") != "concat":
        return f"merge={module.merge!r} does not exist in {_class_name(theirs)}"
    if getattr(module, "input_to_all_layers", False):
        return f"input_to_all_layers does not exist in {_class_name(theirs)}"
    return theirs


def _class_name(layer: type[torch.nn.Module]) -> str:
    library = "torch.nn" if layer.__module__.startswith("torch.nn") else layer.__module__.partition(".")[0]
    return f"{'tilesmith.nn' if library == 'tilesmith' else library}.{layer.__name__}"
