"""Paired comparisons, checked against scipy and plain arithmetic; notes, breakdowns, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rwkvbatch.comparison import compare, load
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.pairing.pairs import Pair
from rwkvbatch.comparison.runs.data import Variant
from rwkvbatch.comparison.statistics.differences import Comparison, compare_metric
from rwkvbatch.errors import RunMismatchError, UsageError
from rwkvbatch.stats.family import compare_family
from tests.comparison.make_run import make_row, make_run, write_run


def line(comparisons: tuple[Comparison, ...], metric: str, group: str | None = None) -> Comparison:
    return next(item for item in comparisons if item.metric.name == metric and item.group == group)


def worse_nll(amount: float, cell: str = "t=2") -> Any:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["reference"]["nll"] += amount + 0.05 * rng.normal() if row["cell"] == cell else 0.0

    return change


def test_difference_interval_and_p_are_those_of_sign_flips_by_conversation(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=9, repeats=3, turns=2)
    found = line(compare([str(path)], metrics=["nll"]).comparisons, "nll")
    means = load(path).pivot_table(index="conversation", columns="cell", values="nll")
    differences = (means["t=2"] - means["t=1"]).to_numpy()
    expected = compare_family(6 * differences[:, None], np.full((9, 1), 6.0)).differences[0]
    assert found.difference == pytest.approx(differences.mean())
    assert (found.p, found.low, found.high) == pytest.approx((expected.p, expected.low, expected.high))
    assert found.p == pytest.approx(stats.permutation_test((differences,), np.mean, permutation_type="samples").pvalue)
    assert (found.num_conversations, found.num_values) == (9, 54)


def test_means_are_over_matched_rows_only(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [_nll("x", 1.0), _nll("y", 2.0), _nll("z", 9.0)], manifest={})
    write_run(tmp_path / "b", [_nll("x", 1.5), _nll("y", 2.7), _nll("w", 9.0)], manifest={})
    analysis = compare([str(tmp_path / "a"), str(tmp_path / "b")], metrics=["nll"])
    found = line(analysis.comparisons, "nll")
    assert (found.baseline_mean, found.variant_mean) == pytest.approx((1.5, 2.1))
    assert [(each.label, each.missing) for each in analysis.dropped] == [("a", 1), ("b", 1)]


def _nll(conversation: str, nll: float) -> dict[str, Any]:
    reference = {"text": "r", "nll": nll, "matched": 0.5, "tokens": 2}
    return make_row(conversation, reference=reference)


def test_a_large_increase_is_worse_for_a_metric_of_which_lower_is_better(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=30, change=worse_nll(2.0))
    found = line(compare([str(path)], primary="nll").comparisons, "nll")
    assert found.verdict == "worse"
    assert found.losses > 25


def test_equal_runs_are_identical_in_all_metrics(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / name)) for name in ("a", "b")]
    comparisons = compare(paths, all_metrics=True).comparisons
    assert all(item.difference == 0 for item in comparisons)
    assert {item.verdict for item in comparisons} == {"identical", "untested"}


def test_runs_that_differ_in_the_seed_only_seldom_differ_significantly(tmp_path: Path) -> None:
    false_positives = 0
    for seed in range(20):
        paths = [
            str(make_run(tmp_path / f"{seed}-{i}", conversations=8, repeats=1, seed=1000 * i + seed)) for i in (1, 2)
        ]
        found = compare(paths).comparisons
        false_positives += any(item.verdict in ("better", "worse", "differs") for item in found)
    assert false_positives <= 3


def test_each_metric_is_a_family_and_only_the_primary_one_is_not_exploratory(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2", "t=3"), conversations=20, change=worse_nll(2.0))
    whole, alone = compare([str(path)], all_metrics=True), compare([str(path)])
    assert [family.name for family in whole.families][:3] == ["score", "nll", "perplexity"]
    assert [family.name for family in whole.families if not family.exploratory] == ["score"]
    assert alone.comparisons == whole.comparisons[:2]
    assert line(whole.comparisons, "nll").p_adjusted < 0.001


def test_identical_pairs_do_not_count_in_the_correction(tmp_path: Path) -> None:
    def change(row: dict[str, Any], rng: np.random.Generator) -> None:
        passed = row["cell"] == "t=2" and row["conversation"] > "talk-1"
        row["checks"][0].update(passed=passed, score=float(passed))

    few = compare([str(make_run(tmp_path / "a", cells=("t=1", "t=2"), change=change))])
    many = compare([str(make_run(tmp_path / "b", cells=("t=1", "t=2", *"cdefgh"), change=change))])
    assert (few.families[0].size, many.families[0].size) == (1, 1)
    assert few.comparisons[0].p_adjusted == many.comparisons[0].p_adjusted == few.comparisons[0].p
    assert {item.verdict for item in many.comparisons[1:]} == {"equal values"}


def test_a_single_metric_other_than_the_primary_one_is_exploratory(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=12)
    (found,) = compare([str(path)], metrics=["nll"]).comparisons
    assert found.p_adjusted == found.p
    assert found.exploratory


def test_timings_are_compared_without_a_test(tmp_path: Path) -> None:
    def slower(row: dict[str, Any], rng: np.random.Generator) -> None:
        row["timing"]["first_token_s"] += 5.0 * (row["cell"] == "t=2")

    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), change=slower)
    found = line(compare([str(path)], metrics=["first_token_s"]).comparisons, "first_token_s")
    assert found.difference > 4
    assert found.verdict == "untested"
    assert math.isnan(found.p_adjusted)


def test_perplexity_is_the_exponential_of_the_mean_nll(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"))
    comparisons = compare([str(path)], all_metrics=True).comparisons
    nll, perplexity = line(comparisons, "nll"), line(comparisons, "perplexity")
    assert perplexity.variant_mean == pytest.approx(math.exp(nll.variant_mean))
    assert perplexity.difference == pytest.approx(math.exp(nll.variant_mean) - math.exp(nll.baseline_mean))


def test_pass_at_k_counts_conversations_whose_turns_all_pass_in_a_repeat(tmp_path: Path) -> None:
    rows = [
        make_row("x", cell=cell, repeat=repeat, turn=turn, checks=_checks(passed))
        for cell, outcomes in {"t=1": [(1, 1), (1, 0)], "t=2": [(1, 0), (0, 1)]}.items()
        for repeat, turns in enumerate(outcomes)
        for turn, passed in enumerate(turns)
    ]
    write_run(tmp_path / "a", rows, manifest={})
    found = {item.metric.name: item for item in compare([str(tmp_path / "a")], ks=[1, 2], all_metrics=True).comparisons}
    assert (found["pass_at_1"].baseline_mean, found["pass_at_1"].variant_mean) == (0.5, 0.0)
    assert (found["pass_at_2"].baseline_mean, found["all_2"].baseline_mean) == (1.0, 0.0)


def _checks(passed: int) -> list[dict[str, Any]]:
    return [{"kind": "k", "expected": 1, "passed": bool(passed), "score": float(passed), "weight": 1.0, "detail": None}]


def test_wins_ties_and_losses_count_conversations(tmp_path: Path) -> None:
    for name, nlls in {"a": [1.0, 1.0, 1.0], "b": [0.5, 1.0, 2.0]}.items():
        rows = [
            make_row(c, turn=turn, reference={"text": "r", "nll": nll, "matched": 0.5, "tokens": 1})
            for c, nll in zip("xyz", nlls, strict=True)
            for turn in range(2)
        ]
        write_run(tmp_path / name, rows, manifest={})
    found = line(compare([str(tmp_path / "a"), str(tmp_path / "b")], metrics=["nll"]).comparisons, "nll")
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)


def test_a_breakdown_by_turn_has_a_line_for_each_turn(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), turns=3)
    comparisons = compare([str(path)], by="turn").comparisons
    assert [item.group for item in comparisons] == [None, "turn 0", "turn 1", "turn 2"]
    assert [item.exploratory for item in comparisons] == [False, True, True, True]
    assert {item.family for item in comparisons[1:]} == {"score by turn"}


def test_a_breakdown_by_tag_takes_the_rows_with_that_tag(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=10, repeats=1, turns=1)
    groups = {item.group: item.num_values for item in compare([str(path)], by="tag").comparisons}
    table = load(path)
    assert groups["even"] == sum(tags == ("even",) for tags in table["tags"]) / 2


def test_runs_of_different_scripts_are_refused_without_force(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a")
    b = make_run(tmp_path / "b", identity_changes={"script": {"sha256": "99" * 32}})
    with pytest.raises(RunMismatchError, match="different scripts") as caught:
        compare([str(a), str(b)])
    assert "--force" in (caught.value.hint or "")
    assert f"{b} replayed another script than {a}" in compare([str(a), str(b)], force=True).notes


@pytest.mark.parametrize("checks", [True, False])
def test_errors_count_as_failed_for_different_scripts_too(tmp_path: Path, checks: bool) -> None:
    def end_in_errors(row: dict[str, Any], rng: np.random.Generator) -> None:
        if row["turn"] == 1:
            row.update(finish_reason="error", error="too long", reference=None)
            failed = {"passed": False, "score": 0.0}
            row["checks"] = [{**check, **failed} for check in row["checks"]] if checks else []

    a = make_run(tmp_path / "a", conversations=6)
    b = make_run(tmp_path / "b", conversations=6, change=end_in_errors)
    same = compare([str(a), str(b)])
    c = make_run(
        tmp_path / "c", conversations=6, change=end_in_errors, identity_changes={"script": {"sha256": "99" * 32}}
    )
    found = compare([str(a), str(c)], force=True)
    assert found.comparisons[0].num_values == same.comparisons[0].num_values == 24
    assert found.comparisons[0].variant_mean == same.comparisons[0].variant_mean
    assert not any("differ" in note for note in found.notes if "left out" in note)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"identity_changes": {"seed": 5}}, "different seeds"),
        ({"settings": {"base": {"history": "gold"}}}, "different history modes"),
        ({"settings": {"base": {"think": "on"}}}, "different thinking modes"),
        ({"settings": {"base": {"turn_end": "blank-line"}}}, "different ends of a turn"),
        ({"settings": {"base": {"reply_prefix": "Sure"}}}, "different beginnings of replies"),
        ({"settings": {"base": {"bos": "on"}}}, "different beginnings (--bos)"),
    ],
)
def test_differences_between_runs_are_noted(tmp_path: Path, changes: dict[str, Any], note: str) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", **changes)
    notes = compare([str(a), str(b)]).notes
    assert any(note in item for item in notes), notes


def test_different_vocabularies_are_noted(tmp_path: Path) -> None:
    paths = [
        str(make_run(tmp_path / name, settings={"base": {"tokenizer_sha256": sha}}))
        for name, sha in (("a", "11" * 32), ("b", "22" * 32), ("c", "11" * 32))
    ]
    (note,) = [note for note in compare(paths).notes if "vocabularies" in note]
    assert "values per token (nll" in note
    assert note.endswith(f"(a: {'11' * 12}, b: {'22' * 12})")


@pytest.mark.parametrize("name", ["bos", "turn_end"])
def test_a_setting_that_a_run_does_not_resolve_is_not_noted(tmp_path: Path, name: str) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", settings={"base": {name: "auto"}})
    assert not any("different" in note for note in compare([str(a), str(b)]).notes)


@pytest.mark.parametrize(
    ("prefix", "shown"),
    [
        ("Sure", "(a: '', b: Sure)"),
        (" Sure", "(a: '', b: ' Sure')"),
        (["Sure"], "(a: '', b: ['Sure'])"),
        ({}, "b: {})"),
    ],
)
def test_prompt_settings_that_differ_are_shown_and_empty_texts_quoted(tmp_path: Path, prefix: Any, shown: str) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", settings={"base": {"reply_prefix": prefix}})
    (note,) = (note for note in compare([str(a), str(b)]).notes if "--reply-prefix" in note)
    assert note.endswith(shown)


@pytest.mark.parametrize(
    ("model", "settings", "cause"),
    [
        ({}, {}, "any that differs is a fault of the program"),
        ({"bitwise": True}, {"max_seconds": None}, "any that differs is a fault of the program"),
        (
            {"bitwise": False, "endpoint": "http://x/v1", "path": "http://x/v1 m"},
            {},
            "they may differ because http://x/v1 m is a served model, which may reply differently at each request",
        ),
        (
            {"bitwise": False},
            {},
            "they may differ because the backend of bundled does not guarantee the same replies for every batch",
        ),
        ({"bitwise": True}, {"max_seconds": 2.5}, "they may differ because --max-seconds ends replies by the clock"),
    ],
)
def test_the_note_on_equal_runs_blames_the_program_only_if_it_promises_the_same_replies(
    tmp_path: Path, model: dict[str, Any], settings: dict[str, Any], cause: str
) -> None:
    paths = [make_run(tmp_path / name, settings={"base": settings}) for name in "ab"]
    for path in paths:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        manifest["about"]["models"][0].update(model)
        (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    same = "a and b have the same weights, script, settings and seed, so they should have the same replies;"
    assert compare([str(path) for path in paths]).notes == (f"{same} {cause}",)


def test_runs_without_common_conversations_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [make_row("x")], manifest={})
    write_run(tmp_path / "b", [make_row("y")], manifest={})
    with pytest.raises(RunMismatchError, match="in common"):
        compare([str(tmp_path / "a"), str(tmp_path / "b")])


def test_sweeps_without_a_common_cell_are_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", cells=("t=1", "t=2"))
    b = make_run(tmp_path / "b", cells=("t=3", "t=4"))
    with pytest.raises(RunMismatchError, match="in common"):
        compare([str(a), str(b)])


def test_a_gate_on_a_run_without_common_turns_fails(tmp_path: Path) -> None:
    for name, conversation in {"a": "x", "b": "x", "c": "y"}.items():
        write_run(tmp_path / name, [make_row(conversation)], manifest={})
    paths = [str(tmp_path / name) for name in "abc"]
    assert len(compare(paths).matched) == 1
    results = {result.label: result for result in compare(paths, fail_if=["score < baseline - 0.5"]).gates}
    assert not results["b"].failed
    assert results["c"].failed
    assert results["c"].reason.startswith("cannot be judged: c and a have no turn in common")


def test_an_unknown_metric_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="score, passed, nll"):
        compare([str(make_run(tmp_path / "a"))], metrics=["bleu"])


def test_wins_and_losses_are_weighted_like_the_mean() -> None:
    columns = {"nll_a": [2.0, 2.0], "nll_b": [4.0, 1.0], "nll_weight_a": [1.0, 99.0], "nll_weight_b": [1.0, 99.0]}
    rows = pd.DataFrame(columns | {"conversation_code": [0, 0]})
    pair = Pair(Variant("a", "base", "a"), Variant("b", "base", "b"))
    [found], _ = compare_metric(metric_named("nll"), [MatchedRows(pair, rows, 0, 0, 0)])
    assert found.difference < 0
    assert (found.wins, found.ties, found.losses) == (1, 0, 0)


def test_requested_metrics_without_values_are_no_lines_of_the_table(tmp_path: Path) -> None:
    path = str(make_run(tmp_path / "a", cells=("t=1", "t=2"), conversations=7))
    found = compare(path, metrics=["bits_per_byte", "pass_at_9", "score"])
    assert {line.metric.name for line in found.comparisons} == {"score"}
    (note,) = [note for note in found.notes if "no turn has a value" in note]
    assert note.startswith("no turn has a value of bits_per_byte, pass_at_9 on both sides: scores need checks")
    for source, where in ((path, " on both sides"), (f"{path}::t=1", "")):
        with pytest.raises(UsageError, match=f"--metric: no turn has a value of pass_at_9{where}$") as caught:
            compare(source, metrics=["pass_at_9"])
        assert "pass_at_K K repetitions" in (caught.value.hint or "")
    everything = compare(path, ks=[2, 9], all_metrics=True)
    assert {line.metric.name for line in everything.comparisons} & {"pass_at_2", "pass_at_9"} == {"pass_at_2"}
    assert [note for note in everything.notes if "9" in note] == [
        "pass_at_9 cannot be estimated: conversations with checks have at most 2 repetitions"
    ]


def test_without_a_common_turn_with_checks_the_script_is_not_blamed(tmp_path: Path) -> None:
    plain = {"checks": [], "reference": None}
    rows = [make_row("x", cell=cell, **plain) for cell in ("t=1", "t=2")] + [make_row("x", cell="t=1", turn=1)]
    write_run(tmp_path / "a", rows, manifest={})
    with pytest.raises(UsageError, match="no turn that the variants share has a check") as caught:
        compare(str(tmp_path / "a"))
    assert "command of an interrupted run again" in (caught.value.hint or "")
    write_run(tmp_path / "b", rows[:2], manifest={})
    with pytest.raises(UsageError, match="the script has neither checks"):
        compare(str(tmp_path / "b"))


@pytest.mark.parametrize("unit", [1.0, 1e-11])
def test_a_conversation_with_a_huge_value_does_not_make_ties_of_the_others(unit: float) -> None:
    """Ties are differences that are 0 but for rounding, whatever the size of others."""
    baseline, variant = np.full((2, 8), 2.0)
    variant[:5] += unit * np.array([0.5, 0.5, 0.5, -0.5, 1e30])
    baseline[6:], variant[6:] = [0.1, 0.7], [0.7, 0.1]
    columns = {"nll_a": baseline, "nll_b": variant, "conversation_code": [0, 1, 2, 3, 4, 5, 6, 6]}
    pair = Pair(Variant("a", "x", "a"), Variant("b", "x", "b"))
    [found], _ = compare_metric(metric_named("nll"), [MatchedRows(pair, pd.DataFrame(columns), 0, 0, 0)])
    assert (found.wins, found.ties, found.losses) == (1, 2, 4)
