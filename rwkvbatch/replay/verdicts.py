"""Asks a judge about the rows of a run after they were generated, and puts its verdicts into them.

A row whose checks need a judge is written without their verdicts, so that nothing finished waits for it. When a round's
rows are there, all open questions are asked in batches; each answer is appended to `verdicts.jsonl`. Then the rows get
their verdicts, in a file that takes the place of `results.jsonl` at once. An interrupted run finds its answers again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from rwkvbatch.judges.opinions import Judge, MemoryRecord, Opinions, digest_of
from rwkvbatch.replay.jury import Jury, asks_of, turns_with_rubrics
from rwkvbatch.replay.plan import Plan
from rwkvbatch.results.directory import RunDirectory
from rwkvbatch.results.opinions import OpinionStore
from rwkvbatch.results.row import Row
from rwkvbatch.results.store import Rows

Shown = Callable[[int, int], None]
"""Called with the questions that were answered, and all of them."""


class OpensJudge(Protocol):
    """The judge that a command names, see `judges.source.JudgeSource`."""

    is_local: bool

    def open(self) -> Judge: ...


@dataclass(frozen=True)
class Asked:
    """A judge's opinions, and the name and digest of the judge; all None where no judge is known.

    `drop_unused` drops answers in the directory that no question used.
    """

    opinions: Opinions | None = None
    judge: str | None = None
    drop_unused: Callable[[], None] | None = None


@contextmanager
def opened_opinions(source: OpensJudge | None, directory: RunDirectory | None) -> Generator[Asked]:
    """The opinions of the judge that a command names, or without one those of the directory's last judge.

    Raises:
        RunDirectoryError: the file of verdicts cannot be used. StorageError: it cannot be written.
        UsageError, CheckpointError, WorkerError, EndpointError: the judge cannot be opened.
    """
    with ExitStack() as stack:
        store = None
        if directory is not None:
            store = OpinionStore(directory.path, at=directory.at, check=directory.check, files=directory.files)
            stack.enter_context(store)
        judge = None if source is None else source.open()
        if store is None:
            digest = None if judge is None else digest_of(judge.identity)
            record = MemoryRecord()
        else:
            digest, record = store.use(judge), store
        if digest is None:
            yield Asked()
            return
        name = judge.name if judge is not None else store.judge.name if store is not None and store.judge else ""
        opinions = Opinions(judge, digest, record)
        drop = None if store is None else partial(store.drop_unused, opinions.used)
        yield Asked(opinions, f"{name}#{digest}", drop)


class RunVerdicts:
    """The verdicts of a run's rows.

    Args:
        source: None without a judge. directory: None for a run in memory.
    """

    def __init__(self, plan: Plan, source: OpensJudge | None, directory: RunDirectory | None) -> None:
        self._plan = plan
        self._source = source
        self._directory = directory
        self._turns = turns_with_rubrics(plan.conversations)
        self._by_id = {each.id: each for each in plan.conversations if each.id in self._turns}
        self._gold = {
            cell.name: settings.history == "gold" for cell, settings in zip(plan.cells, plan.cell_settings, strict=True)
        }
        self._done = bytearray(plan.num_rows if self._turns else 0)
        self._asked: Asked | None = None
        self._stack = ExitStack()

    @property
    def needed(self) -> bool:
        """Whether the script has rubrics."""
        return bool(self._turns)

    @property
    def is_local(self) -> bool:
        """Whether the judge takes memory of this machine."""
        return self._source is not None and self._source.is_local

    def judge(self, rows: Rows, progress: Shown, should_stop: Callable[[], bool]) -> bool:
        """Ask about the rows of a round, and give them their verdicts; False when it was stopped before the end.

        Rows that an earlier round judged are left as they are. The judge stays open until `close`.

        Raises:
            StorageError, and what `opened_opinions` raises.
        """
        plan, done = self._plan, self._done
        numbers = [n for n in range(plan.num_rows) if not done[n] and rows.has(n) and self._is_asked(n)]
        if not numbers:
            return True
        if self._asked is None:
            self._asked = self._stack.enter_context(opened_opinions(self._source, self._directory))
        asked = self._asked

        def row_of(row: Row, turn: int) -> Row | None:
            number = plan.row_number(row.key)
            other = None if number is None else number - row.turn + turn
            return None if other is None or not rows.has(other) else rows.read(other)

        jury = Jury(asked.opinions, asked.judge, row_of, lambda cell: self._gold[cell])

        def judged(number: int) -> Row:
            row = rows.read(number)
            return jury.judged(row, self._by_id[row.conversation])

        if asked.opinions is not None and not asked.opinions.settle(
            lambda: asks_of(jury, map(rows.read, numbers), self._by_id, self._turns), progress, should_stop
        ):
            return False
        rows.renew([number for number in numbers if judged(number).checks != rows.read(number).checks], judged)
        for number in numbers:
            done[number] = 1
        return True

    def close(self, *, complete: bool) -> None:
        """Release the judge and the file of its answers; those that a complete run does not use are dropped."""
        if complete and self._asked is not None and self._asked.drop_unused is not None:
            self._asked.drop_unused()
        self._asked = None
        self._stack.close()

    def _is_asked(self, number: int) -> bool:
        task, turn = self._plan.task_of_row(number)
        conversation = self._plan.conversations[self._plan.conversation_of(task)]
        return turn in self._turns.get(conversation.id, ())
