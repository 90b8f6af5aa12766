"""The log: fields of a line, levels, file permissions, and failing log files."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

import rwkvbatch
from rwkvbatch.errors import UsageError
from rwkvbatch.replay.logs import logging_to

log = logging.getLogger("rwkvbatch.test")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_one_json_object_with_the_record_s_extra_fields(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logging_to(path, quiet=True):
        log.info("loaded %s", "it\nnow", extra={"seconds": 1.5, "path": Path("x")})
        log.debug("below the level")
    (line,) = lines(path)
    assert line["message"] == "loaded it\nnow"
    assert (line["level"], line["logger"]) == ("info", "rwkvbatch.test")
    assert (line["seconds"], line["path"]) == (1.5, "x")
    assert str(line["time"])[-1] == "Z"


def test_a_traceback_is_written_to_the_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(tmp_path / "log"):
        try:
            raise ValueError("lost \x1b[31m")
        except ValueError:
            log.exception("a row failed")
    assert "ValueError: lost" in str(lines(tmp_path / "log")[0]["traceback"])
    assert "\x1b" not in (tmp_path / "log").read_text()
    assert capsys.readouterr().err.splitlines()[0] == "rwkvbatch: error: a row failed"


@pytest.mark.parametrize(
    ("options", "shown"),
    [({}, ["warning", "error"]), ({"verbose": True}, ["info", "warning", "error"]), ({"quiet": True}, ["error"])],
)
def test_verbose_and_quiet_set_the_level_of_standard_error(
    options: dict[str, bool], shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to(None, **options):
        log.info("x")
        log.warning("x")
        log.error("x")
    log.error("not shown: the handler is removed")
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines() if line.endswith(": x")] == shown


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(None):
        log.warning("row failed: %s", "\x1b]0;owned\x07")
    assert "\x1b" not in capsys.readouterr().err


def test_verbose_adds_debug_messages_to_the_file(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", verbose=True, quiet=True):
        log.debug("fine")
    assert [line["message"] for line in lines(tmp_path / "log")] == ["fine"]


def test_a_log_file_is_appended_to_and_only_its_owner_may_write_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    before = os.umask(0)
    try:
        for number in range(2):
            with logging_to(path, quiet=True):
                log.info("%d", number)
    finally:
        os.umask(before)
    assert [line["message"] for line in lines(path)] == ["0", "1"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_reported_once_and_logging_to_the_terminal_continues(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(Path("/dev/full")):
        for _ in range(3):
            log.info("x")
        log.warning("still logged")
    err = capsys.readouterr().err.splitlines()
    assert err == [
        "rwkvbatch: warning: --log-file /dev/full: write failed: No space left on device; continuing without it",
        "rwkvbatch: warning: still logged",
    ]


def test_a_pipe_without_a_reader_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(UsageError, match="pipe: cannot be opened: nothing reads this pipe"),
        logging_to(tmp_path / "pipe"),
    ):
        pass


def test_a_full_pipe_is_reported_once_without_blocking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with logging_to(tmp_path / "pipe"):
            for _ in range(300):
                log.info("x" * 1000)
            assert os.read(reader, 100).startswith(b'{"time": "')
    finally:
        os.close(reader)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("; continuing without it")


def test_a_record_that_cannot_be_formatted_does_not_close_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError("no words")

    with logging_to(tmp_path / "log"):
        log.info("x", extra={"what": Broken()})
        log.info("next")
    assert [line["message"] for line in lines(tmp_path / "log")] == ["next"]
    err = capsys.readouterr().err
    assert "no words" in err
    assert "continuing without it" not in err


def test_a_file_that_cannot_be_opened_is_a_usage_error(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"--log-file .*/none/log: cannot be opened: No such file"),
        logging_to(tmp_path / "none" / "log"),
    ):
        pass


def test_unread_keys_and_lint_findings_of_a_script_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s.jsonl"
    line = {"messages": [{"role": "user", "content": " Hi", "name": "Ada"}]}
    path.write_text(json.dumps(line) + "\n")
    with caplog.at_level(logging.WARNING):
        rwkvbatch.run(path, system="Be brief.\nUser: x", max_tokens=1)
    messages = [record.getMessage() for record in caplog.records]
    assert "keys that are not read, with their numbers of lines: messages[].name (1)" in messages
    assert any(text.startswith("--system: role-line: ") for text in messages)
    assert any("which change replies or scores: 1 outer-space; --dry-run lists them" in text for text in messages)
