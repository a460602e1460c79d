"""What the Triton kernels of convolution may be run with: spaces, constraints, keys, costs, defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from ...autotune import Config, Cost, Device, Key, Tunable, fastest
from .._division import blocks_of, power_of_two

_MOST_ACCUMULATORS = {"half": 128, "tf32": 128, "fma": 64, "double": 32}


def _most_accumulators(problem: Product) -> int:
    """Accumulators a thread that leave room for addresses: found by compiling, as `docs/kernels.md` shows."""
    most = _MOST_ACCUMULATORS[problem.unit]
    if problem.unit == "tf32" and problem.device.arch == "sm_100":
        most = 32
    if problem.passes > 1:  # each operand is split into two, and three products made of them
        most = min(most, 16)
    if problem.packed:
        most = max(8, most // (8 if problem.unit == "fma" else 4))
    return most


# Of what lies in L2 a tile reads at about four times the rate of device memory.
_L2_SHARE = 0.25


@dataclass(frozen=True)
class Product:
    """One launch of a product kernel: ``batch`` products of ``[rows, depth] x [depth, columns]``.

    Attributes:
        inner: channels at one tap; the depth is ``taps`` times that (for the weight's gradient: pixels, one "tap").
        reuse: elements of the source an output row reads that no other row does, as a multiple of ``inner``: at most
            the stride squared, and at most the taps. For the weight's gradient, where each tap is a product of its own
            that reads both operands: one part of as many as there are.
        packed: small groups lie side by side; a tile that is computed again needs a second set of accumulators.
        unit: what multiplies: "half", "tf32", "fma" or "double"; ``passes`` products of it make one.
        options: everything else that changes the machine code: kernel size, stride, dilation, layouts.
        written: bytes written for each of the product's, below 1 where the epilogue pools.
    """

    rows: int
    columns: int
    inner: int
    taps: float
    batch: int
    reuse: float
    packed: bool
    itemsize: int
    unit: str
    passes: int
    options: tuple[object, ...]
    device: Device
    written: float = 1.0

    @property
    def key(self) -> Key:
        sizes = {"rows": self.rows, "columns": self.columns, "depth": self.inner * self.taps, "batch": self.batch}
        d = self.device
        return Key(
            (self.unit, self.packed, self.itemsize, *self.options, d.name, d.multiprocessors, d.shared_bytes), sizes
        )


def _shared(config: Config, problem: Product) -> int:
    """Bytes of the pipeline's tiles; the epilogue turns its tile in the same memory."""
    stage = (config["BLOCK_M"] + config["BLOCK_N"]) * config["BLOCK_K"] * problem.itemsize
    return max(config["num_stages"] * stage, config["BLOCK_M"] * config["BLOCK_N"] * problem.itemsize)


def _refusal(config: Config, problem: Product) -> str | None:
    m, n, k, warps = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"], config["num_warps"]
    accumulators = m * n // (32 * warps)
    if accumulators > _most_accumulators(problem):
        return f"{accumulators} accumulators a thread spill"
    if k > 16 and (
        (problem.packed and problem.unit == "fma") or (problem.passes > 1 and problem.device.arch == "sm_100")
    ):
        return f"BLOCK_K={k} spills beside a second set of accumulators or of operands"
    if warps == 8 and (m < 128 or accumulators < 16):
        return "8 warps are two groups of 64 rows: BLOCK_M must be 128, with 16 accumulators a thread"
    if n > max(16, power_of_two(problem.columns)):
        return f"BLOCK_N={n} is more than all {problem.columns} columns"
    if m > max(64, power_of_two(problem.rows)):
        return f"BLOCK_M={m} is more than all {problem.rows} rows"
    if k > max(16, power_of_two(problem.inner)):
        return f"BLOCK_K={k} is more than the {problem.inner} elements of a run"
    if k * problem.itemsize > 128:
        return "rows of more than 128 bytes do not fit the swizzle"
    shared = _shared(config, problem)
    if shared > problem.device.shared_bytes:
        return f"{shared} bytes of shared memory, {problem.device.name} has {problem.device.shared_bytes}"
    return None


def _gathered_refusal(config: Config, problem: Product) -> str | None:
    """Of the kernel that gathers its source element by element: an address and a mask for each."""
    gathered = config["BLOCK_M"] * config["BLOCK_K"] // (32 * config["num_warps"])
    if gathered > 32:
        return f"{gathered} gathered elements a thread spill"
    return _refusal(config, problem)


def _cost(config: Config, problem: Product) -> Cost:
    m, n, k, warps = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"], config["num_warps"]
    tiles_n = blocks_of(problem.columns, n)
    blocks = blocks_of(problem.rows, m) * tiles_n * problem.batch
    steps = max(problem.taps, 0.01) * blocks_of(problem.inner, k)
    source = min(m, problem.rows) * problem.inner * problem.reuse * problem.itemsize
    filters = min(n, problem.columns) * problem.inner * problem.taps * problem.itemsize
    result = min(m, problem.rows) * min(n, problem.columns) * problem.itemsize * problem.written
    return Cost(
        blocks=blocks,
        flops=2 * m * n * k * steps * problem.passes,
        unit=problem.unit,
        bytes=source * (1 + (tiles_n - 1) * _L2_SHARE) / tiles_n + filters * _L2_SHARE + result,
        shared_traffic=steps * k * problem.itemsize * (m + n * max(1, m // 64)),
        steps=steps / (config["num_stages"] - 1),
        shared=_shared(config, problem),
        threads=32 * warps,
        registers=min(255, 48 + m * n // (32 * warps) + (m + n) * k // (256 * warps)),
    )


_PRODUCT_REASONS = {
    "BLOCK_M": "64 rows are one warp group's instruction; 128 and 256 read the filters less often",
    "BLOCK_N": "16 is the least an instruction takes; up to 128, beyond which the accumulators leave no registers",
    "BLOCK_K": "16 for few channels, 32 and 64 elements are 64 and 128 bytes, the swizzle's widths",
    "num_warps": "4 is one warp group, 8 two, for tiles of 128 rows and more",
    "num_stages": "3 hide one tile's latency, 4 also that of device memory where shared memory allows",
}


def _product(name: str, refusal: Callable[[Config, Product], str | None] = _refusal) -> Tunable:
    tunable = Tunable(
        name,
        {
            "BLOCK_M": (128, 64, 256),
            "BLOCK_N": (128, 64, 32, 16),
            "BLOCK_K": (64, 32, 16),
            "num_warps": (8, 4),
            "num_stages": (3, 4),
        },
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=refusal,
        reasons=_PRODUCT_REASONS,
        key=lambda problem: problem.key,
        cost=_cost,
    )
    return tunable


FORWARD = _product("triton.conv2d.forward")
FORWARD_FLAT = _product("triton.conv2d.forward_few_channels", _gathered_refusal)
INPUT_GRAD = _product("triton.conv2d.input_grad")


# ---- the weight's gradient: rows are output channels, columns taps and channels, the depth all pixels

_SLAB_BYTES = 32 * 1024 * 1024


def _split_refusal(config: Config, problem: Product) -> str | None:
    m, n, warps = config["BLOCK_M"], config["BLOCK_N"], config["num_warps"]
    accumulators = m * n // (32 * warps)
    if accumulators > _most_accumulators(problem):
        return f"{accumulators} accumulators a thread spill"
    if warps == 8 and (m < 128 or accumulators < 16):
        return "8 warps are two groups of 64 rows: BLOCK_M must be 128, with 16 accumulators a thread"
    if config["BLOCK_K"] * problem.itemsize > 128:
        return "rows of more than 128 bytes do not fit the swizzle"
    if m > max(16, power_of_two(problem.rows)) or n > max(16, power_of_two(problem.columns)):
        return f"{m} x {n} is more than all of {problem.rows} x {problem.columns}"
    shared = _shared(config, problem)
    if shared > problem.device.shared_bytes:
        return f"{shared} bytes of shared memory, {problem.device.name} has {problem.device.shared_bytes}"
    return None


def slabs_of(config: Config, problem: Product) -> int:
    """Into how many slabs the pixels are cut: for ``BLOCKS`` blocks a multiprocessor, each with a few steps of its own,
    and for slabs of 32 MB at most."""
    tiles = blocks_of(problem.rows, config["BLOCK_M"]) * blocks_of(problem.columns, config["BLOCK_N"]) * problem.batch
    wanted = problem.device.multiprocessors * config["BLOCKS"] // tiles
    slab_bytes = problem.rows * problem.columns * problem.batch * max(4, problem.itemsize)
    return max(1, min(wanted, problem.inner // (4 * config["BLOCK_K"]), _SLAB_BYTES // slab_bytes))


def _split_cost(config: Config, problem: Product) -> Cost:
    m, n, k, warps = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"], config["num_warps"]
    split = slabs_of(config, problem)
    tiles_m, tiles_n = blocks_of(problem.rows, m), blocks_of(problem.columns, n)
    steps = max(1.0, problem.inner / k / split)
    pixels = problem.inner / split
    once = min(m, problem.rows) / tiles_n + min(n, problem.columns) / tiles_m
    operands = pixels * once * problem.reuse * problem.itemsize
    again = pixels * (min(m, problem.rows) + min(n, problem.columns)) * problem.itemsize * _L2_SHARE
    slab = problem.rows * problem.columns * problem.batch * max(4, problem.itemsize)
    return Cost(
        blocks=tiles_m * tiles_n * problem.batch * split,
        flops=2 * m * n * k * steps * problem.passes,
        unit=problem.unit,
        bytes=max(operands, again),
        shared_traffic=steps * k * problem.itemsize * (m + n * max(1, m // 64)),
        steps=steps / (config["num_stages"] - 1),
        shared=_shared(config, problem),
        threads=32 * warps,
        registers=min(255, 64 + m * n // (32 * warps) + (m + n) * k // (256 * warps)),
        extra_bytes=2 * split * slab,
        extra_launches=1,
    )


WEIGHT_GRAD: Tunable = Tunable(
    "triton.conv2d.weight_grad",
    {
        "BLOCK_M": (128, 64, 32, 16),
        "BLOCK_N": (128, 64, 32, 16),
        "BLOCK_K": (64, 32, 16),
        "num_warps": (8, 4),
        "num_stages": (3, 4),
        "BLOCKS": (2, 1, 4),
    },
    default=lru_cache(maxsize=4096)(lambda problem: fastest(WEIGHT_GRAD, problem, problem.device)),
    refusal=_split_refusal,
    reasons={
        "BLOCK_M": "output channels: 64 and 128 feed a warp group, 16 and 32 are for layers that have no more",
        "BLOCK_N": "input channels at a tap: as BLOCK_M",
        "BLOCK_K": "pixels a step: 32 and 64 rows of each operand, 16 of float64; more leaves no room for stages",
        "num_warps": "4 is one warp group, 8 two, for tiles of 128 rows",
        "num_stages": "3 hide one tile's latency, 4 also that of device memory where shared memory allows",
        "BLOCKS": "blocks a multiprocessor, from which the number of slabs follows: 1 is the least that fills all, 2 "
        "and 4 hide each other's latency where they fit",
    },
    key=lambda problem: problem.key,
    cost=_split_cost,
)


# ---- depthwise: bytes to move


@dataclass(frozen=True)
class Depthwise:
    """One launch of a depthwise kernel: ``rows`` pixels (of ``phases`` phases each) by ``channels``.

    Attributes:
        taps: of a phase.
        read: elements of the source read from device memory for each element of the result.
    """

    rows: int
    channels: int
    taps: float
    phases: int
    read: float
    planar: bool
    itemsize: int
    options: tuple[object, ...]
    device: Device

    @property
    def unit(self) -> str:
        return "double" if self.itemsize == 8 else "fma"

    @property
    def key(self) -> Key:
        d = self.device
        sizes = {"rows": self.rows, "channels": self.channels}
        return Key((self.planar, self.itemsize, *self.options, d.name, d.multiprocessors, d.shared_bytes), sizes)


def _tile_refusal(config: Config, problem: Depthwise) -> str | None:
    m, c, warps = config["BLOCK_M"], config["BLOCK_C"], config["num_warps"]
    each = m * c // (32 * warps)
    most = max(1, 120 // int(max(1.0, problem.taps)))
    if not min(2, most) <= each <= min(16, most):
        return f"{each} elements a thread: up to 16 and {most} keep all taps' loads in registers"
    if c > max(1 if problem.planar else 32, power_of_two(problem.channels)):
        return f"BLOCK_C={c} is more than all {problem.channels} channels"
    return None


def _tile_cost(config: Config, problem: Depthwise) -> Cost:
    m, c, warps = config["BLOCK_M"], config["BLOCK_C"], config["num_warps"]
    blocks = blocks_of(problem.rows, m) * blocks_of(problem.channels, c) * problem.phases
    # a product, a sum, and about four instructions of addresses and masks a tap, shared by what a thread loads at once
    wide = 1 if problem.planar else min(16 // problem.itemsize, m * c // (32 * warps))
    return Cost(
        blocks=blocks,
        flops=m * c * problem.taps * (2 + 8 / wide),
        unit=problem.unit,
        bytes=m * c * (problem.read + 1) * problem.itemsize,
        # every tap's load passes the L1 cache, which is what shared memory is made of
        shared_traffic=m * c * problem.taps * problem.itemsize,
        threads=32 * warps,
        registers=min(255, 40 + 4 * m * c // (32 * warps)),
    )


def _tile(name: str, blocks_m: tuple[int, ...], blocks_c: tuple[int, ...]) -> Tunable:
    tunable = Tunable(
        name,
        {"BLOCK_M": blocks_m, "BLOCK_C": blocks_c, "num_warps": (2, 4, 8)},
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_tile_refusal,
        reasons={
            "BLOCK_M": "pixels: a few rows' worth, so that taps are found in the L1 cache",
            "BLOCK_C": "channels: 16 bytes a thread where they are innermost, else a few planes at once for small ones",
            "num_warps": "2 to 8, for 2 to 16 elements a thread",
        },
        key=lambda problem: problem.key,
        cost=_tile_cost,
    )
    return tunable


DEPTHWISE = {
    False: _tile("triton.conv2d.depthwise.channels_last", (16, 8, 32, 4), (64, 32, 128)),
    True: _tile("triton.conv2d.depthwise.planar", (128, 256, 512), (1, 2, 4)),
}


_MOST_TILE_SUMS = 72  # registers a thread for the taps' sums; with more taps than 9 as many loads wait beside them
_MOST_TILE_SUMS_MANY = 25


def taps_at_once(taps: int, config: Config) -> int:
    """Taps whose sums fit in registers beside each other: as few passes over both tensors as can be."""
    each = max(1, config["BLOCK_M"] * config["BLOCK_C"] // (32 * config["num_warps"]))
    most = max(1, (_MOST_TILE_SUMS if taps <= 9 else _MOST_TILE_SUMS_MANY) // each)
    passes = blocks_of(taps, most)
    return blocks_of(taps, passes)


def _taps_refusal(config: Config, problem: Depthwise) -> str | None:
    m, c, warps = config["BLOCK_M"], config["BLOCK_C"], config["num_warps"]
    each = m * c // (32 * warps)
    if not 1 <= each <= 8:
        return f"{each} elements a thread: with 9 taps, 8 make 72 sums, all that fit"
    if c > max(1 if problem.planar else 32, power_of_two(problem.channels)):
        return f"BLOCK_C={c} is more than all {problem.channels} channels"
    return None


def pixel_slabs(config: Config, problem: Depthwise) -> int:
    """Into how many slabs the pixels are cut, as in :func:`slabs_of`."""
    taps = int(problem.taps)
    tiles = blocks_of(problem.channels, config["BLOCK_C"]) * blocks_of(taps, taps_at_once(taps, config))
    wanted = problem.device.multiprocessors * config["BLOCKS"] // tiles
    slab_bytes = problem.channels * taps * max(4, problem.itemsize)
    return max(1, min(wanted, problem.rows // (4 * config["BLOCK_M"]), _SLAB_BYTES // slab_bytes))


def _taps_cost(config: Config, problem: Depthwise) -> Cost:
    m, c, warps = config["BLOCK_M"], config["BLOCK_C"], config["num_warps"]
    split = pixel_slabs(config, problem)
    tiles_c = blocks_of(problem.channels, c)
    passes = blocks_of(int(problem.taps), taps_at_once(int(problem.taps), config))
    pixels = problem.rows / split
    slabs = split * problem.channels * problem.taps * 4
    wide = 1 if problem.planar else min(16 // problem.itemsize, m * c // (32 * warps))
    return Cost(
        blocks=tiles_c * split * passes,
        flops=pixels * c * problem.taps / passes * (2 + 8 / wide),
        unit=problem.unit,
        bytes=pixels * c * (problem.read + 1) * problem.itemsize,
        shared_traffic=pixels * c * problem.taps / passes * problem.itemsize,
        threads=32 * warps,
        registers=min(255, 48 + (int(problem.taps) // passes + 3) * m * c // (32 * warps)),
        extra_bytes=2 * slabs,
        extra_launches=1,
    )


def _taps(name: str, blocks_m: tuple[int, ...], blocks_c: tuple[int, ...]) -> Tunable:
    tunable = Tunable(
        name,
        {
            "BLOCK_M": blocks_m,
            "BLOCK_C": blocks_c,
            "num_warps": (4, 8),
            "BLOCKS": (2, 4, 8),
        },
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_taps_refusal,
        reasons={
            "BLOCK_M": "pixels a step: 1 to 8 elements a thread, each with a sum a tap",
            "BLOCK_C": "channels: 16 bytes a thread where they are innermost",
            "num_warps": "4 or 8; more threads leave fewer registers for sums",
            "BLOCKS": "blocks a multiprocessor, from which the number of slabs follows: as many as its registers hold",
        },
        key=lambda problem: problem.key,
        cost=_taps_cost,
    )
    return tunable


DEPTHWISE_WEIGHT_GRAD = {
    False: _taps("triton.conv2d.depthwise_weight_grad.channels_last", (16, 8, 4), (64, 32, 128)),
    True: _taps("triton.conv2d.depthwise_weight_grad.planar", (128, 256, 512), (1, 2)),
}

TUNABLES = (FORWARD, FORWARD_FLAT, INPUT_GRAD, WEIGHT_GRAD, *DEPTHWISE.values(), *DEPTHWISE_WEIGHT_GRAD.values())
