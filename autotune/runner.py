"""Who makes measurements: this process, a worker that may crash or hang at the cost of one row, or recorded rows."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import multiprocessing
import os
import pickle
import random
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, Protocol

from .bench import Bench, Verdict, failed
from .calls import Call
from .rows import Filed, Row, filed_of, text_of
from .space import Config, Tunable

_SENTINEL_SAMPLES = 3
_DRIFTED = 0.03  # of the sentinel's time: beyond it, times are put in relation to it
_RUNS = 40  # of the call in one measurement, its reference included: what long ones get on top
# After one of these a CUDA context may be broken: the next configuration gets a new worker.
_POISONOUS = ("runtime", "outside", "incorrect", "nondeterministic")
_SECONDS = 60.0  # that compiling and verifying may take, and a set of samples
_ORPHANS_S = 2.0  # after the end of its time a worker that nobody ended ends itself


@dataclass(frozen=True)
class Job:
    """One key to tune.

    Attributes:
        default: whose error and whose time are measures for others; ``None`` while no configuration is known to run.
        call: that asks for the tunable on this problem; ``None`` where only recorded rows answer.
        weight: how often the call is made.
        call_s: what one took when it was looked at, with whatever its first time costs.
    """

    tunable: Tunable
    problem: Any
    filed: Filed
    default: Config | None
    call: Call | None = None
    weight: int = 1
    call_s: float = 0.0

    @property
    def kernels_default(self) -> Config:
        """The kernel's own, whether it runs here or not."""
        return self.tunable.default(self.problem)


@dataclass(frozen=True)
class Result:
    """What one measurement came to.

    Attributes:
        samples: seconds of one call each.
        protocol: how they were taken.
        drift: time of the default now over its time when the job began; samples are already divided by it where it is
            far from 1.
    """

    status: str
    reason: str = ""
    samples: tuple[float, ...] = ()
    protocol: str = ""
    drift: float = 1.0

    @property
    def time_s(self) -> float:
        return median(self.samples) if self.samples else math.inf


class Runner(Protocol):
    """Measures configurations of a job, each for the first time alone, finalists in turns."""

    def measure(
        self, job: Job, configs: Sequence[Config], rung: str, samples: int, give_up_s: float
    ) -> list[Result]: ...

    def configs(self, job: Job) -> list[Config] | None:
        """All that can be measured, or ``None`` for all of the space."""

    def close(self) -> None: ...


class InProcess:
    """Measures in this process. A configuration that crashes takes it along: for kernels that are known."""

    def __init__(self, verify: bool = True) -> None:
        self._verify = verify
        self._bench: tuple[Call, Bench] | None = None
        self._standard: dict[str, float] = {}

    def measure(self, job: Job, configs: Sequence[Config], rung: str, samples: int, give_up_s: float) -> list[Result]:
        assert job.call is not None
        return self.measured(job.call, job.tunable.name, job.default, configs, rung, samples, give_up_s)

    def measured(
        self,
        call: Call,
        name: str,
        default: Config | None,
        configs: Sequence[Config],
        rung: str,
        samples: int,
        give_up_s: float,
    ) -> list[Result]:
        """As :meth:`measure`, of what can be sent to another process."""
        try:
            bench = self._bench_of(call)
        except Exception as error:
            verdict = failed(error)
            return [Result(verdict.status, verdict.reason)] * len(configs)
        if rung == "final":
            return self._in_turns(bench, name, configs, samples)
        return [self._alone(bench, name, default, config, samples, give_up_s) for config in configs]

    def _bench_of(self, call: Call) -> Bench:
        if self._bench is None or self._bench[0] != call:
            self._bench = None  # frees its memory first
            self._bench = call, Bench(call)
            self._standard = {}
        return self._bench[1]

    def _alone(
        self, bench: Bench, name: str, default: Config | None, config: Config, samples: int, give_up_s: float
    ) -> Result:
        verdict = bench.verdict(name, config, default) if self._verify else Verdict()
        if verdict.status != "ok":
            return Result(verdict.status, verdict.reason)
        try:
            drift = 1.0 if default is None else self._drift(bench, name, default)
            taken, protocol = bench.samples(name, config, samples, give_up_s)
        except Exception as error:
            verdict = failed(error)
            return Result(verdict.status, verdict.reason)
        if abs(drift - 1) > _DRIFTED:
            taken = [t / drift for t in taken]
        return Result("ok", "", tuple(taken), protocol, drift)

    def _drift(self, bench: Bench, name: str, default: Config) -> float:
        """How much longer the default takes than when the job began."""
        standard = median(bench.samples(name, default, _SENTINEL_SAMPLES)[0])
        return standard / self._standard.setdefault(f"{name} {text_of(dict(default))}", standard)

    def _in_turns(self, bench: Bench, name: str, configs: Sequence[Config], samples: int) -> list[Result]:
        try:
            taken, protocol = bench.in_turns(name, configs, samples)
        except Exception as error:
            verdict = failed(error)
            return [Result(verdict.status, verdict.reason)] * len(configs)
        return [Result("ok", "", tuple(t), f"{protocol}, in turns") for t in taken]

    def configs(self, job: Job) -> list[Config] | None:
        return None

    def close(self) -> None:
        self._bench = None


class Isolated:
    """Measures in a worker process. One that crashes or takes too long is replaced, and its measurement says so.

    Args:
        device: index of the GPU that the worker gets, if any.
        seconds: that one request may take; a job's first also makes its inputs and its reference.
    """

    def __init__(self, device: int | None = None, seconds: float = _SECONDS) -> None:
        self._device, self._seconds = device, seconds
        self._process: Any = None
        self._pipe: Connection | None = None

    def measure(self, job: Job, configs: Sequence[Config], rung: str, samples: int, give_up_s: float) -> list[Result]:
        assert job.call is not None
        from ..kernels._precision import settings

        default = None if job.default is None else dict(job.default)
        asked = (job.call, job.tunable.name, default, [dict(c) for c in configs], rung, samples, give_up_s)
        limit_s = self._seconds * max(1, len(configs)) + _RUNS * job.call_s
        request = pickle.dumps((settings(), limit_s, asked))
        pipe = self._ready()
        try:
            pipe.send_bytes(request)
        except (BrokenPipeError, ConnectionError):  # it died while it had nothing to do
            self.close()
            pipe = self._ready()
            pipe.send_bytes(request)
        status, reason = "timeout", f"no answer within {limit_s:.3g} s"
        try:
            if pipe.poll(limit_s):
                answer: list[Result] = pickle.loads(pipe.recv_bytes())
                if job.call.device == "cuda" and any(result.status in _POISONOUS for result in answer):
                    self.close()
                return answer
        except (EOFError, ConnectionError):
            self._process.join(5)
            status, reason = "crash", f"the worker ended with exit code {self._process.exitcode}"
        self.close()
        return [Result(status, reason)] * len(configs)

    def _ready(self) -> Connection:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            device = _current_device() if self._device is None else self._device
            self._process = context.Process(target=_serve, args=(theirs, device), daemon=True)
            with _without_main():
                self._process.start()
            theirs.close()
            assert self._pipe is not None
            if not self._pipe.poll(_SECONDS) or not _received(self._pipe):
                self.close()
                raise RuntimeError(f"a worker for measurements did not start within {_SECONDS:g} s")
        assert self._pipe is not None
        return self._pipe

    def configs(self, job: Job) -> list[Config] | None:
        return None

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            if self._pipe is not None:
                self._pipe.close()
        self._process = self._pipe = None


def _current_device() -> int | None:
    import torch

    return torch.cuda.current_device() if torch.cuda.is_available() else None


def _received(pipe: Connection) -> bool:
    try:
        return pipe.recv_bytes() == b"ready"
    except (EOFError, ConnectionError):
        return False


@contextlib.contextmanager
def _without_main() -> Any:
    """A spawned process runs the caller's main module again, unless that seems to have no file: ours needs none."""
    import sys

    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if getattr(main, name, None) is not None}
    for name in hidden:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


def _serve(pipe: Connection, device: int | None) -> None:
    """What a worker does until its parent goes; at the latest until what it measures has had its time."""
    import torch

    from ..kernels._precision import use_settings
    from .resolve import mode

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends us
    if device is not None:
        torch.cuda.set_device(device)
    here = InProcess()
    pipe.send_bytes(b"ready")
    with contextlib.suppress(EOFError, ConnectionError), mode("lookup"), open(os.devnull, "w") as nowhere:
        while True:
            settings, limit_s, asked = pickle.loads(pipe.recv_bytes())
            use_settings(settings)
            # the parent ends whoever takes too long, if it is still there: else a thread that needs no interpreter does
            faulthandler.dump_traceback_later(limit_s + _ORPHANS_S, exit=True, file=nowhere)
            answer = pickle.dumps(here.measured(*asked))
            faulthandler.cancel_dump_traceback_later()
            pipe.send_bytes(answer)
    os._exit(0)


class Replay:
    """Recorded rows as a device: each configuration takes what was measured, with noise if asked for.

    Args:
        rows: of kind "time"; of several for one configuration the last counts.
        noise: standard deviation of a sample, as a part of it.
        seed: of the noise. The same measurement gives the same samples whenever it is made.
        pause_s: that a measurement really takes.
    """

    def __init__(self, rows: Iterable[Row], noise: float = 0.0, seed: int = 0, pause_s: float = 0.0) -> None:
        self.times: dict[Filed, dict[str, Row]] = {}
        for row in rows:
            if row["kind"] == "time":
                self.times.setdefault(filed_of(row), {})[text_of(row["config"])] = row
        self._noise, self._seed, self._pause_s = noise, seed, pause_s
        self.measurements = 0

    def configs(self, job: Job) -> list[Config] | None:
        recorded = self.times.get(job.filed, {})
        return [config for config in job.tunable.configs(job.problem) if text_of(dict(config)) in recorded]

    def measure(self, job: Job, configs: Sequence[Config], rung: str, samples: int, give_up_s: float) -> list[Result]:
        return [self._one(job, config, rung, samples) for config in configs]

    def _one(self, job: Job, config: Config, rung: str, samples: int) -> Result:
        self.measurements += 1
        if self._pause_s:
            time.sleep(self._pause_s)
        row = self.times.get(job.filed, {}).get(text_of(dict(config)))
        if row is None:
            return Result("runtime", "not recorded")
        if row["status"] != "ok":
            return Result(row["status"], row.get("reason", ""))
        time_s = row["time_us"] / 1e6
        if not self._noise:
            return Result("ok", "", (time_s,), "replayed")
        dice = random.Random(f"{self._seed} {job.filed} {text_of(dict(config))} {rung}")
        return Result("ok", "", tuple(time_s * (1 + dice.gauss(0, self._noise)) for _ in range(samples)), "replayed")

    def close(self) -> None:
        pass
