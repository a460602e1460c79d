"""What the CUDA C++ kernels of pooling may be run with: spaces, constraints, keys, costs, defaults.

Three spaces serve all kernels: tiles of maps with channels inside, bands of planes that go through shared memory (each
with one tunable forward and one backward), and windows that a block or several reduce together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

from ...autotune import Config, Cost, Device, Key, Tunable, fastest
from .._division import blocks_of, power_of_two

# Of what lies in L2 a block reads at about four times the rate of device memory.
_L2_SHARE = 0.25
_REGISTERS = 128  # a thread, up to which a tile is worth it
_COPY = 5  # instructions for 16 bytes between the two memories
_LINE_BYTES = 64  # of neighbours in memory, the least that a tile takes
_GRID = 2**31  # blocks that a launch must have fewer of
_STRIP = 8  # rows of elements that look their windows up, of which a thread takes ROWS times as many


@dataclass(frozen=True)
class Taps:
    """Windows along one axis.

    Attributes:
        kernel, stride, dilation: of windows that slide; adaptive ones count with their mean size and distance.
        count: of windows.
        size: of the input.
    """

    kernel: int
    stride: int
    dilation: int
    count: int
    size: int

    @property
    def reach(self) -> int:
        """Elements from a window's first to its last."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def back(self) -> int:
        """Windows before that still see the first element of a window."""
        return (self.kernel - 1) * self.dilation // self.stride

    @property
    def meeting(self) -> float:
        """Windows that see an element, on average."""
        return self.kernel * self.count / self.size

    def span(self, windows: int) -> int:
        """Elements under so many neighbouring windows."""
        return (windows - 1) * self.stride + self.reach

    def read(self, windows: int) -> int:
        """As :meth:`span`, without those between the taps."""
        return windows * self.kernel if self.dilation > 1 else min(self.span(windows), windows * self.kernel)


def _unit(itemsize: int) -> str:
    """Of a multiprocessor, that computes with elements of so many bytes."""
    return "double" if itemsize == 8 else "fma"


# ---- channels inside


@dataclass(frozen=True)
class Channels:
    """One launch of ``forward_channels`` or ``spread_channels``.

    Attributes:
        way: "max" and "mean" forward; of means backward "spread" with windows that slide, "cover" where elements look
            their windows up.
        taps: of rows and columns.
        places: rows and columns of windows that tiles are cut from (backward enough of them to cover the input), or of
            elements if those are looked up.
        images, packs: threads a place has: images, and groups of ``width`` channels.
        lanes: neighbouring threads that are neighbouring channels.
        itemsize, index_itemsize: of an element, and of what tells its place (0: nothing).
        options: everything else that changes the machine code.
    """

    way: str
    taps: tuple[Taps, Taps]
    places: tuple[int, int]
    images: int
    packs: int
    width: int
    lanes: int
    itemsize: int
    index_itemsize: int
    options: tuple[object, ...]
    device: Device

    @property
    def channel_blocks(self) -> int:
        return blocks_of(self.packs, self.lanes)

    @property
    def key(self) -> Key:
        d = self.device
        windows = tuple((axis.kernel, axis.stride, axis.dilation) for axis in self.taps)
        exact = (self.way, windows, self.width, self.lanes, self.itemsize, self.index_itemsize, *self.options)
        sizes = {"rows": self.places[0], "columns": self.places[1], "images": self.images, "packs": self.packs}
        return Key((*exact, d.name, d.multiprocessors, d.shared_bytes), sizes)


def _fold_effort(maxima: bool, itemsize: int, index_itemsize: int) -> float:
    """Instructions that one more element of a window costs."""
    if not maxima:
        return 1.0
    if itemsize == 2:  # two at a time
        return 1.5 if index_itemsize else 0.5
    return 4.0 if index_itemsize else 3.0


def _channels_registers(config: Config, problem: Channels) -> int:
    """What a thread holds: sums or maxima of its tile, and a row of what it loads."""
    words = problem.width * problem.itemsize / 4  # of what one access brings
    wide = problem.width * max(4, problem.itemsize) / 4
    h, w = problem.taps
    tile = config["ROWS"] * config["COLS"]
    if problem.way == "cover":
        held = wide + 2 * words
    elif problem.way == "max":
        held = (tile + config["COLS"]) * words * (2 if problem.index_itemsize else 1) + w.span(config["COLS"]) * words
    elif problem.way == "mean":
        held = (tile + 1) * wide + w.span(config["COLS"]) * words
    else:
        held = (tile * h.stride + config["COLS"]) * w.stride * wide + (config["COLS"] + w.back) * words
    return int(36 + held)


def _channels_refusal(config: Config, problem: Channels) -> str | None:
    rows, columns = problem.places
    tile = config["ROWS"] * config["COLS"]
    if problem.way == "cover" and config["ROWS"] > 1:
        return "rows of elements that look their windows up share nothing"
    if config["COLS"] > 4 and problem.way != "cover":
        return f"{config['COLS']} windows side by side take too many registers"
    if config["ROWS"] > power_of_two(rows) or config["COLS"] > power_of_two(columns):
        return f"{config['ROWS']} x {config['COLS']} are more than all {rows} x {columns}"
    if config["DOWN"] > power_of_two(blocks_of(rows, config["ROWS"])):
        return f"there are no {config['DOWN']} tiles below each other"
    if config["DOWN"] > config["THREADS"] // problem.lanes:
        return f"a block has no {config['DOWN']} tiles"
    registers = _channels_registers(config, problem)
    if tile > 1 and registers > _REGISTERS:
        return f"{config['ROWS']} x {config['COLS']} take {registers} registers"
    return None


def _channels_cost(config: Config, problem: Channels) -> Cost:
    """Instructions as they are counted in the machine code of common windows."""
    rows, columns, threads = config["ROWS"], config["COLS"], config["THREADS"]
    h, w = problem.taps
    width, size, index = problem.width, problem.itemsize, problem.index_itemsize
    tiles_h, tiles_w = blocks_of(problem.places[0], rows), blocks_of(problem.places[1], columns)
    positions = problem.images * blocks_of(tiles_h, config["DOWN"]) * config["DOWN"] * tiles_w
    forward = problem.way in ("max", "mean")
    if forward:
        loads, made = h.read(rows) * w.read(columns), rows * columns
        fold = _fold_effort(problem.way == "max", size, index)
        effort = h.read(rows) * columns * (w.kernel - 1) * fold + made * (h.kernel - 1) * (fold + 0.3)
        effort += loads * (1.0 if problem.way == "mean" else 0.5) + made * 2
        fresh = made * h.size * w.size / (h.count * w.count)
        below = h.span(rows * config["DOWN"]) / max(1, h.stride * rows * config["DOWN"])
    elif problem.way == "cover":
        changes = min(columns, 1 + columns * w.count / w.size)
        loads, made = changes * h.meeting * w.meeting, columns
        effort = loads * 2 + changes * 0.5
        fresh, below = made * h.count * w.count / (h.size * w.size), 1.0
    else:
        seen_h, seen_w = rows + h.back, columns + w.back
        loads, made = seen_h * seen_w, rows * columns * h.stride * w.stride
        effort = loads + seen_h * columns * w.kernel + rows * h.kernel * columns * w.stride + made * 0.5
        fresh, below = rows * columns, (rows * config["DOWN"] + h.back) / (rows * config["DOWN"])
    instructions = 110 + loads * (10 if problem.way != "cover" else 30) + made * (8 if problem.way != "cover" else 20)
    instructions += effort * width
    halo = max(0.0, below - 1) * fresh
    return Cost(
        blocks=blocks_of(positions, threads // problem.lanes) * problem.channel_blocks,
        flops=2 * instructions * threads,
        unit=_unit(problem.itemsize),
        bytes=threads * width * ((fresh + halo * _L2_SHARE) * size + made * (size + index)),
        shared_traffic=threads * width * loads * size,
        steps=0.5 * (h.read(rows) if forward else 1.0),
        threads=threads,
        registers=min(255, _channels_registers(config, problem)),
    )


def _channels(name: str) -> Tunable:
    tunable = Tunable(
        name,
        {"ROWS": (2, 1, 4), "COLS": (2, 4, 1, 8), "DOWN": (4, 1, 16), "THREADS": (128, 256)},
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_channels_refusal,
        reasons={
            "ROWS": "windows a thread has below each other: a row they share is loaded once; 1 where none is shared",
            "COLS": "windows side by side: as ROWS; 4 where they take few registers, 8 for elements of large windows",
            "DOWN": "tiles below each other that are neighbours: rows they share come from L1; 1 where none is shared",
            "THREADS": "128 leave no thread idle in small maps, 256 share more rows",
        },
        key=lambda problem: problem.key,
        cost=_channels_cost,
    )
    return tunable


CHANNELS_FORWARD = _channels("cupy.pool2d.channels_forward")
CHANNELS_BACKWARD = _channels("cupy.pool2d.channels_backward")


# ---- gradients of maxima with channels inside


@dataclass(frozen=True)
class Scatter:
    """One launch of ``scatter_channels``.

    Attributes:
        taps: of rows and columns.
        plane: rows and columns of the elements.
        meeting: the least distance of windows that never meet.
        images, packs: as in :class:`Channels`.
        width: channels of a thread.
        itemsize, index_itemsize, held: bytes of an element, of what tells a place, of a sum in shared memory.
        options: everything else that changes the machine code.
    """

    taps: tuple[Taps, Taps]
    plane: tuple[int, int]
    meeting: tuple[int, int]
    images: int
    packs: int
    width: int
    itemsize: int
    index_itemsize: int
    held: int
    options: tuple[object, ...]
    device: Device

    @property
    def key(self) -> Key:
        d = self.device
        windows = tuple((axis.kernel, axis.stride, axis.dilation) for axis in self.taps)
        exact = (windows, self.meeting, self.width, self.itemsize, self.index_itemsize, self.held, *self.options)
        sizes = {"rows": self.plane[0], "columns": self.plane[1], "images": self.images, "packs": self.packs}
        return Key((*exact, d.name, d.multiprocessors, d.shared_bytes), sizes)


@dataclass(frozen=True)
class Tiling:
    """How ``scatter_channels`` cuts a map.

    Attributes:
        lanes: neighbouring threads that are neighbouring channels.
        tile: rows and columns of a block's elements.
        patch: rows and columns of windows that a thread takes one after the other.
        phases: of patches, down and across.
        shared: bytes of shared memory.
    """

    lanes: int
    tile: tuple[int, int]
    patch: tuple[int, int]
    phases: tuple[int, int]
    shared: int


def tiling(config: Config, problem: Scatter) -> Tiling | None:
    """The tile of ``BAND`` bytes that the fewest windows see beside the elements they share. ``None`` if one pixel is
    too large."""
    return _tiling(config["BAND"], config["LANES"], problem)


@lru_cache(maxsize=4096)
def _tiling(band: int, lanes: int, problem: Scatter) -> Tiling | None:
    height, width = problem.plane
    pixel = (lanes * problem.width + lanes) * problem.held
    fitting = band // pixel
    if not fitting:
        return None
    tiles = []
    for parts in range(1, width + 1):
        columns = blocks_of(width, parts)
        rows = min(height, fitting // columns)
        if rows:
            rows = blocks_of(height, blocks_of(height, rows))
            tiles.append((_seen(problem, rows, columns) / (rows * columns), rows, columns))
            if rows == height:
                break
    _, rows, columns = min(tiles)
    patch = tuple(max(1, distance - 1) for distance in problem.meeting)
    phases = tuple(2 if distance > 1 else 1 for distance in problem.meeting)
    shared = blocks_of(rows * columns * pixel, 16) * 16
    return Tiling(lanes, (rows, columns), (patch[0], patch[1]), (phases[0], phases[1]), shared)


def _seen(problem: Scatter, rows: int, columns: int) -> int:
    """Windows that see a tile, at most."""
    seen = [
        min(axis.count, (size + axis.reach - 2) // axis.stride + 1)
        for size, axis in zip((rows, columns), problem.taps, strict=True)
    ]
    return seen[0] * seen[1]


def _scatter_refusal(config: Config, problem: Scatter) -> str | None:
    lanes = config["LANES"]
    if lanes > power_of_two(problem.packs):
        return f"there are only {problem.packs} groups of {problem.width} channels"
    if lanes < problem.packs and lanes * problem.width * problem.itemsize < _LINE_BYTES:
        return f"{lanes * problem.width} channels are less than {_LINE_BYTES} bytes of memory"
    found = tiling(config, problem)
    if found is None or found.shared > problem.device.shared_bytes:
        return f"no pixel of {lanes * problem.width} channels fits into {config['BAND']} bytes"
    return None


def _scatter_cost(config: Config, problem: Scatter) -> Cost:
    found = tiling(config, problem)
    assert found is not None
    threads, lanes, width, size = config["THREADS"], found.lanes, problem.width, problem.itemsize
    rows, columns = found.tile
    height, wide = problem.plane
    tiles = blocks_of(height, rows) * blocks_of(wide, columns)
    windows = _seen(problem, rows, columns)
    slots = threads // lanes
    phases = found.phases[0] * found.phases[1]
    patches = blocks_of(windows, found.patch[0] * found.patch[1])
    rounds = phases * blocks_of(blocks_of(patches, phases), slots) * found.patch[0] * found.patch[1]
    pixels = blocks_of(rows * columns, slots)
    used = lanes * width * min(1.0, problem.packs / (blocks_of(problem.packs, lanes) * lanes))
    read = size + problem.index_itemsize
    fresh = problem.taps[0].count * problem.taps[1].count / tiles
    return Cost(
        blocks=problem.images * tiles * blocks_of(problem.packs, lanes),
        flops=2 * threads * (250 + rounds * (45 + 18 * width) + pixels * (14 + 2 * width)),
        unit=_unit(problem.itemsize),
        bytes=used * ((fresh + max(0.0, windows - fresh) * _L2_SHARE) * read + rows * columns * size),
        shared_traffic=windows * lanes * width * 12 + rows * columns * lanes * width * 2 * problem.held,
        steps=1.0 + phases,
        shared=found.shared,
        threads=threads,
        registers=72,
    )


SCATTER: Tunable = Tunable(
    "cupy.pool2d.scatter",
    {"BAND": (32768, 16384, 24576, 49152, 65536), "LANES": (8, 4, 16, 32, 2, 1), "THREADS": (128, 256)},
    default=lru_cache(maxsize=4096)(lambda problem: fastest(SCATTER, problem, problem.device)),
    refusal=_scatter_refusal,
    reasons={
        "BAND": "bytes of shared memory a block: large tiles share fewer windows with others, small ones fill the card",
        "LANES": "neighbouring threads along channels: 4 read 64 bytes at a time; more make tiles of fewer pixels",
        "THREADS": "256 for tiles of many windows",
    },
    key=lambda problem: problem.key,
    cost=_scatter_cost,
)


# ---- planes, by bands in shared memory


@dataclass(frozen=True)
class Bands:
    """One launch of ``forward_planes``, ``spread_planes`` or ``scatter_planes``.

    Attributes:
        way: "max" and "mean" forward with windows that slide, "walk" with windows that threads walk through;
            "spread" and "cover" backward of means, with windows that slide or are looked up; "scatter" of maxima.
        taps: of rows and columns.
        box: rows and columns that blocks cut boxes from: of windows; backward of elements (of the padded input for
            "spread").
        source: rows and columns of what is brought to shared memory.
        outside: whether there are rows, and columns, around it that windows (or elements) see.
        images, planes: planes lie side by side, images need not.
        sources, made: bytes of an element of each tensor that is brought and that is made.
        held: bytes of an element of what is made first, as long as it is in shared memory.
        width: tiles that a thread makes at once, in halves of its registers.
        maxima, adaptive: of maxima, not means; of windows that do not have one size and one distance.
        options: everything else that changes the machine code.
    """

    way: str
    taps: tuple[Taps, Taps]
    box: tuple[int, int]
    source: tuple[int, int]
    outside: tuple[bool, bool]
    images: int
    planes: int
    sources: tuple[int, ...]
    made: tuple[int, ...]
    held: int
    width: int
    maxima: bool
    adaptive: bool
    options: tuple[object, ...]
    device: Device

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a box that a tile of one by one takes."""
        if self.way == "cover":
            return _STRIP, 1
        return (self.taps[0].stride, self.taps[1].stride) if self.way == "spread" else (1, self.width)

    def seen(self, axis: int, length: int) -> int:
        """Rows (columns) of the source, at most, that so many of a box see; also outside."""
        taps = self.taps[axis]
        if self.adaptive:
            return blocks_of(length * self.source[axis], self.box[axis]) + 1
        if self.way in ("max", "mean", "walk"):
            return taps.span(length)
        return blocks_of(length, taps.stride) + taps.back + (self.way != "spread")

    def brought(self, axis: int, length: int) -> int:
        """As :meth:`seen`, inside."""
        return min(self.source[axis], self.seen(axis, length))

    @property
    def key(self) -> Key:
        d = self.device
        windows = tuple((axis.kernel, axis.stride, axis.dilation) for axis in self.taps)
        moved = (self.sources, self.made, self.held, self.width)
        exact = (self.way, windows, self.outside, *moved, self.maxima, self.adaptive)
        sizes = {"rows": self.box[0], "columns": self.box[1], "planes": self.images * self.planes}
        return Key((*exact, *self.options, d.name, d.multiprocessors, d.shared_bytes), sizes)


@dataclass(frozen=True)
class Plan:
    """How a launch cuts its planes into boxes, and how a block's shared memory is laid out.

    Attributes:
        group: planes of a box, whole ones if there are several.
        rows, columns: of a box.
        tiles: rows and columns of tiles in a box.
        flat: whether a box has whole rows.
        runs: what lies in one piece in shared memory (``_bands.cuh``).
        source_pitches, made_pitches: elements between runs in shared memory.
        sources, made, tables: where each buffer begins, in bytes.
        shared: bytes in all.
    """

    group: int
    rows: int
    columns: int
    tiles: tuple[int, int]
    flat: bool
    runs: str
    source_pitches: tuple[int, ...]
    made_pitches: tuple[int, ...]
    sources: tuple[int, ...]
    made: tuple[int, ...]
    tables: int
    shared: int


def _whole(elements: int, itemsize: int) -> int:
    """So many elements and as many as may lie before them in their first 16 bytes, in whole 16 bytes."""
    vector = 16 // itemsize
    return blocks_of(elements + vector - 1, vector) * vector


def _layout(tile: tuple[int, int], problem: Bands, group: int, rows: int, columns: int) -> Plan:
    """``tile``: rows and columns of a box that a thread's tile takes."""
    flat = columns == problem.box[1]
    runs = "ROW_RUNS" if not flat else "PLANE_RUNS" if any(problem.outside) else "ONE_RUN"
    seen_h, seen_w = problem.seen(0, rows), problem.seen(1, columns)
    if not any(problem.outside):
        seen_h, seen_w = min(seen_h, problem.source[0]), min(seen_w, problem.source[1])
    across = problem.source[1] if flat else seen_w
    tiles = blocks_of(rows, tile[0]), blocks_of(columns, tile[1])
    # what tiles that hang over a box's edges read, and do not use
    over = [
        blocks_of(count * step - size, axis.stride) if problem.way == "spread" else (count * step - size) * axis.stride
        for count, step, size, axis in zip(tiles, tile, (rows, columns), problem.taps, strict=True)
    ]
    # what windows at the right edge read behind a plane's last row, and do not use
    behind = max(0, seen_w - problem.source[1]) if runs == "PLANE_RUNS" else 0
    at = 0
    begins: list[int] = []
    pitches: list[int] = []
    for size in problem.sources:
        pitch = _whole(seen_h * across if runs == "PLANE_RUNS" else across, size)
        elements = {
            "ONE_RUN": _whole((group if group > 1 else 0) * problem.source[0] * across or seen_h * across, size),
            "PLANE_RUNS": group * pitch,
            "ROW_RUNS": seen_h * pitch,
        }[runs]
        before = _whole(problem.taps[1].reach, size) if runs == "PLANE_RUNS" else 0
        begins.append(at + before * size)
        pitches.append(pitch)
        hanging = over[0] * (pitch if runs == "ROW_RUNS" else across) + over[1]
        at += (before + elements + _whole(hanging + behind, size)) * size
        at = blocks_of(at, 16) * 16
    for size, held in zip(problem.made, (problem.held, *problem.made[1:]), strict=True):
        pitch = _whole(columns, size)
        begins.append(at)
        pitches.append(pitch)
        at += (_whole(group * rows * columns, size) if flat else rows * pitch) * held
        at = blocks_of(at, 16) * 16
    tables = at
    accumulator = max(4, problem.made[0])
    if problem.way == "cover":
        at += 16 * rows + 8 * columns + accumulator * (seen_h + seen_w)
    elif problem.way == "spread":
        for count, step, axis in zip(tiles, tile, problem.taps, strict=True):
            at += accumulator * (count * step // axis.stride + axis.back)
    elif problem.way in ("mean", "walk"):
        at += accumulator * (tiles[0] * tile[0] + tiles[1] * tile[1])
    split = len(problem.sources)
    return Plan(
        group, rows, columns, tiles, flat, runs, tuple(pitches[:split]), tuple(pitches[split:]), tuple(begins[:split]),
        tuple(begins[split:]), tables, blocks_of(at, 16) * 16,
    )  # fmt: skip


def _most(limit: int, unit: int, fits: Callable[[int], bool]) -> int:
    """The size, up to ``limit``, of parts as equal as whole units allow and as large as fit; 0 if no unit does."""
    low, high = 0, blocks_of(limit, unit)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(min(middle * unit, limit)) else (low, middle - 1)
    return low and min(limit, blocks_of(blocks_of(limit, blocks_of(limit, low * unit)), unit) * unit)


def plan(config: Config, problem: Bands) -> Plan | None:
    """Boxes of as many whole planes as fit into ``BAND`` bytes; else whole rows of one; else pieces of rows. In equal
    parts. ``None`` if not even the least box fits."""
    return _plan(config["BAND"], config["ROWS"], config["COLS"], problem)


@lru_cache(maxsize=4096)
def _plan(band: int, tile_rows: int, tile_columns: int, problem: Bands) -> Plan | None:
    height, width = problem.box
    unit_h = 1 if problem.way == "scatter" else problem.tile[0] * tile_rows
    unit_w = problem.tile[1] * tile_columns

    def layout(group: int, rows: int, columns: int) -> Plan:
        return _layout((unit_h, unit_w), problem, group, rows, columns)

    def fits(group: int, rows: int, columns: int) -> bool:
        return layout(group, rows, columns).shared <= band

    if group := _most(problem.planes, 1, lambda group: fits(group, height, width)):
        return layout(group, height, width)
    if rows := _most(height, unit_h, lambda rows: fits(1, rows, width)):
        return layout(1, rows, width)
    rows = min(unit_h, height)
    if columns := _most(width, unit_w, lambda columns: fits(1, rows, columns)):
        return layout(1, rows, columns)
    return None


def _bands_refusal(config: Config, problem: Bands) -> str | None:
    rows, columns, team = config["ROWS"], config["COLS"], config.get("TEAM", 1)
    h, w = problem.taps
    if team > 1 and (problem.way != "walk" or team > power_of_two(h.kernel * w.kernel) // 4):
        return f"windows have no work for {team} threads"
    if problem.way == "walk" and rows * columns > 1:
        return "threads that walk through one window make no tile"
    if problem.way == "scatter" and columns > 1:
        return "a strip is one column of windows"
    height, width = problem.box
    if rows > power_of_two(blocks_of(height, problem.tile[0])) or columns > power_of_two(
        blocks_of(width, problem.tile[1])
    ):
        return f"{rows} x {columns} are more than all {height} x {width}"
    held = {"max": 2, "mean": 2, "spread": h.stride * w.stride}.get(problem.way, 1) * rows * columns
    if held > 64:
        return f"{held} registers for sums or maxima"
    found = plan(config, problem)
    if found is None or found.shared > problem.device.shared_bytes:
        return f"no box fits into {config['BAND']} bytes"
    return None


def _conflicts(stride: int, itemsize: int) -> int:
    """How often threads whose elements lie ``stride`` apart meet in a bank of shared memory."""
    size = stride * itemsize
    return max(1, gcd(size // 4, 32)) if size % 4 == 0 else 1


def _bands_cost(config: Config, problem: Bands) -> Cost:
    """Instructions as they are counted in the machine code of common windows."""
    found = plan(config, problem)
    assert found is not None
    rows, columns, threads, team = config["ROWS"], config["COLS"], config["THREADS"], config.get("TEAM", 1)
    h, w = problem.taps
    width, size = problem.width, problem.made[0]
    index = len(problem.made) > 1
    boxes = blocks_of(problem.box[0], found.rows) * blocks_of(problem.box[1], found.columns)
    tiles = found.group * found.tiles[0] * found.tiles[1]
    conflicts: float = _conflicts(columns * w.stride, size)
    masked = found.runs == "PLANE_RUNS" and problem.outside[1]
    if problem.way in ("max", "mean"):
        seen, loads, outputs = h.read(rows), h.read(rows) * w.read(columns) * width, rows * columns * width
        fold = _fold_effort(problem.maxima, size, index)
        load = 1.5 if problem.maxima and size == 2 else 2.0 if problem.way == "mean" else 1.0
        effort = 95 + seen * (2 + columns * width * (w.kernel - 1) * fold) + loads * (load + 0.7 * masked)
        effort += outputs * ((h.kernel - 1) * (fold + 0.4) + (11 if index else 6))
        stored = outputs * len(problem.made)
    elif problem.way == "walk":
        tiles *= team
        loads = h.kernel * w.kernel / team
        effort = 80 + h.kernel * 12 + loads * (8.5 if problem.maxima else 5.7) + 12 * (team.bit_length() - 1)
        stored = 2 / team
        # windows that are not all one distance apart do not meet in one bank
        conflicts = 1.3 if problem.adaptive or team > 1 else conflicts
    elif problem.way == "spread":
        seen, loads = rows + h.back, (rows + h.back) * (columns + w.back)
        stored = rows * columns * h.stride * w.stride
        effort = 65 + seen * (2 + columns * w.kernel) + loads * (2.2 + masked) + stored * 4
        effort += rows * h.kernel * columns * w.stride
        conflicts = _conflicts(columns, size)
    elif problem.way == "cover":
        stored = rows * _STRIP * columns
        changes = 1 + rows * _STRIP * min(1.0, (2 - (h.size % h.count == 0)) * h.count / h.size)
        loads = columns + changes * (1 + columns * h.meeting * w.meeting * 2)
        effort = 45 + changes * (20 + columns * (10 + 25 * h.meeting * w.meeting)) + stored * (1.7 + 1.5 / columns)
        conflicts = 1
    else:
        tiles = found.group * problem.brought(0, found.rows) * problem.brought(1, found.columns)
        loads, effort, stored, conflicts = 3, 34 + 45 / rows, 1, 1
    rounds = blocks_of(tiles, threads) * threads
    brought = sum(problem.sources) * found.group
    source = problem.source[0] * problem.source[1] / boxes * brought
    staged = problem.brought(0, found.rows) * problem.brought(1, found.columns) * brought if boxes > 1 else source
    out = found.group * found.rows * found.columns * sum(problem.made)
    held = found.group * found.rows * found.columns * problem.held if problem.way == "scatter" else 0
    copy = _COPY if found.runs == "ONE_RUN" or (found.group == 1 and found.flat) else 3 * _COPY
    instructions = rounds * effort + staged / 16 * copy + (out + 2 * held) / 16 * _COPY + 300 * threads
    return Cost(
        blocks=problem.images * blocks_of(problem.planes, found.group) * boxes,
        flops=2 * instructions,
        unit=_unit(problem.made[0]),
        bytes=source + max(0.0, staged - source) * _L2_SHARE + out,
        shared_traffic=rounds * (loads * conflicts + stored) * max(4, size) + staged + out + 2 * held,  # banks: 4 bytes
        steps=2.0,
        shared=found.shared,
        threads=threads,
        registers=56 if rows * columns * width <= 8 else 80,
    )


def _bands(name: str, **more: tuple[int, ...]) -> Tunable:
    tunable = Tunable(
        name,
        {"BAND": (16384, 8192, 32768, 65536), "ROWS": (4, 8, 7, 2, 1), "COLS": (1, 2), **more, "THREADS": (128, 256)},
        default=lru_cache(maxsize=4096)(lambda problem: fastest(tunable, problem, problem.device)),
        refusal=_bands_refusal,
        reasons={
            "BAND": "bytes of shared memory a block: small ones fill the card with few planes, large ones repeat fewer "
            "rows at their edges; 64 KB are for rows that nothing else holds",
            "ROWS": "windows a thread has below each other, which share rows: 8 share most, 7 divide common maps; of "
            "maxima backward, those of a strip",
            "COLS": "windows side by side: 2 of a half type fit one register",
            "TEAM": "threads that share a window: 1 for small ones, 32 for whole planes",
            "THREADS": "128 wait for each other less, 256 share a larger band",
        },
        key=lambda problem: problem.key,
        cost=_bands_cost,
    )
    return tunable


BANDS_FORWARD = _bands("cupy.pool2d.bands_forward", TEAM=(1, 8, 32))
BANDS_BACKWARD = _bands("cupy.pool2d.bands_backward")


# ---- windows that blocks reduce


@dataclass(frozen=True)
class Reduce:
    """One launch of ``reduce_channels`` or ``reduce_planes``.

    Attributes:
        windows: over images (and, in planes, channels).
        area: elements of one.
        fresh: of those, what no window before has read.
        packs, width, lanes: as in :class:`Channels`; 1, 1 and 1 in planes.
        vector: elements that one load brings.
        itemsize, index_itemsize: of an element, and of what tells its place (0: nothing).
        maxima: not means.
        options: everything else that changes the machine code.
    """

    windows: int
    area: int
    fresh: float
    packs: int
    width: int
    lanes: int
    vector: int
    itemsize: int
    index_itemsize: int
    maxima: bool
    options: tuple[object, ...]
    device: Device

    @property
    def channel_blocks(self) -> int:
        return blocks_of(self.packs, self.lanes)

    @property
    def key(self) -> Key:
        d = self.device
        exact = (self.width, self.lanes, self.vector, self.itemsize, self.index_itemsize, self.maxima, *self.options)
        sizes = {"windows": self.windows, "area": self.area, "packs": self.packs}
        return Key((*exact, d.name, d.multiprocessors, d.shared_bytes), sizes)


def _loads(config: Config, problem: Reduce) -> float:
    """Of a thread."""
    each = problem.area if problem.lanes > 1 or problem.width > 1 else problem.area / problem.vector
    return each * problem.lanes / config["THREADS"] / config["SPLITS"]


def _reduce_refusal(config: Config, problem: Reduce) -> str | None:
    if config["THREADS"] < problem.lanes:
        return f"{problem.lanes} neighbouring channels need as many threads"
    if problem.windows * problem.channel_blocks * config["SPLITS"] >= _GRID:
        return "there are more blocks than a grid has"
    if config["SPLITS"] > 1 and _loads(config, problem) < 2:
        return f"{config['SPLITS']} parts leave no work to a thread"
    if config["THREADS"] * problem.width * (16 if problem.itemsize == 8 else 8) > 48 * 1024:
        return "partial results need more than 48 KB"
    return None


def _reduce_cost(config: Config, problem: Reduce) -> Cost:
    threads, splits = config["THREADS"], config["SPLITS"]
    outputs = problem.windows * problem.packs * problem.width
    part = 8 if problem.itemsize == 8 else 4
    loads = max(1.0, _loads(config, problem))
    elements = problem.width if problem.width > 1 else problem.vector
    fold = 5 if problem.maxima else 2
    halves = (threads // problem.lanes).bit_length() - 1
    lanes = min(problem.lanes, problem.packs) * problem.width
    read = problem.fresh + max(0.0, problem.area - problem.fresh) * _L2_SHARE
    return Cost(
        blocks=problem.windows * problem.channel_blocks * splits,
        flops=2 * threads * (120 + loads * (14 + elements * fold) + halves * problem.width * 12),
        unit=_unit(problem.itemsize),
        bytes=lanes * (read / splits * problem.itemsize + problem.itemsize + problem.index_itemsize),
        steps=1 + loads / 4 + halves / 8,
        shared=threads * problem.width * 2 * part,
        threads=threads,
        registers=40 + 3 * problem.width * part // 4,
        extra_bytes=2 * splits * outputs * (part + 4) if splits > 1 else 0,
        extra_launches=int(splits > 1),
    )


REDUCE: Tunable = Tunable(
    "cupy.pool2d.reduce",
    {"THREADS": (128, 256, 64, 32), "SPLITS": (1, 4, 16, 64)},
    default=lru_cache(maxsize=4096)(lambda problem: fastest(REDUCE, problem, problem.device)),
    refusal=_reduce_refusal,
    reasons={
        "THREADS": "128 and 256 for windows of many elements; 32 and 64 leave small ones less to put together",
        "SPLITS": "parts of a window: 1 where windows fill the card, more for few large ones",
    },
    key=lambda problem: problem.key,
    cost=_reduce_cost,
)
