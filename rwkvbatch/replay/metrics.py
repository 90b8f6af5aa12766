"""Progress of a run as metrics for Prometheus (`--metrics`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rwkvbatch.errors import MissingExtraError, UsageError
from rwkvbatch.replay.progress import Progress, peak_memory_bytes

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LOOPBACK = "127.0.0.1"

_METRICS: tuple[tuple[str, str, str, Callable[[Progress], float | None]], ...] = (
    ("gauge", "rows_done", "Durable rows", lambda p: p.rows_done),
    ("gauge", "rows_wanted", "Rows that the run will have", lambda p: p.rows_total),
    ("gauge", "active_dialogues", "Conversations under way", lambda p: p.active),
    ("gauge", "workers", "Workers running", lambda p: len(p.workers)),
    ("counter", "lost_workers", "Workers that crashed", lambda p: p.lost_workers),
    ("gauge", "elapsed_seconds", "Time since this process started the run", lambda p: p.elapsed_s),
    ("gauge", "left_seconds", "Estimated remaining time", lambda p: p.seconds_left),
    ("counter", "failed_rows", "Rows that failed in this process", lambda p: p.failures),
    ("counter", "failed_checks", "Checks that failed in this process", lambda p: p.failed_checks),
    ("counter", "reply_tokens", "Tokens generated in this process", lambda p: p.reply_tokens),
    ("counter", "scored_tokens", "Tokens of scored texts and choices in this process", lambda p: p.scored_tokens),
)


class MetricsObserver:
    """Keeps a run's latest progress for the Prometheus client library.

    Attributes:
        url: address at which the metrics are served.
    """

    def __init__(self, url: str = "") -> None:
        self.url = url
        self._latest: Progress | None = None
        self._is_running = False

    def started(self, progress: Progress) -> None:
        self._latest, self._is_running = progress, True

    def moved(self, progress: Progress) -> None:
        self._latest = progress

    def ended(self, progress: Progress) -> None:
        self._latest, self._is_running = progress, False

    def collect(self) -> Iterator[Metric]:
        """The metric families. The client library calls this method in a separate thread at each request."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        memory_help = "Peak resident memory of this process"
        yield GaugeMetricFamily("rwkvbatch_running", "1 during the run", float(self._is_running))
        yield GaugeMetricFamily("rwkvbatch_peak_memory_bytes", memory_help, peak_memory_bytes())
        if (progress := self._latest) is None:
            return
        for kind, name, help_text, figure in _METRICS:
            if (value := figure(progress)) is not None:
                family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                yield family(f"rwkvbatch_{name}", help_text, value)


@contextmanager
def serving_metrics(port: int) -> Generator[MetricsObserver]:
    """Serve a run's metrics for Prometheus over HTTP on a port of the loopback address; 0 takes a free one.

    Raises:
        UsageError: the port is invalid or in use.
        MissingExtraError: the client library is not installed.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--metrics must be a port from 0 to 65535, got {port}")
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        message = "--metrics needs the Prometheus client library, which is not installed"
        raise MissingExtraError(message, extra="prometheus") from None
    observer = MetricsObserver()
    registry = CollectorRegistry()
    registry.register(observer)
    try:
        server, thread = start_http_server(port, addr=LOOPBACK, registry=registry)
    except OSError as error:
        message = f"--metrics {port}: cannot listen there: {error.strerror}"
        raise UsageError(message, hint="give another port, or 0 for any") from None
    observer.url = f"http://{LOOPBACK}:{server.server_port}/metrics"
    try:
        yield observer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
