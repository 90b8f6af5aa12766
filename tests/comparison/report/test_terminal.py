"""The terminal's tables: width, colours, safety."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.report.terminal import print_analysis, print_conversation
from rwkvbatch.errors import UsageError
from tests.comparison.hostile import hostile_run
from tests.comparison.make_run import make_row, make_run, write_run


def printed(analysis: Analysis, *, width: int = 80, colour: bool = False, show: str | None = None) -> str:
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=colour, color_system="truecolor" if colour else None)
    if show is None:
        print_analysis(analysis, console)
    else:
        print_conversation(analysis, show, console)
    return text.getvalue()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    path = make_run(tmp_path_factory.mktemp("runs") / "a", cells=("t=1", "t=2"))
    return compare([str(path)], fail_if=["score < 2"])


@pytest.mark.parametrize("width", [80, 140])
def test_no_line_is_wider_than_the_terminal(pair: Analysis, width: int) -> None:
    assert max(map(len, printed(pair, width=width).splitlines())) <= width


def test_numbers_are_whole_at_80_columns(pair: Analysis) -> None:
    text = printed(pair)
    assert "…" not in text.split("Most changed")[0]
    assert "score ↑" in text


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_has_fewer_columns_and_whole_labels(tmp_path: Path, width: int) -> None:
    cells = ("temp=0,decay=0", "temp=0,decay=1", "temp=1,decay=1", "temp=2,decay=1")
    text = printed(compare([str(make_run(tmp_path / "a", cells=cells))], metrics=["score"]), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "decay=1" in text
    assert "noise" in text
    assert ("variant" in text.splitlines()[1]) == (width == 60)


def test_a_wide_terminal_shows_wins_and_what_could_be_detected(pair: Analysis) -> None:
    assert "W/T/L" in printed(pair, width=140)
    assert "W/T/L" not in printed(pair, width=80)


def test_without_colours_there_is_no_escape_and_changes_have_brackets(pair: Analysis) -> None:
    text = printed(pair)
    assert "\x1b" not in text
    assert "[-" in text
    assert "{+" in text


def test_three_variants_are_grouped_by_metric(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3", "t=4"))
    text = printed(compare([str(path)]))
    assert text.count("score ↑") == 1
    assert text.count("t=4 ") >= text.count("score ↑")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_ranking_is_under_the_tables_and_fits_the_width(tmp_path: Path, width: int) -> None:
    cells = [f"temp={number},frequency=0.25" for number in range(9)]
    text = printed(compare([str(make_run(tmp_path / "a", cells=cells))]), width=width)
    assert max(map(len, text.splitlines())) <= width
    said = " ".join(text[text.index("score: best ") :].split())
    assert re.match(
        r"score: best temp=\d,frequency=0.25 \(0.\d+\); not distinguishable: .*, 3 more The truly best", said
    )


def test_the_ranking_counts_what_it_leaves_out(tmp_path: Path) -> None:
    for name in "abc":
        write_run(tmp_path / name, [make_row(talk) for talk in ("x", "y", name)], manifest={})
    text = printed(compare([str(tmp_path / name) for name in "abc"]))
    assert "3 turns not in all variants left out" in " ".join(text.split())


def test_one_run_alone_shows_its_means(tmp_path: Path) -> None:
    text = printed(compare([str(make_run(tmp_path / "alone"))]))
    assert "alone" in text
    assert "mean" in text
    assert "Nothing to test" in text


@pytest.mark.parametrize("colour", [False, True])
def test_hostile_text_reaches_no_terminal(tmp_path: Path, colour: bool) -> None:
    analysis = compare([str(hostile_run(tmp_path / "a"))], fail_if=["score < 2"])
    name = str(analysis.table["conversation"].iloc[0])
    for text in (printed(analysis, colour=colour), printed(analysis, colour=colour, show=name)):
        assert "\x1b]" not in text
        assert "\x1b[2J" not in text
        assert not set(text) & set("\x07\x00\u202e\u2028\r")
        assert "bold]" in text, "markup in the data must be shown, not obeyed"


def test_one_conversation_side_by_side_has_both_replies(pair: Analysis) -> None:
    text = printed(pair, show="talk-3", width=160)
    assert "Question 1 of talk-3?" in text
    assert "t=1" in text
    assert "t=2" in text


def test_an_unknown_conversation_is_a_usage_error(pair: Analysis) -> None:
    with pytest.raises(UsageError, match="'nobody'"):
        printed(pair, show="nobody")
