"""Params of a single turn: read from its user message, and over those of the conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.errors import ScriptError
from tests.script.writing import assistant, conversation, read, user


def test_a_user_message_may_have_params(tmp_path: Path) -> None:
    (found,) = read(
        tmp_path, conversation(user("a", params={"temperature": 0.2, "seed": 7}), user("b"), id="x")
    ).conversations
    assert [dict(turn.params) for turn in found.turns] == [{"temperature": 0.2, "seed": 7}, {}]


def test_they_are_part_of_what_a_conversation_says(tmp_path: Path) -> None:
    lines = [conversation(user("a", params=params), id="x") for params in ({}, {"seed": 7})]
    plain, other = (read(tmp_path, line).conversations[0].sha256 for line in lines)
    assert plain != other
    assert plain == read(tmp_path, conversation(user("a"), id="x")).conversations[0].sha256


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (conversation(user("a", params={"temprature": 1}), id="x"), r"messages\[0\].params"),
        (conversation(user("a", params={"temperature": -1}), id="x"), "temperature"),
        (
            conversation(user("a"), assistant("b", params={"seed": 1}), id="x"),
            r"messages\[1\]: `params` must be in the user message",
        ),
    ],
)
def test_wrong_ones_are_refused_with_their_place(tmp_path: Path, line: dict[str, Any], said: str) -> None:
    with pytest.raises(ScriptError, match=said):
        read(tmp_path, line)
