"""Tables in the terminal: width, columns, colours, hostile text, notes."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.report.formats import as_markdown
from rwkvbatch.comparison.report.terminal import print_analysis, print_conversation
from rwkvbatch.comparison.wording import by_family, family_title
from rwkvbatch.errors import UsageError
from tests.comparison.hostile import hostile_run
from tests.comparison.make_run import make_row, make_run, write_run


def printed(
    analysis: Analysis, *, width: int = 80, colour: bool = False, show: str | None = None, num_changes: int = 3
) -> str:
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=colour, color_system="truecolor" if colour else None)
    if show is None:
        print_analysis(analysis, console, num_changes=num_changes)
    else:
        print_conversation(analysis, show, console)
    return text.getvalue()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    path = make_run(tmp_path_factory.mktemp("runs") / "a", cells=("t=1", "t=2"))
    return compare([str(path)], fail_if=["tokens < 9999"])


@pytest.mark.parametrize("width", [80, 140])
def test_lines_fit_the_width_of_the_terminal(pair: Analysis, width: int) -> None:
    lines = printed(pair, width=width).splitlines()
    # A command is one line in a pipe, as the line of a gate is.
    assert max(len(line) for line in lines if "all of them: rwkvbatch" not in line) <= width


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_of_a_gate_fits_a_terminal_and_is_one_line_elsewhere(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"))
    analysis = compare([str(path)], fail_if=["nll > baseline - 1000"])
    (gate,) = analysis.gates
    assert len(gate.line) > 40
    for file, num_lines in ((_Terminal(), 0), (io.StringIO(), 1)):
        print_analysis(analysis, Console(file=file, width=40, color_system=None))
        assert file.getvalue().splitlines().count(gate.line) == num_lines
        assert " ".join(gate.line.split()) in " ".join(file.getvalue().split())
        assert (max(map(len, file.getvalue().splitlines())) <= 40) == (num_lines == 0)


def test_numbers_are_not_shortened_at_80_columns(pair: Analysis) -> None:
    text = printed(pair)
    lines = [line for line in text.split("Most changed")[0].splitlines() if not line.startswith("      ")]
    assert "…" not in "\n".join(lines), "only prompts and replies are cut"
    assert "score ↑" in text


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_has_fewer_columns_and_complete_labels(tmp_path: Path, width: int) -> None:
    cells = ("temp=0,decay=0", "temp=0,decay=1", "temp=1,decay=1", "temp=2,decay=1")
    text = printed(compare([str(make_run(tmp_path / "a", cells=cells))]), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert "decay" in text
    assert text.count("no difference found") == 3
    assert ("interval" in text) == (width == 60)


def test_a_wide_terminal_has_columns_for_the_detectable_difference_and_p(pair: Analysis) -> None:
    assert "W/T/L" in printed(pair, width=80, num_changes=0)
    assert not re.search("(?m)^.* p +$", printed(pair, width=60, num_changes=0))
    assert re.search(r"(?m)W/T/L detectable +p\b", printed(pair, width=140))


def twelve_cells(path: Path) -> Path:
    cells = [f"temp={t},top_p={p},frequency={f}" for t in (0, 0.5, 1) for p in (0.5, 0.9) for f in (0, 0.5)]

    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        passed = bool(rng.random() < 0.9 - 0.4 * row["cell"].startswith("temp=1"))
        row["checks"][0].update(passed=passed, score=float(passed))
        if row["cell"] == cells[3] and row["conversation"] == "talk-3":
            row.update(finish_reason="error", error="out of memory", checks=[], reference=None)

    return make_run(path, cells=cells, conversations=20, repeats=3, change=change)


def test_the_first_screen_of_twelve_cells_has_at_most_20_lines_of_80_columns(tmp_path: Path) -> None:
    text = printed(compare([str(twelve_cells(tmp_path / "a"))]), num_changes=0)
    lines = text.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("score ↑ against temp=0,top_p=0.5,frequency=0 (0.")
    assert lines[1].startswith("20 conversations, 3 repetitions, 120 pairs")
    assert (
        sum(
            bool(re.search(r"\[[-+]?0\.\d+, [-+]?0\.\d+\] +\d+/\d+/\d+ (worse|no difference|unclear)", line))
            for line in lines
        )
        == 11
    )
    assert "score: best " in text
    assert "6 turns with an error" in " ".join(text.split())
    assert lines[-1].startswith("--all shows")


def test_the_common_prefix_of_checkpoints_is_shown_once(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / f"rwkv7-g1-1.5b-long-name-step-{n}00", seed=n)) for n in (1, 2, 3)]
    text = printed(compare(runs), num_changes=0)
    assert re.search(r"(?m)^rwkv7-g1-1.5b-long-name- *\nstep-\* ", text)
    assert re.search("(?m)^300 ", text)


def test_without_colours_changes_are_in_brackets(pair: Analysis) -> None:
    text = printed(pair)
    assert "\x1b" not in text
    assert "[-" in text
    assert "{+" in text


def test_all_metrics_are_marked_as_exploratory_but_the_primary_one(tmp_path: Path) -> None:
    path = str(make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3", "t=4")))
    first, everything = (printed(compare([path], all_metrics=every), num_changes=0) for every in (False, True))
    assert "nll" not in first
    assert "nll ↓ against t=1, exploratory" in re.sub(r" \([\d.]+\)", "", everything)
    assert everything.startswith(first.splitlines()[0])


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_ranking_fits_the_width(tmp_path: Path, width: int) -> None:
    cells = [f"temp={number},frequency=0.25" for number in range(9)]
    text = printed(compare([str(make_run(tmp_path / "a", cells=cells))]), width=width)
    assert max(map(len, text.splitlines())) <= width
    ranking = " ".join(text[text.index("score: best ") :].split())
    assert re.match(r"score: best temp=\d,frequency=0.25 \(0.\d+\); not distinguishable: .*\d more", ranking)


def test_the_ranking_counts_turns_that_only_some_variants_have(tmp_path: Path) -> None:
    for name in "abc":
        write_run(tmp_path / name, [make_row(talk) for talk in ("x", "y", name)], manifest={})
    text = printed(compare([str(tmp_path / name) for name in "abc"]))
    assert "3 turns in some only; means relative to the baseline's" in " ".join(text.split())


def test_a_single_run_has_its_means(tmp_path: Path) -> None:
    text = printed(compare([str(make_run(tmp_path / "alone"))]))
    assert "alone" in text
    assert "mean" in text
    assert "Nothing to compare" in text


@pytest.mark.parametrize("colour", [False, True])
def test_hostile_text_is_escaped(tmp_path: Path, colour: bool) -> None:
    analysis = compare([str(hostile_run(tmp_path / "a"))], fail_if=["tokens < 9999"])
    name = str(analysis.table["conversation"].iloc[0])
    for text in (printed(analysis, colour=colour), printed(analysis, colour=colour, show=name)):
        assert "\x1b]" not in text
        assert "\x1b[2J" not in text
        assert not set(text) & set("\x07\x00\u202e\u2028\r")
        assert "bold]" in text, "markup in the data must be shown"


def test_a_conversation_is_printed_side_by_side(pair: Analysis) -> None:
    text = printed(pair, show="talk-3", width=160)
    assert "Question 1 of talk-3?" in text
    assert "t=1" in text
    assert "t=2" in text


def test_an_unknown_conversation_is_a_usage_error(pair: Analysis) -> None:
    with pytest.raises(UsageError, match="'nobody'"):
        printed(pair, show="nobody")


def test_a_disagreeing_signed_rank_test_is_noted(tmp_path: Path) -> None:
    """Nearly all conversations are a little worse, and two so much better that the mean does not differ."""

    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        number = int(row["conversation"].removeprefix("talk-"))
        worse = -9.0 if number < 2 else 0.1 + 0.001 * number
        row["reference"]["nll"] = 10.0 + worse * (row["cell"] == "t=2")

    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=40, repeats=1, turns=1, change=change)
    analysis = compare([str(path)], primary="nll")
    assert "nll: the signed-rank test does not agree for t=2 (p < 0.001)" in printed(analysis, num_changes=0)


def test_the_note_on_several_signed_rank_tests_has_their_level(tmp_path: Path) -> None:
    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        number, cell = int(row["conversation"].removeprefix("talk-")), float(row["cell"].removeprefix("t="))
        worse = -9.0 if number < 2 else 0.1 + 0.001 * number * cell
        row["reference"]["nll"] = 10.0 + worse * (cell > 1)

    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), conversations=40, repeats=1, turns=1, change=change)
    analysis = compare([str(path)], primary="nll")
    (level,) = {line.level_rank for line in analysis.comparisons}
    text = " ".join(printed(analysis, num_changes=0).split())
    assert f"t=2 (p < 0.001), t=3 (p < 0.001); each test is at {level:.2g}" in text


def test_a_small_detectable_difference_is_not_shown_as_0(tmp_path: Path) -> None:
    def change(row: dict[str, Any], noise: np.random.Generator) -> None:
        row["reference"]["nll"] = 1.0 + (row["cell"] == "t=2") * noise.normal() * 1e-5

    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=40, repeats=1, turns=1, change=change)
    analysis = compare([str(path)], primary="nll")
    (line,) = analysis.comparisons
    assert 0 < line.detectable < 0.0005
    assert f"detectable: {line.detectable:.1g}" in printed(analysis, num_changes=0)


def test_chosen_metrics_have_no_hint_at_others(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"))
    assert "--all shows" in printed(compare([str(path)]))
    assert "--all shows" not in printed(compare([str(path)], metrics=["nll"]))


def test_what_was_left_out_stands_under_the_first_metric_and_is_about_it(tmp_path: Path) -> None:
    def fail(row: dict[str, Any], rng: np.random.Generator) -> None:
        if row["conversation"] == "talk-0":
            row.update(finish_reason="error", error="out of memory", checks=[], reference=None)

    paths = [str(make_run(tmp_path / "a")), str(make_run(tmp_path / "b", change=fail))]
    for metrics, outcome in ((["nll", "score"], "left out"), (["score", "nll"], "failed"), (["errors"], "failed")):
        analysis = compare(paths, metrics=metrics, primary=None if metrics[0] != "nll" else "nll")
        text = printed(analysis, num_changes=0)
        sentence = f"Not as planned: 4 turns with an error in b ({outcome})."
        assert sentence in text
        first, *others = [family_title(lines) for lines in by_family(analysis.comparisons).values()]
        assert text.index(first) < text.index(sentence)
        assert all(text.index(sentence) < text.index(other) for other in others)
        assert sentence in as_markdown(analysis).replace("\\", "")
