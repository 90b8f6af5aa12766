"""No command replaces a file of another kind, a file without an option that permits it, or a run's files."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import time
from pathlib import Path

import pytest
import torch

from rwkvbatch.chat.pipe import PlainView
from rwkvbatch.chat.storage import Transcript
from rwkvbatch.cli.report_output import ReportOutput
from rwkvbatch.engine.engine import Engine
from rwkvbatch.errors import TargetExistsError, UsageError
from rwkvbatch.files import ABANDONED_S, OS_FILES, replace_file, replacing
from rwkvbatch.model.states import save_state
from rwkvbatch.model.weights.safetensors import CHECKPOINT, STATE, check_tensor_target, save_tensors
from rwkvbatch.replay import runner
from rwkvbatch.replay.logs import logging_to
from rwkvbatch.replay.planning import row_index
from rwkvbatch.results import answers, directory, lock, manifest, recovery, script_copy, status, store, summary
from rwkvbatch.targets import RUN_FILE_NAMES, FileKind, check_target, file_head
from tests.chat.scripted_model import ScriptedModel
from tests.chat.sessions import PipeChat, new_chat

NOTE = FileKind("a note", lambda path: file_head(path).startswith("note"))
FOREIGN = {
    "text": b"dear diary",
    "rows": b'{"v": 1, "conversation": "a", "turn": 0}\n',
    "json": b'{"a": 1}',
    "script": b'{"messages": [{"role": "user", "content": "Hi"}]}\n',
    "binary": b"\x80\x02weights",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    for name in ("manifest.json", "results.jsonl"):
        (directory / name).write_bytes(b"{}")
    return directory


def test_a_new_file_and_an_empty_one_may_be_written(tmp_path: Path) -> None:
    check_target(tmp_path / "new", NOTE)
    (tmp_path / "empty").touch()
    check_target(tmp_path / "empty", NOTE)


def test_a_file_of_the_same_kind_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "n").write_text("note")
    with pytest.raises(TargetExistsError, match=r"/x .*n: already exists \(a note\)"):
        check_target(tmp_path / "n", NOTE, option="/x")
    check_target(tmp_path / "n", NOTE, replace=True)
    check_target(tmp_path / "n", NOTE, append=True)


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("how", [{"replace": True}, {"append": True}, {}])
def test_a_file_of_another_kind_is_never_touched(tmp_path: Path, content: bytes, how: dict[str, bool]) -> None:
    (tmp_path / "n").write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "n")
    for name in ("n", "link"):
        with pytest.raises(UsageError, match="is not a note"):
            check_target(tmp_path / name, NOTE, **how)


def test_every_name_that_a_run_writes_is_protected() -> None:
    modules = [lock, recovery, answers, summary, status, script_copy, store, directory, runner, row_index]
    names = {value for module in modules for name, value in vars(module).items() if name.endswith("_NAME")}
    assert names - {manifest.DAMAGED_MANIFEST_NAME, answers.MAX_NAME} <= RUN_FILE_NAMES


@pytest.mark.parametrize("name", sorted(RUN_FILE_NAMES))
def test_the_files_of_a_run_are_never_touched_whether_they_exist_or_not(run: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run / name)
    for path in (run / name, tmp_path / "link"):
        with pytest.raises(UsageError, match=f"is a file of the run in {run}"):
            check_target(path, FileKind("anything", lambda _: True), replace=True)
    check_target(run / "notes", NOTE)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        check_target(tmp_path, NOTE, replace=True)


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    old = time.time() - ABANDONED_S - 9
    names = {name: tmp_path / f".rwkvbatch-{name}.tmp" for name in ("left", "new", "held", "link")}
    (tmp_path / "precious").write_text("kept")
    names["link"].symlink_to("precious")
    for name in ("left", "new", "held"):
        names[name].write_text(name)
    for name in ("left", "held"):
        os.utime(names[name], (old, old))
    os.utime(names["link"], (old, old), follow_symlinks=False)
    with names["held"].open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        save_tensors(tmp_path / "out.safetensors", {"a": torch.ones(1)})
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"precious", "out.safetensors", *(names[name].name for name in ("new", "held", "link"))}


def test_a_temporary_file_is_held_while_it_is_written(tmp_path: Path) -> None:
    with replacing(tmp_path / "out") as temporary:
        os.utime(temporary, (0, 0))
        replace_file(OS_FILES, tmp_path / "other", [b"x"], unique=True)
        assert temporary.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "other"}


def _chat() -> PipeChat:
    chat = new_chat()
    chat.send("hello")
    return chat


@pytest.mark.parametrize("command", ["/save", "/save!", "/export", "/export!", "/state save", "/state save!"])
@pytest.mark.parametrize("kind", ["text", "rows", "json", "binary"])
def test_chat_commands_leave_foreign_files_alone(command: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "precious.safetensors"
    path.write_bytes(FOREIGN[kind])
    assert "is not" in _chat().send(f"{command} {path}")
    assert path.read_bytes() == FOREIGN[kind]


@pytest.mark.parametrize("command", ["/save", "/export", "/state save"])
def test_chat_commands_replace_their_own_files_after_an_exclamation_mark(command: str, tmp_path: Path) -> None:
    path, chat = tmp_path / "own.safetensors", _chat()
    assert chat.send(f"{command} {path}")
    assert chat.success
    before = path.read_bytes()
    chat.send("more")
    assert f"{command}! {path} replaces it" in chat.send(f"{command} {path}")
    assert not chat.success
    assert path.read_bytes() == before
    for written in (f"{command}! {path}", f"{command} ! {path}"):
        assert chat.send(written)
        assert chat.success
    assert path.read_bytes() != before


@pytest.mark.parametrize("answer", [True, False])
def test_a_person_is_asked(answer: bool, tmp_path: Path) -> None:
    asked: list[str] = []

    class Asking(PlainView):
        def confirm(self, question: str) -> bool:
            asked.append(question)
            return answer

    chat = _chat()
    chat.chat.view = Asking(chat.out, chat.err)
    chat.send(f"/save {tmp_path / 's'}")
    chat.send(f"/save {tmp_path / 's'}")
    assert chat.success == answer
    assert asked == [f"/save {tmp_path / 's'}: already exists (a saved session). Replace it?"]


def test_a_command_that_writes_nothing_takes_no_exclamation_mark() -> None:
    assert "/system takes no `!`" in _chat().send("/system! be brief")


def test_an_export_leaves_a_foreign_prelude_and_its_script_alone(tmp_path: Path) -> None:
    chat = new_chat()
    chat.chat.session.begin(prelude="User: my own\n\nAssistant: Yes\n\n")
    chat.send("hello")
    (tmp_path / "e.jsonl.prelude.txt").write_bytes(b"\x00binary")
    assert "is not the initial exchange of an export" in chat.send(f"/export! {tmp_path / 'e.jsonl'}")
    assert not (tmp_path / "e.jsonl").exists()


def test_a_transcript_is_appended_to_transcripts_only(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("dear diary\n")
    with pytest.raises(UsageError, match=r"--transcript .* is not a transcript"):
        Transcript(tmp_path / "t")
    for _ in range(2):
        new_chat(tmp_path / "own.jsonl").chat.transcript.close()


def test_a_log_is_appended_to_logs_only(tmp_path: Path) -> None:
    import logging

    (tmp_path / "t").write_text("dear diary\n")
    with pytest.raises(UsageError, match=r"--log-file .* is not a log"), logging_to(tmp_path / "t"):
        pass
    for _ in range(2):
        with logging_to(tmp_path / "own"):
            logging.getLogger("rwkvbatch.test").info("hello")
    assert (tmp_path / "own").read_text().count("\n") == 2


def test_a_state_does_not_replace_weights_nor_weights_a_state(tmp_path: Path) -> None:
    model = ScriptedModel()
    weights, state = tmp_path / "w.safetensors", tmp_path / "s.safetensors"
    save_tensors(weights, {"a": torch.ones(2)})
    save_state(state, Engine(model).next_logits([1]).state, model.spec, tokens=[list(range(5000))])
    for path, kind in ((weights, STATE), (state, CHECKPOINT)):
        with pytest.raises(UsageError, match=f"is not {kind.name}"):
            check_tensor_target(path, kind=kind, replace=True)
    check_tensor_target(weights, replace=True)
    check_tensor_target(state, kind=STATE, replace=True)


REPORTS = {
    "md": "**score: better**\n",
    "csv": "baseline,variant,group\n",
    "json": '{\n "runs": [',
    "html": "<!doctype html>\n<html>",
    "junit": '<?xml version="1.0" encoding="utf-8"?>\n<testsuites name="rwkvbatch compare">',
    "table": "score ↑ against a (0.450)\n40 conversations",
}


@pytest.mark.parametrize("format_name", REPORTS)
def test_a_report_replaces_reports_of_its_format_on_request(format_name: str, tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text(REPORTS[format_name])
    output = ReportOutput(format_name, path, replace=True, junit_cases=False, num_changes=0)
    with pytest.raises(TargetExistsError, match="--out"):
        dataclasses.replace(output, replace=False).check_file()
    output.check_file()
    for content in FOREIGN.values():
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"is not a report in the format {format_name}"):
            output.check_file()
