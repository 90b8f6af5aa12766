"""Conversations that begin with an assistant message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.templates import OfficialTemplate
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.prepare import prepare
from rwkvbatch.results.row import Row
from rwkvbatch.script.lint import lint
from rwkvbatch.script.native import native_record
from rwkvbatch.script.reader import read_scripts
from tests.replay.fakes import FakeLoader, make_plan
from tests.replay.runs import run

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Who\n\nis there? "}
SYSTEM = {"role": "system", "content": "Be brief."}


def read(*messages: dict[str, Any], **keys: Any) -> Any:
    (conversation,) = read_scripts([{"id": "a", **keys, "messages": list(messages)}]).conversations
    return conversation


def prompts(conversation: Any, **settings: Any) -> tuple[list[str], list[Row]]:
    loader = FakeLoader()
    plan = make_plan(conversations=[conversation], cells=[Cell("base", {})], **settings)
    rows = list(run(None, plan, loader).rows())
    requests = [request for engine in loader.engines for request in engine.submitted]
    return [bytes(token - 1 for token in request.tokens).decode() for request in requests], rows


def test_the_model_reads_it_before_the_first_user_message_and_it_has_no_row() -> None:
    (text,), (row,) = prompts(read(SYSTEM, ASSISTANT, USER))
    assert text == "System: Be brief.\n\nAssistant: Who\n\nis there?\n\nUser: Hi\n\nAssistant:"
    assert (row.turn, row.prompt, row.reference) == (0, "Hi", None)
    assert prompts(read(ASSISTANT, USER))[0] == [text.removeprefix("System: Be brief.\n\n")]


def test_a_prelude_comes_before_it() -> None:
    text = OfficialTemplate().opening("s", "User: a\n\nAssistant: b", "c")
    assert text == "System: s\n\nUser: a\n\nAssistant: b\n\nAssistant: c\n\n"


def test_rows_depend_on_it_and_those_of_other_conversations_do_not_change() -> None:
    assert read(ASSISTANT, USER).row_context == {"id": "a", "system": None, "greeting": ASSISTANT["content"]}
    assert read(USER).row_context == {"id": "a", "system": None}
    assert read(ASSISTANT, USER).sha256 != read(USER).sha256


def test_the_copy_of_the_script_has_it() -> None:
    conversation = read(SYSTEM, ASSISTANT, USER, ASSISTANT, tags=["x"])
    record = json.loads(json.dumps(native_record(conversation)))
    assert record["messages"] == [SYSTEM, ASSISTANT, USER, ASSISTANT]
    assert read_scripts([record]).conversations == (conversation,)


def test_lint_names_it() -> None:
    found = [(warning.code, warning.place) for warning in lint([read(ASSISTANT, USER)])]
    assert found == [("begins-with-reply", "first message"), ("outer-space", "first message")]
    assert lint([read(USER, {"role": "assistant", "content": "Hello"})]) == ()


@pytest.mark.parametrize("template", ["bot", "markdown"])
def test_template_files_cannot_write_it(template: str) -> None:
    scripts = [{"messages": [ASSISTANT, USER]}]
    with pytest.raises(
        UsageError, match=r"scripts\[0\]: an assistant message has no user message before it, which a template"
    ):
        prepare(scripts, template=template)
    prepare([{"messages": [USER, ASSISTANT]}], template=template)


def test_a_run_continues_and_without_it_generates_again(tmp_path: Path) -> None:
    scripts = [{"messages": [ASSISTANT, USER]}]
    rwkvbatch.run(scripts, max_tokens=2, out=tmp_path / "run")
    again = rwkvbatch.run(scripts, max_tokens=2, out=tmp_path / "run")
    without = rwkvbatch.run([{"messages": [USER]}], max_tokens=2, out=tmp_path / "run")
    assert again.reuse is not None
    assert without.reuse is not None
    assert (again.reuse.kept, without.reuse.kept, without.reuse.to_generate) == (1, 0, 1)


def test_show_tells_it_from_the_system_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = [{"messages": [SYSTEM, ASSISTANT, USER]}, {"messages": [ASSISTANT, USER]}, {"messages": [USER]}]
    rwkvbatch.run(scripts, max_tokens=2, out=tmp_path / "run")
    capsys.readouterr()
    assert invoke(["show", str(tmp_path / "run"), "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    system, greeting = SYSTEM["content"], read(ASSISTANT, USER).greeting
    assert [(one["system"], one["greeting"]) for one in records] == [(system, greeting), (None, greeting), (None, None)]
    assert invoke(["show", str(tmp_path / "run")]) == 0
    assert len(re.findall("^Assistant +Who", capsys.readouterr().out, re.MULTILINE)) == 2
