"""Conversations as values: hashes, pickling, short names of params."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rwkvbatch.errors import ScriptError
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.shape import parse_params
from tests.script.writing import assistant, conversation, read, user

FULL: dict[str, Any] = conversation(
    user("a", expect=[{"contains": "x", "weight": 2}, {"any": [{"regex": "y"}, {"json": {"type": "object"}}]}]),
    assistant("b"),
    id="full",
    tags=["t"],
    params={"temperature": 0.5, "ban": [0]},
)


def test_the_hash_does_not_depend_on_the_line(tmp_path: Path) -> None:
    first = read(tmp_path, FULL).conversations[0]
    second = read(tmp_path, b"", conversation(id="other"), FULL).conversations[1]
    assert first == second
    assert first.sha256 == second.sha256
    assert first.source != second.source


def test_the_hash_is_the_same_on_every_machine(tmp_path: Path) -> None:
    assert read(tmp_path, conversation(user("é"), id="x")).conversations[0].sha256 == (
        "15f894b51ee5ca26dcec90aa5dc1fd11812b43a2327bfe0c799808bd8d8abf01"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"tags": []},
        {"params": {"temperature": 0.5}},
        {"messages": [user("a"), assistant("b")]},
        {"messages": [FULL["messages"][0]]},
        {"messages": [FULL["messages"][0], assistant("c")]},
        {"messages": [{**FULL["messages"][0], "content": "A"}, assistant("b")]},
        {"messages": [{"role": "system", "content": ""}, *FULL["messages"]]},
        {"expect": {"finish": "stop"}},
    ],
)
def test_the_hash_depends_on_all_content(change: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path, {**FULL, **change}).conversations[0].sha256 != read(tmp_path, FULL).conversations[0].sha256


def test_conversations_can_be_pickled(tmp_path: Path) -> None:
    (found,) = read(tmp_path, FULL).conversations
    copied = pickle.loads(pickle.dumps(found))
    assert copied == found
    assert copied.sha256 == found.sha256


class TestShortNamesOfParams:
    """`presence`, `frequency`, `decay` and `ban`, as the options are called."""

    SHORT: ClassVar = {"presence": 0.1, "frequency": 0.2, "decay": 0.9, "ban": [0]}
    FULL: ClassVar = {"presence_penalty": 0.1, "frequency_penalty": 0.2, "penalty_decay": 0.9, "banned_token_ids": [0]}

    def test_short_names_are_read_as_full_names(self) -> None:
        short, full = (parse_params(params, SourceLine("a.jsonl", 1)) for params in (self.SHORT, self.FULL))
        assert short == full
        assert set(full) == set(self.FULL)

    def test_both_names_of_one_setting_are_refused(self) -> None:
        with pytest.raises(ScriptError, match="ban and banned_token_ids"):
            parse_params({"ban": [0], "banned_token_ids": [1]}, SourceLine("a.jsonl", 1))
