"""SIGINT and SIGTERM before a run is under way, and in other commands."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.signals import leaving_at_once, unwind

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

    monkeypatch.setattr("rwkvbatch.model.load.resolve_model_path", command)
    monkeypatch.setattr("rwkvbatch.signals._is_importing", lambda _: False)  # pytest's own imports do not count
    with leaving_at_once():
        unwind()
        assert invoke(["model", "info", "x"]) == code
    assert (tidied, capsys.readouterr().err) == (["up"], f"rwkvbatch: {word}\n")


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_a_signal_during_an_import_ends_a_command_that_would_drop_it(
    number: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    (tmp_path / "dropping.py").write_text(
        f"import contextlib, signal\nwith contextlib.suppress(BaseException): signal.raise_signal({int(number)})\n"
    )
    program = "from rwkvbatch.signals import unwind; unwind(); import dropping"
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
        unwind()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert left == []
        monkeypatch.setattr("rwkvbatch.signals.TOGETHER_S", 0.0)
        with pytest.raises(KeyboardInterrupt):  # `_leave` does not come back, but for this test
            signal.raise_signal(signal.SIGINT)
    assert left == [signal.SIGINT]


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
