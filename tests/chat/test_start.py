"""The chat as a program: pipes, JSON, exit codes, default settings, continuing sessions and runs."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.chat.app import Chat
from rwkvbatch.chat.commands import handle_line
from rwkvbatch.chat.pipe import JsonView, PlainView
from rwkvbatch.chat.start import ChatArguments, chat_settings, choose_prelude, open_chat, run_chat
from rwkvbatch.cli.app import invoke
from rwkvbatch.config import RunSettings, preset
from rwkvbatch.config.sources import resolve_settings
from rwkvbatch.errors import UsageError
from rwkvbatch.model.model_files import BUNDLED_MODEL
from rwkvbatch.prompt.templates import PRELUDES
from tests.chat.sessions import exchange
from tests.chat.terminal import Terminal

ROOT = Path(__file__).parents[2]


def chat_process(tmp_path: Path, stdin: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rwkvbatch", "chat", *options],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=120,
    )


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, with `stdin` as its standard input."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def run(stdin: str, *options: str) -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = invoke(["chat", *options])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def test_each_line_of_standard_input_gets_a_reply(tmp_path: Path) -> None:
    result = chat_process(tmp_path, "My name is Ada.\n\nWhat is my name?\n/stats\n")
    assert result.returncode == 0
    replies = result.stdout.splitlines()
    assert "Ada" in replies[1]
    assert "MiB" in result.stdout
    assert "the bundled demo model" in result.stderr
    assert "type a message" in result.stderr
    (transcript,) = (tmp_path / "rwkvbatch" / "chats").iterdir()
    assert transcript.stat().st_mode & 0o777 == 0o600
    events = [json.loads(line) for line in transcript.read_text().splitlines()]
    assert next(event["text"] for event in events if event["event"] == "typed") == "My name is Ada."


def test_json_output_is_one_object_per_reply(chat: Run) -> None:
    lines = "My name is Ada.\nWhat is my name?\n/again 2\n/params\n/nothing\n"
    result = chat(lines, "--json", "--quiet", "--temp", "1", "--top-p", "1", "--no-transcript")
    assert result.returncode == 1
    replies = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(reply["turn"], reply["prompt"], reply["seed"]) for reply in replies] == [
        (0, "My name is Ada.", 0),
        (1, "What is my name?", 0),
        (1, "What is my name?", 1),
        (1, "What is my name?", 2),
    ]
    for reply in replies:
        assert reply["finish_reason"] == "stop"
        assert reply["tokens"]["reply"] == len(reply["reply_ids"])
        assert reply["logprob"]["mean"] == pytest.approx(reply["logprob"]["sum"] / len(reply["reply_ids"]))
        assert reply["timing"]["total_s"] >= reply["timing"]["first_token_s"] > 0
    assert replies[1]["timing"]["cached_tokens"] >= replies[0]["tokens"]["prompt"]
    assert "max_tokens" in result.stderr
    assert "there is no command /nothing" in result.stderr


@pytest.mark.parametrize("options", [{"raw": True}, {"is_terminal": True}])
def test_json_is_refused_on_a_terminal_and_with_raw(options: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: options.get("is_terminal", False), raising=False)
    with pytest.raises(UsageError, match="--json"):
        run_chat(ChatArguments(json=True, raw=options.get("raw", False)))


def test_json_output_escapes_control_characters() -> None:
    out, err = io.StringIO(), io.StringIO()
    JsonView(out, err).end_reply(exchange(reply="a\x1b[31m\x9b日本"))
    assert "\\u001b[31m\\u009b日本" in out.getvalue()
    assert json.loads(out.getvalue())["reply"] == "a\x1b[31m\x9b日本"
    assert not err.getvalue()


def test_an_unknown_command_on_standard_input_exits_with_1(chat: Run, tmp_path: Path) -> None:
    result = chat("/nothing\nhi\n", "--no-transcript", "--quiet")
    assert result.returncode == 1
    assert result.stderr.startswith("rwkvbatch: there is no command /nothing")
    assert result.stdout.strip()
    assert not list(tmp_path.iterdir())


def test_ban_accepts_a_comma_list(chat: Run) -> None:
    result = chat("/params\n", "--ban", "3,5", "--no-transcript")
    assert result.returncode == 0, result.stderr
    assert "3,5" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--load", "s.json", "--from", "run:a:0"), "--from and --load both say what the chat continues"),
        (("--no-transcript", "--transcript", "t.jsonl"), "--transcript and --no-transcript are both given"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: tuple[str, ...], problem: str, chat: Run) -> None:
    result = chat("hi\n", *options)
    assert result.returncode == 2
    assert problem in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "main"),
    [
        ("--cell", "base", "--from"),
        ("--repeat", "1", "--from"),
        ("--endpoint-api", "chat", "--endpoint"),
        ("--endpoint-timeout", "9", "--endpoint"),
        ("--endpoint-retries", "0", "--endpoint"),
    ],
)
def test_an_option_without_the_one_that_it_belongs_to_is_refused(option: str, value: str, main: str, chat: Run) -> None:
    result = chat("hi\n", option, value)
    assert result.returncode == 2
    assert f"{option} belongs to {main}, which is not given" in result.stderr


def test_settings_of_endpoints_in_the_environment_do_not_concern_a_model_in_this_process(
    chat: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"MODEL": "a", "API": "chat", "BODY": '{"a": 1}', "TIMEOUT": "3", "RETRIES": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(f"RWKVBATCH_ENDPOINT_{name}", value)
    result = chat(f"My name is Ada.\n/export {tmp_path / 's.jsonl'}\n", "--no-transcript")
    assert result.returncode == 0, result.stderr
    assert "Ada" in result.stdout
    assert "rwkvbatch run " in result.stderr
    assert "--endpoint" not in result.stderr


def test_an_invalid_option_is_refused_before_a_model_is_loaded(chat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvbatch.chat.start.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    result = chat("", "--temp", "hot")
    assert result.returncode == 2
    assert "--temp" in result.stderr
    assert "Traceback" not in result.stderr


def test_raw_output_to_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_sampling_defaults_depend_on_the_model(values: dict[str, str], bundled: bool, name: str) -> None:
    assert chat_settings(resolve_settings(values), bundled=bundled).sampling == preset(name)


def test_an_explicit_temperature_turns_greedy_sampling_off() -> None:
    assert preset("greedy").greedy
    for values in ({"temperature": "0.5"}, {"preset": "greedy", "temperature": "0.5"}):
        assert not chat_settings(resolve_settings(values), bundled=True).sampling.greedy


def test_an_option_changes_only_its_setting() -> None:
    settings = chat_settings(resolve_settings({"temperature": "0.5"}), bundled=False)
    assert settings.sampling == preset("api-demo-chat").replace(temperature=0.5)


def test_the_default_prelude_depends_on_model_and_state(tmp_path: Path) -> None:
    settings = RunSettings()
    assert choose_prelude(settings, bundled=False) == PRELUDES["api-demo-chat"]
    assert choose_prelude(settings, bundled=True) is None
    assert choose_prelude(settings.replace(state="x.pth"), bundled=False) is None
    assert choose_prelude(settings.replace(prelude="none"), bundled=False) is None
    path = tmp_path / "p.txt"
    path.write_text("User: a\n\nAssistant: b")
    assert "User: a" in (choose_prelude(settings.replace(prelude=str(path)), bundled=True) or "")
    with pytest.raises(UsageError, match="--prelude"):
        choose_prelude(settings.replace(prelude=str(tmp_path / "none.txt")), bundled=True)


def chat_after(*lines: str, **values: Any) -> tuple[Chat, str]:
    """A chat with the bundled model after `lines`, and its output."""
    out, err = io.StringIO(), io.StringIO()
    arguments = ChatArguments(**{"no_transcript": True, **values})
    chat = open_chat(arguments, PlainView(out, err), is_terminal=False)
    for line in lines:
        assert handle_line(chat, line), err.getvalue()
    return chat, out.getvalue() + err.getvalue()


def test_a_chat_continues_a_saved_session_a_transcript_and_a_state(tmp_path: Path) -> None:
    transcript = tmp_path / "t.jsonl"
    chat_after(
        "My name is Ada.",
        f"/save {tmp_path / 's.json'}",
        f"/state save {tmp_path / 'x.safetensors'}",
        no_transcript=False,
        transcript=transcript,
    )
    for path in (transcript, tmp_path / "s.json"):
        assert "Your name is Ada." in chat_after("What is my name?", load=path)[1]
    chat, output = chat_after("What is my name?", "/params", values={"state": str(tmp_path / "x.safetensors")})
    assert "Your name is Ada." in output
    assert chat.session.tree.openings[0].state == str(tmp_path / "x.safetensors")


def test_a_transcript_is_continued_in_the_same_file(chat: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "t.jsonl")
    chat("My name is Ada.\n", "--transcript", path)
    for turn in (1, 2):
        result = chat("What is my name?\n", "--load", path, "--transcript", path)
        assert f"loaded {path}: branch main, turn {turn}" in result.stderr
        assert "Your name is Ada." in result.stdout


def test_options_apply_to_the_replies_of_a_loaded_session(chat: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "t.jsonl")
    chat("hi\n", "--max-tokens", "7", "--seed", "3", "--system", "Be brief.", "--transcript", path)
    shown = chat("/params\n", "--load", path, "--no-transcript").stdout
    assert re.search(r"max_tokens +7\b", shown)
    options = ["--max-tokens", "5", "--seed", "4", "--preset", "creative", "--system", "Be brief.", "--prelude", "none"]
    result = chat("/params\n/seed\n", "--load", path, "--no-transcript", *options)
    shown = result.stdout
    assert re.search(r"max_tokens +5\b", shown)
    assert re.search(rf"temp +{dict(preset('creative'))['temperature']}\b", shown)
    assert "seed 4\n" in shown + result.stderr


ENVIRONMENT = {"TEMP": "1.7", "MAX_TOKENS": "9", "SEED": "9", "TEMPLATE": "markdown", "BOS": "on", "SYSTEM": "Be long."}


def test_a_loaded_session_keeps_its_settings_whatever_the_environment_says(
    chat: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "t.jsonl")
    (tmp_path / "settings.toml").write_text("top_k = 3\n")
    chat("hi\n", "--temp", "0.5", "--seed", "3", "--system", "Be brief.", "--transcript", path)
    options = ["--load", path, "--no-transcript", "--config", str(tmp_path / "settings.toml")]
    expected = chat("/params\n/seed\n/show\nTell me more.\n", *options).stdout
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(f"RWKVBATCH_{name}", value)
    assert chat("/params\n/seed\n/show\nTell me more.\n", *options).stdout == expected
    assert re.search(r"temp +0\.5\b", expected)
    assert not re.search(r"top_k +3\b", expected)
    shown = chat("/params\n", *options, "--temp", "0.25").stdout
    assert re.search(r"temp +0\.25\b", shown)
    assert not re.search(r"max_tokens +9\b", shown)


@pytest.mark.parametrize(
    "options",
    [
        ("--system", "Be long."),
        ("--system-file", "system.txt"),
        ("--prelude", "api-demo-chat"),
        ("--bos", "on"),
        ("--template", "markdown"),
        ("--state", str(BUNDLED_MODEL.with_name("uppercase-state.safetensors"))),
    ],
)
def test_an_option_that_changes_how_a_loaded_session_began_is_refused(
    options: tuple[str, str], chat: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("system.txt").write_text("Be long.")
    chat("hi\n", "--system", "Be brief.", "--transcript", "t.jsonl")
    before = Path("t.jsonl").read_bytes()
    result = chat("hi\n", "--load", "t.jsonl", "--transcript", "t.jsonl", *options)
    assert result.returncode == 2
    name = "--system" if options[0] == "--system-file" else options[0]
    assert f"--load: the session in t.jsonl began with another value than {name} gives" in result.stderr
    assert Path("t.jsonl").read_bytes() == before


def test_a_seed_applies_to_the_replies_after_a_run(chat: Run, tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text('{"id": "a", "messages": [{"role": "user", "content": "hi"}]}\n')
    assert invoke(["run", str(script), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    options = ["--from", f"{tmp_path / 'run'}:a:0", "--no-transcript", "--temp", "2", "--top-p", "1", "--quiet"]
    replies = [chat("Tell me more.\n", *options, *seed).stdout for seed in ((), ("--seed", "0"), ("--seed", "7"))]
    assert replies[0] == replies[1] != replies[2]


def test_a_chat_continues_a_run_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "My name is Ada."}]
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "c", "messages": messages}) + "\n")
    out = tmp_path / "out"
    assert invoke(["run", str(tmp_path / "s.jsonl"), "--temp", "0.4", "--seed", "7", "--out", str(out), "-q"]) == 0
    chat, output = chat_after("/params", from_run=f"{out}:c:0")
    assert "> My name is Ada." in output
    assert chat.session.settings.temperature == 0.4
    assert chat.session.identity.seed == 7
    chat, _ = chat_after(from_run=f"{out}:c:0", values={"temperature": "0.9"})
    assert chat.session.settings.temperature == 0.9
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(f"RWKVBATCH_{name}", value)
    chat, _ = chat_after(from_run=f"{out}:c:0", values={"max_tokens": "5"})
    settings = chat.session.settings
    assert (settings.temperature, settings.max_tokens, settings.template) == (0.4, 5, None)
    assert (chat.session.identity.seed, chat.session.tree.opening.system) == (7, "Be brief.")
    with pytest.raises(UsageError, match="RUN:CONVERSATION:TURN"):
        chat_after(from_run="somewhere:c")


def test_a_session_of_the_program_on_a_terminal(tmp_path: Path) -> None:
    arguments = ["-m", "rwkvbatch", "chat", "--prelude", "none"]
    with Terminal(arguments, environment={"XDG_STATE_HOME": str(tmp_path)}) as terminal:
        terminal.wait_for_prompt()
        assert "/help lists the commands" in terminal.text
        terminal.submit("My name is Ada.")
        terminal.submit("/set max_tokens 3")
        terminal.submit("What is my name?")
        assert "[stopped at 3 tokens" in terminal.text
        terminal.send("\x04")
        assert terminal.wait_for_end() == 0
    assert (tmp_path / "rwkvbatch" / "chat-history").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("options", "greedy"),
    [
        ((), True),
        (("--top-k", "1", "--temp", "1"), True),
        (("--temp", "1.5"), False),
        (("--presence", "0.5"), False),
        (("--prelude", "api-demo-chat"), False),
    ],
)
def test_the_greeting_names_greedy_sampling_only_where_it_applies(
    chat: Run, options: tuple[str, ...], greedy: bool
) -> None:
    result = chat("", *options, "--no-transcript")
    assert ("greedy, without penalties and initial exchange" in result.stderr) == greedy
    assert "use another model with --model FILE" in result.stderr


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ((), "unlike `run`: --presence 0.5, --frequency 0.5, --ban 0, an initial exchange before the first message; "),
        (("--prelude", "none"), "unlike `run`: --presence 0.5, --frequency 0.5, --ban 0; "),
        (("--preset", "default", "--prelude", "none"), ""),
        (("--preset", "default", "--prelude", "none", "--temp", "0.5"), "unlike `run`: --temp 0.5; "),
    ],
)
def test_the_greeting_of_another_model_names_what_run_does_otherwise(
    chat: Run, options: tuple[str, ...], note: str, tmp_path: Path
) -> None:
    path = shutil.copy(BUNDLED_MODEL, tmp_path / "own.safetensors")
    errors = chat("", *options, "--no-transcript", "--model", str(path)).stderr
    assert ("unlike `run`" in errors) == bool(note)
    assert note in " ".join(errors.split())
