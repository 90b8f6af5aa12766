"""The summary and the progress display of `rwkvbatch run`."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rwkvbatch.cli.app import invoke
from rwkvbatch.cli.summaries import race_lines, show_summary, summary_table, until_ci_record
from rwkvbatch.cli.views import MAX_WARNINGS
from rwkvbatch.replay.planning.grid import Cell
from rwkvbatch.replay.planning.rounds import ReachedPrecision
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


def test_a_narrow_terminal_shortens_names_to_what_differs() -> None:
    text = shown(width=80, reference=Reference("r", 1.25, 0.5, 4))
    assert [line.split()[0] for line in text.splitlines() if line.strip()][:1] == ["checks"]
    assert [line.split()[0] for line in text.splitlines()[2:] if line.strip()][-2:] == ["0.3", "1"]
    assert re.search(r"^ temp ", text, re.MULTILINE)


def test_a_narrow_terminal_shows_a_long_name_setting_by_setting() -> None:
    cells = ["template=a-long-name.jinja,temp=0", "template=another.jinja,temp=1"]
    stream = io.StringIO()
    rows = [make_row("c", 0, cell=cell) for cell in cells]
    Console(file=stream, width=80).print(summary_table(summarize(rows, cells, 2), 80))
    first = [line.split()[0] for line in stream.getvalue().splitlines()[3:] if line.strip()]
    assert first[-4:] == ["template=a-long-name.jinja,", "temp=0", "template=another.jinja,", "temp=1"]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100])
def test_a_narrow_terminal_has_fewer_columns_and_none_cut_off(width: int) -> None:
    text = shown(width=width, reference=Reference("r", 1.25, 0.5, 4))
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert ("200 / 200 ms" in text) == (width >= 80)
    assert ("score" in text) == (width >= 60)
    assert ("stop" in text) == (width >= 40)
    if width >= 40:
        assert "3/3 100%" in text
        assert "1.250" in text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_shows_the_likelihood_of_texts_without_breaking_numbers(width: int) -> None:
    text = Reference("r", 7.5139, 0.5, 4, logprob=-30.0, bytes=5)
    rows = [make_row("c", 0), make_row("t", 0, finish_reason="scored", prompt="p", reference=text)]
    rows.append(make_row("r", 0, reference=Reference("r", 8.706, 0.5, 4)))
    stream = io.StringIO()
    Console(file=stream, width=width).print(summary_table(summarize(rows, ["base"], 3), width))
    shown = stream.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert len(shown.strip().splitlines()) <= 6
    assert "7.5000" in shown
    assert ("1,808.042" in shown) == (width == 80)
    assert ("8.706" in shown) == (width >= 60)


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


def test_the_summary_of_until_ci_has_a_line_for_each_cell(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [Cell(name, {}) for name in "abcde"]
    plan = make_plan(2, cells=cells, repeats=2, max_repeats=3, until_ci=0.5)
    result = execute(plan, FakeLoader(), RunOptions())
    widths = {"a": None, "b": 0.25, "c": 0.75, "d": math.inf, "e": None}
    reached = tuple(ReachedPrecision(name, 3, width) for name, width in widths.items())
    result = replace(result, reached=reached)
    show_summary(result)
    shown = capsys.readouterr().err
    unwrapped = " ".join(shown.split())
    assert (
        "--until-ci 0.5: width of the score's interval against a, of each cell by itself: by conversation, or as if"
        in unwrapped
    )
    assert "  a: 3 repeats, the first cell\n" in shown
    assert "  b: 3 repeats, width 0.25\n" in shown
    assert "  c: 3 repeats, width 0.75, wider than asked\n" in shown
    assert "  d: 3 repeats, width unknown" in shown
    assert "  e: 3 repeats, nothing to compare\n" in shown
    record = until_ci_record(result)
    assert record is not None
    assert [cell["width"] for cell in record["cells"]] == [None, 0.25, 0.75, None, None]


def cell(name: str, score: float | None, dropped_after: int | None = None) -> dict[str, object]:
    return {"cell": name, "score": score, "dropped_after": dropped_after}


def race(left: list[str], cells: list[dict[str, object]], **changes: object) -> dict[str, object]:
    record = {"left": left, "cells": cells, "leader": left[0], "ending": "budget", "draws": 20, "draws_planned": 60}
    return {**record, "looks": 2, "rows": 30, "rows_of_grid": 120, "margin": None, "level": 0.05, **changes}


def test_a_race_is_told_in_a_few_lines() -> None:
    many = [cell(f"c{n:02}", 0.5 + n / 100) for n in range(20)]
    lines = race_lines(race(["c19", *(str(each["cell"]) for each in many[:-1])], many, rows_of_grid=0))
    assert lines[0].startswith("race: the budget is used up, after 20 of 60 draws, 2 looks and 30 rows, - of the full")
    assert lines[1] == "  leader: c19, score 0.690"
    shown = len(lines[2].split(";")) - 1
    assert lines[2].startswith("  not shown to be worse: c18 0.680; c17 0.670; ")
    assert lines[2].endswith(f"; and {19 - shown} more")
    assert lines[3:] == ["  probability of dropping a best cell: at most 0.05"]
    cells = [cell("a", 0.9), cell("b", 0.4, 12), cell("c", None, 8)]
    lines = race_lines(race(["a"], cells, ending="one cell left"))
    assert "one cell is left" in lines[0]
    assert "30 rows, 25% of the full grid's 120" in lines[0]
    assert lines[2] == "  dropped: 2 of 3 cells, after 8 to 12 draws; the last one: b"
    assert race_lines(race(["a"], [cell("a", None)])) == ["race: no look yet"]


def test_of_many_warnings_the_first_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.jsonl"
    lines = [{"id": f"c{n}", "messages": [{"role": "user", "content": " Hi"}]} for n in range(MAX_WARNINGS + 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert invoke(["run", str(path), "--dry-run"]) == 0
    shown = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(shown) == MAX_WARNINGS + 1
    assert "outer-space" in shown[0]
    assert shown[-1] == "and 3 more warnings"


SCORED: list[tuple[list[dict[str, object]], list[str], list[str]]] = [
    ([{"text": "Once upon a time."}], ["scored", "bits per"], ["accuracy", "checks", "reply"]),
    ([{"prompt": "Once upon", "continuation": " a time"}], ["accuracy", "of texts"], ["reply", "checks"]),
    (
        [{"messages": [{"role": "user", "content": "Sky?", "choices": ["a", "b"], "expect": {"choice": "a"}}]}],
        ["checks"],
        ["first token", "bits per", "accuracy"],
    ),
]


@pytest.mark.parametrize(("content", "there", "absent"), SCORED)
def test_a_run_that_only_scores_shows_what_was_scored(
    content: list[dict[str, object]],
    there: list[str],
    absent: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in content))
    assert invoke(["run", str(path), "--out", str(tmp_path / "run")]) in (0, 1)
    captured = capsys.readouterr()
    table = captured.out + captured.err
    for name in there:
        assert name in table
    for name in absent:
        assert name not in table
    if "checks" not in there:
        assert "or score with another --model and compare" in captured.err


@pytest.mark.parametrize(("sizes", "command"), [((512, 65_536), " --primary bits_per_byte"), ((512, 512), "")])
def test_texts_that_models_cut_differently_are_compared_by_their_bytes(
    sizes: tuple[int, int], command: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The quick brown fox jumps over the lazy dog.")
    for seed, (name, size) in enumerate(zip("ab", sizes, strict=True)):
        random = ["model", "random", "1x64", f"{name}.safetensors", "--vocab", str(size), "--seed", str(seed)]
        assert invoke([*random, "--quiet"]) == 0
    assert invoke(["score", "text.txt", "--model", "a,b", "--out", "run"]) == 0
    assert capsys.readouterr().err.rstrip().endswith(f"next: rwkvbatch compare run{command}")
    assert invoke(["compare", "run", *command.split()]) == 0


def test_the_model_that_cuts_texts_into_other_tokens_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.txt", "other.txt"):
        Path(name).write_text("The quick brown fox jumps over the lazy dog.")
    for seed, (name, size) in enumerate((("a", 512), ("b", 512), ("c", 65_536))):
        random = ["model", "random", "1x64", f"{name}.safetensors", "--vocab", str(size), "--seed", str(seed)]
        assert invoke([*random, "--quiet"]) == 0
    assert invoke(["score", "text.txt", "other.txt", "--model", "a,b,c", "--out", "run", "--quiet"]) == 0
    assert invoke(["score", "text.txt", "other.txt", "--model", "a,c", "--out", "two", "--quiet"]) == 0
    capsys.readouterr()
    assert invoke(["compare", "run"]) == 0
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "no ranking by nll: model=c has no turn of the same tokens in common with model=a" in printed
    assert invoke(["compare", "two"]) == 2
    assert "such as --primary bits_per_byte" in capsys.readouterr().err


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


def test_cells_that_were_dropped_at_one_look_have_one_number_of_draws() -> None:
    cells = [cell("a", 0.9), cell("b", 0.1, 8), cell("c", 0.2, 8)]
    assert any("2 of 3 cells, after 8 draws;" in line for line in race_lines(race(["a"], cells)))


@pytest.mark.parametrize(
    ("options", "lines", "names_top_p"),
    [
        (("--temp", "0,0.7"), ["the same replies as temp=0: temp=0.7 in 12 of 12 turns"], True),
        (("--temp", "1", "--repeats", "2"), ["the same reply in all repetitions: base in 12 of 12 turns"], True),
        (("--temp", "0", "--repeats", "2"), [], False),  # a warning before the run says so
        (("--temp", "0", "--presence", "0,0.001"), ["the same replies as presence=0: presence=0.001 in 12 of"], False),
        (("--temp", "0,5", "--top-p", "1"), [], False),
    ],
)
def test_replies_that_hardly_differ_are_named(
    options: tuple[str, ...], lines: list[str], names_top_p: bool, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "s.jsonl"
    names = ("Ada", "Bob", "Eve", "Tom", "Mia", "Eli")
    dialogues = [[f"My name is {name}.", "What is my name?"] for name in names]
    messages = [[{"role": "user", "content": text} for text in texts] for texts in dialogues]
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in messages))
    short = ["--max-tokens", "8"]
    assert invoke(["run", str(path), "--out", str(tmp_path / "run"), *short, *options]) == 0
    shown_lines = capsys.readouterr().err.splitlines()
    assert [line for line in shown_lines if line.startswith("the same repl")] == [
        line for line in shown_lines if any(line.startswith(start) for start in lines)
    ]
    assert sum(line.startswith("the same repl") for line in shown_lines) == len(lines)
    assert any("--top-p 1 keeps all" in line for line in shown_lines) is names_top_p
