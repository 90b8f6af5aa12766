"""Workflow commands of CI services: text of models and scripts never is one in logs."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvbatch.chat.pipe import JsonView, PlainView
from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import message, report
from rwkvbatch.errors import RowError
from rwkvbatch.prompt.escaping import CONTEXT, one_line, output_as_log, printable, printable_json
from tests.chat.sessions import exchange
from tests.comparison.make_run import make_run

COMMANDS = (
    "::add-mask::secret",
    "  ::set-output name=x::1",
    "##[add-mask]secret",
    "text ##[error]x",
    "##vso[task.setvariable variable=x]y",
    "#\u200d#[error]x",
    "##\ufe0f[error]x",
    ":\u00ad:error::x",
    "\u00a0::stop-commands::t",
)
HOSTILE = "\n".join(COMMANDS)
PARTS = st.lists(
    st.sampled_from(["::", ":", "#", "##", "[", "##[", "vso", "a", " ", "\n", "\u200d", "\ufe0f", "error"])
)


def is_command(line: str) -> bool:
    """Whether the runners of GitHub (`ActionCommand.cs`) or Azure (`LoggingCommand.cs`) take a line for a command.

    Both compare by the rules of a culture, which ignore format characters and variation selectors.
    """
    compared = "".join(c for c in line if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    return compared.lstrip().startswith("::") or "##[" in compared or "##vso[" in compared


@pytest.fixture(params=["GITHUB_ACTIONS", "TF_BUILD"])
def in_ci(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(request.param, "true")


def assert_no_command(text: str) -> None:
    assert not [line for line in text.splitlines() if is_command(line)]


@pytest.mark.usefixtures("in_ci")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_escaped_in_text_and_in_json(command: str) -> None:
    assert is_command(command)
    assert_no_command(printable(command))
    assert_no_command(printable_json(json.dumps(command, ensure_ascii=False)))
    assert json.loads(printable_json(json.dumps(command, ensure_ascii=False))) == command


@pytest.mark.usefixtures("in_ci")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PARTS)
def test_no_text_is_a_command_whole_or_in_pieces(parts: list[str]) -> None:
    assert_no_command(printable("".join(parts)))
    before = shown = ""
    for part in parts:
        shown += printable(part, before=before[-CONTEXT:])
        before += part
    assert_no_command(shown)


@pytest.mark.usefixtures("in_ci")
@pytest.mark.parametrize("text", ["runs/sweep::temp=0.7", "a: b", "std::vector", "## A heading", "[1] #2", "12:30"])
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.usefixtures("in_ci")
def test_a_command_inside_a_word_is_escaped_because_lines_are_wrapped() -> None:
    assert_no_command(printable("word::add-mask::secret")[len("word") :])


def test_outside_of_ci_text_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "TF_BUILD"):
        monkeypatch.delenv(name, raising=False)
    assert printable("::add-mask::x ##[y]") == "::add-mask::x ##[y]"


def hostile_rows(row: dict[str, Any], _: np.random.Generator) -> None:
    row["reply"] = f"{HOSTILE}\n{row['reply']}"
    row["prompt"] = HOSTILE
    row["tags"] = list(COMMANDS)
    row["reference"]["text"] = HOSTILE
    row["checks"][0]["expected"] = HOSTILE
    row["checks"][0]["detail"] = HOSTILE
    if row["conversation"] == "talk-1" and row["turn"] == 1:
        row |= {"finish_reason": "error", "error": HOSTILE}


@pytest.mark.usefixtures("in_ci")
@pytest.mark.parametrize(
    "arguments",
    [
        ["show"],
        ["show", "--json"],
        ["compare"],
        ["compare", "--changes", "5"],
        ["compare", "--by", "tag"],
        ["compare", "--show", "talk-1"],
        *(["compare", "--format", name] for name in ("md", "csv", "json", "junit")),
        ["compare", "--fail-if", "tokens < 9999"],
    ],
    ids=" ".join,
)
def test_show_and_compare_print_no_workflow_command(
    arguments: list[str], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    run = make_run(tmp_path / "run", cells=("a", "##[error]b"), change=hostile_rows, conversations=3)
    invoke([arguments[0], str(run), *arguments[1:]])
    out, err = capfdbinary.readouterr()
    assert out
    assert_no_command(out.decode())
    assert_no_command(err.decode())


@pytest.mark.usefixtures("in_ci")
def test_messages_and_errors_are_no_workflow_commands(capsys: pytest.CaptureFixture[str]) -> None:
    message(HOSTILE)
    report(RowError(HOSTILE), debug=False)
    assert_no_command(re.sub("^rwkvbatch: ", "", capsys.readouterr().err, flags=re.MULTILINE))


@pytest.mark.usefixtures("in_ci")
def test_a_chat_through_pipes_writes_no_workflow_command() -> None:
    out, err = io.StringIO(), io.StringIO()
    view = PlainView(out, err)
    view.begin_reply("")
    for character in HOSTILE:
        view.piece(character)
    view.end_reply(exchange(HOSTILE))
    view.replay([exchange(HOSTILE)])
    view.alternatives([exchange(HOSTILE)])
    assert_no_command(out.getvalue())
    assert_no_command(err.getvalue())
    lines = io.StringIO()
    JsonView(lines, err).alternatives([exchange(HOSTILE)])
    assert_no_command(lines.getvalue())
    assert json.loads(lines.getvalue())["reply"] == HOSTILE


def test_logs_have_no_workflow_command_outside_of_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "TF_BUILD"):
        monkeypatch.delenv(name, raising=False)
    for command in COMMANDS:
        assert_no_command(printable(command, log=True))
        with output_as_log(True):
            assert_no_command(printable(command))
        assert printable(command) == printable(command, log=False)
    assert printable("👩\u200d🔬 می\u200cخواهم", log=True) == "👩\u200d🔬 می\u200cخواهم"


@given(st.text())
def test_a_json_line_has_no_line_separator(text: str) -> None:
    line = one_line(json.dumps([text], ensure_ascii=False))
    assert json.loads(line) == [text]
    assert len(line.splitlines()) == 1


def test_raw_output_escapes_c1_and_bidi_controls() -> None:
    out = io.StringIO()
    view = PlainView(out, io.StringIO(), raw=True)
    view.begin_reply("")
    view.piece("a\x1b[1m\tb\x9b2J\x7f\u202ec\x85")
    view.end_reply(None)
    assert out.getvalue() == "a\x1b[1m\tb\\x9b2J\\x7f\\u202ec\n"
