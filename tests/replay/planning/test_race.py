"""Races between cells: draws, dropped cells, and rows equal to those of the full grid."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.race_simulation import simulate
from rwkvbatch.engine.request import Reply, Request
from rwkvbatch.errors import RowError, UsageError
from rwkvbatch.replay.planning.grid import make_cells
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.race import Draws, Race, can_drop
from rwkvbatch.replay.planning.rounds import DrawSelection
from rwkvbatch.replay.prepare import prepare
from rwkvbatch.replay.preview import preview
from rwkvbatch.replay.progress import Progress
from rwkvbatch.replay.runner import RunOptions, RunResult, execute
from rwkvbatch.replay.worker.prompts import PromptEncoder
from rwkvbatch.script.records import Check, ReplyFacts, Verdict
from tests.replay.fakes import ByteTokenizer, FakeLoader, make_conversation, make_plan

TEMPERATURES = [0.02, 0.4, 0.6, 0.9]


BREAKS = "this breaks the check"


class ContainsGood:
    def judge(self, facts: ReplyFacts) -> Verdict:
        if BREAKS in facts.text:
            raise RowError("the plug-in is broken")
        passed = "good" in facts.text
        return Verdict(passed, float(passed), None)


def worse_when_hot(request: Request, reply: Reply) -> Reply:
    """Replies `good` less often at higher temperatures; the text of the fake reply is the source of randomness."""
    uniform = sum(map(ord, reply.text)) % 97 / 97
    if uniform < request.sampling.temperature:
        return reply
    ids = tuple(ByteTokenizer().encode(" good\n\n"))
    history = (*request.tokens, *ids)
    return replace(reply, text=" good", ids=ids, finish_reason="stop", stopped_by="\n\n", history=history)


def race_plan(repeats: int = 20, **settings: Any) -> Plan:
    check = Check("good", 1, ContainsGood())
    conversations = [make_conversation(f"c{n}", 1 + n % 3, checks=[check]) for n in range(8)]
    cells = make_cells({"temperature": TEMPERATURES})
    return make_plan(conversations=conversations, cells=cells, repeats=repeats, **{"race": True, **settings})


def run_race(out: Path | None, plan: Plan, **options: Any) -> RunResult:
    return execute(plan, FakeLoader(change=worse_when_hot), RunOptions(out=out, **options))


def without_timing(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("timing", "crc")} for row in rows]


class TestDraws:
    def test_conversations_are_drawn_uniformly_and_repetitions_count_up(self) -> None:
        draws = Draws(0, [2, 3, 5], 3000)
        counts = Counter(draws.conversation)
        assert set(counts) == {2, 3, 5}
        assert max(abs(count - 1000) for count in counts.values()) < 5 * math.sqrt(3000 * 2 / 9)
        for number, count in counts.items():
            repeats = [r for c, r in zip(draws.conversation, draws.repeat, strict=True) if c == number]
            assert repeats == list(range(count))
        assert draws.num_repeats == max(counts.values())

    def test_draws_depend_on_the_seed_and_not_on_their_number(self) -> None:
        short, long, other = Draws(1, range(9), 50), Draws(1, range(9), 90), Draws(2, range(9), 50)
        assert list(long.conversation)[:50] == list(short.conversation)
        assert list(short.conversation) != list(other.conversation)

    def test_the_first_draws_are_the_same_in_every_version(self) -> None:
        assert list(Draws(0, range(100), 10).conversation) == FIRST_DRAWS


FIRST_DRAWS = [52, 47, 13, 71, 33, 10, 5, 67, 35, 2]


class TestPlanning:
    def looks(self, score: Callable[[int, int], float], **options: Any) -> tuple[list[tuple[int, ...]], Race]:
        race = Race(Draws(0, range(5), 60), [2] * 60, 3, score, **options)
        return list(race.looks()), race

    def test_remaining_cells_run_every_draw_and_looks_become_rarer(self) -> None:
        looks, race = self.looks(lambda draw, cell: 0.5)
        draws = [look[0] for look in looks]
        assert draws[:10] + draws[-3:] == [8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 51, 57, 60]
        assert all(len(set(look)) == 1 for look in looks)
        assert race.ending == "budget"
        assert race.num_rows == 60 * 2 * 3

    def test_a_race_ends_with_one_cell(self) -> None:
        looks, race = self.looks(lambda draw, cell: float(cell == 1))
        assert race.ending == "one cell left"
        assert list(race.state.left) == [1]
        assert looks[-1][1] < 20

    def test_a_race_ends_when_no_cell_can_exceed_the_leader_by_the_margin(self) -> None:
        looks, race = self.looks(lambda draw, cell: 0.0 if cell == 2 else 0.5, margin=0.3)
        assert race.ending == "within the margin"
        assert list(race.state.left) == [0, 1]
        assert looks[-1][0] == looks[-1][1] > looks[-1][2]

    def test_a_budget_of_rows_is_never_exceeded(self) -> None:
        _, race = self.looks(lambda draw, cell: 0.5, max_rows=101)
        assert race.ending == "budget"
        assert race.num_rows == 96

    def test_looks_are_rarer_with_several_models(self) -> None:
        looks, _ = self.looks(lambda draw, cell: 0.5, pace=2)
        assert [look[0] for look in looks] == [8, 12, 18, 27, 40, 60]


@pytest.mark.parametrize("cells", [2, 3, 12])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_a_race_with_too_few_draws_for_its_level_can_drop_no_cell(cells: int, level: float) -> None:
    fewest = next(draws for draws in range(1, 30) if can_drop(cells, draws, level))
    ended: dict[int, Race] = {}
    for draws in (fewest - 1, max(8, fewest)):
        ended[draws] = Race(
            Draws(0, range(5), draws), [1] * draws, cells, lambda draw, cell: float(cell == 0), level=level
        )
        list(ended[draws].looks())
    assert [bool(race.dropped_after) for race in ended.values()] == [False, True]


@pytest.mark.parametrize("kind", ["all_equal", "greedy", "rare_loss", "at_the_margin"])
def test_few_races_drop_a_best_cell_or_miss_the_margin(kind: str) -> None:
    # 15 races of each kind; benchmarks/race_simulation.py runs 2,000.
    outcome = simulate(kind, 15, repeats=5)
    assert outcome.wrong <= 3 / 15
    assert outcome.wrong_margin <= 3 / 15


class TestRun:
    def test_bad_cells_are_dropped_and_rows_are_those_of_the_full_grid(self, tmp_path: Path) -> None:
        plan = race_plan()
        result = run_race(tmp_path / "race", plan)
        race = result.race
        assert race is not None
        assert race.ending == "one cell left"
        assert (race.leader, race.left) == ("temp=0.02", ("temp=0.02",))
        assert race.rows == result.summary.rows == result.summary.planned
        assert race.rows < race.rows_of_grid / 2
        assert [cell.rows for cell in race.cells] == [cell.rows for cell in result.summary.cells]
        worst = race.cells[-1]
        assert worst.dropped_after == worst.draws < race.draws
        assert worst.behind is not None
        assert worst.behind > 0.3
        assert json.loads((tmp_path / "race" / "summary.json").read_text())["race"]["leader"] == "temp=0.02"

        full = make_plan(conversations=plan.conversations, cells=plan.cells, repeats=plan.repeats)
        run_race(tmp_path / "full", full)
        of_full = {json.dumps(row) for row in without_timing(tmp_path / "full")}
        assert len(of_full) == full.num_rows
        assert {json.dumps(row) for row in without_timing(tmp_path / "race")} < of_full
        for task in range(0, plan.num_tasks, 7):
            in_race, in_full = plan.task(task), full.task(task)
            assert (in_race.first_row, in_race.seed, in_race.key(0)) == (
                in_full.first_row,
                in_full.seed,
                in_full.key(0),
            )

    def test_an_interrupted_race_ends_with_the_same_bytes(self, tmp_path: Path) -> None:
        whole = run_race(tmp_path / "whole", race_plan())
        steps = iter(range(100_000))
        sessions = 1
        while (part := run_race(tmp_path / "parts", race_plan(), should_stop=lambda: next(steps) % 9 == 8)).interrupted:
            sessions += 1
        assert sessions > 5
        assert part.race == whole.race
        assert without_timing(tmp_path / "parts") == without_timing(tmp_path / "whole")

    def test_the_result_does_not_depend_on_the_batch_size(self) -> None:
        assert run_race(None, race_plan(batch_size=3)).race == run_race(None, race_plan(batch_size=64)).race

    @pytest.mark.parametrize(
        "changes", [{"race_level": 0.01}, {"race_level": 0.2}, {"race_rows": 200}, {"race": False}]
    )
    def test_a_changed_race_over_existing_rows_equals_a_new_one(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        run_race(tmp_path / "race", race_plan(2))
        result, fresh = (run_race(tmp_path / name, race_plan(2, **changes)) for name in ("race", "fresh"))
        assert result.race == fresh.race
        assert without_timing(tmp_path / "race") == without_timing(tmp_path / "fresh")
        assert result.reuse is not None
        assert result.reuse.kept > 0

    def test_rows_that_a_changed_race_does_not_need_are_said_to_be_set_aside(self, tmp_path: Path) -> None:
        long, messages = run_race(tmp_path / "race", race_plan(2, race_level=0.01)), list[str]()
        short = run_race(tmp_path / "race", race_plan(2, race_level=0.5), notify=messages.append)
        fewer = long.summary.rows - short.summary.rows
        assert fewer > 0
        assert messages[-1] == f"{fewer} rows not needed by this command, moved to kept.jsonl"

    def test_failed_turns_score_0(self) -> None:
        def fails_when_cold(request: Request, reply: Reply) -> Reply:
            made = worse_when_hot(request, reply)
            return replace(made, text=BREAKS) if request.sampling.temperature == TEMPERATURES[0] else made

        plan = race_plan()
        result = execute(plan, FakeLoader(change=fails_when_cold), RunOptions())
        assert result.race is not None
        assert result.summary.cells[0].errors == result.summary.cells[0].rows > 0
        assert result.race.cells[0].score == 0.0
        assert "temp=0.02" not in result.race.left

    def test_progress_has_the_number_of_cells_left_and_no_time_left(self) -> None:
        seen: list[Progress] = []

        class Observer:
            started = moved = ended = seen.append

        run_race(None, race_plan(), observers=[Observer()])
        assert (seen[0].cells_left, seen[0].cells) in ((None, None), (4, 4))
        assert (seen[-1].cells_left, seen[-1].cells) == (1, 4)
        assert all(progress.seconds_left is None for progress in seen)
        assert seen[-1].as_dict()["cells_left"] == 1

    def test_a_preview_gives_the_largest_number_of_rows(self) -> None:
        plan = race_plan(3)
        found = preview(plan, PromptEncoder(ByteTokenizer()))
        assert found.repeats == 3
        assert found.dialogues == 3 * 8 * len(TEMPERATURES)
        assert found.rows == DrawSelection(plan, (24,) * len(TEMPERATURES)).num_rows
        assert preview(race_plan(3, race_rows=70), PromptEncoder(ByteTokenizer())).rows == 70


CHECKED = '{"id": "a", "messages": [{"role": "user", "content": "hi", "expect": [{"contains": "x"}]}]}\n'
UNCHECKED = '{"id": "b", "messages": [{"role": "user", "content": "hi"}]}\n'


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (UNCHECKED, {"race": True, "temperature": [0, 1]}, "the script has none"),
        (CHECKED, {"race": True}, "there is only one cell"),
        (CHECKED, {"race": True, "temperature": [0, 1], "shard": "1/2"}, "--race decides by the rows of all"),
        (
            CHECKED,
            {"race": True, "temperature": [0, 1], "repeats": "2..5", "until_ci": 0.1},
            "--race and --until-ci both decide",
        ),
        (CHECKED, {"race_margin": 0.1, "temperature": [0, 1]}, "--race-margin belongs to --race"),
        (CHECKED, {"race_level": 0.01, "temperature": [0, 1]}, "--race-level belongs to --race"),
        (CHECKED, {"race_rows": 100, "temperature": [0, 1]}, "--race-rows belongs to --race"),
        (CHECKED, {"race": True, "race_rows": 9, "repeats": 50, "temperature": [0, 1]}, "must be at least 16"),
        (CHECKED, {"race": True, "race_level": 1.0, "temperature": [0, 1]}, r"in \(0, 1\), got 1.0"),
        (CHECKED, {"race": True, "race_margin": 0, "temperature": [0, 1]}, r"in \(0, 1\), got 0"),
    ],
)
def test_races_with_invalid_settings_are_refused(tmp_path: Path, lines: str, settings: Any, message: str) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text(lines)
    with pytest.raises(UsageError, match=message):
        prepare(script, **settings)


def test_conversations_without_checks_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text(CHECKED + UNCHECKED)
    plan = prepare(script, race=True, repeats=9, temperature=[0, 1]).plan
    assert plan.draws is not None
    assert set(plan.draws.conversation) == {0}
    assert len(plan.draws) == 9
    assert "leaves out 1 of 2 conversations" in caplog.text
