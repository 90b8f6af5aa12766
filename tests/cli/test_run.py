"""`rwkvbatch run` on the bundled model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest

import rwkvbatch
from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from rwkvbatch.replay.runner import read_rows
from rwkvbatch.results.directory import RunDirectory

ROOT = Path(__file__).parent.parent.parent


def conversation(name: str, *users: str, expect: list[Any] | None = None) -> str:
    messages: list[dict[str, Any]] = [{"role": "user", "content": user} for user in users]
    if expect:
        messages[-1]["expect"] = expect
    return json.dumps({"id": name, "messages": messages})


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "small.jsonl"
    lines = [conversation("names", "I am Eli.", "Who am I?"), conversation("sum", "What is 2 + 3?")]
    path.write_text("\n".join(lines) + "\n")
    return path


def without_timing(directory: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.as_dict().items() if k != "timing"} for row in read_rows(directory)]


def test_a_run_writes_its_directory_and_shows_a_table(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert invoke(["run", str(script), "--out", str(out), "--preset", "greedy", "--max-tokens", "8"]) == 0
    assert {path.name for path in out.iterdir()} == {
        ".lock",
        "manifest.json",
        "script.jsonl",
        "results.jsonl",
        "status.json",
        "summary.json",
    }
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "bundled" in captured.err
    assert "base" in captured.err
    assert f"rows are in {out}" in captured.err


def test_json_goes_to_standard_output_and_quiet_says_nothing(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(script), "--out", str(tmp_path / "out"), "--max-tokens", "4", "--json", "--quiet"]
    assert invoke(arguments) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert (content["rows"], content["planned"], content["cells"][0]["name"]) == (3, 3, "base")
    assert captured.err == ""


def test_rows_do_not_depend_on_the_batch_size(script: Path, tmp_path: Path) -> None:
    for batch_size in ("1", "3", "64"):
        arguments = ["run", str(script), "--temp", "0.5,1.0", "--top-p", "0.9", "--repeats", "2", "--max-tokens", "12"]
        assert invoke([*arguments, "-b", batch_size, "-q", "-o", str(tmp_path / batch_size)]) == 0
    first = without_timing(tmp_path / "1")
    assert len(first) == 12
    keys = [(row["conversation"], row["cell"], row["repeat"], row["turn"]) for row in first]
    for other in ("3", "64"):
        rows = without_timing(tmp_path / other)
        assert [(row["conversation"], row["cell"], row["repeat"], row["turn"]) for row in rows] == keys
        assert [row["reply_ids"] for row in rows] == [row["reply_ids"] for row in first]


def test_a_failed_check_is_exit_code_1(tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text(conversation("c", "Hello.", expect=[{"equals": "no model ever says this"}]) + "\n")
    assert invoke(["run", str(script), "-o", str(tmp_path / "out"), "-q", "--max-tokens", "4"]) == 1


def test_after_a_failed_check_the_next_step_is_to_look_at_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text(conversation("c", "Hello.", expect=[{"equals": "no model ever says this"}]) + "\n")
    out = tmp_path / "out"
    assert invoke(["run", str(script), "-o", str(out), "--max-tokens", "4"]) == 1
    assert f"next: rwkvbatch show {out} --failed\n" in capsys.readouterr().err


def test_too_many_failed_rows_leave_it_unfinished_with_exit_code_5(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(script), "-o", str(tmp_path / "out"), "--max-prompt-tokens", "3", "--max-tokens", "2"]
    assert invoke([*arguments, "--max-failures", "0", "--batch-size", "1"]) == 5
    said = capsys.readouterr().err
    assert "--max-failures allows 0" in said
    assert "rows are safe. To continue: rwkvbatch" in said
    assert invoke(arguments) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "3 rows failed: 2 prompts are too long or too short, which --retry-errors does not change" in said
    assert f"next: rwkvbatch show {tmp_path / 'out'} --failed" in said


def test_the_last_row_may_be_the_one_too_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text(conversation("c", "Hello.") + "\n")
    arguments = ["run", str(script), "-o", str(tmp_path / "out"), "--max-prompt-tokens", "3"]
    assert invoke([*arguments, "--max-failures", "0"]) == 5
    said = capsys.readouterr().err
    assert said.endswith("all rows so far are kept; the same command has this error again\nno row is missing\n")


@pytest.mark.parametrize("options", [(), ("--temp", "0,1")])
def test_a_script_that_decides_nothing_is_not_sent_to_a_comparison_that_fails(
    options: Sequence[str], script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(script), *options]
    assert invoke([*arguments, "--out", str(tmp_path / "out"), "--max-tokens", "4"]) == 0
    said = capsys.readouterr().err
    assert "nothing decides a comparison: the script has neither checks nor references" in said
    command = f"rwkvbatch compare {tmp_path / 'out'} --primary tokens"
    assert said.splitlines()[-1].startswith("next: ")
    assert command in said.splitlines()[-1]
    assert invoke(command.split()[1:]) == 0
    capsys.readouterr()
    assert invoke([*arguments, "--dry-run"]) == 0
    assert "neither checks nor references, so that nothing decides" in " ".join(capsys.readouterr().out.split())
    assert invoke([*arguments, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["checks"], plan["references"], plan["turns_with_choices"]) == (0, 0, 0)


def test_a_dry_run_says_what_decides_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "Sky?", "choices": ["a", "b"], "expect": {"choice": "a"}}]},
        {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi!"}]},
        {"text": "Once upon a time."},
    ]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert invoke(["run", str(path), "--dry-run", "--repeats", "3"]) == 0
    captured = capsys.readouterr()
    assert "1 check, 2 references, 1 turn with choices" in " ".join(captured.out.split())
    assert "decides" not in captured.out


def test_the_summary_has_the_score_that_compare_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.jsonl"
    # Turns of one and of three checks: the score is a mean of turns, and the share of passed checks is not.
    lines = [
        conversation("one", "Hi.", expect=[{"max_tokens": 90}]),
        conversation("three", "Hi.", expect=[{"contains": "~1"}, {"contains": "~2"}, {"max_tokens": 90}]),
    ]
    path.write_text("".join(line + "\n" for line in lines))
    assert invoke(["run", str(path), "--out", str(tmp_path / "out"), "--max-tokens", "4"]) == 1
    said = capsys.readouterr().err
    assert "2/4 50%" in said
    assert "0.667" in said
    assert invoke(["compare", str(tmp_path / "out"), "--metric", "score"]) == 0
    assert "0.667" in capsys.readouterr().out


def test_standard_input_is_a_script(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with script.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert invoke(["run", "-", "-o", str(out), "--max-tokens", "2", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert {row.conversation for row in read_rows(out)} == {"names", "sum"}


def test_the_same_command_again_has_nothing_to_do(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(script), "--out", str(tmp_path / "out"), "--max-tokens", "4"]
    assert invoke(arguments) == 0
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    capsys.readouterr()
    assert invoke(arguments) == 0
    assert "all rows already existed" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_the_summary_of_a_continued_run_says_which_figures_are_the_session_s(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(script), "--out", str(tmp_path / "out"), "--max-tokens", "4", "--temp", "1"]
    assert invoke(arguments) == 0
    assert "this session" not in capsys.readouterr().err
    assert invoke([*arguments, "--repeats", "2"]) == 0
    lines = capsys.readouterr().err.splitlines()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["session"]["reply_tokens"] < sum(cell["reply_tokens"] for cell in summary["cells"])
    assert any(
        line.startswith(f"this session: {summary['session']['reply_tokens']} reply tokens in ") for line in lines
    )
    prompt_tokens = sum(cell["prompt_tokens"] for cell in summary["cells"])
    assert any(line.startswith(f"whole run: {prompt_tokens} prompt tokens: ") for line in lines)


def test_another_setting_is_refused_with_the_difference(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(script), "--out", str(tmp_path / "out"), "-q"]
    assert invoke([*arguments, "--max-tokens", "4"]) == 0
    assert invoke([*arguments, "--max-tokens", "5"]) == 3
    assert "cells.base.max_tokens: existing run: 4; this command: 5" in capsys.readouterr().err


def test_a_run_in_another_precision_is_refused_and_the_manifest_says_which_it_was(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(script), "--out", str(tmp_path / "out"), "-q", "--max-tokens", "4", "--backend"]
    assert invoke([*arguments, "reference", "--strategy", "cpu int8"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["identity"]["cells"]["base"]["dtype"] == "int8"
    assert invoke([*arguments, "reference", "--strategy", "cpu"]) == 3
    assert 'cells.base.dtype: existing run: "int8"; this command: "bf16"' in capsys.readouterr().err


def test_verifying_records_what_held(script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(script), "-o", str(tmp_path / "out"), "--max-tokens", "6", "--verify-batch", "3"]
    assert invoke(arguments) == 0
    verdict = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert verdict["rows"] == 3
    assert all(difference["first_token"] is None for difference in verdict["differences"])
    assert f"verified: {verdict['held'][:20]}" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rwkvbatch.model.load.load_model", None)
    arguments = ["run", str(script), "--temp", "0,1", "--repeats", "5", "--dry-run"]
    assert invoke([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["rows"], plan["dialogues"], plan["cells"]) == (30, 20, ["temp=0", "temp=1"])
    # Ten dialogues of each conversation begin alike, so a tenth is read; both begin with the same "User:".
    assert plan["first_prompt_distinct"] < plan["first_prompt_tokens"] / 10
    assert invoke(arguments) == 0
    assert "shared prefixes" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["small.jsonl"]


def test_a_dry_run_names_the_traps_in_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text(conversation("c", "one\n\ntwo") + "\n")
    assert invoke(["run", str(script), "--dry-run"]) == 0
    assert "s.jsonl:1: " in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "cpu fp64"], "--strategy must be one of"),
        (["--strategy", "cpu,cpu fp64"], "--strategy must be one of"),
        (["--backend", "upstream", "--strategy", "cpu int4"], "--strategy must be one of"),
        (["--strategy", "cuda fp16", "--backend", "cpu"], "--backend cpu cannot run on 'cuda'"),
        (["--devices", "cuda:0", "--backend", "cpu"], "--backend cpu cannot run on 'cuda:0'"),
        (["--devices", "cpu,cuda:0", "--strategy", "cpu int8"], "int8 in --strategy is for the CPU"),
        (["--ban", "5000"], "--ban: the model's vocabulary has 512 token ids"),
        (["--workers", "1", "--devices", "cpu,cpu"], "--devices names 2 devices for 1 worker"),
        (["--judge", "bundled", "--judge-url", "http://127.0.0.1:1/v1"], "--judge and --judge-url are both given"),
        (["--judge-model", "x"], "--judge-model belongs to --judge-url"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would_refuse(
    options: list[str], message: str, script: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert invoke(["run", str(script), "--dry-run", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_warns_of_files_and_devices_that_another_machine_may_have(
    script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    options = ["--state", "none.pth", "--adapter", "lora.pth init=init.pth", "--strategy", "cuda fp16"]
    assert invoke(["run", str(script), "--dry-run", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == [
        "--strategy asks for the device 'cuda', but no CUDA device was found",
        "--adapter lora.pth: there is no such file",
        "--adapter init.pth: there is no such file",
        "--state none.pth: there is no such file",
    ]


@pytest.mark.parametrize(
    ("devices", "missing"),
    [("cpu", []), ("cuda:0,cuda:0", ["--devices asks for the device 'cuda:0', but no CUDA device was found"])],
)
def test_devices_take_the_place_of_the_strategys_device_in_a_dry_run(
    devices: str, missing: list[str], script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    options = ["--strategy", "cuda fp16", "--devices", devices]
    assert invoke(["run", str(script), "--dry-run", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == missing


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "~/model", "--state", "~/state.safetensors"],
        ["--model", "~/model", "--vocab", "~/vocabulary.txt"],
        ["--prelude", "~/prelude.txt"],
        ["--template", "~/t.jinja"],
        ["--config", "~/c.toml"],
    ],
)
def test_a_tilde_is_the_home_directory_in_every_name_of_a_file(
    options: list[str],
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    demo = Path(rwkvbatch.__file__).parent / "demo"
    (home / "model.safetensors").write_bytes((demo / "rwkv7-demo.safetensors").read_bytes())
    (home / "state.safetensors").write_bytes((demo / "uppercase-state.safetensors").read_bytes())
    (home / "t.jinja").write_bytes((demo.parent / "prompt" / "bot.jinja").read_bytes())
    (home / "prelude.txt").write_text("User: hi\n\nAssistant: Hi.\n\n")
    (home / "c.toml").write_text("temperature = 0\n")
    (home / "vocabulary.txt").write_text("".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)))
    arguments = ["run", str(script), "--max-tokens", "2", *options]
    assert invoke([*arguments, "--dry-run", "--json"]) == 0
    assert not [text for text in json.loads(capsys.readouterr().out)["warnings"] if "no such file" in text]
    assert invoke([*arguments, "-o", str(tmp_path / "out")]) == 0


def test_a_tilde_with_an_unknown_user_is_part_of_a_name(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["run", str(script), "--model", "~no-such-user/model"]) == 3
    assert "~no-such-user/model: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--judge", "bundled", "--judge-strategy", "cpu fp64"], 2, "--judge-strategy must be one of"),
        (["--judge", "small.pth"], 3, "give --judge-vocab FILE (World format, or a tokenizer.json), or --judge-vocab"),
    ],
)
def test_a_judge_that_cannot_be_loaded_is_refused_by_its_option_before_the_run(
    options: list[str], code: int, message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RWKVBATCH_VOCAB")
    assert invoke(["model", "random", "1x64", "small.pth", "--vocab", "512", "--quiet"]) == 0
    Path("s.jsonl").write_text(conversation("c", "Hi.", expect=[{"judge": "It greets."}]) + "\n")
    assert invoke(["run", "s.jsonl", "--out", "out", *options]) == code
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_the_default_directory_is_named_after_script_and_time(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert invoke(["run", str(script), "-q", "--max-tokens", "2"]) == 0
    made = [path.name for path in (tmp_path / "runs").iterdir()]
    assert len(made) == 2
    assert all(name.startswith("small-20") for name in made)


@pytest.mark.parametrize("is_locked", [True, False])
def test_a_default_directory_that_another_process_takes_at_the_same_time_is_left_to_it(
    is_locked: bool, script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, free = tmp_path / "taken", tmp_path / "free"
    assert invoke(["run", str(script), "--temp", "0.5", "--max-tokens", "1", "--quiet", "--out", str(taken)]) == 0
    rows = (taken / "results.jsonl").read_bytes()
    names = iter([taken, free])
    monkeypatch.setattr("rwkvbatch.results.directory.default_directory", lambda *_, **__: next(names))
    command = ["run", str(script), "--max-tokens", "1", "--quiet", *(() if is_locked else ("--temp", "0.6"))]
    with closing(RunDirectory(taken, "another command")) if is_locked else nullcontext():
        assert invoke(command) == 0
    assert len(without_timing(free)) == 3
    assert (taken / "results.jsonl").read_bytes() == rows


def test_nobody_else_may_write_what_a_run_makes_whatever_the_umask(script: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "some" / "where", tmp_path / "log"
    before = os.umask(0)
    try:
        arguments = ["run", str(script), "-o", str(out), "-q", "--max-tokens", "1", "--log-file", str(log)]
        assert invoke(arguments) == 0
    finally:
        os.umask(before)
    made = {path.name: path.stat().st_mode & 0o777 for path in [out.parent, log, *out.parent.rglob("*")]}
    assert made["some"] == made["where"] == 0o755
    assert made["log"] == made["results.jsonl"] == made["manifest.json"] == 0o644
    assert not [name for name, mode in made.items() if mode & 0o022]


def test_verified_rows_are_told_with_what_held(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(script), "-o", str(tmp_path / "out"), "--max-tokens", "3", "--verify-batch", "2"]
    assert invoke(arguments) == 0
    assert "verified: bitwise" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "verify.json").read_text())["held"].startswith("bitwise")


def test_a_log_file_holds_json_lines(script: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert (
        invoke(["run", str(script), "-o", str(tmp_path / "out"), "-q", "--max-tokens", "2", "--log-file", str(log)])
        == 0
    )
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= lines[0].keys()
    assert any(line["message"] == "loaded the model" for line in lines)
    assert lines[-1]["message"] == "the run ended"


def test_the_library_s_run_gives_the_same_rows(script: Path, tmp_path: Path) -> None:
    assert invoke(["run", str(script), "-o", str(tmp_path / "out"), "-q", "--max-tokens", "5", "--temp", "0,1"]) == 0
    result = rwkvbatch.run(script, max_tokens=5, temperature=[0, 1])
    rows = [{k: v for k, v in row.as_dict().items() if k != "timing"} for row in result.rows()]
    assert rows == without_timing(tmp_path / "out")
    assert result.directory is None


def test_ctrl_c_prints_the_command_that_continues_and_it_does(tmp_path: Path) -> None:
    script = tmp_path / "long.jsonl"
    script.write_text("".join(conversation(f"c{n}", "Hello.", "How are you?") + "\n" for n in range(40)))
    arguments = ["run", str(script), "--temp", "1", "--top-p", "1", "--repeats", "20", "--max-tokens", "20"]
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "rwkvbatch", *arguments, "--out", str(out)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    results = out / "results.jsonl"
    deadline = time.monotonic() + 120
    while not (results.exists() and results.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To continue:" in error
    assert f"--out {out}" in error
    assert "Traceback" not in error
    there = list(read_rows(out))
    assert 0 < len(there) < 1600
    # The rest would take a while: it is enough that the same command is taken as a continuation.
    from rwkvbatch.results.manifest import read_manifest

    assert read_manifest(out) is not None
    assert json.loads((out / "status.json").read_text())["rows_done"] == len(there)


def test_a_run_with_until_ci_tells_how_precise_each_cell_got(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "s.jsonl"
    lines = [conversation(f"c{n}", f"What is {n} + 2?", expect=[{"contains": str(n + 2)}]) for n in range(3)]
    script.write_text("".join(line + "\n" for line in lines))
    arguments = ["run", str(script), "--top-p", "1", "--temp", "0.2,2", "--max-tokens", "4", "--json"]
    out = tmp_path / "out"
    invoke([*arguments, "--repeats", "2..3", "--until-ci", "0.01", "--out", str(out)])
    captured = capsys.readouterr()
    found = json.loads(captured.out)["until_ci"]
    assert found["asked"] == 0.01
    first, other = found["cells"]
    assert first == {"cell": "temp=0.2", "repeats": other["repeats"], "width": None}
    rows = [row for row in read_rows(out) if row.key.cell == "temp=2"]
    assert (other["cell"], other["repeats"]) == ("temp=2", len(rows) // 3)
    assert other["width"] > 0.01
    assert f"temp=2: 3 repeats, width {other['width']:.3g}, wider than asked" in captured.err
    invoke([*arguments, "--out", str(tmp_path / "plain")])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["until_ci"] is None
    assert "--until-ci" not in captured.err


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--temp", "0.5", "--temp=0.7"], "--temp 0.5,0.7"),
        (["-m", "a.pth", "--model", "b.pth"], "--model a.pth,b.pth"),
        (["--seed", "1", "--seed", "2"], "give it once"),
    ],
)
def test_an_option_of_one_value_given_twice_is_refused(
    tmp_path: Path, options: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["run", str(tmp_path / "s.jsonl"), *options]) == 2
    err = capsys.readouterr().err
    assert "is given twice" in err
    assert hint in err


def race_arguments(folder: Path) -> list[str]:
    script = folder / "s.jsonl"
    lines = [conversation(f"c{n}", f"What is {n} + 2?", expect=[{"contains": str(n + 2)}]) for n in range(3)]
    script.write_text("".join(line + "\n" for line in lines))
    settings = ["--top-p", "1", "--temp", "0,0.1,9", "--max-tokens", "4", "--repeats", "40"]
    return ["run", str(script), *settings, "--race", "--race-margin", "0.2", "--json", "--quiet"]


def test_a_race_says_which_cells_it_dropped_and_compare_that_it_was_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*race_arguments(tmp_path), "--out", str(tmp_path / "out")]
    invoke(arguments)
    race = json.loads(capsys.readouterr().out)["race"]
    assert race["ending"] == "within the margin"
    assert set(race["left"]) == {"temp=0", "temp=0.1"}
    assert [cell["dropped_after"] is None for cell in race["cells"]] == [True, True, False]
    assert len(list(read_rows(tmp_path / "out"))) == race["rows"] < race["rows_of_grid"] == 360
    invoke(["show", str(tmp_path / "out"), "c0", "--limit", "1"])
    shown = capsys.readouterr().err
    assert "race: the leader is less than 0.2 worse than any cell left" in shown
    assert "dropped: 1 of 3 cells" in shown
    invoke(["compare", str(tmp_path / "out")])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"out is a race: leader {race['leader']} (score ")
    said = " ".join(captured.out.split())
    assert "dropped as worse than another: 1 of 3 cells" in said
    assert "intervals and p-values of these rows do not hold" in said
    invoke([argument for argument in arguments if argument != "--quiet"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"next: rwkvbatch show {tmp_path / 'out'} --cell {race['leader']}"
    assert invoke(last.split()[2:]) == 0
    capsys.readouterr()
    invoke([*arguments, "--dry-run"])
    assert json.loads(capsys.readouterr().out)["rows"] == 360


@pytest.mark.slow
def test_a_race_over_workers_has_the_same_rows_and_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = race_arguments(tmp_path)
    found: list[Any] = []
    for name, more in (("one", []), ("two", ["--workers", "2"])):
        invoke([*arguments, *more, "--out", str(tmp_path / name)])
        rows = [(row.key, row.reply, row.logprob) for row in read_rows(tmp_path / name)]
        found.append((rows, json.loads(capsys.readouterr().out)["race"]))
    assert found[0] == found[1]


def test_the_functions_of_a_check_module_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, module, out = tmp_path / "script.jsonl", tmp_path / "checks.py", tmp_path / "out"
    script.write_text(conversation("hello", "Hi.", expect=[{"at_least": 1}]))
    module.write_text("def at_least(facts, length):\n    return len(facts.text) >= length\n")
    given = ["--check-module", str(module)]
    assert invoke(["run", str(script), "--out", str(out), "--max-tokens", "4", *given]) == ExitCode.DONE
    assert invoke(["run", str(script), *given, "--dry-run"]) == ExitCode.DONE
    assert invoke(["plan", str(script), *given, "--detect", "0.2"]) == ExitCode.DONE
    assert invoke(["show", str(out)]) == ExitCode.DONE
    module.write_text("def at_least(facts, length):\n    return len(facts.text) < length\n")
    assert invoke(["check", str(out), *given]) == ExitCode.FAILED
    capsys.readouterr()
    assert invoke(["check", str(out)]) == ExitCode.BAD_INPUT
    assert "the check 'at_least' is or has a function, which is not given\n  give it: --check-module" in (
        capsys.readouterr().err
    )
