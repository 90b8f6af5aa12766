"""Saved sessions and transcripts: round trips, damaged files, other models, permissions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.chat.session import Session
from rwkvbatch.chat.storage import Transcript, Unfinished, load_session, save_session
from rwkvbatch.config import CellSettings
from rwkvbatch.engine.engine import Engine
from rwkvbatch.engine.prefix_cache import Node
from rwkvbatch.errors import InputError, StorageError
from rwkvbatch.hashes import json_sha256
from tests.chat.sessions import SAMPLED, NamedModel, new_session
from tests.engine.hash_model import HashModel


def session_with_two_branches() -> Session:
    session = new_session()
    session.ask("a")
    session.tree.branch("side")
    session.ask("b")
    session.settings = session.settings.replace(temperature=0.25)
    return session


NESTED = b'{"event": "start"}\n' + b"[" * 100_000 + b"\n{}\n"


def empty_session() -> Session:
    session = Session(Engine(HashModel()), CellSettings())
    session.begin()
    return session


def test_a_saved_session_continues_with_the_same_replies(tmp_path: Path) -> None:
    session, loaded = session_with_two_branches(), empty_session()
    save_session(session, tmp_path / "s.json")
    load_session(loaded, tmp_path / "s.json")
    assert loaded.tree == session.tree
    assert loaded.settings.temperature == 0.25
    assert loaded.ask("c").ids == session.ask("c").ids


def test_loading_releases_the_pins_of_the_previous_tree(tmp_path: Path) -> None:
    session = session_with_two_branches()
    save_session(session, tmp_path / "s.json")
    for number in range(20):
        load_session(session, tmp_path / "s.json")
        exchange = session.ask(f"message {number}")
        session.tree.undo()
    assert exchange.num_read <= len(exchange.prompt) + 3
    load_session(session, tmp_path / "s.json")
    tree = session.engine._scheduler.tree
    assert sum(node.num_state_pins + node.num_pins for node in _nodes(tree.base(0))) == 0


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children.values():
        yield from _nodes(child)


def test_a_transcript_with_an_incomplete_last_line_continues_with_the_same_replies(tmp_path: Path) -> None:
    session, loaded = new_session(), empty_session()
    transcript = Transcript(tmp_path / "t.jsonl")
    transcript.start(session)
    transcript.typed("a")
    session.ask("a", on_text=transcript.piece)
    transcript.record(session)
    transcript.close()
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write('{"event": "exch')
    load_session(loaded, tmp_path / "t.jsonl")
    assert loaded.tree == session.tree
    assert loaded.ask("b").ids == session.ask("b").ids


@pytest.mark.parametrize(
    ("events", "unfinished"),
    [
        ([{"event": "typed", "text": "b"}], Unfinished("b", 0)),
        ([{"event": "typed", "text": "b"}, *[{"event": "piece", "text": "xyz"}] * 2], Unfinished("b", 6)),
        ([{"event": "typed", "text": "//b"}], Unfinished("//b", 0)),
        ([{"event": "typed", "text": "b"}, {"event": "typed", "text": "/quit"}], None),
        ([{"event": "typed", "text": "b"}, {"event": "start"}], None),
    ],
)
def test_loading_a_transcript_returns_its_unanswered_message(
    events: list[dict[str, str]], unfinished: Unfinished | None, tmp_path: Path
) -> None:
    session, path = new_session(), tmp_path / "t.jsonl"
    transcript = Transcript(path)
    transcript.start(session)
    transcript.typed("a")
    session.ask("a", on_text=transcript.piece)
    transcript.record(session)
    transcript.close()
    first = path.read_text().splitlines()
    lines = [
        *first,
        *(line for event in events for line in (first if event["event"] == "start" else [json.dumps(event)])),
    ]
    path.write_text("\n".join(lines) + "\n")
    assert load_session(empty_session(), path) == unfinished


def _record(transcript: Transcript, session: Session, typed: str) -> None:
    """Execute a message or a command, and record it as the program does."""
    transcript.typed(typed)
    if typed.startswith("/system "):
        session.begin_again(typed.removeprefix("/system "))
    elif typed.startswith("/a"):
        session.again(2)
    elif typed == "/retry":
        session.retry()
    elif typed == "/undo":
        session.tree.undo()
    else:
        session.ask(typed)
    transcript.record(session)


@pytest.mark.parametrize(
    "lines",
    [
        ["a"],
        ["a", "b"],
        ["a", "b", "/retry"],
        ["a", "/undo", "b"],
        ["a", "/again 2"],
        ["a", "/a", "/retry"],
        ["a", "/agai", "b"],
        ["a", "/again\n"],
        ["a", "/system be brief"],
        ["a", "/system be brief", "b"],
    ],
)
def test_a_reply_that_was_written_before_a_crash_is_on_its_branch(lines: list[str], tmp_path: Path) -> None:
    """The program ends between the line of a reply, or of a system message, and the line of the branches."""
    session, path = new_session(), tmp_path / "t.jsonl"
    transcript = Transcript(path)
    transcript.start(session)
    for line in lines:
        _record(transcript, session, line)
    transcript.close()
    written = path.read_bytes().splitlines(keepends=True)
    if b'"event": "branches"' in written[-1]:
        written.pop()
    path.write_bytes(b"".join(written))
    loaded = empty_session()
    assert load_session(loaded, path) is None
    assert loaded.tree == session.tree
    assert loaded.ask("c").ids == session.ask("c").ids
    assert loaded.tree.branches == session.tree.branches


def test_a_transcript_that_was_cut_off_is_appended_to(tmp_path: Path) -> None:
    session, loaded, path = new_session(), empty_session(), tmp_path / "t.jsonl"
    for _ in range(2):
        transcript = Transcript(path)
        transcript.start(session)
        session.ask("a")
        transcript.record(session)
        transcript.close()
        with path.open("a") as file:
            file.write('{"event": "typed", "te')
    load_session(loaded, path)
    assert loaded.tree == session.tree


@pytest.mark.parametrize("within_lines", [False, True])
def test_a_transcript_whose_rewriting_was_cut_off_loads_the_earlier_session(within_lines: bool, tmp_path: Path) -> None:
    session, path = session_with_two_branches(), tmp_path / "t.jsonl"
    transcript = Transcript(path)
    transcript.start(session)
    transcript.typed("c")
    transcript.close()
    earlier = path.read_bytes()
    transcript = Transcript(path)
    transcript.start(session)
    transcript.close()
    rewritten = path.read_bytes()[len(earlier) :].splitlines(keepends=True)
    assert len(rewritten) == 5  # the start, an opening, two exchanges and the branches
    for number in range(len(rewritten)):
        for cut in (5, 30, -2) if within_lines else (0,):
            rest = b"".join([*rewritten[:number], rewritten[number][:cut]])
            path.write_bytes(earlier + rest)
            loaded = empty_session()
            assert load_session(loaded, path) == Unfinished("c", 0)
            assert loaded.tree == session.tree
            for _ in range(2):  # it is continued in the same file, and cut off at the same place again
                transcript = Transcript(path)
                transcript.close()
                with path.open("ab") as file:
                    file.write(rest)
            loaded = empty_session()
            assert load_session(loaded, path) == Unfinished("c", 0)
            assert loaded.tree == session.tree


def test_another_model_is_refused(tmp_path: Path) -> None:
    session = session_with_two_branches()
    save_session(session, tmp_path / "s.json")
    with pytest.raises(InputError, match="another model"):
        load_session(Session(Engine(NamedModel()), SAMPLED), tmp_path / "s.json")


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    session = session_with_two_branches()
    path = tmp_path / "s.json"
    save_session(session, path)
    values = json.loads(path.read_text())
    values["dialogue"]["exchanges"][0]["user"] = "something else"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="damaged"):
        load_session(session, path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", b'{"event": "start"}\n', b"[" * 100_000, NESTED])
def test_a_file_that_is_not_a_session_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"session|format|transcript"):
        load_session(empty_session(), path)


def test_a_session_of_a_development_version_is_refused_with_its_format(tmp_path: Path) -> None:
    session, path = session_with_two_branches(), tmp_path / "s.json"
    save_session(session, path)
    values = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}
    values["format"] = 1
    for exchange in values["dialogue"]["exchanges"]:
        exchange["finish"] = exchange.pop("finish_reason")
    values["sha256"] = json_sha256(values)
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="expected a session of format 2, found 1") as caught:
        load_session(empty_session(), path)
    assert "version of rwkvbatch that wrote it" in (caught.value.hint or "")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_transcript_that_is_a_special_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "special")
    with pytest.raises(
        StorageError, match=r"special: the transcript cannot be written: it is a .*, not a regular file"
    ):
        Transcript(tmp_path / "special")


def test_damage_in_a_transcript_names_the_line(tmp_path: Path) -> None:
    session = session_with_two_branches()
    transcript = Transcript(tmp_path / "t.jsonl")
    transcript.start(session)
    transcript.close()
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    lines[1] = lines[1][:20]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match="damaged") as caught:
        load_session(session, tmp_path / "t.jsonl")
    assert caught.value.line == 2


def test_changed_settings_are_restored_from_the_transcript(tmp_path: Path) -> None:
    session, loaded = new_session(), empty_session()
    transcript = Transcript(tmp_path / "t.jsonl")
    transcript.start(session)
    session.settings = session.settings.replace(temperature=0.125)
    transcript.settings(session)
    transcript.close()
    load_session(loaded, tmp_path / "t.jsonl")
    assert loaded.settings.temperature == 0.125


def test_unwritable_directories_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        save_session(session_with_two_branches(), tmp_path / "nowhere" / "s.json")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="transcript cannot be written"):
        Transcript(tmp_path / "file" / "t.jsonl")


def test_a_transcript_cut_off_inside_a_character_loads_up_to_there(tmp_path: Path) -> None:
    session, path = new_session(), tmp_path / "t.jsonl"
    transcript = Transcript(path)
    transcript.start(session)
    session.ask("a")
    transcript.record(session)
    transcript.close()
    with path.open("ab") as file:
        file.write('{"event": "typed", "text": "größe'.encode()[:-3])
    loaded = empty_session()
    load_session(loaded, path)
    assert loaded.tree == session.tree


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tree: tree["exchanges"][0].update(ids=[10**9]), "token ids must be integers in 0 to"),
        (lambda tree: tree["openings"][0].update(tokens=[-1]), r"openings\.0\.tokens\.0 must be at least 0, got -1"),
        (lambda tree: tree["exchanges"][0].update(reply=3), "reply must be a string, got 3"),
        (lambda tree: tree["exchanges"][0].update(seed="x"), "seed must be an integer"),
        (lambda tree: tree["exchanges"][0].update(opening=1.5), "opening must be an integer"),
        (lambda tree: tree["exchanges"][1].update(parent=9), "out of order"),
        (lambda tree: tree["exchanges"][0].update(stopped_by=3), r"exchanges\.0\.stopped_by must be a string, got 3"),
        (lambda tree: tree["openings"][0].update(number=1), "opening 0 has the number 1"),
        (lambda tree: tree["branches"]["main"].update(opening=9), "an opening must be in 0 to 0, got 9"),
    ],
)
def test_a_session_with_invalid_values_and_a_correct_checksum_is_refused(
    change: Callable[[Any], None], problem: str, tmp_path: Path
) -> None:
    save_session(session_with_two_branches(), tmp_path / "s.json")
    values = json.loads((tmp_path / "s.json").read_text())
    del values["sha256"]
    change(values["dialogue"])
    values["sha256"] = json_sha256(values)
    (tmp_path / "s.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=problem):
        load_session(empty_session(), tmp_path / "s.json")


def test_directories_of_transcripts_are_private_with_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Transcript(tmp_path / "state" / "chats" / "t.jsonl").close()
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "state", tmp_path / "state" / "chats")]
    assert modes == [0o700, 0o700]
    assert (tmp_path / "state" / "chats" / "t.jsonl").stat().st_mode & 0o777 == 0o600
