"""Comparisons of races: the race's own result, and no test of rows whose number depends on the scores."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.report.formats import as_csv, as_json, as_markdown
from rwkvbatch.comparison.report.html import as_html
from rwkvbatch.comparison.report.terminal import print_analysis
from rwkvbatch.errors import UsageError
from tests.comparison.make_run import make_run

CELLS = ("temp=0", "temp=1", "temp=2")
RESULT = {
    "level": 0.05,
    "leader": "temp=1",
    "left": ["temp=1", "temp=0"],
    "cells": [
        {"cell": "temp=0", "score": 0.5, "dropped_after": None},
        {"cell": "temp=1", "score": 0.6, "dropped_after": None},
        {"cell": "temp=2", "score": 0.1, "dropped_after": 9},
    ],
}


def race(path: Path, result: Any = RESULT) -> str:
    """A run of a race in which the last cell fails nearly always: a test of its rows would call it worse."""

    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        passed = bool(rng.random() < (0.05 if row["cell"] == "temp=2" else 0.9))
        row["checks"][0].update(passed=passed, score=float(passed))

    identity = {"race": {"level": 0.05, "margin": None, "rows": None}}
    make_run(path, cells=CELLS, conversations=30, change=change, identity_changes=identity)
    if result is not None:
        (path / "summary.json").write_text(json.dumps({"race": result}))
    return str(path)


def terminal(analysis: Analysis) -> str:
    stream = io.StringIO()
    print_analysis(analysis, Console(file=stream, width=80))
    return " ".join(stream.getvalue().split())


def test_the_same_rows_of_another_run_are_tested(tmp_path: Path) -> None:
    path = race(tmp_path / "plain")
    manifest = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    assert manifest["identity"].pop("race")
    make = {"cells": CELLS, "conversations": 30}
    assert [line.verdict for line in compare(path).comparisons] == ["untested", "untested"]
    rows = (tmp_path / "plain" / "results.jsonl").read_bytes()
    other = make_run(tmp_path / "other", **make)  # type: ignore[arg-type]
    (other / "results.jsonl").write_bytes(rows)
    assert [line.verdict for line in compare(str(other)).comparisons] == ["no difference found", "worse"]


def test_every_format_begins_with_the_race_s_result_and_has_no_verdict_by_p(tmp_path: Path) -> None:
    analysis = compare(race(tmp_path / "race"), all_metrics=True)
    (sentence,) = analysis.races
    assert sentence.startswith(
        "race is a race: leader temp=1 (score 0.600); not shown to be worse: temp=0; dropped as worse than another: "
        "1 of 3 cells; a best cell was dropped with a probability of at most 0.05"
    )
    shown = terminal(analysis)
    assert shown.startswith(sentence)
    for text in (shown, as_markdown(analysis), as_html(analysis), repr(analysis), analysis._repr_html_()):
        assert "p-values of these rows do not hold" in " ".join(text.split())
    assert "temp=2" in shown
    assert as_markdown(analysis).startswith("**race is a race: leader temp=1")
    page = as_html(analysis)
    assert 0 < page.index("race is a race: leader temp=1") < page.index('id="verdicts"')
    assert repr(analysis).splitlines()[1].strip().startswith("race is a race")
    assert "race is a race" in analysis._repr_html_()
    content = json.loads(as_json(analysis))
    assert content["races"] == [{"run": "race", "result": RESULT, "sentence": sentence}]
    assert content["best"] == []
    records = [*content["comparisons"], *csv.DictReader(io.StringIO(as_csv(analysis)))]
    assert {record["verdict"] for record in records} == {"untested"}
    for name in ("p", "p_adjusted", "low", "high", "low_alone", "high_alone", "detectable"):
        assert {record[name] for record in records} <= {None, ""}, name
    for text in (shown, as_markdown(analysis)):
        assert "better" not in text
        assert "worse" not in text.replace(sentence, "").replace("shown to be worse", "").replace("worse than", "")
    for tone in ("better", "worse", "differs"):
        assert f'class="conclusion {tone}"' not in page
        assert f'data-verdict="{tone}"' not in page


def test_the_place_in_the_race_stands_where_the_verdict_does(tmp_path: Path) -> None:
    shown = terminal(compare(race(tmp_path / "race")))
    assert " leader " in shown
    assert " dropped" in shown
    assert "not tested" not in shown


def test_a_cell_of_a_race_is_not_tested_against_another_run_either(tmp_path: Path) -> None:
    make_run(tmp_path / "other", cells=["base"], conversations=30)
    analysis = compare([str(tmp_path / "other"), f"{race(tmp_path / 'race')}::temp=2"])
    assert [line.verdict for line in analysis.comparisons] == ["untested"]
    assert len(analysis.races) == 1


@pytest.mark.parametrize(
    "result",
    [None, [], {"leader": None}, {**RESULT, "cells": None}, {**RESULT, "left": [["x"]]}, {**RESULT, "leader": "other"}],
)
def test_a_race_without_a_whole_result_is_still_no_run_to_test(tmp_path: Path, result: Any) -> None:
    analysis = compare(race(tmp_path / "race", result))
    assert analysis.races == ("race is a race without a result yet",)
    assert {line.verdict for line in analysis.comparisons} == {"untested"}
    terminal(analysis)


def test_a_trend_over_races_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--over tests a trend, and temp=0 is of a race"):
        compare(race(tmp_path / "race"), over="1,2,3")
