"""Asks a judge about the rows of a run after they were generated, and adds its verdicts to them.

A row whose checks need a judge is first written without their verdicts, so that finished rows need not wait. When all
rows of a round exist, the open questions are asked in batches; each answer is appended to `verdicts.jsonl`. Then a new
`results.jsonl`, which has the verdicts, replaces the old one atomically. An interrupted run reuses its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rwkvbatch.judges.answers import JudgeAnswers, MemoryRecord, digest_of
from rwkvbatch.replay.judging.rubrics import RubricJudge, turns_with_rubrics, vote_requests_of
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.results.answers import AnswerStore
from rwkvbatch.results.directory import RunDirectory
from rwkvbatch.results.row import Row
from rwkvbatch.results.rows import Rows

if TYPE_CHECKING:
    from rwkvbatch.judges.source import JudgeSource

ShowProgress = Callable[[int, int], None]
"""Is called with the numbers of answered questions and of all questions."""


@dataclass(frozen=True)
class KnownAnswers:
    """A judge's answers; all attributes are None if no judge is known.

    Attributes:
        answers: existing answers, and new ones from the judge if one is open.
        judge: the judge's name and digest.
        drop_unused: removes answers from the store that no question used.
    """

    answers: JudgeAnswers | None = None
    judge: str | None = None
    drop_unused: Callable[[], None] | None = None


@contextmanager
def opened_answers(source: JudgeSource | None, store: AnswerStore | None) -> Generator[KnownAnswers]:
    """The answers of the judge that a command names, or those of the store's last judge if it names none.

    Args:
        store: recorded answers, which are closed at the end; None to keep the answers in memory.

    Raises:
        RunDirectoryError: the file of verdicts cannot be used.
        StorageError: the file of verdicts cannot be written.
        UsageError, CheckpointError, WorkerError, EndpointError: the judge cannot be opened.
    """
    with ExitStack() as stack:
        if store is not None:
            stack.enter_context(store)
        judge = None if source is None else source.open()
        if store is None:
            digest = None if judge is None else digest_of(judge.identity)
            record = MemoryRecord()
        else:
            digest, record = store.use(judge), store
        if digest is None:
            yield KnownAnswers()
            return
        name = ""
        if judge is not None:
            name = judge.name
        elif store is not None and store.judge:
            name = store.judge.name
        answers = JudgeAnswers(judge, digest, record)
        drop_unused = None if store is None else partial(store.drop_unused, answers.used)
        yield KnownAnswers(answers, f"{name}#{digest}", drop_unused)


class RunVerdicts:
    """Adds a judge's verdicts to the rows of a run.

    Args:
        source: the judge that the command names, if any.
        directory: the run directory; None for a run in memory.
    """

    def __init__(self, plan: Plan, source: JudgeSource | None, directory: RunDirectory | None) -> None:
        self._plan = plan
        self._source = source
        self._directory = directory
        self._turns = turns_with_rubrics(plan.conversations)
        self._conversations = {c.id: c for c in plan.conversations if c.id in self._turns}
        self._is_gold = {
            cell.name: settings.history == "gold" for cell, settings in zip(plan.cells, plan.cell_settings, strict=True)
        }
        self._is_judged = bytearray(plan.num_rows if self._turns else 0)
        self._known: KnownAnswers | None = None
        self._stack = ExitStack()

    @property
    def needed(self) -> bool:
        """Whether the script has checks that a judge answers."""
        return bool(self._turns)

    @property
    def is_local(self) -> bool:
        """Whether the judge is a model in this machine's memory."""
        return self._source is not None and self._source.is_local

    def judge(self, rows: Rows, progress: ShowProgress, should_stop: Callable[[], bool]) -> bool:
        """Ask about the rows of a round and add their verdicts. Returns False when stopped before the end.

        Rows that an earlier round judged stay as they are. The judge stays open until `close`.

        Raises:
            StorageError: the verdicts cannot be written. Also raises as `opened_answers`.
        """
        plan, is_judged = self._plan, self._is_judged
        numbers = [n for n in range(plan.num_rows) if not is_judged[n] and rows.has(n) and self._has_rubrics(n)]
        if not numbers:
            return True
        if self._known is None:
            store = None if self._directory is None else AnswerStore(self._directory.folder)
            self._known = self._stack.enter_context(opened_answers(self._source, store))
        answers = self._known.answers

        def row_of(row: Row, turn: int) -> Row | None:
            number = plan.row_number(row.key)
            other = None if number is None else number - row.turn + turn
            return None if other is None or not rows.has(other) else rows.read(other)

        rubric_judge = RubricJudge(answers, self._known.judge, row_of, lambda cell: self._is_gold[cell])

        def judged(number: int) -> Row:
            row = rows.read(number)
            return rubric_judge.judged(row, self._conversations[row.conversation])

        if answers is not None and not answers.ask_missing(
            lambda: vote_requests_of(rubric_judge, map(rows.read, numbers), self._conversations, self._turns),
            progress,
            should_stop,
        ):
            return False
        rows.renew([number for number in numbers if judged(number).checks != rows.read(number).checks], judged)
        for number in numbers:
            is_judged[number] = 1
        return True

    def close(self, *, complete: bool) -> None:
        """Release the judge and the file of its answers; `complete` removes answers that no row used."""
        if complete and self._known is not None and self._known.drop_unused is not None:
            self._known.drop_unused()
        self._known = None
        self._stack.close()

    def _has_rubrics(self, number: int) -> bool:
        """Whether a judge is asked about a row."""
        task, turn = self._plan.task_of_row(number)
        conversation = self._plan.conversations[self._plan.conversation_of(task)]
        return turn in self._turns.get(conversation.id, ())
