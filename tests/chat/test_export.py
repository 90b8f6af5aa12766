"""`/export`: `rwkvbatch run` replays exported conversations to the same tokens."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.chat.runs import export
from rwkvbatch.chat.session import TURN_SETTINGS, Identity, Session
from rwkvbatch.config import RunSettings
from rwkvbatch.config.sources import resolve_settings
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import UsageError
from rwkvbatch.prompt.templates import PRELUDES
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.setups import Setup
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.replay.worker.prompts import PromptEncoder
from rwkvbatch.script.reader import read_scripts
from tests.chat.sessions import SAMPLED, NamedModel, new_session
from tests.engine.hash_model import HashModel


class HashLoader:
    """A loader of the model of these tests for runs."""

    def __init__(self) -> None:
        self._engine = Engine(HashModel())

    def specs(self, setups: Sequence[Setup]) -> dict[Setup, Any]:
        return {}

    def tokenizer(self, spec: Any) -> Any:
        return self._engine.tokenizer

    def encoder(self, setup: Setup, plan: Plan) -> PromptEncoder:
        return PromptEncoder(self._engine.tokenizer)

    def engine(self, setup: Setup, plan: Plan, batch: int) -> Engine:
        return self._engine


def options_of(command: str) -> tuple[list[str], dict[str, Any]]:
    words = shlex.split(command)
    assert words[:2] == ["rwkvbatch", "run"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    return words[2:3], {name.removeprefix("--"): value for name, value in options.items()}


def replay(command: str) -> list[tuple[int, ...]]:
    """The replies of the run that `command` describes, with the model of these tests."""
    scripts, values = options_of(command)
    values.pop("model", None)
    resolved = resolve_settings(values)
    plan = Plan(read_scripts(scripts).conversations, [Cell("base", {})], resolved)
    last = resolved.settings.repeats - 1
    rows = execute(plan, HashLoader(), RunOptions()).rows()
    return [row.reply_ids for row in rows if row.repeat == last]


@pytest.mark.parametrize("prelude", [None, "User: hi\n\nAssistant: Hi.\n\n", "named"])
def test_an_exported_conversation_replays(tmp_path: Path, prelude: str | None) -> None:
    text = PRELUDES["api-demo-chat"] if prelude == "named" else prelude
    session = new_session(prelude=text)
    replies = [session.ask(text).ids for text in ("first", "second\n\nline", "日本")]
    assert replay(export(session, tmp_path / "a.jsonl").command) == replies


def test_retries_picks_and_changed_settings_replay(tmp_path: Path) -> None:
    session = new_session()
    session.ask("first")
    session.retry()
    session.ask("second")
    session.again(3)
    session.pick(3)
    session.settings = session.settings.replace(temperature=0.5, max_tokens=5, stop=("a", "\n"))
    session.ask("third")
    session.identity = Identity(99)
    session.ask("fourth")
    exported = export(session, tmp_path / "a.jsonl")
    assert replay(exported.command) == [exchange.ids for exchange in session.tree.path()]
    assert not exported.caveats


def test_thinking_and_a_system_message_replay(tmp_path: Path) -> None:
    session = Session(Engine(HashModel()), SAMPLED.replace(think="on"), Identity(3))
    session.begin(system="Be brief.")
    replies = [session.ask(text).ids for text in ("first", "second")]
    assert replay(export(session, tmp_path / "a.jsonl").command) == replies


def test_changed_thinking_modes_prefixes_and_token_0_replay(tmp_path: Path) -> None:
    session = Session(Engine(HashModel()), SAMPLED.replace(think="on", bos="on"), Identity(3))
    session.begin()
    session.ask("first")
    for changed in ({"think": "fake"}, {"reply_prefix": "So,"}, {"think": "off"}, {"reply_prefix": ""}):
        session.use_settings(session.settings.replace(**changed))
        session.ask("next")
    exported = export(session, tmp_path / "a.jsonl")
    assert replay(exported.command) == [exchange.ids for exchange in session.tree.path()]
    assert not exported.caveats


def test_a_repeat_of_a_run_replays(tmp_path: Path) -> None:
    session = Session(Engine(HashModel()), SAMPLED, Identity(3, "other", 2))
    session.begin()
    replies = [session.ask("first").ids]
    assert replay(export(session, tmp_path / "a.jsonl").command) == replies


IN_THE_COMMAND = {
    "model": "m.pth",
    "adapter": "a.pth alpha=2",
    "strategy": "cpu fp32",
    "backend": "reference",
    "template": "bot",
    "endpoint": "http://127.0.0.1:1/v1",
    "endpoint_model": "g1",
    "endpoint_api": "completions-ids",
    "endpoint_body": '{"a": 1}',
    "vocab": "words.txt",
}
IN_THE_SCRIPT = {
    "temperature": 0.5,
    "top_p": 0.6,
    "top_k": 7,
    "min_p": 0.01,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.3,
    "penalty_decay": 0.9,
    "order": "top-k-first",
    "no_penalty": (" ",),
    "banned_token_ids": (3,),
    "max_tokens": 5,
    "max_seconds": 900.0,
    "stop": ("xyz",),
    "think": "fake",
    "turn_end": "end-of-text",
    "reply_prefix": "So",
    "bos": "on",
}
FROM_OPENING_OR_SEED = {"system", "prelude", "state", "seed", "repeats"}
NOT_IN_A_CHAT = {"history", "judge", "judge_strategy", "judge_vocab", "judge_url", "judge_model", "judge_body"}
"""In a chat the history has the model's replies, and no check judges them."""

CHANGE_NO_REPLY = {
    *("threads", "batch_size", "state_memory", "workers", "devices", "ray"),
    *("concurrency", "max_requests", "endpoint_timeout", "endpoint_retries"),
    *("max_line_bytes", "max_turns", "max_conversations", "max_prompt_tokens", "only", "limit", "shuffle_seed"),
    *("max_repeats", "until_ci", "race", "race_margin", "race_level", "race_rows", "max_failures"),
}


def test_every_declared_setting_is_exported_or_changes_no_reply() -> None:
    declared = {*IN_THE_COMMAND, *IN_THE_SCRIPT, *FROM_OPENING_OR_SEED, *NOT_IN_A_CHAT, *CHANGE_NO_REPLY}
    assert declared == set(RunSettings.model_fields)
    assert set(IN_THE_SCRIPT) == {*TURN_SETTINGS, "bos"}


@pytest.mark.parametrize("name", [*IN_THE_COMMAND, *IN_THE_SCRIPT])
def test_the_exported_run_has_each_setting_of_the_chat(tmp_path: Path, name: str) -> None:
    value = {**IN_THE_COMMAND, **IN_THE_SCRIPT}[name]
    assert value != RunSettings.model_fields[name].default
    changed = {} if name == "vocab" else {name: value}
    session = Session(Engine(HashModel()), SAMPLED.replace(**changed), vocab=str(value) if name == "vocab" else None)
    session.begin()
    session.ask("first")
    scripts, options = options_of(export(session, tmp_path / "a.jsonl").command)
    resolved = resolve_settings(options)
    plan = Plan(read_scripts(scripts).conversations, [Cell("base", {})], resolved)
    settings = plan.settings if name == "vocab" else plan.task(0).of_turn(0).settings
    assert getattr(settings, name) == value


def test_stopped_replies_are_listed_as_caveats(tmp_path: Path) -> None:
    session = new_session()
    session.ask("first", should_stop=lambda: True)
    session.settings = session.settings.replace(think="fake")
    session.ask("second")
    caveats = " ".join(export(session, tmp_path / "a.jsonl").caveats)
    assert "turn 1 was stopped" in caveats


def test_replies_of_another_model_are_listed_as_caveats(tmp_path: Path) -> None:
    session = new_session(NamedModel())
    session.ask("first")
    session.use_engine(Engine(NamedModel(weights_sha256="b")))
    session.ask("second")
    (caveat,) = export(session, tmp_path / "a.jsonl").caveats
    assert "turn 1 is another model's" in caveat
    session.use_engine(Engine(NamedModel()))
    (caveat,) = export(session, tmp_path / "b.jsonl").caveats
    assert "turn 2 is another model's" in caveat


def test_the_file_is_private_and_contains_the_messages(tmp_path: Path) -> None:
    session = new_session()
    exchange = session.ask("first")
    path = tmp_path / "a.jsonl"
    export(session, path)
    assert path.stat().st_mode & 0o777 == 0o600
    messages = json.loads(path.read_text())["messages"]
    assert messages[0]["content"] == "first"
    if exchange.reply:
        assert messages[1]["content"] == exchange.reply


def test_an_empty_branch_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="/export"):
        export(new_session(), tmp_path / "a.jsonl")
    assert not list(tmp_path.iterdir())
