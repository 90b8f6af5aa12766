"""What users get wrong: one clear message each, and the exit code that says whose fault it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkvbatch.cli.app import invoke

LINE = '{"id": "c", "messages": [{"role": "user", "content": "Hi"}]}\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("s.jsonl").write_text(LINE)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", ""], 2, "the name of a script is empty"),
        (["run", "s.jsonl", "--devices", ""], 2, "--devices must be cpu, cuda, or cuda:N, got ''"),
        (["run", "s.jsonl", "--verify-batch", "-1"], 2, "--verify-batch"),
        (["run", "s.jsonl", "--config", "bad.toml"], 2, "not UTF-8: byte 0xff at place 5"),
        (["run", "s.jsonl", "--grid", "bad.toml"], 2, "not UTF-8: byte 0xff at place 5"),
        (["merge", "s.jsonl", "--out", "m"], 3, "manifest.json: cannot be read: Not a directory\n"),
        (["merge", "run", "--out", "m"], 3, "manifest.json: is not JSON: "),
    ],
)
def test_it_is_said_once_and_clearly(
    arguments: list[str], code: int, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.toml").write_bytes(b'a = "\xff"'[1:])
    Path("run").mkdir()
    Path("run/manifest.json").touch()
    assert invoke(arguments) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert "Errno" not in captured.err


def test_a_settings_file_may_begin_with_a_byte_order_mark_and_have_crlf_line_ends(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.toml").write_bytes(b"\xef\xbb\xbftop_p = 0.5\r\nrepeats = 3\r\n")
    assert invoke(["run", "s.jsonl", "--config", "c.toml", "--dry-run"]) == 0
    assert "repeats                  3\n" in capsys.readouterr().out
