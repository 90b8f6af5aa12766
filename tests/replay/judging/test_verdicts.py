"""Verdicts of judges: in runs that are new, resumed or changed, in `rwkvbatch check`, and without a judge."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkvbatch.cli.app import invoke
from rwkvbatch.errors import RowError, StorageError
from rwkvbatch.files import Files
from rwkvbatch.judges.answers import JudgeAnswer
from rwkvbatch.judges.questions import VoteRequest
from rwkvbatch.replay.judging.recheck import recheck
from rwkvbatch.replay.merge import merge
from rwkvbatch.replay.planning.grid import make_cells
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.row_index import Shard
from rwkvbatch.replay.runner import read_rows
from rwkvbatch.results.row import Row
from rwkvbatch.results.summary import FailureShare
from rwkvbatch.script.checks.judged import NOT_ASKED
from rwkvbatch.script.reader import read_scripts
from tests.judges.fakes import FakeJudge, FakeSource, reply_in
from tests.replay.fakes import FakeLoader, make_plan
from tests.replay.runs import StopAfter, results, run
from tests.script.writing import assistant, conversation, read, user, write

RUBRIC = {"judge": "Names an elm.", "votes": 3}


def plan_of(
    tmp_path: Path, expect: Any = RUBRIC, *, num_conversations: int = 4, repeats: int = 2, **settings: Any
) -> Plan:
    messages = [user(f"Say {turn}", expect=expect) for turn in range(2)]
    lines = [conversation(*messages, id=f"c{n}", tags=["t"]) for n in range(num_conversations)]
    path = write(tmp_path / "script.jsonl", *lines)
    return make_plan(conversations=read_scripts([path]).conversations, repeats=repeats, **settings)


def rows_of(path: Path) -> list[Row]:
    return list(read_rows(path))


def test_rows_have_the_verdicts_of_the_judge_with_its_name_and_votes(tmp_path: Path) -> None:
    source = FakeSource()
    result = run(tmp_path / "run", plan_of(tmp_path), judge=source)
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 32  # 4 conversations, 2 turns, 2 cells, 2 repeats
    for row in rows:
        (check,) = row.checks
        assert check.judge is not None
        assert check.judge.startswith("fake#")
        assert check.detail is not None
        assert "of 3 votes are Yes, probability of Yes 0." in check.detail
    passed = sum(row.checks[0].passed is True for row in rows)
    assert 0 < passed < 32
    assert (result.summary.checks, result.summary.checks_passed, result.summary.unjudged) == (32, passed, 0)
    assert result.summary.failed_checks == {"judge": FailureShare(32 - passed, 32)}
    assert source.num_opened == 1
    # Equal questions are asked once.
    assert len(source.judge.asked) == len({(reply_in(a.question.text), a.question.text) for a in source.judge.asked})


def test_verdicts_in_memory_equal_verdicts_on_disk(tmp_path: Path) -> None:
    on_disk = run(tmp_path / "run", plan_of(tmp_path), judge=FakeSource())
    in_memory = run(None, plan_of(tmp_path), judge=FakeSource())
    assert [row.checks for row in in_memory.rows()] == [row.checks for row in on_disk.rows()]


def test_the_same_command_asks_no_question_and_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "run", plan_of(tmp_path), judge=FakeSource())
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix == ".jsonl"}
    source, loader = FakeSource(), FakeLoader()
    run(tmp_path / "run", plan_of(tmp_path), loader, judge=source)
    assert (len(source.judge.asked), loader.num_generated) == (0, 0)
    run(tmp_path / "run", plan_of(tmp_path), loader)  # without a judge, existing verdicts are kept
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix == ".jsonl"} == before


def test_only_changed_questions_are_asked_again(tmp_path: Path) -> None:
    run(tmp_path / "run", plan_of(tmp_path), judge=FakeSource())
    first = rows_of(tmp_path / "run")
    more, loader = FakeSource(), FakeLoader()
    run(tmp_path / "run", plan_of(tmp_path, num_conversations=5), loader, judge=more)  # another conversation
    assert 0 < len(more.judge.asked) <= 8
    assert {ask.question.text.count("Say") for ask in more.judge.asked} == {1}
    rubric = FakeSource()
    result = run(
        tmp_path / "run", plan_of(tmp_path, {**RUBRIC, "judge": "Names a fir."}, num_conversations=5), judge=rubric
    )
    assert result.reuse is not None
    assert result.reuse.judged_again == 40
    assert all("Names a fir." in ask.question.text for ask in rubric.judge.asked)
    assert rubric.judge.asked
    other = FakeSource(FakeJudge(lambda _: JudgeAnswer(1.0), version=2))
    run(tmp_path / "run", plan_of(tmp_path, num_conversations=5), judge=other)
    assert other.judge.asked
    assert all(row.checks[0].passed for row in rows_of(tmp_path / "run"))
    first_again = FakeSource()
    run(tmp_path / "run", plan_of(tmp_path), judge=first_again)  # the first command: all answers are stored
    assert not first_again.judge.asked
    assert [row.checks for row in rows_of(tmp_path / "run")] == [row.checks for row in first]


@pytest.mark.parametrize("answers", [0, 1, 5])
def test_a_run_stopped_while_judging_ends_with_the_same_bytes(tmp_path: Path, answers: int) -> None:
    run(tmp_path / "whole", plan_of(tmp_path), judge=FakeSource())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", plan_of(tmp_path), judge=FakeSource(FakeJudge(stop_after=answers)))
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 32
    assert {row.checks[0].passed for row in rows} == {None}
    source, loader = FakeSource(), FakeLoader()
    run(tmp_path / "run", plan_of(tmp_path), loader, judge=source)
    whole = FakeSource()
    run(None, plan_of(tmp_path), judge=whole)
    assert loader.num_generated == 0
    assert len(source.judge.asked) == len(whole.judge.asked) - answers
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.mark.parametrize("answers", [2, 4])
def test_a_run_killed_while_judging_reuses_its_answers(tmp_path: Path, answers: int) -> None:
    run(tmp_path / "whole", plan_of(tmp_path), judge=FakeSource())
    child = os.fork()
    if not child:
        asked: list[VoteRequest] = []

        def answer(ask: VoteRequest) -> JudgeAnswer:
            if len(asked) == answers:
                os.kill(os.getpid(), signal.SIGKILL)
            asked.append(ask)
            return FakeJudge().says(ask)

        try:
            run(tmp_path / "run", plan_of(tmp_path), judge=FakeSource(FakeJudge(answer)))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    source, whole = FakeSource(), FakeSource()
    run(tmp_path / "run", plan_of(tmp_path), judge=source)
    run(None, plan_of(tmp_path), judge=whole)
    assert len(source.judge.asked) == len(whole.judge.asked) - answers
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_a_signal_stops_judging_between_answers(tmp_path: Path) -> None:
    source = FakeSource()
    steps = StopAfter()

    def answers(asks: Iterator[VoteRequest]) -> Iterator[Any]:
        for number, ask in enumerate(asks):
            if number == 2:
                steps.num_steps_left = 0
            source.judge.asked.append(ask)
            yield ask, JudgeAnswer(0.9)
            yield None

    source.judge.answers = answers  # type: ignore[method-assign]
    result = run(tmp_path / "run", plan_of(tmp_path), judge=source, should_stop=steps)
    assert result.interrupted
    assert len(source.judge.asked) == 3
    assert result.summary.unjudged == 32
    again = FakeSource()
    assert not run(tmp_path / "run", plan_of(tmp_path), judge=again).interrupted


@pytest.mark.parametrize("call", range(1, 12))
def test_a_disk_that_fails_while_judging_loses_no_row(tmp_path: Path, call: int) -> None:
    run(tmp_path / "whole", plan_of(tmp_path), judge=FakeSource())
    judging = False

    class FailingDisk(Files):
        num_left = call

        def write(self, descriptor: int, data: bytes) -> int:
            if judging:
                self.num_left -= 1
                if not self.num_left:
                    raise OSError(28, "No space left on device")
            return super().write(descriptor, data)

    def answer(ask: VoteRequest) -> JudgeAnswer:
        nonlocal judging
        judging = True
        return FakeJudge().says(ask)

    with pytest.raises(StorageError):
        run(tmp_path / "run", plan_of(tmp_path), judge=FakeSource(FakeJudge(answer)), files=FailingDisk())
    assert len(rows_of(tmp_path / "run")) == 32
    source, loader = FakeSource(), FakeLoader()
    run(tmp_path / "run", plan_of(tmp_path), loader, judge=source)
    assert loader.num_generated == 0
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_a_failed_answer_is_a_missing_score_with_its_reason_and_is_asked_again(tmp_path: Path) -> None:
    def answer(ask: VoteRequest) -> JudgeAnswer:
        return JudgeAnswer(problem="the server is down") if "Say 1" in ask.question.text else JudgeAnswer(1.0)

    result = run(tmp_path / "run", plan_of(tmp_path), judge=FakeSource(FakeJudge(answer)))
    rows = rows_of(tmp_path / "run")
    missing = [row for row in rows if row.turn == 1]
    assert all(row.checks[0].passed for row in rows if row.turn == 0)
    assert {(row.checks[0].passed, row.checks[0].score, row.score) for row in missing} == {(None, None, None)}
    assert {row.checks[0].detail for row in missing} == {"the server is down"}
    assert (result.summary.unjudged, result.summary.checks_passed) == (16, 16)
    assert not result.summary.passed
    assert result.summary.failed_checks == {"judge": FailureShare(0, 16)}
    assert result.summary.failed_tags == {"t": FailureShare(0, 16)}
    assert all(cell.score == 1.0 for cell in result.summary.cells)
    source = FakeSource(FakeJudge(lambda _: JudgeAnswer(1.0)))
    assert run(tmp_path / "run", plan_of(tmp_path), judge=source).summary.passed
    assert all("Say 1" in ask.question.text for ask in source.judge.asked)


def test_check_adds_the_verdicts_of_a_run_without_a_judge(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, [{"min_tokens": 1}, RUBRIC])
    result = run(tmp_path / "run", plan)
    assert result.summary.unjudged == 32
    assert {row.checks[1].detail for row in rows_of(tmp_path / "run")} == {NOT_ASKED}
    assert recheck(tmp_path / "run").summary.unjudged == 32
    source, shown = FakeSource(), list[tuple[int, int]]()
    found = recheck(tmp_path / "run", judge=source, asking=lambda *seen: shown.append(seen))
    run(tmp_path / "whole", plan, judge=FakeSource())
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert (found.summary.unjudged, found.changed, found.now_judged) == (0, 32, 32)
    assert (found.now_pass, found.now_fail) == (0, 0)
    assert shown[-1] == (len(source.judge.asked),) * 2
    again = recheck(tmp_path / "run")
    assert (again.changed, again.now_judged) == (0, 0)  # the verdicts stay without the judge
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_check_with_another_rubric_has_no_verdicts_without_a_judge(tmp_path: Path) -> None:
    run(tmp_path / "run", plan_of(tmp_path), judge=FakeSource())
    plan_of(tmp_path, {"judge": "Names a fir."})
    found = recheck(tmp_path / "run", [str(tmp_path / "script.jsonl")])
    assert found.summary.unjudged == 32
    source = FakeSource()
    assert recheck(tmp_path / "run", judge=source).summary.unjudged == 0
    assert source.judge.asked


@pytest.mark.parametrize("history", ["own", "gold"])
def test_the_judge_is_shown_the_dialogue_that_the_model_read(tmp_path: Path, history: str) -> None:
    probe = {"content": "What?", "expect": {"judge": "P", "context": "dialogue"}}
    messages = [
        user("One", probes=[probe]),
        assistant("<think>\nhm\n</think>\nGOLD"),
        user("Two", expect={"judge": "D", "context": "dialogue", "reference": True}),
        assistant("<think>\nhm\n</think>\nREF"),
        user("Three", expect=[{"judge": "T"}]),
        assistant("REF3"),
    ]
    settings: dict[str, Any] = {
        "conversations": read(tmp_path, conversation(*messages, id="c")).conversations,
        "cells": make_cells({}),
        "history": history,
    }
    source = FakeSource()
    run(tmp_path / "run", make_plan(**settings), judge=source)
    first = next(row.reply for row in rows_of(tmp_path / "run") if row.turn == 0)
    shown = {reply_in(ask.question.text, "requirement"): reply_in(ask.question.text, "conversation")
            for ask in source.judge.asked}  # fmt: skip
    before = f"User: One\nAssistant: {'GOLD' if history == 'gold' else first}\nUser:"
    references = {reply_in(ask.question.text, "reference") for ask in source.judge.asked if "REF" in ask.question.text}
    assert references == {"REF"}
    assert shown == {"P": f"{before} What?", "D": f"{before} Two", "T": "User: Three"}
    again = FakeSource()
    recheck(tmp_path / "run", judge=again)
    assert not again.judge.asked  # the same questions


def test_a_race_stops_at_a_missing_verdict_and_resumes_with_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"repeats": 10, "race": True}
    failing = FakeSource(FakeJudge(lambda _: JudgeAnswer(problem="down")))
    with pytest.raises(RowError, match=r"there is none on .*: down"):
        run(tmp_path / "run", plan_of(tmp_path, **settings), judge=failing)
    result = run(tmp_path / "run", plan_of(tmp_path, **settings), judge=FakeSource())
    assert result.race is not None
    assert result.race.looks > 0


def test_until_ci_waits_for_the_verdicts_of_the_judge(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"repeats": 2, "max_repeats": 6, "until_ci": 0.01}
    result = run(None, plan_of(tmp_path, **settings), judge=FakeSource())
    assert all(cell.repeats == 6 for cell in result.reached)
    assert all(row.checks[0].passed is not None for row in result.rows())


def test_a_merged_run_has_the_answers_of_all_parts(tmp_path: Path) -> None:
    paths = [tmp_path / "1", tmp_path / "2"]
    for number, path in enumerate(paths, start=1):
        run(path, plan_of(tmp_path, shard=Shard(number, 2)), judge=FakeSource())
    merge(paths, tmp_path / "whole")
    run(tmp_path / "undivided", plan_of(tmp_path), judge=FakeSource())
    assert results(tmp_path / "whole") == results(tmp_path / "undivided")
    source = FakeSource()
    assert recheck(tmp_path / "whole", judge=source).changed == 0
    assert not source.judge.asked


def test_a_judge_without_rubrics_and_rubrics_without_a_judge_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_of(tmp_path, {"min_tokens": 1}, num_conversations=1)
    options = ["--max-tokens", "2", "--preset", "greedy"]
    script = str(tmp_path / "script.jsonl")
    assert invoke(["run", script, *options, "--judge", "bundled", "--out", str(tmp_path / "a")]) == 0
    assert "the script has no check `judge`" in capsys.readouterr().err
    plan_of(tmp_path, num_conversations=1)
    assert invoke(["run", script, *options, "--out", str(tmp_path / "b")]) == 1
    shown = capsys.readouterr().err
    assert "none is given (--judge FILE, --judge-url URL)" in shown
    assert "no verdict of 2 checks" in shown
    assert invoke(["check", str(tmp_path / "b"), "--judge", "bundled"]) in (0, 1)
    assert "no verdict" not in capsys.readouterr().out
    assert {row.checks[0].judge is None for row in rows_of(tmp_path / "b")} == {False}
    assert invoke(["run", script, *options, "--judge", "no-such", "--out", str(tmp_path / "c")]) == 3
    assert not (tmp_path / "c").exists()
