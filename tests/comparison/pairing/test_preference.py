"""`compare` with a judge of pairs: both orders, ties, gates, formats, stored answers, missing verdicts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rwkvbatch.cli.app import invoke
from rwkvbatch.comparison import compare
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.report import formats
from rwkvbatch.comparison.report.html import as_html
from rwkvbatch.comparison.report.junit import as_junit
from rwkvbatch.comparison.report.terminal import print_analysis
from rwkvbatch.errors import UsageError
from rwkvbatch.judges.answers import JudgeAnswer, JudgeAnswers, MemoryRecord
from rwkvbatch.judges.pairs import PairJudge
from rwkvbatch.judges.questions import VoteRequest
from rwkvbatch.results.answers import PREFERENCES_NAME
from tests.comparison.make_run import make_row, make_run, write_run
from tests.judges.fakes import FakeJudge, reply_in

Answer = Callable[[VoteRequest], JudgeAnswer]


def prefer_longer(ask: VoteRequest) -> JudgeAnswer:
    a, b = (reply_in(ask.question.text, f"reply_{name}") for name in "ab")
    return JudgeAnswer(0.9 if len(a) > len(b) else 0.1)


def pair_judge(answer: Answer = prefer_longer) -> tuple[PairJudge, FakeJudge]:
    judge = FakeJudge(answer)
    return PairJudge(JudgeAnswers(judge, "d", MemoryRecord()), "fake#d"), judge


def runs(
    tmp_path: Path, conversations: int = 12, change: Callable[[dict[str, Any], Any], None] | None = None
) -> list[str]:
    """Two runs; replies of the second are longer, but for those of turn 0, which are equal."""

    def of_variant(row: dict[str, Any], rng: np.random.Generator) -> None:
        if row["turn"]:
            row["reply"] += " And more."
        if change is not None:
            change(row, rng)

    make_run(tmp_path / "a", conversations=conversations)
    make_run(tmp_path / "b", conversations=conversations, change=of_variant)
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_wins_in_both_orders_are_tested_by_conversation(tmp_path: Path) -> None:
    judge, asked = pair_judge()
    analysis = compare(runs(tmp_path), judge=judge)
    (line,) = analysis.comparisons
    assert analysis.primary is not None
    assert (analysis.primary.name, line.exploratory) == ("preference", False)
    assert (line.num_values, line.num_conversations, line.wins, line.ties, line.losses) == (48, 12, 12, 0, 0)
    # Half of the pairs are won, half are equal replies.
    assert (line.variant_mean, line.baseline_mean, line.difference) == (0.75, 0.25, 0.5)
    assert line.verdict == "better"
    (found,) = analysis.preferences
    assert (found.pairs, found.wins, found.ties, found.losses, found.equal) == (48, 24, 24, 0, 24)
    assert (found.judged, found.disagreements, found.missing) == (24, 0, 0)
    assert len(asked.asked) == 48  # both orders of 24 pairs


def test_orders_that_disagree_are_ties_and_counted_as_position_bias(tmp_path: Path) -> None:
    judge, _ = pair_judge(lambda _: JudgeAnswer(0.8))
    analysis = compare(runs(tmp_path), judge=judge)
    (line,), (found,) = analysis.comparisons, analysis.preferences
    assert (line.difference, line.verdict) == (0.0, "equal values")
    assert (found.ties, found.judged, found.disagreements, found.first) == (48, 24, 24, 24)
    assert "the two orders disagree on 24 of 24 (100%), 24 times for the reply shown first" in found.sentence
    assert found.sentence in analysis.notes


def test_swapping_the_runs_asks_no_new_question_and_negates_the_difference(tmp_path: Path) -> None:
    judge, asked = pair_judge()
    forward = compare(runs(tmp_path), judge=judge)
    number = len(asked.asked)
    reverse = compare([str(tmp_path / "b"), str(tmp_path / "a")], judge=judge)
    assert len(asked.asked) == number
    assert reverse.comparisons[0].difference == -forward.comparisons[0].difference


def test_a_missing_verdict_is_left_out_and_fails_gates_on_the_preference(tmp_path: Path) -> None:
    def answer(ask: VoteRequest) -> JudgeAnswer:
        return JudgeAnswer(problem="down") if "talk-3?" in ask.question.text else prefer_longer(ask)

    judge, _ = pair_judge(answer)
    gates: dict[str, Any] = {"fail_if": ["preference < baseline"], "judge": judge}
    analysis = compare(runs(tmp_path), **gates)
    (found,), (line,), (gate,) = analysis.preferences, analysis.comparisons, analysis.gates
    assert (found.missing, found.reason, found.pairs, line.num_values) == (2, "down", 48, 46)
    sentence = "Not as planned: 2 pairs without the judge's verdict in b (left out)."
    terminal = io.StringIO()
    print_analysis(analysis, Console(file=terminal, width=100))
    for text in (formats.as_markdown(analysis), as_html(analysis), terminal.getvalue()):
        assert sentence in unescape(text).replace("\\", "")
    assert gate.failed
    assert "2 pairs without a verdict of the judge" in gate.reason
    assert not compare(runs(tmp_path / "again"), allow_missing=True, **gates).gates[0].failed
    # Gates on other metrics do not need the verdicts.
    assert not compare(runs(tmp_path / "more"), fail_if=["score < 1e-9"], judge=judge).gates[0].failed


def test_equal_pairs_are_not_identical_while_others_lack_a_verdict(tmp_path: Path) -> None:
    asked, _ = pair_judge(lambda _: JudgeAnswer(problem="down"))
    analysis = compare(runs(tmp_path), judge=asked)
    (line,) = analysis.comparisons
    assert (line.identical, line.num_without_preference, line.num_values) == (True, 24, 24)
    assert line.verdict == "no difference found"
    printed = every_format(analysis)
    assert all("no difference found" in text for text in printed.values())
    assert not [name for name in ("md", "csv", "json", "junit") if "identical" in printed[name]]
    assert "All pairs with a verdict are equal." in printed["md"]
    (record,) = csv.DictReader(io.StringIO(printed["csv"]))
    assert (record["num_values"], record["num_without_preference"]) == ("24", "24")
    assert "24 pairs of 12 conversations\nNot as planned: 24 pairs without the judge's verdict in" in printed["junit"]
    by_turn = compare(runs(tmp_path / "again"), judge=asked, by="turn")
    verdicts = {line.group: line.verdict for line in by_turn.comparisons if line.group}
    assert verdicts["turn 0"] == "identical"  # the judge is not asked about equal replies
    assert verdicts.get("turn 1") != "identical"


def test_an_error_loses_to_a_reply(tmp_path: Path) -> None:
    def fail(row: dict[str, Any], _: np.random.Generator) -> None:
        if row["conversation"] == "talk-0":
            row |= {"finish_reason": "error", "error": "out of memory", "reply": "", "checks": []}

    judge, _ = pair_judge()
    (found,) = compare(runs(tmp_path, change=fail), judge=judge).preferences
    assert (found.errors, found.losses, found.wins) == (4, 4, 22)


def test_each_reply_is_shown_after_the_dialogue_of_its_run(tmp_path: Path) -> None:
    def rows(word: str) -> list[dict[str, Any]]:
        rows = [make_row("c", turn=turn, reply=f"{word} {turn}") for turn in range(3)]
        rows[1]["reference"]["text"] = "<think>\nhm\n</think>\nAnswer 1."
        return rows

    for name, history in (("a", "own"), ("b", "own"), ("g", "gold"), ("h", "gold")):
        cells = {"base": {"history": history}}
        write_run(tmp_path / name, rows(name), {"identity": {"cells": cells}})
    judge, asked = pair_judge()
    compare([str(tmp_path / "a"), str(tmp_path / "b")], judge=judge)
    last = next(ask.question.text for ask in asked.asked if "Question 2" in ask.question.text)
    assert "Assistant: a 0\nUser: Question 1 of c?\nAssistant: a 1\nUser: Question 2" in reply_in(
        last, "conversation_a"
    )
    assert "Assistant: b 1" in reply_in(last, "conversation_b")
    judge, asked = pair_judge()
    compare([str(tmp_path / "g"), str(tmp_path / "h")], judge=judge)
    last = next(ask.question.text for ask in asked.asked if "Question 2" in ask.question.text)
    assert "Assistant: Answer 1.\nUser: Question 2" in reply_in(last, "conversation")


def test_another_criterion_asks_new_questions(tmp_path: Path) -> None:
    paths = runs(tmp_path)
    record, judge = MemoryRecord(), FakeJudge(prefer_longer)
    for number, criterion in enumerate(("Be brief.", "Be long."), start=1):
        compare(paths, judge=PairJudge(JudgeAnswers(judge, "d", record), "fake#d", criterion))
        assert len(judge.asked) == 48 * number
        assert reply_in(judge.asked[-1].question.text, "criterion") == criterion


def every_format(analysis: Analysis) -> dict[str, str]:
    texts = {"md": formats.as_markdown(analysis), "csv": formats.as_csv(analysis), "json": formats.as_json(analysis)}
    return {**texts, "html": as_html(analysis), "junit": as_junit(analysis, conversations=True)}


@pytest.mark.usefixtures("undrawn")
def test_every_format_has_the_metric_and_the_position_bias(tmp_path: Path) -> None:
    make_run(tmp_path / "s", cells=("x", "y", "z"), conversations=4, repeats=1)
    judge, _ = pair_judge()
    analysis = compare([str(tmp_path / "s")], judge=judge, metrics=["preference", "score"])
    assert not any(ranking.metric.name == "preference" for ranking in analysis.rankings)
    texts = every_format(analysis)
    for name, text in texts.items():
        assert "preference" in text, name
        assert name in ("csv", "junit") or "the two orders disagree on" in text
    (first, second) = json.loads(texts["json"])["preferences"]
    assert (first["judge"], second["judged"] > 0) == ("fake#d", True)


@pytest.mark.parametrize(
    "options", [{"primary": "preference"}, {"metrics": ["preference"]}, {"fail_if": ["preference < 1"]}]
)
def test_preference_without_a_judge_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="what a judge says about pairs"):
        compare(runs(tmp_path), **options)


def test_a_judge_with_a_single_variant_is_refused(tmp_path: Path) -> None:
    judge, _ = pair_judge()
    make_run(tmp_path / "a")
    with pytest.raises(UsageError, match="two variants"):
        compare([str(tmp_path / "a")], judge=judge)


def test_over_checkpoints_the_primary_metric_cannot_be_preference(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make_run(tmp_path / f"step-{step}", seed=step)
    paths, (judge, _) = [str(tmp_path / f"step-{step}") for step in (1, 2, 3)], pair_judge()
    with pytest.raises(UsageError, match="--over has no trend of preference"):
        compare(paths, judge=judge, over="step")
    analysis = compare(paths, judge=judge, over="step", primary="score", metrics=["preference"])
    assert [trend.metric.name for trend in analysis.trends] == ["score"]


def unjudged(row: dict[str, Any], _: np.random.Generator) -> None:
    check = {"kind": "judge", "expected": "Kind.", "weight": 1.0, "passed": True, "score": 1.0, "detail": "Yes"}
    row["checks"] = [{**check, "judge": "fake#0"}]
    if row["conversation"] == "talk-1" and row["turn"] == 1:
        row["checks"] = [{**check, "passed": None, "score": None, "detail": "the server is down"}]


def test_checks_without_a_verdict_are_left_out_counted_and_fail_gates(tmp_path: Path) -> None:
    make_run(tmp_path / "a", change=unjudged)
    make_run(tmp_path / "b", change=unjudged)
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    analysis = compare(paths, fail_if=["score < 0.5"], metrics=["score", "passed", "pass_at_2", "unjudged"])
    score, passed, passes, counts = analysis.comparisons
    assert (passed.variant_mean, passed.num_values) == (1.0, 46)
    assert (score.variant_mean, score.num_values) == (1.0, 46)
    assert (passes.num_conversations, counts.variant_mean) == (11, 2.0)
    (gate,) = analysis.gates
    assert gate.failed
    assert "2 turns without a verdict" in gate.reason
    assert not compare(paths, fail_if=["score < 0.5"], allow_missing=True).gates[0].failed
    assert not compare(paths, fail_if=["score < 0.5", "unjudged > 2"], allow_missing=True).failed
    assert "4 turns without a verdict in a and b" in formats.as_markdown(analysis)
    junit = as_junit(analysis, conversations=True)
    assert re.search(r'name="talk-1">\s*<skipped [^>]*the server is down', junit)
    assert "no verdict" in as_html(analysis)


def test_different_judges_of_checks_are_noted(tmp_path: Path) -> None:
    def other(row: dict[str, Any], rng: np.random.Generator) -> None:
        unjudged(row, rng)
        row["checks"][0]["judge"] = "other#1"

    make_run(tmp_path / "a", change=unjudged)
    make_run(tmp_path / "b", change=other)
    analysis = compare([str(tmp_path / "a"), str(tmp_path / "b")])
    assert any("different judges (a: fake#0; b: other#1)" in note for note in analysis.notes)
    assert not any("different judges" in note for note in compare([str(tmp_path / "a")]).notes)


def test_the_command_stores_its_answers_in_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = runs(tmp_path, 6)
    command = ["compare", *paths, "--judge", "bundled", "--judge-criterion", "Be brief.", "--json"]
    assert invoke(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["primary"] == "preference"
    stored = tmp_path / "a" / PREFERENCES_NAME
    before = stored.read_bytes()
    assert before.count(b'"probability"') == 24
    assert invoke(["compare", *paths[::-1], *command[3:]]) == 0
    assert stored.read_bytes() == before
    second = json.loads(capsys.readouterr().out)["preferences"][0]
    assert second["wins"] == first["preferences"][0]["losses"]


def test_options_of_a_judge_without_one_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["compare", *runs(tmp_path, 2), "--judge-criterion", "x"]) == 2
    assert "--judge FILE or --judge-url URL" in capsys.readouterr().err


def test_answers_that_cannot_be_stored_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = runs(tmp_path, 2)
    (tmp_path / "a" / PREFERENCES_NAME).mkdir()
    assert invoke(["compare", *paths, "--judge", "bundled"]) == 0
    assert "the judge's answers are not stored" in capsys.readouterr().err
