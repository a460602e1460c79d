"""Compiles a program with g++ to a shared object, once for the same text.

The preprocessed text is rewritten where CUDA's shared memory has no counterpart: a static variable goes into a section
of its own, which the runtime poisons between blocks, and a dynamic one becomes a pointer to the runtime's buffer.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from tilesmith.kernels._cuda import INCLUDE, Program

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "cuda_host"

_RUNTIME = HERE / "runtime.cpp"
# What every program includes, compiled once: half of a program's time went into reading it.
_PRELUDE = ("cuda_host.h", "cuda_bf16.h", "cuda_fp16.h", "cstring", "vector")

# Contraction to fused multiply-adds would depend on the CPU; casts between pointers are how kernels move vectors; local
# arrays that nobody wrote hold a pattern (a scalar that the optimiser keeps in a register may not).
_COMMON = (
    "-std=c++17",
    "-pipe",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-fno-exceptions",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-ftrivial-auto-var-init=pattern",
    "-w",
    "-fmax-errors=5",
)
_PLAIN = ("-O0",)  # g++ then takes two thirds of the time, and small kernels run no slower than fibers switch
_SANITIZED = (
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize=object-size",  # AddressSanitizer says more about the same
    "-fno-sanitize-recover=undefined",
    "-fsanitize-sections=tilesmith_shared_*",
)

# The runtime has the other libraries: looking into them takes as long as g++.
_LINK: dict[bool, tuple[str, ...]] = {False: ("-nodefaultlibs", "-lgcc"), True: ()}

_HOST = "-DTILESMITH_HOST=1"

_INCLUDE_LINE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
_DYNAMIC = re.compile(r"\bextern\s+__shared__\s+([^;=(){}]*?(?:\([^;={}]*\)[^;=(){}]*?)*)(\w+)\s*\[\s*\]([^;]*);")
_BOUNDS = re.compile(r"\b__launch_bounds__\s*\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)")
_STATIC = re.compile(r"\b(?:static\s+)?__shared__\b")


class CompileError(RuntimeError):
    """g++ refuses a program; the message holds what it says."""


def library(program: Program, sanitize: bool) -> Path:
    """The shared object of a program, compiled if it is not in the cache."""
    runtime = runtime_library(sanitize)
    macros = "".join(f"#define {name} {value}\n" for name, value in program.macros)
    include = (f"-I{HERE}", f"-I{INCLUDE}", "-include", str(prelude(sanitize)))
    texts = sorted((path, path.read_bytes()) for path in {program.source, *_includes(program.source)})
    key = _digest(
        runtime.parent.name,
        program.name,
        macros,
        *_LINK[sanitize],
        *(part for path, text in texts for part in (path.name, text)),
    )

    def build(folder: Path) -> None:
        what = f"{program.source.name}: {program.name} ({' '.join(f'{n}={v}' for n, v in program.macros)})"
        listing, defined = folder / "kernel.ii", folder / "macros.h"
        # behind the prelude: a macro with the name of anything in it would have it read as text
        defined.write_text(macros, encoding="utf-8")
        command = ("g++", *_flags(sanitize), *include, "-include", str(defined), _HOST, "-fpch-preprocess")
        text = _run((*command, "-x", "c++", "-E", str(program.source)), what)
        defined.unlink()
        listing.write_text(rewritten(text, program.name), encoding="utf-8")
        target = folder / "kernel.so"
        link = ("-shared", "-o", str(target), str(runtime), f"-Wl,-rpath,{runtime.parent}", *_LINK[sanitize])
        _run(("g++", *_flags(sanitize), "-fpreprocessed", "-x", "c++", str(listing), "-x", "none", *link), what)
        listing.unlink()

    return _cached(key, build) / "kernel.so"


@cache
def prelude(sanitize: bool) -> Path:
    """The header with which each program begins, precompiled beside it."""
    headers = sorted(path for path in HERE.iterdir() if path.suffix == ".h")
    key = _digest(
        _compiler(),
        *_flags(sanitize),
        *_PRELUDE,
        *(part for path in headers for part in (path.name, path.read_bytes())),
    )

    def build(folder: Path) -> None:
        header = folder / "prelude.h"
        header.write_text("".join(f"#include <{name}>\n" for name in _PRELUDE), encoding="utf-8")
        command = ("g++", *_flags(sanitize), f"-I{HERE}", _HOST, "-x", "c++-header", str(header))
        _run((*command, "-o", str(folder / "prelude.h.gch")), "the prelude")

    return _cached(key, build) / "prelude.h"


@cache
def runtime_library(sanitize: bool) -> Path:
    """The shared object with fibers, barriers and shared memory, which all programs are linked to."""
    headers = sorted(path for path in HERE.iterdir() if path.suffix in {".h", ".cpp"})
    key = _digest(
        _compiler(), *_flags(sanitize), *(part for path in headers for part in (path.name, path.read_bytes()))
    )
    name = "libtilesmith_host_sanitized.so" if sanitize else "libtilesmith_host.so"

    def build(folder: Path) -> None:
        visible = [flag for flag in _flags(sanitize) if flag != "-fvisibility=hidden"]
        optimised = ("-O2", "-Wl,-Bsymbolic", f"-Wl,-soname,{name}", "-shared")
        _run(("g++", *visible, *optimised, f"-I{HERE}", str(_RUNTIME), "-o", str(folder / name)), _RUNTIME.name)

    return _cached(key, build) / name


def rewritten(text: str, kernel: str) -> str:
    """A program's preprocessed text with its shared memory placed and its entry for the runtime appended."""
    text = _DYNAMIC.sub(_pointer_to_dynamic, text)
    definition = re.search(rf"\b{kernel}\s*\(", text)
    before = list(_BOUNDS.finditer(text, 0, definition.start() if definition else 0))
    own = before and not re.search("[;{}]", text[before[-1].end() : definition.start() if definition else 0])
    max_threads = f"tilesmith_host::first_of({before[-1][1]})" if own else "1024"
    text = _BOUNDS.sub("", text)
    count = 0

    def place(_: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return f'static __attribute__((section("tilesmith_shared_{count - 1}")))'

    text = _STATIC.sub(place, text)
    hidden = '__attribute__((weak, visibility("hidden")))'  # a template that nobody uses has no section
    sections = [f"tilesmith_shared_{i}" for i in range(count)]
    bounds = "".join(f"extern char __start_{name}[] {hidden}, __stop_{name}[] {hidden};\n" for name in sections)
    pairs = ", ".join(f"{{__start_{name}, __stop_{name}}}" for name in sections)
    kind = f"tilesmith_host::Kernel<decltype(&{kernel})>"
    return (
        f'{text}\n# 1 "the entry of {kernel}"\nextern "C" {{\n{bounds}'
        f"static char* const tilesmith_sections[][2] = {{{pairs or '{nullptr, nullptr}'}}};\n"
        f'extern __attribute__((visibility("default"))) const tilesmith_host::Entry tilesmith_entry;\n'
        f"const tilesmith_host::Entry tilesmith_entry = {{&{kind}::invoke<&{kernel}>, {kind}::count, "
        f"{kind}::parameters, {max_threads}, {count}, tilesmith_sections}};\n}}\n"
    )


def _pointer_to_dynamic(match: re.Match[str]) -> str:
    element, name, rest = match.groups()
    plain = re.sub(r"(?:__attribute__|alignas)\s*(\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))", "", element).strip()
    if rest.strip():  # the rows of a matrix
        return f"{plain} (* const {name}){rest} = reinterpret_cast<{plain} (*){rest}>(tilesmith_host::dynamic_shared);"
    return f"{plain} * const {name} = reinterpret_cast<{plain} *>(tilesmith_host::dynamic_shared);"


def _flags(sanitize: bool) -> tuple[str, ...]:
    return (*_COMMON, *(_SANITIZED if sanitize else _PLAIN))


@cache
def _compiler() -> str:
    return subprocess.run(("g++", "--version"), capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _includes(source: Path) -> Iterator[Path]:
    """The library's own headers that a file includes, directly or not, whatever its conditions say."""
    seen: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        for name in _INCLUDE_LINE.findall(path.read_text(encoding="utf-8")):
            for folder in (path.parent, HERE, INCLUDE):
                header = (folder / name).resolve()
                if header.is_file():
                    if header not in seen:
                        seen.add(header)
                        waiting.append(header)
                        yield header
                    break


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:24]


def _run(command: Sequence[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{what} does not compile for the host: {done.stderr.strip()}")
    return done.stdout


def _cached(key: str, build: Callable[[Path], None]) -> Path:
    """The folder of a key, which appears in the cache all at once: other processes may be building the same."""
    folder = CACHE / key
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=CACHE))
        try:
            build(unfinished)
            try:
                os.rename(unfinished, folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder
