"""Compiling kernels for GPUs that are not there, and reading from the machine code what they need.

A call of a backend is recorded instead of made, and each recorded launch is compiled exactly as a launch on that GPU
would be: Triton's own binder decides what becomes a constant and what is known of an argument, NVRTC gets the options
that CuPy would give it. What the machine code then says (registers, spills, shared memory, tensor-core instructions,
16-byte accesses) is what the GPU would run, down to the register.

Everything is done in worker processes: a compiler that crashes or hangs costs one answer. A worker is told a call as
plain data and records it itself, because functions made under ``TRITON_INTERPRET=1`` cannot be compiled.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import io
import os
import pickle
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch

from ..autotune import TARGETS, Tunable, target
from . import _cuda, _triton
from ._recording import record

_ROOT = Path(__file__).parent

# ptxas and NVRTC print these for each kernel when asked to be verbose
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_STATIC = re.compile(r"(\d+) bytes smem")
# one instruction of nvdisasm's listing: /*0090*/ @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.a-z]*)", re.MULTILINE)
_TENSOR_CORE = re.compile(r"UTC[A-Z]*MMA|[A-Z]*GMMA|[HIDQO]MMA")
# environment variables that would change what is compiled
_SETTINGS = ("TRITON_", "TILESMITH_", "CUPY_", "NVPTX_", "PTXAS_", "DISABLE_", "MLIR_", "LLVM_")
_MAX_TENSOR_MEMORY = 512  # columns of a multiprocessor, sm_100
_REGISTERS = 65536  # of a multiprocessor


@dataclass(frozen=True)
class Call:
    """One call of a backend, as plain data.

    Attributes:
        function: "module:function"; called with the arguments it makes its launches.
        arguments: of it; whatever can be pickled and hashed.
        target: "sm_90" and the like, one of ``autotune.TARGETS``.
    """

    function: str
    arguments: tuple[Any, ...]
    target: str


@dataclass(frozen=True)
class Build:
    """What one launch is compiled from: equal builds give equal machine code. Known without compiling.

    Attributes:
        kernel: "conv2d/_triton_gemm.py:correlate".
        target: "sm_90" and the like.
        constants: constants of the kernel (constexprs, and arguments that are 1 or ``None``), or macros.
        signature: type of each other argument, ``%16`` behind it where it is known to be a multiple of 16.
        options: warps and stages, or threads and bytes of dynamic shared memory.
        source: digest of the kernel's text with all functions of ours that it uses; comments do not count.
    """

    kernel: str
    target: str
    constants: tuple[tuple[str, str], ...]
    signature: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, int], ...]
    source: str

    @property
    def threads(self) -> int:
        """Of a block."""
        options = dict(self.options)
        return options["threads"] if "threads" in options else 32 * options["num_warps"]


@dataclass(frozen=True)
class Space:
    """A ``Tunable`` in words.

    Attributes:
        name: of the tunable.
        parameters: name, values in their order, and why these.
        key: what a measurement of this launch would be filed under, its exact part; its sizes by name.
    """

    name: str
    parameters: tuple[tuple[str, tuple[Any, ...], str], ...]
    key: tuple[str, ...]
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """One launch of a call.

    Attributes:
        build: what is compiled for it.
        space: of the tunable whose configuration it runs with, if there is one.
        config: that configuration.
        tensor_cores: whether it is meant to use them.
        flops, bytes: of one block, as the tunable's cost tells them; ``None`` where nothing does.
    """

    build: Build
    space: Space | None = None
    config: tuple[tuple[str, Any], ...] = ()
    tensor_cores: bool = False
    flops: float | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Resources:
    """What a kernel's machine code needs and holds.

    Attributes:
        registers: a thread.
        stack_bytes: of local memory a thread, spilled registers included.
        spill_bytes: stored and loaded because registers ran out.
        local_accesses: instructions that load or store local memory.
        static_shared, dynamic_shared: bytes of shared memory a block.
        tensor_memory: columns (sm_100).
        scratch_bytes: of device memory that the kernel wants from Triton's allocator.
        tensor_core: number of instructions by name: HMMA, HGMMA (sm_90), UTCHMMA (sm_100), DMMA.
        wide_loads, wide_stores: global accesses of 16 bytes a thread; loads also straight into shared memory.
        bulk_copies: of whole tiles (TMA).
    """

    registers: int
    stack_bytes: int = 0
    spill_bytes: int = 0
    local_accesses: int = 0
    static_shared: int = 0
    dynamic_shared: int = 0
    tensor_memory: int = 0
    scratch_bytes: int = 0
    tensor_core: Mapping[str, int] = field(default_factory=dict)
    wide_loads: int = 0
    wide_stores: int = 0
    bulk_copies: int = 0

    @property
    def shared_bytes(self) -> int:
        return self.static_shared + self.dynamic_shared


@dataclass(frozen=True)
class Failure:
    """There is no result, and why."""

    reason: str


def faults(build: Build, resources: Resources | Failure, tensor_cores: bool = False) -> list[str]:
    """What is wrong with a build: what the GPU would refuse, and what makes it slow without anybody noticing.

    Args:
        tensor_cores: it is meant to use them.
    """
    if isinstance(resources, Failure):
        return [resources.reason]
    found = []
    if resources.spill_bytes:
        found.append(f"spills {resources.spill_bytes} bytes")
    elif resources.local_accesses:
        found.append(f"{resources.local_accesses} accesses to an array in local memory")
    limit = TARGETS[build.target].shared_bytes
    if resources.shared_bytes > limit:
        found.append(f"{resources.shared_bytes} bytes of shared memory, {build.target} has {limit}")
    if resources.tensor_memory > _MAX_TENSOR_MEMORY:
        found.append(f"{resources.tensor_memory} columns of tensor memory, {build.target} has {_MAX_TENSOR_MEMORY}")
    if resources.registers * build.threads > _REGISTERS:
        found.append(f"{resources.registers} registers x {build.threads} threads, there are {_REGISTERS}")
    if resources.scratch_bytes:
        found.append(f"wants {resources.scratch_bytes} bytes from Triton's allocator, which nobody sets")
    if tensor_cores and not resources.tensor_core:
        found.append("no tensor-core instruction")
    return found


def versions() -> dict[str, str]:
    """Versions of the compilers and of the CUDA headers that are here: the same ones give the same machine code."""
    found: dict[str, str] = {}
    for name, packages in (
        ("triton", ("triton",)),
        ("nvrtc", ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13", "nvidia-cuda-nvrtc-cu12")),
    ):
        for package in packages:
            with contextlib.suppress(PackageNotFoundError):
                found.setdefault(name, version(package))
    for directory in _cuda.include_directories():
        text = (directory / "cuda_runtime_api.h").read_text(encoding="utf-8", errors="replace")
        number = re.search(r"#define\s+CUDART_VERSION\s+(\d+)", text)
        if number:
            found["headers"] = f"{int(number[1]) // 1000}.{int(number[1]) % 1000 // 10}"
    return found


def method() -> str:
    """Digest of how kernels are compiled and read here: what results depend on beside the builds and the versions."""
    return digest([inspect.getsource(one) for one in (_specialised, _compile_triton, _compile_cuda, _cubin, _read)])


# ---- in the parent


def recorded(calls: Sequence[Call], workers: int = 2, timeout: float = 60.0) -> list[list[Recorded] | Failure]:
    """The launches of each call, without compiling anything. Arguments as of :func:`compiled`."""
    return _ask([(_launches_of, (call,)) for call in calls], workers, timeout, lambda number, answer: None)


def compiled(
    wanted: Sequence[tuple[Call, int, Build | None]],
    workers: int = 2,
    timeout: float = 300.0,
    told: Callable[[int, Resources | Failure], None] = lambda number, answer: None,
) -> list[Resources | Failure]:
    """The resources of launches, each told as a call, the launch's number in it, and what was recorded of it.

    Args:
        wanted: with a build, it is a failure if the kernel was edited since that was recorded.
        workers: how many are compiled at the same time.
        timeout: seconds for one of them.
        told: is told each result with its place as soon as it is there, in another thread, one at a time.
    """
    return _ask([(_resources_of, item) for item in wanted], workers, timeout, told)


Request = tuple[Callable[..., Any], tuple[Any, ...]]


def _ask(requests: Sequence[Request], workers: int, timeout: float, told: Callable[[int, Any], None]) -> list[Any]:
    """Each request's answer, in order; a :class:`Failure` where there is none."""
    answers: list[Any] = [Failure("not asked")] * len(requests)
    lock = threading.Lock()
    todo = iter(enumerate(requests))
    stop = False

    def serve_one(folder: Path) -> None:
        with contextlib.closing(_Worker(folder)) as worker:
            while not stop:
                with lock:
                    number, request = next(todo, (None, None))
                if number is None or request is None:
                    return
                answers[number] = worker.ask(request, timeout)
                with lock:
                    told(number, answers[number])

    with tempfile.TemporaryDirectory(prefix="tilesmith-compile-", ignore_cleanup_errors=True) as folder:
        count = max(1, min(workers, len(requests)))
        threads = [threading.Thread(target=serve_one, args=(Path(folder),), daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            stop = True
            raise
    return answers


class _Worker:
    """A process that answers requests one by one; it is replaced when it dies or takes too long."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker

    def ask(self, request: Request, timeout: float) -> Any:
        process = self._process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        self._errors.seek(0)
        self._errors.truncate()
        try:
            _send(process.stdin, request)
            replies, deadline = process.stdout.fileno(), time.monotonic() + timeout
            (size,) = _HEADER.unpack(_exactly(replies, _HEADER.size, deadline))
            answer = pickle.loads(_exactly(replies, size, deadline))
            if isinstance(answer, Failure) and (words := self._last_words()):
                return Failure(f"{answer.reason}{words}")
            return answer
        except TimeoutError:
            self._end()
            return Failure(f"no result after {timeout:g} s")
        except (EOFError, BrokenPipeError):
            code = process.wait()
            died = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            self._end()
            return Failure(f"the compiler's process died {died}{self._last_words()}")

    def close(self) -> None:
        self._end()
        self._errors.close()

    def _started(self) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_SETTINGS)}
        environment |= {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "TRITON_CACHE_DIR": str(self._folder),
            "CUPY_CACHE_DIR": str(self._folder),  # made when CuPy is imported
            "TRITON_DUMP_PTXAS_LOG": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # so that a compiler it has started ends with it
        )

    def _end(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _last_words(self) -> str:
        """What the process said of an error on its standard error, as LLVM does before an exception says less."""
        self._errors.seek(0)
        lines = [" ".join(line.split()) for line in self._errors.read().decode(errors="replace").splitlines()]
        telling = [line for line in lines if re.search(r"error:|assertion|abort", line, re.IGNORECASE)]
        return f": {telling[0][:200]}" if telling else ""


_HEADER = struct.Struct("<q")  # before each message: its length


def _send(pipe: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    pipe.write(_HEADER.pack(len(data)) + data)
    pipe.flush()


def _exactly(descriptor: int, size: int, deadline: float) -> bytes:
    """So many bytes from a pipe.

    Raises:
        TimeoutError: they did not come until then.
        EOFError: they will not come.
    """
    data = b""
    while len(data) < size:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(descriptor, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


# ---- in the worker


def serve() -> None:
    """What a worker runs: a request from standard input, its answer to standard output, until the input ends."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever compilers print must not land between the answers
    while header := sys.stdin.buffer.read(_HEADER.size):
        data = sys.stdin.buffer.read(_HEADER.unpack(header)[0])
        try:
            function, arguments = pickle.loads(data)
            answer = function(*arguments)
        except Exception as error:
            answer = Failure(_reason(error))
        _send(replies, answer)


def _reason(error: Exception) -> str:
    """One line: a compiler's messages are long, and what is wrong stands in a line with "error" or in the last one."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [""]
    telling = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    line = next((line for line in telling if "stderr" not in line), lines[-1])
    return f"{type(error).__name__}: {line[:300]}"


@cache
def _record(call: Call) -> list[Any]:
    module, name = call.function.split(":")
    with record() as launches, target(call.target):
        getattr(import_module(module), name)(*call.arguments)
    return launches


def _launches_of(call: Call) -> list[Recorded]:
    return [_described(launch, call.target) for launch in _record(call)]


def _described(launch: Any, arch: str) -> Recorded:
    notes = launch.notes
    build = _build_of_triton(launch, arch) if isinstance(launch, _triton.Launch) else _build_of_cuda(launch, arch)
    tunable: Tunable | None = notes.get("tunable")
    if tunable is None:
        return Recorded(build, tensor_cores=bool(notes.get("tensor_cores", False)))
    config, problem = notes["config"], notes["problem"]
    cost = None if tunable.cost is None else tunable.cost(config, problem)
    key = None if tunable.key is None else tunable.key(problem)
    space = Space(
        tunable.name,
        tuple((name, values, tunable.reasons.get(name, "")) for name, values in tunable.space.items()),
        () if key is None else tuple(map(str, key.exact)),
        () if key is None else tuple(key.sizes),
    )
    return Recorded(
        build,
        space,
        tuple(config.items()),
        bool(notes.get("tensor_cores", False)),
        None if cost is None else cost.flops,
        None if cost is None else cost.bytes,
    )


def _resources_of(call: Call, number: int, build: Build | None) -> Resources:
    launch = _record(call)[number]
    if build is not None and _described(launch, call.target).build != build:
        raise RuntimeError(f"{build.kernel} was edited since it was recorded")
    if isinstance(launch, _triton.Launch):
        return _compile_triton(launch, call.target)
    return _compile_cuda(launch, call.target)


def _path_and(file: Path, name: str) -> str:
    """A kernel's name for people: its file, seen from this folder, and its function."""
    try:
        return f"{file.resolve().relative_to(_ROOT).as_posix()}:{name}"
    except ValueError:
        return f"{file.name}:{name}"


# ---- Triton


class _Pointer:
    """A tensor of the ``meta`` device as Triton shall see it: allocations are aligned, views may not be.

    torch's allocator gives multiples of 512 bytes, so the offset alone tells what an address is a multiple of.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self._address = int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return self._address


def _specialised(launch: _triton.Launch, arch: str) -> tuple[Any, Any]:
    """Source and options with which Triton's JIT would compile the launch on that GPU.

    Raises:
        RuntimeError: this version's JIT is not built as those we know (3.5 to 3.9) are.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    try:
        from triton.runtime.jit import create_function_from_signature

        pack = launch.kernel._pack_args
    except (ImportError, AttributeError) as error:
        raise RuntimeError(f"cannot specialise kernels as Triton {triton.__version__} does: {error}") from error
    backend = make_backend(GPUTarget("cuda", int(arch.removeprefix("sm_")), 32))
    binder = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    arguments = {k: _Pointer(v) if isinstance(v, torch.Tensor) else v for k, v in launch.args.items()}
    keywords = {**arguments, **launch.options, "debug": False}
    bound, specialisation, options = binder(**keywords)
    options, signature, constants, attributes = pack(backend, keywords, bound, specialisation, options)
    return ASTSource(launch.kernel, signature, constants, attributes), options


def _build_of_triton(launch: _triton.Launch, arch: str) -> Build:
    source, _ = _specialised(launch, arch)
    names = list(source.signature)
    constants = [(names[i], _constant_text(value)) for (i, *_), value in source.constants.items()]
    aligned = {names[i] for (i, *_), attribute in source.attrs.items() if ["tt.divisibility", 16] in attribute}
    signature = [(n, f"{t}%16" if n in aligned else t) for n, t in source.signature.items() if t != "constexpr"]
    kernel = launch.kernel
    return Build(
        _path_and(Path(kernel.fn.__code__.co_filename), kernel.fn.__name__),
        arch,
        tuple(sorted(constants)),
        tuple(signature),
        tuple(sorted(launch.options.items())),
        _triton_source(kernel),
    )


def _constant_text(value: Any) -> str:
    value = getattr(value, "value", value)
    return str(getattr(value, "name", value))


def _compile_triton(launch: _triton.Launch, arch: str) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget

    source, options = _specialised(launch, arch)
    with contextlib.redirect_stdout(io.StringIO()) as log:
        kernel = triton.compile(
            source, target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32), options=options.__dict__
        )
    metadata = kernel.metadata
    return _read(
        kernel.asm["cubin"],
        metadata.name,
        log.getvalue(),
        dynamic_shared=metadata.shared,
        tensor_memory=getattr(metadata, "tmem_size", None) or 0,
        scratch_bytes=getattr(metadata, "global_scratch_size", None) or 0,
    )


def _triton_source(kernel: Any) -> str:
    """Digest of a kernel's text and of whatever of ours it calls or names, Triton's own library left out."""
    texts: dict[str, str] = {}

    def visit(function: Any) -> None:
        name = f"{function.fn.__module__}.{function.fn.__qualname__}"
        if name in texts:
            return
        texts[name] = _tokens(function.src)
        scope = function.fn.__globals__
        for node in ast.walk(ast.parse(function.src)):
            if not isinstance(node, ast.Name) or node.id not in scope:
                continue
            value = scope[node.id]
            if hasattr(value, "src") and not value.fn.__module__.startswith("triton."):
                visit(value)
            elif hasattr(value, "value"):  # a constexpr
                texts[f"{name}.{node.id}"] = repr(value.value)

    visit(kernel)
    return digest(sorted(texts.values()))


def _tokens(source: str) -> str:
    """A Python function's text without comments, docstring and line breaks inside brackets."""
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.FunctionDef)
    first = body.body[0]
    docstring = (first.lineno, first.end_lineno) if ast.get_docstring(body) is not None else (0, -1)
    words = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        in_docstring = docstring[0] <= token.start[0] <= (docstring[1] or 0)
        if token.type in (tokenize.COMMENT, tokenize.NL) or (in_docstring and token.type != tokenize.INDENT):
            continue
        words.append(token.string if token.type not in (tokenize.INDENT, tokenize.DEDENT) else str(token.type))
    return " ".join(words)


def digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


# ---- CUDA C++


def _build_of_cuda(launch: _cuda.Launch, arch: str) -> Build:
    program = launch.program
    x, y, z = launch.block
    return Build(
        _path_and(program.source, program.name),
        arch,
        program.macros,
        (),
        (("shared", launch.shared), ("threads", x * y * z)),
        digest([_without_comments(text) for text in _texts(program.source)]),
    )


def _texts(file: Path) -> Iterator[str]:
    """The text of a source file and of each header of ours that it includes, directly or not."""
    todo, seen = [file.resolve()], set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        text = path.read_text(encoding="utf-8")
        yield text
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
            todo += [p.resolve() for p in (path.parent / name, _cuda.INCLUDE / name) if p.exists()][:1]


def _without_comments(text: str) -> str:
    return " ".join(re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL).split())


def _compile_cuda(launch: _cuda.Launch, arch: str) -> Resources:
    cubin, log = _cubin(launch.program, arch)
    return _read(cubin, launch.program.name, log, dynamic_shared=launch.shared)


@cache
def _cubin(program: _cuda.Program, arch: str) -> tuple[bytes, str]:
    """Machine code and NVRTC's log for a program, with the options that CuPy would give."""
    from cupy._core import core
    from cupy.cuda import nvrtc

    options = (
        *core.assemble_cupy_compiler_options(_cuda.options(program)),
        "-ftz=true",
        f"-arch={arch}",
        "--device-as-default-execution-space",
        "--ptxas-options=-v",
    )
    handle = nvrtc.createProgram(program.source.read_text(encoding="utf-8"), program.source.name, (), ())
    try:
        nvrtc.compileProgram(handle, options)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(nvrtc.getProgramLog(handle)) from error
    try:
        # CuPy cuts off the last byte, as if it were the end of a string; the driver does not mind, nvdisasm does
        return nvrtc.getCUBIN(handle) + b"\0", nvrtc.getProgramLog(handle)
    finally:
        nvrtc.destroyProgram(handle)


# ---- machine code


def _read(cubin: bytes, name: str, log: str, **known: int) -> Resources:
    """What the compiler's log and the machine code say of one kernel."""
    part = re.search(
        rf"Compiling entry function '{re.escape(name)}'(.*?)(?=Compiling entry function|\Z)", log, re.DOTALL
    )
    if part is None:
        raise RuntimeError(f"the assembler said nothing of {name}: {log[:200]!r}")
    frame, used, static = (pattern.search(part[1]) for pattern in (_FRAME, _USED, _STATIC))
    if frame is None or used is None:
        raise RuntimeError(f"the assembler's report of {name} cannot be read: {part[1][:200]!r}")
    instructions = _INSTRUCTION.findall(_disassembled(cubin, name))
    tensor_core: dict[str, int] = {}
    for instruction in instructions:
        mnemonic = instruction.split(".")[0]
        if _TENSOR_CORE.fullmatch(mnemonic):
            tensor_core[mnemonic] = tensor_core.get(mnemonic, 0) + 1
    return Resources(
        registers=int(used[1]),
        stack_bytes=int(frame[1]),
        spill_bytes=int(frame[2]) + int(frame[3]),
        local_accesses=_count(r"(LDL|STL)\b", instructions),
        static_shared=int(static[1]) if static else 0,
        tensor_core=dict(sorted(tensor_core.items())),
        wide_loads=_count(r"(LDG|LDGSTS)\.(.*\.)?128\b", instructions),
        wide_stores=_count(r"STG\.(.*\.)?128\b", instructions),
        bulk_copies=_count(r"UBLKCP|UTMALDG|UTMASTG|UTMAREDG", instructions),
        **known,
    )


def _count(pattern: str, instructions: Sequence[str]) -> int:
    return sum(re.match(pattern, instruction) is not None for instruction in instructions)


def tool(name: str) -> Path | None:
    """A program of NVIDIA's that Triton's wheel brings (ptxas, nvdisasm), or ``None``."""
    spec = find_spec("triton")
    for root in spec.submodule_search_locations if spec and spec.submodule_search_locations else ():
        path = Path(root) / "backends" / "nvidia" / "bin" / name
        if path.exists():
            return path
    return None


def _disassembled(cubin: bytes, name: str) -> str:
    """The instructions of one kernel, a line each."""
    nvdisasm = tool("nvdisasm")
    if nvdisasm is None:
        raise RuntimeError("nvdisasm, which Triton's wheel brings, is not there: pip install triton")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        result = subprocess.run([nvdisasm, "-c", file.name], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"nvdisasm: {result.stderr.strip()}")
    sections = re.split(r"^\s*\.section\s+\.text\.(\S+?),.*$", result.stdout, flags=re.MULTILINE)
    return "".join(text for title, text in zip(sections[1::2], sections[2::2], strict=True) if title == name)
