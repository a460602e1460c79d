"""How much of the machine other processes took while we measured, which spoils times far out of proportion."""

from __future__ import annotations

import os
import time
from pathlib import Path

# With one other busy process on two cores an OpenMP or BLAS barrier waits for its time slices: a softmax of torch's
# that takes 0.04 ms then takes 7 ms.
TOO_MUCH = 0.05

_STAT = Path("/proc/stat")


class Load:
    """Counts from when it is made. Linux only; elsewhere it sees nothing."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._elsewhere_before = _seconds_elsewhere()

    @property
    def share(self) -> float:
        """The share of all cores that went elsewhere since then, 0 to 1."""
        capacity = (time.monotonic() - self._start) * (os.cpu_count() or 1)
        return max(0.0, (_seconds_elsewhere() - self._elsewhere_before) / capacity)


def _seconds_elsewhere() -> float:
    """CPU seconds since boot that were not this process's."""
    if not _STAT.exists():
        return 0.0
    user, nice, system, _idle, _waiting, *interrupts = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:8])
    own = os.times()
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - own.user - own.system
