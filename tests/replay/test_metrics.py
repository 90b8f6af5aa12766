"""Prometheus metrics of a run, over a real socket."""

from __future__ import annotations

import builtins
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rwkvbatch.cli.app import invoke
from rwkvbatch.errors import MissingExtraError, UsageError
from rwkvbatch.replay.metrics import MetricsObserver, serving_metrics
from rwkvbatch.replay.progress import Progress, WorkerProgress
from tests.replay.fakes import make_plan
from tests.replay.runs import run

PROGRESS = Progress(
    rows_done=30,
    rows_total=100,
    failures=2,
    failed_checks=3,
    active=4,
    reply_tokens=5000,
    elapsed_s=10.0,
    seconds_left=23.5,
    workers=(WorkerProgress("a", 3, 9, 400), WorkerProgress("b", 1, 4, 100)),
    lost_workers=1,
)


def scrape(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


@pytest.fixture
def observer() -> Iterator[MetricsObserver]:
    with serving_metrics(0) as observer:
        yield observer


def test_metrics_are_those_of_the_latest_progress(observer: MetricsObserver) -> None:
    observer.started(replace(PROGRESS, rows_done=0))
    observer.moved(PROGRESS)
    found = scrape(observer.url)
    assert found.pop("rwkvbatch_peak_memory_bytes") > 1e6
    assert found == {
        "rwkvbatch_running": 1,
        "rwkvbatch_rows_done": 30,
        "rwkvbatch_rows_wanted": 100,
        "rwkvbatch_active_dialogues": 4,
        "rwkvbatch_workers": 2,
        "rwkvbatch_lost_workers_total": 1,
        "rwkvbatch_elapsed_seconds": 10,
        "rwkvbatch_left_seconds": 23.5,
        "rwkvbatch_failed_rows_total": 2,
        "rwkvbatch_failed_checks_total": 3,
        "rwkvbatch_reply_tokens_total": 5000,
        "rwkvbatch_scored_tokens_total": 0,
    }


def test_before_a_run_starts_only_the_process_has_metrics(observer: MetricsObserver) -> None:
    assert set(scrape(observer.url)) == {"rwkvbatch_running", "rwkvbatch_peak_memory_bytes"}


def test_a_time_left_that_cannot_be_estimated_is_omitted(observer: MetricsObserver) -> None:
    observer.started(replace(PROGRESS, seconds_left=None))
    assert "rwkvbatch_left_seconds" not in scrape(observer.url)


def test_after_the_run_running_is_0(observer: MetricsObserver) -> None:
    observer.started(PROGRESS)
    observer.ended(replace(PROGRESS, rows_done=100))
    found = scrape(observer.url)
    assert (found["rwkvbatch_running"], found["rwkvbatch_rows_done"]) == (0, 100)


def test_metrics_are_served_on_the_loopback_address_only(observer: MetricsObserver) -> None:
    port = int(observer.url.rsplit(":", 1)[1].partition("/")[0])
    assert observer.url == f"http://127.0.0.1:{port}/metrics"
    # A server on all addresses would answer on 127.0.0.2 too.
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=2):
        pass


def test_the_port_is_closed_afterwards() -> None:
    with serving_metrics(0) as observer:
        url = observer.url
    with pytest.raises(urllib.error.URLError):
        scrape(url)


def test_a_port_in_use_is_a_usage_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(UsageError, match=f"--metrics {port}: cannot listen there: Address already in use"),
            serving_metrics(port),
        ):
            pass


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_a_usage_error(port: int) -> None:
    with (
        pytest.raises(UsageError, match=f"--metrics must be a port from 0 to 65535, got {port}"),
        serving_metrics(port),
    ):
        pass


def test_without_the_client_library_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original_import = builtins.__import__

    def import_without_client(name: str, *rest: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return original_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", import_without_client)
    with pytest.raises(MissingExtraError) as caught, serving_metrics(0):
        pass
    assert "pip install 'rwkvbatch[prometheus]'" in str(caught.value.hint)


def test_several_observers_receive_each_update_in_order() -> None:
    calls: list[str] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def started(self, progress: Progress) -> None:
            calls.append(f"{self.name} started")

        def moved(self, progress: Progress) -> None:
            calls.append(f"{self.name} moved")

        def ended(self, progress: Progress) -> None:
            calls.append(f"{self.name} ended")

    run(None, make_plan(1), observers=[Recorder("a"), Recorder("b")])
    assert calls[:4] == ["a started", "b started", "a moved", "b moved"]
    assert calls[-4:] == ["a moved", "b moved", "a ended", "b ended"]


def test_a_run_serves_its_metrics_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "small.jsonl"
    script.write_text('{"id": "a", "messages": [{"role": "user", "content": "Hi"}]}\n')
    samples: list[dict[str, float]] = []
    moved = MetricsObserver.moved

    def moved_and_scraped(self: MetricsObserver, progress: Progress) -> None:
        moved(self, progress)
        samples.append(scrape(self.url))

    monkeypatch.setattr(MetricsObserver, "moved", moved_and_scraped)
    command = ["run", str(script), "--out", str(tmp_path / "out"), "--max-tokens", "3", "--metrics", "0"]
    assert invoke(command) == 0
    assert all(found["rwkvbatch_running"] == 1 for found in samples)
    assert [found["rwkvbatch_rows_wanted"] for found in samples] == [1] * len(samples)
    assert samples[-1]["rwkvbatch_reply_tokens_total"] > 0
    assert "metrics for Prometheus are at http://127.0.0.1:" in capsys.readouterr().err
