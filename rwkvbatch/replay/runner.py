"""A plan carried out: rows into a directory or into memory, figures out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvbatch.errors import RwkvBatchError, StorageError
from rwkvbatch.files import OS_FILES, Files
from rwkvbatch.replay.adaptive import Reached, first_round, reached, rounds
from rwkvbatch.replay.driver import Counts, Driver
from rwkvbatch.replay.identity import make_about, make_identity, make_shard
from rwkvbatch.replay.logs import StepLog
from rwkvbatch.replay.models import ModelProvider, Setup, refuse_unusable, setups_of
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import LocalPool, WorkerPool
from rwkvbatch.replay.progress import Meter, Observer, Progress
from rwkvbatch.replay.row_index import write_members
from rwkvbatch.replay.verify import Difference, choose_rows, verdict, verify_rows, write_verdict
from rwkvbatch.results.directory import RunDirectory
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import Row
from rwkvbatch.results.status import StatusFile
from rwkvbatch.results.store import RESULTS_NAME, MemoryRows, Rows
from rwkvbatch.results.summary import Summary, summarize, write_summary
from rwkvbatch.script.reader import SkippedLine

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """How a plan is carried out; none of it changes a row.

    Attributes:
        out: the run directory; None keeps the rows in memory.
        scripts, command: for the manifest's `about`.
        retry_errors: run failed rows again, with what follows them in their dialogues.
        repair: set damaged rows aside and run them again.
        verify_rows: afterwards, generate so many rows again, alone and in another batch.
        skipped: bad lines of the scripts, to be kept in the directory.
        observer: is told of progress. should_stop: ends the run after the engine's step.
        loading: entered while the models are loaded, before anything is written; what it raises leaves no trace.
        crew: makes the workers; by default there is one, in this process.
        files: the system calls of the store.
    """

    out: Path | None = None
    scripts: tuple[str, ...] = ()
    command: str = ""
    retry_errors: bool = False
    repair: bool = False
    verify_rows: int = 0
    skipped: Sequence[SkippedLine] = ()
    observer: Observer | None = None
    should_stop: Callable[[], bool] = lambda: False
    loading: Callable[[], AbstractContextManager[None]] = nullcontext
    crew: Callable[[Plan, ModelProvider], WorkerPool] = LocalPool
    files: Files = OS_FILES


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        directory: where the rows are; None when they are in memory.
        summary: figures by cell. progress: of this session.
        interrupted: it was stopped before its end.
        rows: reads the rows, in the plan's order.
        plan: what was run.
        verified: what `verify.json` holds, when rows were verified.
        reached: how precise each cell got; empty without `--until-ci`.
    """

    directory: Path | None
    summary: Summary
    progress: Progress
    interrupted: bool
    plan: Plan
    rows: Callable[[], Iterator[Row]]
    verified: Mapping[str, Any] | None = None
    reached: tuple[Reached, ...] = ()

    def __repr__(self) -> str:
        done = self.summary
        place = "in memory" if self.directory is None else f"in {self.directory}"
        return (
            f"<RunResult{', interrupted' if self.interrupted else ''}: {done.rows:,} of {done.planned:,} rows {place}; "
            f"cells {len(done.cells)}, errors {done.errors}, checks passed {done.checks_passed} of {done.checks}>"
        )


def execute(plan: Plan, shop: ModelProvider, options: RunOptions) -> RunResult:
    """Run what the plan says and is not done yet.

    Raises:
        RunDirectoryError: the directory cannot be used, is locked, damaged, or another run's.
        StorageError: a write failed; rows before it are safe.
        TooManyFailuresError: more rows failed than the settings allow.
    """
    crew = options.crew(plan, shop)
    try:
        if options.out is None:
            with options.loading():
                specs = crew.specs(setups_of(plan))
            refuse_unusable(plan, specs)
            return _Session(plan, shop, crew, options, MemoryRows(), None).run()
        return _execute_in(options.out, plan, shop, crew, options)
    finally:
        crew.close()


def _execute_in(path: Path, plan: Plan, shop: ModelProvider, crew: WorkerPool, options: RunOptions) -> RunResult:
    directory = RunDirectory(path, options.command, options.files)
    try:
        with options.loading():
            specs = crew.specs(setups_of(plan))
        identity = make_identity(plan, specs, shop.tokenizer)
        refuse_unusable(plan, specs)
        directory.claim(
            identity,
            lambda: make_about(plan, specs, list(options.scripts), options.command),
            make_shard(plan),
        )
        if plan.shard is not None:
            write_members(options.files, directory.path, plan.members())
        if options.skipped:
            directory.keep_skipped(line.raw for line in options.skipped)
        store = directory.open_rows(plan.num_rows, plan.place, repair=options.repair)
        try:
            return _Session(plan, shop, crew, options, store, directory.path).run()
        finally:
            store.close()
    finally:
        directory.close()


class _Session:
    """One process's part in a run."""

    def __init__(
        self,
        plan: Plan,
        shop: ModelProvider,
        crew: WorkerPool,
        options: RunOptions,
        rows: Rows,
        path: Path | None,
    ) -> None:
        self._plan = plan
        self._shop = shop
        self._crew = crew
        self._options = options
        self._rows = rows
        self._path = path
        self._status = None if path is None else StatusFile(path, files=options.files)
        self._counts = Counts()
        self._wanted = first_round(plan)
        self._steps = StepLog()
        self._verified: list[int] = []
        self._differences: list[Difference] = []

    def run(self) -> RunResult:
        if self._options.retry_errors:
            self._rows.discard([n for n in range(self._plan.num_rows) if self._rows.failed(n)])
        self._meter = Meter(self._rows.num_durable)
        observer = self._options.observer
        if observer is not None:
            observer.started(self._progress())
        if self._status is not None:
            self._status.update(self._progress().as_dict())
        try:
            complete = self._drive()
            self._rows.flush()
            if complete:
                self._rows.finalize()
        except BaseException as error:
            self._leave(error)
            raise
        finally:
            if observer is not None:
                observer.ended(self._progress())
        if self._status is not None:
            self._status.update(self._progress().as_dict(), "done" if complete else "interrupted")
        return self._result(interrupted=not complete)

    def _drive(self) -> bool:
        driver = Driver(
            self._plan,
            self._rows,
            self._crew,
            self._counts,
            max_failures=self._plan.settings.max_failures,
            should_stop=self._options.should_stop,
            after_step=self._after_step,
        )
        for wanted in rounds(self._plan, self._rows):
            self._wanted = wanted
            if not self._run_round(driver):
                return False
        if self._options.verify_rows:
            # Before a model is loaded here, those of the workers make room.
            self._crew.close()
            for setup in setups_of(self._plan):
                self._verify(setup)
        return True

    def _run_round(self, driver: Driver) -> bool:
        for setup in setups_of(self._plan):
            cells = set(setup.cells)
            dialogues = self._wanted.dialogues(longest_first=True)
            if not driver.run((n for n in dialogues if self._cell(n) in cells), setup):
                return False
        return True

    def _verify(self, setup: Setup) -> None:
        dialogues = [n for n in self._wanted.dialogues() if self._cell(n) in setup.cells]
        rows = [row for number in dialogues for row in range(*self._plan.rows_of(number))]
        share = max(1, self._options.verify_rows // len(setups_of(self._plan)))
        chosen = choose_rows(self._rows, rows, share)
        desk = self._shop.desk(setup, self._plan)
        self._verified += chosen
        self._differences += verify_rows(
            self._plan, self._rows, chosen, desk, lambda batch: self._shop.engine(setup, self._plan, batch)
        )

    def _cell(self, number: int) -> int:
        return number // self._plan.repeats % len(self._plan.cells)

    def _after_step(self) -> None:
        progress = self._progress()
        self._steps.count(progress)
        if self._options.observer is not None:
            self._options.observer.moved(progress)
        if self._status is not None:
            self._status.update(progress.as_dict())

    def _progress(self) -> Progress:
        counts = self._counts
        return self._meter.read(
            self._wanted.num_rows,
            self._rows.num_durable,
            counts.failed_rows,
            counts.failed_checks,
            counts.active,
            counts.reply_tokens,
            counts.at_work(),
            counts.lost_workers,
        )

    def _leave(self, error: BaseException) -> None:
        """The run ends by an error: keep what is there, and say so to whoever looks from outside."""
        if not isinstance(error, StorageError):
            try:
                self._rows.flush()
            except StorageError:
                _log.exception("the last rows could not be flushed")
        if self._status is not None:
            state = "failed" if isinstance(error, Exception) else "interrupted"
            message = error.message if isinstance(error, RwkvBatchError) else f"{type(error).__name__}: {error}"
            self._status.update(self._progress().as_dict(), state, message)

    def _result(self, *, interrupted: bool) -> RunResult:
        progress = self._progress()
        self._steps.end(progress, interrupted=interrupted)
        verified = None
        if self._verified:
            verified = verdict(len(self._verified), self._differences)
        names = [cell.name for cell in self._plan.cells]
        summary = summarize(self._rows.rows(), names, self._wanted.num_rows)
        precision = reached(self._plan, self._rows, self._wanted)
        if self._path is None:
            rows = list(self._rows.rows())
            return RunResult(None, summary, progress, interrupted, self._plan, lambda: iter(rows), verified, precision)
        session = {
            "wall_s": round(progress.elapsed_s, 3),
            "reply_tokens": progress.reply_tokens,
            "tokens_per_s": round(progress.tokens_per_s, 3),
        }
        write_summary(self._path, summary, session, files=self._options.files)
        if verified is not None:
            write_verdict(self._options.files, self._path, verified)
        path, plan = self._path, self._plan
        return RunResult(path, summary, progress, interrupted, plan, lambda: read_rows(path), verified, precision)


def read_rows(directory: Path) -> Iterator[Row]:
    """The rows of a run directory, in the order of the file.

    Raises:
        RunDirectoryError: the file cannot be read.
        RunDamagedError: a row is damaged.
    """
    return read_results(directory / RESULTS_NAME)
