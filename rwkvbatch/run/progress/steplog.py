"""What a run logs of itself: every ten seconds, and at its end, how long steps take and how much memory there is."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable

from rwkvbatch.run.progress.figures import Progress

EVERY_S = 10.0

_log = logging.getLogger(__name__)


class StepLog:
    """Counts the engine's steps.

    Args:
        clock: seconds that never jump.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_s = clock()
        self._last_s = self._since_s
        self._steps = 0
        self._longest_s = 0.0

    def count(self, progress: Progress) -> None:
        """A step ended."""
        now = self._clock()
        self._longest_s = max(self._longest_s, now - self._last_s)
        self._last_s = now
        self._steps += 1
        if now - self._since_s >= EVERY_S:
            self._write("the run goes on", progress)
            self._since_s, self._steps, self._longest_s = now, 0, 0.0

    def end(self, progress: Progress, *, interrupted: bool) -> None:
        """The run ended."""
        self._last_s = self._clock()
        self._write("the run was interrupted" if interrupted else "the run ended", progress)

    def _write(self, message: str, progress: Progress) -> None:
        lasted_s = self._last_s - self._since_s
        figures = {
            "steps": self._steps,
            "step_mean_s": round(lasted_s / self._steps, 6) if self._steps else None,
            "step_longest_s": round(self._longest_s, 6),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        _log.info(
            message,
            extra={
                **vars(progress),
                "workers": [vars(worker) for worker in progress.workers],
                "tokens_per_s": round(progress.tokens_per_s, 3),
                **figures,
            },
        )


def peak_memory_bytes() -> int:
    """The most memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
