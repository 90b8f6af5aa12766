"""Workers that die are replaced, but not forever."""

from __future__ import annotations

from dataclasses import replace

from rwkvbatch.errors import WorkerError
from rwkvbatch.run.workers.messages import Event, Left, Report

SPARE_RESTARTS = 8


class Deaths:
    """Counts workers that ended since one of them last reported a row.

    Args:
        num_workers: so many may end at once without being a sign of anything.
    """

    def __init__(self, num_workers: int) -> None:
        self._most = num_workers + SPARE_RESTARTS
        self._count = 0

    def heard(self, event: Event) -> None:
        """A row shows that workers can work."""
        if isinstance(event, Report) and event.rows:
            self._count = 0

    def judge(self, left: Left) -> Left:
        """`left`, with a `WorkerError` when so many have ended by now that no other worker will do better."""
        self._count += 1
        if left.error is not None or self._count <= self._most:
            return left
        return replace(left, error=WorkerError(f"{self._count} workers ended without a row; {left.reason}"))
