"""The `rwkvbatch compare` command: formats, files, exit codes, errors."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import warnings
from pathlib import Path

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.exits import ExitCode
from tests.comparison.hostile import hostile_run
from tests.comparison.make_run import make_row, make_run, write_run


@pytest.fixture
def sweep(tmp_path: Path) -> str:
    return str(make_run(tmp_path / "sweep", cells=("t=1", "t=2")))


def test_the_table_goes_to_standard_output(sweep: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["compare", sweep]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert "score ↑ against t=1" in out
    assert err == ""


def test_notes_go_to_standard_error_and_quiet_silences_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(make_run(tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]
    invoke(["compare", *runs])
    assert "note: different seeds" in capsys.readouterr().err
    invoke(["compare", *runs, "--quiet"])
    assert capsys.readouterr().err == ""


def test_json_on_standard_output_is_nothing_but_json(sweep: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert invoke(["compare", sweep, "--json"]) == ExitCode.DONE
    assert json.loads(capsysbinary.readouterr().out)["comparisons"]


@pytest.mark.parametrize(
    ("name", "begins"),
    [("r.html", "<!doctype html>"), ("r.md", "**"), ("r.csv", "baseline,"), ("r.json", "{"), ("r.xml", "<?xml")],
)
def test_the_ending_of_the_file_chooses_the_format(sweep: str, tmp_path: Path, name: str, begins: str) -> None:
    assert invoke(["compare", sweep, "--out", str(tmp_path / name)]) == ExitCode.DONE
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(begins)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "sweep"]), "no half-written file stays"


def test_a_format_can_be_asked_for(sweep: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    invoke(["compare", sweep, "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsysbinary.readouterr().out.decode())))
    assert rows[0]["metric"] == "score"


def test_a_failed_gate_ends_with_exit_code_1_and_a_line(sweep: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = invoke(["compare", sweep, "--fail-if", "tokens < 9999", "--fail-if", "score < 1e-9"])
    assert code == ExitCode.FAILED
    out = capsys.readouterr().out
    assert "FAILED: fail-if tokens < 9999" in out
    assert "passed: fail-if score < 1e-9" in out


@pytest.mark.parametrize("variables", [{"COLUMNS": "40"}, {"COLUMNS": "40", "FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_the_line_of_a_gate_is_not_wrapped_in_a_pipe(
    variables: dict[str, str], sweep: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    gates = ["--fail-if", "nll > baseline - 1000", "--fail-unless", "score >= baseline - 0.00012345 significantly"]
    assert invoke(["compare", sweep, *gates]) == ExitCode.FAILED
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert (
        len(
            [
                line
                for line in lines
                if re.fullmatch(r"FAILED: fail-if nll > baseline - 1000: t=2 has .*, the limit is .*", line)
            ]
        )
        == 1
    )
    found = [line for line in lines if re.match(r"(FAILED|passed): fail-unless score >= baseline", line)]
    assert len(found) == 1
    assert re.search(r", difference from it .*\] is (not )?significant", found[0])


def test_a_passed_gate_ends_with_exit_code_0(sweep: str) -> None:
    assert invoke(["compare", sweep, "--fail-if", "score < baseline - 0.95"]) == ExitCode.DONE


def test_gates_can_be_made_to_demand_significance(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]
    gates = ["--fail-if", "nll > baseline", "--fail-if", "nll < baseline"]
    assert invoke(["compare", *runs, *gates]) == ExitCode.FAILED
    assert invoke(["compare", *runs, *gates, "--gate-significant"]) == ExitCode.DONE


def test_the_step_summary_of_continuous_integration_is_appended_to(
    sweep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    invoke(["compare", sweep, "--fail-if", "tokens < 9999"])
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("before\n## rwkvbatch compare")
    assert "❌ FAILED: fail-if tokens \\< 9999" in text


def test_a_device_is_written_to_and_not_replaced(sweep: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.md"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert invoke(["compare", sweep, "--out", str(pipe), "--quiet"]) == ExitCode.DONE
        assert os.read(reader, 10_000).startswith(b"**score: no difference found")
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_nobody_else_may_write_a_report_whatever_the_umask(sweep: str, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        invoke(["compare", sweep, "--out", str(tmp_path / "report.md"), "--quiet"])
    finally:
        os.umask(before)
    assert (tmp_path / "report.md").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--fail-if", "scor < 1"], ExitCode.USAGE, "no metric is called 'scor'"),
        (["--format", "pdf"], ExitCode.USAGE, "--format must be one of table, md"),
        (["--by", "mood"], ExitCode.USAGE, "--by must be turn, tag or distance"),
        (["--margin", "0"], ExitCode.USAGE, "--margin must be a positive number"),
        (["--primary", "scor"], ExitCode.USAGE, "--primary must be one of score, passed, "),
        (["--primary", "perplexity"], ExitCode.USAGE, "cannot decide; nll can"),
        (["--baseline", "t=1", "--baseline=t=2"], ExitCode.USAGE, "--baseline is given twice"),
        (["--k", "1", "--k", "2"], ExitCode.USAGE, "several values go into a list: --k 1,2"),
        (["--k", "9"], ExitCode.USAGE, "pass_at_9 cannot be estimated"),
        (["--k", "0"], ExitCode.USAGE, "--k must be whole numbers in [1, 999999], such as 1,5; got '0'"),
        (["--k", "9" * 5000], ExitCode.USAGE, "--k must be whole numbers in [1, 999999], such as 1,5; got '999"),
        (["--baseline", "t=9"], ExitCode.USAGE, "--baseline must be one of"),
        (["--metric", "bleu"], ExitCode.USAGE, "--metric must be one of score"),
        (["--show", "nobody"], ExitCode.USAGE, "no matched conversation"),
        (["--show", "talk-2", "--out", "r.html"], ExitCode.USAGE, "in place of the report that --out is for"),
        (["--show", "talk-2", "--format", "md"], ExitCode.USAGE, "in place of the report that --format is for"),
        (["--show", "talk-2", "--json"], ExitCode.USAGE, "in place of the report that --json is for"),
        (["--changes", "2", "--format", "csv"], ExitCode.USAGE, "--changes is not for the format csv"),
        (
            ["--changes", "2", "--out", "r.html"],
            ExitCode.USAGE,
            "it has all conversations, the most changed ones first",
        ),
        (["--changes", "2", "--show", "talk-2"], ExitCode.USAGE, "in place of the report that --changes is for"),
        (["--json", "--format", "csv"], ExitCode.USAGE, "--json and --format csv ask for different formats"),
        (["--json", "--out", "r.html"], ExitCode.USAGE, "--json and --out r.html ask for different formats"),
        (["--show", "talk-2", "--fail-if", "tokens < 9999"], ExitCode.FAILED, "FAILED: fail-if tokens < 9999"),
        (
            ["--out", "/dev/null/r.html"],
            ExitCode.INTERNAL,
            "cannot be written: Not a directory\n  the folder must exist\n",
        ),
        (
            ["--out", "/dev/full"],
            ExitCode.INTERNAL,
            "cannot be written: No space left on device\n  make room on the disk",
        ),
        (
            ["--out", "nowhere/r.html"],
            ExitCode.INTERNAL,
            "cannot be written: No such file or directory\n  the folder must exist\n",
        ),
        (["--out", "r.pdf"], ExitCode.USAGE, "the ending must say the format, one of .md, .csv"),
        (["nowhere/run"], ExitCode.BAD_INPUT, "there is no such run"),
    ],
)
def test_wrong_options_have_one_message_and_their_exit_code(
    sweep: str,
    arguments: list[str],
    code: ExitCode,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(["compare", sweep, *arguments]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["nll", "reference nll", "pass@2", "pass_at_2", "all 2 pass", "failed"])
def test_a_metric_goes_by_the_name_that_the_table_prints_and_by_old_ones(
    sweep: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["compare", sweep, "--metric", name]) == ExitCode.DONE
    printed_name = capsys.readouterr().out.split()[0]
    assert invoke(["compare", sweep, "--metric", printed_name]) == ExitCode.DONE
    assert capsys.readouterr().out.split()[0] == printed_name


def test_runs_of_other_scripts_need_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", identity_changes={"script": {"sha256": "99" * 32}})
    assert invoke(["compare", str(a), str(b)]) == ExitCode.BAD_INPUT
    assert "--force" in capsys.readouterr().err
    assert invoke(["compare", str(a), str(b), "--force"]) == ExitCode.DONE


def test_showing_an_unknown_conversation_names_those_like_it(
    sweep: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["compare", sweep, "--show", "tolk-2"]) == ExitCode.USAGE
    assert "such as talk-2" in capsys.readouterr().err
    alone = str(make_run(tmp_path / "alone", conversations=2))
    assert invoke(["compare", alone, "--show", "talk-1"]) == ExitCode.USAGE
    assert "rwkvbatch show RUN ID" in capsys.readouterr().err


def test_one_conversation_can_be_shown_side_by_side(sweep: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["compare", sweep, "--show", "talk-2"]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "Question 1 of talk-2?" in out
    assert "95 %" not in out


def test_lone_surrogates_do_not_break_the_output(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    def change(row: dict[str, object], rng: object) -> None:
        del rng
        row["reply"] = "half a pair: \ud800"
        row["tags"] = ["\udfff"]

    path = str(make_run(tmp_path / "a", cells=("t=1", "t=2"), change=change))
    for output in ("json", "md", "csv", "junit", "html"):
        assert invoke(["compare", path, "--by", "tag", "--format", output]) == ExitCode.DONE, output
    assert invoke(["compare", path]) == ExitCode.DONE
    assert invoke(["compare", path, "--show", "talk-1"]) == ExitCode.DONE
    assert invoke(["show", path, "--json"]) == ExitCode.DONE
    capsysbinary.readouterr().out.decode()


def test_a_missing_folder_is_found_before_the_runs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["compare", "nowhere/run", "--out", "nowhere/r.html"]) == ExitCode.INTERNAL
    assert "--out nowhere/r.html: cannot be written: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["table", "md", "csv", "json", "html", "junit"])
def test_a_hostile_run_can_be_written_in_every_format(tmp_path: Path, output: str) -> None:
    path = str(hostile_run(tmp_path / "a"))
    assert invoke(["compare", path, "--format", output, "--out", str(tmp_path / "out")]) == ExitCode.DONE


@pytest.mark.parametrize("before", [0, 500_000, 2**20 - 200, 2**20])
def test_a_step_summary_stays_below_1_mib_and_says_that_it_was_cut(
    tmp_path: Path, before: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rwkvbatch.comparison.report import formats

    monkeypatch.setattr(formats, "as_markdown", lambda *_, **__: "| é | one line of a table |\n" * 60_000)
    summary = tmp_path / "summary.md"
    summary.write_bytes(b"x" * before)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    run = make_run(tmp_path / "run")
    assert invoke(["compare", str(run)]) == ExitCode.DONE
    data = summary.read_bytes()
    assert len(data) <= max(before, 2**20 - 1)
    assert data.startswith(b"x" * before)
    data.decode()
    if before < 2**20 - 1:
        assert data.endswith(
            b"\n**The report is cut here:** summaries must be below 1 MiB. `--out report.md` writes it whole.\n"
        )
        assert len(data) > 2**20 - 250
    else:
        assert len(data) == before
        assert "has reached the limit of 1 MiB" in capsys.readouterr().err


def test_a_non_inferiority_gate_that_lacks_data_prints_the_sample_size(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    runs = [str(make_run(tmp_path / name, seed=seed)) for seed, name in enumerate("ab")]
    gate = ["--fail-unless", "score >= baseline - 0.02 significantly"]
    assert invoke(["compare", *runs, *gate, "--json"]) == ExitCode.FAILED
    (found,) = json.loads(capsysbinary.readouterr().out)["gates"]
    assert found["conversations_needed"] > 100
    assert "conversations of 2 repetitions show it" in found["note"]
    assert found["option"] == "--fail-unless"


def test_an_unfinished_run_fails_and_partial_judges_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    status = {"state": "running", "rows_total": 160, "pid": 2**22 + 1, "host": "elsewhere", "updated": "today"}
    (run / "status.json").write_text(json.dumps(status))
    gate = ["--fail-if", "score < 0.01"]
    assert invoke(["compare", str(run), *gate]) == ExitCode.FAILED
    assert "is not finished: 112 planned turns are missing" in " ".join(capsys.readouterr().out.split())
    assert invoke(["compare", str(run), *gate, "--partial"]) == ExitCode.DONE


def test_a_step_summary_that_is_no_file_is_noted_and_the_comparison_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    run = make_run(tmp_path / "run")
    assert invoke(["compare", str(run)]) == ExitCode.DONE
    assert f"$GITHUB_STEP_SUMMARY was not written: {tmp_path} is not a regular file" in capsys.readouterr().err


def gated(tmp_path: Path) -> list[str]:
    """Runs of eight conversations of which `branch` fails two, and `main` the first of these."""

    def rows(failing: tuple[int, ...]) -> list[dict[str, object]]:
        checks = [
            {"kind": "contains", "expected": "Ada", "passed": ok, "score": float(ok), "weight": 1.0, "detail": None}
            for ok in (number not in failing for number in range(8))
        ]
        return [
            make_row(f"talk-{number}", checks=[check], reply="Ada\n| `x`" if check["passed"] else f"No {failing}.")
            for number, check in enumerate(checks)
        ]

    write_run(tmp_path / "main", rows((1,)), manifest={})
    write_run(tmp_path / "branch", rows((1, 5)), manifest={})
    return [str(tmp_path / "main"), str(tmp_path / "branch")]


@pytest.mark.parametrize("arguments", [[], ["--out", "gates.xml"], ["--format", "junit"], ["--json"]])
def test_a_failed_gate_names_its_conversations_with_both_replies_in_every_format(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = gated(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    gates = ["--fail-if", "score < baseline - 0.1", "--fail-if", "score < 0.1"]
    assert invoke(["compare", *runs, *gates, *arguments]) == ExitCode.FAILED
    out, err = capsys.readouterr()
    log = err if arguments else out
    assert (
        "FAILED: fail-if score < baseline - 0.1: branch has 0.75, the limit is 0.775\n"
        "  fails because of 1 conversation:\n"
        "    talk-5, turn 0: contains 'Ada' failed; main passed\n"
        "      prompt: Question 0 of talk-5?\n"
        "      main: Ada | `x`\n"
        "      branch: No (1, 5).\n"
        f"  all of them: rwkvbatch compare {runs[0]} {runs[1]} --changes 1\n"
    ) in log
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("## rwkvbatch compare\n\n**❌ 1 of 2 gates failed**\n")
    assert "| talk-5 | 0 | contains 'Ada' failed; main passed | Question 0 of talk-5? | Ada \\| \\`x\\` | No" in summary
    assert f"All of them: <code>rwkvbatch compare {runs[0]} {runs[1]} --changes 1</code>" in summary.replace("\\_", "_")


def test_the_conversations_of_a_gate_on_a_number_are_those_beyond_it_and_the_rest_is_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(make_run(tmp_path / "run", conversations=40, repeats=1))
    assert invoke(["compare", run, "--fail-if", "score < 0.9"]) == ExitCode.FAILED
    out = capsys.readouterr().out
    found = re.search(r"fails because of (\d+) conversations, the worst 5:", out)
    assert found is not None
    assert 5 < int(found[1]) < 40
    assert out.count("contains 'boat' failed\n") == 5
    assert f"  all of them: rwkvbatch show {run} --failed\n" in out
    assert invoke(["compare", run, "--fail-if", "score < 0.1"]) == ExitCode.DONE
    assert "because of" not in capsys.readouterr().out


def test_a_gate_that_errors_or_missing_turns_fail_names_these(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, branch = gated(tmp_path)
    lines = Path(branch, "results.jsonl").read_text(encoding="utf-8").splitlines()
    failed = make_row("talk-3", finish_reason="error", error="out of memory", checks=[])
    rows = [failed if number == 3 else json.loads(line) for number, line in enumerate(lines) if number != 6]
    write_run(tmp_path / "less", rows, manifest={})
    assert invoke(["compare", main, str(tmp_path / "less"), "--fail-if", "score < 0.1"]) == ExitCode.FAILED
    out = capsys.readouterr().out
    assert "less could not be judged: in less, 1 turn ended in an error, 1 turn missing (--allow-missing" in out
    assert "fails because of 2 conversations, worst first:\n    talk-3, turn 0: error in less: out of memory\n" in out
    assert "    talk-6, turn 0: missing in less\n" in out


@pytest.mark.parametrize("gate", ["baseline.score < 0.99", "bits_per_byte > 1"])
def test_a_gate_whose_metric_no_turn_of_the_variant_has_names_no_conversation(
    gate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = gated(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert invoke(["compare", *runs, "--fail-if", gate]) == ExitCode.FAILED
    assert "because of" not in capsys.readouterr().out


def test_changes_are_in_every_format_that_takes_them(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    runs = gated(tmp_path)
    for output in ("table", "md", "json", "junit"):
        assert invoke(["compare", *runs, "--format", output]) == ExitCode.DONE
        without = capsysbinary.readouterr().out.decode()
        assert invoke(["compare", *runs, "--format", output, "--changes", "2"]) == ExitCode.DONE
        text = capsysbinary.readouterr().out.decode()
        assert "Question 0 of talk-5?" not in without, output
        assert "Question 0 of talk-5?" in text, output
        assert "Question 0 of talk-1?" in text, output
        assert "Question 0 of talk-2?" not in text, output
