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


def test_the_beginning_of_a_reply_is_one_of_them(tmp_path: Path) -> None:
    first, second = conversation({**user("a"), "reply_prefix": "So"}, id="x"), user("a", params={"reply_prefix": "So"})
    assert read(tmp_path, first).sha256 == read(tmp_path, conversation(second, id="x")).sha256
    assert dict(read(tmp_path, first).conversations[0].turns[0].params) == {"reply_prefix": "So"}


def test_token_0_is_for_a_conversation_or_a_file(tmp_path: Path) -> None:
    defaults = {"defaults": {"params": {"bos": True, "reply_prefix": "So"}}}
    own = conversation(user("a"), id="x", params={"bos": "off", "think": "fake"})
    (found,) = read(tmp_path, defaults, own).conversations
    assert dict(found.params) == {"bos": "off", "reply_prefix": "So", "think": "fake"}


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
        (
            conversation(user("a"), {**assistant("b"), "reply_prefix": "b"}, id="x"),
            r"messages\[1\]: `reply_prefix` must be in the user message",
        ),
        (
            conversation({**user("a", params={"reply_prefix": "b"}), "reply_prefix": "b"}, id="x"),
            r"messages\[0\]: has reply_prefix beside its content and in its params",
        ),
        (conversation(user("a", params={"bos": True}), id="x"), r"messages\[0\].params.bos: token 0 is read before"),
        (conversation(user("a"), id="x", params={"bos": 1}), "bos: must be 'auto', 'on' or 'off', got 1"),
    ],
)
def test_wrong_ones_are_refused_with_their_place(tmp_path: Path, line: dict[str, Any], said: str) -> None:
    with pytest.raises(ScriptError, match=said):
        read(tmp_path, line)
