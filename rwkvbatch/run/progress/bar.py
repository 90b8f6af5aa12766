"""How a run is going, on a terminal: a bar, and under it a line for each of several workers."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from rwkvbatch.run.progress.figures import MAX_WORKERS_SHOWN, Progress, WorkerProgress, figures
from rwkvbatch.text.safe import printable


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
    table.add_row(
        printable(worker.name), f"{worker.active} active", f"{worker.rows:,} rows", f"{rate:,.0f} tokens/s"
    )
