"""Fusing: runs of layers in a ``Sequential`` that one kernel computes become one layer, and come apart again.

The first layer of a run computes all of it; the others leave an :class:`Absorbed` in their place, so that positions,
names and the state_dict stay as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..kernels import conv_pool2d
from . import modules

_ACTIVATIONS: dict[type[torch.nn.Module], str] = {
    modules.ReLU: "relu",
    modules.Sigmoid: "sigmoid",
    modules.Tanh: "tanh",
}


class Absorbed(torch.nn.Identity):
    """Stands where a layer was that the layer before it computes as well.

    Attributes:
        layer: what was here. It is no child: it runs no more.
    """

    layer: torch.nn.Module

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)

    def extra_repr(self) -> str:
        return repr(self.layer)


@dataclass(frozen=True)
class Run:
    """Neighbours in a ``Sequential``: the one that computes, and those that it can take in.

    Attributes:
        name: of the first one in the model.
        layers: all of them.
        reason: why they stay apart; ``None`` if they need not.
    """

    name: str
    places: torch.nn.Sequential
    first: int
    layers: tuple[torch.nn.Module, ...]
    reason: str | None

    @property
    def words(self) -> str:
        return " + ".join(type(layer).__name__ for layer in self.layers)


def runs(model: torch.nn.Module) -> Iterator[Run]:
    """Every run of the model's sequences that could be one layer: convolution, activation, 2x2 pooling, in this order
    and each but the first optional; or dense layer and activation."""
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values() if child is not None)
    for name, places in model.named_modules():
        if not isinstance(places, torch.nn.Sequential) or _replaced(places):
            continue
        layers = list(places)
        for i, (own_name, layer) in enumerate(places._modules.items()):
            if type(layer) not in (modules.Conv2d, modules.Linear):
                continue
            run = _run_from(layers, i)
            if len(run) > 1:
                after = layers[i + len(run)] if i + len(run) < len(layers) else None
                reason = _reason_apart(run, uses) or _reason_behind(run, after)
                yield Run(f"{name}.{own_name}" if name else own_name, places, i, run, reason)


def _replaced(places: torch.nn.Sequential) -> bool:
    """Whether its forward is not that of a sequence, in its class or on the instance."""
    return type(places).forward is not torch.nn.Sequential.forward or "forward" in vars(places)


def _run_from(layers: list[torch.nn.Module], i: int) -> tuple[torch.nn.Module, ...]:
    first, following = layers[i], layers[i + 1 :]
    assert isinstance(first, modules.Conv2d | modules.Linear)
    run: list[torch.nn.Module] = [first]
    activation = first.activation
    if activation is None and following and type(following[0]) in _ACTIVATIONS:
        run.append(following.pop(0))
        activation = _ACTIVATIONS[type(run[1])]
    if type(first) is modules.Conv2d and following:
        pool = pooling_of(following[0])
        if pool is not None and modules.ConvPool2d.can_pool(pool, activation):
            run.append(following[0])
    return tuple(run)


def pooling_of(layer: torch.nn.Module) -> str | None:
    """ "max" or "avg" if the layer pools 2x2 windows that do not overlap and gives nothing but the values."""
    if type(layer) not in (modules.MaxPool2d, modules.AvgPool2d):
        return None
    plain = (
        _pair(layer.kernel_size) == (2, 2)
        and (layer.stride is None or _pair(layer.stride) == (2, 2))
        and _pair(layer.padding) == (0, 0)
        and not layer.ceil_mode
    )
    if isinstance(layer, modules.MaxPool2d):
        return "max" if plain and _pair(layer.dilation) == (1, 1) and not layer.return_indices else None
    return "avg" if plain and layer.divisor_override is None else None


def _pair(value: object) -> object:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _reason_apart(run: tuple[torch.nn.Module, ...], uses: Counter[int]) -> str | None:
    first, *others = run
    for layer in run:
        name = type(layer).__name__
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            return f"the {name} has hooks, which would see something else"
        if "forward" in vars(layer):
            return f"the forward of the {name} is replaced on the instance"
    if uses[id(first)] > 1:
        return f"the {type(first).__name__} is used in several places"
    device = next(first.parameters()).device.type
    if len(run) > 1 and pooling_of(others[-1]) and device != "meta" and not conv_pool2d.OPERATION.serves(device):
        return f"no backend serves {conv_pool2d.OPERATION.name} on {device}"
    return None


def _reason_behind(run: tuple[torch.nn.Module, ...], after: torch.nn.Module | None) -> str | None:
    """A fused pooling keeps its output for the backward, where the layers one by one keep other tensors."""
    if pooling_of(run[-1]) == "max" and getattr(after, "inplace", False):
        return f"the {type(after).__name__} behind it works in place, on what the backward needs"
    return None


def join(run: Run) -> str:
    """Makes one layer of a run, in place. Returns the name of its class."""
    first, *others = run.layers
    assert isinstance(first, modules.Conv2d | modules.Linear)
    for number, layer in enumerate(others, run.first + 1):
        if type(layer) in _ACTIVATIONS:
            first.activation = _ACTIVATIONS[type(layer)]
        else:
            first.__class__ = modules.ConvPool2d
            first.pool = pooling_of(layer)  # type: ignore[assignment]
        run.places[number] = Absorbed(layer)
    return type(first).__name__


def part(model: torch.nn.Module) -> None:
    """Undoes every :func:`join` in the model."""
    for places in model.modules():
        if not isinstance(places, torch.nn.Sequential):
            continue
        first: torch.nn.Module | None = None
        for i, layer in enumerate(list(places)):
            if not isinstance(layer, Absorbed):
                first = layer
                continue
            if not isinstance(first, modules.Conv2d | modules.Linear):
                raise ValueError(
                    f"place {i} of a Sequential holds the {type(layer.layer).__name__} of a layer that is not here: "
                    "revert the model that was converted, not a slice of it"
                )
            layer.layer.train(layer.training)
            if type(layer.layer) in _ACTIVATIONS:
                first.activation = None
            else:
                first.__class__ = modules.Conv2d
                del first.pool
            places[i] = layer.layer
