"""Whole runs over a fake engine, stopped after some steps, and what they leave in their directories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from rwkvbatch.script.records import Conversation
from tests.replay.fakes import FakeLoader, make_plan


def run(
    directory: Path | None, plan: Plan | None = None, loader: FakeLoader | None = None, **options: Any
) -> RunResult:
    return execute(plan or make_plan(), loader or FakeLoader(), RunOptions(out=directory, **options))


def results(directory: Path) -> bytes:
    return (directory / "results.jsonl").read_bytes()


def results_of(directory: Path, plan: Plan) -> bytes:
    """The results of a run in this process, which ends in `directory`."""
    run(directory, plan)
    return results(directory)


def check_invariance(directory: Path, conversations: Sequence[Conversation], interrupt_after: Sequence[int]) -> None:
    """Check that rows depend neither on the batch size nor on interruptions after these numbers of steps."""
    expected = results_of(directory / "whole", make_plan(conversations=conversations))
    assert results_of(directory / "alone", make_plan(conversations=conversations, batch_size=1)) == expected
    for num_steps in interrupt_after:
        plan = make_plan(conversations=conversations)
        assert run(directory / "resumed", plan, should_stop=StopAfter(num_steps)).interrupted
    assert results_of(directory / "resumed", make_plan(conversations=conversations)) == expected


class StopAfter:
    """Stops a run after `num_steps` steps."""

    def __init__(self, num_steps: float = math.inf) -> None:
        self.num_steps_left = num_steps

    def __call__(self) -> bool:
        self.num_steps_left -= 1
        return self.num_steps_left < 0


class ProgressRecorder:
    """An observer that keeps each progress in `seen`."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def moved(self, progress: Progress) -> None:
        self.seen.append(progress)

    started = ended = moved
