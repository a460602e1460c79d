"""Where the commands of the autotuner get their calls from: a model, a file of shapes, the standard set, recordings."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .. import nn
from ..autotune import Recording, recorded
from ..autotune.lookup import tables

_DTYPES = ("float32", "float64", "float16", "bfloat16")
_LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class LayerSpec:
    """A layer of ours and what it is called with.

    Attributes:
        layer: as in a program, such as "Conv2d(32, 64, 3, padding=1)".
        input: its shape.
        training: whether the backward counts too.
    """

    layer: str
    input: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "contiguous"
    training: bool = True
    count: int = 1

    def calls(self, device: str) -> Recording:
        """Of one forward and, in training, one backward.

        Raises:
            ValueError: there is no such layer, or it cannot be made or called like that; says which.
        """
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype!r} must be one of {', '.join(_DTYPES)}")
        if self.layout not in _LAYOUTS:
            raise ValueError(f"layout {self.layout!r} must be one of {', '.join(_LAYOUTS)}")
        dtype = getattr(torch, self.dtype)
        name, positional, named = _parsed(self.layer)
        kind = getattr(nn, name, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
            raise ValueError(f"there is no layer {name!r} in tilesmith.nn")
        try:
            layer = kind(*positional, **named).to(device, dtype).train(self.training)
            x = torch.randn(self.input).to(device, dtype)
            if self.layout == "channels_last":
                x = x.to(memory_format=torch.channels_last)
                layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return recorded(layer, x.requires_grad_(self.training), training=self.training)
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"{self.layer} with an input of {self.input}: {error}") from error


def _parsed(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name and arguments of a constructor's call that has only literals."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, [], {}
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError
        named = {k.arg: ast.literal_eval(k.value) for k in tree.keywords if k.arg is not None}
        return tree.func.id, [ast.literal_eval(a) for a in tree.args], named
    except (SyntaxError, ValueError):
        raise ValueError(f'{text!r} is no layer: it must look like "Conv2d(32, 64, 3, padding=1)"') from None


def _standard(batch: int) -> Iterator[LayerSpec]:
    """Layers of well-known networks, and of the tutorial's."""
    for layer, shape in (
        ("Conv2d(1, 32, 3, activation='relu')", (28, 28)),
        ("Conv2d(32, 64, 3, activation='relu')", (13, 13)),
        ("Conv2d(64, 64, 3, padding=1)", (56, 56)),
        ("Conv2d(128, 128, 3, padding=1)", (28, 28)),
        ("Conv2d(128, 128, 3, stride=2, padding=1)", (28, 28)),
        ("Conv2d(64, 256, 1)", (56, 56)),
        ("Conv2d(3, 64, 7, stride=2, padding=3)", (112, 112)),
        ("Conv2d(144, 144, 3, padding=1, groups=144)", (56, 56)),
        ("Conv2d(96, 96, 7, padding=3, groups=96)", (28, 28)),
        ("ConvPool2d(1, 32, 3)", (28, 28)),
        ("ConvPool2d(32, 64, 3)", (13, 13)),
        ("MaxPool2d(2)", (26, 26)),
        ("MaxPool2d(3, 2, 1)", (56, 56)),
        ("AvgPool2d(2)", (56, 56)),
        ("AvgPool2d(3, 1, 1)", (28, 28)),
        ("AdaptiveAvgPool2d(1)", (28, 28)),
        ("AdaptiveMaxPool2d(3)", (14, 14)),
    ):
        name, positional, _ = _parsed(layer)
        channels = positional[0] if name.startswith("Conv") else 64
        for layout in _LAYOUTS:
            yield LayerSpec(layer, (batch, channels, *shape), layout=layout)
    for layer, width in (
        ("Linear(1600, 128)", 1600),
        ("Linear(1024, 1024)", 1024),
        ("Softmax(-1)", 1024),
        ("LogSoftmax(-1)", 1000),
        ("ReLU()", 4096),
        ("Sigmoid()", 4096),
        ("Tanh()", 4096),
    ):
        yield LayerSpec(layer, (4 * batch, width))


@dataclass
class Sources:
    """What the options of a command name; several add up."""

    model: str | None = None
    shapes: Path | None = None
    standard: bool = False
    recorded: bool = False
    training: bool = True
    device: str = "cpu"
    backends: tuple[str, ...] = ()
    words: list[str] = field(default_factory=list)  # what was gathered, for people

    def gathered(self) -> Recording:
        """All calls.

        Raises:
            ValueError: nothing was named, or what was named makes no call that can be tuned.
        """
        if not (self.model or self.shapes or self.standard or self.recorded):
            raise ValueError("say what to tune for: --model, --shapes, --standard or --recorded")
        found = Recording()
        for what, recording in self._each():
            self.words.append(f"{what}: {len(recording)} different calls")
            found.counts.update(recording.counts)
        if not found:
            raise ValueError(f"no call of a kernel that can be tuned in {'; '.join(self.words)}")
        return found

    def _each(self) -> Iterator[tuple[str, Recording]]:
        if self.model:
            yield self.model, self._of_model(self.model)
        if self.shapes:
            yield str(self.shapes), self._of_file(self.shapes)
        if self.standard:
            recording = Recording()
            for spec in _standard(64 if self.device == "cuda" else 8):
                recording.counts.update(replace(spec, training=self.training).calls(self.device).counts)
            yield "the standard layers", recording
        if self.recorded:
            recording = Recording()
            for row in tables().cache.rows():
                if row["kind"] == "call":
                    recording.add(row)
            yield "recorded calls", recording

    def _of_model(self, name: str) -> Recording:
        module, _, attribute = name.partition(":")
        if not attribute:
            raise ValueError(f"--model {name!r} must be MODULE:CALLABLE")
        sys.path.insert(0, os.getcwd())
        try:
            made = getattr(import_module(module), attribute)()
        except AttributeError:
            raise ValueError(f"--model: {module} has no {attribute!r}") from None
        finally:
            sys.path.pop(0)
        if not isinstance(made, tuple) or len(made) < 2:
            raise ValueError(f"--model: {name} must return (model, example, ...), but returned {type(made).__name__}")
        model, *example = made
        if self.device == "cuda":
            model = model.to("cuda")
            example = [t.to("cuda") if isinstance(t, torch.Tensor) else t for t in example]
        return recorded(model, *example, training=self.training)

    def _of_file(self, path: Path) -> Recording:
        """Lines that ``record`` wrote, or ``{"layer": "Conv2d(3, 8, 3)", "input": [1, 3, 32, 32]}`` with dtype,
        layout, training and count as one likes."""
        found = Recording()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if "call" in row:
                    found.add(row)
                    continue
                spec = LayerSpec(**{**row, "input": tuple(row["input"])})
                spec = replace(spec, training=spec.training and self.training)
                for call, count in spec.calls(self.device).counts.items():
                    found.counts[call] += count * spec.count
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
        return found
