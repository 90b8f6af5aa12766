"""What tests of whole runs share: a run over an engine that answers at once, and what it left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from tests.replay.fakes import FakeLoader, make_plan


def run(
    directory: Path | None, plan: Plan | None = None, loader: FakeLoader | None = None, **options: Any
) -> RunResult:
    return execute(plan or make_plan(), loader or FakeLoader(), RunOptions(out=directory, **options))


def results(directory: Path) -> bytes:
    return (directory / "results.jsonl").read_bytes()


class StopAfter:
    """Ends the run after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self) -> bool:
        self.steps -= 1
        return self.steps < 0


class Watcher:
    """Keeps all that it is told of a run's progress."""

    def __init__(self, seen: list[Progress]) -> None:
        self.seen = seen

    def moved(self, progress: Progress) -> None:
        self.seen.append(progress)

    started = ended = moved
