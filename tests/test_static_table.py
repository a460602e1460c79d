"""Rig 3: every kernel compiled for GPUs that are not here. The table in docs/kernels.md, and that the rig notices."""

# mypy: disable-error-code="no-untyped-def, name-defined"
# (what a kernel's parameters are is decided when it is compiled)
from __future__ import annotations

import ast
import difflib
import os
import re
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from tilesmith import kernels
from tilesmith.autotune import TARGETS, Cost, Key, Tunable
from tilesmith.kernels import _compile, _cuda, _triton
from tilesmith.kernels._compile import Build, Call, Failure, Recorded, Resources

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from benchmarks import kernel_table  # noqa: E402 - it needs what was just asked for
from benchmarks.kernel_table import Row  # noqa: E402
from benchmarks.standard import LAYERS  # noqa: E402

ARCHS = list(TARGETS)


# ---- the table that is committed


@pytest.fixture(scope="module")
def text() -> str:
    return kernel_table.PATH.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Every row that the code makes, nothing compiled."""
    pytest.importorskip("cupy")
    return kernel_table.all_rows(workers=2)


def test_rows_costs_and_sources_are_those_of_the_code(text: str, rows: list[Row]) -> None:
    """All that is known without compiling: spaces, configurations, layers, FLOPs, bytes, digests of the sources."""
    now = kernel_table.render(rows, None)
    difference = difflib.unified_diff(kernel_table.blanked(text).splitlines(), now.splitlines(), "file", "code", n=0)
    first = "\n".join(list(difference)[:12])
    assert not first, f"docs/kernels.md is not what the code says (make kernel-table):\n{first}"


def test_the_table_has_no_fault(text: str) -> None:
    assert "\nFaults: none.\n" in text


@pytest.fixture(scope="module")
def compiled_again(rows: list[Row], one_in: Callable[[str], int]) -> list[tuple[Row, Build, Resources | Failure]]:
    """Builds of every kernel on sm_90, of those with tensor cores on all three, of each configuration of 8 warps; in a
    run that takes samples, of some of these."""
    every = sorted(sample(rows).items(), key=lambda one: zlib.crc32(f"{one[1].words} {one[1].target}".encode()))
    chosen = dict(every[: -(-len(every) // one_in("test_static_table.py::kernels_compiled_again"))])
    results = _compile.compiled([(*row.builds[build][:2], build) for build, row in chosen.items()])
    return [(row, build, result) for (build, row), result in zip(chosen.items(), results, strict=True)]


def test_a_sample_has_no_faults(compiled_again: list[tuple[Row, Build, Resources | Failure]]) -> None:
    assert not [
        f"{row.words} ({row.builds[build].words}): {fault}"
        for row, build, result in compiled_again
        for fault in _compile.faults(build, result, row.tensor_cores)
    ]


def test_a_sample_needs_what_the_table_says(
    text: str, compiled_again: list[tuple[Row, Build, Resources | Failure]]
) -> None:
    if kernel_table.versions_in(text) != kernel_table.versions():
        pytest.skip(f"the table is of {kernel_table.versions_in(text)}, other compilers use other registers")
    count = len(kernel_table.MEASURED)
    for row, _, result in compiled_again:
        first = 1 + len(row.config) + 2  # behind dtype, parameters, threads and GPU
        (line,) = {
            line for line in text.splitlines() if _blanked(line, first, count) == kernel_table.line_of(row, None)
        }
        written = line.removeprefix("| ").split(" | ")[first : first + count]
        now = kernel_table.measured([result])
        for name, entry, value in zip(kernel_table.MEASURED, written, now, strict=True):
            assert _holds(entry, value, len(row.builds)), f"{row.words}: {name} is {value}, the table has {entry}"


def sample(rows: Sequence[Row]) -> dict[Build, Row]:
    """A build of each row that is compiled again: of several that would do, one whose row has the fewest builds."""
    wanted: dict[Any, tuple[int, Row]] = {}

    def want(what: Any, row: Row) -> None:
        if what not in wanted or len(row.builds) < wanted[what][0]:
            wanted[what] = len(row.builds), row

    for row in rows:
        if row.target == "sm_90" or row.tensor_cores:
            want((row.kernel, row.target), row)
        if row.target == "sm_90" and row.threads == 256 and row.tensor_cores:
            want((row.kernel, row.config), row)
    return {next(iter(row.builds)): row for _, row in wanted.values()}


def _blanked(line: str, first: int, count: int) -> str:
    cells = line.split(" | ")
    return " | ".join([*cells[:first], *["·"] * count, *cells[first + count :]])


def _holds(written: str, value: str, builds: int) -> bool:
    """Whether a row's entry is that of one of its builds: equal if it has one, else within its range."""
    if builds == 1 or written == value:
        return written == value
    ranges = dict(map(_bounds, written.split(", ")))
    return all(
        kind in ranges and ranges[kind][0] <= low and high <= ranges[kind][1]
        for kind, (low, high) in map(_bounds, value.split(", "))
        if kind != "-"
    )


def _bounds(entry: str) -> tuple[str, tuple[int, int]]:
    kind, _, numbers = entry.rpartition(" ")
    if numbers == "-":
        return "-", (0, 0)
    low, _, high = numbers.partition("–")
    return kind, (int(low), int(high or low))


# ---- what the rig notices: small kernels, recorded and compiled in a worker

PLANTED = "tests.test_static_table"


@triton.jit
def tripled(x):
    return x * 3


@triton.jit(do_not_specialize=["N"])
def product(
    a_ptr,
    b_ptr,
    c_ptr,
    nothing_ptr,
    M,
    N,
    one,
    large,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``c = 3 a b`` of one tile."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, N, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + m[:, None] * 1024 + k[None, :])
        b = tl.load(b_ptr + k[:, None] * BLOCK_N + n[None, :] * one)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    tl.store(c_ptr + m[:, None] * BLOCK_N + n[None, :] + large, tripled(acc), mask=m[:, None] < M)  # a comment


@triton.jit
def unfinished(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), nowhere)  # noqa: F821 - what the test is about


PRODUCT = {"M": 128, "N": 256, "one": 1, "large": 1 << 40, "PRECISION": "tf32"}
PRODUCT |= {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64}
TUNABLE = Tunable(
    "test.product",
    {"BLOCK_M": (64, 128), "num_warps": (4, 8)},
    lambda problem: {"BLOCK_M": 128, "num_warps": 4},
    reasons={"BLOCK_M": "rows"},
    key=lambda problem: Key(("half", problem), {"rows": 5.0}),
    cost=lambda config, problem: Cost(1, 2.0 * config["BLOCK_M"], "half", 100.0),
)


def launch_product(changed: tuple[tuple[str, Any], ...]) -> None:
    options: dict[str, Any] = {"dtype": "bfloat16", "num_warps": 4, "num_stages": 3, "offset": 0}
    given = {**options, **PRODUCT, **dict(changed)}
    dtype, warps, stages, offset = (given.pop(name) for name in options)
    whole = torch.empty(1 << 20, dtype=getattr(torch, dtype), device="meta")
    c = torch.empty(1 << 20, device="meta")
    args = {"a_ptr": whole[offset:], "b_ptr": whole, "c_ptr": c, "nothing_ptr": None, **given}
    config = {"BLOCK_M": given["BLOCK_M"], "num_warps": warps}
    notes: dict[str, Any] = {"tunable": TUNABLE, "problem": 7, "config": config, "tensor_cores": True}
    _triton.launch(product, (8,), args, warps, stages, **notes)


def launch_unfinished() -> None:
    _triton.launch(unfinished, (1,), {"x_ptr": torch.empty(64, device="meta"), "BLOCK": 64})


def launch_cuda(source: Path, name: str, macros: tuple[tuple[str, int], ...]) -> None:
    _cuda.launch(source, name, dict(macros), (1,), (128,), (torch.empty(4, device="meta"),), shared=1000)


def abort() -> None:
    os.abort()


def sleep() -> None:
    time.sleep(1000)


def quarrel() -> None:
    raise ValueError("two words\nin two lines")


CUDA = """\
#include <cuda_fp16.h>
__device__ inline float4 twice(float4 x) { return make_float4(2 * x.x, 2 * x.y, 2 * x.z, 2 * x.w); }

extern "C" __global__ void copy(float4* to, const float4* from) { to[threadIdx.x] = twice(from[threadIdx.x]); }

extern "C" __global__ void spilling(float* to, const float* from, int n) {
    float v[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] = from[i * n + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to[(COUNT - 1 - i) * n + threadIdx.x] = v[i] * v[i * 7 % COUNT];
}

extern "C" __global__ void indexing(float* to, const float* from, int n) {
    __shared__ float s[100];
    float v[200];
    for (int i = 0; i < 200; ++i) v[i] = from[i * n];
    s[threadIdx.x] = v[n] + v[threadIdx.x];
    __syncthreads();
    to[threadIdx.x] = s[threadIdx.x ^ 1];
}
"""


def call(function: str, *arguments: Any, target: str = "sm_90") -> Call:
    return Call(f"{PLANTED}:{function}", arguments, target)


def planted(target: str = "sm_90", **changed: Any) -> Call:
    return call("launch_product", tuple(changed.items()), target=target)


SMALL: Any = {"dtype": "float32", "BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32}
TRITON = {
    **{arch: planted(arch) for arch in ARCHS},
    "spilling": planted(BLOCK_M=256, BLOCK_N=128, num_stages=1),
    "shared on sm_90": planted(num_stages=12),
    "shared on sm_80": planted("sm_80", num_stages=9),
    "without tensor cores": planted(PRECISION="ieee", **SMALL),
    "tf32": planted(PRECISION="tf32", **SMALL),
    "unfinished": call("launch_unfinished"),
}


def built(calls: dict[str, Call], workers: int = 2) -> dict[str, tuple[Recorded, Resources | Failure]]:
    """Each call's only launch and what it compiles to."""
    recorded = _compile.recorded(list(calls.values()), workers=1)
    compiled = _compile.compiled([(one, 0, None) for one in calls.values()], workers)
    found = {}
    for name, launches, resources in zip(calls, recorded, compiled, strict=True):
        assert not isinstance(launches, Failure), launches.reason
        (launch,) = launches
        found[name] = launch, resources
    return found


def faults(one: tuple[Recorded, Resources | Failure]) -> list[str]:
    launch, resources = one
    return _compile.faults(launch.build, resources, launch.tensor_cores)


@pytest.fixture(scope="module")
def of_triton() -> dict[str, tuple[Recorded, Resources | Failure]]:
    return built(TRITON)


@pytest.fixture(scope="module")
def of_cuda(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Recorded, Resources | Failure]]:
    pytest.importorskip("cupy")
    folder = tmp_path_factory.mktemp("cuda")
    source = folder / "planted.cu"
    source.write_text(CUDA)
    count = (("COUNT", 300),)
    calls = {name: call("launch_cuda", source, name, count) for name in ("copy", "spilling", "indexing")}
    calls["without its macro"] = call("launch_cuda", source, "copy", ())
    calls["absent"] = call("launch_cuda", source, "absent", count)
    return built(calls, workers=1)  # which compiles a file once for all its kernels


@pytest.mark.parametrize(("arch", "instruction"), [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_100", "UTCHMMA")])
def test_a_good_kernel_has_no_fault(arch: str, instruction: str, of_triton: Any) -> None:
    resources = of_triton[arch][1]
    assert faults(of_triton[arch]) == []
    assert list(resources.tensor_core) == [instruction]
    assert 32 < resources.registers < 255
    assert resources.wide_loads > 0
    assert resources.wide_stores > 0
    # the pipeline's tiles: two or three of them, as the architecture waits
    stage = (128 * 64 + 64 * 64) * 2
    assert 2 * stage <= resources.dynamic_shared <= 3 * stage + 1024
    assert resources.static_shared == 0


def test_spills_are_noticed(of_triton: Any) -> None:
    assert any(fault.startswith("spills ") for fault in faults(of_triton["spilling"]))


def test_too_much_shared_memory_is_noticed(of_triton: Any) -> None:
    for arch, limit in (("sm_90", 232448), ("sm_80", 166912)):
        (fault,) = faults(of_triton[f"shared on {arch}"])
        assert fault.endswith(f"bytes of shared memory, {arch} has {limit}")


def test_missing_tensor_cores_are_noticed(of_triton: Any) -> None:
    assert faults(of_triton["without tensor cores"]) == ["no tensor-core instruction"]
    assert faults(of_triton["tf32"]) == []


def test_what_does_not_compile_is_a_failure_with_its_reason(of_triton: Any) -> None:
    (fault,) = faults(of_triton["unfinished"])
    assert "nowhere is not defined" in fault


def test_what_nvrtc_refuses_is_a_failure_with_its_reason(of_cuda: Any) -> None:
    (fault,) = faults(of_cuda["without its macro"])
    assert 'planted.cu(7): error: identifier "COUNT" is undefined' in fault
    (fault,) = faults(of_cuda["absent"])
    assert "the assembler said nothing of absent" in fault


def test_cuda_kernels_of_one_file_are_told_apart(of_cuda: Any) -> None:
    copy, spilling, indexing = (of_cuda[name][1] for name in ("copy", "spilling", "indexing"))
    assert (copy.wide_loads, copy.wide_stores, copy.spill_bytes, copy.local_accesses) == (1, 1, 0, 0)
    assert (copy.static_shared, copy.dynamic_shared, copy.shared_bytes) == (0, 1000, 1000)
    assert (spilling.wide_loads, indexing.wide_loads) == (0, 0)
    assert spilling.spill_bytes > 0
    assert spilling.registers == 255
    assert indexing.static_shared == 400
    build = of_cuda["copy"][0].build
    assert _compile.faults(build, copy) == []
    assert _compile.faults(build, copy, tensor_cores=True) == ["no tensor-core instruction"]
    assert _compile.faults(build, spilling) == [f"spills {spilling.spill_bytes} bytes"]
    # an array that is indexed lies in local memory too, but nothing was spilled
    assert (indexing.spill_bytes, indexing.stack_bytes) == (0, 800)
    assert _compile.faults(build, indexing) == [f"{indexing.local_accesses} accesses to an array in local memory"]


def test_limits() -> None:
    build = Build("k", "sm_100", (), (), (("threads", 512),), "")
    assert _compile.faults(build, Resources(128)) == []
    assert _compile.faults(build, Resources(129)) == ["129 registers x 512 threads, there are 65536"]
    assert _compile.faults(build, Resources(9, tensor_memory=513))[0].startswith("513 columns of tensor memory")
    assert _compile.faults(build, Resources(9, scratch_bytes=8))[0].startswith("wants 8 bytes")
    assert _compile.faults(build, Failure("why")) == ["why"]


# ---- what is compiled is what Triton would compile there


def test_arguments_are_specialised_as_triton_does() -> None:
    calls = [
        planted(M=130, N=33),
        planted(offset=1, N=32, large=3, one=2),
        planted(offset=8, N=1, num_warps=8),
    ]
    first, second, third = (launches[0] for launches in _compile.recorded(calls) if not isinstance(launches, Failure))
    assert first.build.kernel == "test_static_table.py:product"
    assert dict(first.build.constants) == {
        "PRECISION": "tf32", "BLOCK_M": "128", "BLOCK_N": "64", "BLOCK_K": "64", "nothing_ptr": "None", "one": "1",
    }  # fmt: skip
    assert dict(first.build.signature) == {
        "a_ptr": "*bf16%16", "b_ptr": "*bf16%16", "c_ptr": "*fp32%16", "M": "i32", "N": "i32", "large": "i64%16",
    }  # fmt: skip
    assert first.build.options == (("num_stages", 3), ("num_warps", 4))
    assert first.build.threads == 128
    # a view that starts at an odd element; a parameter of which nothing is to be known
    assert dict(second.build.signature) == {
        "a_ptr": "*bf16", "b_ptr": "*bf16%16", "c_ptr": "*fp32%16", "M": "i32%16", "N": "i32", "one": "i32",
        "large": "i32",
    }  # fmt: skip
    assert dict(third.build.signature) == {
        "a_ptr": "*bf16%16", "b_ptr": "*bf16%16", "c_ptr": "*fp32%16", "M": "i32%16", "N": "i32", "large": "i64%16",
    }  # fmt: skip
    # what the launch was noted with
    assert third.space is not None
    assert third.space.name == "test.product"
    assert third.space.parameters == (("BLOCK_M", (64, 128), "rows"), ("num_warps", (4, 8), ""))
    assert (third.space.key, third.space.sizes) == (("half", "7"), ("rows",))
    assert third.config == (("BLOCK_M", 128), ("num_warps", 8))
    assert (third.flops, third.bytes, third.tensor_cores) == (256.0, 100.0, True)
    assert third.build.threads == 256


def test_the_source_digest_sees_code_and_helpers_but_no_comments(tmp_path: Path) -> None:
    tokens = _compile._tokens
    code = 'def f(x):\n    """Doc."""\n    # comment\n    y = g(x,\n          2)  # more\n    return y\n'
    assert tokens(code) == tokens("def f(x):\n    y = g(x, 2)\n    return y\n")
    assert tokens(code) != tokens("def f(x):\n    y = g(x, 3)\n    return y\n")
    inside = "def f(x):\n    if x:\n        x = 1\n        x = 2\n"
    assert tokens(inside) != tokens(inside.replace("        x = 2", "    x = 2"))

    source, helper = tmp_path / "a.cu", tmp_path / "helper.cuh"

    def digest() -> str:
        launch = _cuda.Launch(_cuda.Program(source, "copy", ()), (1, 1, 1), (32, 1, 1), ())
        return _compile._build_of_cuda(launch, "sm_90").source

    code = f'#include "helper.cuh"\n{CUDA}'
    source.write_text(code)
    helper.write_text("#define HALF 2\n")
    before = digest()
    source.write_text(code + "// a comment\n/* and\nanother */\n")
    assert digest() == before
    helper.write_text("#define HALF 3\n")
    assert digest() != before


# ---- workers


def test_a_crash_a_hang_and_an_error_cost_one_answer() -> None:
    calls = [call("abort"), call("sleep"), call("quarrel"), call("absent"), planted()]
    died, late, raised, absent, good = _compile.recorded(calls, workers=1, timeout=10)
    assert isinstance(died, Failure)
    assert died.reason.startswith("the compiler's process died by SIGABRT")
    assert late == Failure("no result after 10 s")
    assert raised == Failure("ValueError: in two lines")
    assert isinstance(absent, Failure)
    assert "no attribute 'absent'" in absent.reason
    assert isinstance(good, list)


def test_workers_are_told_no_settings_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the interpreter kernels are no kernels, and a compiler's debugging options change the machine code."""
    for name in ("TRITON_INTERPRET", "TRITON_ALWAYS_COMPILE", "DISABLE_PTXAS_OPT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TILESMITH_FLOAT32_PRECISION", "nonsense")
    (launches,) = _compile.recorded([planted()])
    assert isinstance(launches, list)


# ---- the file


def _row(**changed: Any) -> Row:
    space = _compile.Space("t.u", (("BLOCK", (64, 32), "why"),), ("half",), ("rows",))
    row = Row(
        "k.py:f", "sm_90", "bfloat16", space, (("BLOCK", 64),), 256, layers={"stem fprop": None}, tensor_cores=True
    )
    build = Build("k.py:f", "sm_90", (), (("x_ptr", "*bf16"),), (("num_warps", 8),), "abc")
    origin = kernel_table.Origin(call("nothing"), 0, "stem fprop NCHW")
    row.builds = {build: origin, replace(build, source="def"): origin}
    row.flops, row.bytes = {2e6, 1.23456e6}, {4096.0}
    return replace(row, **changed)


def test_a_row_gives_the_least_and_the_most_of_its_builds() -> None:
    row = _row()
    first, second = row.builds
    resources: dict[Build, Resources | Failure] = {
        first: Resources(100, dynamic_shared=5, tensor_core={"HGMMA": 4}),
        second: Resources(120, dynamic_shared=5, tensor_core={"HGMMA": 4, "HMMA": 2}),
    }
    assert kernel_table.line_of(row, resources) == (
        "| bfloat16 | 64 | 256 | sm_90 | 100–120 | 0 | 5 | HGMMA 4, HMMA 0–2 | 0 | 0 | 1.235–2 | 4.096 | 2 "
        f"| {row.code} | stem fprop |"
    )
    good = kernel_table.render([row], resources)
    assert "\nFaults: none.\n" in good
    assert kernel_table.blanked(good) == kernel_table.render([row], None)
    bad = kernel_table.render([row], {**resources, second: Failure("no luck")})
    assert "\nFaults: 1.\n\n- k.py:f, bfloat16, sm_90: BLOCK=64 (stem fprop NCHW): no luck\n" in bad
    assert "| 1 failed |" in bad
    assert kernel_table.blanked(bad) == kernel_table.render([row], None)


def test_a_changed_source_changes_the_row() -> None:
    row = _row()
    changed = replace(row, builds={replace(build, source="other"): where for build, where in row.builds.items()})
    assert row.code != changed.code


def test_entries_of_several_builds() -> None:
    assert _holds("100–120", "110", 2)
    assert not _holds("100–120", "121", 2)
    assert not _holds("100–120", "110", 1)
    assert _holds("HGMMA 4, HMMA 0–2", "HGMMA 4", 2)
    assert not _holds("HGMMA 4", "HMMA 4", 2)
    assert _holds("HGMMA 4", "-", 2)


def test_rows_are_grouped_by_what_they_are() -> None:
    """Layers that share machine code share a row; a failure to record stops everything, with its reason."""
    layer = replace(LAYERS[0], name="a")
    case = kernel_table.Case("triton", "forward", layer, "bfloat16", "NCHW")
    other = replace(case, layer=replace(layer, name="b"), warps=8)
    calls = [planted(), planted(num_warps=4)]
    recorded = _compile.recorded([*calls, call("quarrel")])
    (row,) = kernel_table.rows_of(list(zip((case, other), calls, strict=True)), recorded[:2])
    assert list(row.layers) == ["a fprop", "(b fprop)"]
    assert (len(row.builds), row.numbers) == (1, "bfloat16")
    with pytest.raises(kernel_table.Problems, match="a triton forward bfloat16 NCHW sm_90: ValueError: in two lines"):
        kernel_table.rows_of([(case, call("quarrel"))], recorded[2:])


def test_every_kernel_has_a_row(rows: list[Row]) -> None:
    assert {row.kernel for row in rows} == _cuda_kernels() | _triton_kernels()


_CUDA_KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)')
KERNELS = Path(kernels.__file__).parent


def _cuda_kernels() -> set[str]:
    sources = list(KERNELS.glob("*/*.cu"))
    return {f"{source.parent.name}/{source.name}:{name}" for source in sources for name in _found(source)}


def _found(source: Path) -> list[str]:
    names = _CUDA_KERNEL.findall(source.read_text(encoding="utf-8"))
    assert len(names) == source.read_text(encoding="utf-8").count("__global__"), source
    return names


def _triton_kernels() -> set[str]:
    """Jitted functions that no other one calls."""
    jitted: dict[str, str] = {}
    called: set[str] = set()
    for source in KERNELS.glob("**/_triton*.py"):
        for function in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(function, ast.FunctionDef) and any(
                "triton.jit" in ast.unparse(d) for d in function.decorator_list
            ):
                jitted[function.name] = f"{source.parent.name}/{source.name}:{function.name}"
                calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
                called |= {each.id for each in calls if isinstance(each, ast.Name)}
    return {place for name, place in jitted.items() if name not in called}


def test_cases_are_chosen() -> None:
    """Each layer in the dtypes it is timed in for each GPU; the rest where it tells something."""
    cases = list(kernel_table.cases())
    assert len(cases) == len(set(cases))
    for layer in LAYERS:
        mine = {(case.dtype, case.layout) for case in cases if case.layer is layer and not case.once}
        assert mine >= {(dtype, layout) for dtype in layer.dtypes for layout in layer.layouts}
    pooling = [case for case in cases if case.layer.name == "ResNet-50 maxpool 3/2"]
    assert {case.numbers for case in pooling} == {"bfloat16", "float16", "float32", "float64"}
    assert {case.direction for case in pooling} == {"inference", "forward", "backward", "gather"}
    assert {case.once for case in pooling if case.dtype == "float32"} == {False}
    assert {case.once for case in pooling if case.dtype == "float64" or case.warps} == {True}
    block = {case.numbers for case in cases if case.layer.name == "MNIST block 2"}
    assert block >= {"float32 tf32", "float32 ieee", "float32 tf32x3"}
    dense = {case.numbers for case in cases if case.layer.operation.name == "linear"}
    assert dense == {"bfloat16", "float32 ieee"}
    targets = {call.target for case, call in kernel_table.calls() if case.once}
    assert targets == {kernel_table.ONCE}


def test_sections_are_in_order(rows: list[Row]) -> None:
    kernels = [kernel for kernel, _ in groupby(rows, key=lambda row: (row.kernel, row.space and row.space.name))]
    assert len(kernels) == len(set(kernels))
