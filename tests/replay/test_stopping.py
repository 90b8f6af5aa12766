"""SIGINT and SIGTERM during a run: once, twice, and while models are loaded."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.runner import RunOptions, execute, read_rows
from rwkvbatch.signals import DUPLICATE_S, StoppedEarly, stop_on_signals
from tests.replay.crash_harness.processes import wait_until
from tests.replay.fakes import FakeLoader, make_plan
from tests.replay.runs import StopAfter, results_of, run
from tests.replay.slow_run import IN_STEP_NAME

ROOT = Path(__file__).parent.parent.parent
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def start(directory: Path, step_s: float, is_ready: Callable[[], bool]) -> subprocess.Popen[str]:
    """A running process for which `is_ready` has become true."""
    command = [sys.executable, "-m", "tests.replay.slow_run", str(directory), str(step_s)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: process.poll() is not None or is_ready(), 60)
    assert process.poll() is None
    return process


def has_rows(directory: Path) -> bool:
    path = directory / "results.jsonl"
    return path.exists() and path.stat().st_size > 0


def resume_and_compare(directory: Path, tmp_path: Path) -> None:
    plan = make_plan(60, batch_size=5)
    assert results_of(directory, plan) == results_of(tmp_path / "whole", plan)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_first_signal_stops_the_run_after_its_step(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path / "run", 0.01, lambda: has_rows(tmp_path / "run"))
    process.send_signal(number)
    assert process.wait(60) == code
    assert process.stderr is not None
    assert "stopping after this step" in process.stderr.read()
    process.stderr.close()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert status["rows_done"] == len(list(read_rows(tmp_path / "run"))) < status["rows_total"]
    resume_and_compare(tmp_path / "run", tmp_path)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_second_signal_ends_the_process_at_once_and_loses_no_row(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    # Steps take ten seconds: stopping after the step would take as long.
    process = start_in_a_long_step(tmp_path / "run")
    process.send_signal(number)
    assert process.stderr is not None
    assert "second signal" in process.stderr.readline()
    time.sleep(2 * DUPLICATE_S)
    process.send_signal(number)
    assert process.wait(60) == code
    assert "stopped at once" in process.stderr.read()
    process.stderr.close()
    assert (
        json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "running"
    )  # the process ended without writing it
    assert list(read_rows(tmp_path / "run"))
    resume_and_compare(tmp_path / "run", tmp_path)


def start_in_a_long_step(directory: Path) -> subprocess.Popen[str]:
    run(directory, make_plan(60, batch_size=5), should_stop=StopAfter(3))
    return start(directory, 10, directory.with_name(IN_STEP_NAME).exists)


def test_former_signal_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals(lambda _: None) as stop:
        assert not stop()
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_two_signals_within_100_ms_count_as_one(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exit_codes: list[int] = []
    monkeypatch.setattr("rwkvbatch.signals.end_process", exit_codes.append)
    messages: list[str] = []
    with stop_on_signals(messages.append) as stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert (len(messages), exit_codes) == (1, [])
        monkeypatch.setattr("rwkvbatch.signals.DUPLICATE_S", 0.0)
        signal.raise_signal(number)
    assert exit_codes == [code]
    assert stop.signal_number == number


def raise_and_drop(number: int) -> None:
    """Drop the exception of the signal handler, as imports and callbacks of weak references do."""
    with suppress(BaseException):
        signal.raise_signal(number)


def raise_and_replace(number: int) -> None:
    """Raise another exception in place of the signal handler's, as an interrupted import does when it is repeated."""
    try:
        signal.raise_signal(number)
    except BaseException:
        raise ImportError("cannot load module more than once") from None


@pytest.mark.parametrize("send", [signal.raise_signal, raise_and_drop, raise_and_replace])
def test_a_signal_while_models_are_loaded_ends_the_run_before_anything_is_written(
    send: Callable[[int], None], tmp_path: Path
) -> None:
    class SlowLoader(FakeLoader):
        def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
            send(signal.SIGTERM)
            return super().specs(setups)

    messages: list[str] = []
    with stop_on_signals(messages.append) as stop:
        options = RunOptions(out=tmp_path / "run", should_stop=stop, loading=stop.interruptible)
        with pytest.raises(StoppedEarly):
            execute(make_plan(5), SlowLoader(), options)
    assert (stop.signal_number, messages) == (signal.SIGTERM, [])
    assert not (tmp_path / "run").exists()


def test_a_signal_before_loading_stops_the_run() -> None:
    with stop_on_signals(lambda _: None) as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(StoppedEarly), stop.interruptible():
            pytest.fail("loading was started")
