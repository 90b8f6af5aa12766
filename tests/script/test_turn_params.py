"""Params of single turns, read from their user messages."""

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


def test_reply_prefix_of_a_message_is_a_param_of_its_turn(tmp_path: Path) -> None:
    first, second = conversation({**user("a"), "reply_prefix": "So"}, id="x"), user("a", params={"reply_prefix": "So"})
    (of_message,) = read(tmp_path, first).conversations
    (of_params,) = read(tmp_path, conversation(second, id="x")).conversations
    assert of_message.sha256 == of_params.sha256
    assert dict(of_message.turns[0].params) == {"reply_prefix": "So"}


def test_bos_is_a_param_of_a_conversation_or_of_defaults(tmp_path: Path) -> None:
    defaults = {"defaults": {"params": {"bos": True, "reply_prefix": "So"}}}
    line = conversation(user("a"), id="x", params={"bos": "off", "think": "fake"})
    (found,) = read(tmp_path, defaults, line).conversations
    assert dict(found.params) == {"bos": "off", "reply_prefix": "So", "think": "fake"}


def test_the_hash_of_a_conversation_depends_on_params_of_turns(tmp_path: Path) -> None:
    lines = [conversation(user("a", params=params), id="x") for params in ({}, {"seed": 7})]
    without_params, with_params = (read(tmp_path, line).conversations[0].sha256 for line in lines)
    assert with_params != without_params
    assert without_params == read(tmp_path, conversation(user("a"), id="x")).conversations[0].sha256


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (conversation(user("a", params={"temprature": 1}), id="x"), r"messages\[0\].params"),
        (conversation(user("a", params={"temperature": -1}), id="x"), "temperature"),
        (
            conversation(user("a"), assistant("b", params={"seed": 1}), id="x"),
            r"messages\[1\]: `params` must be in the user message",
        ),
        (
            conversation(user("a"), {**assistant("b"), "reply_prefix": "b"}, id="x"),
            r"messages\[1\]: `reply_prefix` must be in the user message",
        ),
        (
            conversation({**user("a", params={"reply_prefix": "b"}), "reply_prefix": "b"}, id="x"),
            r"messages\[0\]: has reply_prefix both next to its content and in its params",
        ),
        (conversation(user("a", params={"bos": True}), id="x"), r"messages\[0\].params.bos: token 0 is read before"),
        (conversation(user("a"), id="x", params={"bos": 1}), "bos: must be 'auto', 'on' or 'off', got 1"),
    ],
)
def test_invalid_params_of_messages_are_refused_with_their_path(
    tmp_path: Path, line: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ScriptError, match=problem):
        read(tmp_path, line)
