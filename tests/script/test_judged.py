"""The check `judge`: its options, its verdicts from those of a judge, and combinations with missing ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.errors import ScriptError
from rwkvbatch.script.checks import judge_all, parse_checks
from rwkvbatch.script.checks.judged import MAX_RUBRIC, NOT_ASKED, Rubric
from rwkvbatch.script.lines import SourceLine
from rwkvbatch.script.lint import lint
from rwkvbatch.script.reader import read_scripts
from rwkvbatch.script.records import JudgeVerdict, ReplyFacts, Verdict

HERE = SourceLine("s.jsonl", 3)
KIND = {"judge": "Kind."}


def verdict(expect: Any, passed: bool | str | None = "not asked", reply: str = "Hello elm") -> Verdict:
    checks = parse_checks(expect, HERE)
    judge_verdicts = {} if passed == "not asked" else {Rubric("Kind."): JudgeVerdict(passed, "the reason", "j#1")}  # type: ignore[arg-type]
    return judge_all(checks, ReplyFacts(reply, "stop", 3, judge_verdicts=judge_verdicts))


@pytest.mark.parametrize(
    ("expect", "problem"),
    [
        ({"judge": ""}, "must be a rubric"),
        ({"judge": ["Kind."]}, "must be a rubric"),
        ({"judge": "x" * (MAX_RUBRIC + 1)}, "at most 10,000 characters"),
        ({**KIND, "votes": 2}, r"odd number in \[1, 99\]"),
        ({**KIND, "votes": 0}, "odd number"),
        ({**KIND, "votes": -1}, "odd number"),
        ({**KIND, "votes": 101}, "odd number"),
        ({**KIND, "votes": 3.0}, "odd number"),
        ({**KIND, "votes": True}, "odd number"),
        ({**KIND, "context": "all"}, "one of turn, dialogue"),
        ({**KIND, "reference": "yes"}, "true or false"),
        ({**KIND, "vote": 3}, "unknown key 'vote'"),
    ],
)
def test_an_invalid_value_is_refused_with_its_line(expect: dict[str, Any], problem: str) -> None:
    with pytest.raises(ScriptError, match=f"^s.jsonl:3: .*{problem}"):
        parse_checks(expect, HERE)


def test_the_rubric_has_the_options_of_the_check() -> None:
    (check,) = parse_checks({"judge": " Kind. ", "votes": 5, "context": "dialogue", "reference": True}, HERE)
    assert check.rubrics == (Rubric("Kind.", 5, "dialogue", True),)
    assert check.needs_reference
    nested = parse_checks({"any": [{"all": [KIND, {"contains": "x"}]}, {"not": {"judge": "Rude."}}]}, HERE)
    assert nested[0].rubrics == (Rubric("Kind."), Rubric("Rude."))


def test_a_rubric_with_a_reference_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    turn = {"role": "user", "content": "Hi", "expect": {**KIND, "reference": True}}
    path.write_text(json.dumps({"messages": [turn]}) + "\n")
    with pytest.raises(ScriptError, match="needs a reference reply"):
        read_scripts([str(path)])


@pytest.mark.parametrize(
    ("expect", "passed", "found"),
    [
        (KIND, True, (True, 1.0)),
        (KIND, False, (False, 0.0)),
        (KIND, None, None),
        (KIND, "not asked", None),
        ({"not": KIND}, False, (True, 1.0)),
        ({"not": KIND}, None, None),
        ({"all": [KIND, {"contains": "elm"}]}, None, None),
        ({"all": [KIND, {"contains": "fir"}]}, None, None),
        ({"any": [KIND, {"contains": "elm"}]}, None, (True, 1.0)),
        ({"any": [KIND, {"contains": ["elm", "fir"]}]}, None, None),
        ({"any": [KIND, {"contains": "fir"}]}, None, None),
        ({"any": [KIND, {"contains": "fir"}]}, True, (True, 1.0)),
        ([{"contains": "fir"}, {"not": {"any": [KIND]}}], None, None),
    ],
)
def test_a_missing_verdict_is_neither_a_pass_nor_a_fail_in_any_combination(
    expect: Any, passed: Any, found: tuple[bool, float] | None
) -> None:
    result = verdict(expect, passed)
    assert result.missing == (found is None)
    if found is None:
        assert result.detail is not None
        assert (NOT_ASKED if passed == "not asked" else "the reason") in result.detail
    else:
        assert (result.passed, result.score) == found


def test_lint_finds_a_rubric_that_names_a_reference_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    rubric = {"judge": "Says the same as the reference."}
    messages = [
        {"role": "user", "content": "Hi", "expect": rubric},
        {"role": "user", "content": "Hi", "expect": {**rubric, "reference": True}},
        {"role": "assistant", "content": "Hello"},
    ]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    (warning,) = lint(read_scripts([str(path)]).conversations)
    assert (warning.code, warning.place) == ("rubric-without-reference", "turn 0")


def test_a_dry_run_counts_the_questions_to_the_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.jsonl"
    turn = {"role": "user", "content": "Hi", "expect": [KIND, KIND, {"not": {"judge": "Rude."}}]}
    path.write_text(json.dumps({"messages": [turn, turn]}) + "\n")
    options = ["--temp", "0.5,1", "--repeats", "3", "--dry-run"]
    assert invoke(["run", str(path), *options]) == 0
    assert re.search(r"^questions to the judge +at most 24,", capsys.readouterr().out, re.MULTILINE)
    assert invoke(["run", str(path), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judge_questions"] == 24


@pytest.fixture
def rubric_script(tmp_path: Path) -> str:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi", "expect": KIND}]}) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge", "bundled", "--judge-strategy", "cpu fp64"], "--judge-strategy must be one of"),
        (["--judge-url", "nowhere"], "--judge-url must be an http or https URL"),
        (["--judge-url", "http://127.0.0.1:9/v1", "--judge-body", "[]"], "--judge-body must be a JSON object"),
    ],
)
def test_a_dry_run_refuses_a_judge_that_a_run_would_refuse(
    options: list[str], message: str, rubric_script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in (["--dry-run"], ["--quiet"]):
        assert invoke(["run", rubric_script, *options, *more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (["--judge", "none.pth"], "none.pth: "),
        ([], "the script has checks that a judge answers, and none is given"),
        (["--judge-url", "http://127.0.0.1:9/v1"], None),  # no server is asked
        (["--judge", "bundled"], None),
    ],
)
def test_a_dry_run_warns_of_a_judge_that_is_missing(
    options: list[str], warning: str | None, rubric_script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["run", rubric_script, *options, "--dry-run", "--json"]) == 0
    warnings: list[str] = json.loads(capsys.readouterr().out)["warnings"]
    assert len(warnings) == (warning is not None)
    assert all(text.startswith(str(warning)) for text in warnings)


def test_a_dry_run_warns_of_a_judge_without_rubrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}) + "\n")
    assert invoke(["run", str(path), "--judge", "bundled", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == ["a judge is given, and the script has no check `judge`"]
