"""Saved sessions: what belongs to another model, or was altered, is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rwkvbatch.chat.session import Session
from rwkvbatch.chat.storage import Transcript, describe, load_session, restore, save_session
from rwkvbatch.config import CellSettings
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.prefix_cache import Node
from rwkvbatch.errors import InputError, StorageError
from tests.chat.test_session import new_session
from tests.engine.hash_model import HashModel


def talked() -> Session:
    session = new_session()
    session.ask("a")
    session.dialogue.branch("side")
    session.ask("b")
    session.settings = session.settings.replace(temperature=0.25)
    return session


def empty() -> Session:
    session = Session(Engine(HashModel()), CellSettings())
    session.begin()
    return session


def test_a_saved_session_goes_on_as_if_it_had_not_ended(tmp_path: Path) -> None:
    session, other = talked(), empty()
    save_session(session, tmp_path / "s.json")
    restore(other, load_session(tmp_path / "s.json", other.engine.model.spec))
    assert other.dialogue == session.dialogue
    assert other.settings.temperature == 0.25
    assert other.ask("c").ids == session.ask("c").ids


def test_loading_again_and_again_leaves_nothing_of_the_dialogues_before(tmp_path: Path) -> None:
    session = talked()
    save_session(session, tmp_path / "s.json")
    saved = load_session(tmp_path / "s.json", session.engine.model.spec)
    for number in range(100):
        restore(session, saved)
        exchange = session.ask(f"message {number}")
        session.dialogue.undo()
    assert exchange.num_read <= len(exchange.prompt) + 3
    restore(session, saved)
    tree = session.engine._scheduler.tree
    assert sum(node.num_state_pins + node.num_pins for node in _nodes(tree.base(0))) == 0


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children.values():
        yield from _nodes(child)


def test_a_transcript_goes_on_likewise_even_with_its_last_line_cut(tmp_path: Path) -> None:
    session, other = new_session(), empty()
    transcript = Transcript(tmp_path / "t.jsonl")
    transcript.start(session, describe(session))
    transcript.typed("a")
    session.ask("a", on_text=transcript.piece)
    transcript.keep(session)
    transcript.close()
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write('{"event": "exch')
    restore(other, load_session(tmp_path / "t.jsonl", other.engine.model.spec))
    assert other.dialogue == session.dialogue
    assert other.ask("b").ids == session.ask("b").ids


def test_another_model_is_refused(tmp_path: Path) -> None:
    session = talked()
    save_session(session, tmp_path / "s.json")
    with pytest.raises(InputError, match="another model"):
        load_session(tmp_path / "s.json", replace(session.engine.model.spec, weights_sha256="ab" * 32))


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    session = talked()
    path = tmp_path / "s.json"
    save_session(session, path)
    values = json.loads(path.read_text())
    values["dialogue"]["exchanges"][0]["user"] = "something else"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="damaged"):
        load_session(path, session.engine.model.spec)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", b'{"event": "start"}\n', b"[" * 100_000])
def test_what_is_no_session_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"session|format"):
        load_session(path, HashModel().spec)


def test_a_transcript_that_is_damaged_before_its_end_names_the_line(tmp_path: Path) -> None:
    session = talked()
    transcript = Transcript(tmp_path / "t.jsonl")
    transcript.start(session, describe(session))
    transcript.close()
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    lines[1] = lines[1][:20]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match="is damaged") as caught:
        load_session(tmp_path / "t.jsonl", session.engine.model.spec)
    assert caught.value.line == 2


def test_settings_that_changed_are_those_of_the_loaded_transcript(tmp_path: Path) -> None:
    session, other = new_session(), empty()
    transcript = Transcript(tmp_path / "t.jsonl")
    transcript.start(session, describe(session))
    session.settings = session.settings.replace(temperature=0.125)
    transcript.event("settings", **describe(session))
    transcript.close()
    restore(other, load_session(tmp_path / "t.jsonl", other.engine.model.spec))
    assert other.settings.temperature == 0.125


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        save_session(talked(), tmp_path / "nowhere" / "s.json")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="transcript cannot be written"):
        Transcript(tmp_path / "file" / "t.jsonl")
