"""Which configuration a call runs with. A ladder: pinned by the caller, the user's cache, tables that an application or
this package ships, the nearest measured problem for which its configuration is valid, the kernel's own default.

Looking up is pure and cheap; nothing is measured here. Pins and modes hold in the whole process, because backwards run
in threads of autograd's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any

from .space import Config, Tunable

if TYPE_CHECKING:
    from .lookup import Found

MODES = ("off", "lookup", "tune_on_miss", "force", "require")

_MOST_REMEMBERED = 65536  # problems of a process
_lock = RLock()


class NotTuned(LookupError):
    """Nothing was measured for a problem, and the mode "require" forbids to guess."""


@dataclass(frozen=True)
class Answer:
    """What a look-up comes to.

    Attributes:
        rung: "pinned", "cache", "table", "nearest" or "default".
        found: the row behind it and how far it is, of the three in the middle.
    """

    config: Config
    rung: str
    found: Found | None = None


_remembered: dict[tuple[str, Any], Answer] = {}


@dataclass(frozen=True)
class _State:
    """What makes a look-up more than remembering: empty but for ``mode`` most of the time."""

    mode: str
    pins: Mapping[str, Config]
    watchers: tuple[Callable[[Tunable, Any, Config], None], ...] = ()

    @property
    def plain(self) -> bool:
        return self.mode in ("lookup", "tune_on_miss", "force") and not self.pins and not self.watchers


def _checked(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"autotune mode {mode!r} is unknown: it must be one of {', '.join(map(repr, MODES))}")
    return mode


_state = _State(_checked(os.environ.get("TILESMITH_AUTOTUNE") or "lookup"), {})
_plain = _state.plain


@contextmanager
def _changed(change: Callable[[_State], _State], back: Callable[[_State, _State], _State]) -> Iterator[None]:
    global _state, _plain
    with _lock:
        before, _state = _state, change(_state)
        _plain = _state.plain
    try:
        yield
    finally:
        with _lock:
            _state = back(_state, before)
            _plain = _state.plain


@contextmanager
def pin(name: str, config: Config) -> Iterator[None]:
    """Runs the kernel of that name with this configuration inside the ``with`` block, in the whole process."""
    with _changed(
        lambda now: _State(now.mode, {**now.pins, name: dict(config)}, now.watchers),
        lambda now, before: _State(now.mode, before.pins, now.watchers),
    ):
        yield


@contextmanager
def mode(name: str) -> Iterator[None]:
    """What look-ups do in a mode, and no more; :func:`tilesmith.autotune.mode` also measures in those that tune."""
    _checked(name)
    with _changed(
        lambda now: _State(name, now.pins, now.watchers),
        lambda now, before: _State(before.mode, now.pins, now.watchers),
    ):
        yield


@contextmanager
def watched(told: Callable[[Tunable, Any, Config], None]) -> Iterator[None]:
    """Calls ``told(tunable, problem, config)`` of each look-up inside the block."""
    with _changed(
        lambda now: _State(now.mode, now.pins, (*now.watchers, told)),
        lambda now, before: _State(now.mode, now.pins, before.watchers),
    ):
        yield


def current_mode() -> str:
    return _state.mode


def resolve(tunable: Tunable, problem: Any) -> Config:
    """The configuration with which ``tunable`` runs ``problem`` (hashable) here and now.

    Raises:
        ValueError: the pinned configuration is not in the kernel's space or cannot run this problem.
        NotTuned: the mode is "require" and nothing was measured for this problem.
    """
    if _plain:
        answer = _remembered.get((tunable.name, problem))
        return (answer or _remember(tunable, problem)).config
    state = _state
    config = state.pins.get(tunable.name)
    if config is not None:
        tunable.check(config, problem)
    elif state.mode == "off":
        config = tunable.default(problem)
    else:
        answer = _remembered.get((tunable.name, problem)) or _remember(tunable, problem)
        if state.mode == "require" and answer.rung in ("nearest", "default"):
            from .lookup import tables

            raise NotTuned(tables().why_missing(tunable, problem))
        config = answer.config
    for told in state.watchers:
        told(tunable, problem, config)
    return config


def _remember(tunable: Tunable, problem: Any) -> Answer:
    answer = _measured(tunable, problem) or Answer(tunable.default(problem), "default")
    with _lock:
        if len(_remembered) >= _MOST_REMEMBERED:
            _remembered.clear()
        _remembered[tunable.name, problem] = answer
    return answer


def _measured(tunable: Tunable, problem: Any) -> Answer | None:
    if tunable.key is None:
        return None
    from .lookup import tables

    found = tables().find(tunable, problem)
    return None if found is None else Answer(found.config, found.rung, found)


def look_up(tunable: Tunable, problem: Any) -> Answer:
    """The ladder without its memory, and which rung answered. Pins first; the mode does not matter."""
    config = _state.pins.get(tunable.name)
    if config is not None:
        tunable.check(config, problem)
        return Answer(config, "pinned")
    return _measured(tunable, problem) or Answer(tunable.default(problem), "default")


def forget() -> None:
    """Look-ups are made anew from now on: rows have come or gone."""
    with _lock:
        _remembered.clear()
