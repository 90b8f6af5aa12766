"""SIGINT and SIGTERM, once and twice."""

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

from rwkvbatch.replay.models import Setup
from rwkvbatch.replay.runner import RunOptions, execute, read_rows
from rwkvbatch.signals import DUPLICATE_S, StoppedEarly, stop_on_signals
from tests.replay.fakes import FakeLoader, make_plan
from tests.replay.slow_run import IN_STEP_NAME

ROOT = Path(__file__).parent.parent.parent
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def start(directory: Path, step_s: str) -> subprocess.Popen[str]:
    """A run under way: some rows are written."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.replay.slow_run", str(directory), step_s],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    results = directory / "results.jsonl"
    deadline = time.monotonic() + 60
    while not (results.exists() and results.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def continue_and_compare(directory: Path, tmp_path: Path) -> None:
    for out in (directory, tmp_path / "whole"):
        execute(make_plan(60, batch_size=5), FakeLoader(), RunOptions(out=out))
    assert (directory / "results.jsonl").read_bytes() == (tmp_path / "whole" / "results.jsonl").read_bytes()


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_first_signal_ends_the_run_in_order(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path / "run", "0.01")
    process.send_signal(number)
    assert process.wait(60) == code
    assert process.stderr is not None
    assert "stopping after this step" in process.stderr.read()
    process.stderr.close()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert status["rows_done"] == len(list(read_rows(tmp_path / "run"))) < status["rows_total"]
    continue_and_compare(tmp_path / "run", tmp_path)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_second_signal_leaves_at_once_and_loses_no_row(tmp_path: Path, number: signal.Signals, code: int) -> None:
    # Steps of ten seconds: an orderly end would have to wait for one.
    process = start_in_a_long_step(tmp_path / "run")
    process.send_signal(number)
    assert process.stderr is not None
    assert "second signal" in process.stderr.readline()
    time.sleep(2 * DUPLICATE_S)
    process.send_signal(number)
    assert process.wait(60) == code
    assert "stopped at once" in process.stderr.read()
    process.stderr.close()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "running"  # no time to say more
    assert list(read_rows(tmp_path / "run"))
    continue_and_compare(tmp_path / "run", tmp_path)


def start_in_a_long_step(directory: Path) -> subprocess.Popen[str]:
    execute(make_plan(60, batch_size=5), FakeLoader(), RunOptions(out=directory, should_stop=After(3)))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.replay.slow_run", str(directory), "10"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not directory.with_name(IN_STEP_NAME).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


class After:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self) -> bool:
        self.steps -= 1
        return self.steps < 0


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals(lambda _: None) as stop:
        assert not stop()
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_two_signals_at_the_same_time_are_one(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr("rwkvbatch.signals.end_process", left.append)
    said: list[str] = []
    with stop_on_signals(said.append) as stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert (len(said), left) == (1, [])
        monkeypatch.setattr("rwkvbatch.signals.DUPLICATE_S", 0.0)
        signal.raise_signal(number)
    assert left == [code]
    assert stop.signal_number == number


def raise_and_drop(number: int) -> None:
    """What imports and weak references' callbacks do with an exception that comes in the middle of them."""
    with suppress(BaseException):
        signal.raise_signal(number)


def raise_something_else(number: int) -> None:
    """What an import that was broken off may do when it is tried again."""
    try:
        signal.raise_signal(number)
    except BaseException:  # what the handler raises, whatever it is
        raise ImportError("cannot load module more than once") from None


@pytest.mark.parametrize("send", [signal.raise_signal, raise_and_drop, raise_something_else])
def test_a_signal_while_models_are_loaded_ends_the_run_before_anything_is_written(
    send: Callable[[int], None], tmp_path: Path
) -> None:
    class SlowLoader(FakeLoader):
        def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
            send(signal.SIGTERM)
            return super().specs(setups)

    said: list[str] = []
    with stop_on_signals(said.append) as stop:
        options = RunOptions(out=tmp_path / "run", should_stop=stop, loading=stop.interruptible)
        with pytest.raises(StoppedEarly):
            execute(make_plan(5), SlowLoader(), options)
    assert (stop.signal_number, said) == (signal.SIGTERM, [])
    assert not (tmp_path / "run").exists()


def test_a_signal_before_loading_ends_the_run_too() -> None:
    with stop_on_signals(lambda _: None) as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(StoppedEarly), stop.interruptible():
            pytest.fail("it was begun")
