"""What the Triton kernels of softmax may be run with: tiles, constraints, costs, defaults."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ...autotune import Config, Cost, Tunable, fastest
from .._division import blocks_of, power_of_two
from ._slices import Parts, Softmax, parts_of


@dataclass(frozen=True)
class Tile:
    """What a program holds at once; where that is all of its slices they are read once."""

    slices: int
    length: int

    @property
    def elements(self) -> int:
        return self.slices * self.length


def tile(config: Config, problem: Softmax) -> Tile:
    """Rows: as many as fit beside each other. Columns: as told. No longer than slices are."""
    if problem.inner == 1:
        length = min(power_of_two(problem.length), config["ELEMENTS"])
        return Tile(config["ELEMENTS"] // length, length)
    return Tile(config["BLOCK_SLICES"], min(power_of_two(problem.length), config["ELEMENTS"] // config["BLOCK_SLICES"]))


def parts(config: Config, problem: Softmax, of: Tile) -> Parts:
    return parts_of(problem, blocks_of(problem.length, of.length), of.slices, config["BLOCKS"])


# Registers a thread for the elements of a tile with which nothing spills, by bytes of an element and number of warps;
# found by compiling. Where slices are read once, for all tensors; in two passes, for one.
_MOST_WORDS = {4: {32: 32, 16: 64, 8: 64, 4: 64, 2: 64}, 8: {32: 16, 16: 32, 8: 64, 4: 64, 2: 64}}
_MOST_WORDS_IN_TWO_PASSES = {4: {32: 8, 16: 16, 8: 16, 4: 16, 2: 16}, 8: {32: 4, 16: 8, 8: 8, 4: 8, 2: 8}}
_LEAST_RUN = 32  # bytes of neighbouring columns: a sector


def _words(config: Config, problem: Softmax, of: Tile) -> int:
    """Registers a thread for a tile's elements of one tensor."""
    return of.elements // (32 * config["num_warps"]) * problem.accumulator_bytes // 4


def _refusal(config: Config, problem: Softmax) -> str | None:
    of, warps = tile(config, problem), config["num_warps"]
    whole = of.length >= problem.length
    each = of.elements // (32 * warps)
    if each * problem.itemsize < 16 and of.elements == config["ELEMENTS"]:
        return f"{each} elements a thread are less than 16 bytes"
    words = _words(config, problem, of) * (problem.reads if whole else 1)
    if words > (_MOST_WORDS if whole else _MOST_WORDS_IN_TWO_PASSES)[problem.accumulator_bytes][warps]:
        return f"{words} registers a thread for elements spill"
    if config["ELEMENTS"] > _ELEMENTS[0] and of.slices > power_of_two(problem.slices):
        return f"{of.slices} slices are more than all {problem.slices}"
    if config["BLOCKS"] != _BLOCKS[0]:
        if whole:
            return "slices that are read once are not cut"
        if blocks_of(problem.slices, of.slices) >= 4 * problem.device.multiprocessors:
            return "slices that fill the GPU are not cut"
    return None


def _columns_refusal(config: Config, problem: Softmax) -> str | None:
    of = tile(config, problem)
    if of.slices > max(_COLUMNS[-1], power_of_two(problem.slices)):
        return f"{of.slices} slices are more than all {problem.slices}"
    if of.slices * problem.itemsize < _LEAST_RUN <= problem.inner * problem.itemsize:
        return f"{of.slices} neighbours are less than {_LEAST_RUN} bytes"
    if of.elements < config["ELEMENTS"] > _ELEMENTS[0]:
        return f"{config['ELEMENTS']} elements are more than {of.slices} slices of {problem.length}"
    return _refusal(config, problem)


def _cost(config: Config, problem: Softmax) -> Cost:
    of, threads = tile(config, problem), 32 * config["num_warps"]
    cut = parts(config, problem, of)
    whole = of.length >= problem.length
    # a block's own elements: lanes beyond the end of a slice move nothing
    elements = min(of.slices, problem.slices) * problem.length / cut.count
    # columns in runs that are short for the memory's lines
    lines = 1.0 if problem.inner == 1 else 1 + 8 / (of.slices * problem.itemsize)
    cost = Cost(
        blocks=blocks_of(problem.slices, of.slices) * cut.count,
        flops=of.elements * cut.steps * problem.flops(1 if whole else 2) + 2 * 120 * threads,
        unit=problem.unit,
        bytes=elements * problem.itemsize * (problem.reads + 1) * lines,
        # loads that wait for one another, as if stores took part in the waiting
        steps=0 if whole else cut.steps * (2 * problem.reads + 1) / problem.reads + cut.count // of.length,
        shared=8 * threads,
        threads=threads,
        registers=min(255, 16 + _words(config, problem, of) * (problem.reads * 14 if whole else 24) // 10),
        extra_bytes=4 * cut.count * problem.slices * problem.accumulator_bytes if cut.count > 1 else 0,
        extra_launches=int(cut.count > 1),
    )
    return cost if whole else problem.with_second_reads(cost, elements)


_ELEMENTS = (1024, 2048, 4096, 8192, 16384, 32768)
_COLUMNS = (128, 64, 256, 32, 16, 8)
_BLOCKS = (2, 4, 1)
_REASONS = {
    "ELEMENTS": "of a tile: powers of two up to 32768, which is 32 a thread of 32 warps; short slices share one",
    "num_warps": "few leave registers for several slices, 16 and 32 hold the longest that are read once",
    "BLOCKS": "blocks a multiprocessor, from which the number of parts follows where slices are few and long",
}


def _rows(name: str) -> Tunable:
    tunable = Tunable(
        name,
        {"ELEMENTS": _ELEMENTS, "num_warps": (4, 8, 2, 16, 32), "BLOCKS": _BLOCKS},
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_refusal,
        reasons=_REASONS,
        key=lambda problem: problem.key,
        cost=_cost,
    )
    return tunable


def _columns(name: str) -> Tunable:
    tunable = Tunable(
        name,
        {
            "ELEMENTS": _ELEMENTS[:5],
            "BLOCK_SLICES": _COLUMNS,
            "num_warps": (4, 8, 2, 16),
            "BLOCKS": _BLOCKS,
        },
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_columns_refusal,
        reasons={
            **_REASONS,
            "BLOCK_SLICES": "neighbours in memory: 128 fill lines, fewer leave room for whole slices, 8 are the least",
        },
        key=lambda problem: problem.key,
        cost=_cost,
    )
    return tunable


FORWARD = {False: _rows("triton.softmax.rows"), True: _columns("triton.softmax.columns")}
BACKWARD = {False: _rows("triton.softmax.rows_backward"), True: _columns("triton.softmax.columns_backward")}
TUNABLES = (*FORWARD.values(), *BACKWARD.values())
