from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from rwkvbatch.cli.views import race_lines, show_summary, summary_table, until_ci_record
from rwkvbatch.replay.adaptive import Reached
from rwkvbatch.replay.grid import Cell
from rwkvbatch.replay.runner import RunOptions, execute
from rwkvbatch.results.row import CheckResult, Reference, RowTiming
from rwkvbatch.results.summary import percentile, summarize
from tests.replay.fakes import FakeLoader, make_plan, make_row


def shown(width: int = 80, **changes: object) -> str:
    cells = ["temp=0.3,top_p=0.3", "temp=1,top_p=0.3"]
    rows = [make_row("c", turn, cell=cell, **changes) for cell in cells for turn in range(3)]
    stream = io.StringIO()
    Console(file=stream, width=width).print(summary_table(summarize(rows, cells, 6), width))
    return stream.getvalue()


def test_the_table_has_a_line_a_cell() -> None:
    text = shown(width=100, reference=Reference("r", 1.25, 0.5, 4))
    assert [line.split()[0] for line in text.splitlines()[4:] if line.strip()] == [
        "temp=0.3,top_p=0.3",
        "temp=1,top_p=0.3",
    ]
    assert "3/3 100%" in text
    assert "stop" in text
    assert "200 / 200 ms" in text
    assert "1.250" in text


def test_a_narrow_terminal_shows_a_long_name_setting_by_setting() -> None:
    text = shown(width=80, reference=Reference("r", 1.25, 0.5, 4))
    assert [line.split()[0] for line in text.splitlines()[4:] if line.strip()] == [
        "temp=0.3,",
        "top_p=0.3",
        "temp=1,",
        "top_p=0.3",
    ]


@pytest.mark.parametrize("width", [30, 40, 60, 80])
def test_a_narrow_terminal_has_fewer_columns_and_none_cut_off(width: int) -> None:
    text = shown(width=width, reference=Reference("r", 1.25, 0.5, 4))
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert ("200 / 200 ms" in text) == (width >= 80)
    assert ("stop" in text) == (width >= 60)
    if width >= 40:
        assert "3/3 100%" in text
        assert "1.250" in text


def test_several_endings_are_counted() -> None:
    rows = [make_row("c", 0), make_row("c", 1, finish_reason="length"), make_row("c", 2)]
    stream = io.StringIO()
    Console(file=stream, width=80).print(summary_table(summarize(rows, ["base"], 3)))
    assert "stop 2" in stream.getvalue()
    assert "length 1" in stream.getvalue()


def test_long_times_are_shown_in_seconds() -> None:
    assert "1.50 / 1.50 s" in shown(timing=RowTiming(0.0, 0.1, 1.5, 2.0, 1.0, 4))


def test_without_references_there_is_no_column_for_them() -> None:
    assert "nll" not in shown()


def test_a_cell_s_name_cannot_colour_the_terminal() -> None:
    stream = io.StringIO()
    name = "[red]x[/]\x1b[31m"
    Console(file=stream, force_terminal=True, width=120).print(summary_table(summarize([], [name], 0)))
    assert "[red]x[/]\\x1b[31m" in stream.getvalue()


def test_a_summary_counts_checks_scores_and_ends() -> None:
    checks = (CheckResult("a", 1, True, 1.0, 3.0), CheckResult("b", 1, False, 0.0, 1.0))
    rows = [
        make_row("c", 0, checks=checks),
        make_row("c", 1, finish_reason="error", checks=(CheckResult("a", 1, False, 0.0),)),
        make_row("c", 2, checks=()),
    ]
    summary = summarize(rows, ["base"], 5)
    (cell,) = summary.cells
    assert (cell.checks, cell.checks_passed, cell.score) == (3, 1, 0.375)
    assert (cell.finish_reasons, cell.errors) == ({"error": 1, "stop": 2}, 1)
    assert not summary.complete
    assert not summary.passed


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.95) == 3.0
    assert percentile([0.0, 1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([0.0, 10.0], 0.95) == 9.5


def test_what_until_ci_came_to_is_told_cell_by_cell(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [Cell(name, {}) for name in "abcde"]
    plan = make_plan(2, cells=cells, repeats=2, max_repeats=3, until_ci=0.5)
    result = execute(plan, FakeLoader(), RunOptions())
    widths = {"a": None, "b": 0.25, "c": 0.75, "d": math.inf, "e": None}
    reached = tuple(Reached(name, 3, width) for name, width in widths.items())
    result = replace(result, reached=reached)
    show_summary(result)
    said = capsys.readouterr().err
    assert "--until-ci 0.5: width of the score's interval against a\n" in said
    assert "  a: 3 repeats, the first cell\n" in said
    assert "  b: 3 repeats, width 0.25\n" in said
    assert "  c: 3 repeats, width 0.75, wider than asked\n" in said
    assert "  d: 3 repeats, width unknown" in said
    assert "  e: 3 repeats, nothing to compare\n" in said
    record = until_ci_record(result)
    assert record is not None
    assert [cell["width"] for cell in record["cells"]] == [None, 0.25, 0.75, None, None]


@pytest.mark.parametrize(("draws", "said"), [(1, True), (4, True), (8, False)])
def test_a_race_of_few_draws_says_that_they_cannot_show_a_worse_cell(draws: int, said: bool) -> None:
    cells = [{"cell": name, "score": 1.0, "dropped_after": None} for name in ("a", "b")]
    record = {
        "left": ["a", "b"], "leader": "a", "cells": cells, "margin": None, "level": 0.05, "ending": "budget",
        "draws": draws, "draws_planned": draws, "looks": 1, "rows": 2 * draws, "rows_of_grid": 2 * draws,
    }  # fmt: skip
    lines = race_lines(record)
    assert "1 look and" in lines[0]
    assert ("  so few draws cannot show that a cell is worse: --repeats gives more of them" in lines) == said
