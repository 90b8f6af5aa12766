"""How much of the processors other programs use while something is measured, from Linux's /proc/stat."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

IDLE = 0.05
"""A machine of which other programs use less than this share counts as idle."""

_STAT = Path("/proc/stat")
_NAMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


def busy_ticks(stat: str) -> int:
    """Ticks of all processors that were not idle, by the text of /proc/stat; time taken by the host counts too."""
    fields = stat.splitlines()[0].split()
    assert fields[0] == "cpu"
    counts = dict(zip(_NAMES, map(int, fields[1:]), strict=False))
    return sum(counts.get(name, 0) for name in _BUSY)


@dataclass(frozen=True)
class LoadReading:
    """One reading of the clocks, in seconds; `busy` is of all programs, `own` of this one and its ended children."""

    at: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> LoadReading | None:
        """A reading; None where there is no /proc/stat."""
        try:
            busy = busy_ticks(_STAT.read_text()) / os.sysconf("SC_CLK_TCK")
        except OSError:
            return None
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return cls(time.perf_counter(), busy, own)


def share_of_others(start: LoadReading | None, end: LoadReading | None, processors: int | None = None) -> float | None:
    """Share of all processors' time that other programs used between two readings, 0 to 1; None if it is unknown.

    Children of this program count as its own when they have ended and were waited for.
    """
    if start is None or end is None or end.at <= start.at:
        return None
    used = (end.busy - start.busy) - (end.own - start.own)
    return min(1.0, max(0.0, used / (end.at - start.at) / (processors or os.cpu_count() or 1)))


def load_of_others(seconds: float = 2.0) -> float | None:
    """Share of the processors that other programs use now, over some seconds in which this one sleeps."""
    start = LoadReading.now()
    time.sleep(seconds)
    return share_of_others(start, LoadReading.now())
