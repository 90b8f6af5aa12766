"""Metrics of the server for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rwkvbatch.serve.batcher import Batcher

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class ServerFigures:
    """A collector for the Prometheus client library.

    Attributes:
        answered: number of responses by path and status.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self.answered: Counter[tuple[str, int]] = Counter()

    def collect(self) -> Iterator[Metric]:
        """The metric families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        batcher, stats = self._batcher, self._batcher.stats
        responses = CounterMetricFamily("rwkvbatch_http_responses", "HTTP responses", labels=["path", "status"])
        for (path, status), count in sorted(self.answered.items()):
            responses.add_metric([path, str(status)], count)
        yield responses
        counters = {
            "generated_tokens": ("Tokens of replies", stats.num_generated),
            "prompt_tokens_read": ("Prompt tokens that were read", stats.num_prompt_read),
            "prompt_tokens_cached": ("Prompt tokens whose state was cached", stats.num_prompt_cached),
            "engine_steps": ("Forward passes", stats.num_steps),
            "engine_rows": ("Token rows of all forward passes", stats.num_rows),
            "cancelled_requests": ("HTTP requests whose client disconnected before the end", batcher.num_cancelled),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"rwkvbatch_{name}", text, value)
        gauges = {
            "unfinished_replies": ("Replies and scores under way or waiting", batcher.num_unfinished),
            "waiting_replies": ("Of these, those that do not fit into the batch", batcher.num_waiting),
            "cached_states": ("Cached recurrent states of prefixes", batcher.num_cached_states),
            "healthy": ("1 while requests are served", int(batcher.is_healthy)),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"rwkvbatch_{name}", text, value)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)
