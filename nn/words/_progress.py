"""Where a training stands: counted, kept for checkpoints, told to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_TELL_SECONDS = 0.1  # between two calls of whoever watches


@dataclass(frozen=True)
class Progress:
    """Where a training stands: called with about ten times a second, and at the end of each epoch."""

    epoch: int
    epochs: int
    tokens: int  # of the corpus, in all epochs
    of_tokens: int
    effective_tokens: int  # those trained since ``fit`` was called: what was not thinned out
    loss: float  # a pair, since the last epoch's end; NaN before the first is known
    rate: float
    seconds: float  # since ``fit`` was called


Watcher = Callable[[Progress], None]


@dataclass
class State:
    """What a training has done so far, in a checkpoint too.

    ``epoch`` and ``step`` are of the run over this ``corpus``; what follows them, of the epoch begun.
    """

    corpus: str = ""
    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    pairs: float = 0.0
    effective_tokens: int = 0
    seconds: float = 0.0

    @property
    def mean_loss(self) -> float:
        return self.loss / self.pairs if self.pairs else float("nan")


class Clock:
    """Counts what one call of ``fit`` does."""

    def __init__(self, state: State, epochs: int, corpus_tokens: int, watcher: Watcher | None) -> None:
        self.state, self.epochs, self.corpus_tokens, self.watcher = state, epochs, corpus_tokens, watcher
        self.begin = self.told = self.counted = time.monotonic()
        self.effective = 0

    def tick(self, tokens: int, position: int, loss: tuple[float, float], rate: float) -> None:
        """After a step of so many tokens, the first of them at ``position`` in the corpus."""
        self.state.step += 1
        self.state.loss += loss[0]
        self.state.pairs += loss[1]
        self.state.effective_tokens += tokens
        self._count_seconds()
        self.effective += tokens
        if self.watcher is not None and time.monotonic() - self.told >= _TELL_SECONDS:
            self._tell(position, rate)

    def epoch_done(self, rate: float) -> dict[str, float]:
        """Returns what is known of the epoch, and starts the next."""
        if self.watcher is not None:
            self._tell(self.corpus_tokens, rate)
        self._count_seconds()
        s = self.state
        record = {"loss": s.mean_loss, "effective_tokens": s.effective_tokens, "seconds": s.seconds}
        s.epoch, s.step, s.loss, s.pairs, s.effective_tokens, s.seconds = s.epoch + 1, 0, 0.0, 0.0, 0, 0.0
        return record

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self.counted
        self.counted = now

    def _tell(self, position: int, rate: float) -> None:
        assert self.watcher is not None
        self.told = time.monotonic()
        s, n = self.state, self.corpus_tokens
        seconds = self.told - self.begin
        self.watcher(
            Progress(
                s.epoch,
                self.epochs,
                s.epoch * n + position,
                self.epochs * n,
                self.effective,
                s.mean_loss,
                rate,
                seconds,
            )
        )


@contextmanager
def bar() -> Iterator[Watcher]:
    """A progress bar on the terminal, with remaining time, words a second and loss.

    Raises:
        ImportError: rich is not installed.
    """
    try:
        from rich import progress
    except ImportError as error:
        raise ImportError("a progress bar needs rich: pip install 'tilesmith[cli]'") from error
    columns = (
        progress.TextColumn("epoch {task.fields[epoch]}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[speed]} words/s, loss {task.fields[loss]:.4f}"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns) as shown:
        task = shown.add_task("", epoch="", speed="-", loss=float("nan"))

        def watch(p: Progress) -> None:
            speed = f"{p.effective_tokens / max(p.seconds, 1e-9):,.0f}"
            epoch = f"{min(p.epoch + 1, p.epochs)}/{p.epochs}"
            shown.update(task, total=p.of_tokens, completed=p.tokens, epoch=epoch, speed=speed, loss=p.loss)

        yield watch
