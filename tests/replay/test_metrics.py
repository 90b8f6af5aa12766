"""Figures for Prometheus, over a real socket."""

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

MOMENT = Progress(
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


def figures(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


@pytest.fixture
def served() -> Iterator[MetricsObserver]:
    with serving_metrics(0) as observer:
        yield observer


def test_the_figures_are_those_of_the_latest_moment(served: MetricsObserver) -> None:
    served.started(replace(MOMENT, rows_done=0))
    served.moved(MOMENT)
    found = figures(served.url)
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


def test_before_the_run_begins_there_are_no_figures_of_it(served: MetricsObserver) -> None:
    assert set(figures(served.url)) == {"rwkvbatch_running", "rwkvbatch_peak_memory_bytes"}


def test_a_time_that_cannot_be_estimated_is_left_out(served: MetricsObserver) -> None:
    served.started(replace(MOMENT, seconds_left=None))
    assert "rwkvbatch_left_seconds" not in figures(served.url)


def test_after_the_run_it_is_not_running(served: MetricsObserver) -> None:
    served.started(MOMENT)
    served.ended(replace(MOMENT, rows_done=100))
    found = figures(served.url)
    assert (found["rwkvbatch_running"], found["rwkvbatch_rows_done"]) == (0, 100)


def test_nobody_but_this_machine_can_ask(served: MetricsObserver) -> None:
    port = int(served.url.rsplit(":", 1)[1].partition("/")[0])
    assert served.url == f"http://127.0.0.1:{port}/metrics"
    # 127.0.0.2 is this machine too, and what listens on all addresses answers there.
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=2):
        pass


def test_the_port_is_free_again_afterwards() -> None:
    with serving_metrics(0) as observer:
        url = observer.url
    with pytest.raises(urllib.error.URLError):
        figures(url)


def test_a_port_that_is_taken_is_a_usage_error() -> None:
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
def test_what_is_no_port_is_a_usage_error(port: int) -> None:
    with (
        pytest.raises(UsageError, match=f"--metrics must be a port from 0 to 65535, got {port}"),
        serving_metrics(port),
    ):
        pass


def test_without_the_client_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_it(name: str, *rest: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_it)
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


def test_a_run_serves_its_figures_while_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "small.jsonl"
    script.write_text('{"id": "a", "messages": [{"role": "user", "content": "Hi"}]}\n')
    seen: list[dict[str, float]] = []
    moved = MetricsObserver.moved

    def look(self: MetricsObserver, progress: Progress) -> None:
        moved(self, progress)
        seen.append(figures(self.url))

    monkeypatch.setattr(MetricsObserver, "moved", look)
    command = ["run", str(script), "--out", str(tmp_path / "out"), "--max-tokens", "3", "--metrics", "0"]
    assert invoke(command) == 0
    assert all(found["rwkvbatch_running"] == 1 for found in seen)
    assert [found["rwkvbatch_rows_wanted"] for found in seen] == [1] * len(seen)
    assert seen[-1]["rwkvbatch_reply_tokens_total"] > 0
    assert "metrics for Prometheus are at http://127.0.0.1:" in capsys.readouterr().err
