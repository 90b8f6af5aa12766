"""Adaptive repetitions (`--until-ci`): rounds, the cells that get more, and resuming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from rwkvbatch.errors import UsageError
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.planning.plan import Plan
from rwkvbatch.replay.planning.rounds import RepeatSelection, first_round, reached_precision, rounds
from rwkvbatch.replay.prepare import prepare
from rwkvbatch.results.row import CheckResult
from rwkvbatch.results.rows import MemoryRows
from rwkvbatch.script.records import Check
from rwkvbatch.stats.precision import planning_width
from tests.replay.fakes import LongerThan, make_conversation, make_plan, make_row
from tests.replay.runs import StopAfter, results, run

CELLS = [Cell("a", {}), Cell("b", {"temperature": 0.5}), Cell("c", {"temperature": 0.7})]


def plan_of(repeats: int, max_repeats: int, width: float = 0.1) -> Plan:
    check = Check("longer", 12, LongerThan(12))
    conversations = [make_conversation(f"c{n}", 2, checks=[check]) for n in range(4)]
    return make_plan(conversations=conversations, cells=CELLS, repeats=repeats, max_repeats=max_repeats, until_ci=width)


def fill(plan: Plan, rows: MemoryRows, selection: RepeatSelection, scores: dict[str, float]) -> None:
    for number in selection.tasks():
        task = plan.task(number)
        for turn in range(2):
            if not rows.has(task.first_row + turn):
                key = task.key(turn)
                checks = (CheckResult("x", 1, True, scores[key.cell]),)
                row = make_row(key.conversation, turn, cell=key.cell, repeat=key.repeat, checks=checks)
                rows.append({task.first_row + turn: row})


def repeats_of(plan: Plan, is_wide: Any) -> list[tuple[int, ...]]:
    """The repetitions of each cell, round by round; `is_wide` decides which cells get more."""
    rows = MemoryRows()
    repeats: list[tuple[int, ...]] = []
    with patch("rwkvbatch.stats.precision.needs_more_repeats", is_wide):
        for selection in rounds(plan, rows):
            assert isinstance(selection, RepeatSelection)
            repeats.append(selection.repeats)
            fill(plan, rows, selection, {"a": 0.5, "b": 0.6, "c": 0.9})
    return repeats


def test_without_until_ci_there_is_one_round() -> None:
    plan = make_plan(cells=CELLS, repeats=3)
    assert [selection.repeats for selection in rounds(plan, MemoryRows())] == [(3, 3, 3)]


def test_cells_with_a_wide_interval_and_the_baseline_get_more_repeats() -> None:
    def is_wide(differences: Sequence[float], conversations: Sequence[int], *, width: float) -> bool:
        assert width == 0.1
        assert set(conversations) == {0, 1, 2, 3}
        return differences[0] > 0.2  # only cell c

    assert repeats_of(plan_of(2, 5), is_wide) == [(2, 2, 2), (3, 2, 3), (4, 2, 4), (5, 2, 5)]


def test_rounds_end_when_all_cells_are_precise() -> None:
    assert repeats_of(plan_of(2, 9), lambda *_, width: False) == [(2, 2, 2)]


def test_a_precise_cell_is_not_tested_again() -> None:
    num_differences: list[int] = []

    def is_wide(differences: Sequence[float], conversations: Sequence[int], *, width: float) -> bool:
        num_differences.append(len(differences))
        return len(num_differences) != 1

    assert repeats_of(plan_of(2, 4), is_wide) == [(2, 2, 2), (3, 2, 3), (4, 2, 4)]
    assert num_differences == [16, 16, 24]


def test_differences_are_paired_by_conversation_turn_and_repeat() -> None:
    plan = plan_of(2, 3)
    seen: list[list[float]] = []

    def is_wide(differences: Sequence[float], conversations: Sequence[int], *, width: float) -> bool:
        seen.append([round(difference, 9) for difference in differences])
        return False

    repeats_of(plan, is_wide)
    assert seen == [[0.1] * 16, [0.4] * 16]


def test_each_round_adds_a_quarter_of_the_repeats() -> None:
    repeats = repeats_of(plan_of(3, 20), lambda *_, width: True)
    assert [of_cells[0] for of_cells in repeats] == [3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 20]


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", plan_of(2, 6, 0.8))
    counts = {cell.name: cell.rows for cell in whole.summary.cells}
    assert whole.summary.complete
    assert min(counts.values()) >= 2 * 4 * 2
    assert counts["a"] == max(counts.values())
    while run(tmp_path / "parts", plan_of(2, 6, 0.8), should_stop=StopAfter(4)).interrupted:
        pass
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("lines", "lists", "message"),
    [
        ('{"messages": [{"role": "user", "content": "hi"}]}\n', {"temperature": [0, 1]}, "the script has none"),
        ('{"messages": [{"role": "user", "content": "hi"}]}\n', {}, "there is only one cell"),
    ],
)
def test_until_ci_without_checks_or_a_second_cell_is_refused(
    tmp_path: Path, lines: str, lists: Any, message: str
) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text(lines)
    values = {"repeats": 2, "max_repeats": 5, "until_ci": 0.1}
    with pytest.raises(UsageError, match=message):
        prepare(script, **values, **lists)


def test_reached_has_the_repeats_and_the_width_of_each_cell() -> None:
    plan, rows = plan_of(2, 6), MemoryRows()
    selection = RepeatSelection(plan, (4, 4, 2))
    fill(plan, rows, selection, {"a": 0.5, "b": 0.6, "c": 0.9})
    first = plan.task(plan.number_of(0, 1, 0))
    rows.discard([first.first_row])
    key = first.key(0)
    row = make_row(key.conversation, 0, cell=key.cell, checks=(CheckResult("x", 1, True, 0.0),))
    rows.append({first.first_row: row})
    differences = [-0.5] + [0.1] * 31
    conversations = [number for number in range(4) for _ in range(8)]
    assert [
        (precision.cell, precision.repeats, precision.width) for precision in reached_precision(plan, rows, selection)
    ] == [("a", 4, None), ("b", 4, pytest.approx(planning_width(differences, conversations))), ("c", 2, math.inf)]


def test_reached_is_empty_without_until_ci() -> None:
    plan = make_plan(cells=CELLS, repeats=3)
    assert reached_precision(plan, MemoryRows(), first_round(plan)) == ()
