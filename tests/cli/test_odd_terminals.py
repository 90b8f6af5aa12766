"""Unusable terminals and widths, and output formats that are not for terminals."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from rwkvbatch.chat.terminal import TerminalView
from rwkvbatch.cli.app import _usable_width, invoke
from tests.chat.sessions import exchange


@pytest.mark.parametrize("columns", ["0", "1", "-5", "x", "", "9" * 30])
def test_a_width_that_cannot_be_used_is_80_columns(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with _usable_width():
        assert os.environ["COLUMNS"] == "80"
    assert os.environ["COLUMNS"] == columns


def test_a_terminal_without_a_width_leaves_no_variable_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda _: os.terminal_size((1, 1)))
    with _usable_width():
        assert os.environ["COLUMNS"] == "80"
    assert "COLUMNS" not in os.environ


def test_a_usable_width_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "47")
    with _usable_width():
        assert os.environ["COLUMNS"] == "47"


def test_html_is_refused_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert invoke(["compare", str(tmp_path), "--format", "html"]) == 2
    assert "standard output is a terminal" in capsys.readouterr().err


@pytest.mark.parametrize("has_colours", [True, False])
def test_thinking_is_marked_in_text_where_there_are_no_colours(has_colours: bool) -> None:
    out = io.StringIO()
    system = "standard" if has_colours else None
    view = TerminalView(Console(file=out, force_terminal=True, color_system=system, no_color=not has_colours, width=60))
    view.begin_reply("<think>")
    view.piece("one and one</think>Two.")
    view.end_reply(None)
    view.replay([exchange("<think>one and one</think>Two.")])
    assert out.getvalue().count("[thinking]") == out.getvalue().count("[answer]") == (0 if has_colours else 2)
