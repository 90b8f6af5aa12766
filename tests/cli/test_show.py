"""The `rwkvbatch show` command."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from tests.comparison.hostile import hostile_run
from tests.comparison.make_run import make_row, make_run, write_run


@pytest.fixture
def run(tmp_path: Path) -> str:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        del rng
        failed = row["conversation"] == "talk-2" and row["cell"] == "t=2"
        row["checks"][0].update(passed=not failed, score=float(not failed), detail="too short" if failed else None)

    return str(make_run(tmp_path / "run", cells=("t=1", "t=2"), conversations=4, repeats=2, change=change))


def records(run: str, *arguments: str, capsys: pytest.CaptureFixture[bytes]) -> list[dict[str, Any]]:
    assert invoke(["show", run, "--json", *arguments]) == ExitCode.DONE
    return [json.loads(line) for line in capsys.readouterr().out.decode().splitlines()]


def test_a_dialogue_shows_both_speakers_the_checks_and_the_numbers(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["show", run, "talk-2", "--cell", "t=2", "--repeat", "1"]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "Question 0 of talk-2?" in out
    assert "Assistant" in out
    assert "✗ contains 'boat': too short" in out
    assert "nll" in out


def test_the_choices_of_a_turn_are_shown_with_their_likelihoods(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logprobs = [-1.0, -2.0, *(-float(k) for k in range(20, 30))]
    counts = {"tokens": 2, "bytes": 9, "characters": 8}
    scores = [{"name": f"choice {k}", "logprob": value, **counts} for k, value in enumerate(logprobs)]

    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        del rng
        row["choices"] = {"scores": scores} if row["turn"] == 1 else None

    run = str(make_run(tmp_path / "run", cells=("t=1",), conversations=1, repeats=1, change=change))
    assert invoke(["show", run]) == ExitCode.DONE
    without, turn = capsys.readouterr().out.split("\n\n")[:2]
    assert "Choices" not in without
    lines = [line.split(maxsplit=1)[1] for line in turn.splitlines() if "logprob -" in line and ":" in line]
    assert lines[0] == "choice 0: 73.1%, logprob -1.00"  # 1 / (1 + 1 / e)
    assert "           choice 1: 26.9%, logprob -2.00\n" in turn
    assert "           choice 9: 0.0%, logprob -27.00\n           2 less likely\n" in turn
    assert invoke(["show", run, "--json"]) == ExitCode.DONE
    turns = json.loads(capsys.readouterr().out)["turns"]
    assert [turn["choices"] for turn in turns[:2]] == [None, scores]


def test_a_probe_is_shown_as_one_with_the_turn_after_which_it_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        del rng
        if row["turn"] == 1:
            row["probe"] = {"after": 0, "number": 0, "turns": 0, "tokens": 9}

    run = str(make_run(tmp_path / "run", cells=("t=1",), conversations=1, repeats=1, change=change))
    assert invoke(["show", run]) == ExitCode.DONE
    dialogue, probe = capsys.readouterr().out.split("\n\n")[:2]
    assert "User" in dialogue
    assert "asked after" not in dialogue
    assert probe.startswith("Probe ")
    assert "turn 1, asked after turn 0, ended by" in probe
    assert invoke(["show", run, "--json"]) == ExitCode.DONE
    turns = json.loads(capsys.readouterr().out)["turns"]
    assert [turn["probe_after"] for turn in turns] == [None, 0]


def test_json_has_one_dialogue_a_line(run: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    found = records(run, capsys=capsysbinary)
    assert len(found) == 16
    assert [turn["turn"] for turn in found[0]["turns"]] == [0, 1]
    assert found[0]["turns"][0]["metrics"]["tokens"] > 0


def test_conversations_and_cells_can_be_patterns(run: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    found = records(run, "talk-[12]", "--cell", "*2", capsys=capsysbinary)
    assert {(item["conversation"], item["cell"]) for item in found} == {("talk-1", "t=2"), ("talk-2", "t=2")}


def test_one_turn_and_one_repeat_can_be_picked(run: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    found = records(run, "--turn", "1", "--repeat", "0", capsys=capsysbinary)
    assert {item["repeat"] for item in found} == {0}
    assert {turn["turn"] for item in found for turn in item["turns"]} == {1}


def test_only_dialogues_that_failed_can_be_shown(run: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    found = records(run, "--failed", capsys=capsysbinary)
    assert {(item["conversation"], item["cell"]) for item in found} == {("talk-2", "t=2")}


def test_a_limit_says_how_many_more_there_are(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["show", run, "--limit", "3"]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert out.count("Question 0 of") == 3
    assert "13 more dialogues" in err


def test_an_error_is_shown_in_place_of_the_reply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = make_row("x", finish_reason="error", error="the prompt is too long", reply="", reply_ids=[], checks=[])
    write_run(tmp_path / "a", [row], manifest={})
    assert invoke(["show", str(tmp_path / "a")]) == ExitCode.DONE
    assert "the prompt is too long" in capsys.readouterr().out


def test_that_nothing_failed_is_said_unless_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(make_run(tmp_path / "run", change=lambda row, _: row["checks"].clear()))
    assert invoke(["show", run, "--failed"]) == ExitCode.DONE
    assert capsys.readouterr().err == "no dialogue has an error or a failed check\n"
    assert invoke(["show", run, "--failed", "--quiet"]) == ExitCode.DONE
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "none called 'nobody'"),
        (["--cell", "t=9"], "none called 't=9'"),
        (["--turn", "7"], "--turn must be in 0 to 1 for this selection, got 7"),
        (["--repeat", "9"], "--repeat must be in 0 to"),
    ],
)
def test_what_is_not_there_is_a_usage_error(
    run: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["show", run, *arguments]) == ExitCode.USAGE
    assert message in capsys.readouterr().err


def test_hostile_text_does_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["show", str(hostile_run(tmp_path / "a"))]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x00\u202e\u2028\r")
    assert "\\x1b]0;owned" in out


def test_a_tag_stands_for_the_conversations_that_have_it(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        del rng
        row["tags"] = ["odd" if row["conversation"] in ("talk-1", "talk-3") else "even"]

    tagged = str(make_run(tmp_path / "tagged", conversations=4, change=change))
    for pattern in ("odd", "o*"):
        found = records(tagged, pattern, capsys=capsysbinary)
        assert {record["conversation"] for record in found} == {"talk-1", "talk-3"}
    assert invoke(["show", tagged, "nobody"]) == ExitCode.USAGE


def test_results_of_a_table_are_shown_without_an_expectation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,score\na,1\nb,\nc,0.25\n")
    assert invoke(["show", str(path)]) == ExitCode.DONE
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith(" ")]
    ended = "turn 0, ended by scored"
    assert lines == ["✓ score", f"{ended}, score 1.00", "? score", ended, "✗ score 0.25", f"{ended}, score 0.25"]


@pytest.fixture
def failures(tmp_path: Path) -> str:
    """A run of equal replies in 2 cells and 2 repeats; turn 2 of 4 fails in `talk-0`, except in one dialogue."""

    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        del rng
        passed = row["conversation"] != "talk-0" or row["turn"] != 2 or (row["cell"], row["repeat"]) == ("t=2", 1)
        row["reply"] = f"Reply\n{row['turn']}" if passed else "Wrong."
        row["checks"][0].update(passed=passed, score=float(passed))
        row.update(tokens={"prompt": 9, "reply": 3}, logprob={"mean": -0.5, "sum": -1.5}, reference=None)

    return str(make_run(tmp_path / "run", cells=("t=1", "t=2"), conversations=15, repeats=2, turns=4, change=change))


def test_of_failed_dialogues_the_failing_turns_are_shown_and_one_line_of_each_turn_before(
    failures: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["show", failures, "--failed"]) == ExitCode.DONE
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("talk-0 ──")
    assert lines[1:5] == [
        "3 of 4 dialogues are equal: t=1 (repeats 0-1); t=2 (repeat 0)",
        "turn 0  Question 0 of talk-0? → Reply 0",
        "turn 1  Question 1 of talk-0? → Reply 1",
        "User       Question 2 of talk-0?",
    ]
    assert lines[-2:] == ["1 more turn", ""]
    assert out.count("Wrong.") == 1
    assert "--full" in err


def test_full_shows_each_dialogue_with_all_turns(failures: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["show", failures, "--failed", "--full"]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert out.count("Assistant  Wrong.") == 3
    assert out.count("User       Question 3 of talk-0?") == 3
    assert [line.split(" ─")[0] for line in out.splitlines() if "──" in line] == [
        "talk-0  t=1  repeat 0",
        "talk-0  t=1  repeat 1",
        "talk-0  t=2  repeat 0",
    ]
    assert err == ""


def test_a_long_turn_before_a_failure_is_cut_to_the_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = [{"kind": "contains", "expected": "z", "passed": False, "score": 0.0, "weight": 1.0, "detail": None}]
    rows = [make_row("x", reply="長い返事 " * 40, checks=[]), make_row("x", turn=1, checks=failed)]
    write_run(tmp_path / "a", rows, manifest={})
    assert invoke(["show", str(tmp_path / "a"), "--failed"]) == ExitCode.DONE
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("turn 0  Question 0 of x? → 長い返事 長い")
    assert line.endswith("…")
    assert 78 <= cell_len(line) <= 80


def test_a_terminal_gets_a_few_dialogues_and_a_pipe_gets_all(
    failures: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(*arguments: str) -> tuple[int, str]:
        assert invoke(["show", failures, *arguments]) == ExitCode.DONE
        out, err = capsys.readouterr()
        return out.count("Question 0 of"), err

    assert shown() == (16, "")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert shown() == (10, "24 more dialogues (6 different); all: --limit 16, or | less\n")
    assert shown("--limit", "12") == (12, "16 more dialogues (4 different)\n")
    assert shown("--limit", "16") == (16, "")
    assert shown("--full") == (60, "")
    assert shown("talk-0") == (2, "")


def test_json_has_equal_dialogues_one_by_one_on_a_terminal_too(
    failures: str, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert len(records(failures, capsys=capsysbinary)) == 60
    failed = records(failures, "--failed", capsys=capsysbinary)
    assert [len(record["turns"]) for record in failed] == [4, 4, 4]


def test_long_prompts_are_cut_in_the_middle_and_replies_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"line {number} of the prompt" for number in range(400)]
    reply = "\n".join(f"reply {number}" for number in range(60))

    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        del rng
        row.update(prompt="\n".join(lines), reply=reply)
        row["checks"][0].update(passed=False, score=0.0, detail="too short")

    run = str(make_run(tmp_path / "run", conversations=1, repeats=1, turns=1, change=change))
    for failed in ((), ("--failed",)):
        assert invoke(["show", run, *failed]) == ExitCode.DONE
        out = capsys.readouterr().out
        shown = [line for line in lines if any(text.endswith(f" {line}") for text in out.splitlines())]
        assert [shown[0], shown[-1]] == [lines[0], lines[-1]]
        num_left_out = len(lines) - len(shown)
        assert 370 < num_left_out < 390
        assert f"[{num_left_out} lines, " in out
        assert "characters left out; --full prints all]" in out
        assert all(f"reply {number}" in out for number in range(60))
        assert "too short" in out
        assert invoke(["show", run, "--full", *failed]) == ExitCode.DONE
        assert "line 200 of the prompt" in capsys.readouterr().out
    assert invoke(["show", run, "--json"]) == ExitCode.DONE
    assert "line 200 of the prompt" in capsys.readouterr().out


def test_a_plain_prompt_is_called_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.jsonl"
    lines = [
        {"id": "plain", "prompt": "Two and two is", "params": {"max_tokens": 2}},
        {"id": "chat", "messages": [{"role": "user", "content": "Two and two is"}], "params": {"max_tokens": 2}},
    ]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert invoke(["run", str(script), "--out", str(tmp_path / "run")]) == ExitCode.DONE
    capsys.readouterr()
    for name, labels in (("plain", ("Prompt ", "Reply ")), ("chat", ("User ", "Assistant "))):
        assert invoke(["show", str(tmp_path / "run"), name]) == ExitCode.DONE
        out = capsys.readouterr().out
        assert [label for label in ("Prompt ", "Reply ", "User ", "Assistant ") if f"\n{label}" in out] == list(labels)


def test_the_settings_of_a_cell_are_a_file_for_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, prelude, config = (tmp_path / name for name in ("s.jsonl", "prelude.txt", "chosen.toml"))
    script.write_text(json.dumps({"id": "a", "messages": [{"role": "user", "content": "hi"}]}) + "\n")
    prelude.write_text("User: hi\n\nAssistant: Hi.\n\n")
    given = ["--top-p", "0.9", "--system", 'Be "kind"\x7f\n\t😀', "--stop", "\n", "--ban", "5", "--no-penalty", "，"]
    given += ["--max-tokens", "4", "--max-seconds", "9.5", "--prelude", str(prelude), "--think", "fake"]
    run = str(tmp_path / "run")
    assert invoke(["run", str(script), "--out", run, "--temp", "0.3,1e-05", *given]) == ExitCode.DONE
    capsys.readouterr()
    assert invoke(["show", run, "--settings"]) == ExitCode.USAGE
    assert "needs one cell, got temp=0.3, temp=1e-05" in capsys.readouterr().err
    assert invoke(["show", run, "--settings", "--cell", "*1e-05"]) == ExitCode.DONE
    config.write_text(capsys.readouterr().out)
    again = str(tmp_path / "again")
    assert invoke(["run", str(script), "--out", again, "--config", str(config)]) == ExitCode.DONE
    cells = [json.loads((Path(path) / "manifest.json").read_text())["identity"]["cells"] for path in (run, again)]
    # A system message of a settings file does not replace the script's.
    assert cells[1]["base"] == cells[0]["temp=1e-05"] | {"system_only_where_script_has_none": True}
    assert cells[1]["base"]["prelude_sha256"] is not None
    capsys.readouterr()
    assert invoke(["show", run, "--settings", "--cell", "*1e-05", "--failed"]) == ExitCode.USAGE


def test_the_settings_of_a_cell_replace_the_initial_exchange_of_chats(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = Path(run).rename(Path(run).with_name("new\nline = 1\x0b"))
    assert invoke(["show", str(renamed), "--settings", "--cell", "t=1"]) == ExitCode.DONE
    values = tomllib.loads(capsys.readouterr().out)
    assert values["prelude"] == "none"
    assert "line" not in values
