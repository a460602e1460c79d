"""A GPU run: the tests, then every row checked and timed, each in a process that may crash or hang without harm."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
from tilesmith.autotune import Device

from . import gpu_report
from .gpu_row import ROOT, TORCH, Outcome, Session, Settings, Side

SOMETHING_WRONG, NO_GPU, OUT_OF_TIME, SIGNAL = 1, 2, 3, 128  # exit codes; the last one plus the signal's number

CHECKS_SHARE = 0.4  # of the time may pass before timing begins
_FIRST_SECONDS = 120.0  # for the first answer
_CHECK_SECONDS = 60.0  # compiling is most of it
_TIMING_SECONDS = 30.0
_LEAST_SECONDS, _MOST_SECONDS = 0.2, 1.5  # of timing, a row
_WRITING_SECONDS = 4.0
_GRACE_SECONDS = 3.0
_LOOK_SECONDS = 0.1  # between looks at what happened


@dataclass(frozen=True)
class Options:
    """What the command was asked for.

    Attributes:
        minutes: of the whole run.
        tests: what pytest is given; "" for no tests.
        tests_seconds: after which pytest is stopped.
        checkers: processes that check rows while the tests run.
        imported: how tilesmith was made importable, for the record.
    """

    out: Path
    minutes: float = 9.0
    tests: str = "tests"
    tests_seconds: float = 150.0
    checkers: int = 1
    imported: str = ""
    settings: Settings = field(default_factory=Settings)


class Interrupted(Exception):
    """A signal asked the run to end."""


class OutOfTime(Exception):
    """The minutes are over."""


class NoAnswer(Exception):
    """A process crashed, or took too long and was stopped."""


class Worker(Protocol):
    """Somebody who answers what a :class:`Session` answers."""

    def ask(self, question: str, *arguments: Any, seconds: float) -> Any:
        """The answer; raises :class:`NoAnswer`."""

    def stop(self) -> None:
        """Ends whatever it is doing. It may be asked again."""


# ---- processes


class Process:
    """A session in a process of its own, started when it is asked, and again after a crash or a hang."""

    def __init__(self, settings: Settings, heed: Callable[[], None]) -> None:
        self._settings, self._heed = settings, heed
        self._process: Any = None
        self._connection: Connection | None = None

    def ask(self, question: str, *arguments: Any, seconds: float) -> Any:
        until = time.monotonic() + seconds
        if self._connection is None:
            self._start()
        connection = self._connection
        assert connection is not None
        try:
            connection.send((question, arguments))
            while not connection.poll(_LOOK_SECONDS):
                self._heed()
                if time.monotonic() > until:
                    self.stop()
                    raise NoAnswer(f"{question}: no answer in {seconds:.0f} s, the process was stopped")
            answer, broken = connection.recv()
        except (EOFError, OSError):
            self._process.join(_GRACE_SECONDS)
            code = self._process.exitcode
            self.stop()
            raise NoAnswer(f"{question}: the process ended with exit code {code}") from None
        if broken:
            self.stop()
        if isinstance(answer, Exception):
            raise NoAnswer(f"{question}: {type(answer).__name__}: {answer}")
        return answer

    def stop(self) -> None:
        process, self._connection = self._process, None
        if process is not None:
            process.kill()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, self._settings), daemon=True)
        self._process.start()
        theirs.close()


def _answer(connection: Connection, settings: Settings) -> None:
    """What a process does all its life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of us: the parent decides
    if settings.device == "cpu":
        torch.set_num_threads(1)  # several of us share the cores
    session = None
    while True:
        try:
            question, arguments = connection.recv()
        except EOFError:  # the parent is gone
            return
        try:
            session = session or Session(settings)
            answer = getattr(session, question)(*arguments)
        except Exception as error:
            # as text: an exception that cannot be unpickled would take the parent's patience
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        connection.send((answer, session is None or session.broken))


class Suite:
    """pytest in a process of its own, with what it says in a file."""

    def __init__(self, options: Options) -> None:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "--continue-on-collection-errors", options.tests]
        self._begin, self._limit = time.monotonic(), options.tests_seconds
        self._path = options.out / "pytest.txt"
        with self._path.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        self.outcome: dict[str, Any] = {}

    def done(self) -> bool:
        """Whether they are; stops them where they have taken too long."""
        if not self.outcome and self._process.poll() is not None:
            self._end("")
        elif not self.outcome and time.monotonic() - self._begin > self._limit:
            self.stop(f"stopped after {self._limit:.0f} s")
        return bool(self.outcome)

    def stop(self, why: str) -> None:
        """Ends them, with their summary if they still manage one."""
        if self.outcome:
            return
        for stop in (lambda: self._process.send_signal(signal.SIGINT), self._process.kill):
            stop()
            try:
                self._process.wait(_GRACE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        self._end(why)

    def _end(self, why: str) -> None:
        lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip("= ") for line in reversed(lines) if line.strip()), "no output")
        code = self._process.returncode
        self.outcome = {
            "passed": not why and code == 0,
            "exit_code": code,
            "seconds": time.monotonic() - self._begin,
            "words": f"{why}: {last}" if why else last,
        }


# ---- the run


Start = Callable[[Settings, Callable[[], None]], Worker]


def run(options: Options, start: Start = Process) -> int:
    """All of it. Returns the exit code; the results are on disk whatever happens.

    Args:
        start: makes a worker; it is given what to call, every now and then, to be interrupted.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    with _signals() as received:

        def heed() -> None:
            if received:
                raise Interrupted(signal.Signals(received[0]).name)

        one = _Run(options, start, heed)
        try:
            one.run()
        except Interrupted as error:
            one.stopped = f"stopped by {error}"
        except OutOfTime:
            one.stopped = f"{options.minutes:g} minutes were over"
        except NoAnswer as error:
            one.stopped = f"given up: {error}"
        finally:
            one.end()
        if received:
            return SIGNAL + received[0]
    if one.something_wrong:
        return SOMETHING_WRONG
    return OUT_OF_TIME if one.stopped else 0


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Signals that ask for an end are put into a list inside the block, and nothing else."""
    received: list[int] = []
    wanted = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in wanted]
    try:
        yield received
    finally:
        for number, handler in zip(wanted, before, strict=True):
            signal.signal(number, handler)


class _Run:
    def __init__(self, options: Options, start: Start, heed: Callable[[], None]) -> None:
        self._options, self._start, self._heed = options, start, heed
        self._begin = time.monotonic()
        seconds = options.minutes * 60
        self._checks_until = self._begin + CHECKS_SHARE * seconds
        self._deadline = self._begin + max(0.9 * seconds, seconds - _WRITING_SECONDS)
        self._rows = options.settings.rows()
        self._checked: dict[tuple[int, Side], Outcome] = {}
        self._done: dict[int, dict[str, Any]] = {}
        self._facts: dict[str, Any] = {}
        self._tests: Suite | None = None
        self._worker = start(options.settings, heed)
        self._journal = (options.out / "results.jsonl").open("w", encoding="utf-8")
        self._lock = threading.Lock()
        self.stopped = ""

    @property
    def something_wrong(self) -> bool:
        """Whether a test failed, or one of our kernels, or nothing could be measured at all."""
        tests = self._tests is not None and not self._tests.outcome.get("passed")
        kernels = any(
            side["status"] in ("wrong", "failed") and side["who"] != TORCH
            for row in self._results()["rows"]
            for side in row["sides"].values()
        )
        return tests or kernels or not self._facts

    def run(self) -> None:
        self._facts = self._ask(self._worker, "facts", limit=_FIRST_SECONDS)
        self._facts["import"] = self._options.imported
        self._record("facts", self._facts)
        self._say(f"{self._facts['device']}: {len(self._rows)} rows, at most {self._options.minutes:g} minutes")
        self._check_ahead()
        with suppress(NoAnswer):  # the rows do without
            self._facts |= self._ask(self._worker, "ceilings", limit=_CHECK_SECONDS)
            self._record("facts", self._facts)
        for index in range(len(self._rows)):
            self._measure(index)

    def end(self) -> None:
        """Whatever still runs is ended, and everything is written."""
        self._worker.stop()
        if self._tests is not None:
            self._tests.stop(self.stopped)
        results = self._results()
        self._record("end", {name: results[name] for name in ("stopped", "tests", "seconds")})
        self._journal.close()
        gpu_report.write(results, self._options.out)
        for line in gpu_report.text(results):
            print(line)
        print(f"wrote {self._options.out / 'results.md'}", flush=True)

    # ---- before timing

    def _check_ahead(self) -> None:
        """Runs the tests, and beside them checks rows, which also fills the kernels' caches on disk."""
        waiting = deque(range(len(self._rows)))
        over = threading.Event()
        threads = [threading.Thread(target=self._checker, args=(waiting, over)) for _ in range(self._options.checkers)]
        if self._options.tests:
            self._tests = Suite(self._options)
        for thread in threads:
            thread.start()
        try:
            while time.monotonic() < self._checks_until:
                self._heed()
                if (self._tests is None or self._tests.done()) and not any(each.is_alive() for each in threads):
                    break
                time.sleep(_LOOK_SECONDS)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        if self._tests is not None:
            self._tests.stop("stopped, so that time is left for the rest")
            self._record("tests", self._tests.outcome)
            self._say(f"tests: {self._tests.outcome['words']}")
        if threads:
            count = sum(len(self._options.settings.ours(row)) for row in self._rows)
            self._say(f"{len(self._checked)} of {count} kernels checked")

    def _checker(self, waiting: deque[int], over: threading.Event) -> None:
        """A thread's work: rows are checked in a process of its own until there are none, or it is over."""

        def heed() -> None:
            if over.is_set():
                raise Interrupted

        worker = self._start(self._options.settings, heed)
        try:
            while True:
                index = waiting.popleft()
                for side in self._options.settings.ours(self._rows[index]):
                    heed()
                    self._keep(index, side, self._check(worker, index, side))
        except (Interrupted, OutOfTime, IndexError):  # IndexError: there are none
            return
        finally:
            worker.stop()

    def _check(self, worker: Worker, index: int, side: Side) -> Outcome:
        try:
            outcome: Outcome = self._ask(worker, "check", index, side, limit=_CHECK_SECONDS)
        except NoAnswer as error:
            return Outcome("failed", str(error))
        return outcome

    def _keep(self, index: int, side: Side, outcome: Outcome) -> None:
        self._checked[index, side] = outcome
        row = self._rows[index]
        names = {"layer": row.layer.name, "dtype": row.dtype, "direction": row.direction, "side": side.name}
        self._record("check", names | asdict(outcome))

    # ---- timing

    def _measure(self, index: int) -> None:
        row = self._rows[index]
        ours = self._options.settings.ours(row)
        for side in ours:
            if (index, side) not in self._checked:
                self._keep(index, side, self._check(self._worker, index, side))
        outcomes = {side: self._checked[index, side] for side in ours}
        sides = [side for side, outcome in outcomes.items() if outcome.status == "ok"]
        sides += [Side(TORCH, layout) for layout in row.layer.layouts]
        share = 0.6 * (self._deadline - time.monotonic()) / (len(self._rows) - index)
        seconds = min(_MOST_SECONDS, max(_LEAST_SECONDS, share))
        try:
            times = self._ask(self._worker, "time", index, sides, seconds, limit=_TIMING_SECONDS)
        except NoAnswer as error:
            times = {side: Outcome("failed", str(error)) for side in sides}
        for side, timed in times.items():
            outcomes[side] = _joined(outcomes.get(side), timed)
        self._done[index] = self._entry(index, outcomes, timed=True)
        self._record("row", self._done[index])
        gpu_report.write(self._results(), self._options.out)
        self._say(f"{index + 1:3d} of {len(self._rows)}  {row.name}: {gpu_report.line(self._done[index])}")

    def _entry(self, index: int, outcomes: dict[Side, Outcome], timed: bool) -> dict[str, Any]:
        row = self._rows[index]
        layer, device = self._options.settings.run(row.layer), Device(**self._facts["floor"])
        tf32 = self._facts["float32"].get(layer.multiplies) == "tf32"
        targets = {layout: row.target(layout) for layout in layer.layouts}
        return {
            "layer": layer.name,
            "why": layer.why,
            "dtype": row.dtype,
            "direction": row.direction,
            "timed": timed,
            "sizes": layer.sizes,
            "floor_seconds": layer.floor_seconds(row.direction, row.dtype, device, tf32),
            "looped": row.direction in layer.looped,
            "targets": {
                layout: {"ratio": target and target.ratio, "of_floor": target and target.of_floor}
                for layout, target in targets.items()
            },
            "sides": {side.name: asdict(side) | asdict(outcome) for side, outcome in outcomes.items()},
        }

    # ---- what all of it needs

    def _ask(self, worker: Worker, question: str, *arguments: Any, limit: float) -> Any:
        """The answer, unless time runs out first: then it is nobody's fault."""
        self._heed()
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise OutOfTime
        try:
            return worker.ask(question, *arguments, seconds=min(limit, left))
        except NoAnswer:
            if time.monotonic() >= self._deadline:
                raise OutOfTime from None
            raise

    def _results(self) -> dict[str, Any]:
        """Everything so far, as plain data: what is written. Rows never timed tell what their checks said."""
        untimed: dict[int, dict[Side, Outcome]] = {}
        for (index, side), outcome in list(self._checked.items()):
            if index not in self._done:
                untimed.setdefault(index, {})[side] = outcome
        entries = self._done | {i: self._entry(i, outcomes, timed=False) for i, outcomes in untimed.items()}
        return {
            "facts": self._facts,
            "rows_in_all": len(self._rows),
            "stopped": self.stopped,
            "seconds": time.monotonic() - self._begin,
            "tests": None if self._tests is None else self._tests.outcome,
            "rows": [entries[index] for index in sorted(entries)],
        }

    def _record(self, kind: str, what: dict[str, Any]) -> None:
        """One line of the journal, on disk when this returns."""
        with self._lock:
            self._journal.write(json.dumps({"kind": kind, **what}) + "\n")
            self._journal.flush()

    def _say(self, what: str) -> None:
        print(f"[{time.monotonic() - self._begin:4.0f} s] {what}", flush=True)


def _joined(checked: Outcome | None, timed: Outcome) -> Outcome:
    """The check's figures with the timing's; the first call is the check's, which came first."""
    if checked is None:
        return timed
    return replace(timed, error=checked.error, of_bound=checked.of_bound, first_call_seconds=checked.first_call_seconds)
