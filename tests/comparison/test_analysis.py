"""Whole comparisons: gates, refusals, rows left out, errors and missing rows, margins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvbatch.comparison import compare
from rwkvbatch.comparison.report.formats import as_markdown
from rwkvbatch.comparison.wording import left_out
from rwkvbatch.errors import RunMismatchError, UsageError
from tests.comparison.make_run import RowChange, make_row, make_run, write_run


def test_gates_on_a_single_run_are_judged_on_all_its_rows(tmp_path: Path) -> None:
    path = str(make_run(tmp_path / "a", conversations=6, repeats=2))
    result = compare([path], fail_if=["score < 0.99", "pass_at_2 >= 1", "all_2 < 1"])
    assert [gate.failed for gate in result.gates] == [True, False, True]
    assert result.gates[0].left == pytest.approx(result.table["score"].mean())
    assert result.failed


def test_gates_on_pass_at_k_are_judged_by_conversation(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / name, conversations=6, repeats=2)) for name in ("a", "b")]
    result = compare(paths, fail_if=["pass_at_2 < baseline - 0.5", "all_2 < baseline + 0.1"])
    assert [gate.failed for gate in result.gates] == [False, True]


@pytest.mark.parametrize("gate", ["score * nll > 1 significantly", "p95(score) > 0.9 significantly"])
def test_significance_of_a_gate_without_a_test_is_refused(tmp_path: Path, gate: str) -> None:
    path = str(make_run(tmp_path / "a", cells=("t=1", "t=2")))
    with pytest.raises(UsageError, match="sums and multiples of means"):
        compare([path], fail_if=[gate])


def test_runs_without_a_common_turn_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, [make_row(f"only-in-{name}")], manifest={})
    with pytest.raises(RunMismatchError, match=r"b and a have no \(conversation, turn, repeat\) in common"):
        compare([str(tmp_path / "a"), str(tmp_path / "b")])


def test_turns_with_different_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rows = [make_row("x"), make_row("y", prompt=f"Who is {name}?"), make_row("y", turn=1)]
        write_run(tmp_path / name, rows, manifest={})
    analysis = compare([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "b against a: 2 turns left out: their prompts, references or checks differ" in analysis.notes
    assert [(each.label, each.different) for each in analysis.dropped] == [("a", 0), ("b", 2)]
    assert analysis.comparisons[0].num_values == 1


def test_ids_from_line_numbers_do_not_pair_different_questions(tmp_path: Path) -> None:
    scripts = {"a": ["one", "two", "three"], "b": ["zero", "one", "two"]}
    for name, prompts in scripts.items():
        rows = [make_row(f"line-{number}", prompt=prompt) for number, prompt in enumerate([*prompts, "same"], start=1)]
        write_run(tmp_path / name, rows, manifest={})
    assert compare([str(tmp_path / name) for name in "ab"]).comparisons[0].num_values == 1


@pytest.mark.parametrize(
    "change",
    [
        {"reference": {"text": "Another answer.", "nll": 1.0, "matched": 0.4, "tokens": 3}},
        {
            "checks": [
                {"kind": "contains", "expected": "x", "passed": True, "score": 1.0, "weight": 1.0, "detail": None}
            ]
        },
    ],
    ids=["reference", "checks"],
)
def test_turns_with_different_references_or_checks_are_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    write_run(tmp_path / "a", [make_row("x"), make_row("y")], manifest={})
    write_run(tmp_path / "b", [make_row("x"), make_row("y", **change)], manifest={})
    assert compare([str(tmp_path / name) for name in "ab"]).comparisons[0].num_values == 1


def failing(num_conversations: int) -> RowChange:
    """The first conversations of cell t=2 end in an error at turn 0, and turn 1 is not reached."""

    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["checks"][0].update(passed=True, score=1.0)
        if row["cell"] == "t=2" and int(row["conversation"].removeprefix("talk-")) < num_conversations:
            error = "not reached: turn 0 of this conversation failed" if row["turn"] else "out of memory"
            row.update(finish_reason="error", error=error, checks=[], reference=None)

    return change


def test_errors_and_turns_not_reached_fail_and_are_counted(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=10, repeats=2, change=failing(4))
    analysis = compare([str(path)], ks=[2], all_metrics=True)
    found = {line.metric.name: line for line in analysis.comparisons}
    assert found["score"].variant_mean == pytest.approx(0.6)
    assert found["all_2"].variant_mean == pytest.approx(0.6)
    assert found["nll"].num_values == 24
    assert [(each.errors, each.unreached) for each in analysis.dropped] == [(0, 0), (8, 8)]
    assert "8 turns with an error in t=2 (failed); 8 turns not reached in t=2 (failed)" in left_out(analysis.dropped)


def test_errors_and_missing_turns_are_metrics(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), change=failing(3))
    (errors, missing) = compare([str(path)], metrics=["errors", "missing"]).comparisons
    assert (errors.baseline_mean, errors.variant_mean, errors.verdict) == (0, 6, "untested")
    assert missing.difference == 0


def test_missing_planned_rows_are_counted_by_cell(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), conversations=4, repeats=1)
    lines = (path / "results.jsonl").read_bytes().splitlines(keepends=True)
    (path / "results.jsonl").write_bytes(b"".join(lines[:11]))
    (path / "summary.json").write_text('{"planned": 24}')
    analysis = compare([str(path)])
    assert [(each.label, each.unfinished) for each in analysis.dropped] == [("t=1", 0), ("t=2", 5), ("t=3", 8)]
    assert any("is not finished" in note for note in analysis.notes)
    assert [each.unfinished for each in compare([f"{path}::t=2"]).dropped] == [5]


def test_k_above_the_number_of_repetitions_is_refused_or_noted(tmp_path: Path) -> None:
    path = str(make_run(tmp_path / "a", cells=("t=1", "t=2"), repeats=2))
    with pytest.raises(UsageError, match=r"pass_at_3 cannot be estimated: .* at most 2 repetitions"):
        compare([path], ks=[3])
    assert any("pass_at_3 cannot be estimated" in note for note in compare([path], ks=[2, 3]).notes)


def test_without_checks_and_references_a_primary_metric_must_be_chosen(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row.update(checks=[], reference=None)

    path = str(make_run(tmp_path / "a", cells=("t=1", "t=2"), change=change))
    with pytest.raises(UsageError, match="neither checks"):
        compare([path])
    assert compare([path], primary="tokens").comparisons[0].verdict in ("no difference found", "unclear", "differs")
    with pytest.raises(UsageError, match="--primary nll"):
        compare([path], primary="nll")
    with pytest.raises(UsageError, match="cannot decide"):
        compare([path], primary="first_token_s")


def test_with_a_margin_equivalent_is_a_verdict(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["reference"]["nll"] = 2.0 + 0.01 * rng.normal()

    path = str(make_run(tmp_path / "a", cells=("t=1", "t=2"), change=change))
    verdicts = [compare([path], primary="nll", margin=margin).comparisons[0].verdict for margin in (None, 1e-6, 0.5)]
    assert verdicts[2] == "equivalent"
    assert "equivalent" not in verdicts[:2]
    with pytest.raises(UsageError, match="--margin"):
        compare([path], margin=0.0)
    with pytest.raises(UsageError, match="--margin must be below 1, the range of score"):
        compare([path], primary="score", margin=5.0)


def test_means_of_a_single_run_have_pass_at_k_and_groups(tmp_path: Path) -> None:
    path = str(make_run(tmp_path / "a", repeats=3))
    analysis = compare([path], by="tag")
    means = {(mean.metric.name, mean.group) for mean in analysis.means(analysis.variants[0])}
    assert {("pass_at_3", "even"), ("score", "odd")} <= means
    assert ("pass_at_3", None) in {(m.metric.name, m.group) for m in compare([path]).means(analysis.variants[0])}


def test_secondary_metrics_are_exploratory(tmp_path: Path) -> None:
    analysis = compare([str(make_run(tmp_path / "a", cells=("t=1", "t=2")))])
    assert {line.metric.name for line in analysis.comparisons} == {"score"}
    assert {"nll", "tokens", "pass_at_2"} <= {line.metric.name for line in analysis.secondary}
    assert all(line.exploratory for line in analysis.secondary)
    assert analysis.secondary[0].metric.name == "nll"


def test_runs_of_which_every_turn_ended_in_an_error_are_refused(tmp_path: Path) -> None:
    def change(row: dict[str, Any], _: np.random.Generator) -> None:
        row.update(error="out of memory", finish_reason="error", checks=[], reference=None, reply="", reply_ids=[])

    paths = [str(make_run(tmp_path / name, seed=seed, change=change)) for seed, name in enumerate("ab")]
    with pytest.raises(UsageError, match="every turn of a, b ended in an error"):
        compare(paths)


def test_repetitions_that_differ_between_conversations_are_shown_as_a_range(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=6, repeats=4, turns=2)
    lines = (run / "results.jsonl").read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    kept = [
        line
        for line, row in zip(lines, rows, strict=True)
        if row["repeat"] <= int(row["conversation"].removeprefix("talk-"))
    ]
    (run / "results.jsonl").write_bytes(b"".join(kept))
    analysis = compare([str(run)])
    assert analysis.repetitions == (1, 4)
    assert "6 conversations, 1 to 4 repetitions, 36 pairs" in as_markdown(analysis)
