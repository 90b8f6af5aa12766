"""Reading script files: conversations, ids, defaults, standard input, documents."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.errors import ScriptError, UsageError
from rwkvbatch.results.script_copy import script_sha256
from rwkvbatch.script.documents import LeftOutWarning, read_documents
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.reader import read_scripts
from tests.script.writing import assistant, conversation, read, user, write


def test_a_conversation_has_its_messages_params_and_source(tmp_path: Path) -> None:
    line = {
        "id": "names-1",
        "tags": ["memory", "memory"],
        "messages": [
            {"role": "system", "content": "Be brief."},
            user("My name is Ada."),
            assistant("Hi Ada!"),
            user("What is my name?", expect=[{"contains": "Ada"}]),
        ],
        "params": {"temperature": 0.2, "stop": ["!"], "seed": 7},
    }
    (found,) = read(tmp_path, b"", line).conversations
    assert (found.id, found.system, found.tags) == ("names-1", "Be brief.", ("memory",))
    assert [(turn.user, turn.reference) for turn in found.turns] == [
        ("My name is Ada.", "Hi Ada!"),
        ("What is my name?", None),
    ]
    assert [check.kind for check in found.turns[1].checks] == ["contains"]
    assert found.params == {"temperature": 0.2, "stop": ("!",), "seed": 7}
    assert found.source == SourceLine(str(tmp_path / "demo.jsonl"), 2)


def test_two_user_messages_in_a_row_are_two_turns(tmp_path: Path) -> None:
    (found,) = read(tmp_path, conversation(user("a"), user("b"), assistant("c"))).conversations
    assert [(turn.user, turn.reference) for turn in found.turns] == [("a", None), ("b", "c")]


def test_lines_without_an_id_are_named_by_their_line(tmp_path: Path) -> None:
    script = read(tmp_path, conversation(), b"", b"  ", conversation(id="x"), conversation())
    assert [found.id for found in script.conversations] == ["line-1", "x", "line-5"]


def test_with_several_files_lines_are_named_by_file_and_line(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, conversation()) for name in ("a.jsonl", "b.jsonl"))
    assert [found.id for found in read_scripts([first, second]).conversations] == ["a.jsonl:1", "b.jsonl:1"]


def test_ids_must_differ_between_all_files(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, conversation(id="x")) for name in ("a.jsonl", "b.jsonl"))
    with pytest.raises(ScriptError, match=r"b\.jsonl:1: the id 'x' was already used at .*a\.jsonl:1"):
        read_scripts([first, second])


@pytest.mark.parametrize("conversation_id", ["a/b", "../../etc", "..", "ключ", "a b", "x" * 200, "=1+1"])
def test_any_printable_id_is_accepted(conversation_id: str, tmp_path: Path) -> None:
    assert read(tmp_path, conversation(id=conversation_id)).conversations[0].id == conversation_id


@pytest.mark.parametrize(
    "conversation_id", ["", "x" * 201, "a\nb", "a\x1b[0m", "a\x00", " a", "a ", "\u202ea", "a\u2028b"]
)
def test_ids_that_are_empty_long_or_not_printable_are_refused(conversation_id: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"demo\.jsonl:1: id: cannot be an id") as caught:
        read(tmp_path, conversation(id=conversation_id))
    assert "1 to 200 printable characters" in str(caught.value.hint)


def test_standard_input_is_read_and_named_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps(conversation()).encode() + b"\n{}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(ScriptError, match="<stdin>:2: messages: is missing"):
        read_scripts(["-"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content[:-3])))
    assert read_scripts(["-"]).conversations[0].id == "line-1"


def test_standard_input_twice_and_no_script_are_refused() -> None:
    with pytest.raises(UsageError, match="only once"):
        read_scripts(["-", "-"])
    with pytest.raises(UsageError, match="no script"):
        read_scripts([])


def test_a_file_that_is_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.jsonl", conversation())
    for paths in (["a.jsonl", "a.jsonl"], [path, "a.jsonl"]):
        with pytest.raises(UsageError, match=r"a\.jsonl is given twice"):
            read_scripts(paths)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("Once upon a time.")
    for paths in (["texts/a.txt", "texts/a.txt"], ["texts", "texts/a.txt"]):
        with pytest.raises(UsageError, match=r"texts/a\.txt is given twice"):
            read_documents(paths)


def test_a_byte_order_mark_and_carriage_returns_at_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "demo.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(conversation(id=i)).encode() for i in "ab"))
    assert [found.id for found in read_scripts([str(path)]).conversations] == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n", b'{"defaults": {}}\n'])
def test_a_file_without_a_conversation_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "demo.jsonl"
    path.write_bytes(content)
    with pytest.raises(ScriptError, match=r"demo\.jsonl: contains no conversation"):
        read_scripts([str(path)])


def test_a_file_that_cannot_be_read_to_its_end_is_refused() -> None:
    # Reading a process's memory from address 0 fails after opening succeeded, as a broken disk would.
    with pytest.raises(ScriptError, match="/proc/self/mem:1: cannot be read"):
        read_scripts(["/proc/self/mem"])


@pytest.mark.parametrize("name", ["none.jsonl", ".", "a\x00b"])
def test_a_file_that_cannot_be_opened_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match="cannot be read"):
        read_scripts([str(tmp_path / name)])


def test_defaults_apply_to_every_conversation_of_their_file_only(tmp_path: Path) -> None:
    defaults = {"tags": ["all"], "params": {"temperature": 0, "top_p": 1}, "expect": {"max_tokens": 9}}
    first = write(
        tmp_path / "a.jsonl",
        {"defaults": defaults},
        conversation(user("a", expect={"equals": "x"}), user("b"), tags=["own"], params={"top_p": 0.5}),
    )
    second = write(tmp_path / "b.jsonl", conversation())
    with_defaults, without = read_scripts([first, second]).conversations
    assert (with_defaults.tags, with_defaults.params) == (("all", "own"), {"temperature": 0, "top_p": 0.5})
    assert [[check.kind for check in turn.checks] for turn in with_defaults.turns] == [
        ["equals", "max_tokens"],
        ["max_tokens"],
    ]
    assert (without.tags, without.params, without.turns[0].checks) == ((), {}, ())


def test_checks_of_a_conversation_apply_to_every_turn(tmp_path: Path) -> None:
    (found,) = read(tmp_path, conversation(user("a"), user("b"), expect={"not_contains": "!"})).conversations
    assert [[check.kind for check in turn.checks] for turn in found.turns] == [["not_contains"]] * 2


def test_the_hash_of_a_script_depends_on_content_and_order_only(tmp_path: Path) -> None:
    lines = [conversation(user("a"), id="a"), conversation(user("b"), id="b")]
    plain = hash_of(tmp_path, *lines)
    assert hash_of(tmp_path, b"", *(dict(reversed(line.items())) for line in lines)) == plain
    assert hash_of(tmp_path, *reversed(lines)) != plain
    assert hash_of(tmp_path, conversation(user("A"), id="a"), lines[1]) != plain


def hash_of(directory: Path, *lines: Any) -> str:
    return script_sha256(read(directory, *lines).conversations)


def test_a_json_file_with_a_comment_or_too_large_an_array_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "demo.json", b"# a comment", conversation())
    with pytest.raises(ScriptError, match=r"demo\.json:1:1: not JSON"):
        read_scripts([path])
    monkeypatch.setattr("rwkvbatch.script.raw_lines.MAX_ARRAY_BYTES", 100)
    path = write(tmp_path / "demo.json", [conversation(id=str(number)) for number in range(9)])
    with pytest.raises(ScriptError, match=r"is larger than 100 bytes, the most for a \.json file") as caught:
        read_scripts([path])
    assert "jq -c '.[]'" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("paths", "message"),
    [([], "no file is given"), (["a.txt", ""], "the name of a file is empty"), (["-", "-"], "can be read only once")],
)
def test_invalid_names_of_documents_are_refused(paths: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_documents(paths)


def test_further_keys_of_a_document_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", {"text": "Once upon a time.", "body": "x", "meta": {"lang": "en"}})
    (found,) = read_documents([path]).conversations
    assert found.turns[0].reference == "Once upon a time."


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.jsonl"])
def test_a_compressed_script_is_read_like_the_plain_one(name: str, tmp_path: Path) -> None:
    lines = [json.dumps(conversation(id=name)) for name in "ab"]
    content = f"[{','.join(lines)}]" if name == "a.json.gz" else "\n".join(lines)
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    assert [found.id for found in read_scripts([str(tmp_path / name)]).conversations] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "texts"), [("a.jsonl.gz", ["b", "c"]), ("a.JSONL.GZ", ["b", "c"]), ("a.txt.gz", [""])]
)
def test_the_form_of_a_compressed_document_is_that_of_its_name(name: str, texts: list[str], tmp_path: Path) -> None:
    content = "".join(f'{{"text": "{text}"}}\n' for text in "bc")
    (tmp_path / name).write_bytes(gzip.compress(content.encode()))
    found = read_documents([str(tmp_path / name)]).conversations
    assert [turn.reference for document in found for turn in document.turns] == [text or content for text in texts]


def test_compressed_texts_of_a_folder_are_documents_and_other_compressed_files_are_left_out(tmp_path: Path) -> None:
    long = "é" * 40_000  # longer than what is looked at, which ends within a character
    for name, data in {"a.txt.gz": b"One.", "b.gz": long.encode(), "c.tar.gz": b"\0tar", "d.gz": b"\xff"}.items():
        (tmp_path / name).write_bytes(gzip.compress(data))
    (tmp_path / "e.txt").write_text(f"x{long}")
    with pytest.warns(LeftOutWarning, match=r"2 files of folders left out.*c\.tar\.gz.*d\.gz"):
        found = read_documents([str(tmp_path)]).conversations
    assert [turn.reference for document in found for turn in document.turns] == ["One.", long, f"x{long}"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:10] + b"\xff" + data[11:]])
def test_a_damaged_compressed_script_is_refused(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(damage(gzip.compress(json.dumps(conversation(id="a" * 99)).encode())))
    with pytest.raises(ScriptError, match=r"cannot be read: (Compressed|Error -3)"):
        read_scripts([str(tmp_path / name)])
