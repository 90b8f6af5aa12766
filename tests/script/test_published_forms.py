"""Published chat files: keys, roles, arrays and ids that are read, ignored or refused."""

# ruff: noqa: E501 (tables of cases)

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.errors import ScriptError
from rwkvbatch.script.reader import Script, read_scripts
from tests.script.writing import assistant, conversation, read, user


def read_text(tmp_path: Path, text: str, name: str = "data.json") -> Script:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_scripts([str(tmp_path / name)])


def test_unknown_keys_beside_messages_are_ignored_and_counted(tmp_path: Path) -> None:
    lines = [conversation(id=f"c{n}", source="web", prompt_id="p", label=1, prompt="x") for n in range(3)]
    script = read(tmp_path, *lines, conversation(user(weight=1)))
    assert [found.id for found in script.conversations] == ["c0", "c1", "c2", "line-4"]
    assert script.ignored == {"source": 3, "prompt_id": 3, "label": 3, "prompt": 3, "messages[].weight": 1}


def test_the_name_of_a_user_is_ignored_and_that_of_a_tool_is_read(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": "{}"}}
    result = {"role": "function", "name": "clock", "content": "noon"}
    script = read(tmp_path, conversation(user(name="Ada"), call, result, source="web"))
    assert script.ignored == {"source": 1, "messages[].name": 1}


def test_a_role_that_is_no_text_beside_from_is_ignored(tmp_path: Path) -> None:
    message = {"from": "human", "value": "Hi", "role": ["user"]}
    script = read(tmp_path, {"conversations": [message]})
    assert script.conversations[0].turns[0].user == "Hi"


@pytest.mark.parametrize("key", ["message", "mesages", "tag", "param", "expects", "temprature", "max_token"])
def test_misspelt_keys_beside_messages_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=f"unknown key '{key}'"):
        read(tmp_path, {**conversation(source="web"), key: 1})


@pytest.mark.parametrize("key", ["expct", "parms", "contnt"])
def test_misspelt_keys_of_messages_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=rf"messages\[0\]: unknown key '{key}'"):
        read(tmp_path, conversation({**user(), key: 1}, id="x", source="web"))


def test_a_number_is_an_id_beside_other_keys_of_data_sets(tmp_path: Path) -> None:
    assert read(tmp_path, conversation(id=17, source="web")).conversations[0].id == "17"


def test_conversations_may_have_the_keys_role_and_content(tmp_path: Path) -> None:
    script = read(tmp_path, {"id": "a", "conversations": [user(content="Hi"), assistant(content="Ho")]})
    (turn,) = script.conversations[0].turns
    assert (turn.user, turn.reference) == ("Hi", "Ho")


def test_lines_of_lmsys_and_wildchat_are_read(tmp_path: Path) -> None:
    lmsys = {"conversation_id": "a", "model": "m", "conversation": [user(), assistant()], "turn": 1, "language": "en"}
    wild = {"conversation_hash": "b", "conversation": [{**user(), "toxic": False, "country": "x"}], "turn": 1}
    first, second = read(tmp_path, lmsys, wild).conversations
    assert (first.id, second.id) == ("a", "b")
    assert first.turns[0].reference is not None


ROLES: list[tuple[list[dict[str, Any]], str]] = [
    ([assistant(), assistant(), user()], "two assistant messages in a row"),
    ([assistant(), {"role": "system", "content": "x"}, user()], "a system message may only be the first"),
    ([{**assistant(), "tool_calls": [{"name": "f"}]}, user()], "that calls tools needs a user message before it"),
    ([user(), assistant(), assistant()], "two assistant messages in a row"),
    ([user(), {"role": "system", "content": "x"}], "a system message may only be the first"),
    ([user(), {"role": "critic", "content": "x"}], "role: must be one of"),
    ([{"role": "tool", "content": "x"}, user()], "there is none before it"),
    ([user(), {**assistant(), "tool_calls": [{"id": "x"}]}], r"tool_calls\[0\]\.name: must be the function's name"),
    ([user(), {"role": "assistant", "content": None, "audio": {"id": "a"}}], "audio: cannot be replayed"),
    ([user(content=[{"type": "image_url", "image_url": {}}])], "must be a text part, got an object of the type 'image_url'"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "message"), ROLES)
@pytest.mark.parametrize("form", ["messages", "conversations", "conversation", "body"])
def test_messages_that_cannot_be_replayed_are_refused_in_every_form(
    messages: list[dict[str, Any]], message: str, form: str, tmp_path: Path
) -> None:
    line = {"custom_id": "x", "body": {"messages": messages}} if form == "body" else {form: messages, "source": "web"}
    with pytest.raises(ScriptError, match=message):
        read(tmp_path, line)


@pytest.mark.parametrize(
    "line",
    [{"instruction": "a", "input": "", "output": "b"}, {"prompt": "a", "completion": "b"}, {"question": "a"}, {"a": 1}],
)
def test_a_line_of_no_known_form_lists_the_forms(line: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="is of no known form") as caught:
        read(tmp_path, line)
    assert "known forms have `messages`" in str(caught.value.hint)


ASKED, ANSWERED = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize(
    ("line", "reference"),
    [
        ({"instruction": "a", "input": None, "output": "b"}, "b"),
        ({"prompt": "a", "completion": "b"}, "b"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "b"),
        ({"prompt": ASKED, "completion": ANSWERED}, "b"),
        ({"prompt": ASKED, "chosen": ANSWERED, "rejected": ANSWERED}, "b"),
        ({"prompt": ASKED}, None),
        ({"chosen": ASKED + ANSWERED, "rejected": ASKED}, "b"),
        ({"input": {"messages": ASKED}, "preferred_output": ANSWERED, "non_preferred_output": ANSWERED}, "b"),
        ({"prompt": "a", "response": "b"}, None),
        ({"question": "a"}, None),
    ],
)
def test_the_command_of_the_hint_makes_messages(line: dict[str, Any], reference: str | None, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="is of no known form") as caught:
        read(tmp_path, line)
    command = shlex.split(str(caught.value.hint).partition("messages of such lines: ")[2])
    assert command[-3:] == ["FILE", ">", "NEW"]
    made = subprocess.run(command[:-3], input=json.dumps(line).encode(), capture_output=True, check=True).stdout
    (turn,) = read(tmp_path, made).conversations[0].turns
    assert (turn.user, turn.reference) == ("a", reference)


def test_required_temperature_of_a_question_becomes_a_param(tmp_path: Path) -> None:
    script = read(tmp_path, {"question_id": 1, "turns": ["a"], "required_temperature": 0.1})
    assert dict(script.conversations[0].params) == {"temperature": 0.1}


ITEMS = [conversation(user(content="Hi")), conversation(user(content="Ho"), id="x")]


@pytest.mark.parametrize("indent", [None, 2])
def test_the_array_of_a_json_file_is_read(indent: int | None, tmp_path: Path) -> None:
    script = read_text(tmp_path, json.dumps(ITEMS, indent=indent))
    assert [found.id for found in script.conversations] == ["item-1", "x"]
    assert script.conversations == read_text(tmp_path, "\ufeff" + json.dumps(ITEMS, indent=4)).conversations


def test_a_json_file_may_be_one_object_or_lines(tmp_path: Path) -> None:
    assert len(read_text(tmp_path, json.dumps(ITEMS[0], indent=2)).conversations) == 1
    assert len(read_text(tmp_path, "\n".join(map(json.dumps, ITEMS))).conversations) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"messages": []},\n{"messages": 3}]', r"data\.json:2: item 1: has no user message"),
        ('[{"messages": [{"role": "user", "content": "a"}]},\n 3]', r"data\.json:2: item 2: must be a JSON object"),
        (json.dumps(ITEMS[:1])[:-1] + ",\n{]", r"data\.json:2:2: not JSON"),
        ("[", r"data\.json:1:2: not JSON"),
        ("[]", "contains no conversation"),
        ('[{"a": 1} {"b": 1}]', "item 1: is of no known form"),
        (json.dumps(ITEMS) + "x", "not JSON: expected"),
        (json.dumps(ITEMS)[:-1], "the array has no end"),
        (json.dumps(ITEMS)[:-1] + ",]", "not JSON"),
        ("[" * 100_000, "data.json"),
        ('[{"messages": [{"role": "user", "content": "a", "content": "b"}]}]', "item 1: the key 'content' is repeated"),
    ],
)
def test_a_bad_array_is_refused_with_its_line_and_item(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=message):
        read_text(tmp_path, text)


def test_bad_items_can_be_set_aside(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps([ITEMS[0], 3, {"messages": []}, ITEMS[1]]))
    script = read_scripts([str(tmp_path / "d.json")], skip_bad=True)
    assert len(script.conversations) == 2
    assert [line.raw for line in script.skipped] == [b"3", b'{"messages": []}']


@pytest.mark.parametrize("name", ["a\u3000b", "👩\u200d🔬", "a\u00a0b", "क\u094d\u200cष"])
def test_ids_and_tags_may_have_any_printable_character(name: str, tmp_path: Path) -> None:
    (found,) = read(tmp_path, conversation(id=name, tags=[name])).conversations
    assert (found.id, found.tags) == (name, (name,))


@pytest.mark.parametrize("name", ["a\nb", "a\x1bb", "a\u2028b", "a\u202eb", "\u3000a", "a\ue000", "a\x85b", ""])
def test_ids_with_control_characters_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="cannot be an id"):
        read(tmp_path, conversation(id=name))
