"""Probes by distance from the fact: groups, the table, and figures of the report."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import rwkvbatch
from rwkvbatch.comparison.report.charts import memory_figures, turn_figures
from rwkvbatch.comparison.report.html import as_html
from rwkvbatch.comparison.values.groups import distance_groups
from rwkvbatch.errors import UsageError


def run_with_probes(path: Path, num_turns: int = 4) -> Path:
    """A run of two conversations of `num_turns` turns with a probe for a fact of turn 0."""
    script = path / "s.jsonl"
    probes = [{"content": "Who am I?", "expect": {"contains": "Ada"}}]
    turns = [{"role": "user", "content": text} for text in ("My name is Ada.", *["Say hello."] * (num_turns - 1))]
    lines = [{"id": name, "messages": turns, "probes": probes} for name in "ab"]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rwkvbatch.run(script, out=path / "run", temperature=[0.0, 2.0], max_tokens=6)
    return path / "run"


def test_groups_are_single_turns_and_powers_of_two_of_tokens() -> None:
    rows = pd.DataFrame(
        {"probe_turns": [0.0, 1.0, 2.0, float("nan")], "probe_tokens": [3.0, 70.0, 100.0, float("nan")]}
    )
    groups = distance_groups(rows)
    assert [group.label for group in groups] == ["0 turns", "1 turn", "2 turns", "2-3 tokens", "64-127 tokens"]
    assert [int(group.rows.sum()) for group in groups] == [1, 1, 1, 1, 2]
    assert groups[-1].middle == 85.0


def test_many_different_turns_are_grouped_by_powers_of_two() -> None:
    rows = pd.DataFrame({"probe_turns": [float(n) for n in range(50)], "probe_tokens": [float("nan")] * 50})
    groups = distance_groups(rows)
    assert [group.label for group in groups] == [
        "0 turns", "1 turn", "2-3 turns", "4-7 turns", "8-15 turns", "16-31 turns", "32-63 turns"
    ]  # fmt: skip
    assert sum(int(group.rows.sum()) for group in groups) == 50


def test_compare_shows_the_pass_rate_at_each_distance(tmp_path: Path) -> None:
    run = run_with_probes(tmp_path)
    analysis = rwkvbatch.compare(run, by="distance")
    table = analysis.to_pandas()
    grouped = table[table["group"].notna()]
    assert list(grouped["group"])[:4] == ["0 turns", "1 turn", "2 turns", "3 turns"]
    assert (grouped["num_values"][:4] == 2).all()
    assert {group.split()[-1] for group in grouped["group"][4:]} == {"tokens"}
    rows = analysis.table
    far = rows[(rows["probe_turns"] == 3) & (rows["cell"] == analysis.variants[0].cell)]
    assert grouped.iloc[3]["baseline_mean"] == far["score"].mean()
    by_turn = rwkvbatch.compare(run, by="turn", metrics=["tokens"]).to_pandas()
    assert list(by_turn["group"].dropna()) == ["turn 0", "turn 1", "turn 2", "turn 3"]


def test_the_report_has_figures_by_turns_and_tokens(tmp_path: Path) -> None:
    run = run_with_probes(tmp_path)
    analysis = rwkvbatch.compare(run)
    figures = memory_figures(analysis)
    assert [figure.title for figure in figures] == [
        "Probes passed by turns since the fact was said", "Probes passed by tokens since the fact was said"
    ]  # fmt: skip
    assert "since the fact was said" in as_html(analysis)
    assert all("turn 4" not in figure.svg for figure in turn_figures(analysis))


def test_metrics_of_probes_alone_have_no_chart_of_turns(tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    turns = [{"role": "user", "content": text} for text in ("My name is Ada.", "Hi.")]
    probe = {"content": "What is my name?", "expect": {"contains": "Ada"}}
    script.write_text(json.dumps({"probes": [probe], "messages": turns}) + "\n")
    rwkvbatch.run(script, out=tmp_path / "run", temperature=[0.0, 1.0], max_tokens=8)
    analysis = rwkvbatch.compare(tmp_path / "run")
    assert analysis.primary is not None
    assert analysis.primary.name == "score"
    assert {"score", "tokens"} & {figure.name for figure in turn_figures(analysis)} == {"tokens"}


def test_by_distance_without_probes_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "s.jsonl"
    script.write_text('{"messages": [{"role": "user", "content": "Hi", "expect": {"contains": "a"}}]}\n')
    rwkvbatch.run(script, out=tmp_path / "run", max_tokens=2)
    with pytest.raises(UsageError, match="no run has probes"):
        rwkvbatch.compare(tmp_path / "run", by="distance")
    assert memory_figures(rwkvbatch.compare(tmp_path / "run")) == []
