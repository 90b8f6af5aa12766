"""The chat as a program, from a pipe; and what a session begins with."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvbatch.chat.dialogue import Exchange
from rwkvbatch.chat.plain_view import JsonView
from rwkvbatch.chat.start import ChatArguments, chat_settings, choose_prelude, run_chat
from rwkvbatch.config import preset
from rwkvbatch.errors import UsageError
from rwkvbatch.run.settings import RunSettings, layer_settings
from rwkvbatch.text.preludes import PRELUDES

ROOT = Path(__file__).parents[2]


def chat(tmp_path: Path, typed: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rwkvbatch", "chat", *options],
        input=typed,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=120,
    )


def test_a_pipe_is_answered_line_by_line_and_ends(tmp_path: Path) -> None:
    done = chat(tmp_path, "My name is Ada.\n\nWhat is my name?\n/stats\n")
    assert done.returncode == 0
    replies = done.stdout.splitlines()
    assert "Ada" in replies[1]
    assert "kept" in done.stdout
    assert "the bundled demo model" in done.stderr
    assert "say something" in done.stderr
    (transcript,) = (tmp_path / "rwkvbatch" / "chats").iterdir()
    assert transcript.stat().st_mode & 0o777 == 0o600
    events = [json.loads(line) for line in transcript.read_text().splitlines()]
    assert next(event["text"] for event in events if event["event"] == "typed") == "My name is Ada."


def test_json_is_an_object_a_reply_and_nothing_else(tmp_path: Path) -> None:
    lines = "My name is Ada.\nWhat is my name?\n/again 2\n/params\n/nothing\n"
    done = chat(tmp_path, lines, "--json", "--quiet", "--temp", "1", "--top-p", "1", "--no-transcript")
    assert done.returncode == 1
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(reply["turn"], reply["prompt"], reply["seed"]) for reply in replies] == [
        (0, "My name is Ada.", 0),
        (1, "What is my name?", 0),
        (1, "What is my name?", 1),
        (1, "What is my name?", 2),
    ]
    for reply in replies:
        assert reply["finish"] == "stop"
        assert reply["tokens"]["reply"] == len(reply["reply_ids"])
        assert reply["logprob"]["mean"] == pytest.approx(reply["logprob"]["sum"] / len(reply["reply_ids"]))
        assert reply["timing"]["total_s"] >= reply["timing"]["first_token_s"] > 0
    assert replies[1]["timing"]["cached_tokens"] >= replies[0]["tokens"]["prompt"]
    assert "max_tokens" in done.stderr
    assert "there is no command /nothing" in done.stderr


@pytest.mark.parametrize("options", [{"raw": True}, {"is_terminal": True}])
def test_json_is_for_pipes(options: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: options.get("is_terminal", False), raising=False)
    with pytest.raises(UsageError, match="--json"):
        run_chat(ChatArguments(json=True, raw=options.get("raw", False)))


def test_json_escapes_what_could_act_upon_a_terminal() -> None:
    out, err = io.StringIO(), io.StringIO()
    JsonView(out, err).end_reply(exchange(reply="a\x1b[31m\x9b日本"))
    assert "\\u001b[31m\\u009b日本" in out.getvalue()
    assert json.loads(out.getvalue())["reply"] == "a\x1b[31m\x9b日本"
    assert not err.getvalue()


def exchange(reply: str) -> Exchange:
    return Exchange(0, None, 0, 0, 0, 0, "hi", (1,), (2,), (2,), reply, reply, "stop", None, {})


def test_a_wrong_command_in_a_pipe_is_said_and_fails_at_the_end(tmp_path: Path) -> None:
    done = chat(tmp_path, "/nothing\nhi\n", "--no-transcript", "--quiet")
    assert done.returncode == 1
    assert done.stderr.startswith("rwkvbatch: there is no command /nothing")
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir())


def test_a_wrong_option_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    done = chat(tmp_path, "", "--temp", "hot")
    assert done.returncode == 2
    assert "--temp" in done.stderr
    assert "Traceback" not in done.stderr


def test_raw_text_is_not_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(UsageError, match="--raw"):
        run_chat(ChatArguments(raw=True))


@pytest.mark.parametrize(
    ("values", "bundled", "name"),
    [
        ({}, True, "greedy"),
        ({}, False, "api-demo-chat"),
        ({"state": "x.pth"}, False, "api-demo-chat-state"),
        ({"preset": "creative"}, True, "creative"),
    ],
)
def test_sampling_fits_the_model_unless_it_is_given(values: dict[str, str], bundled: bool, name: str) -> None:
    assert chat_settings(layer_settings(values).settings, bundled=bundled).sampling == preset(name)


def test_one_option_changes_only_itself() -> None:
    settings = chat_settings(layer_settings({"temperature": "0.5"}).settings, bundled=False)
    assert settings.sampling == preset("api-demo-chat").replace(temperature=0.5)


def test_the_initial_exchange_is_there_by_default(tmp_path: Path) -> None:
    settings = RunSettings()
    assert choose_prelude(None, settings, bundled=False) == PRELUDES["api-demo-chat"]
    assert choose_prelude(None, settings, bundled=True) is None
    assert choose_prelude(None, settings.replace(state="x.pth"), bundled=False) is None
    assert choose_prelude("none", settings, bundled=False) is None
    path = tmp_path / "p.txt"
    path.write_text("User: a\n\nAssistant: b")
    assert "User: a" in (choose_prelude(str(path), settings, bundled=True) or "")
    with pytest.raises(UsageError, match="--prelude"):
        choose_prelude(str(tmp_path / "none.txt"), settings, bundled=True)
