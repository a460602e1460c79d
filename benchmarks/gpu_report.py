"""What a GPU run leaves behind: everything as JSON, a table, a drawing, and words for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from .layers import CONTIGUOUS, IMAGES
from .report import Table, time_words

Results = Mapping[str, Any]
Entry = Mapping[str, Any]  # one of a result's rows

_TORCH = "torch"
_FACTS = ("device", "multiprocessors", "driver", "cuda", "cudnn", "torch", "triton", "cupy", "numpy", "python")


def write(results: Results, out: Path) -> None:
    """``results.json``, ``results.md`` and ``results.svg``, each whole or as it was."""
    texts = {
        "results.json": json.dumps(results, indent=1) + "\n",
        "results.md": markdown(results),
        "results.svg": drawing(results),
    }
    for name, text in texts.items():
        unfinished = out / f".{name}"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(out / name)


# ---- figures of a row


def ours(row: Entry, layout: str) -> dict[str, Any]:
    """The sides that are not torch, by backend."""
    return {side["who"]: side for side in _sides(row, layout) if side["who"] != _TORCH}


def best_seconds(row: Entry, layout: str) -> float | None:
    """Of the faster backend."""
    times = [side["median_seconds"] for side in ours(row, layout).values()]
    return min((time for time in times if time is not None), default=None)


def torch_seconds(row: Entry, layout: str) -> float | None:
    """torch's median with all tensors in a layout."""
    side = row["sides"].get(f"{_TORCH} {layout}")
    seconds: float | None = None if side is None else side["median_seconds"]
    return seconds


def ratio(row: Entry, layout: str) -> float | None:
    """How many times as fast as torch in the same layout the faster backend is."""
    return _times(torch_seconds(row, layout), best_seconds(row, layout))


def _times(theirs: float | None, mine: float | None) -> float | None:
    return None if mine is None or theirs is None else theirs / mine


def best_torch_seconds(row: Entry) -> float | None:
    """torch's median in the layout that suits it best."""
    times = [torch_seconds(row, layout) for layout in row["targets"]]
    return min((time for time in times if time is not None), default=None)


def of_floor(row: Entry, layout: str) -> float | None:
    """The least time that can be, over ours."""
    mine = best_seconds(row, layout)
    return None if mine is None else float(row["floor_seconds"] / mine)


def met(row: Entry, layout: str) -> bool | None:
    """Whether the target is, ``None`` where there is none, or nothing to judge it by: a wrong kernel misses it."""
    if not row["timed"]:
        return None
    target = row["targets"][layout]
    verdicts = []
    if target["ratio"] is not None and torch_seconds(row, layout) is not None:
        verdicts.append((ratio(row, layout), target["ratio"]))
    if target["of_floor"] is not None:
        verdicts.append((of_floor(row, layout), target["of_floor"]))
    return all(reached is not None and reached >= wanted for reached, wanted in verdicts) if verdicts else None


def _sides(row: Entry, layout: str) -> list[dict[str, Any]]:
    return [side for side in row["sides"].values() if side["layout"] == layout]


# ---- words


def line(row: Entry) -> str:
    """A row in one line."""
    parts = []
    for layout in row["targets"]:
        times = [f"{side['who']} {_time(side)}" for side in _sides(row, layout)]
        parts.append(f"{layout} {', '.join(times)}")
    return "; ".join(parts)


def headlines(results: Results) -> list[str]:
    """What one wants to know first."""
    rows, facts = results["rows"], results["facts"]
    timed = [row for row in rows if row["timed"]]
    verdicts = [met(row, layout) for row in rows for layout in row["targets"]]
    found = [f"{len(timed)} of {results['rows_in_all']} rows timed in {results['seconds']:.0f} s"]
    if facts and facts["kind"] == "cpu":
        found.insert(1, "a trial of this program on a CPU: tiny layers, no figure means anything")
    if results["stopped"]:
        found[0] += f" ({results['stopped']})"
    judged = [verdict for verdict in verdicts if verdict is not None]
    found.append(f"{sum(judged)} of {len(judged)} targets met" if judged else "no target could be judged")
    sides = [side for row in rows for side in row["sides"].values()]
    for status in ("wrong", "failed", "unavailable"):
        count = sum(side["status"] == status for side in sides)
        if count:
            found.append(f"{count} {status}")
    first_calls = sorted(s["first_call_seconds"] for s in sides if s["who"] != _TORCH and s["first_call_seconds"])
    if first_calls:
        middle = first_calls[len(first_calls) // 2]
        found.append(f"first calls of ours (with compilation): median {middle:.2g} s, longest {first_calls[-1]:.2g} s")
    if results["tests"]:
        found.append(f"tests: {results['tests']['words']}")
    elif results["tests"] is None:
        found.append("no tests were run")
    if "copy_bytes_per_second" in facts:
        copy, product = facts["copy_bytes_per_second"] / 1e12, facts["matmul_bfloat16_flops"] / 1e12
        found.append(f"this card: a copy moves {copy:.3g} TB/s, a bfloat16 product makes {product:.4g} TFLOP/s")
    return found


def main_table(results: Results, with_target_only: bool = False) -> Table:
    """One line a row and layout."""
    who = _backends(results)
    header = ("layer", "dtype", "direction", "layout", *who, "torch", "best", "x torch", "x best", "of floor")
    table = Table("ours beside torch", (*header, "target", "met"), words=4)
    for row in results["rows"]:
        best = best_torch_seconds(row)
        for layout, target in row["targets"].items():
            if with_target_only and (not any(target.values()) or not row["timed"]):
                continue
            mine, sides = best_seconds(row, layout), ours(row, layout)
            table.rows.append(
                (
                    row["layer"],
                    row["dtype"],
                    row["direction"],
                    layout,
                    *(_time(sides.get(name)) for name in who),
                    _time(row["sides"].get(f"{_TORCH} {layout}")),
                    "-" if best is None else time_words(best),
                    *map(_number, (ratio(row, layout), _times(best, mine), of_floor(row, layout))),
                    _target(target),
                    {True: "yes", False: "no", None: "-"}[met(row, layout)],
                )
            )
    return table


def _target(target: Mapping[str, float | None]) -> str:
    """Both parts of a target: times torch, and share of the floor."""
    ratio, share = target["ratio"], target["of_floor"]
    parts = [] if ratio is None else [f"{ratio:.2f}x"]
    parts += [] if share is None else [f"{share:.2f} of floor"]
    return ", ".join(parts) or "-"


def loop_table(results: Results) -> Table:
    """Rows as a user's loop sees them, where that matters: with what the host needs for a call."""
    who = _backends(results)
    table = Table("calls in a loop", ("layer", "dtype", "direction", "layout", *who, _TORCH, "ratio"), words=4)
    for row in results["rows"]:
        for layout in row["targets"] if row["looped"] and row["timed"] else ():
            seconds = {side["who"]: side["loop_seconds"] for side in _sides(row, layout)}
            theirs = seconds.get(_TORCH)
            mine = min((value for name, value in seconds.items() if name != _TORCH and value), default=None)
            cells = ["-" if seconds.get(name) is None else time_words(seconds[name]) for name in (*who, _TORCH)]
            reached = _number(_times(theirs, mine))
            table.rows.append((row["layer"], row["dtype"], row["direction"], layout, *cells, reached))
    return table


def complaints(results: Results) -> list[str]:
    """Each side that is not right, and why."""
    return [
        f"{row['layer']}, {row['dtype']}, {row['direction']}, {name}: {side['status']}: {side['message']}"
        for row in results["rows"]
        for name, side in row["sides"].items()
        if side["status"] in ("wrong", "failed")
    ]


def unavailable(results: Results) -> list[str]:
    """Why backends are, each reason once."""
    sides = [side for row in results["rows"] for side in row["sides"].values()]
    return list(dict.fromkeys(side["message"] for side in sides if side["status"] == "unavailable"))


def text(results: Results) -> list[str]:
    """For the end of a run: the rows that have a target, and what is not right."""
    wrong = complaints(results)
    left_out = [f"  and {len(wrong) - 20} more in results.md"] if len(wrong) > 20 else []
    return [*main_table(results, with_target_only=True).text(), *wrong[:20], *left_out, *headlines(results)]


_NOTES = """\
Times are medians of single calls on the device, by its events (on a CPU: by the host's clock). Ours and torch's take
turns in one run; between calls the L2 cache is written over. torch runs with `cudnn.benchmark = True`: *torch* in the
same layout, *best* in the one that suits it best. *x torch*, *x best*: how many times as fast as that the faster of
ours is. *Of floor*: the least time by the maker's rates ({floor}), over ours. A target is a ratio to torch in the same
layout, a share of the floor, or both. A kernel that is wrong against a reference in higher precision is not timed.
Max pooling's *inference* makes no index, its *forward* a byte a window; torch always writes eight bytes.
"""


def markdown(results: Results) -> str:
    """The whole report."""
    facts = results["facts"]
    lines = ["# A GPU run", "", *(f"- {each}" for each in headlines(results))]
    if facts:
        known = [f"{name} {facts[name]}" for name in _FACTS if facts.get(name) is not None]
        lines += [
            f"- {', '.join(known)}",
            f"- {facts['date']}, commit {facts['commit']}, float32 products as {_precisions(facts)}",
        ]
        lines += [f"- tilesmith imported {facts['import']}"] if facts.get("import") else []
        floor = facts["floor"]
        rates = f"{floor['bytes_per_second'] / 1e12:.3g} TB/s, {floor['half'] / 1e12:.4g} TFLOP/s on tensor cores"
        lines += ["", _NOTES.format(floor=f"{floor['name']}: {rates}")]
    for title, items in (("Not right", complaints(results)), ("Not there", unavailable(results))):
        if items:
            lines += [f"## {title}", "", *(f"- {item}" for item in items), ""]
    titles = {"Every row": main_table(results), "In a loop, with the host's part": loop_table(results)}
    for title, table in titles.items():
        if table.rows:
            lines += [f"## {title}", "", *table.markdown(), ""]
    return "\n".join(lines).rstrip() + "\n"


def _backends(results: Results) -> tuple[str, ...]:
    """Ours, in the order in which they appear."""
    found = [side["who"] for row in results["rows"] for side in row["sides"].values()]
    return tuple(name for name in dict.fromkeys(found) if name != _TORCH)


def _precisions(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{mode} ({products})" for products, mode in facts["float32"].items())


def _time(side: Mapping[str, Any] | None) -> str:
    """A median, or what is the matter instead."""
    if side is None or side["status"] == "unavailable":
        return "-"
    if side["status"] != "ok":
        return str(side["status"])
    return "right" if side["median_seconds"] is None else time_words(side["median_seconds"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# ---- the drawing

_LEFT, _RIGHT, _TOP, _LINE, _PLOT = 390, 30, 64, 15, 560
_LOW, _HIGH = 0.1, 20.0  # ratios at the edges
_COLOURS = dict(zip((*IMAGES, *CONTIGUOUS), ("#c0562f", "#2f6bc0", "#3d8b40"), strict=True))
_MARKS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


def drawing(results: Results) -> str:
    """An SVG: for each row how many times as fast as torch ours is, a dot a layout, a bar where the target stands."""
    rows = [row for row in results["rows"] if row["timed"]]
    height = _TOP + _LINE * len(rows) + 20
    width = _LEFT + _PLOT + _RIGHT
    device = results["facts"].get("device", "no device")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
        ' font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _label(10, 18, f"tilesmith beside torch, same layout, on {device}: times as fast", size=14),
    ]
    for i, (layout, colour) in enumerate(_COLOURS.items()):
        parts.append(f'<circle cx="{_LEFT + 110 * i}" cy="34" r="4" fill="{colour}"/>')
        parts.append(_label(_LEFT + 110 * i + 8, 38, layout))
    parts.append(_label(_LEFT + 330, 38, "bar: the target"))
    for mark in _MARKS:
        stroke = "#333" if mark == 1 else "#ddd"
        parts.append(_bar(_x(mark), _TOP - 6, height - 20, stroke))
        parts.append(_label(_x(mark), _TOP - 9, f"{mark:g}", anchor="middle"))
    for i, row in enumerate(rows):
        parts += _dots(row, _TOP + _LINE * i + _LINE / 2)
    return "\n".join([*parts, "</svg>", ""])


def _dots(row: Entry, y: float) -> Iterator[str]:
    yield _label(_LEFT - 8, y + 4, f"{row['layer']}, {row['dtype']}, {row['direction']}", anchor="end")
    for i, (layout, target) in enumerate(row["targets"].items()):
        colour = _COLOURS[layout]
        if target["ratio"] is not None:
            yield _bar(_x(target["ratio"]), y - 5, y + 5, colour, 2)
        reached = ratio(row, layout)
        if reached is not None:
            fill = "white" if met(row, layout) is False else colour
            yield f'<circle cx="{_x(reached):.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"/>'
        elif any(side["status"] in ("wrong", "failed") for side in ours(row, layout).values()):
            yield _label(_LEFT + 4 + 60 * i, y + 4, "not right", colour=colour)


def _x(value: float) -> float:
    """Where a ratio lies, on a logarithmic axis; beyond its ends, at the end."""
    share = math.log(min(max(value, _LOW), _HIGH) / _LOW) / math.log(_HIGH / _LOW)
    return _LEFT + _PLOT * share


def _bar(x: float, top: float, bottom: float, colour: str, width: int = 1) -> str:
    return f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _label(x: float, y: float, words: str, anchor: str = "start", size: int = 11, colour: str = "black") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} font-size="{size}" fill="{colour}">{escape(words)}</text>'
