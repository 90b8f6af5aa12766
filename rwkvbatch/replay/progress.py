"""Progress of a run: counts, and their display as a bar and as log lines."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from rwkvbatch.engine.request import NO_PREFILL, PrefillProgress
from rwkvbatch.errors import counted
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.results.row import Row
from rwkvbatch.results.row_codec import EncodedRow

_log = logging.getLogger(__name__)

LINE_EVERY_S = 60.0
LOG_EVERY_S = 10.0
MAX_WORKERS_SHOWN = 8


@dataclass(frozen=True)
class WorkerProgress:
    """Work of one worker in this session.

    Attributes:
        name: name for display.
        active: conversations under way.
        rows: finished rows, including those that another worker finished first.
        prefill: progress through the long texts under way.
    """

    name: str
    active: int = 0
    rows: int = 0
    reply_tokens: int = 0
    scored_tokens: int = 0
    prefill: PrefillProgress = NO_PREFILL

    def after(
        self, active: int, rows: Collection[Row | EncodedRow], prefill: PrefillProgress = NO_PREFILL
    ) -> WorkerProgress:
        """The progress after a step or a report with these rows."""
        return WorkerProgress(
            self.name,
            active,
            self.rows + len(rows),
            self.reply_tokens + sum(row.reply_tokens for row in rows),
            self.scored_tokens + sum(row.scored_tokens for row in rows),
            prefill,
        )

    def as_dict(self) -> dict[str, Any]:
        """The figures as `status.json` has them."""
        return {key: value for key, value in vars(self).items() if key != "prefill"}


@dataclass(frozen=True)
class Progress:
    """Progress of a run at one moment. Rows are those of the whole run; all other counts are those of this session.

    Attributes:
        rows_done: durable rows, including those of earlier sessions.
        rows_total: rows that the run will have, or if it `may_grow`, those of its rounds so far; at least `rows_done`.
        failures: failed rows.
        failed_checks: failed checks.
        active: conversations under way.
        reply_tokens: generated tokens.
        elapsed_s: length of this session.
        seconds_left: estimated remaining time; None before the first durable row or the first tokens of a long text,
            and while the run `may_grow`.
        workers: running workers.
        lost_workers: workers that crashed.
        cells_left: cells in a race; None for other runs.
        cells: cells at the start of the race; None for other runs.
        questions_done: questions that the judge has answered.
        questions: questions for the judge; 0 before it is asked.
        prefill: progress through the long texts under way.
        scored_tokens: tokens of texts and choices that were scored in turns without generation.
        rows_before: durable rows of earlier sessions.
        may_grow: whether further rounds may add rows (`--race`, `--until-ci`).
    """

    rows_done: int
    rows_total: int
    failures: int
    failed_checks: int
    active: int
    reply_tokens: int
    elapsed_s: float
    seconds_left: float | None
    workers: tuple[WorkerProgress, ...] = ()
    lost_workers: int = 0
    cells_left: int | None = None
    cells: int | None = None
    questions_done: int = 0
    questions: int = 0
    prefill: PrefillProgress = NO_PREFILL
    scored_tokens: int = 0
    rows_before: int = 0
    may_grow: bool = False

    @property
    def tokens_per_s(self) -> float:
        """Generated and scored tokens per second."""
        tokens = self.reply_tokens + self.scored_tokens
        return tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def session(self) -> dict[str, Any]:
        """This session's speed, as `summary.json` has it."""
        return {
            "wall_s": round(self.elapsed_s, 3),
            "reply_tokens": self.reply_tokens,
            "scored_tokens": self.scored_tokens,
            "tokens_per_s": round(self.tokens_per_s, 3),
        }

    def as_dict(self) -> dict[str, Any]:
        """The figures as `status.json` has them."""
        prefill = self.prefill
        return {
            **{key: value for key, value in vars(self).items() if key != "prefill"},
            "elapsed_s": round(self.elapsed_s, 3),
            "tokens_per_s": round(self.tokens_per_s, 3),
            "workers": [worker.as_dict() for worker in self.workers],
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            **({} if self.cells_left is None else {"cells_left": self.cells_left, "cells": self.cells}),
            **({"prefill": vars(prefill)} if prefill.num_texts else {}),
        }


@dataclass
class Counts:
    """Counts of this session so far. A row counts when it is written, whether or not it is durable.

    Attributes:
        rows_before: durable rows at the start of the session.
        failed_rows: rows with an error, including those that were not reached because an earlier turn failed.
        failed_turns: rows with an error of their own.
        cells_left, cells, may_grow: see `Progress`.
    """

    rows_before: int = 0
    may_grow: bool = False
    rows: int = 0
    failed_rows: int = 0
    failed_turns: int = 0
    failed_checks: int = 0
    reply_tokens: int = 0
    scored_tokens: int = 0
    lost_workers: int = 0
    workers: dict[int, WorkerProgress] = field(default_factory=dict[int, WorkerProgress])
    cells_left: int | None = None
    cells: int | None = None
    questions_done: int = 0
    questions: int = 0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._started_s = self.clock()

    def progress(self, rows_done: int, rows_total: int) -> Progress:
        """The progress now; the remaining time is estimated from this session's rows and shares of long texts.

        A continued race can have more rows than it needs before its first look; these do not count as remaining.
        """
        rows_total = max(rows_total, rows_done)
        elapsed_s = max(0.0, self.clock() - self._started_s)
        workers = tuple(self.workers.values())
        prefill = sum((worker.prefill for worker in workers), NO_PREFILL)
        rows_new = rows_done - self.rows_before + prefill.share_of_texts
        rows_left = max(0.0, rows_total - rows_done - prefill.share_of_texts)
        can_estimate = rows_new > 0 and not self.may_grow
        return Progress(
            rows_done,
            rows_total,
            self.failed_rows,
            self.failed_checks,
            active=sum(worker.active for worker in workers),
            reply_tokens=self.reply_tokens,
            elapsed_s=elapsed_s,
            seconds_left=elapsed_s / rows_new * rows_left if can_estimate else None,
            workers=workers,
            lost_workers=self.lost_workers,
            cells_left=self.cells_left,
            cells=self.cells,
            questions_done=self.questions_done,
            questions=self.questions,
            prefill=prefill,
            scored_tokens=self.scored_tokens,
            rows_before=self.rows_before,
            may_grow=self.may_grow,
        )


@runtime_checkable
class Observer(Protocol):
    """Receives a run's progress; its methods must return quickly."""

    def started(self, progress: Progress) -> None: ...
    def moved(self, progress: Progress) -> None: ...
    def ended(self, progress: Progress) -> None: ...


@dataclass
class LatestProgress:
    """Keeps the latest progress, for an error that ends the run, and passes it on.

    Attributes:
        observer: another observer, which displays the progress; None for none.
        progress: None until the run has started, so before any row is written.
    """

    observer: Observer | None
    progress: Progress | None = None

    def started(self, progress: Progress) -> None:
        self.progress = progress
        if self.observer is not None:
            self.observer.started(progress)

    def moved(self, progress: Progress) -> None:
        self.progress = progress
        if self.observer is not None:
            self.observer.moved(progress)

    def ended(self, progress: Progress) -> None:
        self.progress = progress
        if self.observer is not None:
            self.observer.ended(progress)


class LineObserver:
    """Calls `notify` with a line of progress once a minute, for logs and pipes."""

    def __init__(self, notify: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._notify = notify
        self._clock = clock
        self._next_s = 0.0

    def started(self, progress: Progress) -> None:
        self._next_s = self._clock() + LINE_EVERY_S
        total = f"{'at least ' if progress.may_grow else ''}{progress.rows_total:,}"
        self._notify(f"{progress.rows_total - progress.rows_done:,} of {total} rows to do")

    def moved(self, progress: Progress) -> None:
        if self._clock() >= self._next_s:
            self._next_s = self._clock() + LINE_EVERY_S
            self._notify(progress_line(progress))

    def ended(self, progress: Progress) -> None:
        self._notify(progress_line(progress))


def progress_line(progress: Progress) -> str:
    """All figures in one line; with several workers also the active conversations of each."""
    line = f"{progress.rows_done:,}/{progress.rows_total:,} rows, {figures(progress)}"
    if len(progress.workers) < 2 or not progress.active:
        return line
    by_worker = ", ".join(f"{worker.name}: {worker.active}" for worker in progress.workers[:MAX_WORKERS_SHOWN])
    num_hidden = len(progress.workers) - MAX_WORKERS_SHOWN
    return f"{line}; under way: {by_worker}" + (f" and {num_hidden} workers more" if num_hidden > 0 else "")


def figures(progress: Progress) -> str:
    """Speed, long texts under way, cells left in a race, time left and failures."""
    left_s = progress.seconds_left if progress.rows_done < progress.rows_total else None
    checks, lost = progress.failed_checks, progress.lost_workers
    failures = (
        f"{progress.failures:,} failed" if progress.failures else "",
        f"{counted(checks, 'check')} not passed" if checks else "",
    )
    failed = ", ".join(filter(None, failures))
    only_prefill = progress.prefill.num_texts > 0 and not progress.reply_tokens + progress.scored_tokens
    parts = (
        "" if only_prefill else f"{progress.tokens_per_s:,.0f} tokens/s",
        _prefill_in_words(progress.prefill),
        f"{progress.cells_left} of {progress.cells} cells left" if progress.cells_left is not None else "",
        f"judge: {progress.questions_done:,} of {progress.questions:,} questions" if progress.questions else "",
        f"{duration(left_s)} left" if left_s is not None else "",
        f"{failed} in this session" if failed and progress.rows_before else failed,
        f"{counted(lost, 'worker')} lost" if lost else "",
    )
    return ", ".join(filter(None, parts))


def _prefill_in_words(prefill: PrefillProgress) -> str:
    if not prefill.num_texts:
        return ""
    texts = "a long text" if prefill.num_texts == 1 else f"{prefill.num_texts:,} long texts"
    return f"{prefill.num_read:,} of {prefill.num_tokens:,} tokens of {texts} read"


def duration(seconds: float) -> str:
    """A duration as text: `25 ms`, `4.2 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    rounded_s = round(seconds)
    if 0 < seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms"
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    if rounded_s < 60:
        return f"{rounded_s} s"
    if rounded_s < 3600:
        return f"{rounded_s // 60} min {rounded_s % 60} s"
    return f"{rounded_s // 3600} h {rounded_s % 3600 // 60} min"


class BarObserver(Bar):
    """A progress bar on the terminal `console`; with several workers also a line for each of them."""

    def __init__(self, console: Console) -> None:
        rows, figures = TextColumn("{task.fields[rows]} rows"), TextColumn("{task.fields[figures]}")
        self._latest: Progress | None = None
        super().__init__(rows, BarColumn(), figures, console=console, transient=True)
        self._task = self.add_task("rows", rows="", figures="")

    def started(self, progress: Progress) -> None:
        self.moved(progress)
        self.start()

    def moved(self, progress: Progress) -> None:
        self._latest = progress
        done, total = progress.rows_done, progress.rows_total
        rows = f"{done:,}/{total:,}"
        completed = done + progress.prefill.share_of_texts
        self.update(self._task, completed=completed, total=total, rows=rows, figures=figures(progress))

    def ended(self, progress: Progress) -> None:
        self.moved(progress)
        self.stop()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self._latest is not None and len(self._latest.workers) > 1:
            yield workers_table(self._latest)


def workers_table(progress: Progress) -> Table:
    """Name, active conversations, rows and tokens per second of each worker.

    Workers after the first `MAX_WORKERS_SHOWN` are summed up in one line.
    """
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "right"):
        table.add_column(justify=justify, no_wrap=True, style="dim")
    workers = list(progress.workers[:MAX_WORKERS_SHOWN])
    if further := progress.workers[MAX_WORKERS_SHOWN:]:
        workers.append(
            WorkerProgress(
                f"{len(further)} more",
                active=sum(worker.active for worker in further),
                rows=sum(worker.rows for worker in further),
                reply_tokens=sum(worker.reply_tokens for worker in further),
                scored_tokens=sum(worker.scored_tokens for worker in further),
            )
        )
    for worker in workers:
        tokens = worker.reply_tokens + worker.scored_tokens
        rate = tokens / progress.elapsed_s if progress.elapsed_s > 0 else 0.0
        figures = (f"{worker.active} active", f"{counted(worker.rows, 'row')}", f"{rate:,.0f} tokens/s")
        table.add_row(printable(worker.name), *figures)
    return table


class StepLog:
    """Logs the progress and the mean and longest time between updates, every `LOG_EVERY_S` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_s = self._last_s = clock()
        self._steps = 0
        self._longest_s = 0.0

    def count(self, progress: Progress) -> None:
        now = self._clock()
        self._longest_s = max(self._longest_s, now - self._last_s)
        self._last_s = now
        self._steps += 1
        if now - self._since_s >= LOG_EVERY_S:
            self._write("the run continues", progress)
            self._since_s, self._steps, self._longest_s = now, 0, 0.0

    def end(self, progress: Progress, *, interrupted: bool) -> None:
        self._last_s = self._clock()
        self._write("the run was interrupted" if interrupted else "the run ended", progress)

    def _write(self, message: str, progress: Progress) -> None:
        figures = {
            **progress.as_dict(),
            "steps": self._steps,
            "step_mean_s": round((self._last_s - self._since_s) / self._steps, 6) if self._steps else None,
            "step_longest_s": round(self._longest_s, 6),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        _log.info(message, extra=figures)


def peak_memory_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
