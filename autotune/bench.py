"""One call of a kernel on tensors of its own: is a configuration right, and how long does it take.

Tensors lie inside larger buffers. What surrounds inputs is NaN, what surrounds outputs a pattern, and outputs are NaN
before each run: a kernel that reads or writes outside, or leaves something out, is found whatever it computes. Results
are compared with the NumPy backend's in float64 and, bit by bit, with those of a second run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from statistics import median
from typing import Any

import torch

from .calls import Call, Tensors, TensorSpec, operation_of, unnoticed
from .resolve import pinned_here, watched
from .space import Config, Tunable

_ZONE_BYTES = 1024  # around each tensor
_PATTERN = 0xA5
_ALIGNMENT = 256  # of a tensor that is not misaligned, as allocators give it
# A reference of more arithmetic than this is the default's own result instead: NumPy would take minutes.
_MOST_REFERENCE_FLOPS = 2e11
_ROUNDINGS = 8.0  # of the result's dtype and its largest element, beside those of a sum
_AGAINST_DEFAULT = 4.0  # times the default's own error

_SAMPLE_SECONDS = 2e-4  # that one sample takes at least: shorter calls are repeated in it
_SAMPLING_SECONDS = 0.25  # that samples of one configuration take, beyond the least number of them
_LEAST_SAMPLES = 5
_GRAPH_BELOW = 50e-6  # calls shorter than that are timed inside a CUDA graph
_GRAPH_CALLS = 20

_COMPILE_ERRORS = ("CompilationError", "CompileTimeAssertionFailure", "PTXASError", "CompileException", "NVRTCError",
                   "UnsupportedLanguageConstruct")  # fmt: skip
_RESOURCE_ERRORS = ("OutOfResources", "OutOfMemoryError", "MemoryError")


@dataclass(frozen=True)
class Verdict:
    """Whether a configuration computes what it must: a status of the cache's rows, and why."""

    status: str = "ok"
    reason: str = ""


@dataclass(frozen=True)
class Guarded:
    """A tensor inside a buffer."""

    tensor: torch.Tensor
    buffer: torch.Tensor  # bytes

    @classmethod
    def empty(cls, spec: TensorSpec, device: str, *, nan: bool) -> Guarded:
        size = spec.torch_dtype.itemsize
        before = -(-_ZONE_BYTES // _ALIGNMENT) * _ALIGNMENT + spec.misaligned * size
        count = before + max(spec.span, 1) * size + _ZONE_BYTES
        buffer = torch.empty(count + _ALIGNMENT, dtype=torch.uint8, device=device)
        start = -buffer.data_ptr() % _ALIGNMENT if device != "meta" else 0
        buffer = buffer[start : start + count // size * size]
        typed = buffer.view(spec.torch_dtype)
        if nan and spec.torch_dtype.is_floating_point:
            typed.fill_(math.nan)
        else:
            buffer.fill_(_PATTERN)
        tensor = typed.as_strided(spec.shape, spec.strides, typed.storage_offset() + before // size)
        return cls(tensor, buffer)

    def untouched(self) -> bool:
        """Whether the zones around an output are as they were."""
        size, start = self.tensor.element_size(), self.tensor.storage_offset() * self.tensor.element_size()
        start -= self.buffer.storage_offset()
        spec = TensorSpec(tuple(self.tensor.shape), self.tensor.stride(), str(self.tensor.dtype)[6:])
        end = start + spec.span * size
        return bool((self.buffer[:start] == _PATTERN).all()) and bool((self.buffer[end:] == _PATTERN).all())


def made_inputs(call: Call, seed: int = 0) -> list[Guarded | None]:
    """Inputs for a call: normally distributed, or what the op makes of them: ``fill_inputs`` of its package, which
    gets of each tensor the part that can be written, without what an expanded one repeats."""
    generator = torch.Generator().manual_seed(seed)
    made = [None if t is None else Guarded.empty(t, call.device, nan=True) for t in call.inputs]
    for one in made:
        if one is not None and one.tensor.dtype.is_floating_point and one.tensor.numel():
            values = torch.randn(one.tensor.shape, generator=generator, dtype=torch.float32)
            _once(one.tensor, one.tensor).copy_(_once(values, one.tensor).to(one.tensor.dtype))
    fill = getattr(import_module(call.module.rpartition(".")[0]), "fill_inputs", None)
    if fill is not None:
        fill(call.function, call.problem, [None if one is None else _once(one.tensor, one.tensor) for one in made])
    return made


def _once(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a tensor whose elements in ``like``, of the same shape, lie in places of their own: an expanded one
    repeats some."""
    for dim, (size, stride) in enumerate(zip(like.shape, like.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


class Bench:
    """A call with its tensors, on the device that the call names."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._inputs = made_inputs(call)
        self._outputs = [None if t is None else Guarded.empty(t, call.device, nan=False) for t in call.outputs]
        self._reference: Tensors | None = None
        self._error_of_default: list[float] = []

    @cached_property
    def _before(self) -> list[torch.Tensor | None]:
        """What the inputs' buffers hold; taken before the first run that may write there."""
        return [None if one is None else one.buffer.clone() for one in self._inputs]

    @cached_property
    def _verifier(self) -> Bench:
        """Who verifies: NumPy computes half types in float32, in arrays that ``run`` makes, so guarded ones do that."""
        wide = replace(self.call, inputs=_in_float32(self.call.inputs), outputs=_in_float32(self.call.outputs))
        return Bench(wide) if self.call.module.endswith("_numpy") and wide != self.call else self

    def asks(self) -> dict[str, tuple[Tunable, Any]]:
        """The tunables that the call asks for and the problem of each, by name; found by making it."""
        found: dict[str, tuple[Tunable, Any]] = {}
        with watched(lambda tunable, problem, _: found.setdefault(tunable.name, (tunable, problem)) and None):
            self._run()
        return found

    # ---- is it right

    def verdict(self, name: str, config: Config, default: Config | None) -> Verdict:
        """Makes the call twice with a configuration pinned and looks at everything that it wrote.

        Args:
            default: whose own error is a measure for others; ``None`` where it does not run.
        """
        if self._verifier is not self:
            return self._verifier.verdict(name, config, default)
        try:
            with pinned_here(name, config):
                first, fault = self._results()
                if fault is not None:
                    return fault
                second, fault = self._results()
                if fault is not None:
                    return fault
            for one, other in zip(first, second, strict=True):
                if one is not None and other is not None and not torch.equal(_bits(one), _bits(other)):
                    return Verdict("nondeterministic", "two runs differ")
            return self._compared(first, name, default)
        except Exception as error:
            return failed(error)

    def _results(self) -> tuple[Tensors, Verdict | None]:
        for before, one in zip(self._before, self._inputs, strict=True):
            if one is not None and before is not None:
                one.buffer.copy_(before)
        for out in self._outputs:
            if out is not None:
                out.buffer.fill_(_PATTERN)
                if out.tensor.dtype.is_floating_point:
                    out.tensor.fill_(math.nan)
        self._run()
        self._wait()
        for number, (before, one) in enumerate(zip(self._before, self._inputs, strict=True)):
            if one is not None and before is not None and not torch.equal(one.buffer, before):
                shape = "x".join(map(str, one.tensor.shape))
                return (), Verdict("outside", f"input {number} ({shape}) was written to")
        for out in self._outputs:
            if out is not None and not out.untouched():
                shape = "x".join(map(str, out.tensor.shape))
                return (), Verdict("outside", f"memory beside an output ({shape}) was written to")
        return tuple(None if out is None else out.tensor.clone() for out in self._outputs), None

    def _compared(self, results: Tensors, name: str, default: Config | None) -> Verdict:
        reference = self._expected(name, default)
        for number, (result, expected) in enumerate(zip(results, reference, strict=True)):
            if result is None or expected is None or not result.numel():
                continue
            if not result.dtype.is_floating_point:
                if not torch.equal(result.cpu(), expected):
                    return Verdict("incorrect", f"output {number}: whole numbers differ from the reference's")
                continue
            missing = int((result.cpu().isnan() & ~expected.isnan()).sum())
            if missing:
                return Verdict("incorrect", f"output {number}: {missing} of {result.numel()} elements were not written")
            error, allowed = _error(result, expected), self._allowed(number, expected, result.dtype)
            if not error <= allowed:
                return Verdict("incorrect", f"output {number}: error {error:.3g}, {allowed:.3g} is allowed")
        return Verdict()

    def _allowed(self, number: int, expected: torch.Tensor, dtype: torch.dtype) -> float:
        """A rounding of the result, and those of a sum in the dtype that kernels add in."""
        scale = expected.abs().nan_to_num(0, 0, 0).amax().item()
        sums = torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps
        own = (2 * torch.finfo(dtype).eps + (_ROUNDINGS + 2 * math.sqrt(self._longest_sum(number))) * sums) * scale
        return max(own, _AGAINST_DEFAULT * self._error_of_default[number] if self._error_of_default else 0.0)

    def _longest_sum(self, number: int) -> float:
        """Terms of one element of an output, as far as sizes tell."""
        output = self.call.outputs[number]
        elements = max(1, math.prod(output.shape)) if output is not None else 1
        inputs = [t.shape for t in self.call.inputs if t is not None]
        matrices = [shape for shape in inputs if len(shape) == 2]
        inner = max(matrices[0]) if len(matrices) > 1 else 1  # of a product of two
        flops = getattr(self.call.problem, "flops", 0)
        return max(inner, flops / 2 / elements, *(math.prod(s) / elements for s in inputs)) if inputs else 1.0

    def _expected(self, name: str, default: Config | None) -> Tensors:
        """The NumPy backend's results in float64, or the default's; and how far the default is from them."""
        if self._reference is None:
            own: Tensors = ()
            if default is not None:
                with pinned_here(name, default):
                    own, fault = self._results()
                if fault is not None:
                    raise RuntimeError(f"the default configuration is wrong: {fault.reason}")
            reference = self._in_float64()
            if reference is None:
                if default is None:
                    raise RuntimeError("there is nothing to compare with: too large for NumPy, and no default runs")
                reference = tuple(None if t is None else t.cpu() for t in own)
            if default is not None:
                self._error_of_default = [self._checked(t, r) for t, r in zip(own, reference, strict=True)]
            self._reference = reference
        return self._reference

    def _checked(self, own: torch.Tensor | None, expected: torch.Tensor | None) -> float:
        """How far the default's output is from what is expected."""
        if own is None or expected is None or not own.dtype.is_floating_point or not own.numel():
            return 0.0
        error = _error(own, expected)
        bound = _loosest(self.call, own.dtype) * expected.abs().nan_to_num(0, 0, 0).amax().item()
        if not error <= bound:
            raise RuntimeError(f"the default configuration is wrong: error {error:.3g} of {bound:.3g}")
        return error

    def _in_float64(self) -> Tensors | None:
        if getattr(self.call.problem, "flops", 0) > _MOST_REFERENCE_FLOPS and self.call.device != "cpu":
            return None
        operation = operation_of(self.call.module)
        assert operation is not None
        call = replace(self.call, module=operation.module_of("numpy"))
        inputs = [None if one is None else _wide(one.tensor) for one in self._inputs]
        outputs = [
            None if t is None else torch.empty_strided(t.shape, t.strides, dtype=_wide_dtype(t.torch_dtype))
            for t in call.outputs
        ]
        with unnoticed():
            call.run(inputs, outputs)
        return tuple(outputs)

    # ---- how long does it take

    def samples(self, name: str, config: Config, count: int, give_up_s: float = math.inf) -> tuple[list[float], str]:
        """So many times of the call in seconds, and how they were taken; fewer of a long call, and only three where
        their median is too long."""
        with pinned_here(name, config):
            take, protocol = self._timer()
            taken: list[float] = []
            ends = time.perf_counter() + _SAMPLING_SECONDS
            while len(taken) < count and (len(taken) < _LEAST_SAMPLES or time.perf_counter() < ends):
                taken.append(take())
                if len(taken) == 3 and median(taken) > give_up_s:
                    break
        return taken, protocol

    def in_turns(self, name: str, configs: Sequence[Config], count: int) -> tuple[list[list[float]], str]:
        """The same of several configurations, one sample of each in turn, so that whatever drifts, all see it."""
        timers = []
        for config in configs:
            with pinned_here(name, config):
                timers.append(self._timer())
        taken: list[list[float]] = [[] for _ in configs]
        ends = time.perf_counter() + len(configs) * _SAMPLING_SECONDS
        for _ in range(count):
            if len(taken[0]) >= _LEAST_SAMPLES and time.perf_counter() > ends:
                break
            for config, (take, _), samples in zip(configs, timers, taken, strict=True):
                with pinned_here(name, config):
                    samples.append(take())
        return taken, timers[0][1]

    def _timer(self) -> tuple[Callable[[], float], str]:
        self._run()
        self._wait()
        start = time.perf_counter()
        self._run()
        self._wait()
        once = time.perf_counter() - start
        if self.call.device == "cpu":
            repeats = max(1, math.ceil(_SAMPLE_SECONDS / max(once, 1e-7)))
            return lambda: _timed(self._run, repeats), f"cpu, {repeats} a sample"
        return self._cuda_timer(once)

    def _cuda_timer(self, once: float) -> tuple[Callable[[], float], str]:
        """Short calls in a CUDA graph, so that launching does not count; long ones with cold caches."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if once < 4 * _GRAPH_BELOW:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(_GRAPH_CALLS):
                    self._run()

            def replayed() -> float:
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                return float(start.elapsed_time(end)) / 1e3 / _GRAPH_CALLS

            if replayed() < _GRAPH_BELOW:
                return replayed, f"graph of {_GRAPH_CALLS}"
        l2_bytes = torch.cuda.get_device_properties(self.call.device).L2_cache_size
        flush = torch.empty(2 * l2_bytes, dtype=torch.uint8, device=self.call.device)

        def cold() -> float:
            flush.zero_()
            start.record()
            self._run()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3

        return cold, "events, L2 flushed"

    def _run(self) -> None:
        with unnoticed():
            self._call()

    def _call(self) -> None:
        tensors = [[None if one is None else one.tensor for one in side] for side in (self._inputs, self._outputs)]
        self.call.run(*tensors)

    def _wait(self) -> None:
        if self.call.device == "cuda":
            torch.cuda.synchronize()


def _timed(run: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def failed(error: BaseException) -> Verdict:
    """The status of a configuration that raised."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = "runtime"
    if kinds & set(_COMPILE_ERRORS):
        status = "compile"
    elif kinds & set(_RESOURCE_ERRORS):
        status = "resources"
    return Verdict(status, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _in_float32(specs: tuple[TensorSpec | None, ...]) -> tuple[TensorSpec | None, ...]:
    halves = ("float16", "bfloat16")
    return tuple(replace(t, dtype="float32") if t is not None and t.dtype in halves else t for t in specs)


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """A float64 copy on the CPU, laid out alike."""
    wide = torch.empty_strided(tensor.shape, tensor.stride(), dtype=_wide_dtype(tensor.dtype))
    _once(wide, tensor).copy_(_once(tensor, tensor).cpu())
    return wide


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Its bytes: NaNs compare, and zeros of either sign differ."""
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor


def _error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest; infinite where one is not a number and the other is."""
    wide = result.cpu().double()
    if not torch.equal(wide.isnan(), expected.isnan()):
        return math.inf
    difference = torch.where(wide == expected, 0.0, wide - expected).abs()
    return difference.nan_to_num(0.0, math.inf).amax().item() if difference.numel() else 0.0


def _loosest(call: Call, dtype: torch.dtype) -> float:
    """What any right kernel keeps, of the largest element: roundings of a sum of all of an input, TF32 operands."""
    longest = max((math.prod(t.shape) for t in call.inputs if t is not None), default=1)
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    return max(eps * (8 + 4 * math.sqrt(longest)), 0.0 if dtype in (torch.float64,) or call.device == "cpu" else 2e-2)
