"""Finding a good configuration with few measurements: the default, what the model ranks first, then neighbours of the
best so far, and at last the closest ones again side by side.

The search is a function of what it is told: the same times give the same choice, so one that was interrupted goes on
where it was when earlier rows answer in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .rows import text_of
from .space import Config

MOST_MEASUREMENTS = 16  # of a key, the finalists' second ones included
_FINALISTS = 4
_FIRST = 6  # from the model and from seeds, beside the default
_BATCH = 3  # neighbours that are measured before the best so far is looked at again
_FIRST_SAMPLES = 7
_FINAL_SAMPLES = 41
_CLOSE = 1.08  # of the best first time: who may be a finalist; the noise of a few samples
_TIE = 1.02
_LEAST_WIN = 0.03  # over the default, to replace it
_GIVE_UP = 1.5  # times the best so far: not worth more than three samples


@dataclass(frozen=True)
class Measured:
    """What one measurement of a configuration came to; ``time_s`` is a median."""

    status: str
    time_s: float = math.inf


@dataclass
class Outcome:
    """What a search found.

    Attributes:
        config: the choice; the default where nothing beat it.
        tied: configurations that are as good, in the space's order, the choice among them.
        times: the last median of each configuration that ran, by its text.
        statuses: of each that was tried, by its text.
    """

    config: Config
    time_s: float
    default_s: float
    tied: list[Config] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """The default's time over the choice's."""
        return self.default_s / self.time_s if self.time_s and math.isfinite(self.default_s) else 1.0


# measure(configs, rung, samples, give_up_s): "first" has one configuration, "final" several, timed in turns
Measure = Callable[[Sequence[Config], str, int, float], list[Measured]]


def search(
    space: Sequence[Config],
    default: Config,
    ranked: Sequence[Config],
    measure: Measure,
    seeds: Sequence[Config] = (),
    most: int = MOST_MEASUREMENTS,
) -> Outcome:
    """Chooses among ``space``.

    Args:
        space: the valid configurations in the space's order, which decides ties.
        ranked: the same, the most promising first.
        seeds: what was best elsewhere or earlier.
        most: measurements, a finalist's second one included; at least 3.
    """
    order = {text_of(config): i for i, config in enumerate(space)}
    rank = {text_of(config): i for i, config in enumerate(ranked)}
    known = {text_of(config): config for config in space}
    outcome = Outcome(default, math.inf, math.inf)
    finalists_room = min(_FINALISTS, max(1, (most - 1) // 3))

    def best() -> float:
        return min(outcome.times.values(), default=math.inf)

    def attempt(config: Config) -> float:
        (one,) = measure([config], "first", _FIRST_SAMPLES, _GIVE_UP * best())
        outcome.statuses[text_of(config)] = one.status
        if one.status == "ok":
            outcome.times[text_of(config)] = one.time_s
        return one.time_s

    room = most - finalists_room
    for config in _first(default, seeds, ranked, min(room, 1 + _FIRST)):
        attempt(config)
    while len(outcome.statuses) < room:
        centres = sorted(outcome.times, key=lambda text: (outcome.times[text], order.get(text, -1)))[:2]
        near = {text_of(c): c for centre in centres for c in _neighbours(known[centre], space)}
        fresh = [config for text, config in near.items() if text not in outcome.statuses]
        if not fresh:
            fresh = [c for c in ranked if text_of(c) not in outcome.statuses]
            if not fresh or len(space) > 4 * most:  # a large space: what the model likes less is not worth a look
                break
        for config in sorted(fresh, key=lambda c: rank[text_of(c)])[: min(_BATCH, room - len(outcome.statuses))]:
            attempt(config)
    if not outcome.times:
        return outcome
    _decide(outcome, space, order, default, measure, finalists_room)
    return outcome


def _first(default: Config, seeds: Sequence[Config], ranked: Sequence[Config], most: int) -> Iterator[Config]:
    seen: set[str] = set()
    for config in (default, *seeds, *ranked):
        if text_of(config) not in seen and len(seen) < most:
            seen.add(text_of(config))
            yield config


def _neighbours(centre: Config, space: Sequence[Config]) -> list[Config]:
    """Configurations that differ in one parameter, by the least step that is valid on either side; in two where one
    alone has none."""
    found: dict[tuple[str, bool], tuple[int, Config]] = {}
    place = {text_of(c): i for i, c in enumerate(space)}
    here = place[text_of(centre)]
    alone = []
    for config in space:
        differing = [name for name in centre if config[name] != centre[name]]
        if len(differing) == 1:
            i = place[text_of(config)]
            side = (differing[0], i > here)
            if side not in found or abs(i - here) < abs(found[side][0] - here):
                found[side] = (i, config)
        elif len(differing) == 2:
            alone.append(config)
    return [config for _, config in found.values()] or alone


def _decide(
    outcome: Outcome,
    space: Sequence[Config],
    order: dict[str, int],
    default: Config,
    measure: Measure,
    room: int,
) -> None:
    """Times the closest ones again in turns, with many samples, and chooses: ties go to the default, then to the first
    in the space; others must beat the default by a margin."""
    texts = {text_of(c): c for c in space}
    least = min(outcome.times.values())
    close = sorted(
        (t for t, s in outcome.times.items() if s <= least * _CLOSE), key=lambda t: (outcome.times[t], order[t])
    )
    standard = text_of(default)
    finalists = close[:room]
    if standard in outcome.times and standard not in finalists:
        finalists = [*close[: room - 1], standard]
    finalists.sort(key=lambda t: order[t])
    again = measure([texts[t] for t in finalists], "final", _FINAL_SAMPLES, math.inf)
    if all(one.status != "ok" for one in again):  # one of them spoilt it for all
        again = [measure([texts[t]], "alone", _FINAL_SAMPLES, math.inf)[0] for t in finalists]
    final = {}
    for text, one in zip(finalists, again, strict=True):
        if one.status == "ok":
            final[text] = outcome.times[text] = one.time_s
        else:
            outcome.statuses[text] = one.status
            outcome.times.pop(text, None)
    if not final:
        return
    least = min(final.values())
    tied = sorted((t for t, s in final.items() if s <= least * _TIE), key=lambda t: (t != standard, order[t]))
    choice = tied[0]
    outcome.default_s = final.get(standard, math.inf)
    if outcome.default_s <= final[choice] / (1 - _LEAST_WIN):
        choice = standard
    outcome.config, outcome.time_s = texts[choice], final[choice]
    outcome.tied = [texts[t] for t in sorted(tied, key=lambda t: order[t])]
