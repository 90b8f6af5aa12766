"""Carries out a plan: runs its tasks, writes the run directory, and verifies rows (`--verify-batch`)."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvbatch.engine.request import Reply, Request, Score
from rwkvbatch.errors import RwkvBatchError, StorageError
from rwkvbatch.files import OS_FILES, Files, save_file
from rwkvbatch.replay.adaptive import Reached, Wanted, first_round, reached, rounds
from rwkvbatch.replay.conversation import ConversationReplay, PromptEncoder
from rwkvbatch.replay.driver import LocalDriver, PoolDriver, RowRecorder
from rwkvbatch.replay.identity import make_about, make_identity, make_shard
from rwkvbatch.replay.models import ModelProvider, Setup, refuse_unusable, setups_of
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.pool import MakePool, WorkerPool
from rwkvbatch.replay.progress import Counts, Observer, Progress, StepLog
from rwkvbatch.replay.race import Played, RaceResult, race_of, result_of
from rwkvbatch.replay.row_index import write_members
from rwkvbatch.results.directory import RunDirectory
from rwkvbatch.results.recovery import read_results
from rwkvbatch.results.row import Row
from rwkvbatch.results.status import StatusFile
from rwkvbatch.results.store import RESULTS_NAME, MemoryRows, Rows
from rwkvbatch.results.summary import Summary, summarize, write_summary
from rwkvbatch.script.reader import SkippedLine

if TYPE_CHECKING:
    from rwkvbatch.engine.engine import Engine

VERIFY_NAME = "verify.json"

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to carry out a plan. No option changes a row.

    Attributes:
        out: the run directory; None keeps the rows in memory.
        scripts, command: for the manifest's `about`.
        retry_errors: run failed rows again, and the rows after them in their conversations.
        repair: set damaged rows aside and run them again.
        verify_rows: number of finished rows to generate again afterwards, alone and in another batch.
        skipped: bad lines of the scripts, to be kept in the directory.
        observer: receives the progress. should_stop: checked between steps; true ends the run.
        loading: context in which the models are loaded, before anything is written.
        pool: makes the workers; None runs one worker in this process.
        files: system calls of the store.
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
    pool: MakePool | None = None
    files: Files = OS_FILES


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        directory: the run directory; None when the rows are in memory.
        summary: figures by cell. progress: of this session.
        interrupted: the run was stopped before its end.
        rows: reads the rows, in the plan's order.
        plan: what was run.
        verified: the content of `verify.json`, when rows were verified.
        reached: the precision of each cell; empty without `--until-ci`.
        race: what a race came to; None without `--race`.
    """

    directory: Path | None
    summary: Summary
    progress: Progress
    interrupted: bool
    plan: Plan
    rows: Callable[[], Iterator[Row]]
    verified: Mapping[str, Any] | None = None
    reached: tuple[Reached, ...] = ()
    race: RaceResult | None = None

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a table, one per turn, with the metrics of `compare` as columns.

        Raises:
            RunDirectoryError: the run has no rows yet.
        """
        from rwkvbatch.comparison import load

        return load(self)

    def __repr__(self) -> str:
        done = self.summary
        place = "in memory" if self.directory is None else f"in {self.directory}"
        return (
            f"<RunResult{', interrupted' if self.interrupted else ''}: {done.rows:,} of {done.planned:,} rows {place}; "
            f"cells {len(done.cells)}, errors {done.errors}, checks passed {done.checks_passed} of {done.checks}>"
        )


def execute(plan: Plan, loader: ModelProvider, options: RunOptions) -> RunResult:
    """Run the rows of a plan that do not exist yet.

    Raises:
        RunDirectoryError: the directory is unusable, locked, damaged, or belongs to another run.
        StorageError: a write failed; rows before it are kept.
        TooManyFailuresError: more rows failed than the settings allow.
    """
    pool = None if options.pool is None else options.pool(plan)
    try:
        if options.out is not None:
            return _execute_in(options.out, plan, loader, pool, options)
        refuse_unusable(plan, _load_specs(plan, loader, pool, options))
        return _Session(plan, loader, pool, options, MemoryRows()).run()
    finally:
        if pool is not None:
            pool.close()


def _load_specs(plan: Plan, loader: ModelProvider, pool: WorkerPool | None, options: RunOptions) -> dict[Setup, Any]:
    with options.loading():
        return (loader if pool is None else pool).specs(setups_of(plan))


def _execute_in(
    path: Path, plan: Plan, loader: ModelProvider, pool: WorkerPool | None, options: RunOptions
) -> RunResult:
    directory = RunDirectory(path, options.command, options.files)
    try:
        specs = _load_specs(plan, loader, pool, options)
        identity = make_identity(plan, specs, loader.tokenizer)
        refuse_unusable(plan, specs)
        directory.claim(
            identity, lambda: make_about(plan, specs, list(options.scripts), options.command), make_shard(plan)
        )
        if plan.shard is not None:
            write_members(options.files, directory.path, plan.members())
        if options.skipped:
            directory.keep_skipped(line.raw for line in options.skipped)
        store = directory.open_rows(plan.num_rows, plan.row_number, repair=options.repair)
        try:
            return _Session(plan, loader, pool, options, store, directory.path).run()
        finally:
            store.close()
    finally:
        directory.close()


def read_rows(directory: Path) -> Iterator[Row]:
    """The rows of a run directory, in the order of the file.

    Raises:
        RunDirectoryError: the file cannot be read.
        RunDamagedError: a row is damaged.
    """
    return read_results(directory / RESULTS_NAME)


class _Session:
    """One process's part of a run: what its rows, progress and verdict come from."""

    def __init__(
        self,
        plan: Plan,
        loader: ModelProvider,
        pool: WorkerPool | None,
        options: RunOptions,
        rows: Rows,
        path: Path | None = None,
    ) -> None:
        self._plan = plan
        self._loader = loader
        self._options = options
        self._rows = rows
        self._path = path
        self._status = None if path is None else StatusFile(path, files=options.files)
        self._race = race_of(plan, rows) if plan.settings.race else None
        self._wanted: Wanted | Played = first_round(plan)
        self._steps = StepLog()
        self._verified: list[int] = []
        self._differences: list[Difference] = []
        if options.retry_errors:
            rows.discard([number for number in range(plan.num_rows) if rows.failed(number)])
        self._counts = Counts(rows.num_durable)
        recorder = RowRecorder(plan, rows, self._counts, plan.settings.max_failures)
        self._driver = (
            LocalDriver(plan, loader, recorder, options.should_stop, self._after_step)
            if pool is None
            else PoolDriver(plan, pool, recorder, options.should_stop, self._after_step)
        )

    def run(self) -> RunResult:
        observer = self._options.observer
        if observer is not None:
            observer.started(self._progress())
        if self._status is not None:
            self._status.update(self._progress().as_dict())
        try:
            complete = self._run_rounds()
            self._rows.flush()
            if complete:
                self._rows.finalize()
        except BaseException as error:  # Ctrl-C too: the status file says how the run ended
            self._fail(error)
            raise
        finally:
            if observer is not None:
                observer.ended(self._progress())
        if self._status is not None:
            self._status.update(self._progress().as_dict(), "done" if complete else "interrupted")
        return self._result(interrupted=not complete)

    def _run_rounds(self) -> bool:
        setups = setups_of(self._plan)
        for wanted in rounds(self._plan, self._rows, race=self._race):
            self._wanted = wanted
            if isinstance(wanted, Played):
                self._counts.cells_left, self._counts.cells = wanted.num_cells_left, len(self._plan.cells)
            for setup in setups:
                if not self._driver.run(self._tasks(setup, longest_first=True), setup):
                    return False
        if self._race is not None:
            self._counts.cells_left = len(self._race.state.left)
        if self._options.verify_rows:
            # Frees the workers' models before one is loaded here.
            self._driver.close()
            for setup in setups:
                self._verify(setup, max(1, self._options.verify_rows // len(setups)))
        return True

    def _tasks(self, setup: Setup, *, longest_first: bool = False) -> Iterator[int]:
        return (
            task for task in self._wanted.tasks(longest_first=longest_first) if self._plan.cell_of(task) in setup.cells
        )

    def _verify(self, setup: Setup, count: int) -> None:
        candidates = [row for task in self._tasks(setup) for row in range(*self._plan.rows_of(task))]
        chosen = choose_rows(self._rows, candidates, count)
        encoder = self._loader.encoder(setup, self._plan)
        self._verified += chosen
        self._differences += verify_rows(
            self._plan, self._rows, chosen, encoder, lambda batch: self._loader.engine(setup, self._plan, batch)
        )

    def _after_step(self) -> None:
        progress = self._progress()
        self._steps.count(progress)
        if self._options.observer is not None:
            self._options.observer.moved(progress)
        if self._status is not None:
            self._status.update(progress.as_dict())

    def _progress(self) -> Progress:
        return self._counts.progress(self._rows.num_durable, self._wanted.num_rows)

    def _fail(self, error: BaseException) -> None:
        """Keep the rows and record the error in the status file."""
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
        verified = verdict(len(self._verified), self._differences) if self._verified else None
        race = None
        if self._race is not None and isinstance(self._wanted, Played):
            race = result_of(self._race, self._plan, self._wanted)
        names = [cell.name for cell in self._plan.cells]
        summary = summarize(self._rows.rows(), names, self._wanted.num_rows)
        rows = partial(iter, list(self._rows.rows())) if self._path is None else partial(read_rows, self._path)
        if self._path is not None:
            session = {
                "wall_s": round(progress.elapsed_s, 3),
                "reply_tokens": progress.reply_tokens,
                "tokens_per_s": round(progress.tokens_per_s, 3),
            }
            write_summary(
                self._path, summary, session, None if race is None else race.as_dict(), files=self._options.files
            )
            if verified is not None:
                _write_verdict(self._options.files, self._path, verified)
        return RunResult(
            directory=self._path,
            summary=summary,
            progress=progress,
            interrupted=interrupted,
            plan=self._plan,
            rows=rows,
            verified=verified,
            reached=() if isinstance(self._wanted, Played) else reached(self._plan, self._rows, self._wanted),
            race=race,
        )


@dataclass(frozen=True)
class Difference:
    """A row that was generated differently the second time.

    Attributes:
        where: `alone` or `shuffled`.
        first_token: position of the first different token; None when only log-probabilities differ.
        gap: difference of the log-probabilities at that position (their largest difference without one), in nats.
    """

    row: int
    where: str
    first_token: int | None
    gap: float


def choose_rows(rows: Rows, candidates: Sequence[int], count: int) -> list[int]:
    """`count` of the finished rows among `candidates`; the same ones for the same plan."""
    finished = [n for n in candidates if rows.has(n) and not rows.failed(n) and rows.read(n).finish_reason != "time"]
    return sorted(finished, key=lambda n: hashlib.blake2b(b"%d" % n).digest())[:count]


def verify_rows(
    plan: Plan, rows: Rows, numbers: Sequence[int], encoder: PromptEncoder, make_engine: Callable[[int], Engine]
) -> list[Difference]:
    """Generate rows again, each alone and all in one batch in another order."""
    requests = [_request(plan, rows, number, encoder) for number in numbers]
    differences: list[Difference] = []
    lone = [_generate(make_engine(1), [request])[0] for request in requests]
    together = _generate(make_engine(max(1, len(requests))), requests[::-1])[::-1]
    for number, alone, shuffled in zip(numbers, lone, together, strict=True):
        row = rows.read(number)
        for where, reply in (("alone", alone), ("shuffled", shuffled)):
            found = _compare(number, where, row, reply, alone)
            if found is not None:
                differences.append(found)
    return differences


def verdict(num_rows: int, differences: Sequence[Difference]) -> dict[str, Any]:
    """The content of `verify.json`."""
    tokens_differ = [d for d in differences if d.first_token is not None]
    if not differences:
        held = f"bitwise: tokens and log-probabilities of {num_rows} rows, alone and shuffled"
    elif not tokens_differ:
        held = f"tokens of {num_rows} rows; log-probabilities differ by up to {max(d.gap for d in differences):.3g}"
    else:
        first = tokens_differ[0]
        held = (
            f"not for {len({d.row for d in tokens_differ})} of {num_rows} rows; first: row {first.row} {first.where}, "
            f"token {first.first_token}, log-probabilities differ by {first.gap:.3g}"
        )
    return {
        "rows": num_rows,
        "held": held,
        "bitwise": not differences,
        "differences": [vars(difference) for difference in differences],
    }


def _write_verdict(files: Files, directory: Path, content: dict[str, Any]) -> None:
    save_file(directory / VERIFY_NAME, [json.dumps(content, indent=2).encode(), b"\n"], files=files)


def _request(plan: Plan, rows: Rows, number: int, encoder: PromptEncoder) -> Request:
    task, turn = plan.task_of_row(number)
    replay = ConversationReplay(plan.task(task), encoder)
    while replay.turn < turn:
        replay.skip_turn(rows.read(replay.task.first_row + replay.turn))
    return replay.request()


def _generate(engine: Engine, requests: Sequence[Request]) -> list[Reply]:
    ids = [engine.submit(request) for request in requests]
    results: dict[int, Reply | Score] = {}
    while len(results) < len(ids):
        results.update(engine.step())
    return [reply for number in ids if isinstance(reply := results[number], Reply)]


def _compare(number: int, where: str, row: Row, reply: Reply, alone: Reply) -> Difference | None:
    """Compare a reply with a row, which has only the sum of its log-probabilities; each is compared with `alone`."""
    gaps = [abs(one - other) for one, other in zip(reply.logprobs, alone.logprobs, strict=False)]
    gap = max([*gaps, abs(row.logprob.sum - math.fsum(reply.logprobs))])
    for position, (before, now) in enumerate(zip_longest(row.reply_ids, reply.ids)):
        if before != now:
            return Difference(number, where, position, gaps[position] if position < len(gaps) else gap)
    return Difference(number, where, None, gap) if gap > 0 else None
