"""Wrong input: one clear message each, and the right exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rwkvbatch.cli.app import invoke

LINE = '{"id": "c", "messages": [{"role": "user", "content": "Hi"}]}\n'


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "small.jsonl"
    path.write_text(LINE)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("s.jsonl").write_text(LINE)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", ""], 2, "SCRIPT must be a path, got ''"),
        (
            ["run", "s.jsonl", "--out", ""],
            2,
            "--out must be a path, got ''\n  a variable of the shell may have no value",
        ),
        (["run", "s.jsonl", "--devices", ""], 2, "--devices must be cpu, cuda, or cuda:N, got ''"),
        (["run", "s.jsonl", "--verify-batch", "-1"], 2, "--verify-batch"),
        (["run", "s.jsonl", "--config", "bad.toml"], 2, "not UTF-8: byte 0xff at place 5"),
        (["run", "s.jsonl", "--grid", "bad.toml"], 2, "not UTF-8: byte 0xff at place 5"),
        (["run", "s.jsonl", "--config", "marked.toml"], 2, "not UTF-8: byte 0xff at place 7"),
        (["run", "s.jsonl", "--prelude", "marked.toml"], 2, "not UTF-8: byte 0xff at place 7"),
        (["run", "s.jsonl", "--out", "bad.toml"], 2, "--out bad.toml: a run is a directory, and bad.toml is not one"),
        (["run", "s.jsonl", "--out", "bad.toml/x"], 2, "--out bad.toml/x: a run is a directory, and bad.toml is not"),
        (["merge", "s.jsonl", "--out", "m"], 3, "error: s.jsonl: is not a run directory\n  name the directory that"),
        (["check", "s.jsonl"], 3, "error: s.jsonl: is not a run directory\n  name the directory that"),
        (["merge", "run", "--out", "m"], 3, "manifest.json: is not JSON: "),
    ],
)
def test_it_is_said_once_and_clearly(
    arguments: list[str], code: int, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.toml").write_bytes(b'a = "\xff"'[1:])
    Path("marked.toml").write_bytes(b"\xef\xbb\xbfabc\xff")
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
    assert re.search(r"^repeats +3$", capsys.readouterr().out, re.MULTILINE)


def test_bad_lines_can_be_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text(LINE + "{broken\n")
    out = tmp_path / "out"
    assert invoke(["run", str(script), "-o", str(out), "--max-tokens", "4"]) == 3
    assert "s.jsonl:2" in capsys.readouterr().err
    assert not out.exists()
    assert invoke(["run", str(script), "-o", str(out), "--max-tokens", "4", "--skip-bad"]) == 0
    assert (out / "skipped.jsonl").read_bytes() == b"{broken\n"
    assert "1 bad line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--top-p", "1.3"], 2, "--top-p must be a number in [0, 1], got 1.3"),
        (["--temp", "0.3,hot"], 2, "--temp must be a number in [0, 100], got hot"),
        (["--repeats", "3..x"], 2, "--repeats must be N or LOW..HIGH, whole numbers in [1, 1000000] with LOW <= HIGH"),
        (["--ban", "0,a"], 2, "--ban"),
        (["--only", "nothing"], 2, "--only nothing: no conversation has this id or tag"),
        (["--model", "nowhere"], 3, "there is no such file"),
        (["--grid", "nowhere.toml"], 2, "--grid nowhere.toml: cannot be read"),
        (["--preset", "wild"], 2, "--preset must be one of"),
        (["--no-such-option"], 2, "No such option"),
    ],
)
def test_bad_input_is_one_message_and_an_exit_code(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert invoke(["run", str(script), "-o", str(tmp_path / "out"), *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_each_bad_line_that_is_set_aside_is_told_with_its_reason(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with script.open("ab") as file:
        file.write(b"{broken\n" * 7)
    log = tmp_path / "log.jsonl"
    arguments = ["run", str(script), "--skip-bad", "--max-tokens", "1"]
    assert invoke([*arguments, "-o", str(tmp_path / "a"), "--log-file", str(log)]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "set aside: " in line]
    assert told[0].startswith(f"rwkvbatch: warning: set aside: {script}:2:2: not JSON")
    assert told[-1] == "rwkvbatch: warning: set aside: 2 lines more"
    assert len(told) == 6
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["line"] for line in logged if "line" in line] == [2, 3, 4, 5, 6, 7, 8]
    assert invoke([*arguments, "-o", str(tmp_path / "b"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("option", ["--state", "--template"])
@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_file_that_is_not_there_is_bad_input_to_every_command(
    option: str, command: str, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(script), "--out", str(tmp_path / "out")] if command == "run" else ["--no-transcript"]
    assert invoke([command, *given, option, str(tmp_path / "nowhere.pth")]) == 3
    assert "nowhere.pth" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "long.jsonl", "--dry-run"],
        ["plan", "long.jsonl", "--detect", "0.1"],
        ["check", "out", "--script", "long.jsonl"],
        ["model", "damage", "--against", "cpu fp32", "--script", "long.jsonl", "--max-tokens", "1"],
        ["model", "damage", "--against", "cpu fp32", "--texts", "long.txt"],
    ],
)
def test_the_limit_of_a_line_is_that_of_the_environment_in_every_command(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    user = {"role": "user", "content": "Who am I?" + " Who?" * 30, "expect": {"min_tokens": 1}}
    messages = [user, {"role": "assistant", "content": "Your name is Ada."}]
    Path("long.jsonl").write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    Path("long.txt").write_text("One. " * 50)
    assert invoke(["run", "long.jsonl", "--out", "out", "--max-tokens", "1", "--quiet"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("RWKVBATCH_MAX_LINE_BYTES", "100")
    assert invoke(arguments) == 3
    assert "the line is longer than 100 bytes" in capsys.readouterr().err
    monkeypatch.setenv("RWKVBATCH_MAX_LINE_BYTES", "1M")
    assert invoke(arguments) == 0


def test_commands_with_limits_of_scripts_alone_do_not_read_other_settings_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RWKVBATCH_TEMP", "hot")
    assert invoke(["plan", "datasets/demo.jsonl", "--detect", "0.05"]) == 0
