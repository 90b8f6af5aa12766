"""`run` replays what `/export` writes to the same tokens."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.chat.runs import export
from rwkvbatch.chat.session import Identity, Session
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.conversation import PromptEncoder
from rwkvbatch.replay.grid import Cell
from rwkvbatch.replay.layers import layer_settings
from rwkvbatch.replay.models import Setup
from rwkvbatch.replay.plan import Plan
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.script.reader import read_scripts
from tests.chat.test_session import SETTINGS, NamedModel, new_session
from tests.engine.hash_model import HashModel


class HashLoader:
    """The model of these tests, for a run."""

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
    """The replies of the run that `command` starts, with the model of these tests in place of its own."""
    scripts, values = options_of(command)
    values.pop("model", None)
    layered = layer_settings(values)
    plan = Plan(read_scripts(scripts).conversations, [Cell("base", {})], layered)
    last = layered.settings.repeats - 1
    rows = execute(plan, HashLoader(), RunOptions()).rows()
    return [row.reply_ids for row in rows if row.repeat == last]


@pytest.mark.parametrize("prelude", [None, "User: hi\n\nAssistant: Hi.\n\n", "named"])
def test_a_conversation_replays(tmp_path: Path, prelude: str | None) -> None:
    from rwkvbatch.prompt.templates import PRELUDES

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
    done = export(session, tmp_path / "a.jsonl")
    assert replay(done.command) == [exchange.ids for exchange in session.tree.path()]
    assert not done.caveats


def test_thinking_and_a_system_message_replay(tmp_path: Path) -> None:
    session = Session(Engine(HashModel()), SETTINGS.replace(think="on"), Identity(3))
    session.begin(system="Be brief.")
    replies = [session.ask(text).ids for text in ("first", "second")]
    assert replay(export(session, tmp_path / "a.jsonl").command) == replies


def test_changed_thinking_modes_prefixes_and_token_0_replay(tmp_path: Path) -> None:
    session = Session(Engine(HashModel()), SETTINGS.replace(think="on", bos="on"), Identity(3))
    session.begin()
    session.ask("first")
    for changed in ({"think": "fake"}, {"reply_prefix": "So,"}, {"think": "off"}, {"reply_prefix": ""}):
        session.use_settings(session.settings.replace(**changed))
        session.ask("next")
    done = export(session, tmp_path / "a.jsonl")
    assert replay(done.command) == [exchange.ids for exchange in session.tree.path()]
    assert not done.caveats


def test_a_repeat_of_a_run_replays(tmp_path: Path) -> None:
    session = Session(Engine(HashModel()), SETTINGS, Identity(3, "other", 2))
    session.begin()
    replies = [session.ask("first").ids]
    assert replay(export(session, tmp_path / "a.jsonl").command) == replies


def test_replies_that_a_replay_does_not_repeat_are_listed(tmp_path: Path) -> None:
    session = new_session()
    session.ask("first", should_stop=lambda: True)
    session.settings = session.settings.replace(think="fake")
    session.ask("second")
    caveats = " ".join(export(session, tmp_path / "a.jsonl").caveats)
    assert "turn 1 was stopped" in caveats


def test_replies_of_another_model_are_listed(tmp_path: Path) -> None:
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
