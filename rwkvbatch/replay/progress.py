"""How a run is going, on a terminal: a bar, and under it a line for each of several workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from rwkvbatch.prompt.escaping import printable

LINE_EVERY_S = 60.0


MAX_WORKERS_SHOWN = 8


@dataclass(frozen=True)
class WorkerProgress:
    """What one worker did in this session, and how many dialogues it has under way.

    `rows` includes those that another worker had finished first.
    """

    name: str
    active: int
    rows: int
    reply_tokens: int


@dataclass(frozen=True)
class Progress:
    """A moment of a run.

    Attributes:
        rows_done: rows that are safe on the disk, those of earlier sessions included. rows_total: all that are wanted.
        failures: rows that failed in this session. failed_checks: checks that did.
        active: dialogues under way.
        reply_tokens: generated in this session. elapsed_s: its length.
        seconds_left: estimated; None as long as there is nothing to estimate from.
        workers: those that are at work. lost_workers: how many ended before their time in this session.
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

    @property
    def tokens_per_s(self) -> float:
        return self.reply_tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The figures as `status.json` has them."""
        return {
            "rows_done": self.rows_done,
            "rows_total": self.rows_total,
            "failures": self.failures,
            "failed_checks": self.failed_checks,
            "active": self.active,
            "reply_tokens": self.reply_tokens,
            "elapsed_s": round(self.elapsed_s, 3),
            "tokens_per_s": round(self.tokens_per_s, 3),
            "workers": [vars(worker) for worker in self.workers],
            "lost_workers": self.lost_workers,
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
        }


class Observer(Protocol):
    """Is told how the run is going; must be quick."""

    def started(self, progress: Progress) -> None: ...
    def moved(self, progress: Progress) -> None: ...
    def ended(self, progress: Progress) -> None: ...


class Observers:
    """Several observers as one.

    Args:
        observers: told in this order.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def started(self, progress: Progress) -> None:
        for observer in self._observers:
            observer.started(progress)

    def moved(self, progress: Progress) -> None:
        for observer in self._observers:
            observer.moved(progress)

    def ended(self, progress: Progress) -> None:
        for observer in self._observers:
            observer.ended(progress)


class LineObserver:
    """A line a minute, for logs and pipes.

    Args:
        say: prints one line.
        clock: seconds that never jump.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._next_s = 0.0

    def started(self, progress: Progress) -> None:
        self._next_s = self._clock() + LINE_EVERY_S
        self._say(f"{progress.rows_total - progress.rows_done:,} of {progress.rows_total:,} rows to do")

    def moved(self, progress: Progress) -> None:
        if self._clock() >= self._next_s:
            self._next_s = self._clock() + LINE_EVERY_S
            self._say(progress_line(progress))

    def ended(self, progress: Progress) -> None:
        self._say(progress_line(progress))


def progress_line(progress: Progress) -> str:
    """All figures in one line; with several workers also what each has under way, while anything is."""
    line = f"{progress.rows_done:,}/{progress.rows_total:,} rows, {figures(progress)}"
    if len(progress.workers) < 2 or not progress.active:
        return line
    shown = [f"{worker.name}: {worker.active}" for worker in progress.workers[:MAX_WORKERS_SHOWN]]
    more = len(progress.workers) - MAX_WORKERS_SHOWN
    return f"{line}; under way: {', '.join(shown)}" + (f" and {more} workers more" if more > 0 else "")


def figures(progress: Progress) -> str:
    """Speed, time left, and what went wrong, in words."""
    parts = [f"{progress.tokens_per_s:,.0f} tokens/s"]
    if progress.rows_done < progress.rows_total and progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    if progress.failures:
        parts.append(f"{progress.failures:,} failed")
    if progress.failed_checks:
        parts.append(f"{progress.failed_checks:,} check{'s' if progress.failed_checks > 1 else ''} not passed")
    if progress.lost_workers:
        parts.append(f"{progress.lost_workers} worker{'s' if progress.lost_workers > 1 else ''} lost")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`4.2 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Meter:
    """Turns counts into `Progress`. Only what this session did goes into the estimate.

    Args:
        rows_done: there at the start.
        clock: seconds that never jump.
    """

    def __init__(self, rows_done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._done_before = rows_done
        self._clock = clock
        self._began_s = clock()

    def read(
        self,
        rows_total: int,
        rows_done: int,
        failures: int,
        failed_checks: int,
        active: int,
        reply_tokens: int,
        workers: tuple[WorkerProgress, ...] = (),
        lost_workers: int = 0,
    ) -> Progress:
        """The moment, out of counts; see `Progress`."""
        elapsed_s = max(0.0, self._clock() - self._began_s)
        now_done = rows_done - self._done_before
        left = rows_total - rows_done
        return Progress(
            rows_done=rows_done,
            rows_total=rows_total,
            failures=failures,
            failed_checks=failed_checks,
            active=active,
            reply_tokens=reply_tokens,
            elapsed_s=elapsed_s,
            seconds_left=elapsed_s / now_done * left if now_done > 0 else None,
            workers=workers,
            lost_workers=lost_workers,
        )


class BarObserver:
    """A bar on a terminal, and under it a line for each of several workers, redrawn a few times a second.

    Args:
        console: of standard error.
    """

    def __init__(self, console: Console) -> None:
        self._bar = BarWithWorkers(
            TextColumn("{task.fields[rows]} rows"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("rows", rows="", figures="")

    def started(self, progress: Progress) -> None:
        self.moved(progress)
        self._bar.start()

    def moved(self, progress: Progress) -> None:
        self._bar.moment = progress
        self._bar.update(
            self._task,
            completed=progress.rows_done,
            total=progress.rows_total,
            rows=f"{progress.rows_done:,}/{progress.rows_total:,}",
            figures=figures(progress),
        )

    def ended(self, progress: Progress) -> None:
        self.moved(progress)
        self._bar.stop()


class BarWithWorkers(Bar):
    """rich's progress bar; `moment` is what its workers are drawn from."""

    moment: Progress | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.moment is not None and len(self.moment.workers) > 1:
            yield workers_table(self.moment)


def workers_table(progress: Progress) -> Table:
    """A row a worker: name, dialogues under way, rows, tokens a second; what does not fit is summed up."""
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "right"):
        table.add_column(justify=justify, no_wrap=True, style="dim")
    shown, rest = progress.workers[:MAX_WORKERS_SHOWN], progress.workers[MAX_WORKERS_SHOWN:]
    for worker in shown:
        _add(table, worker, progress.elapsed_s)
    if rest:
        name = f"{len(rest)} more"
        total = WorkerProgress(
            name, sum(w.active for w in rest), sum(w.rows for w in rest), sum(w.reply_tokens for w in rest)
        )
        _add(table, total, progress.elapsed_s)
    return table


def _add(table: Table, worker: WorkerProgress, elapsed_s: float) -> None:
    rate = worker.reply_tokens / elapsed_s if elapsed_s > 0 else 0.0
    table.add_row(printable(worker.name), f"{worker.active} active", f"{worker.rows:,} rows", f"{rate:,.0f} tokens/s")
