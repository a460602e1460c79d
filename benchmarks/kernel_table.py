"""The table of kernels: each one, with each configuration that the standard layers run with, compiled for each GPU.

    python -m benchmarks.kernel_table            # writes docs/kernels.md
    python -m benchmarks.kernel_table --check    # compares it with what the code says now

No GPU is needed: every call is recorded on ``meta`` tensors, and what it would launch is compiled for that GPU by the
compilers that would do it there. The same versions of Triton and NVRTC give the same file, byte for byte.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tilesmith import autotune
from tilesmith.kernels import _arrays, _compile, _precision
from tilesmith.kernels._compile import Build, Call, Failure, Recorded, Resources, Space
from tilesmith.kernels._recording import record

from .layers import FUSED, Layer
from .standard import EVERY_DTYPE, EVERY_DTYPE_ONCE, LAYERS, UNTIMED

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs" / "kernels.md"
JOURNAL = ROOT / "build" / "kernel_table.jsonl"
BACKENDS = ("triton", "cupy")
ONCE = "sm_90"
SHORT = {"forward": "fprop", FUSED: "fprop", "backward": "bprop", "input_grad": "dgrad", "weight_grad": "wgrad"}

# What the machine code says; all other columns are known without compiling.
MEASURED = ("registers", "spills", "shared", "tensor cores", "16 B loads", "16 B stores")
_BLANK = "·"


# ---- what is called


@dataclass(frozen=True)
class Case:
    """One direction of one layer on one backend.

    Attributes:
        dtype: "bfloat16" and the like.
        layout: of all tensors, one of the layer's.
        precision: how float32 is multiplied: "ieee", "tf32" or "tf32x3"; ``None`` where nothing is.
        warps: run with the best configuration of so many warps instead of the default.
        once: compiled for ``ONCE`` alone, not for each GPU.
    """

    backend: str
    direction: str
    layer: Layer
    dtype: str
    layout: str
    precision: str | None = None
    warps: int | None = None
    once: bool = False

    @property
    def numbers(self) -> str:
        """The dtype, and for float32 how it is multiplied."""
        return self.dtype if self.precision is None else f"{self.dtype} {self.precision}"

    @property
    def words(self) -> str:
        return f"{self.layer.name} {self.backend} {self.direction} {self.numbers} {self.layout}"


def launch(case: Case) -> None:
    """Makes the launches of a case: what a worker of the rig calls."""
    implementation = case.layer.operation.named(case.backend)
    call = case.layer.backend_call(case.direction, case.dtype, case.layout)

    def run() -> None:
        _arrays.run(implementation, call.function, call.problem, call.inputs, call.outputs)

    _precision.set_float32_precision(case.precision)
    if case.warps is None:
        run()
        return
    with record() as launches:
        run()
    with ExitStack() as pins:
        for one in launches:
            if "tunable" in one.notes:
                tunable, problem_of_kernel = one.notes["tunable"], one.notes["problem"]
                config = _fastest_with(tunable, problem_of_kernel, case.warps)
                if config is not None:
                    pins.enter_context(autotune.pin(tunable.name, config))
        run()


def _fastest_with(tunable: autotune.Tunable, problem: Any, warps: int) -> autotune.Config | None:
    """Of the configurations with so many warps the one that the model predicts to be fastest; ``None`` without one."""
    assert tunable.cost is not None
    device = autotune.device_of(torch.empty(0, device="meta"))
    costs = [(config, tunable.cost(config, problem)) for config in tunable.configs(problem)]
    wanted = [(autotune.seconds(cost, device), i) for i, (_, cost) in enumerate(costs) if cost.threads == 32 * warps]
    return costs[min(wanted)[1]][0] if wanted else None


# How each dtype is multiplied by default; and all that there is.
_DEFAULT_PRECISION = {"convolution": "tf32", "matmul": "ieee"}
_DTYPES = ("float16", "float32", "float64")
_PRECISIONS = ("tf32", "ieee", "tf32x3")


def cases() -> Iterator[Case]:
    """All of them, the same ones in the same order each time.

    Layers that stand for a kind of kernel are compiled in every dtype, and in bfloat16 also with the best configuration
    of 8 warps, where a thread has the fewest registers.
    """
    for layer in (*LAYERS, *UNTIMED):
        default = _DEFAULT_PRECISION.get(layer.multiplies)
        numbers = [(dtype, default if dtype == "float32" else None) for dtype in layer.dtypes]
        yield from _cases(layer, numbers, once=layer in UNTIMED)
        if layer.name in EVERY_DTYPE | EVERY_DTYPE_ONCE:
            once = layer.name in EVERY_DTYPE_ONCE
            of_float32 = _PRECISIONS if layer.multiplies else (None,)
            every = [(dtype, way) for dtype in _DTYPES for way in (of_float32 if dtype == "float32" else (None,))]
            yield from _cases(layer, [pair for pair in every if pair not in numbers], once)
            yield from _cases(layer, [("bfloat16", None)], once, warps=8)


def _cases(
    layer: Layer, numbers: Sequence[tuple[str, str | None]], once: bool, warps: int | None = None
) -> Iterator[Case]:
    for backend, direction, (dtype, way), layout in product(BACKENDS, layer.compiled, numbers, layer.layouts):
        yield Case(backend, direction, layer, dtype, layout, way, warps, once)


# ---- rows


class Origin(NamedTuple):
    """Where a build was first met: the call, the launch's number in it, and the layer, direction and layout."""

    call: Call
    number: int
    words: str


@dataclass
class Row:
    """One kernel with one configuration, compiled for one GPU, for all layers that run with it.

    Attributes:
        builds: what is compiled for it. Kernel sizes, strides and layouts are constants: other layers, other machine
            code.
    """

    kernel: str
    target: str
    numbers: str
    space: Space | None
    config: tuple[tuple[str, Any], ...]
    threads: int
    builds: dict[Build, Origin] = field(default_factory=dict)
    tensor_cores: bool = False
    flops: set[float] = field(default_factory=set)
    bytes: set[float] = field(default_factory=set)
    layers: dict[str, None] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """For a message: kernel, numbers, GPU, configuration."""
        config = " ".join(f"{name}={value}" for name, value in self.config) or f"{self.threads} threads"
        return f"{self.kernel}, {self.numbers}, {self.target}: {config}"

    @property
    def used_by(self) -> list[str]:
        """The layers' names, in brackets where they run so only if asked."""
        return [name for name in self.layers if name.strip("()") == name or name.strip("()") not in self.layers]

    @property
    def code(self) -> str:
        """Digest of everything that is compiled for this row."""
        return _compile.digest(sorted(map(str, self.builds)))[:8]


def calls(targets: Iterable[str] = tuple(autotune.TARGETS)) -> list[tuple[Case, Call]]:
    """Each case for each GPU, or for one."""
    return [
        (case, Call(f"{__name__}:launch", (case,), arch))
        for case, arch in product(cases(), targets)
        if arch == ONCE or not case.once
    ]


class Problems(Exception):
    """Calls that could not be recorded, and why."""


def rows_of(wanted: Sequence[tuple[Case, Call]], recorded: Sequence[list[Recorded] | Failure]) -> list[Row]:
    """The rows that these calls' launches make, in a fixed order.

    Raises:
        Problems: some calls failed before they launched anything.
    """
    failed = [
        f"{case.words} {call.target}: {launches.reason}"
        for (case, call), launches in zip(wanted, recorded, strict=True)
        if isinstance(launches, Failure)
    ]
    if failed:
        raise Problems("\n".join(failed))
    rows: dict[Any, Row] = {}
    for (case, call), launches in zip(wanted, recorded, strict=True):
        assert not isinstance(launches, Failure)
        for number, one in enumerate(launches):
            build, space = one.build, one.space
            # a launch without a configuration of its own is the same for all: what distinguishes it are its threads
            key = (build.kernel, space and space.name, case.numbers, one.config, build.threads, build.target)
            row = rows.get(key)
            if row is None:
                row = rows[key] = Row(build.kernel, build.target, case.numbers, space, one.config, build.threads)
            name = f"{case.layer.name} {SHORT.get(case.direction, case.direction)}"
            words = f"{name} {case.layout}" + ("" if case.warps is None else f", asked for {case.warps} warps")
            row.builds.setdefault(build, Origin(call, number, words))
            row.tensor_cores |= one.tensor_cores
            if one.flops is not None and one.bytes is not None:
                row.flops.add(one.flops)
                row.bytes.add(one.bytes)
            row.layers.setdefault(name if case.warps is None else f"({name})")
    return sorted(rows.values(), key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    values = {} if row.space is None else {name: values for name, values, _ in row.space.parameters}
    places = tuple(values[name].index(value) for name, value in row.config)
    name = "" if row.space is None else row.space.name
    return row.kernel, name, row.numbers, places, row.threads, list(autotune.TARGETS).index(row.target)


def faults_of(rows: Sequence[Row], resources: Mapping[Build, Resources | Failure]) -> list[str]:
    """What is wrong with the rows' builds."""
    found: dict[str, None] = {}
    for row in rows:
        for build, origin in row.builds.items():
            for fault in _compile.faults(build, resources[build], row.tensor_cores):
                found.setdefault(f"{row.words} ({origin.words}): {fault}")
    return list(found)


# ---- the file


_INTRODUCTION = """\
# The kernels and what they need

Written by `make kernel-table`; the tests compare it with the code. Each kernel is compiled as it would be on that GPU,
with each configuration that one of the standard layers (`benchmarks/standard.py`) runs with by default, and for each
GPU that the analytic model knows. Nothing here was measured on a GPU. A layer that stands for a kind is compiled in
every dtype: convolutions for each GPU, the others for sm_90 alone, as are shapes that no standard layer has
(`UNTIMED`). Dense layers run convolution's kernels.

One row is one kernel with one configuration for one GPU. Kernel sizes, strides and layouts are constants of a kernel,
so a row stands for several builds; where they differ, the least and the most are given.

- *registers* a thread; *spills*: bytes stored and loaded because registers ran out; *shared*: bytes a block.
- *tensor cores*: instructions of them in the machine code (HMMA; HGMMA on sm_90; UTCHMMA on sm_100; DMMA for float64).
- *16 B loads*, *stores*: instructions that move 16 bytes a thread between global memory and registers or shared memory.
- *MFLOP*, *kB*: of one block, as the tunable's cost has them, with what is computed and thrown away.
- *builds*: how many; *code*: digest of all that is compiled for them, comments left out.
- *layers*: that run so by default; in brackets those that do so only when asked for a configuration of 8 warps.

A tunable's default is the configuration that the analytic model (`autotune/model.py`) predicts to be fastest on the
GPU, of a short list that was made from the whole space ahead (`autotune/portfolios.json`), of equals the first.
"""


def render(rows: Sequence[Row], resources: Mapping[Build, Resources | Failure] | None) -> str:
    """The file's text; without resources those columns, the faults and the versions are left blank."""
    lines = [_INTRODUCTION]
    builds = {build for row in rows for build in row.builds}
    lines.append(f"{len(rows)} rows, {len(builds)} builds.\n")
    lines.append(f"Compiled with {_BLANK if resources is None else versions()}.\n")
    faults = [] if resources is None else faults_of(rows, resources)
    lines.append(f"Faults: {_BLANK if resources is None else len(faults) or 'none'}.\n")
    if faults:
        lines += [*(f"- {fault}" for fault in faults), ""]
    for (kernel, _), group in groupby(rows, key=lambda row: (row.kernel, row.space and row.space.name)):
        members = list(group)
        lines += _section(kernel, members, resources)
    return "\n".join(lines).rstrip() + "\n"


def _section(kernel: str, rows: Sequence[Row], resources: Mapping[Build, Resources | Failure] | None) -> Iterator[str]:
    space = rows[0].space
    yield f"## {kernel}" + ("" if space is None else f" ({space.name})") + "\n"
    if space is not None:
        yield "| parameter | values | why |\n|---|---|---|"
        for name, values, why in space.parameters:
            yield f"| {name} | {', '.join(map(str, values))} | {why} |"
        yield ""
        if space.key:
            yield f"Key of the first launch below: {', '.join(space.key)}; sizes: {', '.join(space.sizes)}.\n"
    parameters = [] if space is None else [name for name, _, _ in space.parameters]
    head = ["dtype", *parameters, "threads", "GPU", *MEASURED, "MFLOP", "kB", "builds", "code", "layers"]
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield line_of(row, resources)
    yield ""


def line_of(row: Row, resources: Mapping[Build, Resources | Failure] | None) -> str:
    """A row of the table."""
    cells = [row.numbers, *(str(value) for _, value in row.config), str(row.threads), row.target]
    cells += [_BLANK] * len(MEASURED) if resources is None else measured([resources[build] for build in row.builds])
    cells += [_range(row.flops, 1e-6), _range(row.bytes, 1e-3), str(len(row.builds)), row.code, ", ".join(row.used_by)]
    return "| " + " | ".join(cells) + " |"


def measured(results: Sequence[Resources | Failure]) -> list[str]:
    """The columns ``MEASURED`` of a row's builds."""
    good = [result for result in results if isinstance(result, Resources)]
    if len(good) < len(results):
        return [f"{len(results) - len(good)} failed", *[_BLANK] * (len(MEASURED) - 1)]
    kinds = sorted({kind for result in good for kind in result.tensor_core})
    tensor_core = [f"{kind} {_range(result.tensor_core.get(kind, 0) for result in good)}" for kind in kinds]
    return [
        _range(result.registers for result in good),
        _range(result.spill_bytes for result in good),
        _range(result.shared_bytes for result in good),
        ", ".join(tensor_core) or "-",
        _range(result.wide_loads for result in good),
        _range(result.wide_stores for result in good),
    ]


def _range(values: Iterable[float], scale: float = 1) -> str:
    """Least and most, to four digits if they were scaled."""
    found = sorted(set(values))
    if not found:
        return "-"
    texts = [str(value) if scale == 1 else f"{value * scale:.4g}" for value in (found[0], found[-1])]
    return texts[0] if texts[0] == texts[1] else "–".join(texts)


def blanked(text: str) -> str:
    """A file's text with everything left out that only compiling tells: what ``render(rows, None)`` gives."""
    text = re.sub(r"^Compiled with .*\.$", f"Compiled with {_BLANK}.", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^Faults: .*\.\n\n(- .*\n)*\n?", f"Faults: {_BLANK}.\n\n", text, count=1, flags=re.MULTILINE)
    lines: list[str] = []
    places: range | None = None
    for line in text.splitlines():
        cells = line.split(" | ")
        if not line.startswith("|"):
            places = None
        elif MEASURED[0] in cells:
            first = cells.index(MEASURED[0])
            places = range(first, first + len(MEASURED))
        elif places is not None and not line.startswith("|---"):
            for place in places:
                cells[place] = _BLANK
            line = " | ".join(cells)
        lines.append(line)
    return "\n".join(lines) + "\n"


def versions() -> str:
    """Of the compilers, in words."""
    return ", ".join(f"{name} {version}" for name, version in _compile.versions().items())


def versions_in(text: str) -> str:
    """What a file was compiled with."""
    found = re.search(r"^Compiled with (.*)\.$", text, re.MULTILINE)
    return found[1] if found else ""


# ---- the command


def compile_rows(rows: Sequence[Row], workers: int) -> dict[Build, Resources | Failure]:
    """All builds of the rows, each compiled once; what is in the journal is not compiled again."""
    wanted = {build: where for row in rows for build, where in row.builds.items()}
    journal = _Journal(JOURNAL)
    results = {build: journal.read(build) for build in wanted}
    todo = [build for build, result in results.items() if result is None]
    begin, done = time.monotonic(), 0

    def told(number: int, result: Resources | Failure) -> None:
        nonlocal done
        done += 1
        journal.write(todo[number], result)
        if done % 50 == 0 or done == len(todo):
            print(f"compiled {done} of {len(todo)}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)

    found = _compile.compiled([(*wanted[build][:2], build) for build in todo], workers, told=told)
    return {**results, **dict(zip(todo, found, strict=True))}  # type: ignore[dict-item]


class _Journal:
    """Results of earlier runs, by everything that they depend on: an edited kernel costs only its own builds.

    Failures are not kept: a machine that was too slow is not the kernel's fault.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._compilers = versions() + _compile.method()
        self._found: dict[str, Resources] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, TypeError):  # a line of a run that was killed
                    key, values = json.loads(line)
                    self._found[key] = Resources(**values)

    def read(self, build: Build) -> Resources | None:
        return self._found.get(self._key(build))

    def write(self, build: Build, result: Resources | Failure) -> None:
        if isinstance(result, Resources):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([self._key(build), asdict(result)]) + "\n")

    def _key(self, build: Build) -> str:
        return _compile.digest([str(build), self._compilers])


def all_rows(workers: int, targets: Iterable[str] = tuple(autotune.TARGETS)) -> list[Row]:
    """Every row, without compiling."""
    wanted = calls(targets)
    return rows_of(wanted, _compile.recorded([call for _, call in wanted], workers))


def main() -> int:
    """The command. Exit code 1: a fault, or (with ``--check``) the file is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare docs/kernels.md with the code, write nothing")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that compile")
    arguments = parser.parse_args()
    try:
        rows = all_rows(arguments.workers)
    except Problems as problems:
        print(problems, file=sys.stderr)
        return 1
    resources = compile_rows(rows, arguments.workers)
    text = render(rows, resources)
    faults = faults_of(rows, resources)
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    if not arguments.check:
        PATH.write_text(text, encoding="utf-8")
        return 1 if faults else 0
    written = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    difference = list(difflib.unified_diff(written.splitlines(), text.splitlines(), "docs/kernels.md", "the code", n=0))
    print("\n".join(difference))
    return 1 if difference or faults else 0


if __name__ == "__main__":
    # under its own name, by which the workers know what they are told
    from benchmarks import kernel_table

    sys.exit(kernel_table.main())
