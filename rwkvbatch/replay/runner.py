"""Executes a plan: runs its tasks, writes the run directory, and verifies rows (`--verify-batch`)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvbatch.errors import StorageError, counted
from rwkvbatch.files import OS_FILES, Files
from rwkvbatch.prompt.escaping import html_table
from rwkvbatch.replay.continuing.adaptation import Reuse
from rwkvbatch.replay.continuing.identity import make_about, make_identity
from rwkvbatch.replay.continuing.reuse import adopt, check_rows_of_plan, missing_rows
from rwkvbatch.replay.continuing.row_digests import RowDigests
from rwkvbatch.replay.driver import LocalDriver, PoolDriver, RowRecorder
from rwkvbatch.replay.judging.checks import explain
from rwkvbatch.replay.judging.verdicts import RunVerdicts
from rwkvbatch.replay.planning import rounds
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.race import RaceResult
from rwkvbatch.replay.planning.row_index import write_members
from rwkvbatch.replay.planning.setups import Setup, setups_of
from rwkvbatch.replay.pools.pool import WorkerPool
from rwkvbatch.replay.pools.pool_kinds import MakePool
from rwkvbatch.replay.progress import Counts, Observer, Progress, StepLog
from rwkvbatch.replay.verify import Difference, is_verifiable, verdict, verify_rows
from rwkvbatch.replay.worker.models import ModelLoader, refuse_unusable
from rwkvbatch.results.directory import KEPT_NAME, RunDirectory
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import Row
from rwkvbatch.results.rows import MemoryRows, Rows
from rwkvbatch.results.script_copy import write_script
from rwkvbatch.results.status import State, StatusFile
from rwkvbatch.results.store import RowStore
from rwkvbatch.results.summary import Summary, summarize, write_summary
from rwkvbatch.script.reader import SkippedLine
from rwkvbatch.targets import RESULTS_NAME

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

    from rwkvbatch.judges.source import JudgeSource

VERIFY_NAME = "verify.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to execute a plan, see `rwkvbatch.run`. No option changes the content of a row.

    Attributes:
        skipped: bad lines of the scripts; the run directory keeps a copy of them.
        notify: is called with a message for the user.
        loading: makes the context in which the models are loaded, such as a progress display.
        pool: makes the worker pool; None runs one worker in this process.
        judge: answers the checks of type `judge`; None uses the verdicts in the directory.
        files: system calls of the store.
    """

    out: Path | None = None
    scripts: tuple[str, ...] = ()
    command: str = ""
    retry_errors: bool = False
    repair: bool = False
    verify_rows: int = 0
    skipped: Sequence[SkippedLine] = ()
    observers: Sequence[Observer] = ()
    should_stop: Callable[[], bool] = lambda: False
    notify: Callable[[str], None] = lambda _: None
    loading: Callable[[], AbstractContextManager[None]] = nullcontext
    pool: MakePool | None = None
    judge: JudgeSource | None = None
    files: Files = OS_FILES


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        directory: the run directory; None when the rows are in memory.
        summary: figures by cell.
        progress: counts and speed of this session.
        interrupted: whether the run was stopped before its end.
        rows: reads the rows, in the plan's order.
        verified: the content of `verify.json`; None when no rows were verified.
        reached: the precision of each cell; empty without `--until-ci`.
        race: the result of the race; None without `--race`.
        reuse: counts of the rows that the directory already held; None for a new run.
    """

    directory: Path | None
    summary: Summary
    progress: Progress
    interrupted: bool
    plan: Plan
    rows: Callable[[], Iterator[Row]]
    verified: Mapping[str, Any] | None = None
    reached: tuple[rounds.ReachedPrecision, ...] = ()
    race: RaceResult | None = None
    reuse: Reuse | None = None

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a table, one per turn, with the metrics of `compare`; raises `RunDirectoryError` without rows."""
        from rwkvbatch.comparison import load

        return load(self)

    def _repr_html_(self) -> str:
        """The figures of each cell, for notebooks."""
        rows = [
            (
                cell.name,
                f"{cell.rows:,}",
                f"{cell.errors:,}",
                f"{cell.checks_passed:,} of {cell.checks:,}",
                "-" if cell.score is None else f"{cell.score:.3f}",
                f"{cell.reply_tokens:,}",
                "-" if cell.reference_nll is None else f"{cell.reference_nll:.3f}",
            )
            for cell in self.summary.cells
        ]
        header = ("cell", "rows", "errors", "checks passed", "score", "reply tokens", "ref. nll")
        return html_table(repr(self).strip("<>"), header, rows)

    def __repr__(self) -> str:
        summary, state = self.summary, ", interrupted" if self.interrupted else ""
        location = "in memory" if self.directory is None else f"in {self.directory}"
        return (
            f"<RunResult{state}: {summary.rows:,} of {summary.planned:,} rows {location}; cells {len(summary.cells)}, "
            f"errors {summary.errors}, checks passed {summary.checks_passed} of {summary.checks}>"
        )


def execute(plan: Plan, loader: ModelLoader, options: RunOptions) -> RunResult:
    """Generate the rows of a plan that do not exist yet.

    Raises:
        RunDirectoryError: the directory is unusable, locked, damaged, or belongs to another run.
        StorageError: a write failed; the rows written before it are kept.
        TooManyFailuresError: more rows failed than the settings allow.
    """
    with ExitStack() as stack:
        pool = None if options.pool is None else stack.enter_context(closing(options.pool(plan)))
        directory = None
        if options.out is not None:
            opened = RunDirectory(options.out, options.command, options.files, repair=options.repair)
            directory = stack.enter_context(closing(opened))
        with options.loading():
            specs = (loader if pool is None else pool).specs(setups_of(plan))
        if directory is None:
            refuse_unusable(plan, specs)
            return _Session(plan, loader, pool, options, MemoryRows(), None).run()
        identity = make_identity(plan, specs, loader.tokenizer)
        refuse_unusable(plan, specs)
        digests = RowDigests(plan, list(identity["cells"].values()))
        about = partial(make_about, plan, specs, list(options.scripts), options.command)
        status = StatusFile(directory.folder)
        reuse = _take_directory(directory, plan, digests, identity, about, status)
        if plan.shard is not None:
            write_members(directory.folder, [plan.members[number] for number in plan.chosen])
        if options.skipped:
            directory.keep_skipped(line.raw for line in options.skipped)
        vocabulary = {plan.cells[cell].name: spec.vocab_size for setup, spec in specs.items() for cell in setup.cells}
        rows = RowStore(
            directory.folder,
            plan.num_rows,
            plan.row_number,
            digest=digests.of_row,
            repair=options.repair,
            vocab_size=vocabulary.get,
        )
        store = stack.enter_context(closing(rows))
        return _Session(plan, loader, pool, options, store, directory, reuse, status).run()


def _take_directory(
    directory: RunDirectory,
    plan: Plan,
    digests: RowDigests,
    identity: dict[str, Any],
    about: Callable[[], dict[str, Any]],
    status: StatusFile,
) -> Reuse | None:
    """Write the manifest and the script's copy, and keep the rows that are rows of `plan`; None for a new directory."""

    def announce(num_rows: int) -> None:
        """Write the plan's total to the status file, which may have that of an earlier, smaller plan."""
        progress = Counts(num_rows, _may_grow(plan)).progress(num_rows, rounds.first_round(plan).num_rows)
        status.update(progress.as_dict())

    shard = plan.shard and {**vars(plan.shard), "rows_of_run": plan.num_rows}
    if directory.damage is not None:
        check_rows_of_plan(directory, plan, digests, identity)
        announce(0)
        directory.set_manifest_aside()
    if directory.holds_rows:
        return adopt(directory, plan, digests, identity, about, shard, announce) or Reuse(0)
    directory.claim(identity, about, shard)
    write_script(directory.folder, plan.conversations)
    return None


def _may_grow(plan: Plan) -> bool:
    """Whether rounds after the first one may add rows."""
    return plan.settings.race or plan.settings.until_ci is not None


def read_rows(directory: Path) -> Iterator[Row]:
    """The rows of a run directory, in the order of the file; raises as `read_results`."""
    return read_results(directory / RESULTS_NAME)


class _Session:
    """One execution of a plan: generates the missing rows, and keeps the run's progress and status file."""

    def __init__(
        self,
        plan: Plan,
        loader: ModelLoader,
        pool: WorkerPool | None,
        options: RunOptions,
        rows: Rows,
        directory: RunDirectory | None,
        reuse: Reuse | None = None,
        status: StatusFile | None = None,
    ) -> None:
        self._plan = plan
        self._loader = loader
        self._options = options
        self._rows = rows
        self._directory = directory
        self._status = status
        self._verdicts = RunVerdicts(plan, options.judge, directory)
        self._race = rounds.race_of(plan, rows) if plan.settings.race else None
        self._selection: rounds.Selection = rounds.first_round(plan)
        self._step_log = StepLog()
        self._num_verified = 0
        self._differences: list[Difference] = []
        if options.retry_errors:
            rows.discard([number for number in range(plan.num_rows) if rows.failed(number)])
        self._reuse = None if reuse is None else self._recounted(reuse)
        self._counts = Counts(rows.num_durable, _may_grow(plan))
        recorder = RowRecorder(plan, rows, self._counts, plan.settings.max_failures)
        hooks = (recorder, options.should_stop, self._after_step)
        self._driver = LocalDriver(plan, loader, *hooks) if pool is None else PoolDriver(plan, pool, *hooks)

    def _recounted(self, reuse: Reuse) -> Reuse:
        """`reuse` with the rows that the store has and lacks, after repairs and `--retry-errors`."""
        missing = missing_rows(self._plan, self._selection.tasks(), self._rows.has)
        return replace(reuse, kept=self._rows.num_rows - reuse.judged_again, to_generate=missing)

    def run(self) -> RunResult:
        if self._reuse is not None and self._options.out is not None:
            self._options.notify(self._reuse.in_words(self._options.out))
        for observer in self._options.observers:
            observer.started(self._progress())
        self._update_status("running")
        try:
            complete = self._run_rounds()
            self._rows.flush()
            if complete:
                self._set_unselected_aside()
                self._rows.finalize()
        except BaseException as error:  # also KeyboardInterrupt: the status file records how the run ended
            self._fail(error)
            raise
        finally:
            self._verdicts.close(complete=False)
            for observer in self._options.observers:
                observer.ended(self._progress())
        self._update_status("done" if complete else "interrupted")
        return self._result(interrupted=not complete)

    def _run_rounds(self) -> bool:
        setups = setups_of(self._plan)
        for selection in rounds.rounds(self._plan, self._rows, self._race):
            self._selection = selection
            if isinstance(selection, rounds.DrawSelection):
                self._counts.cells_left, self._counts.cells = selection.num_cells_left, len(self._plan.cells)
            for setup in setups:
                if not self._driver.run(self._tasks(setup, longest_first=True), setup):
                    return False
            if not self._judge():
                return False
        self._verdicts.close(complete=True)  # frees the judge's memory for the model that `--verify-batch` loads
        if self._race is not None:
            self._counts.cells_left = len(self._race.state.left)
        if self._options.verify_rows:
            self._driver.close()  # frees the workers' models before this process loads one
            for setup in setups:
                self._verify(setup, max(1, self._options.verify_rows // len(setups)))
        return True

    def _judge(self) -> bool:
        """Ask the judge about the existing rows. Returns False when the run was stopped before the end."""
        if not self._verdicts.needed:
            return True
        settings = self._plan.settings
        if self._verdicts.is_local and not settings.race and settings.max_repeats is None:
            # No further round: frees the model's memory for the judge.
            self._driver.close()
            self._loader.release()

        def show_progress(num_answered: int, num_questions: int) -> None:
            self._counts.questions_done, self._counts.questions = num_answered, num_questions
            self._after_step()

        return self._verdicts.judge(self._rows, show_progress, self._options.should_stop)

    def _set_unselected_aside(self) -> None:
        """Set aside rows that a new run would not have, because the verdicts now ask for fewer repeats or draws."""
        directory, rows = self._directory, self._rows
        if directory is None or rows.num_rows <= self._selection.num_rows:
            return
        is_selected = bytearray(self._plan.num_rows)
        for task in self._selection.tasks():
            for row in range(*self._plan.rows_of(task)):
                is_selected[row] = 1
        unselected = [row for row in range(self._plan.num_rows) if rows.has(row) and not is_selected[row]]
        directory.set_aside(map(rows.read_line, unselected))
        rows.discard(unselected)
        self._options.notify(f"{counted(len(unselected), 'row')} not needed by this command, moved to {KEPT_NAME}")

    def _tasks(self, setup: Setup, *, longest_first: bool = False) -> Iterator[int]:
        """The selected tasks in the cells of `setup`."""
        tasks = self._selection.tasks(longest_first=longest_first)
        return (task for task in tasks if self._plan.cell_of(task) in setup.cells)

    def _verify(self, setup: Setup, count: int) -> None:
        """Generate up to `count` finished rows again, each alone and all in one batch in another order.

        The rows are chosen by a hash of their number, so that every run of the plan verifies the same ones.
        """
        plan, rows = self._plan, self._rows
        numbers = [row for task in self._tasks(setup) for row in range(*plan.rows_of(task)) if is_verifiable(rows, row)]
        numbers.sort(key=lambda number: hashlib.blake2b(b"%d" % number).digest())
        del numbers[count:]
        self._differences += verify_rows(plan, rows, numbers, setup, self._loader)
        self._num_verified += len(numbers)

    def _after_step(self) -> None:
        progress = self._progress()
        self._step_log.count(progress)
        for observer in self._options.observers:
            observer.moved(progress)
        self._update_status("running", progress=progress)

    def _update_status(self, state: State, error: str | None = None, progress: Progress | None = None) -> None:
        if self._status is not None:
            self._status.update((progress or self._progress()).as_dict(), state, error)

    def _progress(self) -> Progress:
        return self._counts.progress(self._rows.num_durable, self._selection.num_rows)

    def _fail(self, error: BaseException) -> None:
        """Flush the rows and record the error in the status file."""
        if not isinstance(error, StorageError):
            try:
                self._rows.flush()
            except StorageError:
                _log.exception("the last rows could not be flushed")
        self._update_status("failed" if isinstance(error, Exception) else "interrupted", explain(error))

    def _result(self, *, interrupted: bool) -> RunResult:
        directory, progress = self._directory, self._progress()
        self._step_log.end(progress, interrupted=interrupted)
        verified = verdict(self._num_verified, self._differences) if self._num_verified else None
        race, precision = None, ()
        if isinstance(self._selection, rounds.RepeatSelection):
            precision = rounds.reached_precision(self._plan, self._rows, self._selection)
        elif self._race is not None:
            race = rounds.race_result(self._race, self._plan, self._selection)
        cell_names = [cell.name for cell in self._plan.cells]
        summary = summarize(self._rows.rows(), cell_names, self._selection.num_rows)
        path = None if directory is None else directory.path
        rows = partial(iter, list(self._rows.rows())) if path is None else partial(read_rows, path)
        if directory is not None:
            write_summary(directory.folder, summary, progress.session(), None if race is None else race.as_dict())
            if verified is not None:
                directory.folder.save(VERIFY_NAME, [json.dumps(verified, indent=2).encode(), b"\n"])
        return RunResult(path, summary, progress, interrupted, self._plan, rows, verified, precision, race, self._reuse)
