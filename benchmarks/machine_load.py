"""The share of the processors that other programs use during a measurement, from Linux's /proc/stat."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

IDLE = 0.05
"""A machine counts as idle if other programs use less than this share of its processors."""

_STAT = Path("/proc/stat")
_NAMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


def busy_ticks(stat: str) -> int:
    """Ticks in which a processor was not idle, summed over all processors, including time that the host took.

    Args:
        stat: the text of /proc/stat.
    """
    fields = stat.splitlines()[0].split()
    assert fields[0] == "cpu"
    counts = dict(zip(_NAMES, map(int, fields[1:]), strict=False))
    return sum(counts.get(name, 0) for name in _BUSY)


@dataclass(frozen=True)
class LoadReading:
    """Clock readings in seconds: wall time `at`, processor time `busy` of all programs, and `own` processor time.

    The own processor time is that of this process and of its children that have ended.
    """

    at: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> LoadReading | None:
        """The present readings; None on systems without /proc/stat."""
        try:
            busy = busy_ticks(_STAT.read_text()) / os.sysconf("SC_CLK_TCK")
        except OSError:
            return None
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return cls(time.perf_counter(), busy, own)


def share_of_others(start: LoadReading | None, end: LoadReading | None, processors: int | None = None) -> float | None:
    """The share of all processors' time in [0, 1] that other programs used between two readings; None if unknown.

    A child of this process counts as another program until it has ended and was waited for.
    """
    if start is None or end is None or end.at <= start.at:
        return None
    others_s = (end.busy - start.busy) - (end.own - start.own)
    return min(1.0, max(0.0, others_s / (end.at - start.at) / (processors or os.cpu_count() or 1)))


def load_of_others(seconds: float = 2.0) -> float | None:
    """The share of the processors that other programs use while this one sleeps for some seconds; None if unknown."""
    start = LoadReading.now()
    time.sleep(seconds)
    return share_of_others(start, LoadReading.now())
