"""A run's figures for Prometheus, over HTTP on this machine's loopback address and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rwkvbatch.errors import MissingExtraError, UsageError
from rwkvbatch.replay.logs import peak_memory_bytes
from rwkvbatch.replay.progress import Progress

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LOOPBACK = "127.0.0.1"
MAX_PORT = 65535

_FIGURES: tuple[tuple[str, str, str, Callable[[Progress], float | None]], ...] = (
    ("gauge", "rows_done", "Rows that are safe on the disk", lambda p: p.rows_done),
    ("gauge", "rows_wanted", "Rows that the run will have", lambda p: p.rows_total),
    ("gauge", "active_dialogues", "Dialogues under way", lambda p: p.active),
    ("gauge", "workers", "Workers that are at work", lambda p: len(p.workers)),
    ("counter", "lost_workers", "Workers that ended before their time", lambda p: p.lost_workers),
    ("gauge", "elapsed_seconds", "Time since this process began with the run", lambda p: p.elapsed_s),
    ("gauge", "left_seconds", "Estimated time to the end of the run", lambda p: p.seconds_left),
    ("counter", "failed_rows", "Rows that failed in this process", lambda p: p.failures),
    (
        "counter",
        "failed_checks",
        "Rows in this process with a check that did not pass",
        lambda p: p.failed_checks,
    ),
    ("counter", "reply_tokens", "Tokens generated in this process", lambda p: p.reply_tokens),
)


class MetricsObserver:
    """Keeps the latest figures of a run, and gives them out when they are asked for.

    Attributes:
        url: where they are served.
    """

    def __init__(self, url: str = "") -> None:
        self.url = url
        self._latest: Progress | None = None
        self._is_running = False

    def started(self, progress: Progress) -> None:
        self._is_running = True
        self._latest = progress

    def moved(self, progress: Progress) -> None:
        self._latest = progress

    def ended(self, progress: Progress) -> None:
        self._latest = progress
        self._is_running = False

    def collect(self) -> Iterator[Metric]:
        """The figures as metric families: called by the client library, in a thread of its own, at each request."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        progress = self._latest
        yield GaugeMetricFamily("rwkvbatch_running", "1 while rows are being made", float(self._is_running))
        yield GaugeMetricFamily(
            "rwkvbatch_peak_memory_bytes", "The most memory this process has had", peak_memory_bytes()
        )
        if progress is None:
            return
        for kind, name, help_text, figure in _FIGURES:
            value = figure(progress)
            if value is not None:
                family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                yield family(f"rwkvbatch_{name}", help_text, value)


@contextmanager
def serving_metrics(port: int) -> Generator[MetricsObserver]:
    """Serve the figures that the observer is told, inside.

    Args:
        port: of the loopback address; 0 for any that is free.

    Raises:
        UsageError: the port cannot be, or another program listens there.
        MissingExtraError: the client library is not installed.
    """
    if not 0 <= port <= MAX_PORT:
        raise UsageError(f"--metrics must be a port from 0 to {MAX_PORT}, got {port}")
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise MissingExtraError(
            "--metrics needs the Prometheus client library, which is not installed", extra="prometheus"
        ) from None
    observer = MetricsObserver()
    registry = CollectorRegistry()
    registry.register(observer)
    try:
        server, thread = start_http_server(port, addr=LOOPBACK, registry=registry)
    except OSError as error:
        raise UsageError(
            f"--metrics {port}: cannot listen there: {error.strerror}", hint="give another port, or 0 for any"
        ) from None
    observer.url = f"http://{LOOPBACK}:{server.server_port}/metrics"
    try:
        yield observer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
