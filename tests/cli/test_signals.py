"""SIGINT and SIGTERM before a run has started, and in other commands."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rwkvbatch import signals
from rwkvbatch.cli import _leave_on_signals
from rwkvbatch.cli.app import invoke
from rwkvbatch.signals import leaving_at_once, raise_on_signals, stop_on_signals

SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_while_modules_are_imported_a_signal_ends_the_process_with_a_word(
    number: signal.Signals, code: int, word: str
) -> None:
    # An exception from a handler would be dropped here.
    program = (
        "import signal, contextlib; from rwkvbatch.signals import leave_at_once; leave_at_once()\n"
        f"with contextlib.suppress(BaseException): signal.raise_signal({int(number)})\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (code, f"rwkvbatch: {word}\n")


def test_nothing_is_imported_before_signals_are_handled() -> None:
    # `typing` alone took 15 times as long as the rest; until then a signal ends Python's way, with a traceback.
    program = (
        "import importlib, os, sys, warnings\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r}); before = set(sys.modules)\n"
        "import rwkvbatch.cli; rwkvbatch.cli._leave_on_signals(); print(sorted(set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert ast.literal_eval(found.stdout) == ["__future__", "rwkvbatch", "rwkvbatch.cli"]


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_commands_are_unwound_and_end_with_a_word(
    number: signal.Signals, code: int, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tidied: list[str] = []

    def command(_: Path) -> None:
        try:
            signal.raise_signal(number)
        finally:
            tidied.append("up")

    monkeypatch.setattr("rwkvbatch.model.model_files.resolve_model_path", command)
    monkeypatch.setattr("rwkvbatch.signals._is_importing", lambda _: False)  # pytest's own imports do not count
    with leaving_at_once():
        raise_on_signals()
        assert invoke(["model", "info", "x"]) == code
    assert (tidied, capsys.readouterr().err) == (["up"], f"rwkvbatch: {word}\n")


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_a_signal_during_an_import_ends_a_command_that_would_drop_it(
    number: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    (tmp_path / "dropping.py").write_text(
        f"import contextlib, signal\nwith contextlib.suppress(BaseException): signal.raise_signal({int(number)})\n"
    )
    program = "from rwkvbatch.signals import raise_on_signals; raise_on_signals(); import dropping"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert (found.returncode, found.stderr) == (code, f"rwkvbatch: {word}\n")


def test_of_two_signals_at_the_same_time_one_is_raised_and_a_later_one_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("rwkvbatch.signals._leave", lambda number, _: left.append(number))
    monkeypatch.setattr("rwkvbatch.signals._is_importing", lambda _: False)  # pytest's own imports do not count
    with leaving_at_once():
        raise_on_signals()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert left == []
        monkeypatch.setattr("rwkvbatch.signals.DUPLICATE_S", 0.0)
        with pytest.raises(KeyboardInterrupt):  # `_leave` does not come back, but for this test
            signal.raise_signal(signal.SIGINT)
    assert left == [signal.SIGINT]


class Ended(BaseException):
    """In place of the end of the process, whose exit code it holds."""


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(signals, "end_process", end)


@pytest.mark.usefixtures("ending")
@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_of_a_runs_signals_the_first_is_told_its_duplicate_is_not_and_a_later_one_stops_at_once(
    number: signal.Signals, code: int, word: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    with stop_on_signals(told.append) as stop:
        assert not stop()
        for _ in range(2):
            signal.raise_signal(number)
        assert stop()
        monkeypatch.setattr(signals, "DUPLICATE_S", 0.0)
        with pytest.raises(Ended, match=str(code)):
            signal.raise_signal(number)
    assert told == ["stopping after this step; a second signal stops at once"]
    assert capfd.readouterr().err == "stopped at once; finished rows are safe\n"


@pytest.mark.usefixtures("ending")
@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_what_a_signal_calls_is_called_once_and_a_later_one_ends_the_process(
    number: signal.Signals, code: int, word: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stops: list[str] = []
    with signals.call_on_signal(lambda: stops.append("stop")):
        for _ in range(2):
            signal.raise_signal(number)
        assert stops == ["stop"]
        monkeypatch.setattr(signals, "DUPLICATE_S", 0.0)
        with pytest.raises(Ended, match=str(code)):
            signal.raise_signal(number)
    assert stops == ["stop"]
    assert capfd.readouterr().err == f"rwkvbatch: {word}\n"


def test_outside_the_main_thread_handlers_stay_as_they_are() -> None:
    found: list[object] = []

    def work() -> None:
        with signals.handlers_restored(), signals.stopping_on_interrupt() as noted:
            found.extend([noted, signal.getsignal(signal.SIGINT)])
        found.append("left")

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[], before, "left"]
    with signals.stopping_on_interrupt() as noted:
        signal.raise_signal(signal.SIGINT)
    assert noted == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) == before


def test_the_process_may_end_again_after_the_last_of_several_blocks() -> None:
    with signals.forbid_process_exit():
        with signals.forbid_process_exit():
            pass
        with pytest.raises(signals.ProcessEndedError, match=r"os\._exit\(3\)"):
            os._exit(3)
    assert os._exit is signals._ENDINGS["_exit"]


@pytest.mark.parametrize(("closing", "code"), [("before", 1), ("after", -signal.SIGKILL), ("never", 0)])
def test_a_process_ends_with_its_lifeline(closing: str, code: int) -> None:
    program = (
        "import os, time; from rwkvbatch.signals import end_with\n"
        "reading, writing = os.pipe()\n"
        f"if {closing == 'before'}: os.close(writing)\n"
        "end_with(reading)\n"
        f"if {closing != 'never'}: {'' if closing == 'before' else 'os.close(writing); '}time.sleep(30)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == code


def test_without_linuxs_signal_a_thread_watches_the_lifeline(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signals, "end_process", ended.append)
    monkeypatch.setattr(sys, "platform", "other")
    reading, writing = os.pipe()
    signals.end_with(reading)
    (watching,) = [thread for thread in threading.enumerate() if thread.name == "lifeline"]
    os.close(writing)
    watching.join(10)
    os.close(reading)
    assert ended == [1]


def test_a_signal_that_was_ignored_when_the_program_began_is_not_handled_before_its_imports() -> None:
    before = [signal.signal(number, signal.SIG_IGN) for number, *_ in SIGNALS]
    try:
        _leave_on_signals()
        assert [signal.getsignal(number) for number, *_ in SIGNALS] == [signal.SIG_IGN] * 2
    finally:
        for (number, *_), handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_a_signal_that_was_ignored_from_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with leaving_at_once():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("options", "number", "code"), [((), signal.SIGINT, 130), (("--workers", "2"), signal.SIGTERM, 143)]
)
def test_a_run_that_is_ended_while_it_starts_says_so_and_leaves_nothing_half_done(
    options: tuple[str, ...], number: signal.Signals, code: int, tmp_path: Path
) -> None:
    script, out = tmp_path / "s.jsonl", tmp_path / "out"
    script.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "rwkvbatch", "run", str(script), "--out", str(out), *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not out.exists():  # made before the model is loaded
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, number)  # to the workers too, as terminals and service managers do
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert "interrupted while loading" in error
    assert "Traceback" not in error
    assert not out.exists()
