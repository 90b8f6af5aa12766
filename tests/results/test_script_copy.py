"""The copy of the script in a run directory: contents, compression, damage."""

from __future__ import annotations

import gzip
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.errors import RunDamagedError
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.script_copy import COMPRESSED_NAME, SCRIPT_NAME, read_script, script_sha256, write_script
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.native import native_record
from rwkvbatch.script.reader import read_scripts
from rwkvbatch.script.records import Conversation, Turn

DATASETS = Path(__file__).parent.parent.parent / "datasets"


def manifest_of(conversations: tuple[Conversation, ...]) -> dict[str, Any]:
    return {"identity": {"script": {"sha256": script_sha256(conversations)}}}


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_conversations_of_every_data_set_are_read_back(path: Path, tmp_path: Path) -> None:
    found = read_scripts([str(path)]).conversations
    write_script(Folder(tmp_path), found)
    copy = read_script(tmp_path, manifest_of(found))
    assert copy == found
    assert [each.sha256 for each in copy or ()] == [each.sha256 for each in found]


def test_a_script_of_every_form_is_read_back_equal(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"defaults": {"tags": ["t"], "params": {"seed": 3}, "expect": [{"contains": "a", "weight": 2}]}},
        {
            "messages": [
                {"role": "system", "content": "Üb \u2028 🌲"},
                {"role": "user", "content": "hi", "params": {"stop": ["x"], "banned_token_ids": [3]}},
                {"role": "assistant", "content": "ho"},
                {"role": "user", "content": "", "expect": {"all": [{"json": {}}, {"not_contains": "b"}]}},
                {
                    "role": "user",
                    "content": "Which?",
                    "choices": {"A": "x", "B": " y "},
                    "expect": {"choice": "A", "normalize": "byte"},
                    "probes": [
                        {"content": "p", "reference": "q", "reply_prefix": "r", "since": 1, "choices": ["u", " v"]},
                        {"content": "p2", "since": "system", "choices": ["u", "v"], "generate": True},
                    ],
                },
            ],
            "probes": [{"content": "standing", "expect": {"contains": "z"}}],
        },
        {"messages": [{"role": "assistant", "content": "Welcome. "}, {"role": "user", "content": "hi"}]},
        {"text": "A plain text.", "tags": ["plain"]},
        {"id": "x", "prompt": "A prompt", "continuation": " and more"},
        {"id": "y", "prompt": "A prompt", "choices": ["a", "b"], "choice_prefix": "  "},
    ]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_scripts([str(path)]).conversations
    write_script(Folder(tmp_path), found)
    assert read_script(tmp_path, manifest_of(found)) == found
    from_copy = read_scripts([str(tmp_path / SCRIPT_NAME)]).conversations
    assert from_copy == found
    assert [each.sha256 for each in from_copy] == [each.sha256 for each in found]


def test_every_field_of_a_conversation_is_written() -> None:
    """A field added later must be in `native_record`, or the copy would lack it."""
    assert {item.name for item in fields(Turn)} == {
        "user", "reference", "checks", "params", "choices", "choice_prefix", "continuation", "generate", "plain",
        "probe",
    }  # fmt: skip
    assert {item.name for item in fields(Conversation)} == {
        "id", "system", "turns", "tags", "params", "source", "tools", "greeting"
    }  # fmt: skip
    turn = Turn("u", "r", (), {"top_k": 3})
    whole = Conversation("i", "s", (turn,), ("t",), {"seed": 1}, SourceLine("", 1), ({"name": "f"},))
    assert native_record(whole) == {
        "id": "i",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u", "params": {"top_k": 3}},
            {"role": "assistant", "content": "r"},
        ],
        "tags": ["t"],
        "params": {"seed": 1},
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }


def test_a_large_script_is_compressed_and_replaces_the_plain_copy(tmp_path: Path) -> None:
    small = tuple(Conversation(f"c{n}", None, (Turn("hi"),), (), {}, SourceLine("", 1)) for n in range(3))
    large = tuple(replace(each, system="word " * 200_000) for each in small)
    for written, name, removed_name in ((small, SCRIPT_NAME, COMPRESSED_NAME), (large, COMPRESSED_NAME, SCRIPT_NAME)):
        write_script(Folder(tmp_path), written)
        assert (tmp_path / name).exists()
        assert not (tmp_path / removed_name).exists()
        assert read_script(tmp_path, manifest_of(written)) == written
    first = (tmp_path / COMPRESSED_NAME).read_bytes()
    write_script(Folder(tmp_path), large)
    assert (tmp_path / COMPRESSED_NAME).read_bytes() == first
    assert len(first) < 100_000 < len(gzip.decompress(first))


@pytest.mark.parametrize("damage", [b"", b"{", b'{"id":"c0","messages":[]}\n', b"\xff\n"])
def test_a_damaged_or_changed_copy_is_refused(tmp_path: Path, damage: bytes) -> None:
    found = (Conversation("c0", None, (Turn("hi"),), (), {}, SourceLine("", 1)),)
    write_script(Folder(tmp_path), found)
    (tmp_path / SCRIPT_NAME).write_bytes(damage)
    with pytest.raises(RunDamagedError, match=r"script\.jsonl.*"):
        read_script(tmp_path, manifest_of(found))


@pytest.mark.parametrize("cut", [5, 300, -5])
def test_a_truncated_compressed_copy_is_refused(tmp_path: Path, cut: int) -> None:
    found = (Conversation("c0", "word " * 300_000, (Turn("hi"),), (), {}, SourceLine("", 1)),)
    write_script(Folder(tmp_path), found)
    path = tmp_path / COMPRESSED_NAME
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(Exception, match=r"script\.jsonl\.gz") as caught:
        read_script(tmp_path, manifest_of(found))
    assert isinstance(caught.value, RunDamagedError | OSError.__base__)


def test_a_directory_without_a_copy_gives_none(tmp_path: Path) -> None:
    assert read_script(tmp_path, {"identity": {}}) is None
