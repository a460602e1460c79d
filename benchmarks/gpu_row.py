"""One row of a GPU run: one direction of a standard layer in one dtype, checked and then timed beside torch."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tilesmith import autotune
from tilesmith.kernels import backends
from tilesmith.kernels._precision import convolution_precision, matmul_precision

from .layers import Call, Layer, Results, Sum, Target, laid_out
from .report import environment
from .standard import LAYERS

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = {"cuda": ("triton", "cupy"), "cpu": ("numpy",)}
TORCH = "torch"
QUICK_N = 4

# Fresh memory is written over between calls: twice the L2 cache at least, and long enough (0.1 ms) that the host has
# enqueued a call before the device gets there.
_LEAST_FLUSH_BYTES = 512 << 20
_MOST_REPEATS = 100
_LOOP_SECONDS = 0.02
_QUEUED_TURNS = 8

# How far a sum of n terms may be off, in units of its own size: of products what is lost in them, in sums on tensor
# cores (which truncate) and in the slabs of a split sum; float32 without tensor cores, in which everything else is
# computed for the smaller dtypes too, loses a little at each of n additions. The rounding of the result comes on top.
_LOST = {"bfloat16": 4e-3, "float16": 4e-3, "tf32": 4e-3}
_LOST_IEEE = 2.0**-22

_PRECISIONS = {"convolution": convolution_precision, "matmul": matmul_precision}


@dataclass(frozen=True)
class Row:
    """What one row is of."""

    layer: Layer
    dtype: str
    direction: str

    @property
    def name(self) -> str:
        return f"{self.layer.name}, {self.dtype}, {self.direction}"

    def target(self, layout: str) -> Target | None:
        return self.layer.target(self.direction, layout, self.dtype)


@dataclass(frozen=True)
class Side:
    """Who computes it, in which memory format: a backend of ours, or torch."""

    who: str
    layout: str

    @property
    def name(self) -> str:
        return f"{self.who} {self.layout}"


@dataclass
class Outcome:
    """What became of one side of a row.

    Attributes:
        status: "ok", "wrong", "failed" (it raised, or never came back) or "unavailable" (no such backend here).
        message: why it is not "ok".
        error: norm of the difference from the reference over the reference's norm.
        of_bound: the largest difference of an element, over what it may be.
        first_call_seconds: with compilation (unless an earlier call or the disk had it).
        median_seconds: of a call on the device, with none of its operands in the cache.
        quartile_seconds: the first and the third.
        loop_seconds: a call in a loop of calls, with what the host needs, operands in the cache where they fit.
        repeats: calls that the median is of.
    """

    status: str = "ok"
    message: str = ""
    error: float | None = None
    of_bound: float | None = None
    first_call_seconds: float | None = None
    median_seconds: float | None = None
    quartile_seconds: tuple[float, float] | None = None
    loop_seconds: float | None = None
    repeats: int = 0


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    Attributes:
        device: "cuda"; or "cpu", only to try the run itself: tiny layers, the NumPy backend.
        quick: with batches of at most ``QUICK_N``.
        only: the layers with this in their names; "" for all.
        seed: of all inputs, a fresh one each run.
    """

    device: str = "cuda"
    quick: bool = False
    only: str = ""
    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(1 << 31))

    def rows(self) -> list[Row]:
        """All rows: those with a target first, in the order of the layers."""
        layers = [layer for layer in LAYERS if self.only.lower() in layer.name.lower()]
        rows = [
            Row(layer, dtype, direction) for layer in layers for dtype in layer.dtypes for direction in layer.directions
        ]
        return sorted(rows, key=lambda row: all(row.target(layout) is None for layout in row.layer.layouts))

    def ours(self, row: Row) -> list[Side]:
        return [Side(who, layout) for who in BACKENDS[self.device] for layout in row.layer.layouts]

    def run(self, layer: Layer) -> Layer:
        """What is run for a layer: all of it, a small batch of it, or something small of its kind."""
        if self.device == "cpu":
            return layer.tiny()
        return layer.at_most(QUICK_N) if self.quick else layer


class Session:
    """Checks and times, in the process that it is made in. All it returns is plain data."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rows = settings.rows()
        self._device = torch.device(settings.device)
        self._operands: tuple[int, _Operands] | None = None
        self._stopwatch = (_Stopwatch if settings.device == "cpu" else _CudaStopwatch)(self._device)
        torch.backends.cudnn.benchmark = True

    @property
    def broken(self) -> bool:
        """Whether an error has spoilt the device for this process, as an illegal address does."""
        try:
            self._stopwatch.wait()
        except RuntimeError:
            return True
        return False

    def facts(self) -> dict[str, Any]:
        """The machine, the versions, the time: what makes results comparable; and whose rates make the floors."""
        found: dict[str, Any] = {
            "kind": self._device.type,
            **environment(self._device),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "triton": _version("triton"),
            "cupy": _version("cupy"),
            "float32": {name: self._precision(name) for name in _PRECISIONS},
            "seed": self._settings.seed,
            "quick": self._settings.quick,
            "floor": asdict(autotune.device_of(torch.empty(0, device=self._device))),
        }
        if self._device.type == "cuda":
            properties = torch.cuda.get_device_properties(self._device)
            found |= {
                "multiprocessors": properties.multi_processor_count,
                "l2_bytes": properties.L2_cache_size,
                "memory_bytes": properties.total_memory,
                "driver": _driver(),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        return found

    def _precision(self, products: str) -> str:
        """How float32 is multiplied; what has no products computes in float32 as it is."""
        on_gpu = self._device.type == "cuda"
        return _PRECISIONS[products]() if on_gpu and products else "ieee"

    def ceilings(self) -> dict[str, float]:
        """What this device reaches, beside the maker's rates: a large copy, and a large matrix product."""
        on_gpu = self._device.type == "cuda"
        source = torch.randn((1 << 29) if on_gpu else (1 << 20), device=self._device)
        copy = torch.empty_like(source)
        n = 8192 if on_gpu else 128
        a, b = (torch.randn(n, n, device=self._device, dtype=torch.bfloat16) for _ in range(2))
        calls = {"copy": lambda: copy.copy_(source), "matmul": lambda: a @ b}
        for call in calls.values():
            call()
        times = self._stopwatch.turns(calls, dict.fromkeys(calls, 10), float("inf"))
        medians = {name: statistics.median(values) for name, values in times.items()}
        return {
            "copy_bytes_per_second": 2 * source.nbytes / medians["copy"],
            "matmul_bfloat16_flops": 2 * n**3 / medians["matmul"],
        }

    def check(self, index: int, side: Side) -> Outcome:
        """Compares one backend of ours with the reference, on fresh inputs and in poisoned memory."""
        row = self._rows[index]
        if reason := row.layer.operation.refusal(side.who, self._device.type):
            return Outcome("unavailable", reason)
        try:
            operands = self._operands_of(index)
            with _poisoned(), _backend(side.who):
                begin = time.perf_counter()
                call = operands.call(side)
                result = call()
                self._stopwatch.wait()
                first_call_seconds = time.perf_counter() - begin
                again = call()
            multiplies = row.layer.multiplies
            arithmetic = self._precision(multiplies) if row.dtype == "float32" or not multiplies else row.dtype
            outcome = operands.compared(result, arithmetic)
            if outcome.status == "ok" and not all(map(torch.equal, result, again)):
                outcome = replace(outcome, status="wrong", message="two calls with the same inputs differ")
            return replace(outcome, first_call_seconds=first_call_seconds)
        except Exception as error:
            return _failed(error)

    def time(self, index: int, sides: Sequence[Side], seconds: float) -> dict[Side, Outcome]:
        """Times the sides in turns, for about so many seconds. A side that raises is left out and says why."""
        outcomes: dict[Side, Outcome] = {}
        calls: dict[Side, Call] = {}
        estimates: dict[Side, float] = {}
        operands = self._operands_of(index)
        operands.forget_reference()
        for side in sides:
            try:
                with _backend(side.who):
                    begin = time.perf_counter()
                    call = operands.call(side)
                    call()
                    self._stopwatch.wait()
                    outcomes[side] = Outcome(first_call_seconds=time.perf_counter() - begin)
                    estimates[side] = self._stopwatch.loop(call, 3)
                    calls[side] = call
            except Exception as error:
                outcomes[side] = _failed(error)
        if not calls:
            return outcomes
        share = seconds / len(calls)
        counts = {
            side: max(3, min(_MOST_REPEATS, int(share / (estimate + self._stopwatch.flush_seconds))))
            for side, estimate in estimates.items()
        }
        try:
            times = self._stopwatch.turns(calls, counts, seconds, lambda side: _backend(side.who))
            for side, values in times.items():
                first, middle, third = statistics.quantiles(values * 2, n=4, method="inclusive")  # also of one
                with _backend(side.who):
                    loops = max(3, min(200, int(min(share, _LOOP_SECONDS) / estimates[side])))
                    loop_seconds = self._stopwatch.loop(calls[side], loops)
                outcomes[side] = replace(
                    outcomes[side],
                    median_seconds=middle,
                    quartile_seconds=(first, third),
                    loop_seconds=loop_seconds,
                    repeats=len(values),
                )
        except Exception as error:  # a device reports late: whose fault it was is not known
            return outcomes | {side: _failed(error) for side in calls}
        return outcomes

    def _operands_of(self, index: int) -> _Operands:
        """Those of the row, kept until the next one's are asked for."""
        if self._operands is None or self._operands[0] != index:
            self._operands = None  # its memory first
            row = self._rows[index]
            generator = torch.Generator(self._device).manual_seed(self._settings.seed + index)
            layer = self._settings.run(row.layer)
            self._operands = index, _Operands(layer, row.direction, row.dtype, generator)
        return self._operands[1]


class _Operands:
    """Random tensors of one row, in each layout, and what can be computed from them."""

    def __init__(self, layer: Layer, direction: str, dtype: str, generator: torch.Generator) -> None:
        self._layer, self._direction = layer, direction
        self._dtype: torch.dtype = getattr(torch, dtype)
        tensors = layer.operands(direction, generator)
        self._tensors = {name: tensor.to(self._dtype) for name, tensor in tensors.items()}
        self._reference: Results | None = None

    @cached_property
    def _channels_last(self) -> dict[str, torch.Tensor]:
        return {name: laid_out(tensor, "channels_last") for name, tensor in self._tensors.items()}

    def call(self, side: Side) -> Call:
        """The call that is checked and timed."""
        tensors = self._channels_last if side.layout == "channels_last" else self._tensors
        if side.who == TORCH:
            return self._layer.theirs(self._direction, tensors)
        return self._layer.ours(self._direction, tensors, side.layout)

    def compared(self, results: Results, arithmetic: str) -> Outcome:
        """The results against the reference: the worst of them, or the first that is wrong."""
        worst = Outcome(error=0.0, of_bound=0.0)
        references = self._expected()
        for number, (result, reference) in enumerate(zip(results, references, strict=True), 1):
            outcome = _compared(result.detach(), reference, self._dtype, self._layer.sums(self._direction), arithmetic)
            if outcome.status != "ok":
                which = f"result {number} of {len(results)}: " if len(results) > 1 else ""
                return replace(outcome, message=which + outcome.message)
            worst = max(worst, outcome, key=lambda each: each.of_bound or 0.0)
        return worst

    def forget_reference(self) -> None:
        self._reference = None

    def _expected(self) -> Results:
        """torch's, in float64 on a CPU and in float32 without tensor cores on a GPU, from the same numbers."""
        if self._reference is None:
            wide = {
                name: tensor.to(torch.float32 if tensor.is_cuda else torch.float64)
                for name, tensor in self._tensors.items()
            }
            with _exact():
                results = self._layer.expected(self._direction, wide)
            self._reference = tuple(result.detach() for result in results)
        return self._reference


def _compared(
    result: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype, sums: Sum | None, arithmetic: str
) -> Outcome:
    """Element by element, with a bound that grows with the sums' length; ``None`` allows for one rounding only."""
    if result.shape != reference.shape or result.dtype != dtype:
        return Outcome("wrong", f"it is {list(result.shape)} of {result.dtype}, not {list(reference.shape)}")
    if sums is None:
        reference = reference.to(dtype).to(reference.dtype)
    difference = (result.to(reference.dtype) - reference).abs_()
    error = float(difference.norm() / reference.norm())
    unset = int(difference.isnan().sum())
    if unset:
        return Outcome("wrong", f"{unset} of {difference.numel()} elements are NaN: never written, or spoilt")
    if sums is not None:
        lost = _LOST.get(arithmetic, _LOST_IEEE * sums.terms**0.5) * sums.size
        difference /= reference.abs().mul_(torch.finfo(dtype).eps).add_(lost)
    worst, place = (value.item() for value in difference.reshape(-1).max(0))
    if worst <= (sums is not None):
        return Outcome(error=error, of_bound=worst)
    where = [int(i) for i in torch.unravel_index(torch.tensor(place), difference.shape)]
    allowed = f"{worst:.3g} off what is exact" if sums is None else f"{worst:.3g} times what may be"
    return Outcome("wrong", f"relative error {error:.2g}; worst at {where}, {allowed}")


def _backend(who: str) -> AbstractContextManager[None]:
    return nullcontext() if who == TORCH else backends.backend(who)


def _failed(error: Exception) -> Outcome:
    lines = str(error).strip().splitlines() or [""]
    return Outcome("failed", f"{type(error).__name__}: {lines[0][:300]}")


@contextmanager
def _poisoned() -> Iterator[None]:
    """torch.empty fills with NaN (integers: their largest) inside the block; torch does so for deterministic runs."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def _exact() -> Iterator[None]:
    """No TF32 in torch's products inside the block, and no search for the fastest convolution."""
    convolution, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = convolution.fp32_precision, matmul.fp32_precision, torch.backends.cudnn.benchmark
    convolution.fp32_precision, matmul.fp32_precision, torch.backends.cudnn.benchmark = "ieee", "ieee", False
    try:
        yield
    finally:
        convolution.fp32_precision, matmul.fp32_precision, torch.backends.cudnn.benchmark = before


# ---- time


class _Stopwatch:
    """The host's clock, for a CPU; caches are not flushed."""

    flush_seconds = 0.0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def wait(self) -> None:
        """Until the device has done all it was asked for."""

    def loop(self, call: Callable[[], Any], n: int) -> float:
        """Seconds a call in a loop of ``n``."""
        self.wait()
        begin = time.perf_counter()
        for _ in range(n):
            call()
        self.wait()
        return (time.perf_counter() - begin) / n

    def turns(
        self,
        calls: Mapping[Any, Callable[[], Any]],
        counts: Mapping[Any, int],
        seconds: float,
        surroundings: Callable[[Any], AbstractContextManager[Any]] = lambda _: nullcontext(),
    ) -> dict[Any, list[float]]:
        """Seconds of single calls that take turns, so that noise hits all of them.

        Args:
            counts: how many calls of each; those with fewer sit out, evenly.
            seconds: no turn begins later, but each gets one.
            surroundings: entered around a call, outside of what is timed.
        """
        times: dict[Any, list[float]] = {name: [] for name in calls}
        most, begin = max(counts.values()), time.perf_counter()
        for turn in range(most):
            for name, call in calls.items():
                if turn * counts[name] % most >= counts[name]:
                    continue
                with surroundings(name):
                    self._timed(call, times[name])
            if turn % _QUEUED_TURNS == 0:
                self._collect()
            if time.perf_counter() - begin > seconds and turn:
                break
        self._collect()
        return times

    def _timed(self, call: Callable[[], Any], times: list[float]) -> None:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)

    def _collect(self) -> None:
        """Puts times that are still on the device where they belong."""


class _CudaStopwatch(_Stopwatch):
    """Events of the device around a call; the cache is written over before each."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        size = max(_LEAST_FLUSH_BYTES, 2 * torch.cuda.get_device_properties(device).L2_cache_size)
        self._flushed = torch.empty(size, dtype=torch.uint8, device=device)
        self._pending: list[tuple[list[float], torch.cuda.Event, torch.cuda.Event]] = []
        self._flushed.zero_()
        self.flush_seconds = self.loop(self._flushed.zero_, 5)

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)

    def _timed(self, call: Callable[[], Any], times: list[float]) -> None:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flushed.zero_()
        start.record()
        call()
        end.record()
        self._pending.append((times, start, end))

    def _collect(self) -> None:
        self.wait()
        for times, start, end in self._pending:
            times.append(start.elapsed_time(end) / 1e3)
        self._pending.clear()


# ---- facts


def _version(package: str) -> str | None:
    try:
        return str(__import__(package).__version__)
    except Exception:  # not installed, or broken: either way there is none
        return None


def _driver() -> str | None:
    """The driver's version, read and nothing else."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
        return next(word for word in text.split() if word[0].isdigit() and "." in word)
    except (OSError, StopIteration):
        return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _commit() -> str | None:
    """Of this checkout, with a plus sign where files differ from it; ``None`` where git knows nothing of it."""
    commit = _output("git", "rev-parse", "HEAD")
    return commit and commit + ("+" if _output("git", "status", "--porcelain") else "")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
