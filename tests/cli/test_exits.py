"""Error messages of the command line: one per error, without control characters."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvbatch.cli.exits import ExitCode, print_json, report
from rwkvbatch.errors import RwkvBatchError, ScriptError, StorageError, UsageError
from rwkvbatch.prompt.escaping import printable
from rwkvbatch.signals import Terminated

HOSTILE = "\x1b]0;owned\x07\x9b2J\u202egnp\ud800\u2028"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("m"), ExitCode.USAGE),
        (ScriptError("m", path="f", line=2), ExitCode.BAD_INPUT),
        (StorageError("m"), ExitCode.INTERNAL),
        (ValueError("m"), ExitCode.INTERNAL),
        (OSError(28, "No space left on device"), ExitCode.INTERNAL),
        (MemoryError(), ExitCode.INTERNAL),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (Terminated(), ExitCode.TERMINATED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    error: BaseException, code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error, debug=False) == code
    assert capsys.readouterr().err.startswith("rwkvbatch: ")


@pytest.mark.parametrize("debug", [False, True])
@given(text=st.one_of(st.just(HOSTILE), st.text(st.characters(), max_size=30)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_error_acts_upon_a_terminal(debug: bool, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (ScriptError(text, path=text, hint=text), RwkvBatchError(text), OSError(text)):
        report(error, debug=debug)
        shown = capsys.readouterr().err
        assert printable(shown) == shown
        assert not debug or type(error).__name__ in shown


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(5, "Input/output error", "/some/file"), "input or output failed: Input/output error: /some/file"),
        (OSError("no reason"), "input or output failed: no reason"),
        (MemoryError("for 9 GB"), "not enough memory for 9 GB"),
        (MemoryError(), "not enough memory"),
        (OSError(12, "Cannot allocate memory"), "not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
            "not enough memory: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes.",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "not enough memory: CUDA out of memory. Tried"),
    ],
)
def test_what_the_machine_lacks_is_not_called_a_fault_of_the_program(
    error: BaseException, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report(error, debug=False)
    first, hint = capsys.readouterr().err.splitlines()
    assert first == f"rwkvbatch: error: {message}"
    assert hint.startswith("  ")
    assert "fault" not in hint


def test_an_output_that_nobody_reads_is_not_talked_about(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(BrokenPipeError(32, "Broken pipe"), debug=False) == ExitCode.UNREAD
    assert capsys.readouterr().err == ""


def test_a_fault_of_the_program_is_shown_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    report(ValueError("a\n" * 2000), debug=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert len(lines[0]) < 600
    assert "RWKVBATCH_DEBUG=1" in lines[1]


def test_json_has_no_numbers_that_are_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [math.inf, -math.inf, 1.5, 2, True], "b": {"c": math.nan, "d": None}, "e": (math.nan, "NaN")})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": [None, None, 1.5, 2, True], "b": {"c": None, "d": None}, "e": [None, "NaN"]}
