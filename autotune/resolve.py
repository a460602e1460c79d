"""Which configuration a call runs with. A ladder: pinned by the caller, the user's cache, tables that an application or
this package ships, the nearest measured problem for which its configuration is valid, the kernel's own default.

Looking up is pure and cheap; nothing is measured here. Pins and modes hold in the whole process, because backwards run
in threads of autograd's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
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

    @property
    def is_guess(self) -> bool:
        """Whether nobody asked for it and nothing was measured for this problem."""
        return self.rung in ("nearest", "default")


_remembered: dict[tuple[str, Any], Answer] = {}
_times_forgotten = 0


@dataclass(frozen=True)
class _State:
    """What makes a look-up more than remembering. Entries are taken out by their token, in whatever order blocks end.

    Attributes:
        modes, pins: of the whole process, the last one counts.
        private: how many blocks there are whose pins or watchers belong to one thread.
    """

    modes: tuple[tuple[object, str], ...]
    pins: tuple[tuple[object, str, Config], ...] = ()
    private: int = 0

    @property
    def mode(self) -> str:
        return self.modes[-1][1]

    @property
    def plain(self) -> bool:
        return self.mode in ("lookup", "tune_on_miss", "force") and not self.pins and not self.private

    def pinned(self, name: str) -> Config | None:
        return next((config for _, pinned, config in reversed(self.pins) if pinned == name), None)


def _checked(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"autotune mode {mode!r} is unknown: it must be one of {', '.join(map(repr, MODES))}")
    return mode


_state = _State(((None, _checked(os.environ.get("TILESMITH_AUTOTUNE") or "lookup")),))
_plain = _state.plain

Told = Callable[[Tunable, Any, Config], None]
_own_pins: ContextVar[Mapping[str, Config]] = ContextVar("tilesmith_own_pins", default={})  # noqa: B039  never written to
_own_watchers: ContextVar[tuple[Told, ...]] = ContextVar("tilesmith_own_watchers", default=())


def _change(change: Callable[[_State], _State]) -> None:
    global _state, _plain
    with _lock:
        _state = change(_state)
        _plain = _state.plain


@contextmanager
def _entered(entries: str, entry: tuple[object, ...]) -> Iterator[None]:
    """Has one more of the state's ``modes`` or ``pins`` inside the block."""

    def changed(entries_of: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
        def change(now: _State) -> _State:
            after: Any = {entries: entries_of(getattr(now, entries))}
            return replace(now, **after)

        _change(change)

    changed(lambda before: (*before, entry))
    try:
        yield
    finally:
        changed(lambda before: tuple(e for e in before if e is not entry))


@contextmanager
def pin(name: str, config: Config) -> Iterator[None]:
    """Runs the kernel of that name with this configuration inside the ``with`` block, in the whole process."""
    with _entered("pins", (object(), name, dict(config))):
        yield


@contextmanager
def mode(name: str) -> Iterator[None]:
    """What look-ups do in a mode, and no more; :func:`tilesmith.autotune.mode` also measures in those that tune."""
    with _entered("modes", (object(), _checked(name))):
        yield


@contextmanager
def _in_this_thread(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    _change(lambda now: replace(now, private=now.private + 1))
    try:
        yield
    finally:
        _change(lambda now: replace(now, private=now.private - 1))
        variable.reset(token)


@contextmanager
def pinned_here(name: str, config: Config) -> Iterator[None]:
    """As :func:`pin`, for look-ups of this thread: how candidates are tried while others compute."""
    with _in_this_thread(_own_pins, {**_own_pins.get(), name: dict(config)}):
        yield


@contextmanager
def watched(told: Told) -> Iterator[None]:
    """Calls ``told(tunable, problem, config)`` of each look-up that this thread makes inside the block."""
    with _in_this_thread(_own_watchers, (*_own_watchers.get(), told)):
        yield


def current_mode() -> str:
    return _state.mode


def _pinned(name: str) -> Config | None:
    own = _own_pins.get().get(name)
    return own if own is not None else _state.pinned(name)


def resolve(tunable: Tunable, problem: Any) -> Config:
    """The configuration with which ``tunable`` runs ``problem`` (hashable) here and now.

    Raises:
        ValueError: the pinned configuration is not in the kernel's space or cannot run this problem.
        NotTuned: the mode is "require" and nothing was measured for this problem.
    """
    if _plain:
        answer = _remembered.get((tunable.name, problem))
        return (answer or _remember(tunable, problem)).config
    mode = _state.mode
    config = _pinned(tunable.name)
    if config is not None:
        tunable.check(config, problem)
    elif mode == "off":
        config = tunable.default(problem)
    else:
        answer = _remembered.get((tunable.name, problem)) or _remember(tunable, problem)
        if mode == "require" and answer.is_guess:
            from .lookup import tables

            raise NotTuned(tables().why_missing(tunable, problem))
        config = answer.config
    for told in _own_watchers.get():
        told(tunable, problem, config)
    return config


def _remember(tunable: Tunable, problem: Any) -> Answer:
    times = _times_forgotten
    answer = _measured(tunable, problem) or Answer(tunable.default(problem), "default")
    with _lock:
        if len(_remembered) >= _MOST_REMEMBERED:
            _remembered.clear()
        if times == _times_forgotten:  # else rows came while this was looked up
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
    config = _pinned(tunable.name)
    if config is not None:
        tunable.check(config, problem)
        return Answer(config, "pinned")
    return _measured(tunable, problem) or Answer(tunable.default(problem), "default")


def forget() -> None:
    """Look-ups are made anew from now on: rows have come or gone."""
    global _times_forgotten
    with _lock:
        _times_forgotten += 1
        _remembered.clear()
